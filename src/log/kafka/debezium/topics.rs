//! The topics of a connector, before it is known how they are applied: which tables there are, and what their records
//! show.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rdkafka::{consumer::Consumer as _, message::Message as _};
use tokio::{sync::Mutex, time::timeout};

use super::{Client, DebeziumLog, Memory, Table, TablePartition, assign, foreign};
use crate::log::{
    LogError, Offset,
    debezium::{DebeziumConfig, DebeziumError, DebeziumMessage, Sample, message},
    kafka::{
        broker::{Broker, create},
        reader::is_passing,
        settings::{Context, Settings},
    },
};

/// How many records at the end of a partition are looked at for one that shows the table, and how many in all.
const LOOK_RECORDS: u64 = 64;
const LOOK_RECORDS_MAX: u64 = 4096;
const LOOK_WAIT: Duration = Duration::from_secs(5);

/// The topics of a connector, before it is known how they are applied.
pub struct DebeziumTopics {
    settings: Arc<Settings>,
    config: DebeziumConfig,
    broker: Arc<Broker>,
}

impl std::fmt::Debug for DebeziumTopics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebeziumTopics").field("config", &self.config).finish_non_exhaustive()
    }
}

impl DebeziumTopics {
    /// # Errors
    /// When the client cannot be made.
    pub fn new(settings: Settings, config: DebeziumConfig) -> Result<Self, LogError> {
        let (settings, broker) = (Arc::new(settings.clone()), Arc::new(Broker::new(&settings)?));
        Ok(DebeziumTopics { settings, config, broker })
    }

    /// The tables that have topics, with how many partitions each has.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse.
    pub async fn tables(&self) -> Result<BTreeMap<String, u32>, LogError> {
        let found = self.broker.topics().await?;
        let table = |(topic, partitions): (String, u32)| Some((self.config.table(&topic)?.to_owned(), partitions));
        Ok(found.into_iter().filter_map(table).collect())
    }

    /// What the newest record that shows it says of a table; none while there is no such record.
    ///
    /// # Errors
    /// When the brokers do not answer or refuse, or when the record cannot be read.
    pub async fn sample(&self, table: &str, partitions: u32) -> Result<Option<Sample>, LogError> {
        let topic = self.config.topic(table);
        for partition in 0..partitions {
            let (start, end) = self.broker.bounds(&topic, partition).await?;
            let (mut to, least) = (end, end.saturating_sub(LOOK_RECORDS_MAX).max(start));
            while to > least {
                let from = to.saturating_sub(LOOK_RECORDS).max(least);
                if let Some(sample) = self.newest_sample(&topic, partition, from, to).await? {
                    return Ok(Some(sample));
                }
                to = from;
            }
        }
        Ok(None)
    }

    async fn newest_sample(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Sample>, LogError> {
        let consumer: Client = create(&self.settings.foreign_consumer(), Context::default())?;
        assign(&self.broker, &consumer, topic, partition, from)?;
        let mut found = None;
        let mut next = from;
        while next < to {
            let received = match timeout(LOOK_WAIT, consumer.recv()).await {
                Ok(Ok(received)) => received,
                Ok(Err(error)) if is_passing(&error) => continue,
                Ok(Err(error)) => return Err(self.broker.error(&error, consumer.context().trouble(&error))),
                // What is left may be a broker's own records.
                Err(_) => break,
            };
            let offset = received.offset().cast_unsigned();
            if offset >= to {
                break;
            }
            next = offset + 1;
            let refuse = |error: DebeziumError| foreign(topic, partition, offset, error);
            if let DebeziumMessage::Change(change) = message(received.key(), received.payload()).map_err(refuse)? {
                found = Sample::of(&change).map_err(refuse)?.or(found);
            }
        }
        Ok(found)
    }

    /// The log of these tables, each with the number of its first lane.
    pub fn log(&self, epoch: String, tables: Vec<(u32, Table)>, memory: Arc<dyn Memory>) -> DebeziumLog {
        let mut lanes = BTreeMap::new();
        for (first, table) in tables {
            let table = Arc::new(table);
            for partition in 0..table.partitions {
                lanes.insert(
                    first + partition,
                    TablePartition { table: Arc::clone(&table), partition, reader: Mutex::default() },
                );
            }
        }
        DebeziumLog {
            settings: Arc::clone(&self.settings),
            broker: Arc::clone(&self.broker),
            begin: self.config.begin,
            epoch,
            lanes,
            memory,
        }
    }
}
