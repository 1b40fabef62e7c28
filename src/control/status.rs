//! What `status` shows: the contract's fields, and what helps a person besides.
//!
//! A running worker writes what only it knows (rates, halts, retries) into the target once a second, and so does each process
//! that shares the applying; everything else is read from the pipeline's own tables, so that `status` tells the truth from
//! any host, and without a worker too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{replay::ReplayStatus, store::Store};
use crate::{database::postgres::PgError, observe::Halt};

/// A worker whose report is older than this is not running.
const REPORT_SECONDS_MAX: f64 = 10.0;

const UNDEFINED_TABLE: &str = "42P01";

/// `status --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub phase: Phase,
    /// The copy is complete, nothing waits, and the stream has applied everything captured.
    pub synced: bool,
    /// Null before the first change or heartbeat is applied.
    pub lag_seconds: Option<f64>,
    pub tables: Vec<TableStatus>,
    /// Rows that wait for a parent or a unique value.
    pub waiting: u64,
    /// How long the oldest of them has waited; null when none waits.
    pub waiting_oldest_seconds: Option<f64>,
    /// Open dead letters.
    pub dead_letters: u64,
    /// How long the oldest of them has been open; null when none is.
    pub dead_letters_oldest_seconds: Option<f64>,
    /// Dead letters that an operator has closed: their rows stay as they are at the target.
    pub dead_letters_discarded: u64,
    pub drift_rows: u64,
    pub halted: Option<Halt>,
    /// Whether a worker has reported lately.
    pub worker_running: bool,
    /// The processes that share the applying, where they do (`--role apply`).
    pub appliers: Vec<Applier>,
    /// What the worker is retrying, by part.
    pub retrying: BTreeMap<String, String>,
    pub copied_rows_per_second: f64,
    pub changes_per_second: f64,
    /// Until the copy is complete; null when that cannot be told.
    pub eta_seconds: Option<f64>,
    pub conflicts: u64,
    /// The replay that is under way; null without one.
    #[serde(default)]
    pub replay: Option<ReplayStatus>,
}

/// A process of role `apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applier {
    /// Its host and process number.
    pub process: String,
    pub partitions: Vec<u32>,
}

/// Where a pipeline is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Known, nothing copied yet.
    New,
    /// Tables are being copied while changes are applied.
    Copying,
    /// Every table is copied; changes are applied as they come.
    Following,
}

impl Phase {
    /// Its name in `status --json` and in events.
    pub fn name(self) -> &'static str {
        match self {
            Phase::New => "new",
            Phase::Copying => "copying",
            Phase::Following => "following",
        }
    }
}

/// One source table's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// The source table, as the configuration names it.
    pub table: String,
    /// Rows at the source: an estimate until the copy is complete.
    pub rows: u64,
    /// Rows copied and durable in the target.
    pub copied: u64,
    /// Changes captured from the stream and durable in the target.
    pub applied: u64,
    /// `pending`, `copying` or `copied`.
    pub state: String,
}

/// What only a running worker knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub caught_up: bool,
    pub halted: Option<Halt>,
    pub retrying: BTreeMap<String, String>,
    pub copied_rows_per_second: f64,
    pub changes_per_second: f64,
    /// Changes applied, by source table.
    pub applied: BTreeMap<String, u64>,
    /// The lease under which the worker reports.
    #[serde(default)]
    pub lease_epoch: i64,
}

impl Status {
    /// The share of rows that is copied, 0 to 1.
    pub fn progress(&self) -> f64 {
        let (copied, rows) = self.tables.iter().fold((0, 0), |(c, r), t| (c + t.copied.min(t.rows), r + t.rows));
        match (rows, self.phase) {
            (_, Phase::Following) => 1.0,
            (0, Phase::New | Phase::Copying) => 0.0,
            (rows, Phase::New | Phase::Copying) => copied as f64 / rows as f64,
        }
    }
}

impl Store {
    /// Writes the worker's report.
    pub async fn report(&self, report: &Report) -> Result<(), PgError> {
        let body = serde_json::to_string(report).map_err(|error| PgError::Protocol(error.to_string()))?;
        self.set_note("report", &body).await
    }

