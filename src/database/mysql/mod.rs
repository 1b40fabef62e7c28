//! MySQL and MariaDB: connecting, the server's settings, the catalog, scans.

pub mod catalog;
pub mod connect;
pub mod details;
mod literal;
pub mod liveness;
pub mod scan;
pub mod server;
pub mod spelling;
