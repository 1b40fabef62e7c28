//! The topics of a connector of Debezium, read as a log.
//!
//! Every partition of every table's topic is a *lane*: a partition of the changes topic, as the rest of the pipeline
//! sees it; there is no snapshot topic. What leaves are rows of ours with versions, and behind each run of them a
//! control record of the same offset as its last, which holds the lane's clock and what was seen of the connector. The
//! target stores it with the offset, and gives it back when a lane is read from there: versions only ever go on from
//! what is durable.
//!
//! Deliberately absent: writing, and dropping what is applied. The topics are the connector's.

mod run;
mod topics;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt as _;
use rdkafka::{
    TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    message::Message as _,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use self::run::{Run, json};
pub use self::topics::DebeziumTopics;
use super::{
    broker::{Broker, create},
    reader::{is_elsewhere, is_passing},
    settings::{Context, Settings},
};
use crate::{
    log::{
        Control, EMPTY, Kind, Log, LogError, Look, Offset, Record, Stored, Topic,
        debezium::{
            DebeziumChange, DebeziumError, DebeziumMessage, Known, Order, RecordShape, Sample, Verdict, config::Begin,
            message,
        },
    },
    model::{Op, TableSchema, Version},
    observe::now_us,
};

/// Lanes of a pipeline: each costs a connection to the target.
pub const LANES_MAX: u32 = 256;

/// Rows that become durable together; what the lane has seen is stored once for them.
const RUN_ROWS_MAX: usize = 500;

type Client = StreamConsumer<Context>;

/// Where a lane goes on, as the target knows it.
#[async_trait]
pub trait Memory: Send + Sync {
    /// What was stored with this offset of a lane.
    async fn recall(&self, lane: u32, from: Offset) -> Result<Order, LogError>;
}

/// What transforms need of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reads {
    pub columns: Vec<String>,
    /// Whether images before are needed whole.
    pub before: bool,
}

/// A table of the connector's.
#[derive(Debug, Clone)]
pub struct Table {
    pub topic: String,
    pub partitions: u32,
    pub sample: Sample,
    pub known: Known,
    pub reads: Reads,
}

/// A partition of a table's topic.
struct TablePartition {
    table: Arc<Table>,
    partition: u32,
    reader: Mutex<Reader>,
}

/// Where a lane is read.
#[derive(Default)]
struct Reader {
    consumer: Option<Client>,
    /// The offset that it goes on with; none while that is not sure.
    next: Option<Offset>,
    order: Order,
    /// The columns of the records that come, with the schema that says so, where they have one.
    shape: Option<(Option<String>, Arc<RecordShape>)>,
    /// What keeps the record at `next` from being read: told once what stands before it is handed out.
    refused: Option<LogError>,
    /// A second snapshot has been told of.
    warned: bool,
}

/// A connector's topics as a log.
pub struct DebeziumLog {
    settings: Arc<Settings>,
    broker: Arc<Broker>,
    begin: Begin,
    epoch: String,
    /// By number.
    lanes: BTreeMap<u32, TablePartition>,
    memory: Arc<dyn Memory>,
}

impl std::fmt::Debug for DebeziumLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebeziumLog").field("lanes", &self.lanes.len()).finish_non_exhaustive()
    }
}

impl DebeziumLog {
    /// Asks where every lane ends.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn read_ends(&self) -> Result<Vec<(u32, Offset)>, LogError> {
        let mut ends = Vec::with_capacity(self.lanes.len());
        for (number, lane) in &self.lanes {
            ends.push((*number, self.broker.bounds(&lane.table.topic, lane.partition).await?.1));
        }
        Ok(ends)
    }

    fn lane(&self, partition: u32) -> Result<&TablePartition, LogError> {
        let lane = self.lanes.get(&partition);
        lane.ok_or_else(|| LogError::Other(format!("there is no lane {partition} of the connector's topics")))
    }

    /// Has the reader of a lane begin at an offset.
    async fn move_to(&self, reader: &mut Reader, number: u32, from: Offset) -> Result<(), LogError> {
        let lane = self.lane(number)?;
        let Table { topic, .. } = &*lane.table;
        let (start, end) = self.broker.bounds(topic, lane.partition).await?;
        if from > end {
            let what = format!("{topic}/{} ends at offset {end}, and was applied up to {from}", lane.partition);
            return Err(LogError::Other(what));
        }
        let recalled = self.memory.recall(number, from).await?;
        if from < start && (from > 0 || self.begin == Begin::Complete) {
            return Err(trimmed(topic, lane.partition, from, start));
        }
        reader.order = recalled;
        let old = reader.consumer.take();
        tokio::task::spawn_blocking(move || drop(old)).await.map_err(|error| LogError::Other(error.to_string()))?;
        let consumer = create(&self.settings.foreign_consumer(), Context::default())?;
        assign(&self.broker, &consumer, topic, lane.partition, from.max(start))?;
        reader.consumer = Some(consumer);
        (reader.shape, reader.refused) = (None, None);
        Ok(())
    }
}

