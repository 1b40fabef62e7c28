-- The cart's JSON was kept as text and may be empty; the user 0 was a guest; the address was
-- INET_ATON()'s number.
SELECT
    session_id                                AS cart_id,
    nullif(user_id, 0)                        AS user_id,
    (CASE status
        WHEN 0 THEN 'open'
        WHEN 1 THEN 'checkout'
        WHEN 2 THEN 'ordered'
        WHEN 3 THEN 'abandoned'
        ELSE 'unknown'
    END)::cart_status                         AS status,
    nullif(cart_data, '')::jsonb              AS cart,
    nullif(cart_data, '')::jsonb ->> 'coupon' AS coupon,
    upper(currency)                           AS currency,
    round(total * 100)::bigint                AS total_cents,
    '0.0.0.0'::inet + nullif(ip, 0)           AS ip,
    user_agent,
    is_mobile <> 0                            AS is_mobile,
    extract(epoch FROM time_on_site)::integer AS seconds_on_site,
    created AT TIME ZONE 'Europe/Berlin'      AS created_at,
    updated AT TIME ZONE 'Europe/Berlin'      AS updated_at,
    expires                                   AS expires_at
FROM cart_sessions
