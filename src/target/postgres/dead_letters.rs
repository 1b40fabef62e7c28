//! Dead letters on their way into the target: new ones, and those of a row that failed again.
//!
//! A row that is read again from the source and fails again renews its dead letter instead of adding one: the letter
//! gets the new version, which fences the row from then on, and the new error. What the target shows of such a row is
//! still what it showed before the oldest letter, so that image is kept.

use std::collections::{BTreeMap, HashMap};

use super::{
    PostgresSink,
    failure::Failure,
    items::SourceKey,
    parked::{ParkedRow, cleared_params, json, texts},
    steps::Param,
};
use crate::{
    database::postgres::PgError,
    log::{
        Topic,
        envelope::{self, Renewed},
    },
    model::{Problem, Version},
    target::{ApplyError, Pass, RowEvent},
};

const DEAD: &str = "
INSERT INTO cutover.dead_letters
  (pipeline, source_table, key, key_text, version, schema_id, topic, part, log_offset, sqlstate, error, record)
SELECT $1, x.source, x.key::json, x.key, x.version, x.schema_id, $2, $3, x.log_offset, x.sqlstate, x.error, x.record::json
FROM unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::text[],
  $11::text[]) x(source, key, version, schema_id, log_offset, sqlstate, error, record)
ON CONFLICT DO NOTHING";

const COUNT: &str = "SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'";

const OPEN: &str = "
SELECT id, source_table, key_text, version, schema_id, record::text FROM cutover.dead_letters
WHERE pipeline = $1 AND state = 'open' AND key_text = ANY($2) ORDER BY version";

const SUPERSEDED: &str = "DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND id = ANY($2)";

const RENEW: &str = "
UPDATE cutover.dead_letters d SET version = x.version, schema_id = x.schema_id, topic = $2, part = $3,
  log_offset = x.log_offset, sqlstate = x.sqlstate, error = x.error, record = x.record::json,
  attempts = d.attempts + 1, renewed_at = clock_timestamp(), mark = nextval('cutover.dead_letters_id_seq')
FROM unnest($4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[])
  x(id, version, schema_id, log_offset, sqlstate, error, record)
WHERE d.pipeline = $1 AND d.id = x.id";

/// Rows of a replay that failed and have been applied since.
pub(super) const FORGET_NOTED: &str = "
DELETE FROM cutover.dead_letters d USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
WHERE d.pipeline = $1 AND d.state = 'replay' AND d.source_table = x.source AND md5(d.key_text) = md5(x.key)
  AND d.key_text = x.key AND d.version < x.version";

const NOTE: &str = "
INSERT INTO cutover.dead_letters
  (pipeline, source_table, key, key_text, version, schema_id, topic, part, log_offset, sqlstate, error, record, state)
SELECT DISTINCT ON (x.source, x.key)
  $1, x.source, x.key::json, x.key, x.version, x.schema_id, $2, $3, x.log_offset, x.sqlstate, x.error, x.record::json, 'replay'
FROM unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::text[],
  $11::text[]) x(source, key, version, schema_id, log_offset, sqlstate, error, record)
WHERE NOT EXISTS (SELECT FROM cutover.dead_letters d WHERE d.pipeline = $1 AND d.state = 'replay'
  AND d.source_table = x.source AND md5(d.key_text) = md5(x.key) AND d.key_text = x.key AND d.version >= x.version)
ORDER BY x.source, x.key, x.version DESC";

const NOTED: &str = "SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'replay'";

/// An open dead letter of a row that failed again.
struct Letter {
    id: i64,
    version: Version,
    schema_id: i64,
    record: String,
}

