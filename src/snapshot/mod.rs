//! Copying tables in chunks, beside the stream.
//!
//! What enters is a table's rows, read in key ranges without locks; what leaves is records in the
//! snapshot topic, each carrying its chunk's watermark as its version. The merge needs no
//! order between copy and stream: a row that the stream changed or deleted later wins by version.
//!
//! **Invariant:** a chunk counts as copied only when its rows are durable in the target. A restart reads
//! again at most the chunks that were on their way. Deliberately absent: locks, a consistent view over
//! chunks, and any memory of rows.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use crate::{
    model::{Disposition, Position, Problem, TableSchema, Value, Version},
    observe::Captured,
};

/// A range of keys: after `lower`, up to and including `upper`; each in the source's own spelling.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    pub lower: Option<String>,
    pub upper: Option<String>,
}

/// Rows of one chunk, with the watermark that they carry.
#[derive(Debug)]
pub struct Block {
    pub version: Version,
    pub rows: Vec<Vec<Value>>,
}

/// A connection that reads chunks of the source.
#[async_trait]
pub trait Scan: Send {
    /// The key of the last of the next `rows` rows after `lower`; none when fewer are left.
    async fn next_bound(
        &mut self,
        table: &TableSchema,
        lower: Option<&str>,
        rows: u64,
    ) -> Result<Option<String>, SnapshotError>;

    /// About how many rows the table has.
    async fn estimate_rows(&mut self, table: &TableSchema) -> Result<u64, SnapshotError>;

    /// Reads a range into `blocks`. Every block carries the version of the last captured change such
    /// that it and everything before it were visible to the read (rules 13 and 14), and `floor` at least. A source
    /// that cannot tell beforehand where a part of a table ends answers where what it has not read of the range begins.
    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        floor: Version,
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: mpsc::Sender<Block>,
    ) -> Result<Option<String>, SnapshotError>;
}

/// One copy of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableCopy {
    /// The source table, as the configuration names it.
    pub table: String,
    /// Grows by one with every `resnapshot`.
    pub generation: i64,
    /// Whether the last chunk's bound has been found.
    pub bounds_done: bool,
    /// No chunk may have a watermark below this: rows changed without events at that point of the log.
    pub not_before: Version,
}

/// One chunk of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub number: i64,
    pub range: KeyRange,
    /// Whether its rows are durable in the target.
    pub done: bool,
}

/// Where the progress of copies is kept: the target's `cutover` schema.
#[async_trait]
pub trait Progress: Send + Sync {
    /// The copies that are not finished, in the order in which they are to be made.
    async fn unfinished(&self) -> Result<Vec<TableCopy>, SnapshotError>;
    /// Registers the schema that the copy's rows will refer to.
    async fn schema(&self, copy: &TableCopy, schema: &TableSchema, rows_estimate: u64) -> Result<(), SnapshotError>;
    /// The clock at which this copy began: this one, unless an earlier run has noted one. No row of the copy is older.
    async fn began(&self, copy: &TableCopy, clock: Version) -> Result<Version, SnapshotError>;
    async fn chunks(&self, copy: &TableCopy) -> Result<Vec<Chunk>, SnapshotError>;
    /// Where the source was when the copy's chunks were read, one position for each server that they were read from.
    async fn seen(&self, copy: &TableCopy) -> Result<Vec<Position>, SnapshotError>;
    /// Replaces that.
    async fn saw(&self, copy: &TableCopy, seen: &[Position]) -> Result<(), SnapshotError>;
    /// The copy is to be made again, from the beginning, unless somebody has asked for that already.
    async fn again(&self, copy: &TableCopy) -> Result<(), SnapshotError>;
    /// Adds a chunk; with `last`, there are no more.
    async fn add_chunk(&self, copy: &TableCopy, chunk: &Chunk, last: bool) -> Result<(), SnapshotError>;
    /// The copy is complete, and the stream has passed everything that it read (its barrier). False if the
    /// table was asked to be copied again in the meantime.
    async fn finish(&self, copy: &TableCopy) -> Result<bool, SnapshotError>;
}

/// Why a copy could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the source is unreachable: {0}")]
    Source(String),
    #[error("the target is unreachable: {0}")]
    Target(String),
    #[error(transparent)]
    Log(#[from] crate::log::LogError),
    #[error("{0}")]
    Halt(Problem),
}

impl SnapshotError {
    /// What the copier does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            SnapshotError::Source(_) | SnapshotError::Target(_) => Disposition::Retry,
            SnapshotError::Log(error) => error.disposition(),
            SnapshotError::Halt(_) => Disposition::Halt,
        }
    }
}
