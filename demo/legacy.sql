-- The old shop, as fifteen years left it: MySQL 5.7, latin1 by default, no foreign keys, money in
-- decimals, DATETIME in the shop's own wall clock (Europe/Berlin), zero dates, codes for statuses,
-- JSON in a TEXT column, and 0 where other people write NULL.

SET NAMES utf8mb4;
SET SESSION sql_mode = 'NO_ENGINE_SUBSTITUTION';

CREATE TABLE users (
    id           INT UNSIGNED NOT NULL AUTO_INCREMENT,       -- a second shop was merged in at 4,000,000,000
    email        VARCHAR(190) NOT NULL,
    name         VARCHAR(120) CHARACTER SET utf8mb4 NOT NULL,
    nickname     VARCHAR(80) DEFAULT NULL,                    -- latin1
    birth_date   DATE DEFAULT NULL,                           -- '0000-00-00' means: not told
    country      CHAR(2) NOT NULL DEFAULT 'DE',
    status       ENUM('new','active','locked','closed') NOT NULL DEFAULT 'new',   -- '' from bad imports
    is_active    TINYINT(1) NOT NULL DEFAULT 1,
    flags        BIT(8) NOT NULL DEFAULT b'0',                -- 1 newsletter, 2 business
    prefs        SET('mail','sms','push') NOT NULL DEFAULT '',
    balance      DECIMAL(12,4) NOT NULL DEFAULT 0.0000,
    member_since YEAR DEFAULT NULL,                           -- 0000 for unknown
    avatar_hash  BINARY(16) DEFAULT NULL,
    notes        TEXT CHARACTER SET utf8mb4,
    created      DATETIME NOT NULL DEFAULT '0000-00-00 00:00:00',
    last_login   TIMESTAMP(3) NULL DEFAULT NULL,
    PRIMARY KEY (id),
    UNIQUE KEY email (email)
) ENGINE=InnoDB DEFAULT CHARSET=latin1;

CREATE TABLE cart_sessions (
    session_id   CHAR(32) NOT NULL,
    user_id      INT UNSIGNED NOT NULL DEFAULT 0,             -- 0: a guest
    status       TINYINT NOT NULL DEFAULT 0,                  -- 0 open, 1 checkout, 2 ordered, 3 abandoned
    cart_data    TEXT CHARACTER SET utf8mb4,                  -- JSON, '' or NULL
    currency     CHAR(3) NOT NULL DEFAULT 'EUR',
    total        DECIMAL(10,2) DEFAULT NULL,
    ip           INT UNSIGNED DEFAULT NULL,                   -- INET_ATON()
    user_agent   VARCHAR(255) DEFAULT NULL,                   -- latin1
    is_mobile    TINYINT(1) DEFAULT NULL,
    time_on_site TIME DEFAULT NULL,                           -- negative where the client's clock was wrong
    created      DATETIME NOT NULL,
    updated      DATETIME(6) NOT NULL,
    expires      TIMESTAMP NULL DEFAULT NULL,
    PRIMARY KEY (session_id),
    KEY user_id (user_id)
) ENGINE=InnoDB DEFAULT CHARSET=latin1;

CREATE TABLE cart_items (
    session_id   CHAR(32) NOT NULL,
    line_no      SMALLINT UNSIGNED NOT NULL,
    sku          VARCHAR(40) NOT NULL,
    title        VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL,
    kind         ENUM('physical','digital','voucher') NOT NULL DEFAULT 'physical',
    qty          MEDIUMINT UNSIGNED NOT NULL DEFAULT 1,
    price        DECIMAL(10,2) NOT NULL,
    discount_pct DECIMAL(5,2) DEFAULT NULL,
    options      JSON DEFAULT NULL,
    external_ref BIGINT UNSIGNED DEFAULT NULL,                -- the warehouse's, up to 2^64-1
    weight_kg    DOUBLE DEFAULT NULL,
    gift_message TEXT,                                        -- latin1
    is_deleted   TINYINT(1) DEFAULT NULL,                     -- soft delete; old rows have NULL for no
    added        DATETIME NOT NULL,
    PRIMARY KEY (session_id, line_no),
    KEY sku (sku)
) ENGINE=InnoDB DEFAULT CHARSET=latin1;
