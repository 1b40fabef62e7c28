//! The embedded durable log: one folder on one machine, no broker.
//!
//! What enters is appended to segment files, per topic one chain; an append is atomic, and appends that come
//! together share one sync. What leaves is read back from the files by offset, by readers that
//! wait for the tail without polling. Invariants:
//!
//! - `append` answers after the sync, and readers see nothing before it.
//! - A torn write at the tail is cut off at open; anything else that does not read is [`LogError::Corrupt`], never
//!   skipped.
//! - Only what is applied is ever dropped.
//! - Memory does not grow with the log: no cache and no index, only the places of the last readers.
//!
//! Deliberately absent: what is applied is not stored here (the target's offsets are the truth; until they are
//! reported after a start, nothing is dropped), nor is there compression, nor a background task.
//! docs/adr/0002-embedded-log.md says why these are plain files.

mod frame;
#[doc(hidden)]
pub mod fuzz;
mod reader;
mod segment;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::stream::{Shared, TopicStream};
use super::{Control, Log, LogConfig, LogError, Look, Offset, Record, Stored, Topic, blocks_back};
use crate::observe::{now_us, unique};

/// The format of a log's folder written by this release.
const FORMAT: u32 = 1;
/// How much is looked at at a time.
const LOOK_BYTES: usize = 1 << 20;
const IDENTITY: &str = "log.json";
const LOCK: &str = "lock";

/// Segments are this share of the log, within the bounds: few enough that all can stay open, small enough that
/// one that cannot be dropped yet does not matter.
const SEGMENTS: u64 = 256;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// How an embedded log is kept. Time and randomness are handed in.
#[derive(Clone)]
pub struct EmbeddedSettings {
    pub partitions: u32,
    pub retention_ms: i64,
    pub bytes_max: u64,
    pub segment_bytes: u64,
    /// The identity of the log, if it is made now.
    pub epoch: String,
    /// The time, ms since the Unix epoch.
    pub now_ms: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl fmt::Debug for EmbeddedSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedSettings")
            .field("partitions", &self.partitions)
            .field("retention_ms", &self.retention_ms)
            .field("bytes_max", &self.bytes_max)
            .field("segment_bytes", &self.segment_bytes)
            .finish_non_exhaustive()
    }
}

impl From<&LogConfig> for EmbeddedSettings {
    fn from(config: &LogConfig) -> Self {
        EmbeddedSettings {
            partitions: config.partitions,
            retention_ms: i64::try_from(config.retention_hours).unwrap_or(i64::MAX).saturating_mul(3_600_000),
            bytes_max: config.bytes_max,
            segment_bytes: (config.bytes_max / SEGMENTS).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            epoch: format!("{:016x}{:016x}", unique(), unique()),
            now_ms: Arc::new(|| now_us() / 1000),
        }
    }
}

/// What a log is, stored beside its segments.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    epoch: String,
    partitions: u32,
    /// Marks the log's frames; sixteen hex digits.
    salt: String,
}

/// The embedded log. One process has it open at a time.
#[derive(Debug, Clone)]
pub struct EmbeddedLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    epoch: String,
    changes: TopicStream,
    snapshot: TopicStream,
    shared: Arc<Shared>,
    /// Held as long as the log is open.
    _lock: File,
}

