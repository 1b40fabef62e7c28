-- The new application's tables, as they are before the copy.
CREATE TABLE accounts (
    account_id            int PRIMARY KEY,
    email                 text NOT NULL,
    name                  text NOT NULL,
    password_hash         bytea NOT NULL,
    created_at            timestamptz NOT NULL,
    spotify_access_token  text,
    spotify_refresh_token text,
    spotify_scopes        text[] NOT NULL DEFAULT '{}',
    spotify_expires_at    timestamptz,
    login_provider        text,
    login_subject         text,
    login_claims          jsonb,
    last_seen_at          timestamptz
);

CREATE TABLE events (
    event_id           int PRIMARY KEY,
    title              text NOT NULL,
    venue              text,
    opens_at           timestamptz,
    is_open            boolean NOT NULL,
    requests_per_guest int NOT NULL DEFAULT 3,
    allows_explicit    boolean NOT NULL DEFAULT true,
    theme              text NOT NULL DEFAULT 'plain',
    blocked_artists    text[] NOT NULL DEFAULT '{}'
);

CREATE TABLE requests (
    request_id   bigint PRIMARY KEY,
    event_id     int NOT NULL,
    title        text NOT NULL,
    artist       text,
    requested_by text NOT NULL,
    state        text NOT NULL,
    votes        int NOT NULL,
    tip_cents    int,
    lyrics       text,
    requested_at timestamptz NOT NULL
);

-- One row for each recipient.
CREATE TABLE notifications (
    notification_id bigint NOT NULL,
    recipient       text NOT NULL,
    request_id      bigint NOT NULL,
    kind            text NOT NULL,
    message         text,
    payload         jsonb NOT NULL,
    sent_at         timestamptz,
    PRIMARY KEY (notification_id, recipient)
);
