//! Rows that are parked: dead letters, which fence their key, and rows that wait for another.
//!
//! A dead letter at a version keeps older events of its row out, until a newer one applies and clears it
//! (rule 23). What is here is a copy of the target's tables, for this pipeline; `mark` tells
//! inside each transaction whether it is still the newest.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use tokio_postgres::{Client, Row};

use super::{
    PostgresSink,
    items::{Item, SourceKey},
    schemas,
    steps::Param,
};
use crate::{
    database::postgres::PgError,
    log::envelope,
    model::{TableSchema, Version},
    target::RowEvent,
};

/// The highest mark among the open dead letters, read inside each transaction: one that is new or renewed has a higher
/// one.
pub const MARK: &str =
    "SELECT coalesce(max(greatest(id, mark)), 0) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'";

const OPEN: &str = "SELECT greatest(id, mark), source_table, key_text, version FROM cutover.dead_letters
WHERE pipeline = $1 AND state = 'open' ORDER BY 1";

const WAITING: &str = "SELECT source_table, key_text, version FROM cutover.waiting WHERE pipeline = $1";

/// The highest version that is kept beside the rows: of what waits, of dead letters, of what was truncated or swept.
const HIGHEST: &str = "SELECT greatest((SELECT max(version) FROM cutover.dead_letters WHERE pipeline = $1), \
                       (SELECT max(version) FROM cutover.waiting WHERE pipeline = $1), \
                       (SELECT max(version) FROM cutover.fences WHERE pipeline = $1), 0)";

const RECORDS: &str = "
SELECT h.source_table, h.key_text, h.version, h.schema_id, h.record FROM (
  SELECT source_table, key_text, version, schema_id, record::text FROM cutover.dead_letters
  WHERE pipeline = $1 AND state = 'open' AND key_text = ANY($2)
  UNION ALL SELECT source_table, key_text, version, schema_id, pg_catalog.convert_from(value, 'UTF8')
  FROM cutover.waiting WHERE pipeline = $1 AND key_text = ANY($2)) h ORDER BY h.version";

/// Dead letters and waiting rows that are over.
pub const CLEAR: [&str; 2] = [CLEAR_DEAD, CLEAR_WAITING];

const CLEAR_DEAD: &str = "
DELETE FROM cutover.dead_letters d USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
WHERE d.pipeline = $1 AND d.state = 'open' AND d.source_table = x.source AND d.key_text = x.key
  AND d.version <= x.version";

const CLEAR_WAITING: &str = "
DELETE FROM cutover.waiting w USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
WHERE w.pipeline = $1 AND w.source_table = x.source AND pg_catalog.md5(w.key_text) = pg_catalog.md5(x.key)
  AND w.key_text = x.key AND w.version <= x.version";

/// A row that is parked, and why.
#[derive(Debug, Clone)]
pub struct ParkedRow<'a> {
    pub event: &'a RowEvent,
    pub sqlstate: String,
    pub message: String,
    /// The digest of the parent's key that a waiting row needs, if that is known.
    pub needs: Option<i64>,
}

/// The open dead letters of a row.
#[derive(Debug, Clone, Copy)]
struct Letters {
    oldest: Version,
    newest: Version,
}

/// What a newer dead letter keeps out, and the rest.
#[derive(Debug, Default)]
pub struct Fenced<'a> {
    /// The rows among the rest that have something parked.
    pub touched: BTreeSet<SourceKey>,
    /// Events that are kept out, and without which nobody would know what the target shows of their rows.
    pub kept_out: Vec<&'a RowEvent>,
}

/// What is parked, by source row.
#[derive(Debug, Default)]
pub struct Parked {
    dead: HashMap<SourceKey, Letters>,
    /// The newest waiting event of each row.
    pub waiting: HashMap<SourceKey, Version>,
    /// How many dead letters are open.
    pub open: u64,
    pub mark: i64,
    /// The tables have changed since this was read.
    pub stale: bool,
}

/// The highest version of what the pipeline keeps beside the target's rows; 0 if it keeps nothing.
pub async fn highest_version(client: &Client, pipeline: &str) -> Result<Version, PgError> {
    Ok(client.query_one(HIGHEST, &[&pipeline]).await?.try_get(0)?)
}

impl Parked {
    pub async fn load(client: &Client, pipeline: &str) -> Result<Self, PgError> {
        let mut parked = Parked::default();
        parked.load_dead(client, pipeline).await?;
        for row in client.query(WAITING, &[&pipeline]).await? {
            let version: Version = row.try_get(2)?;
            let newest = parked.waiting.entry(source_key(&row, 0)?).or_insert(version);
            *newest = version.max(*newest);
        }
        Ok(parked)
    }