impl TablePartition {
    /// Takes one record of the topic. After an error nothing of it is in the run.
    fn take(
        &self,
        reader: &mut Reader,
        offset: Offset,
        (key, value): (Option<&[u8]>, Option<&[u8]>),
        run: &mut Run,
    ) -> Result<(), DebeziumError> {
        if let DebeziumMessage::Change(change) = message(key, value)? {
            let now = now_us();
            if !reader.warned && reader.order.is_second_snapshot(&change.source) {
                reader.warned = true;
                tracing::warn!(
                    topic = self.table.topic,
                    "the connector has taken another snapshot, as one does that has lost its progress: rows that were deleted in \
                     between stay in the target; to be sure, let a connector with another topic.prefix write new topics, for an \
                     empty target"
                );
            }
            match reader.order.admit(&change.source, now)? {
                Verdict::New(version) => {
                    let shape = self.shape(reader, &change)?;
                    self.add(reader, offset, (&change, version, &shape), run)?;
                    run.newest_us = run.newest_us.max(change.source.commit_us.min(now));
                }
                Verdict::Seen => {
                    let (topic, partition) = (&self.table.topic, self.partition);
                    tracing::debug!(
                        topic,
                        partition,
                        offset,
                        "passed over a change that the connector has sent before"
                    );
                }
            }
        }
        run.last = Some(offset);
        Ok(())
    }

    fn add(
        &self,
        reader: &mut Reader,
        offset: Offset,
        (change, version, shape): (&DebeziumChange<'_>, Version, &Arc<RecordShape>),
        run: &mut Run,
    ) -> Result<(), DebeziumError> {
        let is_truncate = change.op == Op::Truncate;
        if is_truncate && self.table.partitions > 1 {
            return Err(DebeziumError::Truncated);
        }
        let row = if is_truncate { (EMPTY, EMPTY) } else { shape.record(change)? };
        let is_known = reader.shape.as_ref().is_some_and(|(_, known)| Arc::ptr_eq(known, shape));
        if is_truncate || !is_known {
            run.close(&reader.order)?;
        }
        if !is_known {
            run.push(offset, Kind::Schema, (EMPTY, json::<TableSchema>(&shape.schema)?), 0, None);
            reader.shape = Some((change.schema.map(str::to_owned), Arc::clone(shape)));
        }
        let schema = Some(shape.schema.id());
        if is_truncate {
            run.push(offset, Kind::Truncate, row, version, schema);
            return run.note(offset, &reader.order);
        }
        run.push(offset, Kind::Row, row, version, schema);
        if let Some(stored) = run.records.last_mut() {
            stored.record.headers.commit_us = change.source.commit_us;
        }
        run.rows += 1;
        Ok(())
    }

    /// The columns of a change. Without schemas they are those that the transforms were checked against.
    fn shape(&self, reader: &Reader, change: &DebeziumChange<'_>) -> Result<Arc<RecordShape>, DebeziumError> {
        if let Some((schema, shape)) = &reader.shape
            && schema.as_deref() == change.schema
        {
            return Ok(Arc::clone(shape));
        }
        let Table { sample, known, reads, .. } = &*self.table;
        let seen = if change.schema.is_some() { Sample::of(change)? } else { None };
        Ok(Arc::new(seen.as_ref().unwrap_or(sample).shape(known, &reads.columns, reads.before)))
    }
}

#[async_trait]
impl Log for DebeziumLog {
    fn partitions(&self) -> u32 {
        self.lanes.last_key_value().map_or(0, |(number, _)| number + 1)
    }

