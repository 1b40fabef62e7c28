-- Where the third source's rows go, column by column.
CREATE TABLE goods (
    id     integer PRIMARY KEY,
    name   text NOT NULL,
    price  numeric NOT NULL,
    amount bigint NOT NULL,
    spare  bigint NOT NULL,
    note   text
);
CREATE TABLE bins (
    place  integer NOT NULL,
    part   text NOT NULL,
    amount bigint NOT NULL,
    PRIMARY KEY (place, part)
);
CREATE TABLE moves (
    id   bigint NOT NULL,
    day  date NOT NULL,
    good integer NOT NULL,
    n    bigint NOT NULL,
    PRIMARY KEY (id, day)
);
