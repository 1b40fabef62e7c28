//! A record of the log: Debezium's key and value, and the `cutover.*` headers that the envelope lacks.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::{Position, Version};

/// The format of records written by this release (`cutover.format`).
pub const FORMAT: u32 = 1;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The row's key as JSON (`{"id":5}`); empty for records that are no row change.
    pub key: Bytes,
    /// Debezium's envelope as JSON; for other kinds what [`Kind`] says.
    pub value: Bytes,
    pub headers: Headers,
}

/// What a record is (`cutover.kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A row change or a snapshot row; the value is the envelope.
    Row,
    /// TRUNCATE of a table; the value is the envelope with `"op":"t"`. Sent to every partition.
    Truncate,
    /// A table schema, before the first record that refers to it; the value is the schema as JSON.
    /// Sent to every partition.
    Schema,
    /// Everything before this record is complete; the value is a [`Control`]. Sent to every partition.
    Control,
    /// As `Control`, on an idle source: "at this position, at this time, nothing more".
    Heartbeat,
    /// A writer starts here: a transaction before this that has no end will be written again.
    Start,
}

/// Whether a record ends its source transaction (`cutover.transaction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionPart {
    /// More records of the same transaction follow in this partition.
    Open,
    /// The transaction's last record in this partition, or a record of no transaction.
    End,
}

/// The `cutover.*` headers. On Kafka and in the embedded log alike they are ASCII name and value pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Headers {
    pub kind: Kind,
    /// `cutover.version`, decimal. Of a snapshot row: its chunk's watermark.
    pub version: Version,
    /// `cutover.commit`: the source's commit time, µs since the Unix epoch; of a snapshot row and of
    /// a heartbeat the time at which the source said so.
    pub commit_us: i64,
    /// `cutover.schema`: sixteen hex digits, the id of the row's schema.
    pub schema: Option<u64>,
    /// `cutover.transaction`: `open` or `end`.
    pub transaction: TransactionPart,
}

/// The value of a control record or heartbeat: where its writer resumes (CORRECTNESS rule 18).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// On the changes topic, the source position up to which everything is in the log; on the
    /// snapshot topic none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The hybrid clock's state at that position.
    pub clock: Version,
    /// The snapshot chunk that is complete with this record: table, generation and chunk number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<ChunkEnd>,
}

/// A snapshot chunk whose rows are all in the log before this point of every partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEnd {
    /// The source table's name, as the configuration spells it.
    pub table: String,
    /// Which copy of the table this is; `resnapshot` starts a new one.
    pub generation: i64,
    pub chunk: i64,
    pub rows: u64,
}