    /// Reads the dead letters again; of rows that wait there may be many.
    pub async fn load_dead(&mut self, client: &Client, pipeline: &str) -> Result<(), PgError> {
        (self.dead, self.open, self.mark) = (HashMap::new(), 0, 0);
        for row in client.query(OPEN, &[&pipeline]).await? {
            self.mark = row.try_get(0)?;
            self.open += 1;
            let version: Version = row.try_get(3)?;
            let letters = self.dead.entry(source_key(&row, 1)?).or_insert(Letters { oldest: version, newest: version });
            (letters.oldest, letters.newest) = (version.min(letters.oldest), version.max(letters.newest));
        }
        Ok(())
    }

    /// Leaves out what a newer dead letter keeps out.
    pub fn fence<'a>(&self, items: &mut Vec<Item<'a>>) -> Fenced<'a> {
        let mut fenced = Fenced::default();
        if self.dead.is_empty() && self.waiting.is_empty() {
            return fenced;
        }
        items.retain(|item| {
            let Some(newest) = item.newest() else { return false };
            let key = SourceKey::of(newest);
            let letters = self.dead.get(&key);
            if let Some(letters) = letters.filter(|letters| letters.newest > newest.version) {
                fenced.kept_out.extend(letters.misses(&item.events));
                return false;
            }
            if letters.is_some() || self.waiting.contains_key(&key) {
                fenced.touched.insert(key);
            }
            true
        });
        fenced
    }

    /// As [`Parked::fence`], of the events of one row that are to be written one after the other: what is kept out, the
    /// next event removes what it replaced.
    pub fn fence_events<'a>(&self, mut item: Item<'a>) -> (Item<'a>, Option<&'a RowEvent>) {
        let letters = item.newest().and_then(|newest| self.dead.get(&SourceKey::of(newest)));
        let Some(letters) = letters else { return (item, None) };
        let end = item.events.partition_point(|event| event.version < letters.newest);
        let kept_out: Vec<&RowEvent> = item.events.drain(..end).collect();
        let missed = letters.misses(&kept_out);
        item.parked.extend(kept_out);
        item.parked.sort_by_key(|event| event.version);
        (item, missed)
    }
}

impl Letters {
    /// Of events that are kept out, the oldest if it says what the target shows, which no letter does: a row that a
    /// copy has read says nothing of what was there before.
    fn misses<'a>(&self, kept_out: &[&'a RowEvent]) -> Option<&'a RowEvent> {
        let has_before = |event: &RowEvent| {
            envelope::cells(&event.value, &event.schema).is_ok_and(|(before, _, _)| before.is_some())
        };
        kept_out.iter().copied().find(|event| event.version < self.oldest && has_before(event))
    }
}

impl PostgresSink {
    /// Reads again what is parked, if this batch changed it.
    pub(super) async fn refresh_parked(&mut self) -> Result<(), PgError> {
        if self.parked.stale {
            self.parked = Parked::load(&self.session.client, &self.options.pipeline).await?;
        }
        Ok(())
    }

    /// Clears what is parked of these rows, up to these versions.
    pub(super) async fn clear_parked(&mut self, cleared: &[(SourceKey, Version)]) -> Result<(), PgError> {
        if cleared.is_empty() {
            return Ok(());
        }
        self.parked.stale = true;
        for text in CLEAR {
            let statement = self.statement(text).await?;
            self.execute(&statement, cleared_params(&self.options.pipeline, cleared)).await?;
        }
        Ok(())
    }
}

/// Parameters of [`CLEAR`].
pub fn cleared_params(pipeline: &str, cleared: &[(SourceKey, Version)]) -> Vec<Param<'static>> {
    vec![
        Box::new(pipeline.to_owned()),
        Box::new(cleared.iter().map(|(key, _)| key.table.clone()).collect::<Vec<_>>()),
        Box::new(cleared.iter().map(|(key, _)| json(&key.key)).collect::<Vec<_>>()),
        Box::new(cleared.iter().map(|(_, version)| *version).collect::<Vec<_>>()),
    ]
}

fn source_key(row: &Row, first: usize) -> Result<SourceKey, PgError> {
    let key: String = row.try_get(first + 1)?;
    Ok(SourceKey { table: row.try_get(first)?, key: Bytes::from(key) })
}

/// The events that are parked of these rows.
pub async fn events(
    client: &Client,
    pipeline: &str,
    keys: &BTreeSet<SourceKey>,
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
    let (id, record): (i64, String) = (row.try_get(3)?, row.try_get(4)?);
    let schema = schemas::load(client, pipeline, id, schemas).await?;
    let version = row.try_get(2)?;
    Ok(RowEvent { schema, key: key.key, value: Bytes::from(record), version, commit_us: 0, offset: 0 })
}

/// Gives every item the events that are parked of its row, up to its own newest. One of the same version may be another
/// event: a row that is read again carries the version of the last change, which may be the very one that was parked.
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
        item.parked = older.iter().filter(own).collect();
    }
}

/// One text of each row, as the array to send.
pub fn texts(rows: &[ParkedRow<'_>], text: impl Fn(&ParkedRow<'_>) -> String) -> Vec<String> {
    rows.iter().map(text).collect()
}

/// JSON as the envelope has it; it was decoded before, so it is UTF-8.
pub fn json(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