    fn epoch(&self) -> &str {
        &self.epoch
    }

    async fn append(&self, _topic: Topic, _records: Vec<(u32, Record)>) -> Result<(), LogError> {
        Err(LogError::Other("the topics are a connector's: nothing is written to them".into()))
    }

    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: Offset,
        bytes_max: usize,
        wait: Duration,
    ) -> Result<Vec<Stored>, LogError> {
        let deadline = Instant::now() + wait;
        if topic == Topic::Snapshot {
            tokio::time::sleep_until(deadline).await;
            return Ok(Vec::new());
        }
        let lane = self.lane(partition)?;
        let mut reader = lane.reader.lock().await;
        // Whoever drops this read may have taken records with it: then the next one begins anew.
        let mut is_there = reader.next.take() == Some(from);
        if is_there && let Some(refused) = reader.refused.take() {
            return Err(refused);
        }
        let mut run = Run::default();
        while run.bytes < bytes_max && run.rows < RUN_ROWS_MAX {
            if !is_there {
                self.move_to(&mut reader, partition, from).await?;
                is_there = true;
            }
            let Some(consumer) = reader.consumer.take() else { break };
            let received = if run.last.is_none() {
                timeout_at(deadline, consumer.recv()).await.ok()
            } else {
                consumer.recv().now_or_never()
            };
            let taken = match received {
                None => Ok(false),
                Some(Ok(received)) => {
                    let offset = received.offset().cast_unsigned();
                    let taken = lane.take(&mut reader, offset, (received.key(), received.payload()), &mut run);
                    match taken.map_err(|error| foreign(&lane.table.topic, lane.partition, offset, error)) {
                        Ok(()) => Ok(true),
                        Err(error) if run.last.is_none() => Err(error),
                        Err(error) => {
                            reader.refused = Some(error);
                            Ok(false)
                        }
                    }
                }
                Some(Err(error)) if is_elsewhere(&error) && run.last.is_none() => {
                    is_there = false;
                    Ok(true)
                }
                Some(Err(error)) if run.last.is_some() || is_passing(&error) => Ok(run.last.is_none()),
                Some(Err(error)) => Err(self.broker.error(&error, consumer.context().trouble(&error))),
            };
            reader.consumer = Some(consumer);
            if !taken? {
                break;
            }
        }
        reader.next = Some(run.last.map_or(from, |last| last + 1));
        run.finish(&reader.order).map_err(|error| LogError::Other(error.to_string()))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), LogError> {
        if topic == Topic::Snapshot {
            return Ok((0, 0));
        }
        let lane = self.lane(partition)?;
        let (start, end) = self.broker.bounds(&lane.table.topic, lane.partition).await?;
        // A lane that is begun with what the topic still holds has no gap.
        Ok((if self.begin == Begin::Available { 0 } else { start }, end))
    }

    async fn last_control(&self, _topic: Topic, _partition: u32) -> Result<Option<(Offset, Control)>, LogError> {
        Ok(None)
    }

    async fn look_back(&self, _topic: Topic, _partition: u32, _look: &mut Look<'_>) -> Result<(), LogError> {
        Ok(())
    }

    async fn applied(&self, _topic: Topic, _partition: u32, _offset: Offset) -> Result<(), LogError> {
        Ok(())
    }

    async fn size_bytes(&self) -> Result<u64, LogError> {
        Ok(0)
    }
}

fn assign(broker: &Broker, consumer: &Client, topic: &str, partition: u32, from: Offset) -> Result<(), LogError> {
    let mut assigned = TopicPartitionList::new();
    let added =
        assigned.add_partition_offset(topic, partition.cast_signed(), rdkafka::Offset::Offset(from.cast_signed()));
    let done = added.and_then(|()| consumer.assign(&assigned));
    done.map_err(|error| broker.error(&error, (None, error.to_string())))
}

fn foreign(topic: &str, partition: u32, offset: Offset, source: DebeziumError) -> LogError {
    LogError::Debezium { topic: topic.to_owned(), partition, offset, source }
}

fn trimmed(topic: &str, partition: u32, wanted: Offset, start: Offset) -> LogError {
    LogError::DebeziumTrimmed { topic: topic.to_owned(), partition, wanted, start }
}
