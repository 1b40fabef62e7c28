SELECT
    id,
    k,
    c,
    pad,
    round(amount * 100)::bigint AS amount_cents,
    active,
    note,
    created AT TIME ZONE 'UTC'  AS created_at,
    updated                     AS updated_at
FROM accounts