    /// The last report, and how many seconds old it is.
    pub async fn last_report(&self) -> Result<Option<(Report, f64)>, PgError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt(
                "SELECT value, extract(epoch FROM clock_timestamp() - updated_at)::float8 FROM cutover.notes \
                 WHERE pipeline = $1 AND key = 'report'",
                &[&self.pipeline],
            )
            .await?;
        // A report of another release may have other fields; it is about a moment and not worth an error.
        Ok(row.and_then(|row| Some((serde_json::from_str(row.get(0)).ok()?, row.get(1)))))
    }

    /// The lease's epoch, whether a worker holds it, and whether that one leaves the applying to others.
    async fn lease(&self) -> Result<(i64, bool, bool), PgError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt(
                "SELECT epoch, expires_at > clock_timestamp(), NOT EXISTS (SELECT FROM cutover.lease a \
                    WHERE a.pipeline = l.pipeline AND a.role = 'apply' AND a.epoch = l.epoch) \
                 FROM cutover.lease l WHERE pipeline = $1 AND role = 'worker'",
                &[&self.pipeline],
            )
            .await?;
        Ok(row.map_or((0, false, false), |row| (row.get(0), row.get(1), row.get(2))))
    }

    /// The pipeline's status, as the target knows it.
    pub async fn status(&self) -> Result<Status, PgError> {
        let (mut report, age) = self.last_report().await?.unwrap_or((Report::default(), f64::INFINITY));
        let (lease_epoch, held, shares) = self.lease().await?;
        // What another worker said last, halts too, is not true of one that has just taken over.
        let reported = report.lease_epoch == lease_epoch;
        if !reported {
            report = Report { applied: report.applied, ..Report::default() };
        }
        let worker_running = held && (!reported || age < REPORT_SECONDS_MAX);
        let members = self.members().await?;
        let elsewhere = self.applied_by_members().await?;
        let applied = |table: &str| [&report.applied, &elsewhere].iter().filter_map(|by| by.get(table)).sum();
        let after_copy_done = self.note("after_copy").await?.as_deref() != Some("pending");
        let session = self.session().await?;
        let client = session.client()?;
        let rows = client
            .query(
                "SELECT source_table, CASE state WHEN 'copied' THEN rows_copied ELSE greatest(rows_estimate, rows_copied) END, \
                        rows_copied, state FROM cutover.tables WHERE pipeline = $1 ORDER BY position, source_table",
                &[&self.pipeline],
            )
            .await?;
        let tables: Vec<TableStatus> = rows
            .iter()
            .map(|row| TableStatus {
                table: row.get(0),
                rows: row.get::<_, i64>(1).cast_unsigned(),
                copied: row.get::<_, i64>(2).cast_unsigned(),
                applied: applied(row.get(0)),
                state: row.get(3),
            })
            .collect();
        let counts = client
            .query_one(
                "SELECT (SELECT count(*) FROM cutover.waiting WHERE pipeline = $1), \
                        (SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'), \
                        (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - min(newest_commit_us) \
                           FROM cutover.offsets WHERE pipeline = $1 AND topic = 'changes' AND newest_commit_us > 0), \
                        (SELECT extract(epoch FROM clock_timestamp() - min(since))::float8 \
                           FROM cutover.waiting WHERE pipeline = $1), \
                        (SELECT extract(epoch FROM clock_timestamp() - min(created_at))::float8 \
                           FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'), \
                        (SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'discarded')",
                &[&self.pipeline],
            )
            .await?;
        drop(session);
        let replay = match self.running_replay().await {
            Ok(replay) => replay.map(|replay| replay.status()),
            // The state of an older release knows of none.
            Err(PgError::Refused(refusal)) if refusal.sqlstate == UNDEFINED_TABLE => None,
            Err(error) => return Err(error),
        };
        let waiting = counts.get::<_, i64>(0).cast_unsigned();
        let phase = phase_of(&tables, after_copy_done);
        let left: u64 = tables.iter().map(|table| table.rows.saturating_sub(table.copied)).sum();
        let rate = report.copied_rows_per_second;
        let mut retrying = if worker_running { report.retrying } else { BTreeMap::new() };
        let mut halted = report.halted;
        let mut appliers = Vec::new();
        if worker_running && shares && members.is_empty() {
            retrying.insert("apply".into(), "no process applies; start one with `cutover run --role apply`".into());
        }
        for (process, said) in members {
            halted = halted.or(said.halted);
            retrying.extend(said.retrying.into_iter().map(|(part, what)| (format!("{part} of {process}"), what)));
            appliers.push(Applier { process, partitions: said.partitions });
        }
        Ok(Status {
            phase,
            synced: worker_running && report.caught_up && halted.is_none() && phase == Phase::Following && waiting == 0,
            lag_seconds: counts.get::<_, Option<i64>>(2).map(|lag_us| lag_us.max(0) as f64 / 1e6),
            tables,
            waiting,
            waiting_oldest_seconds: counts.get(3),
            dead_letters_oldest_seconds: counts.get(4),
            dead_letters: counts.get::<_, i64>(1).cast_unsigned(),
            dead_letters_discarded: counts.get::<_, i64>(5).cast_unsigned(),
            drift_rows: 0,
            halted,
            worker_running,
            appliers,
            retrying,
            copied_rows_per_second: if worker_running { rate } else { 0.0 },
            changes_per_second: if worker_running { report.changes_per_second } else { 0.0 },
            eta_seconds: (worker_running && rate > 0.0 && phase != Phase::Following).then(|| left as f64 / rate),
            conflicts: 0,
            replay,
        })
    }
}

fn phase_of(tables: &[TableStatus], after_copy_done: bool) -> Phase {
    if !tables.is_empty() && after_copy_done && tables.iter().all(|table| table.state == "copied") {
        Phase::Following
    } else if tables.iter().all(|table| table.state == "pending") {
        Phase::New
    } else {
        Phase::Copying
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(state: &str) -> TableStatus {
        TableStatus { table: "t".into(), rows: 10, copied: 5, applied: 0, state: state.into() }
    }

    #[test]
    fn the_copy_is_not_over_before_the_script_after_it_has_run() {
        assert_eq!(phase_of(&[], true), Phase::New);
        assert_eq!(phase_of(&[table("pending")], true), Phase::New);
        assert_eq!(phase_of(&[table("copied"), table("pending")], true), Phase::Copying);
        assert_eq!(phase_of(&[table("copied")], false), Phase::Copying);
        assert_eq!(phase_of(&[table("copied")], true), Phase::Following);
    }
}
