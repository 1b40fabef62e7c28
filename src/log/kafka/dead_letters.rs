//! The topic `<name>.dlq`: dead letters for other systems to follow.
//!
//! What enters is keyed records, in order; `send` answers when the brokers have them all. The topic has one partition
//! and is compacted: the newest record of each key stays. Deliberately absent: reading it, and the place that records
//! of the log name; the pipeline never looks here, and what a late writer sends is told apart by the sequence inside
//! the record.

use std::sync::Arc;

use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::time::Instant;

use super::{
    MADE_WAIT,
    broker::{Broker, create},
    settings::{ANSWER_MAX, Context, Settings},
    topics::{self, NewTopics, RECORD_OVERHEAD_BYTES},
};
use crate::log::{LogConfig, LogError};

/// A topic for dead letters, and its writer.
pub struct DeadLetterTopic {
    name: String,
    settings: Arc<Settings>,
    broker: Broker,
    /// What the topic takes as one record.
    record_bytes_max: u64,
    producer: Option<FutureProducer<Context>>,
}

impl std::fmt::Debug for DeadLetterTopic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetterTopic").field("name", &self.name).finish_non_exhaustive()
    }
}

impl DeadLetterTopic {
    /// The topic of a pipeline. Nothing is asked of the brokers yet.
    ///
    /// # Errors
    /// When no client can be made of the configuration.
    pub fn new(pipeline: &str, config: &LogConfig) -> Result<Self, LogError> {
        let settings = Settings::new(pipeline, config).map_err(|reason| LogError::Client { reason })?;
        let (name, broker) = (settings.dead_letters(), Broker::new(&settings)?);
        Ok(DeadLetterTopic { name, settings: Arc::new(settings), broker, record_bytes_max: 0, producer: None })
    }

    /// Whether the topic is there, made by us or by somebody else.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn exists(&mut self) -> Result<bool, LogError> {
        if self.broker.shape(&self.name).await?.is_none() {
            return Ok(false);
        }
        let config = topics::describe(&self.broker, &self.name).await?;
        let bytes = config.get("max.message.bytes").and_then(|value| value.parse().ok());
        self.record_bytes_max = bytes.unwrap_or(topics::RECORD_BYTES);
        Ok(true)
    }

    /// Makes the topic, and waits until it is there.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn make(&mut self) -> Result<(), LogError> {
        topics::make(&self.broker, &NewTopics::of_dead_letters(&self.settings), false).await?;
        let deadline = Instant::now() + ANSWER_MAX;
        while !self.exists().await? {
            if Instant::now() >= deadline {
                let reason = format!("topic {} was created and is not there yet", self.name);
                return Err(LogError::Unreachable { brokers: self.broker.brokers.clone(), reason });
            }
            tokio::time::sleep(MADE_WAIT).await;
        }
        Ok(())
    }

    /// Whether a record of this size fits.
    pub fn takes(&self, bytes: usize) -> bool {
        bytes as u64 + RECORD_OVERHEAD_BYTES <= self.record_bytes_max
    }

    /// Sends records of key and value. `Ok` means that they are durable, in this order.
    ///
    /// # Errors
    /// When the brokers do not take them; any of them may be there nevertheless.
    pub async fn send(&mut self, records: &[(String, String)]) -> Result<(), LogError> {
        let sent = self.queue(records).await;
        if sent.is_err()
            && let Some(producer) = self.producer.take()
        {
            // It waits for its threads, and what it still holds is sent again by another one.
            drop(tokio::task::spawn_blocking(move || drop(producer)));
        }
        sent
    }

    async fn queue(&mut self, records: &[(String, String)]) -> Result<(), LogError> {
        let producer = match &self.producer {
            Some(producer) => producer,
            None => {
                let config = self.settings.producer(self.record_bytes_max);
                self.producer.insert(create(&config, Context::default())?)
            }
        };
        let failed = |error| self.broker.error(&error, (None, error.to_string()));
        let mut deliveries = Vec::new();
        for (key, value) in records {
            let record = FutureRecord::to(&self.name).partition(0).key(key).payload(value);
            deliveries.push(producer.send_result(record).map_err(|(error, _)| failed(error))?);
        }
        for delivery in deliveries {
            match delivery.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => return Err(failed(error)),
                Err(_) => return Err(LogError::Other(format!("the producer for {} ended early", self.name))),
            }
        }
        Ok(())
    }
}
