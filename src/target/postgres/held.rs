//! Rows that are set aside: dead letters, which fence their key, and rows that wait for another.
//!
//! A dead letter at a version keeps older events of its row out, until a newer one applies and clears it
//! (CORRECTNESS rule 23). What is here is a copy of the target's tables, for this pipeline; `mark` tells
//! inside each transaction whether it is still the newest.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use tokio_postgres::{Client, Row};

use super::input::{Item, SourceKey};
use crate::{
    database::postgres::PgError,
    model::{TableSchema, Version},
    target::RowEvent,
};

/// The highest mark among the open dead letters, read inside each transaction: one that is new or renewed has a higher one.
pub const MARK: &str =
    "SELECT coalesce(max(greatest(id, mark)), 0) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'";

const OPEN: &str = "SELECT greatest(id, mark), source_table, key_text, version FROM cutover.dead_letters
WHERE pipeline = $1 AND state = 'open' ORDER BY 1";

const WAITING: &str = "SELECT source_table, key_text, version FROM cutover.waiting WHERE pipeline = $1";

pub const WAITS: &str = "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND part = $2)";

const RECORDS: &str = "
SELECT h.source_table, h.key_text, h.version, h.schema_id, h.record FROM (
  SELECT source_table, key_text, version, schema_id, record::text FROM cutover.dead_letters
  WHERE pipeline = $1 AND state = 'open' AND key_text = ANY($2)
  UNION ALL SELECT source_table, key_text, version, schema_id, pg_catalog.convert_from(value, 'UTF8')
  FROM cutover.waiting WHERE pipeline = $1 AND key_text = ANY($2)) h ORDER BY h.version";

/// What is set aside, by source row.
#[derive(Debug, Default)]
pub struct Held {
    /// The newest dead letter of each row.
    pub dead: HashMap<SourceKey, Version>,
    /// The newest waiting event of each row.
    pub waiting: HashMap<SourceKey, Version>,
    /// How many dead letters are open.
    pub open: u64,
    pub mark: i64,
    /// The tables have changed since this was read.
    pub stale: bool,
}

impl Held {
    pub async fn load(client: &Client, pipeline: &str) -> Result<Self, PgError> {
        let mut held = Held::default();
        for row in client.query(OPEN, &[&pipeline]).await? {
            held.mark = row.try_get(0)?;
            held.open += 1;
            let version: Version = row.try_get(3)?;
            let newest = held.dead.entry(source_key(&row, 1)?).or_insert(version);
            *newest = version.max(*newest);
        }
        for row in client.query(WAITING, &[&pipeline]).await? {
            let version: Version = row.try_get(2)?;
            let newest = held.waiting.entry(source_key(&row, 0)?).or_insert(version);
            *newest = version.max(*newest);
        }
        Ok(held)
    }

    /// Leaves out what a newer dead letter keeps out; the rows among the rest that have something set aside.
    pub fn fence(&self, items: &mut Vec<Item<'_>>) -> HashSet<SourceKey> {
        let mut touched = HashSet::new();
        if self.dead.is_empty() && self.waiting.is_empty() {
            return touched;
        }
        items.retain(|item| {
            let Some(newest) = item.newest() else { return false };
            let key = SourceKey::of(newest);
            let fence = self.dead.get(&key);
            if fence.is_some_and(|fence| *fence > newest.version) {
                return false;
            }
            if fence.is_some() || self.waiting.contains_key(&key) {
                touched.insert(key);
            }
            true
        });
        touched
    }
}

fn source_key(row: &Row, first: usize) -> Result<SourceKey, PgError> {
    let key: String = row.try_get(first + 1)?;
    Ok(SourceKey { table: row.try_get(first)?, key: Bytes::from(key) })
}

/// The events that are set aside for these rows.
pub async fn records(
    client: &Client,
    pipeline: &str,
    keys: &HashSet<SourceKey>,
    schemas: &mut HashMap<u64, Arc<TableSchema>>,
) -> Result<Vec<RowEvent>, PgError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let texts: Vec<&str> = keys.iter().filter_map(|key| std::str::from_utf8(&key.key).ok()).collect();
    let mut events = Vec::new();
    for row in client.query(RECORDS, &[&pipeline, &texts]).await? {
        let key = source_key(&row, 0)?;
        if keys.contains(&key) {
            events.push(event(client, pipeline, key, &row, schemas).await?);
        }
    }
    Ok(events)
}

/// An event from columns 2 (version), 3 (schema id) and 4 (record) of a stored row.
pub async fn event(
    client: &Client,
    pipeline: &str,
    key: SourceKey,
    row: &Row,
    schemas: &mut HashMap<u64, Arc<TableSchema>>,
) -> Result<RowEvent, PgError> {
    let id: i64 = row.try_get(3)?;
    let record: String = row.try_get(4)?;
    let schema = match schemas.get(&id.cast_unsigned()) {
        Some(schema) => schema.clone(),
        None => {
            let row = client
                .query_opt(
                    "SELECT definition::text FROM cutover.schemas WHERE pipeline = $1 AND id = $2",
                    &[&pipeline, &id],
                )
                .await?;
            let text: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
            let schema: Option<TableSchema> = text.and_then(|text| serde_json::from_str(&text).ok());
            let schema = schema
                .ok_or_else(|| PgError::Protocol(format!("cutover.schemas lacks schema {id} of a row set aside")))?;
            let schema = Arc::new(schema);
            schemas.insert(id.cast_unsigned(), schema.clone());
            schema
        }
    };
    let version = row.try_get(2)?;
    Ok(RowEvent { schema, key: key.key, value: Bytes::from(record), version, commit_us: 0, offset: 0 })
}

/// Gives every item the events that are set aside for its row, up to its own newest. One of the same version may be another
/// event: a row that is read again carries the version of the last change, which may be the very one that was set aside.
pub fn attach<'a>(items: &mut [Item<'a>], older: &'a [RowEvent]) {
    if older.is_empty() {
        return;
    }
    for item in items {
        let Some(newest) = item.newest() else { continue };
        let own = |event: &&RowEvent| {
            let older = event.version < newest.version
                || event.version == newest.version && item.events.iter().all(|own| own.value != event.value);
            older && event.key == newest.key && event.schema.table == newest.schema.table
        };
        item.held = older.iter().filter(own).collect();
    }
}
