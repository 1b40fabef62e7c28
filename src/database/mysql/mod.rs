//! MySQL and MariaDB: connecting, the catalog, scans.

pub mod catalog;
pub mod details;
