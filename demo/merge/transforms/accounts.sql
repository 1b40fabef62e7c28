-- Three tables about the same person. The first SELECT owns the row: an admin who is deleted, or marked as deleted, has no account.
SELECT id AS account_id, lower(email) AS email, name, password_hash, created_at AT TIME ZONE 'UTC' AS created_at
FROM admins
WHERE deleted_at IS NULL;

-- cutover: on_delete = clear
SELECT admin_id AS account_id, access_token AS spotify_access_token, refresh_token AS spotify_refresh_token,
       scopes AS spotify_scopes, expires_at AS spotify_expires_at
FROM spotify_auth;

-- cutover: on_delete = clear
SELECT admin_id AS account_id, provider AS login_provider, subject AS login_subject, claims AS login_claims,
       last_seen AS last_seen_at
FROM oauth_sessions