impl PostgresSink {
    /// Stores dead letters, unless they would be too many.
    pub(super) async fn store_dead(&mut self, dead: &[ParkedRow<'_>]) -> Result<(), Failure> {
        if dead.is_empty() {
            return Ok(());
        }
        if self.replay.is_some() {
            return self.note(dead).await;
        }
        // What the changes topic brings is the row's next event, which needs a letter of its own; what the snapshot
        // topic brings is the row again.
        let fresh = match self.options.topic {
            Topic::Changes => dead.to_vec(),
            Topic::Snapshot => self.renew(dead).await?,
        };
        self.parked.stale = true;
        if let Some(first) = fresh.first() {
            self.bound(first, fresh.len() as u64).await?;
            self.insert_dead(DEAD, &fresh).await?;
        }
        let mut counts: BTreeMap<(String, &str), u64> = BTreeMap::new();
        for row in dead {
            *counts.entry((row.event.schema.table.to_string(), &row.sqlstate)).or_default() += 1;
        }
        for ((table, sqlstate), rows) in counts {
            tracing::error!(
                table,
                sqlstate,
                rows,
                "rows cannot be stored at the target and are set aside; `cutover dlq list` shows them"
            );
        }
        Ok(())
    }

    /// Notes rows of a replay: what the log has of them may be old, so that their failure says nothing yet.
    async fn note(&mut self, rows: &[ParkedRow<'_>]) -> Result<(), Failure> {
        let keys: Vec<(SourceKey, Version)> =
            rows.iter().map(|row| (SourceKey::of(row.event), row.event.version)).collect();
        let forget = self.statement(FORGET_NOTED).await?;
        self.execute(&forget, cleared_params(&self.options.pipeline, &keys)).await?;
        self.insert_dead(NOTE, rows).await?;
        let row = self.session.client.query_one(NOTED, &[&self.options.pipeline]).await.map_err(PgError::from)?;
        let noted: i64 = row.try_get(0).map_err(PgError::from)?;
        let bound = self.options.config.dead_letters_max;
        match rows.first().filter(|_| noted.unsigned_abs() > bound) {
            None => Ok(()),
            Some(first) => Err(Failure::Stop(ApplyError::Halt(Problem::new(
                format!(
                    "more than [apply] dead_letters_max = {bound} rows of the replayed range fail in today's transforms; the \
                     newest is of {} and fails with SQLSTATE {}",
                    first.event.schema.table, first.sqlstate
                ),
                "let the transform take what the range holds and replay again, or copy the table again with `cutover \
                 resnapshot`",
            )))),
        }
    }

    /// Whether what is applied now may have been noted before, at an older version.
    pub(super) fn forgets_noted(&self) -> bool {
        match self.replay {
            Some(Pass::Snapshot | Pass::Changes) => true,
            Some(Pass::Deletes) | None => false,
        }
    }

    /// An outage of what the rows need must not drain into the dead letters (rule 24).
    async fn bound(&mut self, first: &ParkedRow<'_>, more: u64) -> Result<(), Failure> {
        let bound = self.options.config.dead_letters_max;
        if self.parked.open + more <= bound {
            return Ok(());
        }
        // Some may have been closed since they were read.
        let row = self.session.client.query_one(COUNT, &[&self.options.pipeline]).await.map_err(PgError::from)?;
        let open = row.try_get::<_, i64>(0).map_err(PgError::from)?.unsigned_abs() + more;
        if open <= bound {
            return Ok(());
        }
        Err(Failure::Stop(ApplyError::Halt(Problem::new(
            format!(
                "{open} rows cannot be stored at the target, more than [apply] dead_letters_max = {bound}; the newest is of \
                 {} and fails with SQLSTATE {}",
                first.event.schema.table, first.sqlstate
            ),
            "see `cutover dlq list`, correct the rows at the source, the transform or the target's column, and start \
             again; or raise the bound",
        ))))
    }

    async fn insert_dead(&mut self, sql: &'static str, dead: &[ParkedRow<'_>]) -> Result<(), PgError> {
        self.store_schemas(dead).await?;
        let statement = self.statement(sql).await?;
        let params: Vec<Param<'_>> = vec![
            Box::new(&self.options.pipeline),
            Box::new(self.options.topic.suffix()),
            Box::new(i32::try_from(self.options.partition).unwrap_or(i32::MAX)),
            Box::new(texts(dead, |row| row.event.schema.table.to_string())),
            Box::new(texts(dead, |row| json(&row.event.key))),
            Box::new(dead.iter().map(|row| row.event.version).collect::<Vec<_>>()),
            Box::new(dead.iter().map(|row| row.event.schema.id().cast_signed()).collect::<Vec<_>>()),
            Box::new(dead.iter().map(|row| row.event.offset.cast_signed()).collect::<Vec<_>>()),
            Box::new(texts(dead, |row| row.sqlstate.clone())),
            Box::new(texts(dead, |row| row.message.clone())),
            Box::new(texts(dead, |row| json(&row.event.value))),
        ];
        self.execute(&statement, params).await
    }

