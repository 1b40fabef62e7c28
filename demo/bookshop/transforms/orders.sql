SELECT
    "orderId"                                      AS order_id,
    item->>'userId'                                AS user_id,
    (CASE WHEN item->>'status' IN ('placed', 'paid', 'shipped', 'cancelled') THEN item->>'status'
        ELSE 'unknown' END)::order_status          AS status,
    to_timestamp((item->>'placedAt')::bigint)      AS placed_at,
    coalesce(item->>'note', '')                    AS note
FROM "Orders";
