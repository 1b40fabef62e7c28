CREATE TABLE accounts (
    id           integer PRIMARY KEY,
    k            integer NOT NULL,
    c            text NOT NULL,
    pad          text NOT NULL,
    amount_cents bigint NOT NULL,
    active       boolean NOT NULL,
    note         text,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
