//! The durable log between capture and apply: two topics, each in partitions of ordered records.
//!
//! What enters is appended in groups and is durable when `append` answers; what leaves is read in
//! order from an offset. Delivery is at least once: a writer that died half-way through a
//! transaction writes it again, with the same versions, behind a [`Kind::Start`] record that tells
//! readers to drop the half. Deliberately absent: consumer offsets. What has been applied is stored
//! by the sink, in the transaction that applied it.

pub(crate) mod config;
pub mod debezium;
pub mod embedded;
pub mod envelope;
pub(crate) mod event_file;
#[doc(hidden)]
pub mod fuzz;
pub mod kafka;
pub mod record;

use std::borrow::Cow;

use async_trait::async_trait;
use bytes::Bytes;

pub use config::LogConfig;
pub use debezium::DebeziumConfig;
pub use embedded::EmbeddedLog;
pub use event_file::EventFile;
pub use kafka::{KafkaEvents, KafkaLog};
pub use record::{Control, Headers, Kind, Record, TransactionPart};

use crate::model::{Disposition, Problem};

/// The two topics of a pipeline. Both have the same partitions and the same partitioner, so that a
/// row's changes and its snapshot image share a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    Changes,
    Snapshot,
}

impl Topic {
    /// The topic's name after the pipeline's: `<name>.changes`.
    pub fn suffix(self) -> &'static str {
        match self {
            Topic::Changes => "changes",
            Topic::Snapshot => "snapshot",
        }
    }
}

/// A record's place in its partition, counted from 0.
pub type Offset = u64;

/// A record as read back.
#[derive(Debug, Clone)]
pub struct Stored {
    pub offset: Offset,
    pub record: Record,
}

/// Why the log could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.problem())]
pub enum LogError {
    Full { used: u64, limit: u64 },
    Disk { path: String, source: std::io::Error },
    Trimmed { topic: &'static str, partition: u32, wanted: Offset, start: Offset },
    Corrupt { topic: &'static str, partition: u32, offset: Offset, reason: String },
    InUse { path: String },
    NewerFormat { path: String, found: u32, supported: u32 },
    Partitions { path: String, found: u32, wanted: u32 },
    Folder { path: String, source: std::io::Error },
    Unreachable { brokers: String, reason: String },
    Refused { brokers: String, reason: String },
    Client { reason: String },
    NotBegun { name: String },
    Topics(Vec<Problem>),
    Fenced { topic: String, partition: u32 },
    TooLarge { topic: String, bytes: u64, limit: u64 },
    Debezium { topic: String, partition: u32, offset: Offset, source: debezium::DebeziumError },
    DebeziumTrimmed { topic: String, partition: u32, wanted: Offset, start: Offset },
    DebeziumPartitions { topic: String, before: u32, now: u32 },
    DebeziumLanes { lanes: u32, max: u32 },
    Other(String),
}

impl LogError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        Problem::new(self.what(), self.fix())
    }

