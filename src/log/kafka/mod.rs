//! The log on Apache Kafka: topics `<name>.changes` and `<name>.snapshot`. Beside them, and none of the log's, are
//! `<name>.dlq` with a copy of the dead letters ([`dead_letters`]) and `<name>.events` ([`events`]).
//!
//! What enters is appended by one writer, idempotent and with `acks=all`; `append` answers when every record is
//! acknowledged. What leaves is read by offset, from consumers that are told where to begin. Invariants:
//!
//! - Every record says at which offset its writer put it ([`stamp`]). One that stands elsewhere is void, for all
//!   readers
//!   alike: so a second writer fences the first without a round trip, and a broker that lost its tail cannot have other
//!   records pass for the lost ones.
//! - The log's identity, its epoch, is in every record. Topics that were deleted and made again are another log.
//! - The broker drops nothing by itself; what is applied and old enough is dropped from here.
//!
//! Deliberately absent: transactions (their markers and their round trips;
//! docs/adr/0008-records-say-where-they-stand.md), committed offsets (the target has them), and a bound on bytes (the
//! disk is the broker's).

mod broker;
mod dead_letters;
pub(crate) mod debezium;
mod events;
mod group;
mod properties;
mod reader;
mod retention;
mod settings;
mod stamp;
#[cfg(test)]
mod tests;
mod topics;
mod writer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::OnceCell;

use self::{
    broker::Broker,
    reader::Readers,
    retention::Retention,
    stamp::Found,
    topics::{BOTH, ExaminedTopics, NewTopics},
    writer::Writer,
};
pub use self::{
    dead_letters::DeadLetterTopic,
    events::KafkaEvents,
    group::{Change, Finished, Group},
    properties::KafkaProperties,
    settings::{KafkaUrl, Settings},
};
use super::{Control, Log, LogError, Look, Offset, Record, Stored, Topic};
use crate::model::Problem;

/// How soon a topic that was just made is looked for again.
const MADE_WAIT: Duration = Duration::from_millis(30);

/// A log on Kafka, open for writing and reading.
pub struct KafkaLog {
    epoch: u64,
    epoch_text: String,
    partitions: u32,
    /// Set once it is this process's turn to write.
    claimed: OnceCell<()>,
    broker: Arc<Broker>,
    changes: TopicClients,
    snapshot: TopicClients,
    /// What has been seen of the records' size: how many, and their bytes.
    seen: (AtomicU64, AtomicU64),
}

/// One topic.
struct TopicClients {
    name: String,
    readers: Arc<Readers>,
    writer: Writer,
    retention: Retention,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("epoch", &self.epoch_text).finish_non_exhaustive()
    }
}

/// Looks whether the log could be used, without making or writing anything: what is wrong, if something is.
///
/// # Errors
/// When the brokers do not answer or refuse.
pub async fn examine(settings: &Settings) -> Result<Vec<Problem>, LogError> {
    let broker = Broker::new(settings)?;
    let ExaminedTopics { mut problems, missing, .. } = topics::examine(&broker, settings).await?;
    let log = (!missing.is_empty()).then(|| NewTopics::of_log(settings, &missing));
    let has_dead_letters = broker.shape(&settings.dead_letters()).await?.is_some();
    let dead_letters = (!has_dead_letters).then(|| NewTopics::of_dead_letters(settings));
    let has_events = events::examine(&broker, settings).await?.map(|found| problems.extend(found)).is_some();
    let events = (!has_events).then(|| NewTopics::of_events(settings));
    for new in log.iter().chain(&dead_letters).chain(&events) {
        match topics::make(&broker, new, true).await {
            Ok(()) => {}
            Err(LogError::Topics(more)) => problems.extend(more),
            Err(error) => return Err(error),
        }
    }
    Ok(problems)
}

impl KafkaLog {
    /// Opens the log, making its topics if there are none. The turn to write is taken with the first append, or when
    /// it is asked where to resume: a log that lost its tail can still be told by where it ends.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse, or when the topics have other settings than the log needs, or belong
    /// to no log or to several.
    pub async fn open(settings: Settings) -> Result<Self, LogError> {
        let broker = Broker::new(&settings)?;
        let record_bytes_max = prepare(&broker, &settings).await?;
        Self::examined(settings, broker, record_bytes_max, true).await
    }

    /// Opens the log that another process writes, to read it.
    ///
    /// # Errors
    /// As [`Self::open`]; [`LogError::NotBegun`] if nobody has written to it yet.
    pub async fn join(settings: Settings) -> Result<Self, LogError> {
        let broker = Broker::new(&settings)?;
        let ExaminedTopics { problems, missing, record_bytes_max } = topics::examine(&broker, &settings).await?;
        if !missing.is_empty() {
            return Err(LogError::NotBegun { name: settings.name });
        }
        if !problems.is_empty() {
            return Err(LogError::Topics(problems));
        }
        Self::examined(settings, broker, record_bytes_max, false).await
    }

