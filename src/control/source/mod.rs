//! Sources, as the worker has them: one module for each kind of server, and what they have in common.

pub mod dynamodb;
mod mysql;
mod postgres;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Instant};

use async_trait::async_trait;

use super::{
    store::Store,
    worker::{Attempt, Worker, WorkerError},
};
use crate::{
    database::Problem,
    model::{Disposition, Position, TableName, TableSchema, Version},
    pipeline::capture::{OpenSource, Register},
    snapshot::{OpenScan, SnapshotError, refetch::Fetch},
    source::{CaptureError, SourceConfig, SourceKind},
};

/// Rows handed over at once.
const BLOCK_ROWS: usize = 500;
/// Remedies of what a restart needs only the cause of corrected for.
const CORRECT_THAT: &str = "correct that and restart the worker";
const COPY_GOES_ON: &str = "correct that and restart the worker; the copy goes on where it was";

/// A source that is captured, copied, and read again.
pub(super) trait Server: OpenSource + OpenScan + Fetch {}

impl<T: OpenSource + OpenScan + Fetch> Server for T {}

/// A source that was looked at, and can be served from.
pub(super) trait Serve: Send + Sync + fmt::Debug {
    /// The source for the pipeline of `worker`, whose capture begins above `clock_min` if it begins anew
    /// (CORRECTNESS rule 2). Of `whole_rows` the images before a change have to be whole.
    fn serve(
        &self,
        worker: &Worker,
        tables: &[TableSchema],
        clock_min: Version,
        whole_rows: BTreeSet<TableName>,
    ) -> Arc<dyn Server>;
}

/// What the source is, learnt at the start.
pub(super) struct Opened {
    pub tables: Vec<TableSchema>,
    /// Where its log ended.
    pub end: Position,
    /// What its clock said, µs since the Unix epoch.
    pub now_us: i64,
    /// What Debezium's envelope calls its connector.
    pub connector: &'static str,
    pub source: Box<dyn Serve>,
    /// When all this was so.
    pub at: Instant,
}

/// Connects to the configured source and looks at it.
pub(super) async fn open(config: &SourceConfig) -> Result<Opened, Attempt> {
    match config.kind() {
        Some(SourceKind::Mysql) => mysql::open(config).await,
        Some(SourceKind::Postgres) => postgres::open(config).await,
        Some(SourceKind::Dynamo) => dynamodb::open(config).await,
        None => Err(Attempt::Hopeless(WorkerError::Usage("[source] url names no kind of source; correct it".into()))),
    }
}

/// The schemas that held at `clock`, as far as they are known.
async fn known_schemas(store: &Store, clock: Version) -> Result<Vec<Arc<TableSchema>>, CaptureError> {
    let stored = store.schemas().await.map_err(|error| CaptureError::Unreachable(error.to_string()))?;
    let mut known: Vec<Arc<TableSchema>> = Vec::new();
    for (_, schema) in stored.into_iter().filter(|(since, _)| *since <= clock) {
        known.retain(|other| other.table != schema.table);
        known.push(Arc::new(schema));
    }
    Ok(known)
}

/// The pipeline was one of another kind of source before: nothing says where this one's log would go on.
fn foreign_position() -> CaptureError {
    CaptureError::Halt {
        reason: "the stored position is one in the log of another kind of source".into(),
        remedy: "start a pipeline of another name, which copies the tables; versions at the target are kept".into(),
    }
}

/// What a reader says that is asked before capture has told where it is.
fn not_begun() -> SnapshotError {
    SnapshotError::Source("capture has not begun yet".into())
}

/// What a copy says whose table is there no more, under the name that people know it by.
fn vanished(table: &str) -> SnapshotError {
    SnapshotError::Halt {
        reason: format!("the source has no table {table} any more"),
        remedy: "take it out of [source] tables and start again".into(),
    }
}

/// An error of a copy: worth another attempt, or told with this remedy.
fn copy_error(error: &dyn fmt::Display, disposition: Disposition, remedy: &str) -> SnapshotError {
    match disposition {
        Disposition::Retry => SnapshotError::Source(error.to_string()),
        Disposition::DeadLetter | Disposition::Halt => {
            SnapshotError::Halt { reason: error.to_string(), remedy: remedy.to_owned() }
        }
    }
}

/// The same of capture.
fn capture_error(error: &dyn fmt::Display, disposition: Disposition, remedy: &str) -> CaptureError {
    match disposition {
        Disposition::Retry => CaptureError::Unreachable(error.to_string()),
        Disposition::DeadLetter | Disposition::Halt => {
            CaptureError::Halt { reason: error.to_string(), remedy: remedy.to_owned() }
        }
    }
}

/// Takes note of schemas and of tables to copy again, in the target.
#[derive(Debug)]
pub struct Notes {
    pub store: Arc<Store>,
    /// Which source columns the transforms use, by table; what no transform uses needs no new copy.
    pub used: std::collections::BTreeMap<String, Vec<String>>,
}

#[async_trait]
impl Register for Notes {
    async fn schema(&self, schema: &TableSchema, clock: Version) -> Result<(), CaptureError> {
        self.store.add_schema(schema, clock).await.map_err(|error| CaptureError::Unreachable(error.to_string()))
    }

    async fn rewritten(&self, table: &TableName, columns: &[String], clock: Version) -> Result<(), CaptureError> {
        let used = self.used.get(&table.table).is_some_and(|used| columns.iter().any(|column| used.contains(column)));
        if !used {
            tracing::info!(%table, "the table was altered; no transform uses what changed");
            return Ok(());
        }
        let queued = self.store.queue_copy(&table.table, clock).await;
        queued.map_err(|error| CaptureError::Unreachable(error.to_string()))?;
        tracing::warn!(%table, "the table was altered in a column that a transform uses; it is copied again");
        Ok(())
    }

    async fn begins_anew(&self, has_rows: bool) -> Result<(), CaptureError> {
        let queued = self.store.queue_begun_copies(has_rows).await;
        let queued = queued.map_err(|error| CaptureError::Unreachable(error.to_string()))?;
        if queued > 0 {
            tracing::warn!(
                tables = queued,
                "the log is gone, and no position was stored yet: what was copied is copied again"
            );
        }
        Ok(())
    }

    async fn all_copied_again(&self) -> Result<bool, CaptureError> {
        let left = self.store.not_to_be_copied_again().await;
        Ok(left.map_err(|error| CaptureError::Unreachable(error.to_string()))?.is_empty())
    }
}

/// An error of the source: worth another attempt, or told with what our messages hold after a semicolon.
fn source_attempt(error: &dyn fmt::Display, disposition: Disposition) -> Attempt {
    let text = error.to_string();
    match disposition {
        Disposition::Retry => Attempt::Later(text),
        Disposition::DeadLetter | Disposition::Halt => {
            let (what, fix) =
                text.split_once("; ").unwrap_or((&text, "run `cutover check`, which names what is missing"));
            Attempt::Hopeless(WorkerError::SourceRefused(vec![Problem { what: what.into(), fix: fix.into() }]))
        }
    }
}

fn refuse(problems: Vec<Problem>) -> Result<(), Attempt> {
    if problems.is_empty() { Ok(()) } else { Err(Attempt::Hopeless(WorkerError::SourceRefused(problems))) }
}
