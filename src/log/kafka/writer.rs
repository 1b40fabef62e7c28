//! Writing to one topic: every append is conditional on where its records come to stand.
//!
//! What enters is records per partition; each gets the offset that follows the last one of its partition, and says so
//! (see [`stamp`](super::stamp)). `Ok` means that the brokers have acknowledged every record at that very offset.
//! After anything else the writer *synchronizes*: it looks at what stands after its last acknowledged record. What
//! it finds tells what happened.
//!
//! | found | means |
//! |---|---|
//! | the partition ends before it | the broker lost its tail: halt |
//! | valid records of a writer with a higher number | somebody has taken our turn: halt |
//! | nothing, our own records, void ones, those of a lower number | the append failed or a late writer came between:
//! again |

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{DeliveryResult, Message as _, OwnedHeaders},
    producer::{BaseRecord, ProducerContext, ThreadedProducer},
};
use tokio::sync::Notify;

use super::{
    broker::{Broker, create, put_away},
    reader::{Readers, tail_lost},
    settings::{Context, Settings},
    stamp::{Found, Stamp},
    topics::RECORD_OVERHEAD_BYTES,
};
use crate::log::{LogError, Offset, Record, Topic};

/// How long an append waits before it tries a full queue again.
const FULL_PAUSE: Duration = Duration::from_millis(2);
/// How often a claim is tried before a writer that comes between is called a running one.
const CLAIMS_MAX: usize = 5;

type Producer = ThreadedProducer<Deliveries>;

/// The writer of one topic.
pub(super) struct Writer {
    settings: Arc<Settings>,
    broker: Arc<Broker>,
    readers: Arc<Readers>,
    topic: Topic,
    name: String,
    epoch: u64,
    record_bytes_max: u64,
    partitions: Arc<Vec<PartitionEnds>>,
    /// Held while offsets are given out, so that records are queued in the order of their offsets.
    turn: tokio::sync::Mutex<Turn>,
}

/// What is known of one partition.
#[derive(Debug, Default)]
struct PartitionEnds {
    start: AtomicU64,
    /// Everything before it is acknowledged, or was there before us.
    acknowledged: AtomicU64,
    /// Whether a record of ours stands in it.
    is_ours: AtomicBool,
}

struct Turn {
    producer: Option<Producer>,
    /// The offset of the next record of each partition; none while that is not sure.
    next: Vec<Option<Offset>>,
    /// Counts the producers.
    generation: u64,
}

