//! Capture from the binlog of MySQL and MariaDB.

pub mod binlog;
