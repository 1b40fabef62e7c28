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
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::{
    model::{Disposition, Position, Problem, TableSchema, Value, Version, row_bytes},
    observe::{Captured, Room, Taken},
};

/// Rows of a block at most.
pub const BLOCK_ROWS_MAX: usize = 500;
/// A block ends when its rows have this many bytes, so that it is longer by at most one row.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Bytes of rows that have been read and are no records yet, of all who share a room; one row may have more.
pub const READ_BYTES_MAX: usize = 8 << 20;
/// Blocks between a source connection and whoever encodes them.
const BLOCKS_WAITING_MAX: usize = 1;

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

impl Block {
    fn bytes(&self) -> usize {
        self.rows.iter().map(|row| row_bytes(row)).sum()
    }
}

/// Where a read puts its blocks. Each takes room for its bytes until it has been dealt with.
#[derive(Debug)]
pub struct Blocks {
    sender: mpsc::Sender<(Block, Taken)>,
    room: Room,
}

/// Nobody takes blocks any more: whoever did has failed, and has an error to tell.
#[derive(Debug)]
pub struct BlocksClosed;

impl Blocks {
    /// A way for blocks, bounded by this room, which others may share.
    pub fn new(room: &Room) -> (Self, mpsc::Receiver<(Block, Taken)>) {
        let (sender, receiver) = mpsc::channel(BLOCKS_WAITING_MAX);
        (Blocks { sender, room: room.clone() }, receiver)
    }

    /// Hands a block over. After one that is over its bound it returns when there is room for another like it: the next
    /// row of a wide table is not read before.
    pub async fn send(&self, block: Block) -> Result<(), BlocksClosed> {
        let bytes = block.bytes();
        let sending = async {
            let taken = self.room.take(bytes).await;
            self.sender.send((block, taken)).await.map_err(|_| BlocksClosed)?;
            if bytes > BLOCK_BYTES_MAX {
                self.room.wait(bytes).await;
            }
            Ok(())
        };
        tokio::select! { biased; () = self.sender.closed() => Err(BlocksClosed), sent = sending => sent }
    }
}

/// Gives the blocks of a read to `take`, each as it comes. A read whose blocks are not taken ends early: the error of
/// who took them is the one that counts.
pub async fn take_blocks(
    reading: impl Future<Output = Result<(), SnapshotError>>,
    mut blocks: mpsc::Receiver<(Block, Taken)>,
    mut take: impl FnMut(Block) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let taking = async move {
        while let Some((block, _taken)) = blocks.recv().await {
            take(block)?;
        }
        Ok::<_, SnapshotError>(())
    };
    let (read, taken) = tokio::join!(reading, taking);
    taken?;
    read
}

/// How large a table is, about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    pub rows: u64,
    /// Bytes of one row; 0 if nobody knows.
    pub row_bytes: u64,
}

impl Estimate {
    /// Of a table of so many rows that take so many bytes together.
    pub fn new(rows: u64, bytes: u64) -> Self {
        Estimate { rows, row_bytes: bytes.checked_div(rows).unwrap_or_default() }
    }
}

/// What a range of rows is in short, as its server says it. Two that differ are of different rows; two that are the
/// same are of the same rows, but for one chance in four billion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub rows: u64,
    /// A number that depends on every value of every row, and not on their order.
    pub sum: String,
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

    /// How large the table is, about.
    async fn estimate(&mut self, table: &TableSchema) -> Result<Estimate, SnapshotError>;

    /// Reads a range into `blocks`. Every block carries the version of the last captured change such
    /// that it and everything before it were visible to the read (rules 13 and 14), and `floor` at least. A source
    /// that cannot tell beforehand where a part of a table ends answers where what it has not read of the range begins.
    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        floor: Version,
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: Blocks,
    ) -> Result<Option<String>, SnapshotError>;

    /// A digest of a range, which the server makes where its rows are; none where it cannot make one. If it is `held`,
    /// the moment that it is of is kept for the next read, which is to come at once.
    async fn digest(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        captured: &mut watch::Receiver<Option<Captured>>,
        held: bool,
    ) -> Result<Option<Digest>, SnapshotError>;

    /// The key, as text by column, that a range ends with; none if it ends otherwise, or if the digests of this source
    /// are not those that PostgreSQL makes of the same rows.
    fn last_key(&self, _table: &TableSchema, _range: &KeyRange) -> Option<Vec<String>> {
        None
    }
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
    /// Nothing is left to be copied: gives up what only copies need.
    async fn rest(&self);
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
    /// A row that has no record.
    pub fn not_encoded(schema: &TableSchema, error: &dyn std::fmt::Display) -> Self {
        SnapshotError::Halt(Problem::new(
            format!("a row of {} cannot be encoded: {error}", schema.table),
            "this is a defect of cutover: report it with this message",
        ))
    }

    /// What the copier does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            SnapshotError::Source(_) | SnapshotError::Target(_) => Disposition::Retry,
            SnapshotError::Log(error) => error.disposition(),
            SnapshotError::Halt(_) => Disposition::Halt,
        }
    }
}
