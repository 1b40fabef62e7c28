//! A database that is being left: examined, captured, copied, read again.
//!
//! A [`Source`] examines itself, opens its [`ChangeStream`] at a position, opens [`Scan`]s that read tables in chunks,
//! and fetches rows by key; whatever is read says which watermark it has. There is one folder for each kind of server,
//! and one match that chooses it ([`of`]). A stream turns the server's log into [`CaptureEvent`]s, whole and in order.
//! It owns what only it can know: positions, commit times, the clock that makes versions, schemas at a point of the
//! log. Deliberately absent: the log that events and rows go to, and who applies them.

mod asked;
mod config;
pub(crate) mod dynamodb;
pub mod mysql;
pub mod postgres;

use std::{collections::BTreeSet, fmt, sync::Arc};

use async_trait::async_trait;
use tokio::time::Instant;

pub use self::config::{Cascades, SourceConfig};
use crate::{
    model::{
        Cascade, Change, DebeziumConnector, Disposition, Position, Problem, SourceKind, TableName, TableSchema, Value,
        Version,
    },
    observe::{Captured, Environment, Frontier},
    snapshot::{Blocks, Scan, SnapshotError},
    state::{StateError, Store},
};

/// Remedies of what a restart needs only the cause of corrected for.
const CORRECT_THAT: &str = "correct that and restart the worker";
const COPY_GOES_ON: &str = "correct that and restart the worker; the copy goes on where it was";

/// One event of a source, in the order of its log.
#[derive(Debug, Clone)]
pub enum CaptureEvent {
    /// A row change inside a transaction.
    Change(Change),
    /// The changes that follow, up to the commit, were not made here first: the source's name of where they were
    /// replicated from.
    ReplicatedFrom(Arc<str>),
    /// The table was emptied: everything older than `version` is gone.
    Truncate { table: Arc<TableSchema>, version: Version, commit_us: i64 },
    /// Rows of a child may have changed unseen by what happened to a parent just before, as of `version`.
    Cascade { cascade: Cascade, version: Version, commit_us: i64 },
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
    #[error("{0}")]
    Halt(Problem),
    /// The source cannot go on from where capture was: what lies between is missing. When every table is copied
    /// again, capture may begin where the source is then.
    #[error("{0}")]
    Lost(Problem),
}

/// What keeps the state out of reach passes, or ends when it is corrected there.
impl From<StateError> for CaptureError {
    fn from(error: StateError) -> Self {
        CaptureError::Unreachable(error.to_string())
    }
}

impl CaptureError {
    /// What the capture loop does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            CaptureError::Unreachable(_) => Disposition::Retry,
            CaptureError::Halt(_) | CaptureError::Lost(_) => Disposition::Halt,
        }
    }
}

/// A stream over a source's log, from one position on.
#[async_trait]
pub trait ChangeStream: Send {
    /// The next event. Waits for the source; a source that stays silent past its heartbeat is
    /// [`CaptureError::Unreachable`]. After an error the stream is over: open a new one from
    /// the last committed position.
    async fn next(&mut self) -> Result<CaptureEvent, CaptureError>;

    /// Gives versions above `floor` alone from now on; false if that cannot be promised now, or holds already. The log
    /// does not tell of it: the heartbeat before it has to, and nothing newer may be written until that is durable in
    /// every partition.
    fn raise_clock(&mut self, floor: Version) -> bool;
}

/// What a source was found to be.
#[derive(Debug, Clone)]
pub struct Examined {
    pub tables: Vec<TableSchema>,
    /// Where its log ended.
    pub end: Position,
    /// What its clock said, µs since the Unix epoch.
    pub now_us: i64,
    /// The connector that the envelope's `source` block names.
    pub connector: DebeziumConnector,
    /// When all this was so.
    pub at: Instant,
}

