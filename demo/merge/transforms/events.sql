SELECT event_id, title, venue, opens_at, NOT closed AS is_open
FROM settings;

-- cutover: on_delete = clear
SELECT event_id, coalesce((limits ->> 'per_guest')::int, 3) AS requests_per_guest,
       coalesce((limits ->> 'explicit')::boolean, true) AS allows_explicit,
       coalesce(theme, 'plain') AS theme, coalesce(blocked_artists, '{}') AS blocked_artists
FROM event_settings