    /// What is wrong.
    pub(super) fn what(&self) -> String {
        match self {
            LogError::Full { used, limit } => {
                format!("the log is full: {used} of {limit} bytes hold records that are not applied yet")
            }
            LogError::Disk { path, source } => format!("the disk of the log at {path} refused a write ({source})"),
            LogError::Trimmed { topic, partition, wanted, start } => format!(
                "{topic}/{partition} starts at offset {start}, after offset {wanted} that was asked for: the \
                 records between are gone"
            ),
            LogError::Corrupt { topic, partition, offset, reason } => {
                format!("{topic}/{partition} at offset {offset} is corrupt: {reason}")
            }
            LogError::InUse { path } => format!("the log at {path} is already open in another process"),
            LogError::NewerFormat { path, found, supported } => {
                format!("the log at {path} has format {found}, this binary reads up to {supported}")
            }
            LogError::Partitions { path, found, wanted } => {
                format!("the log at {path} has {found} partitions, not {wanted}")
            }
            LogError::Folder { path, source } => format!("the log's folder {path} cannot be used ({source})"),
            LogError::Unreachable { brokers, reason } => {
                format!("the Kafka brokers at {brokers} do not answer ({reason})")
            }
            LogError::Refused { brokers, reason } => {
                format!("the Kafka brokers at {brokers} refuse this worker ({reason})")
            }
            LogError::Client { reason } => format!("the Kafka client cannot be made: {reason}"),
            LogError::NotBegun { name } => format!("no process writes the log of `{name}` yet"),
            LogError::Topics(problems) => format!("the log's topics cannot be used:{}", Problem::list(problems)),
            LogError::Fenced { topic, partition } => {
                format!("another worker writes to {topic}/{partition} now, and what this one sends there is void")
            }
            LogError::TooLarge { topic, bytes, limit } => {
                format!("a record of {bytes} bytes does not fit into topic {topic}, which takes {limit}")
            }
            LogError::Debezium { topic, partition, offset, source } => {
                format!("{topic}/{partition} at offset {offset}: {}", source.what())
            }
            LogError::DebeziumTrimmed { topic, partition, wanted, start } => format!(
                "{topic}/{partition} begins at offset {start}, after offset {wanted}, where it is to be read \
                 from: the changes between are gone"
            ),
            LogError::DebeziumPartitions { topic, before, now } => format!(
                "topic {topic} has {now} partitions, and had {before} when it was begun: its keys have moved \
                 between them, and their order is lost"
            ),
            LogError::DebeziumLanes { lanes, max } => format!(
                "the topics have {lanes} partitions, and a pipeline takes {max}: name fewer tables in [source] \
                 tables, and run several pipelines"
            ),
            LogError::Other(told) => format!("the log failed: {told}"),
        }
    }

    /// What to do about it; empty where that is not known, or where it passes by itself.
    pub(super) fn fix(&self) -> Cow<'static, str> {
        match self {
            LogError::Full { .. } => "capture waits until apply has caught up, or raise [log] bytes_max".into(),
            LogError::Disk { .. } => {
                "free space there, and it goes on by itself; for good, give it a larger disk or set [log] \
                 bytes_max below the disk's size, so that what is applied makes room"
                    .into()
            }
            LogError::Trimmed { .. } => "copy the tables again with `cutover resnapshot`".into(),
            LogError::Corrupt { .. } => {
                "restore the log, or remove it (the folder, or both topics) to start a new epoch from the \
                 position in the target"
                    .into()
            }
            LogError::InUse { .. } => "stop that worker first".into(),
            LogError::NewerFormat { .. } => "use the newer binary".into(),
            LogError::Partitions { found, .. } => {
                format!("set [log] partitions back to {found}, or remove the folder once everything in it is applied")
                    .into()
            }
            LogError::Folder { .. } => {
                "give this user the right to read and write it, or choose another with [log] url".into()
            }
            LogError::Unreachable { .. } => {
                "start them or correct [log] url, whose tls is `verify` unless it says otherwise or all \
                 brokers are on this host; it goes on by itself"
                    .into()
            }
            LogError::Refused { .. } => {
                "correct the login in [log.kafka], or allow it what the README's section on Kafka lists".into()
            }
            LogError::Client { .. } => "correct [log.kafka]".into(),
            LogError::NotBegun { .. } => "start one with `cutover run --role capture`".into(),
            LogError::Topics(_) => "".into(),
            LogError::Fenced { .. } => "make sure that one worker runs for this pipeline".into(),
            LogError::TooLarge { .. } => {
                "raise its max.message.bytes (and, above 100 MB, socket.request.max.bytes of the brokers)".into()
            }
            LogError::Debezium { source, .. } => source.fix(),
            LogError::DebeziumTrimmed { .. } => {
                "let the connector write new topics with a snapshot, or set [log.debezium] begin = \
                 \"available\" in a pipeline of a new name and ask the connector for an incremental snapshot"
                    .into()
            }
            LogError::DebeziumPartitions { .. } => {
                "let the connector write new topics with a snapshot, and follow those in a pipeline of a new \
                 name"
                    .into()
            }
            LogError::DebeziumLanes { .. } => "".into(),
            LogError::Other(_) => "".into(),
        }
    }

    /// What the stage that met this error does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            LogError::Full { .. }
            | LogError::Disk { .. }
            | LogError::Unreachable { .. }
            | LogError::NotBegun { .. }
            | LogError::Other(_) => Disposition::Retry,
            LogError::Trimmed { .. }
            | LogError::Corrupt { .. }
            | LogError::InUse { .. }
            | LogError::NewerFormat { .. }
            | LogError::Partitions { .. }
            | LogError::Folder { .. }
            | LogError::Refused { .. }
            | LogError::Client { .. }
            | LogError::Topics(_)
            | LogError::Fenced { .. }
            | LogError::Debezium { .. }
            | LogError::DebeziumTrimmed { .. }
            | LogError::DebeziumPartitions { .. }
            | LogError::DebeziumLanes { .. }
            | LogError::TooLarge { .. } => Disposition::Halt,
        }
    }
}

