//! From a source's log to versioned changes.
//!
//! A [`Source`] turns its database's log into [`Captured`] events, whole and in order. It owns what
//! only it can know: positions, commit times, the clock that makes versions, schemas at a point of the log.
//! It does not know the log that the events go to, nor who applies them.

mod config;
pub mod dynamodb;
pub mod mysql;
pub mod postgres;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::config::{Cascades, SourceConfig, SourceKind};
use crate::model::{Change, Disposition, Position, TableName, TableSchema, Version};

/// One event of a source, in the order of its log.
#[derive(Debug, Clone)]
pub enum Captured {
    /// A row change inside a transaction.
    Change(Change),
    /// The changes that follow, up to the commit, were not made here first: the source's name of where they were replicated from.
    ReplicatedFrom(Arc<str>),
    /// The table was emptied: everything older than `version` is gone.
    Truncate { table: Arc<TableSchema>, version: Version, commit_us: i64 },
    /// The table has this schema from here on.
    Schema(Arc<TableSchema>),
    /// The table was changed in a way that may have rewritten rows without events; the table is to be copied again
    /// if a transform uses one of `columns`. Every row change before it has a version below `clock`.
    Rewritten { table: TableName, columns: Vec<String>, clock: Version },
    /// A transaction ended; the source can resume here.
    Commit { position: Position, clock: Version, commit_us: i64 },
    /// The source said that it is alive and has nothing newer than `position`.
    Heartbeat { position: Position, clock: Version, at_us: i64 },
}

/// Why a source could not go on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The connection or the server went away.
    #[error("the source is unreachable: {0}")]
    Unreachable(String),
    /// The source's log no longer holds what is needed, or holds what must not be skipped.
    #[error("{reason}; {remedy}")]
    Halt { reason: String, remedy: String },
    /// The source cannot go on from where capture was: what lies between is missing. When every table is copied
    /// again, capture may begin where the source is then.
    #[error("{reason}; {remedy}")]
    Lost { reason: String, remedy: String },
}

impl CaptureError {
    /// What the capture loop does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            CaptureError::Unreachable(_) => Disposition::Retry,
            CaptureError::Halt { .. } | CaptureError::Lost { .. } => Disposition::Halt,
        }
    }
}

/// A stream over a source's log, from one position on.
#[async_trait]
pub trait Source: Send {
    /// The next event. Waits for the source; a source that stays silent past its heartbeat is
    /// [`CaptureError::Unreachable`]. After an error the stream is over: open a new one from
    /// the last committed position.
    async fn next(&mut self) -> Result<Captured, CaptureError>;

    /// Gives versions above `floor` alone from now on; false if that cannot be promised now, or holds already. The log does not tell of
    /// it: the heartbeat before it has to, and nothing newer may be written until that is durable in every partition.
    fn raise_clock(&mut self, floor: Version) -> bool;
}
