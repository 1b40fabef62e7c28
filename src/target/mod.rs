//! Where rows end: idempotent, last writer wins.
//!
//! A [`Target`] plans the transforms, opens a [`Sink`] for each lane, and does what is done once (sweeps, the script
//! after the copy, tombstones that may be forgotten). A sink gets a batch that ends at a source transaction boundary
//! and writes it in one target transaction, together with the offset that the batch ends at. `Ok` means that the
//! transaction is durable. Applying is commutative and idempotent by version, so a batch may come again, late, or
//! from a second worker: nothing moves backwards. There is one folder for each kind of server, and one place that
//! chooses it ([`of`]). Deliberately absent: loops, retries, and where a pipeline's other state is kept (`state`).

mod compare;
pub mod mysql;
pub mod postgres;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;

pub use self::compare::{
    Compared, Comparer, Difference, Doubt, Looked, Looks, Shared, Strayed, Stretch, StretchEnd, Walk,
};
use self::{mysql::MysqlError, postgres::ApplyConfig};
pub use crate::state::lanes::Pass;
use crate::{
    database::postgres::PgError,
    log::{
        Control, Offset, Topic,
        record::{CascadeRecord, ChunkEnd},
    },
    model::{ColumnType, Disposition, Op, Plan, Problem, TableName, TableSchema, Value, Version},
    snapshot::SnapshotError,
    state::{StateError, Store},
    transform,
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
pub enum BatchEvent {
    Row(RowEvent),
    /// Everything of this source table older than `version` goes, and stays gone.
    Truncate {
        schema: Arc<TableSchema>,
        version: Version,
    },
    /// Rows of a child table that may have changed unseen; stored with the batch, until they have been read again.
    Cascade {
        cascade: CascadeRecord,
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
    /// The offset that the target must be at; the transaction aborts if it is not (rule 19).
    pub from: Offset,
    /// The offset that the target is at afterwards.
    pub to: Offset,
    pub events: Vec<BatchEvent>,
    /// False while a transaction too large for one batch goes on: the sink keeps its target transaction open.
    pub complete: bool,
    /// The last control record in the batch: position and clock are stored with the offset.
    pub control: Option<Control>,
    /// Snapshot chunks that end in this batch.
    pub chunks: Vec<ChunkEnd>,
    /// The newest commit or heartbeat time in the batch, µs since the Unix epoch.
    pub newest_commit_us: Option<i64>,
}

impl Batch {
    /// The tables that it empties, and of what is older than which version.
    pub fn truncates(&self) -> impl Iterator<Item = (&TableSchema, Version)> {
        self.events.iter().filter_map(|event| match event {
            BatchEvent::Truncate { schema, version } => Some((schema.as_ref(), *version)),
            BatchEvent::Row(_) | BatchEvent::Cascade { .. } | BatchEvent::Schema(_) => None,
        })
    }

    /// The bytes of its records.
    pub fn bytes(&self) -> usize {
        let bytes = |event: &BatchEvent| match event {
            BatchEvent::Row(row) => row.key.len() + row.value.len(),
            BatchEvent::Cascade { cascade, .. } => cascade.child.len() + cascade.key.len(),
            BatchEvent::Truncate { .. } | BatchEvent::Schema(_) => 0,
        };
        self.events.iter().map(bytes).sum()
    }
}

/// What a batch did, for metrics and status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// By target table.
    pub tables: BTreeMap<String, Counts>,
    pub dead_letters: u64,
    /// Rows that wait for a parent, a unique value or a key.
    pub waiting: u64,
    /// Of those, rows whose parent has come, or whose key is free: to be tried again at once.
    pub freed: u64,
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
    /// Other lanes change what is parked again and again while this one reads it: the same batch again.
    #[error("other lanes keep parking rows")]
    Contended,
    /// Another worker holds the lane: the offset or the lease is not what this one expected.
    #[error(
        "another worker has moved {topic}/{partition}: this one stops writing; only one worker may run the pipeline `{pipeline}`"
    )]
    Fenced { topic: &'static str, partition: u32, pipeline: String },
    #[error("{0}")]
    Halt(Problem),
}

impl ApplyError {
    /// What the apply loop does next. Rows that cannot be stored never get here: the sink sets
    /// them aside itself.
    pub fn disposition(&self) -> Disposition {
        match self {
            ApplyError::Unreachable(_) | ApplyError::Transient { .. } | ApplyError::Contended => Disposition::Retry,
            ApplyError::Fenced { .. } | ApplyError::Halt(_) => Disposition::Halt,
        }
    }
}

/// What a sink writes: a topic as it comes, or a pass of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Live(Topic),
    Replay(Pass),
}

