//! The dead letters' copy on Kafka: the topic `<name>.dlq`, for other systems to follow.
//!
//! ```text
//! cutover.dead_letters ──► what is not told yet ──► topic ──► cutover.dead_letter_copies
//! ```
//!
//! What enters is the target's table, which is authoritative; what leaves is a record for each letter that is new,
//! renewed, discarded or cleared. **Invariant:** what was told is stored after the brokers have it, so that a worker
//! that is killed at any moment leaves nothing out and may repeat. Deliberately absent: letters that came and were
//! cleared between two looks.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    log::{LogError, kafka::DeadLetterTopic},
    observe::{Backoff, Halts, Machine},
    state::{
        StateError, Store,
        dead_letter_copies::{Changed, News},
        dead_letters::DeadLetter,
    },
};

/// What this part is called where it is in trouble.
pub(super) const PART: &str = "dead-letter topic";

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A worker that stops has this long to tell what is left.
const LAST_LOOK_MAX: Duration = Duration::from_secs(3);

/// Why letters were not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("a dead letter cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A letter as the topic shows it.
#[derive(Serialize)]
struct Shown<'a> {
    /// Of two records of a letter the one with the higher number counts.
    sequence: i64,
    #[serde(flatten)]
    letter: &'a DeadLetter,
    /// The row's envelope; null if the topic does not take a record of that size.
    record: Option<&'a RawValue>,
}

/// The last that the topic shows of a letter: its row has changed for good since.
#[derive(Serialize)]
struct Cleared<'a> {
    sequence: i64,
    id: i64,
    table: &'a str,
    key: &'a RawValue,
    state: &'static str,
}

/// Keeps the topic up to date until `stop`, and a last time then, as long as the lease of this epoch is held.
pub(super) async fn carry(
    config: Arc<Config>,
    store: Arc<Store>,
    lease_epoch: i64,
    halts: Arc<Halts>,
    stop: CancellationToken,
) {
    let carrier = Carrier { config, store, lease_epoch };
    let (mut topic, mut backoff) = (None, Backoff::default());
    while !stop.is_cancelled() {
        let started = Instant::now();
        let pause = match carrier.look(&mut topic).await {
            Ok(()) => {
                halts.well(PART);
                LOOK_EVERY
            }
            Err(error) => {
                halts.trouble(PART, &error.to_string());
                topic = None;
                backoff.next(&Machine, started.elapsed()).max(LOOK_EVERY)
            }
        };
        tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
    }
    if let Ok(Err(error)) = tokio::time::timeout(LAST_LOOK_MAX, carrier.look(&mut topic)).await {
        tracing::warn!(%error, "what is new of the dead letters comes to their topic with the next start");
    }
}

struct Carrier {
    config: Arc<Config>,
    store: Arc<Store>,
    lease_epoch: i64,
}

impl Carrier {
    /// Tells what is new, until nothing is.
    async fn look(&self, topic: &mut Option<DeadLetterTopic>) -> Result<(), TellError> {
        let topic = match topic {
            Some(topic) => topic,
            None => topic.insert(self.open().await?),
        };
        loop {
            let news = self.store.dead_letter_news(self.lease_epoch).await?;
            if news.is_empty() {
                return Ok(());
            }
            topic.send(&records(&news, |bytes| topic.takes(bytes))?).await?;
            self.store.dead_letters_told(self.lease_epoch, &news).await?;
        }
    }

    /// The topic, made if it is missing: then it has been told nothing.
    async fn open(&self) -> Result<DeadLetterTopic, TellError> {
        let mut topic = DeadLetterTopic::new(&self.config.name, &self.config.log)?;
        if !topic.exists().await? {
            self.store.forget_dead_letters_told().await?;
            topic.make().await?;
        }
        Ok(topic)
    }
}

/// What the topic is told of these letters: keys and values.
fn records(news: &News, fits: impl Fn(usize) -> bool) -> Result<Vec<(String, String)>, serde_json::Error> {
    let (mut records, sequence) = (Vec::new(), news.sequence);
    for Changed { dead_letter: letter, record, .. } in &news.changed {
        let shown = |record| serde_json::to_string(&Shown { sequence, letter, record });
        let mut value = shown(Some(&**record))?;
        if !fits(value.len()) {
            value = shown(None)?;
        }
        records.push((key(letter.id), value));
    }
    for gone in &news.cleared {
        let cleared = Cleared { sequence, id: gone.id, table: &gone.table, key: &gone.key, state: "cleared" };
        records.push((key(gone.id), serde_json::to_string(&cleared)?));
    }
    Ok(records)
}

/// The key of a letter's records.
fn key(id: i64) -> String {
    format!("{{\"id\":{id}}}")
}
