//! Replays: what each does, how far it is, what became of it.

use serde::{Deserialize, Serialize};

use super::{StateError, Store, lanes::Pass, spelled::spelled};
use crate::log::Offset;

/// Where a replay begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    Beginning,
    Checkpoint(String),
    /// The first record that was committed then, µs since the Unix epoch.
    TimeUs(i64),
    /// Of the changes topic, in a log of one partition.
    Offset(Offset),
}

/// Part of a partition: after `from`, before `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub from: Offset,
    pub to: Offset,
}

/// What a replay does, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    pub from: From,
    /// Where that is, as it was written.
    pub label: String,
    pub tables: Vec<String>,
    pub log_epoch: String,
    /// Of the transforms that it goes through.
    pub transforms: String,
    /// By partition.
    pub deletes: Vec<Range>,
    pub snapshot: Vec<Range>,
    pub changes: Vec<Range>,
    /// Row records of both topics.
    pub rows: u64,
}

impl Details {
    pub(crate) fn ranges(&self, pass: Pass) -> &[Range] {
        match pass {
            Pass::Deletes => &self.deletes,
            Pass::Snapshot => &self.snapshot,
            Pass::Changes => &self.changes,
        }
    }
}

spelled! {
    /// Whether a replay is under way, or how it ended.
    pub enum ReplayState: "state of a replay" {
        Running = "running",
        Done = "done",
        Failed = "failed",
    }
}

/// A replay as it is stored.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The number of the request that asked for it.
    pub id: i64,
    pub state: ReplayState,
    pub details: Details,
    /// What became of it, in words.
    pub outcome: String,
    /// Records passed, of all three passes.
    pub done: u64,
    /// Seconds since a worker went on with it, and how far it was then.
    pub resumed_seconds: f64,
    pub resumed_done: u64,
}

/// How far a replay is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayStatus {
    pub id: i64,
    pub from: String,
    /// Source tables; all if empty.
    pub tables: Vec<String>,
    /// Rows replayed so far, and altogether.
    pub rows: u64,
    pub rows_total: u64,
    pub percent: f64,
    /// Null when that cannot be told yet.
    pub eta_seconds: Option<f64>,
}

impl Replay {
    /// How far it is.
    pub fn status(&self) -> ReplayStatus {
        let records = |pass: Pass| self.details.ranges(pass).iter().map(|range| range.to - range.from).sum::<u64>();
        let deletes = records(Pass::Deletes);
        let total = deletes + records(Pass::Snapshot) + records(Pass::Changes);
        let share = |done: u64, total: u64| if total == 0 { 1.0 } else { done.min(total) as f64 / total as f64 };
        // The pass of deletes reads rows, and replays none of them yet.
        let replayed = share(self.done.saturating_sub(deletes), total - deletes);
        let rate = self.done.saturating_sub(self.resumed_done) as f64 / self.resumed_seconds.max(0.001);
        let left = total.saturating_sub(self.done) as f64;
        ReplayStatus {
            id: self.id,
            from: self.details.label.clone(),
            tables: self.details.tables.clone(),
            rows: (self.details.rows as f64 * replayed) as u64,
            rows_total: self.details.rows,
            percent: (share(self.done, total) * 1000.0).round() / 10.0,
            eta_seconds: (rate > 0.0).then(|| (left / rate).ceil()),
        }
    }
}

const REPLAY: &str = "
SELECT r.id, r.state, r.details::text, r.outcome, extract(epoch FROM clock_timestamp() - r.resumed_at)::float8, r.resumed_done,
  (SELECT json_agg(json_build_array(o.topic, o.part, o.next_offset))::text FROM cutover.offsets o
   WHERE o.pipeline = r.pipeline AND o.topic LIKE 'replay.%')
FROM cutover.replays r WHERE r.pipeline = $1";

impl Store {
    /// Whether a replay is under way in this pipeline or in one that shares its target.
    pub async fn any_replay(&self) -> Result<bool, StateError> {
        let session = self.session().await?;
        let sql = "SELECT EXISTS (SELECT FROM cutover.replays WHERE state = 'running')";
        Ok(session.client()?.query_one(sql, &[]).await?.get(0))
    }

    /// The replay that is under way.
    pub async fn running_replay(&self) -> Result<Option<Replay>, StateError> {
        let session = self.session().await?;
        let sql = format!("{REPLAY} AND r.state = 'running'");
        let row = session.client()?.query_opt(&sql, &[&self.pipeline]).await?;
        row.map(|row| read(&row)).transpose()
    }

