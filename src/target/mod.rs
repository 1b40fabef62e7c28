//! From transformed rows to the target: idempotent, last writer wins.
//!
//! A sink gets a batch that ends at a source transaction boundary and writes it in one target transaction,
//! together with the offset that the batch ends at. `Ok` means that the transaction is
//! durable. Applying is commutative and idempotent by version, so a batch may come again, late, or
//! from a second worker: nothing moves backwards.

pub mod postgres;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    log::{Control, Offset, Topic},
    model::{Disposition, Op, TableSchema, Version},
};

/// A row change on its way into the target: the envelope's bytes are still encoded.
#[derive(Debug, Clone)]
pub struct RowEvent {
    pub schema: Arc<TableSchema>,
    /// The record's key, as JSON: identifies the source row.
    pub key: Bytes,
    /// The record's envelope, as JSON.
    pub value: Bytes,
    pub version: Version,
    pub commit_us: i64,
    pub offset: Offset,
}

/// One thing to apply, in log order.
#[derive(Debug, Clone)]
pub enum Event {
    Row(RowEvent),
    /// Everything of this source table older than `version` goes, and stays gone.
    Truncate {
        schema: Arc<TableSchema>,
        version: Version,
    },
    /// A schema that later rows refer to; stored with the batch.
    Schema(Arc<TableSchema>),
}

/// What one target transaction writes.
#[derive(Debug, Clone)]
pub struct Batch {
    pub topic: Topic,
    pub partition: u32,
    pub log_epoch: String,
    /// The offset that the target must be at; the transaction aborts if it is not (CORRECTNESS rule 19).
    pub from: Offset,
    /// The offset that the target is at afterwards.
    pub to: Offset,
    pub events: Vec<Event>,
    /// False while a transaction too large for one batch goes on: the sink keeps its target transaction open.
    pub complete: bool,
    /// The last control record in the batch: position and clock are stored with the offset.
    pub control: Option<Control>,
    /// Snapshot chunks that end in this batch.
    pub chunks: Vec<crate::log::record::ChunkEnd>,
    /// The newest commit or heartbeat time in the batch, µs since the Unix epoch.
    pub newest_commit_us: Option<i64>,
}

/// What a batch did, for metrics and status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// By target table.
    pub tables: BTreeMap<String, Counts>,
    pub dead_letters: u64,
    /// Rows that wait for a parent or a unique value.
    pub waiting: u64,
}

/// Rows by what happened to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
    /// Facts older than what the target has.
    pub stale: u64,
}

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the target is unreachable: {0}")]
    Unreachable(String),
    /// A lock, a serialization failure, a cancelled statement: the same batch again.
    #[error("the target refused for now ({sqlstate}): {message}")]
    Transient { sqlstate: String, message: String },
    /// Another worker holds the lane: the offset or the lease is not what this one expected.
    #[error(
        "another worker has moved {topic}/{partition}: this one stops writing; only one worker may run the pipeline `{pipeline}`"
    )]
    Fenced { topic: &'static str, partition: u32, pipeline: String },
    #[error("{reason}; {remedy}")]
    Halt { reason: String, remedy: String },
}

impl ApplyError {
    /// What the apply loop does next. Rows that cannot be stored never get here: the sink sets
    /// them aside itself.
    pub fn disposition(&self) -> Disposition {
        match self {
            ApplyError::Unreachable(_) | ApplyError::Transient { .. } => Disposition::Retry,
            ApplyError::Fenced { .. } | ApplyError::Halt { .. } => Disposition::Halt,
        }
    }
}

/// A pass of a replay: which part of the log is applied again, and what of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Of the changes, the deletes alone: their tombstones keep out what the other passes would bring back.
    Deletes,
    Snapshot,
    Changes,
}

impl Pass {
    /// The topic that it reads.
    pub fn topic(self) -> Topic {
        match self {
            Pass::Deletes | Pass::Changes => Topic::Changes,
            Pass::Snapshot => Topic::Snapshot,
        }
    }

    /// What its offsets are stored under.
    pub fn lane(self) -> &'static str {
        match self {
            Pass::Deletes => "replay.deletes",
            Pass::Snapshot => "replay.snapshot",
            Pass::Changes => "replay.changes",
        }
    }
}

/// Writes batches of one lane (partition) to a target.
#[async_trait]
pub trait Sink: Send {
    /// Applies the batch in one target transaction. `Ok` means durable (for an incomplete batch: accepted
    /// into the open transaction, durable with the batch that completes it). After an error nothing of the open
    /// transaction is applied, and the caller starts again from the stored offset.
    async fn apply(&mut self, batch: Batch) -> Result<Applied, ApplyError>;

    /// Gives up the open transaction, if any: its source transaction will come again.
    async fn abandon(&mut self) -> Result<(), ApplyError>;

    /// Tries the rows that wait for others again; how many are left.
    async fn retry_waiting(&mut self) -> Result<Applied, ApplyError>;
}

impl Op {
    /// Debezium's letter for the operation.
    pub fn letter(self) -> char {
        match self {
            Op::Insert => 'c',
            Op::Update => 'u',
            Op::Delete => 'd',
            Op::Read => 'r',
            Op::Truncate => 't',
        }
    }
}
