//! The topic `<name>.events`: what happens to the pipeline, for other systems to follow.
//!
//! What enters are numbered events; what leaves is one record each: the event's JSON, under the pipeline's name as its
//! key, all in partition 0. Invariants: an event is sent once the one before it is acknowledged, so that no number
//! comes before a lower one's first; `append` answers when every replica in sync has all of them. The topic's size is
//! bounded. One that is there already is used as it is, unless it is compacted. Deliberately absent: reading, and
//! fencing: a late writer repeats events, with the numbers that they have.

use async_trait::async_trait;
use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseRecord, ProducerContext, ThreadedProducer},
};
use tokio::sync::{Mutex, oneshot};

use super::{
    broker::{Broker, create, put_away},
    settings::{Context, Settings},
    topics::{self, EVENT_BYTES_MAX, NewTopics},
};
use crate::{
    log::LogError,
    model::Problem,
    observe::{EventSink, EventSinkError, NumberedEvent},
};

const PARTITION: i32 = 0;

type Producer = ThreadedProducer<Answers>;

/// The topic of one pipeline's events.
pub struct KafkaEvents {
    settings: Settings,
    topic: String,
    /// None before the first append, and after one that failed.
    producer: Mutex<Option<Producer>>,
}

impl std::fmt::Debug for KafkaEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaEvents").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaEvents {
    /// Connects to nothing: the topic is made when the first event comes.
    pub fn new(settings: Settings) -> Self {
        let topic = settings.events();
        KafkaEvents { settings, topic, producer: Mutex::default() }
    }

    async fn open(&self) -> Result<Producer, LogError> {
        let broker = Broker::new(&self.settings)?;
        let prepared = prepare(&broker, &self.settings).await;
        put_away(broker).await;
        prepared?;
        create(&self.settings.producer(EVENT_BYTES_MAX), Answers(Context::default()))
    }

    async fn send(&self, producer: &Producer, event: &NumberedEvent) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let line = event.line();
        let record = BaseRecord::with_opaque_to(&self.topic, Box::new(answer))
            .partition(PARTITION)
            .key(&self.settings.name)
            .payload(&line);
        producer.send(record).map_err(|(error, _)| error.to_string())?;
        answered.await.unwrap_or_else(|_| Err("the client ended early".into()))
    }
}

#[async_trait]
impl EventSink for KafkaEvents {
    async fn append(&self, events: &[NumberedEvent]) -> Result<(), EventSinkError> {
        let failed = |reason| EventSinkError { place: format!("topic {}", self.topic), reason };
        let mut held = self.producer.lock().await;
        let producer = match held.take() {
            Some(producer) => producer,
            None => self.open().await.map_err(|error| failed(error.to_string()))?,
        };
        let producer = held.insert(producer);
        for event in events {
            if let Err(reason) = self.send(producer, event).await {
                // The topic may be gone, or the client beyond repair.
                put_away(held.take()).await;
                return Err(failed(reason));
            }
        }
        Ok(())
    }
}

/// Brings the brokers' answers to those who wait for them.
struct Answers(Context);

impl ClientContext for Answers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = Box<oneshot::Sender<Result<(), String>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, answer: Self::DeliveryOpaque) {
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(self.0.trouble(error).1),
        };
        // Nobody waits any more when the worker stops.
        drop(answer.send(outcome));
    }
}

/// Makes the topic if it is not there, and refuses one that would lose events.
async fn prepare(broker: &Broker, settings: &Settings) -> Result<(), LogError> {
    match examine(broker, settings).await? {
        Some(problems) if problems.is_empty() => Ok(()),
        Some(problems) => Err(LogError::Topics(problems)),
        None => topics::make(broker, &NewTopics::of_events(settings), false).await,
    }
}

/// What is wrong with the topic; none if there is no such topic.
pub(super) async fn examine(broker: &Broker, settings: &Settings) -> Result<Option<Vec<Problem>>, LogError> {
    let topic = settings.events();
    if broker.shape(&topic).await?.is_none() {
        return Ok(None);
    }
    let policy = topics::describe(broker, &topic).await?.remove("cleanup.policy").unwrap_or_default();
    if !policy.contains("compact") {
        return Ok(Some(Vec::new()));
    }
    Ok(Some(vec![Problem {
        what: format!("topic {topic} has cleanup.policy={policy}: compaction keeps the last event alone"),
        fix: format!("kafka-configs.sh --alter --topic {topic} --add-config cleanup.policy=delete"),
    }]))
}
