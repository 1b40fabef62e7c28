-- The third source, PostgreSQL: tables whose catalog changes under the load.
CREATE TABLE goods (
    id     integer PRIMARY KEY,
    name   text NOT NULL,
    price  numeric(10,2) NOT NULL DEFAULT 0,
    amount integer NOT NULL DEFAULT 0,
    spare  integer NOT NULL DEFAULT 0,
    note   text
);
ALTER TABLE goods ALTER note SET STORAGE EXTERNAL;

CREATE TABLE bins (
    place  integer NOT NULL,
    part   text NOT NULL,
    amount integer NOT NULL DEFAULT 0,
    PRIMARY KEY (place, part)
);

-- What is attached and detached has the days of 2031.
CREATE TABLE moves (
    id   bigint NOT NULL,
    day  date NOT NULL,
    good integer NOT NULL,
    n    integer NOT NULL DEFAULT 0,
    PRIMARY KEY (id, day)
) PARTITION BY RANGE (day);
CREATE TABLE moves_first PARTITION OF moves FOR VALUES FROM ('2030-01-01') TO ('2030-07-01');
CREATE TABLE moves_second PARTITION OF moves FOR VALUES FROM ('2030-07-01') TO ('2031-01-01');
