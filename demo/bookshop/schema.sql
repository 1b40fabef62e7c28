-- The new bookshop: tables and primary keys. Foreign keys and indexes are in schema_after.sql, which cutover runs when the
-- copy is complete.

CREATE TYPE order_status AS ENUM ('placed', 'paid', 'shipped', 'cancelled', 'unknown');

CREATE TABLE books (
    isbn        text PRIMARY KEY,
    title       text NOT NULL,
    authors     text[] NOT NULL DEFAULT '{}',
    price_cents bigint NOT NULL DEFAULT 0,
    currency    text NOT NULL DEFAULT 'EUR',
    pages       integer,
    tags        text[] NOT NULL DEFAULT '{}',
    cover       bytea,
    is_in_print boolean NOT NULL DEFAULT true,
    details     jsonb NOT NULL DEFAULT '{}',
    search      tsvector GENERATED ALWAYS AS (to_tsvector('simple'::regconfig, title)) STORED
);

CREATE TABLE users (
    user_id     text PRIMARY KEY,
    email       text NOT NULL,
    name        text NOT NULL DEFAULT '',
    joined_at   timestamptz,
    newsletter  boolean NOT NULL DEFAULT false,
    city        text
);

CREATE TABLE orders (
    order_id    text PRIMARY KEY,
    user_id     text NOT NULL,
    status      order_status NOT NULL DEFAULT 'unknown',
    placed_at   timestamptz NOT NULL,
    note        text NOT NULL DEFAULT ''
);

CREATE TABLE order_items (
    order_id    text NOT NULL,
    line        integer NOT NULL,
    isbn        text NOT NULL,
    quantity    integer NOT NULL DEFAULT 1,
    price_cents bigint NOT NULL,
    PRIMARY KEY (order_id, line)
);
