-- The new shop: tables and primary keys. Secondary indexes and foreign keys are in
-- schema_after.sql, which cutover runs when the copy is complete.

CREATE TYPE user_status AS ENUM ('pending', 'active', 'locked', 'closed');
CREATE TYPE cart_status AS ENUM ('open', 'checkout', 'ordered', 'abandoned', 'unknown');
CREATE TYPE item_kind AS ENUM ('physical', 'digital', 'voucher');

CREATE TABLE users (
    user_id       bigint PRIMARY KEY,
    email         text NOT NULL,
    display_name  text NOT NULL,
    nickname      text,
    born_on       date,
    country       text NOT NULL,
    status        user_status NOT NULL,
    is_active     boolean NOT NULL,
    newsletter    boolean NOT NULL,
    is_business   boolean NOT NULL,
    channels      text[] NOT NULL,
    credit_cents  bigint NOT NULL,
    member_since  integer,
    avatar_hash   bytea,
    notes         text,
    signed_up_at  timestamptz,
    last_login_at timestamptz,
    search        tsvector GENERATED ALWAYS AS
                  (to_tsvector('simple'::regconfig, display_name || ' ' || coalesce(nickname, '') || ' ' || email)) STORED
);

CREATE TABLE cart_sessions (
    cart_id         text PRIMARY KEY,
    user_id         bigint,
    status          cart_status NOT NULL,
    cart            jsonb,
    coupon          text,
    currency        text NOT NULL,
    total_cents     bigint,
    ip              inet,
    user_agent      text,
    is_mobile       boolean,
    seconds_on_site integer,
    created_at      timestamptz,
    updated_at      timestamptz,
    expires_at      timestamptz
);

CREATE TABLE cart_items_v2 (
    cart_id          text NOT NULL,
    line             integer NOT NULL,
    sku              text NOT NULL,
    title            text NOT NULL,
    kind             item_kind NOT NULL,
    quantity         integer NOT NULL,
    unit_price_cents bigint NOT NULL,
    discount_pct     numeric(5, 2),
    options          jsonb,
    size             text,
    external_ref     numeric(20, 0),
    weight_kg        double precision,
    gift_message     text,
    added_at         timestamptz,
    line_total_cents bigint GENERATED ALWAYS AS (quantity * unit_price_cents) STORED,
    PRIMARY KEY (cart_id, line)
);
