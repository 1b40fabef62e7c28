//! What other systems were told of each dead letter.
//!
//! **Invariant:** only the holder of the lease reads what is new and stores what was told.

use serde_json::value::RawValue;

use super::{
    StateError, Store,
    dead_letters::{self, DeadLetter},
};

/// What is to be told, and what is to be stored when it is.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Of two records of a dead letter the one with the higher number counts.
    pub sequence: i64,
    pub changed: Vec<Changed>,
    pub cleared: Vec<Cleared>,
}

/// A dead letter that is new, renewed or discarded.
#[derive(Debug)]
pub(crate) struct Changed {
    pub dead_letter: DeadLetter,
    /// The row's envelope.
    pub record: Box<RawValue>,
    mark: i64,
}

/// A dead letter that is no longer there: its row has changed for good since.
#[derive(Debug)]
pub(crate) struct Cleared {
    pub id: i64,
    /// The source table, with its database.
    pub table: String,
    pub key: Box<RawValue>,
}

impl News {
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.cleared.is_empty()
    }
}

/// Dead letters that are told at once, and about the bytes of their rows.
const DEAD_LETTERS_MAX: i64 = 100;
const BYTES_MAX: i64 = 4 << 20;

/// Only the holder of the lease tells anything.
const HOLDS: &str = "EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $2)";

impl Store {
    /// What other systems have not been told, up to a bound.
    pub(crate) async fn dead_letter_news(&self, lease_epoch: i64) -> Result<News, StateError> {
        let columns = dead_letters::COLUMNS;
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
        let changed = client.query(&changed, &[&self.pipeline, &lease_epoch, &DEAD_LETTERS_MAX, &BYTES_MAX]).await?;
        let gone = client.query(&gone, &[&self.pipeline, &lease_epoch, &DEAD_LETTERS_MAX]).await?;
        let mut news = News::default();
        if changed.is_empty() && gone.is_empty() {
            return Ok(news);
        }
        // After what was read: whoever reads later has the higher numbers.
        news.sequence = client.query_one("SELECT nextval('cutover.dead_letters_id_seq')", &[]).await?.try_get(0)?;
        for row in changed {
            let (dead_letter, record) = (dead_letters::dead_letter(&row)?, dead_letters::raw(row.try_get(13)?)?);
            news.changed.push(Changed { dead_letter, record, mark: row.try_get(14)? });
        }
        for row in gone {
            let key = dead_letters::raw(row.try_get(2)?)?;
            news.cleared.push(Cleared { id: row.try_get(0)?, table: row.try_get(1)?, key });
        }
        Ok(news)
    }

    /// Stores that these were told.
    pub(crate) async fn dead_letters_told(&self, lease_epoch: i64, news: &News) -> Result<(), StateError> {
        let ids: Vec<i64> = news.changed.iter().map(|changed| changed.dead_letter.id).collect();
        let marks: Vec<i64> = news.changed.iter().map(|changed| changed.mark).collect();
        let cleared: Vec<i64> = news.cleared.iter().map(|cleared| cleared.id).collect();
        let text = |of: fn(&DeadLetter) -> &str| -> Vec<&str> {
            news.changed.iter().map(|changed| of(&changed.dead_letter)).collect()
        };
        let (states, tables) = (text(|dead_letter| dead_letter.state.name()), text(|dead_letter| &dead_letter.table));
        let keys = text(|dead_letter| dead_letter.key.get());
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
            .execute(&sql, &[&self.pipeline, &lease_epoch, &cleared, &ids, &states, &marks, &tables, &keys])
            .await?;
        Ok(())
    }

    /// Nothing has been told: the topic is a new one.
    pub(crate) async fn forget_dead_letters_told(&self) -> Result<(), StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        client.execute("DELETE FROM cutover.dead_letter_copies WHERE pipeline = $1", &[&self.pipeline]).await?;
        Ok(())
    }
}