impl Lane {
    /// The topic that it reads.
    pub fn topic(self) -> Topic {
        match self {
            Lane::Live(topic) => topic,
            Lane::Replay(pass) => pass.topic(),
        }
    }

    /// What its offsets are stored under.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Live(topic) => topic.suffix(),
            Lane::Replay(pass) => pass.lane(),
        }
    }
}

/// Where a partition of a lane goes on, and what its rows need.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    pub from: Offset,
    /// The schemas that records may refer to.
    pub schemas: HashMap<u64, Arc<TableSchema>>,
    /// By source table with its schema: what is older is kept out, and a replay need not read it by today's transforms
    /// at all.
    pub fences: HashMap<String, Version>,
}

/// Whose children are asked for.
#[derive(Debug, Clone, Copy)]
pub struct ChildrenOf<'a> {
    /// The child table at the source, with its database.
    pub child: &'a str,
    /// Its columns that refer to the parent.
    pub columns: &'a [String],
    /// The parents' keys by these columns, as JSON, and up to which version rows that refer to them are meant.
    pub keys: &'a [(String, Version)],
    /// Every row is meant, whatever it refers to.
    pub any: bool,
    /// Further columns to answer with.
    pub extra: &'a [String],
}

/// Where an answer ended.
#[derive(Debug, Clone, Default)]
pub struct ChildCursor {
    pub(crate) plan: usize,
    pub(crate) after: Vec<String>,
}

/// A row at the target that may have changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// Its key at the source, in the order of the source's key.
    pub key: Vec<Value>,
    /// The further columns; none where the target has no such column.
    pub extra: Vec<Option<Value>>,
    /// Up to which version it is meant.
    pub version: Version,
}

/// Rows that may have changed.
#[derive(Debug, Clone, Default)]
pub struct Children {
    pub rows: Vec<Child>,
    /// Where to go on; none if that was all.
    pub next: Option<ChildCursor>,
}

/// A database where rows end.
#[async_trait]
pub trait Target: Send + Sync + fmt::Debug {
    /// Checks the transforms against these tables of the source, which it had as of the version `planned_at`, plans
    /// them, and makes version columns and tombstone tables where they are missing.
    async fn prepare(&self, tables: &[TableSchema], planned_at: Version) -> Result<(), TargetError>;

    /// Checks the transforms against these tables of the source, and changes nothing.
    async fn check(&self, tables: &[Arc<TableSchema>]) -> Result<Checked, TargetError>;

    /// Plans again, after the target's tables were changed.
    async fn reload(&self) -> Result<(), TargetError>;

    /// The transforms of today.
    fn plans(&self) -> Arc<[Plan]>;

    /// The types of a table's columns, as a transform that copies column by column would see them; empty without such a
    /// table.
    async fn column_types(&self, table: &str) -> Result<BTreeMap<String, ColumnType>, TargetError>;

    /// The number under which rows are written: the lease's, or one drawn for a part of the partitions.
    fn number(&self) -> i64;

    /// This target, with its plans, for partitions that this process writes under a number of its own.
    fn under(&self, number: i64) -> Arc<dyn Target>;

    /// Claims a partition of a lane: its stored offset in this log epoch; 0 in an epoch that the target has not seen.
    async fn resume(&self, lane: Lane, partition: u32, log_epoch: &str) -> Result<Resume, ApplyError>;

    /// Opens a sink for a partition of a lane. Those of the changes topic and of a replay check and store offsets
    /// themselves.
    async fn open(&self, lane: Lane, partition: u32) -> Result<Box<dyn Sink>, ApplyError>;

    /// Moves the snapshot topic's offset, and marks these chunks as copied.
    async fn advance(&self, partition: u32, log_epoch: &str, to: Offset, chunks: &[ChunkEnd])
    -> Result<(), ApplyError>;

    /// Deletes the rows of a source table that are older than `before`: the copy has not met them, so the source no
    /// longer has them. False if some are left, because rows of other tables refer to them.
    async fn sweep(&self, table: &str, before: Version) -> Result<bool, SnapshotError>;

