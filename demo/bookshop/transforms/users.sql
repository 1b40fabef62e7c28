-- Who has not come back is removed by Time to Live at the source, and goes here too.
SELECT
    "userId"                                       AS user_id,
    lower(item->>'email')                          AS email,
    coalesce(item->>'name', '')                    AS name,
    (item->>'joinedAt')::timestamptz               AS joined_at,
    coalesce((item->>'newsletter')::boolean, false) AS newsletter,
    item->'address'->>'city'                       AS city
FROM "Users";