impl EmbeddedLog {
    /// Opens the log in `folder`, or makes it.
    ///
    /// # Errors
    /// When another process has it open, the folder cannot be used, the log is damaged or newer than this binary,
    /// or it has another number of partitions.
    pub async fn open(folder: &Path, settings: EmbeddedSettings) -> Result<Self, LogError> {
        let folder = folder.to_owned();
        blocking(move || {
            let unusable = |error: io::Error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    LogError::Disk { path: folder.display().to_string(), source: error }
                }
                _ => LogError::Folder { path: folder.display().to_string(), source: error },
            };
            fs::create_dir_all(&folder).map_err(unusable)?;
            let lock = File::create(folder.join(LOCK)).map_err(unusable)?;
            lock.try_lock().map_err(|error| match error {
                TryLockError::WouldBlock => LogError::InUse { path: folder.display().to_string() },
                TryLockError::Error(error) => unusable(error),
            })?;
            let identity = identity(&folder, &settings, unusable)?;
            let salt = u64::from_str_radix(&identity.salt, 16)
                .map_err(|_| invalid_identity("its salt is not hexadecimal".to_owned()))?;
            let shared = Arc::new(Shared { settings, salt: salt.to_le_bytes(), used: AtomicU64::new(0) });
            let changes = TopicStream::open(&folder, Topic::Changes, Arc::clone(&shared))?;
            let snapshot = TopicStream::open(&folder, Topic::Snapshot, Arc::clone(&shared))?;
            let inner = Inner { epoch: identity.epoch, changes, snapshot, shared, _lock: lock };
            Ok(EmbeddedLog { inner: Arc::new(inner) })
        })
        .await
    }

    fn check_partition(&self, partition: u32) -> Result<(), LogError> {
        let partitions = self.partitions();
        if partition < partitions {
            return Ok(());
        }
        Err(LogError::Other(format!("there is no partition {partition}: the log has {partitions}")))
    }
}

impl Inner {
    fn stream(&self, topic: Topic) -> &TopicStream {
        match topic {
            Topic::Changes => &self.changes,
            Topic::Snapshot => &self.snapshot,
        }
    }

    /// Refuses `bytes` more of a topic if they do not fit beside what is not applied.
    fn make_room(&self, topic: Topic, bytes: u64) -> Result<(), LogError> {
        let bytes_max = self.shared.settings.bytes_max;
        let limit = match topic {
            Topic::Changes => bytes_max,
            // The source keeps its table for as long as it takes, but not its log: a copy that fills the disk must not
            // stop capture.
            Topic::Snapshot => bytes_max / 4 * 3,
        };
        let wanted = bytes + (bytes_max - limit);
        let has_room = || self.shared.used.load(Ordering::Relaxed) + wanted <= bytes_max;
        if has_room() {
            return Ok(());
        }
        for stream in [&self.changes, &self.snapshot] {
            stream.drop_applied(wanted);
        }
        if !has_room() {
            for stream in [&self.changes, &self.snapshot] {
                stream.close_applied()?;
                stream.drop_applied(wanted);
            }
        }
        if has_room() { Ok(()) } else { Err(LogError::Full { used: self.shared.used.load(Ordering::Relaxed), limit }) }
    }
}

/// Reads who the log is, or says who it will be.
fn identity(
    folder: &Path,
    settings: &EmbeddedSettings,
    unusable: impl Fn(io::Error) -> LogError,
) -> Result<Identity, LogError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let path = folder.join(IDENTITY);
    let found = match fs::read(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if [Topic::Changes, Topic::Snapshot].into_iter().any(|topic| folder.join(topic.suffix()).exists()) {
                return Err(invalid_identity("it is missing".to_owned()));
            }
            let salt = format!("{:016x}", unique());
            let (epoch, partitions) = (settings.epoch.clone(), settings.partitions);
            let identity = Identity { format: FORMAT, epoch, partitions, salt };
            let json = serde_json::to_vec(&identity).map_err(|error| invalid_identity(error.to_string()))?;
            segment::write_whole(&path, &json).map_err(&unusable)?;
            // The parent of a plain name is the folder that we are in.
            let parent =
                folder.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
            parent.map_or(Ok(()), segment::sync_folder).map_err(&unusable)?;
            return Ok(identity);
        }
        Err(error) => return Err(unusable(error)),
    };
    let invalid = |error: serde_json::Error| invalid_identity(error.to_string());
    let Format { format } = serde_json::from_slice(&found).map_err(invalid)?;
    if format > FORMAT {
        let path = folder.display().to_string();
        return Err(LogError::NewerFormat { path, found: format, supported: FORMAT });
    }
    let identity: Identity = serde_json::from_slice(&found).map_err(invalid)?;
    if identity.partitions != settings.partitions {
        let (found, wanted) = (identity.partitions, settings.partitions);
        return Err(LogError::Partitions { path: folder.display().to_string(), found, wanted });
    }
    Ok(identity)
}

