//! Connecting to databases, reading their catalogs, scanning and fetching rows.

pub mod dynamodb;
pub mod mysql;
pub mod postgres;

/// Something about a server that keeps the pipeline from running, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {fix}")]
pub struct Problem {
    pub what: String,
    pub fix: String,
}