    /// The rows of a child table at the target that these parents may have changed unseen, some at a time: from the
    /// beginning, or from where the last answer ended. At least those that refer to a parent and are older than what
    /// happened to it.
    async fn children(&self, of: &ChildrenOf<'_>, from: Option<ChildCursor>) -> Result<Children, TargetError>;

    /// The highest version among the target's rows and tombstones, which earlier pipelines may have left.
    async fn highest_version(&self) -> Result<Version, TargetError>;

    /// Forgets the tombstones older than `version`. The caller knows that nothing older can come.
    async fn forget_tombstones(&self, version: Version) -> Result<(), TargetError>;

    /// Runs the script after the copy, in one transaction with the note that it has run.
    async fn run_script(&self, file: &Path) -> Result<(), TargetError>;

    /// Opens a connection that compares what is there with what these plans make.
    async fn comparer(&self, plans: Arc<[Plan]>, looks: Looks) -> Result<Box<dyn Comparer>, ApplyError>;
}

/// Which kind of server a target is, as its URL says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    Postgres,
    /// MySQL or MariaDB.
    Mysql,
}

impl TargetKind {
    /// Every kind.
    pub const ALL: [TargetKind; 2] = [TargetKind::Postgres, TargetKind::Mysql];

    /// The kind that a URL's scheme names; none for every other scheme.
    pub fn of(url: &str) -> Option<TargetKind> {
        let (scheme, _) = url.split_once("://")?;
        TargetKind::ALL.into_iter().find(|kind| kind.schemes().contains(&scheme))
    }

    /// The schemes of its URLs.
    pub fn schemes(self) -> &'static [&'static str] {
        match self {
            TargetKind::Postgres => &["postgresql", "postgres"],
            TargetKind::Mysql => &["mysql"],
        }
    }
}

/// What a target needs to know of the pipeline around it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The pipeline's name, after which sessions are called and under which state is kept.
    pub pipeline: String,
    pub url: String,
    /// Where target tables are that name no schema.
    pub schema: String,
    /// The PostgreSQL that runs the transforms and keeps the state; the target itself if it is one.
    pub state_url: String,
    /// Where names without a schema are looked for there.
    pub state_schema: String,
    /// A PEM file of certificates that it may have, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The folder of the transforms.
    pub transforms: PathBuf,
    pub apply: ApplyConfig,
    /// Of the log.
    pub partitions: u32,
    /// Whether its transactions bear the pipeline's mark, by which a capture of the target tells them from others.
    pub marked: bool,
    pub store: Arc<Store>,
}

/// The target that the URL names, written to under `number`.
///
/// # Errors
/// When the URL cannot be used.
pub fn of(settings: Settings, number: i64) -> Result<Arc<dyn Target>, TargetError> {
    match TargetKind::of(&settings.url) {
        Some(TargetKind::Mysql) => Ok(Arc::new(mysql::MysqlTarget::new(settings, number)?)),
        Some(TargetKind::Postgres) | None => Ok(Arc::new(postgres::PostgresTarget::new(settings, number)?)),
    }
}

/// Why the target cannot be written to as the transforms say.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("the transforms do not fit the target:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Transforms(Vec<transform::Diagnostic>),
    #[error("the target cannot be written to:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Refused(Vec<Problem>),
    #[error("the target url: {0}")]
    Url(#[from] crate::database::postgres::UrlError),
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error(transparent)]
    Mysql(#[from] MysqlError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl TargetError {
    /// What its caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            TargetError::Postgres(error) => error.disposition(),
            TargetError::Mysql(error) => error.disposition(),
            TargetError::State(error) => error.disposition(),
            TargetError::Transforms(_) | TargetError::Refused(_) | TargetError::Url(_) => Disposition::Halt,
        }
    }

    /// Whether the server could not be reached, or left before it had answered.
    pub fn is_outage(&self) -> bool {
        match self {
            TargetError::Postgres(error) => matches!(error, PgError::Unreachable(_)),
            TargetError::Mysql(error) => error.disposition() == Disposition::Retry,
            TargetError::State(error) => error.is_outage(),
            TargetError::Transforms(_) | TargetError::Refused(_) | TargetError::Url(_) => false,
        }
    }
}

/// What a check of the transforms found.
#[derive(Debug, Default)]
pub struct Checked {
    pub plans: Vec<Plan>,
    pub problems: Vec<transform::Diagnostic>,
}

/// What the transforms need of each source table.
#[derive(Debug, Default)]
pub struct Needs {
    /// The source columns that transforms read, by source table.
    pub columns: BTreeMap<String, Vec<String>>,
    /// Source tables whose rows before a change a transform needs whole, to tell which rows it had made of them.
    pub full_row_images: BTreeSet<TableName>,
}

impl Needs {
    /// Of these plans.
    pub fn of(plans: &[Plan]) -> Self {
        let mut needs = Needs::default();
        for plan in plans {
            let columns = needs.columns.entry(plan.source.table.table.clone()).or_default();
            columns.extend(plan.reads.iter().cloned());
            if plan.needs_full_row_images() {
                needs.full_row_images.insert(plan.source.table.clone());
            }
        }
        needs
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
