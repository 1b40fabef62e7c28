//! The group of processes that share the partitions.
//!
//! What leaves is which partitions this process gains and loses. The group says who should work on a partition; who may
//! is for the target to say (rule 19): a member that hears late, because it was paused or cut off, is refused there.
//! Deliberately absent: reading and committing through the group. Where a partition goes on is in the target.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as channel,
    },
    time::Duration,
};

use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance},
    error::KafkaError,
};
use tokio::sync::mpsc;

use super::{
    broker::{create, is_refusal},
    settings::{Context, Settings},
};
use crate::log::{LogError, Topic};

/// Changes that are on their way to this process.
const CHANGES_WAITING_MAX: usize = 16;
/// How long the group waits for a process to finish the batches of a partition that it is to give up.
const FINISH_MAX: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How soon a member that is refused asks again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What becomes of this process's share.
#[derive(Debug)]
pub enum Change {
    Gained(Vec<u32>),
    /// The group waits for a while until the [`Finished`] is dropped.
    Lost(Vec<u32>, Finished),
    /// The group cannot be joined; it is tried again.
    Refused(LogError),
}

/// Dropped when the partitions that were lost rest.
#[derive(Debug)]
pub struct Finished {
    _told_by_its_end: channel::Sender<()>,
}

/// This process's place in the group.
#[derive(Debug)]
pub struct Group {
    changes: mpsc::Receiver<Change>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Group {
    /// Joins the group of a pipeline.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn join(settings: &Settings) -> Result<Self, LogError> {
        let (sender, changes) = mpsc::channel(CHANGES_WAITING_MAX);
        let membership = Membership { context: Context::default(), changes: sender };
        let consumer: BaseConsumer<Membership> = create(&settings.member(), membership)?;
        let client = |error: KafkaError| LogError::Client { reason: error.to_string() };
        consumer.subscribe(&[&settings.topic(Topic::Changes)]).map_err(client)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, brokers) = (Arc::clone(&stop), settings.url.brokers().to_owned());
        // A thread of its own: the group waits inside of a poll.
        let thread =
            std::thread::Builder::new().name("group".into()).spawn(move || follow(&consumer, &brokers, &stopped));
        let thread = thread.map_err(|error| LogError::Client { reason: error.to_string() })?;
        Ok(Group { changes, stop, thread })
    }

    /// The next change; none if the group cannot be followed any more.
    pub async fn changed(&mut self) -> Option<Change> {
        self.changes.recv().await
    }

    /// Leaves the group, so that others have the partitions at once.
    pub async fn leave(self) {
        let Group { changes, stop, thread } = self;
        drop(changes);
        stop.store(true, Ordering::Release);
        if tokio::task::spawn_blocking(move || thread.join()).await.is_err() {
            tracing::warn!("the group of processes was not left well; the brokers will notice");
        }
    }
}

/// Follows the group until it is to stop, and leaves it.
fn follow(consumer: &BaseConsumer<Membership>, brokers: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        // Nothing is fetched through this consumer; a record that comes all the same is read elsewhere.
        let Some(Err(error)) = consumer.poll(POLL_EVERY) else { continue };
        tracing::debug!(%error, "the group of processes");
        if let Some(code) = error.rdkafka_error_code().filter(|code| is_refusal(*code)) {
            let error = LogError::Refused { brokers: brokers.to_owned(), reason: code.to_string() };
            // Whoever has many changes to see to hears of the next refusal.
            let _ = consumer.context().changes.try_send(Change::Refused(error));
            std::thread::sleep(REFUSED_PAUSE);
        }
    }
}

/// Brings what the group says to this process.
struct Membership {
    context: Context,
    changes: mpsc::Sender<Change>,
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ConsumerContext for Membership {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Revoke(list) if list.count() > 0 => {
                let (sender, finished) = channel::channel();
                let change = Change::Lost(partitions(list), Finished { _told_by_its_end: sender });
                // Partitions of a member that was not heard of for too long are others' already: nobody waits.
                if self.changes.blocking_send(change).is_ok() && !consumer.assignment_lost() {
                    let _ = finished.recv_timeout(FINISH_MAX);
                }
            }
            Rebalance::Assign(_) | Rebalance::Revoke(_) | Rebalance::Error(_) => {}
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) if list.count() > 0 => {
                if let Err(error) = consumer.pause(list) {
                    tracing::debug!(%error, "records may be fetched for nothing");
                }
                // A receiver that is gone has left the group.
                let _ = self.changes.blocking_send(Change::Gained(partitions(list)));
            }
            Rebalance::Assign(_) | Rebalance::Revoke(_) | Rebalance::Error(_) => {}
        }
    }
}

fn partitions(list: &TopicPartitionList) -> Vec<u32> {
    list.elements().iter().map(|element| element.partition().cast_unsigned()).collect()
}