    /// The log in topics that were found sound. `begins` says whether one without records is to have an identity.
    async fn examined(
        settings: Settings,
        broker: Broker,
        record_bytes_max: u64,
        begins: bool,
    ) -> Result<Self, LogError> {
        let (settings, broker) = (Arc::new(settings), Arc::new(broker));
        let readers = BOTH.map(|topic| Arc::new(Readers::new(&settings, &broker, topic)));
        let mut bounds = [const { Vec::new() }; 2];
        for (topic, bounds) in BOTH.into_iter().zip(&mut bounds) {
            for partition in 0..settings.partitions {
                bounds.push(broker.bounds(&settings.topic(topic), partition).await?);
            }
        }
        let epoch = match identify(&settings, &readers, &bounds).await? {
            Some(epoch) => epoch,
            None if begins => settings.epoch,
            None => return Err(LogError::NotBegun { name: settings.name.clone() }),
        };
        let clients = |topic: Topic, readers: &Arc<Readers>, bounds: &[(Offset, Offset)]| TopicClients {
            name: settings.topic(topic),
            readers: Arc::clone(readers),
            writer: Writer::new(&settings, &broker, readers, topic, epoch, record_bytes_max, bounds),
            retention: Retention::new(&settings, &broker, topic),
        };
        let (changes, snapshot) =
            (clients(Topic::Changes, &readers[0], &bounds[0]), clients(Topic::Snapshot, &readers[1], &bounds[1]));
        Ok(KafkaLog {
            epoch,
            claimed: OnceCell::new(),
            epoch_text: format!("{epoch:016x}"),
            partitions: settings.partitions,
            broker,
            changes,
            snapshot,
            seen: Default::default(),
        })
    }

    fn clients(&self, topic: Topic) -> &TopicClients {
        match topic {
            Topic::Changes => &self.changes,
            Topic::Snapshot => &self.snapshot,
        }
    }

    /// Takes the turn, if that was not done yet: what an earlier writer sends from then on is void.
    async fn claim(&self) -> Result<(), LogError> {
        self.claimed.get_or_try_init(|| self.changes.writer.claim()).await.copied()
    }

    async fn newest_control(&self, topic: Topic, partition: u32) -> Result<Option<(Offset, Control)>, LogError> {
        let clients = self.clients(topic);
        let bounds = self.broker.bounds(&clients.name, partition).await?;
        let mut found = None;
        let mut look = |offset, record: &Record| {
            found = record.headers.kind.is_resumable().then(|| (offset, record.value.clone())).or(found.take());
            found.is_some()
        };
        clients.readers.peeker()?.back(self.epoch, partition, bounds, &mut look).await?;
        let Some((offset, value)) = found else { return Ok(None) };
        let control = serde_json::from_slice(&value).map_err(|error| LogError::Corrupt {
            topic: topic.suffix(),
            partition,
            offset,
            reason: format!("the control record cannot be read: {error}"),
        })?;
        Ok(Some((offset, control)))
    }

    fn note_size<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        for record in records {
            self.seen.0.fetch_add(1, Ordering::Relaxed);
            self.seen.1.fetch_add((record.key.len() + record.value.len()) as u64, Ordering::Relaxed);
        }
    }
}

/// Makes the topics that are missing and refuses those that the log cannot use; the size of the largest record.
async fn prepare(broker: &Broker, settings: &Settings) -> Result<u64, LogError> {
    let mut examined = topics::examine(broker, settings).await?;
    if !examined.missing.is_empty() {
        topics::make(broker, &NewTopics::of_log(settings, &examined.missing), false).await?;
        let deadline = tokio::time::Instant::now() + settings::ANSWER_MAX;
        while !examined.missing.is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(MADE_WAIT).await;
            examined = topics::examine(broker, settings).await?;
        }
    }
    if let Some(topic) = examined.missing.first() {
        let reason = format!("topic {} was created and is not there yet", settings.topic(*topic));
        return Err(LogError::Unreachable { brokers: broker.brokers.clone(), reason });
    }
    if examined.problems.is_empty() { Ok(examined.record_bytes_max) } else { Err(LogError::Topics(examined.problems)) }
}

