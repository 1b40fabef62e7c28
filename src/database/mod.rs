//! Connecting to databases, reading their catalogs, scanning and fetching rows.

pub mod mysql;
pub mod postgres;
