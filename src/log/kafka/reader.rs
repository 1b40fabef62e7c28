//! Reading the topics back: readers that go on where they stopped, and looks at a few records.
//!
//! A reader is a consumer of one partition. It is told where to begin once and then fetches ahead; a read from where no
//! reader stands moves one, after asking the broker whether that place exists. There are a few for each partition, so
//! that a replay does not take the stream's reader away with every read. Void records and claims are passed over.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use rdkafka::{
    TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{BorrowedMessage, Message as _},
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, timeout, timeout_at},
};

use super::{
    broker::{Broker, create},
    settings::{Context, Settings},
    stamp::{self, Found, Stamp},
};
use crate::log::{LogError, Look, Offset, Stored, Topic, blocks_back};

/// How long a look at records that are there may wait for the next of them.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// Readers of one partition: the stream's, a replay's, and one for looks at a few records.
const READERS: usize = 3;
/// How long a reader keeps what it has fetched ahead when nobody goes on with it.
const IDLE_MAX: Duration = Duration::from_secs(60);

type Client = StreamConsumer<Context>;

/// What `read` counts for a record beside its key and value.
const RECORD_BYTES: usize = 64;

/// The readers of one topic.
pub(super) struct Readers {
    settings: Arc<Settings>,
    broker: Arc<Broker>,
    topic: Topic,
    name: String,
    /// By partition.
    readers: Vec<[Mutex<Reader>; READERS]>,
}

/// A reader of one partition.
#[derive(Default)]
struct Reader {
    consumer: Option<Client>,
    /// The offset that it goes on with; none while that is not sure.
    serves: Option<Offset>,
    used: Option<Instant>,
}

impl Reader {
    /// How gladly it is taken for a read from there: less is better.
    fn cost(&self, from: Offset) -> (u8, Option<Instant>) {
        match (self.serves, &self.consumer) {
            (Some(serves), Some(_)) if serves == from => (0, None),
            (None, Some(_)) => (1, None),
            (Some(_) | None, None) => (2, None),
            (Some(_), Some(_)) => (3, self.used),
        }
    }
}

impl Readers {
    pub(super) fn new(settings: &Arc<Settings>, broker: &Arc<Broker>, topic: Topic) -> Self {
        Readers {
            settings: Arc::clone(settings),
            broker: Arc::clone(broker),
            topic,
            name: settings.topic(topic),
            readers: (0..settings.partitions).map(|_| Default::default()).collect(),
        }
    }

    /// As [`Log::read`](crate::log::Log::read), of the log of this epoch.
    pub(super) async fn read(
        &self,
        epoch: u64,
        partition: u32,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Vec<Stored>, LogError> {
        let Some(readers) = self.readers.get(partition as usize) else {
            let name = &self.name;
            return Err(LogError::Other(format!("there is no partition {partition} of {name}")));
        };
        let deadline = Instant::now() + wait;
        let mut reader = timeout_at(deadline + LOOK_MAX, choose(readers, from))
            .await
            .map_err(|_| LogError::Other(format!("other reads of {}/{partition} do not end", self.name)))?;
        reader.used = Some(Instant::now());
        let (mut records, mut bytes) = (Vec::new(), 0);
        // Whoever drops this read may have taken records with it: then the next one begins anew.
        let mut is_there = reader.serves.take() == Some(from);
        while bytes < bytes_max {
            if !is_there {
                self.move_to(&mut reader, partition, from).await?;
                is_there = true;
            }
            let Some(consumer) = &reader.consumer else { break };
            // The first record is waited for; the others are those that have come with it.
            let message = if records.is_empty() {
                timeout_at(deadline, consumer.recv()).await.ok()
            } else {
                consumer.recv().now_or_never()
            };
            let Some(message) = message else { break };
            let found = match message {
                Ok(message) => self.judge_record(&message, epoch, partition)?,
                Err(error) if records.is_empty() && is_elsewhere(&error) => {
                    is_there = false;
                    continue;
                }
                Err(error) if !records.is_empty() || is_passing(&error) => {
                    tracing::debug!(topic = self.name, partition, %error, "a fetch failed");
                    if records.is_empty() { continue } else { break }
                }
                Err(error) => return Err(self.broker.error(&error, consumer.context().trouble(&error))),
            };
            if let (offset, Found::Record(_, record)) = found {
                bytes += record.key.len() + record.value.len() + RECORD_BYTES;
                records.push(Stored { offset, record });
            }
        }
        reader.serves = Some(records.last().map_or(from, |last| last.offset + 1));
        Ok(records)
    }

    /// Has the reader begin at an offset that the broker has, or will have next.
    async fn move_to(&self, reader: &mut Reader, partition: u32, from: Offset) -> Result<(), LogError> {
        let (start, end) = self.broker.bounds(&self.name, partition).await?;
        let topic = self.topic.suffix();
        if from < start {
            return Err(LogError::Trimmed { topic, partition, wanted: from, start });
        }
        if from > end {
            return Err(tail_lost(topic, partition, from, end));
        }
        // A consumer that is not asked gathers what it hears of an outage, and would tell it one by one when that is
        // over.
        let old = reader.consumer.take();
        tokio::task::spawn_blocking(move || drop(old)).await.map_err(|error| LogError::Other(error.to_string()))?;
        let consumer = create(&self.settings.consumer(), Context::default())?;
        self.assign(&consumer, partition, from)?;
        reader.consumer = Some(consumer);
        Ok(())
    }

    fn assign(&self, consumer: &Client, partition: u32, from: Offset) -> Result<(), LogError> {
        let mut assigned = TopicPartitionList::new();
        let offset = rdkafka::Offset::Offset(from.cast_signed());
        let assigned_to = assigned.add_partition_offset(&self.name, partition.cast_signed(), offset);
        let assigned_to = assigned_to.and_then(|()| consumer.assign(&assigned));
        assigned_to.map_err(|error| self.broker.error(&error, (None, error.to_string())))
    }

    fn judge_record(
        &self,
        message: &BorrowedMessage<'_>,
        epoch: u64,
        partition: u32,
    ) -> Result<(Offset, Found), LogError> {
        let offset = u64::try_from(message.offset()).unwrap_or_default();
        let corrupt = |reason| LogError::Corrupt { topic: self.topic.suffix(), partition, offset, reason };
        let found = stamp::read(message).map_err(|error| corrupt(error.to_string()))?;
        match &found {
            Found::Record(stamp, _) | Found::Claim(stamp) if stamp.epoch != epoch => {
                let reason = "the topic was deleted and made again: it belongs to another log now".to_owned();
                return Err(corrupt(reason));
            }
            Found::Void(stamp) => {
                let Stamp { writer, offset: said, .. } = stamp;
                tracing::debug!(
                    topic = self.name,
                    partition,
                    offset,
                    said,
                    "passed over a void record of {writer:016x}"
                );
            }
            Found::Record(..) | Found::Claim(_) => {}
        }
        Ok((offset, found))
    }

    /// A client to look at single records with.
    pub(super) fn peeker(&self) -> Result<Peeker<'_>, LogError> {
        Ok(Peeker { readers: self, consumer: create(&self.settings.consumer(), Context::default())? })
    }
}