/// Is shown a record, and says whether that is enough.
pub type Look<'a> = dyn FnMut(Offset, &Record) -> bool + Send + 'a;

/// A durable, partitioned, ordered log.
#[async_trait]
pub trait Log: Send + Sync {
    /// How many partitions each topic has; fixed for the life of the log (an epoch).
    fn partitions(&self) -> u32;

    /// The log's identity: a new one for every new log, so that offsets of an old one are never
    /// mistaken for this one's.
    fn epoch(&self) -> &str;

    /// Appends records, each to its partition, in order. `Ok` means durable. When it fails with anything but
    /// [`LogError::Full`], any prefix per partition may have been written; the caller appends again, behind a `Start`,
    /// from where the open transaction begins.
    async fn append(&self, topic: Topic, records: Vec<(u32, Record)>) -> Result<(), LogError>;

    /// Reads records from `from` on: at least one and up to about `bytes_max` bytes, waiting up to
    /// `wait` for the first. Empty when none came. Records come in offset order without gaps, save
    /// those that a broker keeps for itself.
    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: Offset,
        bytes_max: usize,
        wait: std::time::Duration,
    ) -> Result<Vec<Stored>, LogError>;

    /// The first offset still held and the one after the last.
    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), LogError>;

    /// The last control record of a partition of a topic, with its offset: where its writer resumes.
    async fn last_control(&self, topic: Topic, partition: u32) -> Result<Option<(Offset, Control)>, LogError>;

    /// Shows what a partition has, from its end back: block by block, each in its order, until one after which `look`
    /// has had enough. For a writer that begins: what others append meanwhile is not shown.
    async fn look_back(&self, topic: Topic, partition: u32, look: &mut Look<'_>) -> Result<(), LogError>;

    /// Says that everything before `offset` is applied, so that retention may drop it. Nothing at or
    /// after `offset` is ever dropped.
    async fn applied(&self, topic: Topic, partition: u32, offset: Offset) -> Result<(), LogError>;

    /// Bytes held, over all topics and partitions.
    async fn size_bytes(&self) -> Result<u64, LogError>;
}

/// Bounds as blocks of offsets, the newest first: small, then larger ones, since most of what is looked for is near the
/// end.
fn blocks_back(start: Offset, end: Offset) -> impl Iterator<Item = (Offset, Offset)> {
    let (mut to, mut size) = (end, 64);
    std::iter::from_fn(move || {
        let from = to.saturating_sub(size).max(start);
        let block = (from < to).then_some((from, to));
        (to, size) = (from, size * 8);
        block
    })
}

/// The partition of a key: a stable hash of the key's *values* (names differ between tables that
/// merge), the same for both topics and every release.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    if partitions <= 1 {
        return 0;
    }
    crc32fast::hash(key) % partitions
}

/// An empty key or value.
pub const EMPTY: Bytes = Bytes::from_static(b"");
