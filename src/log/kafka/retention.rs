//! What the log forgets: records that are applied and older than the retention.
//!
//! The topics keep everything (`retention.ms=-1`), because a broker does not know what is applied.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::{broker::Broker, settings::Settings};
use crate::log::{LogError, Offset, Topic};

/// The retention of one topic.
pub(super) struct Retention {
    settings: Arc<Settings>,
    broker: Arc<Broker>,
    name: String,
    /// When each partition was last looked at.
    looked: Vec<Mutex<Option<Instant>>>,
}

impl Retention {
    pub(super) fn new(settings: &Arc<Settings>, broker: &Arc<Broker>, topic: Topic) -> Self {
        Retention {
            settings: Arc::clone(settings),
            broker: Arc::clone(broker),
            name: settings.topic(topic),
            looked: (0..settings.partitions).map(|_| Mutex::default()).collect(),
        }
    }

    /// Whether it is time to look what can be dropped of a partition that is applied up to `offset`.
    pub(super) fn is_due(&self, partition: u32, offset: Offset) -> bool {
        let Some(looked) = self.looked.get(partition as usize).filter(|_| offset > 0) else { return false };
        let mut looked = looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|looked| looked.elapsed() < self.settings.retention_every) {
            return false;
        }
        *looked = Some(Instant::now());
        true
    }

    /// Drops what is before `offset` and too old; where the partition begins then, if that is another place.
    pub(super) async fn drop_applied(&self, partition: u32, offset: Offset) -> Result<Option<Offset>, LogError> {
        let oldest_ms = (self.settings.now_ms)().saturating_sub(self.settings.retention_ms);
        let young = self.broker.since(&self.name, partition, oldest_ms.max(0)).await?;
        let (start, end) = self.broker.bounds(&self.name, partition).await?;
        let to = offset.min(young.unwrap_or(end));
        if to <= start {
            return Ok(None);
        }
        let start = self.broker.drop_before(&self.name, partition, to).await?;
        tracing::debug!(topic = self.name, partition, start, "dropped applied records");
        Ok(Some(start))
    }
}
