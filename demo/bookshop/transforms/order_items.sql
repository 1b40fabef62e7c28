-- The lines inside an order become rows of their own; an order that changes has exactly its present lines.
-- cutover: parent_key = order_id
SELECT
    "orderId"                                      AS order_id,
    l.line::integer                                AS line,
    l.value->>'isbn'                               AS isbn,
    coalesce((l.value->>'quantity')::integer, 1)   AS quantity,
    round((l.value->>'price')::numeric * 100)::bigint AS price_cents
FROM "Orders", jsonb_array_elements(item->'items') WITH ORDINALITY AS l(value, line);