    /// A replay by the number of its request.
    pub async fn replay(&self, id: i64) -> Result<Option<Replay>, StateError> {
        let session = self.session().await?;
        let sql = format!("{REPLAY} AND r.id = $2");
        let row = session.client()?.query_opt(&sql, &[&self.pipeline, &id]).await?;
        row.map(|row| read(&row)).transpose()
    }

    /// Stores a replay that begins, or begins anew, with the offsets of its passes.
    pub(crate) async fn begin_replay(&self, id: i64, details: &Details) -> Result<(), StateError> {
        let json = serde_json::to_string(details)?;
        let (mut topics, mut parts, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        for pass in [Pass::Deletes, Pass::Snapshot, Pass::Changes] {
            for (partition, range) in (0i32..).zip(details.ranges(pass)) {
                topics.push(pass.lane());
                parts.push(partition);
                offsets.push(range.from.cast_signed());
            }
        }
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "WITH noted AS (DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'replay'), \
                      passes AS (INSERT INTO cutover.offsets (pipeline, topic, part, log_epoch, next_offset) \
                        SELECT $1, x.topic, x.part, $4, x.next FROM unnest($5::text[], $6::int[], $7::bigint[]) x(topic, part, next) \
                        ON CONFLICT (pipeline, topic, part) DO UPDATE SET log_epoch = excluded.log_epoch, \
                          next_offset = excluded.next_offset) \
                 INSERT INTO cutover.replays (pipeline, id, state, details) VALUES ($1, $2, 'running', $3::text::jsonb) \
                 ON CONFLICT (pipeline, id) DO UPDATE SET details = excluded.details, resumed_at = now(), resumed_done = 0",
                &[&self.pipeline, &id, &json, &details.log_epoch, &topics, &parts, &offsets],
            )
            .await?;
        Ok(())
    }

    /// Notes that a worker goes on with a replay: its rate counts from now on.
    pub(crate) async fn resume_replay(&self, id: i64) -> Result<(), StateError> {
        let Some(replay) = self.replay(id).await? else { return Ok(()) };
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "UPDATE cutover.replays SET resumed_at = clock_timestamp(), resumed_done = $3 WHERE pipeline = $1 AND id = $2",
                &[&self.pipeline, &id, &replay.done.cast_signed()],
            )
            .await?;
        Ok(())
    }

    /// A replay has come to its end, as `done` or `failed`.
    pub(crate) async fn end_replay(&self, id: i64, state: ReplayState, outcome: &str) -> Result<(), StateError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "WITH noted AS (DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'replay'), \
                      passes AS (DELETE FROM cutover.offsets WHERE pipeline = $1 AND topic LIKE 'replay.%') \
                 UPDATE cutover.replays SET state = $3, outcome = $4, finished_at = clock_timestamp() \
                 WHERE pipeline = $1 AND id = $2",
                &[&self.pipeline, &id, &state.name(), &outcome],
            )
            .await?;
        Ok(())
    }
}

fn read(row: &tokio_postgres::Row) -> Result<Replay, StateError> {
    let broken = |error| StateError::unreadable("a stored replay", &error);
    let details: Details = serde_json::from_str(row.try_get(2)?).map_err(broken)?;
    let offsets: Option<&str> = row.try_get(6)?;
    let offsets: Vec<(String, usize, u64)> =
        offsets.map(serde_json::from_str).transpose().map_err(broken)?.unwrap_or_default();
    let mut done = 0;
    for pass in [Pass::Deletes, Pass::Snapshot, Pass::Changes] {
        for (partition, range) in details.ranges(pass).iter().enumerate() {
            let own = offsets.iter().find(|(topic, part, _)| topic == pass.lane() && *part == partition);
            // The passes of a replay that has ended have no offsets any more.
            done += own.map_or(range.to, |(_, _, next)| *next).clamp(range.from, range.to) - range.from;
        }
    }
    Ok(Replay {
        id: row.try_get(0)?,
        state: ReplayState::read(row.try_get(1)?)?,
        details,
        outcome: row.try_get(3)?,
        done,
        resumed_seconds: row.try_get(4)?,
        resumed_done: row.try_get::<_, i64>(5)?.cast_unsigned(),
    })
}
