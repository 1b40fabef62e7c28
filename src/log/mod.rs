//! The durable log between capture and apply: two topics, each in partitions of ordered records.
//!
//! What enters is appended in groups and is durable when `append` answers; what leaves is read in
//! order from an offset. Delivery is at least once: a writer that died half-way through a
//! transaction writes it again, with the same versions, behind a [`Kind::Start`] record that tells
//! readers to drop the half. Deliberately absent: consumer offsets. What has been applied is stored
//! by the sink, in the transaction that applied it.

pub mod config;
pub mod debezium;
pub mod embedded;
pub mod envelope;
pub mod event_file;
#[doc(hidden)]
pub mod fuzz;
pub mod kafka;
pub mod record;

use async_trait::async_trait;
use bytes::Bytes;

pub use config::LogConfig;
pub use debezium::DebeziumConfig;
pub use embedded::EmbeddedLog;
pub use event_file::EventFile;
pub use kafka::{KafkaEvents, KafkaLog};
pub use record::{Control, Headers, Kind, Record, TransactionPart};

use self::kafka::TopicProblem;
use crate::model::Disposition;

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
pub enum LogError {
    #[error(
        "the log is full: {used} of {limit} bytes hold records that are not applied yet; capture waits until apply \
         has caught up, or raise [log] bytes_max"
    )]
    Full { used: u64, limit: u64 },
    #[error(
        "the disk of the log at {path} refused a write ({source}); free space there, and it goes on by itself; for good, give \
         it a larger disk or set [log] bytes_max below the disk's size, so that what is applied makes room"
    )]
    Disk { path: String, source: std::io::Error },
    #[error(
        "{topic}/{partition} starts at offset {start}, after offset {wanted} that was asked for: the records between \
         are gone; copy the tables again with `cutover resnapshot`"
    )]
    Trimmed { topic: &'static str, partition: u32, wanted: Offset, start: Offset },
    #[error(
        "{topic}/{partition} at offset {offset} is corrupt: {reason}; restore the log, or remove it (the folder, or both topics) to start a new \
         epoch from the position in the target"
    )]
    Corrupt { topic: &'static str, partition: u32, offset: Offset, reason: String },
    #[error("the log at {path} is already open in another process; stop that worker first")]
    InUse { path: String },
    #[error("the log at {path} has format {found}, this binary reads up to {supported}; use the newer binary")]
    NewerFormat { path: String, found: u32, supported: u32 },
    #[error(
        "the log at {path} has {found} partitions, not {wanted}; set [log] partitions back to {found}, or remove the folder once everything in it is applied"
    )]
    Partitions { path: String, found: u32, wanted: u32 },
    #[error(
        "the log's folder {path} cannot be used ({source}); give this user the right to read and write it, or choose another with [log] url"
    )]
    Folder { path: String, source: std::io::Error },
    #[error(
        "the Kafka brokers at {brokers} do not answer ({reason}); start them or correct [log] url, whose tls is `verify` unless \
         it says otherwise or all brokers are on this host; it goes on by itself"
    )]
    Unreachable { brokers: String, reason: String },
    #[error(
        "the Kafka brokers at {brokers} refuse this worker ({reason}); correct the login in [log.kafka], or allow it what \
         docs/kafka.md lists"
    )]
    Refused { brokers: String, reason: String },
    #[error("the Kafka client cannot be made: {reason}; correct [log.kafka]")]
    Client { reason: String },
    #[error("no process writes the log of `{name}` yet; start one with `cutover run --role capture`")]
    NotBegun { name: String },
    #[error("the log's topics cannot be used:{}", listed(.0))]
    Topics(Vec<TopicProblem>),
    #[error(
        "another worker writes to {topic}/{partition} now, and what this one sends there is void; make sure that one worker \
         runs for this pipeline"
    )]
    Fenced { topic: String, partition: u32 },
    #[error(
        "a record of {bytes} bytes does not fit into topic {topic}, which takes {limit}; raise its max.message.bytes (and, above \
         100 MB, socket.request.max.bytes of the brokers)"
    )]
    TooLarge { topic: String, bytes: u64, limit: u64 },
    #[error("{topic}/{partition} at offset {offset}: {source}")]
    Debezium { topic: String, partition: u32, offset: Offset, source: debezium::DebeziumError },
    #[error(
        "{topic}/{partition} begins at offset {start}, after offset {wanted}, where it is to be read from: the changes between are gone; let \
         the connector write new topics with a snapshot, or set [log.debezium] begin = \"available\" in a pipeline of a new name and ask the connector for \
         an incremental snapshot"
    )]
    DebeziumTrimmed { topic: String, partition: u32, wanted: Offset, start: Offset },
    #[error(
        "topic {topic} has {now} partitions, and had {before} when it was begun: its keys have moved between them, and their order is lost; \
         let the connector write new topics with a snapshot, and follow those in a pipeline of a new name"
    )]
    DebeziumPartitions { topic: String, before: u32, now: u32 },
    #[error(
        "the topics have {lanes} partitions, and a pipeline takes {max}: name fewer tables in [source] tables, and run several pipelines"
    )]
    DebeziumLanes { lanes: u32, max: u32 },
    #[error("the log failed: {0}")]
    Other(String),
}

/// One problem on the line, several on lines of their own.
fn listed(problems: &[TopicProblem]) -> String {
    match problems {
        [problem] => format!(" {problem}"),
        problems => problems.iter().map(|problem| format!("\n  {problem}")).collect(),
    }
}

impl LogError {
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

/// A durable, partitioned, ordered log.
#[async_trait]
pub trait Log: Send + Sync {
    /// How many partitions each topic has; fixed for the life of the log (an epoch).
    fn partitions(&self) -> u32;

    /// The log's identity: a new one for every new log, so that offsets of an old one are never
    /// mistaken for this one's.
    fn epoch(&self) -> &str;

    /// Appends records, each to its partition, in order. `Ok` means durable. When it fails with anything but
    /// [`LogError::Full`], any prefix per partition may have been written; the caller appends again, behind a `Start`, from
    /// where the open transaction begins.
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

    /// Says that everything before `offset` is applied, so that retention may drop it. Nothing at or
    /// after `offset` is ever dropped.
    async fn applied(&self, topic: Topic, partition: u32, offset: Offset) -> Result<(), LogError>;

    /// Bytes held, over all topics and partitions.
    async fn size_bytes(&self) -> Result<u64, LogError>;
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
