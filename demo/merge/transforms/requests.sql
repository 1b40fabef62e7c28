SELECT id AS request_id, event_id, title, nullif(artist, '') AS artist, requested_by, state::text AS state, votes,
       (tip * 100)::int AS tip_cents, lyrics, requested_at AT TIME ZONE 'UTC' AS requested_at
FROM requests
