-- A book's attributes came and went over the years: prices were numbers before they were maps with a currency, one author
-- was a string before it was a list.
SELECT
    isbn,
    coalesce(item->>'title', '')                                          AS title,
    CASE jsonb_typeof(item->'authors')
        WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text(item->'authors'))
        WHEN 'string' THEN ARRAY[item->>'authors']
        ELSE '{}'
    END                                                                   AS authors,
    CASE jsonb_typeof(item->'price')
        WHEN 'number' THEN round((item->>'price')::numeric * 100)
        WHEN 'object' THEN round((item->'price'->>'amount')::numeric * 100)
        ELSE 0
    END::bigint                                                           AS price_cents,
    coalesce(CASE jsonb_typeof(item->'price') WHEN 'object' THEN item->'price'->>'currency' END, 'EUR') AS currency,
    (item->>'pages')::integer                                             AS pages,
    CASE WHEN item ? 'tags' THEN ARRAY(SELECT jsonb_array_elements_text(item->'tags')) ELSE '{}' END AS tags,
    decode(item->>'cover', 'base64')                                      AS cover,
    coalesce((item->>'inPrint')::boolean, true)                           AS is_in_print,
    item - ARRAY['isbn', 'title', 'authors', 'price', 'pages', 'tags', 'cover', 'inPrint'] AS details
FROM "Books";
