-- Where the second source's rows go, column by column; sysbench's tables are made beside it, one for each.
CREATE TABLE seats (
    id     integer PRIMARY KEY,
    label  text NOT NULL,
    price  numeric NOT NULL,
    taken  timestamp NOT NULL
);
CREATE TABLE moving (
    place  integer NOT NULL,
    part   text NOT NULL,
    body   text,
    moves  bigint NOT NULL,
    PRIMARY KEY (place, part)
);
CREATE TABLE parents (
    id    bigint PRIMARY KEY,
    name  text NOT NULL,
    total bigint NOT NULL
);
CREATE TABLE children (
    parent_id bigint NOT NULL,
    n         integer NOT NULL,
    amount    numeric,
    PRIMARY KEY (parent_id, n)
);
