-- Soft-deleted lines stay behind: a line that becomes deleted disappears from the new shop, and
-- comes back when the flag is cleared.
SELECT
    session_id                           AS cart_id,
    line_no                              AS line,
    upper(sku)                           AS sku,
    title,
    kind::item_kind                      AS kind,
    qty                                  AS quantity,
    round(price * 100)::bigint           AS unit_price_cents,
    discount_pct,
    options,
    options ->> 'size'                   AS size,
    external_ref,
    weight_kg,
    gift_message,
    added AT TIME ZONE 'Europe/Berlin'   AS added_at
FROM cart_items
WHERE coalesce(is_deleted, 0) = 0
