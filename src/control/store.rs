//! A session on the target's `cutover` schema that opens again after it broke.

use std::collections::HashMap;

use tokio::sync::{Mutex, MutexGuard};

use crate::{
    database::postgres::{Options, PgError, Session, Target},
    log::{Offset, Topic},
    model::{Position, TableSchema, Version},
};

/// The pipeline's state in the target.
#[derive(Debug)]
pub struct Store {
    pub pipeline: String,
    target: Target,
    options: Options,
    session: Mutex<Option<Session>>,
}

/// What the target has of one partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lane {
    pub topic: Topic,
    pub part: u32,
    /// Of the log that was asked for, not of one before it.
    pub is_current: bool,
    pub next_offset: Offset,
    pub clock: Version,
    pub newest_commit_us: i64,
}

/// An open session, for as long as it is held.
#[derive(Debug)]
pub struct Held<'a>(MutexGuard<'a, Option<Session>>);

impl Held<'_> {
    /// The session's client.
    pub fn client(&self) -> Result<&tokio_postgres::Client, PgError> {
        let session = self.0.as_ref().ok_or_else(|| PgError::Unreachable("the session closed".into()))?;
        Ok(&session.client)
    }
}

impl Store {
    pub fn new(pipeline: &str, target: Target, options: Options) -> Self {
        Store { pipeline: pipeline.to_owned(), target, options, session: Mutex::new(None) }
    }

