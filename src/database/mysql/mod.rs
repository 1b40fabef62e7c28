//! MySQL and MariaDB: connecting, the server's settings, the catalog, scans.

pub(crate) mod cascades;
pub mod catalog;
pub mod connect;
pub(crate) mod details;
mod digest;
pub mod filters;
pub(crate) mod literal;
pub(crate) mod liveness;
pub mod reach;
pub mod scan;
pub mod server;
pub(crate) mod spelling;
