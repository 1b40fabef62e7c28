//! Connecting to databases, reading their catalogs, scanning and fetching rows.

pub(crate) mod dynamodb;
pub mod mysql;
pub mod postgres;
