-- The second source, beside sysbench's tables: what default mappings must get right on MariaDB.

-- A unique value that rows exchange.
CREATE TABLE seats (
    id     INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    label  VARCHAR(60) NOT NULL,
    price  DECIMAL(8,2) NOT NULL DEFAULT 0,
    taken  DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6),
    UNIQUE KEY label (label)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Rows whose keys change, alone and in chains.
CREATE TABLE moving (
    place  INT NOT NULL,
    part   VARCHAR(12) NOT NULL,
    body   VARCHAR(120) DEFAULT NULL,
    moves  INT NOT NULL DEFAULT 0,
    PRIMARY KEY (place, part)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Parents and children that come, move and go in one transaction.
CREATE TABLE parents (
    id    BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name  VARCHAR(60) NOT NULL,
    total INT NOT NULL DEFAULT 0
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE children (
    parent_id BIGINT NOT NULL,
    n         SMALLINT NOT NULL,
    amount    DECIMAL(10,2) DEFAULT NULL,
    PRIMARY KEY (parent_id, n),
    CONSTRAINT children_parent FOREIGN KEY (parent_id) REFERENCES parents (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
