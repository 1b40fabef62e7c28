-- Old users to new ones. The old shop's DATETIME is wall-clock time in Berlin; its TIMESTAMP is a
-- moment already. BIT(8) arrives as one byte.
SELECT
    id                                        AS user_id,
    lower(email)                              AS email,
    name                                      AS display_name,
    nickname,
    birth_date                                AS born_on,
    upper(country)                            AS country,
    (CASE status
        WHEN 'new' THEN 'pending'
        WHEN ''    THEN 'closed'
        ELSE status
    END)::user_status                         AS status,
    is_active <> 0                            AS is_active,
    get_byte(flags, 0) & 1 = 1                AS newsletter,
    get_byte(flags, 0) & 2 = 2                AS is_business,
    string_to_array(prefs, ',')               AS channels,
    round(balance * 100)::bigint              AS credit_cents,
    nullif(member_since, 0)                   AS member_since,
    avatar_hash,
    notes,
    created AT TIME ZONE 'Europe/Berlin'      AS signed_up_at,
    last_login                                AS last_login_at
FROM users
