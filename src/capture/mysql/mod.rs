//! Capture from the binlog of MySQL and MariaDB.
