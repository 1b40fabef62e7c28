//! Dead letters, as operators see them: listed, shown, tried again, closed.
//!
//! The target's table is authoritative, and the target writes it with the rows; here it is read, and letters are
//! closed.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{StateError, Store, spelled::spelled};
use crate::model::{TableSchema, Version};

pub(super) const COLUMNS: &str = "id, source_table, key::text, sqlstate, error, \
    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
    to_char(renewed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
    attempts, version, topic, part, log_offset, state";

spelled! {
    /// What is to become of a row that was set aside.
    pub enum DeadLetterState: "state of a dead letter" {
        Open = "open",
        /// An operator has closed it: the row stays as it is at the target.
        Discarded = "discarded",
        /// A replay met it, and reads the row again at its end.
        Replay = "replay",
    }
}

/// A dead letter without the row's values.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    pub id: i64,
    /// The source table, with its database.
    pub table: String,
    pub key: Box<RawValue>,
    pub sqlstate: String,
    pub error: String,
    /// When it was set aside first.
    pub since: String,
    /// When it failed last, if it was tried again.
    pub renewed: Option<String>,
    /// How often it failed.
    pub attempts: i32,
    pub version: Version,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub state: DeadLetterState,
}

/// A row that was set aside.
#[derive(Debug)]
pub(crate) struct DeadRow {
    /// The schema that it had.
    pub schema: Arc<TableSchema>,
    /// The record's key, as JSON.
    pub key: String,
    /// The version at which it was set aside.
    pub version: Version,
    /// The envelope that shows it, as JSON.
    pub record: String,
}

/// Rows whose records are read at once: few, because a record may have megabytes.
const GROUP_ROWS_MAX: usize = 4;

/// Letters of one table that have one state and one cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterGroup {
    /// The source table, with its database.
    pub table: String,
    pub state: DeadLetterState,
    /// What the target said of one of them.
    pub error: String,
    pub letters: u64,
}

/// Which letters a command is about.
#[derive(Debug, Clone)]
pub enum Selection {
    Ids(Vec<i64>),
    /// Of a source table, with its database.
    Table(String),
    All,
}

/// What became of letters that were tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// The rows are at the target as the source has them.
    pub stored: u64,
    /// They failed again.
    pub failed: u64,
    /// They wait for another row.
    pub waiting: u64,
    /// Their table's key has changed since: they cannot be looked for.
    pub strange: u64,
}