/// What is captured of a source.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub tables: Vec<TableName>,
    /// Capture that begins anew begins above this version (rule 2).
    pub clock_min: Version,
    /// Tables whose images before a change a transform needs whole.
    pub full_row_images: BTreeSet<TableName>,
}

impl Selection {
    /// These tables, captured above a version.
    pub fn of(tables: &[TableSchema], clock_min: Version, full_row_images: BTreeSet<TableName>) -> Self {
        Selection { tables: tables.iter().map(|schema| schema.table.clone()).collect(), clock_min, full_row_images }
    }
}

/// A database that is being left.
#[async_trait]
pub trait Source: Send + Sync {
    /// Connects to the server and looks at it and at the configured tables.
    ///
    /// # Errors
    /// [`SourceError::Refused`] with every problem that keeps it from being captured.
    async fn examine(&self) -> Result<Examined, SourceError>;

    /// Opens the change stream at a stored position with the clock's state there, or where the source is now.
    async fn stream(
        &self,
        selection: &Selection,
        from: Option<(Position, Version)>,
    ) -> Result<Box<dyn ChangeStream>, CaptureError>;

    /// Opens the change stream where the source is now, whatever was captured, with the clock at `clock` or above.
    async fn stream_anew(&self, selection: &Selection, clock: Version) -> Result<Box<dyn ChangeStream>, CaptureError>;

    /// Opens a connection that reads chunks of tables.
    async fn scan(&self) -> Result<Box<dyn Scan>, SnapshotError>;

    /// A table's schema in the catalog.
    async fn schema(&self, table: &str) -> Result<Arc<TableSchema>, SnapshotError>;

    /// Where the source's log ends now: at or after every change that a read has seen so far.
    async fn end(&self) -> Result<Position, SnapshotError>;

    /// Whether the source can tell that its log has nothing of the captured tables behind `reached` until now, while
    /// nobody reads it. False where it cannot be told: [`Self::end`] then says how far there is to go.
    async fn is_quiet_after(&self, reached: &Position) -> Result<bool, SnapshotError>;

    /// Reads the rows whose columns in these places have these values into `blocks`; everything up to `captured` is in
    /// them, and their version says so. Asked of a source alone that does not log what its foreign keys do.
    async fn children(
        &self,
        table: &Arc<TableSchema>,
        columns: &[usize],
        values: &[Value],
        captured: &Captured,
        blocks: Blocks,
    ) -> Result<(), SnapshotError>;

    /// Reads the rows with these keys, which are in the order of the schema's key, into `blocks`; everything up to
    /// `captured` is in them, and their version says so.
    async fn fetch(
        &self,
        table: &Arc<TableSchema>,
        keys: &[Vec<Value>],
        captured: &Captured,
        blocks: Blocks,
    ) -> Result<(), SnapshotError>;
}

/// What a source needs to know of the pipeline around it.
#[derive(Clone)]
pub struct Settings {
    /// The pipeline's name, after which slot and server id are called.
    pub pipeline: String,
    pub config: SourceConfig,
    /// Rows of a chunk of a copy.
    pub chunk_rows: u64,
    /// Connections that read a copy.
    pub readers: usize,
    /// Read units a second that a copy may use, where the service counts them.
    pub read_units_per_second: Option<u32>,
    /// Whether the log outlives this machine's disk. One that does not may be lost, and then the source is asked again
    /// for all that the target has not (rule 17).
    pub log_outlives_us: bool,
    /// Whether another direction of the pipeline writes to the source.
    pub both_ways: bool,
    pub store: Arc<Store>,
    pub frontier: Arc<Frontier>,
    pub environment: Arc<dyn Environment>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// Why a source cannot be examined, or not be captured.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The server, or what it says for now.
    #[error("{0}")]
    Unreachable(String),
    /// The configuration names no source that there could be.
    #[error("{0}")]
    Configured(String),
    /// It was not let in, or cannot be understood.
    #[error("{0}")]
    Login(String),
    #[error("the source cannot be captured:{}", Problem::list(.0))]
    Refused(Vec<Problem>),
}