/// Looks at records that are there, beside the readers.
pub(super) struct Peeker<'a> {
    readers: &'a Readers,
    consumer: Client,
}

impl Peeker<'_> {
    /// Shows the records from `from` to before `to`, all of which are in the log, until `look` has seen enough.
    /// The epoch that they must have is none while it is not known.
    pub(super) async fn show(
        &self,
        epoch: Option<u64>,
        partition: u32,
        from: Offset,
        to: Offset,
        mut look: impl FnMut(Offset, Found) -> bool,
    ) -> Result<(), LogError> {
        if from >= to {
            return Ok(());
        }
        self.readers.assign(&self.consumer, partition, from)?;
        loop {
            let message = timeout(LOOK_MAX, self.consumer.recv()).await;
            let message = match message {
                Ok(Ok(message)) => message,
                Ok(Err(error)) if is_passing(&error) => continue,
                Ok(Err(error)) => {
                    return Err(self.readers.broker.error(&error, self.consumer.context().trouble(&error)));
                }
                Err(_) => {
                    let (topic, brokers) = (&self.readers.name, self.readers.broker.brokers.clone());
                    let reason = format!("{topic}/{partition} did not give its records from {from} on in {LOOK_MAX:?}");
                    return Err(LogError::Unreachable { brokers, reason });
                }
            };
            let offset = u64::try_from(message.offset()).unwrap_or_default();
            if offset >= to {
                return Ok(());
            }
            let epoch = match (epoch, stamp::read(&message)) {
                (Some(epoch), _) => epoch,
                (None, Ok(Found::Record(stamp, _) | Found::Claim(stamp) | Found::Void(stamp))) => stamp.epoch,
                (None, Err(_)) => 0,
            };
            let (offset, found) = self.readers.judge_record(&message, epoch, partition)?;
            if !look(offset, found) || offset + 1 >= to {
                return Ok(());
            }
        }
    }

    /// Shows the records of these bounds from their end back, in blocks, until one after which `look` has had enough.
    pub(super) async fn back(
        &self,
        epoch: u64,
        partition: u32,
        (start, end): (Offset, Offset),
        look: &mut Look<'_>,
    ) -> Result<(), LogError> {
        for (from, to) in blocks_back(start, end) {
            let mut enough = false;
            self.show(Some(epoch), partition, from, to, |offset, found| {
                if let Found::Record(_, record) = found {
                    enough |= look(offset, &record);
                }
                true
            })
            .await?;
            if enough {
                break;
            }
        }
        Ok(())
    }
}

/// The reader that a read from there takes least away from, of those that nobody uses at the moment.
async fn choose(readers: &[Mutex<Reader>; READERS], from: Offset) -> MutexGuard<'_, Reader> {
    let mut free: Vec<MutexGuard<'_, Reader>> = readers.iter().filter_map(|reader| reader.try_lock().ok()).collect();
    let best = free.iter().enumerate().min_by_key(|(_, reader)| reader.cost(from)).map(|(index, _)| index);
    let Some(best) = best else {
        let [first, ..] = readers;
        return first.lock().await;
    };
    let chosen = free.swap_remove(best);
    for mut other in free {
        if other.used.is_some_and(|used| used.elapsed() > IDLE_MAX) {
            let Reader { consumer, .. } = std::mem::take(&mut *other);
            // It waits for its threads, which nobody else needs to.
            drop(tokio::task::spawn_blocking(move || drop(consumer)));
        }
    }
    chosen
}

pub(super) fn tail_lost(topic: &'static str, partition: u32, wanted: Offset, end: Offset) -> LogError {
    let reason = format!("the log ends there, before offset {wanted}, which it had reached: its tail is lost");
    LogError::Corrupt { topic, partition, offset: end, reason }
}

/// Whether the broker does not have the offset: where the log begins and ends must be asked.
pub(super) fn is_elsewhere(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation))
}

/// Whether the client goes on by itself.
pub(super) fn is_passing(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(Code::BrokerTransportFailure | Code::OperationTimedOut | Code::Resolve))
}