/// What goes to one partition.
enum Queued<'a> {
    Record(&'a Record),
    Claim(&'a [u8]),
}

impl Writer {
    /// A writer that goes on where the partitions end, of which `ends` has start and end.
    pub(super) fn new(
        settings: &Arc<Settings>,
        broker: &Arc<Broker>,
        readers: &Arc<Readers>,
        topic: Topic,
        epoch: u64,
        record_bytes_max: u64,
        bounds: &[(Offset, Offset)],
    ) -> Self {
        let ends = |(start, end): &(Offset, Offset)| PartitionEnds {
            start: (*start).into(),
            acknowledged: (*end).into(),
            is_ours: false.into(),
        };
        let next = bounds.iter().map(|(_, end)| Some(*end)).collect();
        Writer {
            settings: Arc::clone(settings),
            broker: Arc::clone(broker),
            readers: Arc::clone(readers),
            topic,
            name: settings.topic(topic),
            epoch,
            record_bytes_max,
            partitions: Arc::new(bounds.iter().map(ends).collect()),
            turn: tokio::sync::Mutex::new(Turn { producer: None, next, generation: 0 }),
        }
    }

    /// Takes the turn in every partition: from then on what an earlier writer sends is void.
    pub(super) async fn claim(&self) -> Result<(), LogError> {
        let value = format!(
            "{{\"epoch\":\"{:016x}\",\"partitions\":{},\"writer\":\"{:016x}\"}}",
            self.epoch, self.settings.partitions, self.settings.writer
        );
        let mut attempts = 0;
        loop {
            let claims = (0..self.settings.partitions).map(|partition| (partition, Queued::Claim(value.as_bytes())));
            match self.write(claims).await {
                Err(LogError::Other(_)) if attempts < CLAIMS_MAX => attempts += 1,
                claimed => return claimed,
            }
        }
    }

    pub(super) async fn append(&self, records: &[(u32, Record)]) -> Result<(), LogError> {
        for (partition, record) in records {
            if *partition >= self.settings.partitions {
                let partitions = self.settings.partitions;
                return Err(LogError::Other(format!("there is no partition {partition}: the log has {partitions}")));
            }
            let bytes = (record.key.len() + record.value.len()) as u64 + RECORD_OVERHEAD_BYTES;
            if bytes > self.record_bytes_max {
                let (topic, limit) = (self.name.clone(), self.record_bytes_max);
                return Err(LogError::TooLarge { topic, bytes, limit });
            }
        }
        self.write(records.iter().map(|(partition, record)| (*partition, Queued::Record(record)))).await
    }

    /// The bounds of a partition that is ours; none of others.
    pub(super) fn bounds(&self, partition: u32) -> Option<(Offset, Offset)> {
        let ends = self.partitions.get(partition as usize).filter(|ends| ends.is_ours.load(Ordering::Acquire))?;
        Some((ends.start.load(Ordering::Relaxed), ends.acknowledged.load(Ordering::Acquire)))
    }

    /// Notes where a partition begins.
    pub(super) fn starts(&self, partition: u32, start: Offset) {
        if let Some(ends) = self.partitions.get(partition as usize) {
            ends.start.fetch_max(start, Ordering::Relaxed);
        }
    }

    async fn write<'a>(&self, items: impl Iterator<Item = (u32, Queued<'a>)>) -> Result<(), LogError> {
        let (append, generation) = {
            let mut turn = self.turn.lock().await;
            let append = self.queue(&mut turn, items).await?;
            (append, turn.generation)
        };
        append.left(1);
        append.done.notified().await;
        let Some(failure) = append.failure() else { return Ok(()) };
        let mut turn = self.turn.lock().await;
        if turn.generation == generation {
            self.renew(&mut turn).await;
        }
        for partition in 0..self.settings.partitions {
            self.next(&mut turn, partition).await?;
        }
        Err(match failure {
            Failure::Displaced => LogError::Other(format!(
                "records came to stand behind others in topic {}, which a late writer must have sent; they are written again",
                self.name
            )),
            Failure::Broker(error, reason) => self.broker.error(&error, (None, reason)),
        })
    }

    /// Hands the records to the producer, each with its offset.
    async fn queue<'a>(
        &self,
        turn: &mut Turn,
        items: impl Iterator<Item = (u32, Queued<'a>)>,
    ) -> Result<Arc<Append>, LogError> {
        let append = Arc::new(Append::new(Arc::clone(&self.partitions)));
        for (partition, item) in items {
            let offset = self.next(turn, partition).await?;
            let producer = match &turn.producer {
                Some(producer) => producer,
                None => {
                    let config = self.settings.producer(self.record_bytes_max);
                    turn.producer.insert(create(&config, Deliveries(Context::default()))?)
                }
            };
            let stamp = Stamp { epoch: self.epoch, writer: self.settings.writer, offset };
            append.expect(partition, offset);
            let sent = match item {
                Queued::Record(record) => {
                    let headers = stamp.headers(&record.headers);
                    self.send(producer, &append, partition, &record.key, &record.value, headers).await
                }
                Queued::Claim(value) => {
                    self.send(producer, &append, partition, &[], value, stamp.claim_headers()).await
                }
            };
            if let Err(error) = sent {
                append.failed(error.clone(), error.to_string());
                append.left(1);
                break;
            }
            if let Some(next) = turn.next.get_mut(partition as usize) {
                *next = Some(offset + 1);
            }
        }
        Ok(append)
    }

    async fn send(
        &self,
        producer: &Producer,
        append: &Arc<Append>,
        partition: u32,
        key: &[u8],
        value: &[u8],
        headers: OwnedHeaders,
    ) -> Result<(), KafkaError> {
        let mut record = BaseRecord::with_opaque_to(&self.name, Arc::clone(append))
            .partition(partition.cast_signed())
            .payload(value)
            .headers(headers);
        if !key.is_empty() {
            record = record.key(key);
        }
        loop {
            match producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(Code::QueueFull), refused)) => record = refused,
                Err((error, _)) => return Err(error),
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }

    /// Another producer takes over: what the old one still holds is dropped, and what is under way comes to stand where
    /// it is void.
    async fn renew(&self, turn: &mut Turn) {
        turn.generation += 1;
        turn.next.fill(None);
        put_away(turn.producer.take()).await;
    }

    /// The offset of the next record of a partition.
    async fn next(&self, turn: &mut Turn, partition: u32) -> Result<Offset, LogError> {
        let (Some(next), Some(ends)) = (turn.next.get_mut(partition as usize), self.partitions.get(partition as usize))
        else {
            return Err(LogError::Other(format!("topic {} has no partition {partition}", self.name)));
        };
        if let Some(next) = next {
            return Ok(*next);
        }
        let (start, end) = self.broker.bounds(&self.name, partition).await?;
        let acknowledged = ends.acknowledged.load(Ordering::Acquire);
        let topic = self.topic.suffix();
        if end < acknowledged {
            return Err(tail_lost(topic, partition, acknowledged, end));
        }
        let mut fenced = false;
        if acknowledged < end {
            let look = |_, found| {
                if let Found::Record(stamp, _) | Found::Claim(stamp) = found {
                    fenced |= stamp.writer > self.settings.writer;
                }
                true
            };
            self.readers.peeker()?.show(Some(self.epoch), partition, acknowledged.max(start), end, look).await?;
        }
        if fenced {
            return Err(LogError::Fenced { topic: self.name.clone(), partition });
        }
        ends.start.fetch_max(start, Ordering::Relaxed);
        ends.acknowledged.fetch_max(end, Ordering::AcqRel);
        *next = Some(end);
        Ok(end)
    }
}