    /// Renews the letters of rows that have one; the others.
    async fn renew<'a>(&mut self, dead: &[ParkedRow<'a>]) -> Result<Vec<ParkedRow<'a>>, Failure> {
        let mut open = self.open_letters(dead).await?;
        let mut fresh = Vec::new();
        // A row's newest failure is the one that counts. They are told in the order of keys, not in one of chance.
        let mut newest: BTreeMap<SourceKey, (&ParkedRow<'a>, Vec<Letter>)> = BTreeMap::new();
        for row in dead {
            let key = SourceKey::of(row.event);
            match (open.remove(&key), newest.get_mut(&key)) {
                (Some(letters), _) => drop(newest.insert(key, (row, letters))),
                (None, Some(known)) if known.0.event.version <= row.event.version => known.0 = row,
                (None, Some(_)) => {}
                (None, None) => fresh.push(row.clone()),
            }
        }
        let (mut ids, mut rows, mut superseded) = (Vec::new(), Vec::new(), Vec::new());
        let (mut records, mut schema_ids) = (Vec::new(), Vec::new());
        for (row, letters) in newest.into_values() {
            let mut letters = letters.into_iter().filter(|letter| letter.version <= row.event.version);
            let Some(oldest) = letters.next() else { continue };
            superseded.extend(letters.map(|letter| letter.id));
            ids.push(oldest.id);
            let (record, schema_id) = renewed(oldest, row.event);
            records.push(record);
            schema_ids.push(schema_id);
            rows.push(row.clone());
        }
        if ids.is_empty() {
            return Ok(fresh);
        }
        self.store_schemas(&rows).await?;
        let (delete, renew) = (self.statement(SUPERSEDED).await?, self.statement(RENEW).await?);
        self.execute(&delete, vec![Box::new(&self.options.pipeline), Box::new(superseded)]).await?;
        let params: Vec<Param<'_>> = vec![
            Box::new(&self.options.pipeline),
            Box::new(self.options.topic.suffix()),
            Box::new(i32::try_from(self.options.partition).unwrap_or(i32::MAX)),
            Box::new(ids),
            Box::new(rows.iter().map(|row| row.event.version).collect::<Vec<_>>()),
            Box::new(schema_ids),
            Box::new(rows.iter().map(|row| row.event.offset.cast_signed()).collect::<Vec<_>>()),
            Box::new(texts(&rows, |row| row.sqlstate.clone())),
            Box::new(texts(&rows, |row| row.message.clone())),
            Box::new(records),
        ];
        self.execute(&renew, params).await?;
        Ok(fresh)
    }

    /// The open letters of these rows, oldest first.
    async fn open_letters(&self, dead: &[ParkedRow<'_>]) -> Result<HashMap<SourceKey, Vec<Letter>>, PgError> {
        let keys = texts(dead, |row| json(&row.event.key));
        let mut letters: HashMap<SourceKey, Vec<Letter>> = HashMap::new();
        for row in self.session.client.query(OPEN, &[&self.options.pipeline, &keys]).await? {
            let key: String = row.try_get(2)?;
            let key = SourceKey { table: row.try_get(1)?, key: key.into() };
            letters.entry(key).or_default().push(Letter {
                id: row.try_get(0)?,
                version: row.try_get(3)?,
                schema_id: row.try_get(4)?,
                record: row.try_get(5)?,
            });
        }
        Ok(letters)
    }
}

/// The record of a renewed letter, with its schema's id: the row as it is now, and before that what the target shows.
fn renewed(oldest: Letter, event: &RowEvent) -> (String, i64) {
    let schema_id = event.schema.id().cast_signed();
    match envelope::renewed(oldest.record.as_bytes(), &event.value) {
        Some(Renewed::Now) => (json(&event.value), schema_id),
        // Images of two schemas do not fit into one record.
        Some(Renewed::Merged(merged)) if oldest.schema_id == schema_id => (json(&merged), schema_id),
        Some(Renewed::Merged(_) | Renewed::Then) | None => (oldest.record, oldest.schema_id),
    }
}
