SELECT
    id::int                                       AS id,
    (item->>'k')::int                             AS k,
    item->>'c'                                    AS c,
    item->>'pad'                                  AS pad,
    round((item->>'amount')::numeric * 100)::bigint AS amount_cents,
    (item->>'active')::boolean                    AS active,
    item->>'note'                                 AS note,
    (item->>'created')::timestamptz               AS created_at,
    (item->>'updated')::timestamptz               AS updated_at
FROM accounts
