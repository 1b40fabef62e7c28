-- The row of bench/source.sql as PostgreSQL has it: nine columns, about 280 bytes.
CREATE TABLE accounts (
    id      integer PRIMARY KEY,
    k       integer NOT NULL,
    c       text NOT NULL,
    pad     text NOT NULL,
    amount  numeric(12,2) NOT NULL,
    active  boolean NOT NULL,
    note    varchar(60),
    created timestamp NOT NULL,
    updated timestamptz NOT NULL
);