/// The epoch that the first record of every partition names; none of a log without records.
async fn identify(
    settings: &Settings,
    readers: &[Arc<Readers>; 2],
    bounds: &[Vec<(Offset, Offset)>; 2],
) -> Result<Option<u64>, LogError> {
    let mut found: Option<u64> = None;
    let mut had_records = false;
    for ((topic, readers), bounds) in BOTH.into_iter().zip(readers).zip(bounds) {
        let peeker = readers.peeker()?;
        for (partition, (start, end)) in (0..).zip(bounds) {
            had_records |= *end > 0;
            let mut first = None;
            peeker
                .show(None, partition, *start, *end, |_, record| {
                    first = match record {
                        Found::Record(stamp, _) | Found::Claim(stamp) => Some(stamp.epoch),
                        Found::Void(_) => None,
                    };
                    first.is_none()
                })
                .await?;
            if let (Some(epoch), Some(first)) = (found, first)
                && epoch != first
            {
                let problem = format!("{} holds records of another log than the rest", settings.topic(topic));
                return Err(unidentified(settings, problem));
            }
            found = found.or(first);
        }
    }
    if found.is_none() && had_records {
        return Err(unidentified(settings, "no record is left that says which log it is".to_owned()));
    }
    Ok(found)
}

fn unidentified(settings: &Settings, what: String) -> LogError {
    let (changes, snapshot) = (settings.topic(Topic::Changes), settings.topic(Topic::Snapshot));
    let fix = format!("delete topics {changes} and {snapshot} to start a new epoch from the position in the target");
    LogError::Topics(vec![Problem { what, fix }])
}

#[async_trait]
impl Log for KafkaLog {
    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn epoch(&self) -> &str {
        &self.epoch_text
    }

    async fn append(&self, topic: Topic, records: Vec<(u32, Record)>) -> Result<(), LogError> {
        self.claim().await?;
        self.clients(topic).writer.append(&records).await?;
        self.note_size(records.iter().map(|(_, record)| record));
        Ok(())
    }

    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Vec<Stored>, LogError> {
        let clients = self.clients(topic);
        let read = clients.readers.read(self.epoch, partition, from, bytes_max, wait).await?;
        // Nothing may be missing that was acknowledged to us.
        if let Some((_, acknowledged)) = clients.writer.bounds(partition)
            && read.is_empty()
            && from < acknowledged
        {
            let (_, end) = self.broker.bounds(&clients.name, partition).await?;
            if end < acknowledged {
                return Err(reader::tail_lost(topic.suffix(), partition, acknowledged, end));
            }
        }
        self.note_size(read.iter().map(|stored| &stored.record));
        Ok(read)
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), LogError> {
        let clients = self.clients(topic);
        if let Some(bounds) = clients.writer.bounds(partition) {
            return Ok(bounds);
        }
        self.broker.bounds(&clients.name, partition).await
    }

    async fn last_control(&self, topic: Topic, partition: u32) -> Result<Option<(Offset, Control)>, LogError> {
        // Whoever asks is going to write: no other writer may add a control record after this answer.
        self.claim().await?;
        self.newest_control(topic, partition).await
    }

    async fn look_back(&self, topic: Topic, partition: u32, look: &mut Look<'_>) -> Result<(), LogError> {
        let clients = self.clients(topic);
        let bounds = self.broker.bounds(&clients.name, partition).await?;
        clients.readers.peeker()?.back(self.epoch, partition, bounds, look).await
    }

    async fn applied(&self, topic: Topic, partition: u32, offset: Offset) -> Result<(), LogError> {
        let clients = self.clients(topic);
        if !clients.retention.is_due(partition, offset) {
            return Ok(());
        }
        // The newest control record stays whatever its age: it is where the writer resumes, and it says which log this
        // is.
        let dropped = match self.newest_control(topic, partition).await {
            Ok(Some((control, _))) => clients.retention.drop_applied(partition, offset.min(control)).await,
            Ok(None) => return Ok(()),
            Err(error) => Err(error),
        };
        match dropped {
            Ok(Some(start)) => clients.writer.starts(partition, start),
            Ok(None) => {}
            // Old records cost space, nothing else.
            Err(error) => {
                tracing::warn!(topic = clients.name, partition, %error, "applied records are not dropped yet")
            }
        }
        Ok(())
    }

    /// About: the brokers tell no sizes, so it is what records have had on average, without compression.
    async fn size_bytes(&self) -> Result<u64, LogError> {
        let mut records = 0;
        for topic in BOTH {
            for partition in 0..self.partitions {
                let (start, end) = self.bounds(topic, partition).await?;
                records += end - start;
            }
        }
        let (count, bytes) = (self.seen.0.load(Ordering::Relaxed), self.seen.1.load(Ordering::Relaxed));
        Ok(records.saturating_mul(bytes) / count.max(1))
    }
}