    /// The session, opened first if it is not.
    pub async fn session(&self) -> Result<Held<'_>, PgError> {
        let mut session = self.session.lock().await;
        if session.as_ref().is_none_or(|session| session.client.is_closed()) {
            *session = Some(Session::open(&self.target, &self.options).await?);
        }
        Ok(Held(session))
    }

    /// Closes the session; what it held goes with it.
    pub async fn close(&self) {
        *self.session.lock().await = None;
    }

    /// A value that the pipeline keeps under a name.
    pub async fn note(&self, key: &str) -> Result<Option<String>, PgError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt("SELECT value FROM cutover.notes WHERE pipeline = $1 AND key = $2", &[&self.pipeline, &key])
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Keeps a value under a name.
    pub async fn set_note(&self, key: &str, value: &str) -> Result<(), PgError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "INSERT INTO cutover.notes (pipeline, key, value, updated_at) VALUES ($1, $2, $3, clock_timestamp()) \
                 ON CONFLICT (pipeline, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
                &[&self.pipeline, &key, &value],
            )
            .await?;
        Ok(())
    }

    /// Stores a schema before the first record that refers to it is appended.
    pub async fn add_schema(&self, schema: &TableSchema, clock: Version) -> Result<(), PgError> {
        let session = self.session().await?;
        let definition = serde_json::to_value(schema).map_err(|error| PgError::Protocol(error.to_string()))?;
        let (id, table) = (schema.id().cast_signed(), schema.table.to_string());
        // `seq` orders a table's schemas; a schema that comes back after another one is the newest again.
        session
            .client()?
            .execute(
                "INSERT INTO cutover.schemas (pipeline, id, source_table, clock, definition) \
                 VALUES ($1, $2, $3, $4, $5::text::jsonb) \
                 ON CONFLICT (pipeline, id) DO UPDATE SET clock = greatest(cutover.schemas.clock, excluded.clock), \
                 seq = CASE WHEN cutover.schemas.clock < excluded.clock THEN excluded.seq ELSE cutover.schemas.seq END",
                &[&self.pipeline, &id, &table, &clock, &definition.to_string()],
            )
            .await?;
        Ok(())
    }

    /// Every schema stored for the pipeline, oldest first, with the clock from which it held.
    pub async fn schemas(&self) -> Result<Vec<(Version, TableSchema)>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT clock, definition::text FROM cutover.schemas WHERE pipeline = $1 ORDER BY clock, seq",
                &[&self.pipeline],
            )
            .await?;
        rows.iter()
            .map(|row| {
                let schema = serde_json::from_str(row.get(1))
                    .map_err(|error| PgError::Protocol(format!("a stored schema cannot be read: {error}")))?;
                Ok((row.get(0), schema))
            })
            .collect()
    }

    /// The newest commit or heartbeat that the target has, µs since the Unix epoch, by partition.
    pub async fn newest_commits(&self) -> Result<Vec<(u32, i64)>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT part, newest_commit_us FROM cutover.offsets WHERE pipeline = $1 AND topic = 'changes'",
                &[&self.pipeline],
            )
            .await?;
        Ok(rows.iter().map(|row| (row.get::<_, i32>(0).cast_unsigned(), row.get(1))).collect())
    }

    /// Where each partition of each topic goes on in the log of this epoch.
    pub async fn next_offsets(&self, log_epoch: &str) -> Result<Vec<(Topic, u32, Offset)>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT topic = 'changes', part, next_offset FROM cutover.offsets \
                 WHERE pipeline = $1 AND log_epoch = $2 AND topic IN ('changes', 'snapshot')",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let topic = |changes| if changes { Topic::Changes } else { Topic::Snapshot };
        let read = |row: &tokio_postgres::Row| {
            (topic(row.get(0)), row.get::<_, i32>(1).cast_unsigned(), row.get::<_, i64>(2).cast_unsigned())
        };
        Ok(rows.iter().map(read).collect())
    }

    /// What is kept out as out of date: by source table with its schema, the version below which it is.
    pub async fn fences(&self) -> Result<HashMap<String, Version>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query("SELECT source_table, version FROM cutover.fences WHERE pipeline = $1", &[&self.pipeline])
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// A time as people write it, in µs since the Unix epoch; none if it is no time.
    pub async fn time_us(&self, text: &str) -> Result<Option<i64>, PgError> {
        let session = self.session().await?;
        let sql = "SELECT (extract(epoch FROM $1::text::timestamptz) * 1000000)::bigint";
        match session.client()?.query_one(sql, &[&text]).await.map_err(PgError::from) {
            Ok(row) => Ok(row.get(0)),
            Err(PgError::Refused(refusal)) if refusal.sqlstate.starts_with("22") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// µs since the Unix epoch as people write a time, in UTC.
    pub async fn spelled_time(&self, at_us: i64) -> Result<String, PgError> {
        let session = self.session().await?;
        let sql =
            "SELECT to_char(to_timestamp($1::bigint / 1000000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
        Ok(session.client()?.query_one(sql, &[&at_us]).await?.get(0))
    }

    /// Whether a replay is under way in this pipeline or in one that shares its target.
    pub async fn any_replay(&self) -> Result<bool, PgError> {
        let session = self.session().await?;
        let sql = "SELECT EXISTS (SELECT FROM cutover.replays WHERE state = 'running')";
        Ok(session.client()?.query_one(sql, &[]).await?.get(0))
    }

    /// Prepares the lanes for a log: those of an earlier one with more partitions are no more, and what was copied through it in part
    /// is copied through this one. Where they differ, all go on from the least of them.
    pub(super) async fn begin_log(&self, log_epoch: &str, partitions: u32) -> Result<(), PgError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "WITH lanes AS (SELECT * FROM cutover.offsets WHERE pipeline = $1 AND topic IN ('changes', 'snapshot')), \
                      least AS (SELECT position, clock, newest_commit_us FROM lanes \
                                WHERE topic = 'changes' AND position IS NOT NULL ORDER BY clock LIMIT 1), \
                      kept AS (UPDATE cutover.offsets o \
                               SET position = l.position, clock = l.clock, newest_commit_us = l.newest_commit_us FROM least l \
                               WHERE o.pipeline = $1 AND o.topic = 'changes' AND o.part < $3 AND o.log_epoch <> $2 \
                                 AND o.clock > l.clock), \
                      gone AS (DELETE FROM cutover.offsets \
                               WHERE pipeline = $1 AND topic IN ('changes', 'snapshot') AND part >= $3) \
                 UPDATE cutover.chunks SET parts_done = '{}' WHERE pipeline = $1 AND state <> 'done' AND parts_done <> '{}' \
                    AND EXISTS (SELECT FROM lanes WHERE log_epoch <> $2)",
                &[&self.pipeline, &log_epoch, &partitions.cast_signed()],
            )
            .await?;
        Ok(())
    }

    /// Every lane, for who follows what others apply.
    pub(super) async fn lanes(&self, log_epoch: &str) -> Result<Vec<Lane>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT topic, part, log_epoch = $2, next_offset, clock, newest_commit_us FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic IN ('changes', 'snapshot')",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let lane = |row: &tokio_postgres::Row| Lane {
            topic: if row.get::<_, &str>(0) == Topic::Changes.suffix() { Topic::Changes } else { Topic::Snapshot },
            part: row.get::<_, i32>(1).cast_unsigned(),
            is_current: row.get(2),
            next_offset: row.get::<_, i64>(3).cast_unsigned(),
            clock: row.get(4),
            newest_commit_us: row.get(5),
        };
        Ok(rows.iter().map(lane).collect())
    }

    /// Whether the target has everything up to `end`, in every partition of this log.
    pub(super) async fn covers(&self, end: &Position, log_epoch: &str, partitions: u32) -> Result<bool, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT position::text FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic = 'changes' AND log_epoch = $2 AND position IS NOT NULL",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let covers = |row: &tokio_postgres::Row| {
            serde_json::from_str::<Position>(row.get(0)).is_ok_and(|position| position.covers(end))
        };
        Ok(rows.len() == partitions as usize && rows.iter().all(covers))
    }

    /// The newest source position that the target holds, with the clock there: where capture begins
    /// when the log is lost.
    pub async fn position(&self) -> Result<Option<(Position, Version)>, PgError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt(
                "SELECT position::text, clock FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic = 'changes' AND position IS NOT NULL ORDER BY clock LIMIT 1",
                &[&self.pipeline],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let position = serde_json::from_str(row.get(0))
            .map_err(|error| PgError::Protocol(format!("a stored position cannot be read: {error}")))?;
        Ok(Some((position, row.get(1))))
    }
}