fn invalid_identity(reason: String) -> LogError {
    let (topic, reason) = (Topic::Changes.suffix(), format!("{IDENTITY} is invalid: {reason}"));
    LogError::Corrupt { topic, partition: 0, offset: 0, reason }
}

/// Runs what blocks on the disk beside the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(LogError::Other(format!("a task of the embedded log ended early: {error}"))))
}

#[async_trait]
impl Log for EmbeddedLog {
    fn partitions(&self) -> u32 {
        self.inner.shared.settings.partitions
    }

    fn epoch(&self) -> &str {
        &self.inner.epoch
    }

    async fn append(&self, topic: Topic, records: Vec<(u32, Record)>) -> Result<(), LogError> {
        let mut bytes = 0;
        for (partition, record) in &records {
            self.check_partition(*partition)?;
            if !frame::fits(record) {
                return Err(LogError::Other("a row of more than 4 GB does not fit into the embedded log".into()));
            }
            bytes += frame::size(record);
        }
        if records.is_empty() {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.make_room(topic, bytes)?;
            inner.stream(topic).append(records)
        })
        .await
    }

    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Vec<Stored>, LogError> {
        self.check_partition(partition)?;
        let stream = self.inner.stream(topic);
        // Before looking, so that what comes in between is not missed.
        let mut tail = stream.subscribe();
        let patience = tokio::time::sleep(wait);
        tokio::pin!(patience);
        loop {
            let (start, end) = stream.bounds(partition);
            let topic_name = topic.suffix();
            if from < start {
                return Err(LogError::Trimmed { topic: topic_name, partition, wanted: from, start });
            }
            if from > end {
                let reason =
                    format!("the log ends there, before offset {from}, which was already read: its tail is lost");
                return Err(LogError::Corrupt { topic: topic_name, partition, offset: end, reason });
            }
            if from < end {
                let inner = Arc::clone(&self.inner);
                let found = blocking(move || inner.stream(topic).read(partition, from, bytes_max)).await?;
                if !found.is_empty() {
                    return Ok(found);
                }
                // It was dropped meanwhile, which the next look at the bounds tells.
                continue;
            }
            tokio::select! {
                biased;
                () = &mut patience => return Ok(Vec::new()),
                changed = tail.changed() => if changed.is_err() { return Ok(Vec::new()) },
            }
        }
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), LogError> {
        self.check_partition(partition)?;
        Ok(self.inner.stream(topic).bounds(partition))
    }

    async fn last_control(&self, topic: Topic, partition: u32) -> Result<Option<(Offset, Control)>, LogError> {
        self.check_partition(partition)?;
        self.inner.stream(topic).last_control(partition)
    }

    async fn look_back(&self, topic: Topic, partition: u32, look: &mut Look<'_>) -> Result<(), LogError> {
        let (start, end) = self.bounds(topic, partition).await?;
        for (mut from, to) in blocks_back(start, end) {
            let mut enough = false;
            while from < to {
                let found = self.read(topic, partition, from, LOOK_BYTES, Duration::ZERO).await?;
                for stored in found.iter().filter(|stored| stored.offset < to) {
                    enough |= look(stored.offset, &stored.record);
                }
                let Some(last) = found.last() else { break };
                from = last.offset + 1;
            }
            if enough {
                break;
            }
        }
        Ok(())
    }

    async fn applied(&self, topic: Topic, partition: u32, offset: Offset) -> Result<(), LogError> {
        self.check_partition(partition)?;
        if !self.inner.stream(topic).applied(partition, offset) {
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.stream(topic).drop_applied(0);
            Ok(())
        })
        .await
    }

    async fn size_bytes(&self) -> Result<u64, LogError> {
        Ok(self.inner.shared.used.load(Ordering::Relaxed))
    }
}
