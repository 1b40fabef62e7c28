-- sysbench's row (k, c, pad) with what a business table has beside it: nine columns, about 280 bytes.
CREATE TABLE accounts (
    id      INT NOT NULL,
    k       INT NOT NULL,
    c       CHAR(120) NOT NULL,
    pad     CHAR(60) NOT NULL,
    amount  DECIMAL(12,2) NOT NULL,
    active  TINYINT(1) NOT NULL,
    note    VARCHAR(60) DEFAULT NULL,
    created DATETIME(6) NOT NULL,
    updated TIMESTAMP(6) NOT NULL,
    PRIMARY KEY (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