/// One append, until every record of it is answered for.
pub(super) struct Append {
    partitions: Arc<Vec<PartitionEnds>>,
    /// Answers that are missing, and one for the caller that still sends.
    left: AtomicUsize,
    state: Mutex<Answers>,
    done: Notify,
}

#[derive(Default)]
struct Answers {
    /// The offset that the next acknowledgement of each partition must have.
    expected: BTreeMap<u32, Offset>,
    failure: Option<Failure>,
}

enum Failure {
    /// A record stands elsewhere than it says.
    Displaced,
    Broker(KafkaError, String),
}

impl Append {
    fn new(partitions: Arc<Vec<PartitionEnds>>) -> Self {
        Append { partitions, left: AtomicUsize::new(1), state: Mutex::default(), done: Notify::new() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more answer is to come, about the record at `offset`.
    fn expect(&self, partition: u32, offset: Offset) {
        self.left.fetch_add(1, Ordering::AcqRel);
        self.state().expected.entry(partition).or_insert(offset);
    }

    fn delivered(&self, partition: u32, offset: Option<Offset>) {
        let mut state = self.state();
        let expected = state.expected.get_mut(&partition);
        match (expected, offset) {
            (Some(expected), Some(offset)) if *expected == offset => {
                *expected += 1;
                if let (None, Some(ends)) = (&state.failure, self.partitions.get(partition as usize)) {
                    ends.acknowledged.fetch_max(offset + 1, Ordering::AcqRel);
                    ends.is_ours.store(true, Ordering::Release);
                }
            }
            (Some(_) | None, Some(_) | None) => drop(state.failure.get_or_insert(Failure::Displaced)),
        }
    }

    fn failed(&self, error: KafkaError, reason: String) {
        self.state().failure.get_or_insert(Failure::Broker(error, reason));
    }

    fn left(&self, answers: usize) {
        if self.left.fetch_sub(answers, Ordering::AcqRel) == answers {
            self.done.notify_one();
        }
    }

    fn failure(&self) -> Option<Failure> {
        self.state().failure.take()
    }
}

/// Brings the brokers' answers to the appends.
pub(super) struct Deliveries(Context);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<Append>;

    fn delivery(&self, result: &DeliveryResult<'_>, append: Arc<Append>) {
        match result {
            Ok(message) => append.delivered(message.partition().cast_unsigned(), u64::try_from(message.offset()).ok()),
            Err((error, _)) => {
                let (_, reason) = self.0.trouble(error);
                append.failed(error.clone(), reason);
            }
        }
        append.left(1);
    }
}
