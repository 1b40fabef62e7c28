//! The dead letters' copy on Kafka: the topic `<name>.dlq`, for other systems to follow.
//!
//! ```text
//! cutover.dead_letters ──► what is not told yet ──► topic ──► cutover.dead_letter_copies
//! ```
//!
//! What enters is the target's table, which is authoritative; what leaves is a record for each letter that is new, renewed,
//! discarded or cleared. **Invariant:** what was told is stored after the brokers have it, so that a worker that is killed at any
//! moment leaves nothing out and may repeat. Deliberately absent: letters that came and were cleared between two looks.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    letters::{self, Letter},
    store::Store,
};
use crate::{
    config::Config,
    database::postgres::PgError,
    log::{LogError, kafka::DeadLetterTopic},
    observe::{Backoff, Halts, Machine},
};

/// What this part is called where it is in trouble.
pub(super) const PART: &str = "dead-letter topic";

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Letters that are told at once, and about the bytes of their rows.
const LETTERS_MAX: i64 = 100;
const BYTES_MAX: i64 = 4 << 20;
/// A worker that stops has this long to tell what is left.
const LAST_LOOK_MAX: Duration = Duration::from_secs(3);

/// Why letters were not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("a dead letter cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A letter as the topic shows it.
#[derive(Serialize)]
struct Shown<'a> {
    /// Of two records of a letter the one with the higher number counts.
    sequence: i64,
    #[serde(flatten)]
    letter: &'a Letter,
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

/// What is to be told, and what is to be stored when it is.
#[derive(Default)]
struct News {
    records: Vec<(String, String)>,
    shown: Vec<(Letter, i64)>,
    cleared: Vec<i64>,
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
            let news = self.store.letter_news(self.lease_epoch, |bytes| topic.takes(bytes)).await?;
            if news.records.is_empty() {
                return Ok(());
            }
            topic.send(&news.records).await?;
            self.store.letters_told(self.lease_epoch, &news).await?;
        }
    }

    /// The topic, made if it is missing: then it has been told nothing.
    async fn open(&self) -> Result<DeadLetterTopic, TellError> {
        let mut topic = DeadLetterTopic::new(&self.config.name, &self.config.log)?;
        if !topic.exists().await? {
            self.store.forget_letters_told().await?;
            topic.make().await?;
        }
        Ok(topic)
    }
}

/// Only the holder of the lease tells anything.
const HOLDS: &str = "EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $2)";

impl Store {
    /// What the topic has not been told, up to a bound.
    async fn letter_news(&self, lease_epoch: i64, fits: impl Fn(usize) -> bool + Send) -> Result<News, TellError> {
        let columns = letters::COLUMNS;
        let changed = format!(
            "SELECT x.* FROM (SELECT w.*, sum(octet_length(w.record)) OVER (ORDER BY w.id) - octet_length(w.record) AS before \
               FROM (SELECT {columns}, record::text, greatest(id, mark) FROM cutover.dead_letters d \
                 WHERE d.pipeline = $1 AND d.state IN ('open', 'discarded') AND {HOLDS} AND NOT EXISTS ( \
                   SELECT FROM cutover.dead_letter_copies c WHERE c.pipeline = d.pipeline AND c.id = d.id \
                     AND c.mark = greatest(d.id, d.mark) AND c.state = d.state) \
                 ORDER BY d.id LIMIT $3) w) x \
             WHERE x.before < $4 ORDER BY x.id"
        );
        let gone = format!(
            "SELECT c.id, c.source_table, c.key::text FROM cutover.dead_letter_copies c WHERE c.pipeline = $1 AND {HOLDS} \
             AND NOT EXISTS (SELECT FROM cutover.dead_letters d WHERE d.pipeline = c.pipeline AND d.id = c.id) \
             ORDER BY c.id LIMIT $3"
        );
        let session = self.session().await?;
        let client = session.client()?;
        let changed = client.query(&changed, &[&self.pipeline, &lease_epoch, &LETTERS_MAX, &BYTES_MAX]).await;
        let changed = changed.map_err(PgError::from)?;
        let gone = client.query(&gone, &[&self.pipeline, &lease_epoch, &LETTERS_MAX]).await.map_err(PgError::from)?;
        let mut news = News::default();
        if changed.is_empty() && gone.is_empty() {
            return Ok(news);
        }
        // After what was read: whoever reads later has the higher numbers.
        let sequence = client.query_one("SELECT nextval('cutover.dead_letters_id_seq')", &[]).await;
        let sequence = sequence.and_then(|row| row.try_get(0)).map_err(PgError::from)?;
        for row in changed {
            let text = |at: usize| row.try_get::<_, String>(at).map_err(PgError::from);
            let (letter, record) = (letters::letter(&row)?, letters::raw(text(13)?)?);
            let shown = |record| serde_json::to_string(&Shown { sequence, letter: &letter, record });
            let mut value = shown(Some(&*record))?;
            if !fits(value.len()) {
                value = shown(None)?;
            }
            news.records.push((key(letter.id), value));
            news.shown.push((letter, row.try_get(14).map_err(PgError::from)?));
        }
        for row in gone {
            let text = |at: usize| row.try_get::<_, String>(at).map_err(PgError::from);
            let id = row.try_get(0).map_err(PgError::from)?;
            let (table, key_of_row) = (text(1)?, letters::raw(text(2)?)?);
            let cleared = Cleared { sequence, id, table: &table, key: &key_of_row, state: "cleared" };
            news.records.push((key(id), serde_json::to_string(&cleared)?));
            news.cleared.push(id);
        }
        Ok(news)
    }

    /// Stores what the topic has been told.
    async fn letters_told(&self, lease_epoch: i64, news: &News) -> Result<(), PgError> {
        let ids: Vec<i64> = news.shown.iter().map(|(letter, _)| letter.id).collect();
        let marks: Vec<i64> = news.shown.iter().map(|(_, mark)| *mark).collect();
        let text = |of: fn(&Letter) -> &str| -> Vec<&str> { news.shown.iter().map(|(letter, _)| of(letter)).collect() };
        let (states, tables) = (text(|letter| &letter.state), text(|letter| &letter.table));
        let keys = text(|letter| letter.key.get());
        let sql = format!(
            "WITH cleared AS (DELETE FROM cutover.dead_letter_copies WHERE pipeline = $1 AND id = ANY($3) AND {HOLDS}) \
             INSERT INTO cutover.dead_letter_copies (pipeline, id, state, mark, source_table, key) \
             SELECT $1, x.id, x.state, x.mark, x.source_table, x.key::json \
             FROM unnest($4::bigint[], $5::text[], $6::bigint[], $7::text[], $8::text[]) x(id, state, mark, source_table, key) \
             WHERE {HOLDS} \
             ON CONFLICT (pipeline, id) DO UPDATE SET state = excluded.state, mark = excluded.mark"
        );
        let session = self.session().await?;
        session
            .client()?
            .execute(&sql, &[&self.pipeline, &lease_epoch, &news.cleared, &ids, &states, &marks, &tables, &keys])
            .await?;
        Ok(())
    }

    /// The topic is a new one.
    async fn forget_letters_told(&self) -> Result<(), PgError> {
        let session = self.session().await?;
        let client = session.client()?;
        client.execute("DELETE FROM cutover.dead_letter_copies WHERE pipeline = $1", &[&self.pipeline]).await?;
        Ok(())
    }
}

/// The key of a letter's records.
fn key(id: i64) -> String {
    format!("{{\"id\":{id}}}")
}
