//! A change of one row, as captured.

use std::sync::Arc;

use super::{schema::TableSchema, value::Value, version::Version};

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Debezium's `c`.
    Insert,
    /// Debezium's `u`.
    Update,
    /// Debezium's `d`.
    Delete,
    /// A row read by the snapshot, Debezium's `r`.
    Read,
    /// The whole table was emptied, Debezium's `t`; no images.
    Truncate,
}

/// The row before and after; both full, in the schema's column order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Images {
    pub before: Option<Vec<Value>>,
    pub after: Option<Vec<Value>>,
}

/// One row change, with its version.
///
/// An update that changes the key is never an [`Op::Update`]: capture makes it a delete of the old
/// key and an insert of the new one, each with a version of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub schema: Arc<TableSchema>,
    pub op: Op,
    pub images: Images,
    pub version: Version,
    /// The source's commit time in microseconds since the Unix epoch.
    pub commit_us: i64,
}