impl SourceError {
    /// What a worker that starts does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            SourceError::Unreachable(_) => Disposition::Retry,
            SourceError::Configured(_) | SourceError::Login(_) | SourceError::Refused(_) => Disposition::Halt,
        }
    }

    /// An error of the server: worth another attempt, or told with what to do.
    fn of(problem: Problem, disposition: Disposition) -> Self {
        match disposition {
            Disposition::Retry => SourceError::Unreachable(problem.to_string()),
            Disposition::DeadLetter | Disposition::Halt => {
                SourceError::Refused(vec![problem.or("run `cutover check`, which names what is missing")])
            }
        }
    }

    fn refuse(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(SourceError::Refused(problems)) }
    }
}

/// The source that the URL names: the one place that knows which kinds there are.
///
/// # Errors
/// When the URL names none, or one that cannot be.
pub fn of(settings: Settings) -> Result<Arc<dyn Source>, SourceError> {
    match settings.config.kind() {
        Some(SourceKind::Mysql) => Ok(Arc::new(mysql::MysqlSource::new(settings)?)),
        Some(SourceKind::Postgres) => Ok(Arc::new(postgres::PostgresSource::new(settings)?)),
        Some(SourceKind::Dynamo) => Ok(Arc::new(dynamodb::DynamoSource::new(settings)?)),
        None => Err(SourceError::Configured("[source] url names no kind of source; correct it".into())),
    }
}

/// The schemas that held at `clock`, as far as they are known.
async fn known_schemas(store: &Store, clock: Version) -> Result<Vec<Arc<TableSchema>>, CaptureError> {
    let stored = store.schemas().await?;
    let mut known: Vec<Arc<TableSchema>> = Vec::new();
    for (_, schema) in stored.into_iter().filter(|(since, _)| *since <= clock) {
        known.retain(|other| other.table != schema.table);
        known.push(Arc::new(schema));
    }
    Ok(known)
}

/// The pipeline was one of another kind of source before: nothing says where this one's log would go on.
fn foreign_position() -> CaptureError {
    CaptureError::Halt(Problem::new(
        "the stored position is one in the log of another kind of source",
        "start a pipeline of another name, which copies the tables; versions at the target are kept",
    ))
}

/// What a reader says that is asked before capture has told where it is.
fn not_begun() -> SnapshotError {
    SnapshotError::Source("capture has not begun yet".into())
}

/// What a copy says whose table is no longer there, under the name that people know it by.
fn vanished(table: &str) -> SnapshotError {
    SnapshotError::Halt(Problem::new(
        format!("the source no longer has a table {table}"),
        "take it out of [source] tables and start again",
    ))
}

/// A source that logs what its foreign keys do is not asked what they did.
fn logs_cascades<T>() -> Result<T, SnapshotError> {
    Err(SnapshotError::Halt(Problem::new(
        "this source was asked for the children of a row, though its log has what became of them",
        "this is a defect of cutover: report it with this message",
    )))
}

/// An error of a copy: worth another attempt, or told with this remedy.
fn copy_error(error: &dyn fmt::Display, disposition: Disposition, remedy: &str) -> SnapshotError {
    match disposition {
        Disposition::Retry => SnapshotError::Source(error.to_string()),
        Disposition::DeadLetter | Disposition::Halt => {
            SnapshotError::Halt(Problem::new(error.to_string(), remedy.to_owned()))
        }
    }
}

/// The same of capture.
fn capture_error(error: &dyn fmt::Display, disposition: Disposition, remedy: &str) -> CaptureError {
    match disposition {
        Disposition::Retry => CaptureError::Unreachable(error.to_string()),
        Disposition::DeadLetter | Disposition::Halt => {
            CaptureError::Halt(Problem::new(error.to_string(), remedy.to_owned()))
        }
    }
}
