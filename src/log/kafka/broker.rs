//! Questions to the brokers: which topics there are, where they begin and end. Each blocks in librdkafka, for as long
//! as [`ANSWER_MAX`], and so runs beside the runtime.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode as Code},
};
use tokio::time::Instant;

use super::settings::{ANSWER_MAX, Context, Settings};
use crate::log::{LogError, Offset};

/// Errors that the client has kept for us while it waited for an answer, and how long a look for the next of them is.
const KEPT_ERRORS_MAX: usize = 100;
const KEPT_ERROR_WAIT: Duration = Duration::from_millis(20);
/// How soon a partition that has no leader at the moment is asked about again.
const LEADER_WAIT: Duration = Duration::from_millis(50);

/// A client for questions.
pub(super) struct Broker {
    pub(super) brokers: String,
    pub(super) admin: AdminClient<Context>,
    consumer: Arc<BaseConsumer<Context>>,
}

/// A topic, as the brokers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TopicShape {
    pub(super) partitions: u32,
    /// The least replicas that a partition has.
    pub(super) replicas: usize,
}

impl Broker {
    pub(super) fn new(settings: &Settings) -> Result<Self, LogError> {
        Ok(Broker {
            brokers: settings.url.brokers().to_owned(),
            admin: create(&settings.client(), Context::default())?,
            consumer: Arc::new(create(&settings.consumer(), Context::default())?),
        })
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl Fn(&BaseConsumer<Context>) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, LogError> {
        let consumer = Arc::clone(&self.consumer);
        let answered = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + ANSWER_MAX;
            loop {
                match question(&consumer) {
                    Err(error) if is_changing(&error) && Instant::now() < deadline => std::thread::sleep(LEADER_WAIT),
                    Err(error) => {
                        // What went wrong on the connection waits in the queue, and is told to the context.
                        for _ in 0..KEPT_ERRORS_MAX {
                            if consumer.poll(KEPT_ERROR_WAIT).is_none() {
                                break;
                            }
                        }
                        let trouble = consumer.context().trouble(&error);
                        return Err((error, trouble));
                    }
                    Ok(answer) => return Ok(answer),
                }
            }
        });
        match answered.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err((error, trouble))) => Err(self.error(&error, trouble)),
            Err(error) => Err(LogError::Other(format!("a question to the Kafka brokers ended early: {error}"))),
        }
    }

    /// What an error of librdkafka means for the pipeline.
    pub(super) fn error(&self, error: &KafkaError, trouble: (Option<Code>, String)) -> LogError {
        let (kept, reason) = trouble;
        let brokers = self.brokers.clone();
        if matches!(error.rdkafka_error_code(), Some(Code::UnknownTopicOrPartition | Code::UnknownTopic)) {
            return LogError::Other(
                "a topic of the log is not there; if it was deleted, restart the worker: it starts a new log at the \
                 position in the target"
                    .into(),
            );
        }
        match (error.rdkafka_error_code(), kept) {
            (Some(code), _) if is_refusal(code) => LogError::Refused { brokers, reason: error.to_string() },
            (_, Some(code)) if is_refusal(code) => LogError::Refused { brokers, reason },
            (Some(_) | None, Some(_) | None) => LogError::Unreachable { brokers, reason },
        }
    }

    /// The number of brokers.
    pub(super) async fn count(&self) -> Result<usize, LogError> {
        self.ask(|consumer| Ok(consumer.fetch_metadata(None, ANSWER_MAX)?.brokers().len())).await
    }

    /// Every topic, with its partitions.
    pub(super) async fn topics(&self) -> Result<Vec<(String, u32)>, LogError> {
        let read = |topic: &rdkafka::metadata::MetadataTopic| {
            (topic.name().to_owned(), u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX))
        };
        self.ask(move |consumer| Ok(consumer.fetch_metadata(None, ANSWER_MAX)?.topics().iter().map(read).collect()))
            .await
    }

    /// The topic; none if it does not exist.
    pub(super) async fn shape(&self, topic: &str) -> Result<Option<TopicShape>, LogError> {
        let name = topic.to_owned();
        self.ask(move |consumer| {
            let metadata = consumer.fetch_metadata(Some(&name), ANSWER_MAX)?;
            let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else { return Ok(None) };
            match topic.error().map(Code::from) {
                None => {}
                Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(None),
                Some(code) => return Err(KafkaError::MetadataFetch(code)),
            }
            let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            let partitions = u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX);
            Ok((partitions > 0).then_some(TopicShape { partitions, replicas }))
        })
        .await
    }

    /// The first offset that the partition holds and the one after its last.
    pub(super) async fn bounds(&self, topic: &str, partition: u32) -> Result<(Offset, Offset), LogError> {
        let topic = topic.to_owned();
        let (start, end) =
            self.ask(move |consumer| consumer.fetch_watermarks(&topic, partition.cast_signed(), ANSWER_MAX)).await?;
        Ok((start.cast_unsigned(), end.cast_unsigned()))
    }

    /// The first offset whose record is not older than `at_ms`; none if all are.
    pub(super) async fn since(&self, topic: &str, partition: u32, at_ms: i64) -> Result<Option<Offset>, LogError> {
        let topic = topic.to_owned();
        self.ask(move |consumer| {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_offset(&topic, partition.cast_signed(), rdkafka::Offset::Offset(at_ms))?;
            let found = consumer.offsets_for_times(asked, ANSWER_MAX)?;
            let element = found.elements().into_iter().next();
            element.as_ref().map_or(Ok(()), rdkafka::topic_partition_list::TopicPartitionListElem::error)?;
            Ok(element.and_then(|element| element.offset().to_raw()).and_then(|offset| u64::try_from(offset).ok()))
        })
        .await
    }

    /// Drops what is before `offset`; where the partition begins then.
    pub(super) async fn drop_before(&self, topic: &str, partition: u32, offset: Offset) -> Result<Offset, LogError> {
        let failed = |error: KafkaError| self.error(&error, (None, error.to_string()));
        let mut wanted = TopicPartitionList::new();
        let raw = rdkafka::Offset::Offset(offset.cast_signed());
        wanted.add_partition_offset(topic, partition.cast_signed(), raw).map_err(failed)?;
        let done = self.admin.delete_records(&wanted, &admin_options()).await.map_err(failed)?;
        let element = done.elements().into_iter().next();
        element
            .as_ref()
            .map_or(Ok(()), rdkafka::topic_partition_list::TopicPartitionListElem::error)
            .map_err(failed)?;
        Ok(element.and_then(|element| element.offset().to_raw()).map_or(offset, i64::cast_unsigned))
    }
}

/// Whether a topic is just being made or a partition gets another leader.
fn is_changing(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(
            Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::UnknownPartition
        )
    )
}

/// Whether the brokers know us and say no: asking again does not help.
pub(super) fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
    )
}

pub(super) fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX))
}

/// Lets clients go, beside the runtime: they wait for their threads.
pub(super) async fn put_away<T: Send + 'static>(clients: T) {
    if let Err(error) = tokio::task::spawn_blocking(move || drop(clients)).await {
        tracing::warn!(%error, "a Kafka client did not end well");
    }
}

/// A client of librdkafka.
pub(super) fn create<C, T: rdkafka::config::FromClientConfigAndContext<C>>(
    config: &ClientConfig,
    context: C,
) -> Result<T, LogError>
where
    C: rdkafka::ClientContext,
{
    T::from_config_and_context(config, context).map_err(|error| {
        // A property's value may be a secret: its name is enough.
        let what = match error {
            KafkaError::ClientConfig(_, what, key, _) => format!("{what} ({key})"),
            error => error.to_string(),
        };
        LogError::Client { reason: what }
    })
}