impl Store {
    /// All letters, by table, state and cause.
    pub async fn dead_letters_by_cause(&self) -> Result<Vec<LetterGroup>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT source_table, state, min(error), count(*) FROM cutover.dead_letters WHERE pipeline = $1 \
                 GROUP BY source_table, state, sqlstate ORDER BY source_table, state, sqlstate",
                &[&self.pipeline],
            )
            .await?;
        let group = |row: &tokio_postgres::Row| {
            Ok(LetterGroup {
                table: row.get(0),
                state: DeadLetterState::read(row.get(1))?,
                error: row.get(2),
                letters: row.get::<_, i64>(3).cast_unsigned(),
            })
        };
        rows.iter().map(group).collect()
    }

    /// Letters in a state, oldest first.
    pub async fn dead_letters(
        &self,
        state: DeadLetterState,
        selection: &Selection,
    ) -> Result<Vec<DeadLetter>, StateError> {
        let session = self.session().await?;
        let (ids, table): (Option<&[i64]>, Option<&str>) = match selection {
            Selection::Ids(ids) => (Some(ids), None),
            Selection::Table(table) => (None, Some(table)),
            Selection::All => (None, None),
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM cutover.dead_letters WHERE pipeline = $1 AND state = $2 \
             AND ($3::bigint[] IS NULL OR id = ANY($3)) AND ($4::text IS NULL OR source_table = $4) ORDER BY id"
        );
        let rows = session.client()?.query(&sql, &[&self.pipeline, &state.name(), &ids, &table]).await?;
        rows.iter().map(dead_letter).collect()
    }

    /// One letter, whatever its state, with its record.
    pub async fn dead_letter(&self, id: i64) -> Result<Option<(DeadLetter, Box<RawValue>)>, StateError> {
        let session = self.session().await?;
        let sql = format!("SELECT {COLUMNS}, record::text FROM cutover.dead_letters WHERE pipeline = $1 AND id = $2");
        let row = session.client()?.query_opt(&sql, &[&self.pipeline, &id]).await?;
        row.map(|row| Ok((dead_letter(&row)?, raw(row.try_get(13)?)?))).transpose()
    }

    /// Closes letters; how many were open. Their rows stay as they are at the target.
    pub async fn discard_dead_letters(&self, ids: &[i64]) -> Result<u64, StateError> {
        let session = self.session().await?;
        let discarded = session
            .client()?
            .execute(
                "UPDATE cutover.dead_letters SET state = 'discarded', closed_at = clock_timestamp() \
                 WHERE pipeline = $1 AND id = ANY($2) AND state = 'open'",
                &[&self.pipeline, &ids],
            )
            .await?;
        Ok(discarded)
    }

    /// The newest letter of each row with a letter in a state, in groups whose records may be in memory together.
    pub(crate) async fn dead_row_groups(
        &self,
        state: DeadLetterState,
        ids: Option<&[i64]>,
    ) -> Result<Vec<Vec<i64>>, StateError> {
        let selection = ids.map_or(Selection::All, |ids| Selection::Ids(ids.to_vec()));
        let mut newest: BTreeMap<(String, String), (Version, i64)> = BTreeMap::new();
        for letter in self.dead_letters(state, &selection).await? {
            let found = (letter.version, letter.id);
            let known = newest.entry((letter.table, letter.key.get().to_owned())).or_insert(found);
            *known = found.max(*known);
        }
        let ids: Vec<i64> = newest.into_values().map(|(_, id)| id).collect();
        Ok(ids.chunks(GROUP_ROWS_MAX).map(<[i64]>::to_vec).collect())
    }

    /// The rows of letters in a state, by source table.
    pub(crate) async fn dead_rows(
        &self,
        state: DeadLetterState,
        ids: Option<&[i64]>,
    ) -> Result<BTreeMap<String, Vec<DeadRow>>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT s.definition::text, d.key_text, d.version, d.record::text FROM cutover.dead_letters d \
                 JOIN cutover.schemas s ON s.pipeline = d.pipeline AND s.id = d.schema_id \
                 WHERE d.pipeline = $1 AND d.state = $2 AND ($3::bigint[] IS NULL OR d.id = ANY($3)) ORDER BY d.version",
                &[&self.pipeline, &state.name(), &ids],
            )
            .await?;
        let mut tables: BTreeMap<String, Vec<DeadRow>> = BTreeMap::new();
        for row in rows {
            let schema: TableSchema = serde_json::from_str(row.try_get(0)?)
                .map_err(|error| StateError::unreadable("a stored schema", &error))?;
            let rows = tables.entry(schema.table.table.clone()).or_default();
            let (key, version, record) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
            let dead = DeadRow { schema: Arc::new(schema), key, version, record };
            // Several letters of a row are one row to read; the newest knows best what it was.
            rows.retain(|other| other.key != dead.key);
            rows.push(dead);
        }
        Ok(tables)
    }

    /// What became of these letters, of which each had failed this often.
    pub(crate) async fn retried_dead_letters(&self, before: &BTreeMap<i64, i32>) -> Result<Retried, StateError> {
        let ids: Vec<i64> = before.keys().copied().collect();
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT d.id, d.attempts, EXISTS (SELECT FROM cutover.waiting w WHERE w.pipeline = d.pipeline \
                 AND w.source_table = d.source_table AND md5(w.key_text) = md5(d.key_text)) \
                 FROM cutover.dead_letters d WHERE d.pipeline = $1 AND d.id = ANY($2) AND d.state = 'open'",
                &[&self.pipeline, &ids],
            )
            .await?;
        let mut retried = Retried { stored: (before.len() - rows.len()) as u64, ..Retried::default() };
        for row in rows {
            let failed = before.get(&row.try_get(0)?).is_some_and(|attempts| row.get::<_, i32>(1) > *attempts);
            match (failed, row.try_get(2)?) {
                (true, _) => retried.failed += 1,
                (false, true) => retried.waiting += 1,
                (false, false) => retried.strange += 1,
            }
        }
        Ok(retried)
    }
}

pub(super) fn dead_letter(row: &tokio_postgres::Row) -> Result<DeadLetter, StateError> {
    Ok(DeadLetter {
        id: row.try_get(0)?,
        table: row.try_get(1)?,
        key: raw(row.try_get(2)?)?,
        sqlstate: row.try_get(3)?,
        error: row.try_get(4)?,
        since: row.try_get(5)?,
        renewed: row.try_get(6)?,
        attempts: row.try_get(7)?,
        version: row.try_get(8)?,
        topic: row.try_get(9)?,
        partition: row.try_get(10)?,
        offset: row.try_get(11)?,
        state: DeadLetterState::read(row.try_get(12)?)?,
    })
}

pub(super) fn raw(json: String) -> Result<Box<RawValue>, StateError> {
    RawValue::from_string(json).map_err(|error| StateError::unreadable("a dead letter", &error))
}
