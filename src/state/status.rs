//! What `status` shows: the contract's fields, and what helps a person besides.
//!
//! A running worker writes what only it knows (rates, halts, retries) into the target once a second, and so does each
//! process that shares the applying; everything else is read from the pipeline's own tables, so that `status` tells
//! the truth from any host, and without a worker too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    StateError, Store, copies::CopyState, notes::AfterCopy, replays::ReplayStatus, spelled::spelled,
    verifications::VerifiedTable, waiting::WaitingFor,
};
use crate::{database::postgres::PgError, model::Problem};

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
    /// How long the newest of them has waited; null when none waits.
    #[serde(default)]
    pub waiting_newest_seconds: Option<f64>,
    /// How often each of them was tried again at least, or -1 where one was freed since; null when none waits.
    #[serde(default)]
    pub waiting_tried: Option<i64>,
    /// What they wait for, those first that wait longest; ten reasons at most.
    #[serde(default)]
    pub waiting_for: Vec<WaitingFor>,
    /// Open dead letters.
    pub dead_letters: u64,
    /// How long the oldest of them has been open; null when none is.
    pub dead_letters_oldest_seconds: Option<f64>,
    /// Dead letters that an operator has closed: their rows stay as they are at the target.
    pub dead_letters_discarded: u64,
    /// Parents whose children may have changed unseen and are still to be read again.
    #[serde(default)]
    pub cascades: u64,
    pub drift_rows: u64,
    pub halted: Option<Problem>,
    /// Whether a worker has reported lately.
    pub worker_running: bool,
    /// The processes that share the applying, where they do (`--role apply`).
    pub appliers: Vec<ApplierStatus>,
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
    /// What the last whole comparison of each table found.
    #[serde(default)]
    pub verified: Vec<VerifiedTable>,
}

/// A process of role `apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplierStatus {
    /// Its host and process number.
    pub process: String,
    pub partitions: Vec<u32>,
}

spelled! {
    /// Where a pipeline is in its life.
    #[derive(PartialOrd, Ord)]
    pub enum Phase: "phase" {
        /// Known, nothing copied yet.
        New = "new",
        /// Tables are being copied while changes are applied.
        Copying = "copying",
        /// Every table is copied; changes are applied as they come.
        Following = "following",
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
    pub state: CopyState,
}

/// What only a running worker knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub caught_up: bool,
    pub halted: Option<Problem>,
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
    pub async fn report(&self, report: &Report) -> Result<(), StateError> {
        let body = serde_json::to_string(report)?;
        self.set_note("report", &body).await
    }

    /// The last report, and how many seconds old it is.
    pub async fn last_report(&self) -> Result<Option<(Report, f64)>, StateError> {
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
    async fn lease(&self) -> Result<(i64, bool, bool), StateError> {
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
    pub async fn status(&self) -> Result<Status, StateError> {
        let (mut report, age) = self.last_report().await?.unwrap_or((Report::default(), f64::INFINITY));
        let (lease_epoch, held, shares) = self.lease().await?;
        // What another worker said last, halts too, is not true of one that has just taken over.
        let reported = report.lease_epoch == lease_epoch;
        if !reported {
            report = Report { applied: report.applied, ..Report::default() };
        }
        let worker_running = held && (!reported || age < REPORT_SECONDS_MAX);
        let processes = self.appliers().await?;
        let elsewhere = self.applied_by_appliers().await?;
        let after_copy_done = self.after_copy().await? != Some(AfterCopy::Pending);
        let tables = self.table_statuses(&[&report.applied, &elsewhere]).await?;
        let counts = self.counts().await?;
        let (replay, cascades) = (self.replay_status().await?, self.cascades_left().await?);
        let phase = phase_of(&tables, after_copy_done);
        let left: u64 = tables.iter().map(|table| table.rows.saturating_sub(table.copied)).sum();
        let rate = report.copied_rows_per_second;
        let mut retrying = if worker_running { report.retrying } else { BTreeMap::new() };
        let mut halted = report.halted;
        let mut appliers = Vec::new();
        if worker_running && shares && processes.is_empty() {
            retrying.insert("apply".into(), "no process applies; start one with `cutover run --role apply`".into());
        }
        for (process, said) in processes {
            halted = halted.or(said.halted);
            retrying.extend(said.retrying.into_iter().map(|(part, what)| (format!("{part} of {process}"), what)));
            appliers.push(ApplierStatus { process, partitions: said.partitions });
        }
        let nothing_left = counts.waiting == 0 && cascades == 0;
        let in_step = report.caught_up && halted.is_none() && phase == Phase::Following && nothing_left;
        Ok(Status {
            phase,
            synced: worker_running && in_step,
            lag_seconds: counts.lag_us.map(|lag_us| lag_us.max(0) as f64 / 1e6),
            tables,
            waiting: counts.waiting,
            waiting_oldest_seconds: counts.waiting_oldest_seconds,
            waiting_newest_seconds: counts.waiting_newest_seconds,
            waiting_tried: counts.waiting_tried,
            waiting_for: if counts.waiting > 0 { self.waiting_for().await? } else { Vec::new() },
            dead_letters: counts.dead_letters,
            dead_letters_oldest_seconds: counts.dead_letters_oldest_seconds,
            dead_letters_discarded: counts.dead_letters_discarded,
            cascades,
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
            verified: Vec::new(),
        })
    }

    /// The same, with what the last comparisons found.
    pub async fn proven_status(&self) -> Result<Status, StateError> {
        let (status, verified) = (self.status().await?, self.verified().await?);
        Ok(Status { drift_rows: verified.iter().map(VerifiedTable::drifted).sum(), verified, ..status })
    }

    /// Each table's progress, with what was applied to it by all of these.
    async fn table_statuses(&self, applied: &[&BTreeMap<String, u64>]) -> Result<Vec<TableStatus>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT source_table, CASE state WHEN 'copied' THEN rows_copied ELSE greatest(rows_estimate, rows_copied) END, \
                        rows_copied, state FROM cutover.tables WHERE pipeline = $1 ORDER BY position, source_table",
                &[&self.pipeline],
            )
            .await?;
        let status = |row: &tokio_postgres::Row| {
            let table: String = row.get(0);
            Ok(TableStatus {
                rows: row.get::<_, i64>(1).cast_unsigned(),
                copied: row.get::<_, i64>(2).cast_unsigned(),
                applied: applied.iter().filter_map(|by| by.get(&table)).sum(),
                state: CopyState::read(row.get(3))?,
                table,
            })
        };
        rows.iter().map(status).collect()
    }

    async fn counts(&self) -> Result<Counts, StateError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_one(
                "SELECT (SELECT count(*) FROM cutover.waiting WHERE pipeline = $1), \
                        (SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'), \
                        (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint - min(newest_commit_us) \
                           FROM cutover.offsets WHERE pipeline = $1 AND topic = 'changes' AND newest_commit_us > 0), \
                        (SELECT extract(epoch FROM clock_timestamp() - min(since))::float8 \
                           FROM cutover.waiting WHERE pipeline = $1), \
                        (SELECT extract(epoch FROM clock_timestamp() - min(created_at))::float8 \
                           FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'), \
                        (SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'discarded'), \
                        (SELECT extract(epoch FROM clock_timestamp() - max(since))::float8 \
                           FROM cutover.waiting WHERE pipeline = $1), \
                        (SELECT min(attempts)::bigint FROM cutover.waiting WHERE pipeline = $1)",
                &[&self.pipeline],
            )
            .await?;
        Ok(Counts {
            waiting: row.get::<_, i64>(0).cast_unsigned(),
            dead_letters: row.get::<_, i64>(1).cast_unsigned(),
            lag_us: row.get(2),
            waiting_oldest_seconds: row.get(3),
            dead_letters_oldest_seconds: row.get(4),
            dead_letters_discarded: row.get::<_, i64>(5).cast_unsigned(),
            waiting_newest_seconds: row.get(6),
            waiting_tried: row.get(7),
        })
    }

    async fn cascades_left(&self) -> Result<u64, StateError> {
        match self.count_cascades().await {
            // The state of an older release knows of none.
            Err(StateError::Postgres(PgError::Refused(refusal))) if refusal.sqlstate == UNDEFINED_TABLE => Ok(0),
            counted => counted,
        }
    }

    async fn replay_status(&self) -> Result<Option<ReplayStatus>, StateError> {
        match self.running_replay().await {
            Ok(replay) => Ok(replay.map(|replay| replay.status())),
            // The state of an older release knows of none.
            Err(StateError::Postgres(PgError::Refused(refusal))) if refusal.sqlstate == UNDEFINED_TABLE => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is counted over all tables.
struct Counts {
    waiting: u64,
    waiting_oldest_seconds: Option<f64>,
    waiting_newest_seconds: Option<f64>,
    waiting_tried: Option<i64>,
    dead_letters: u64,
    dead_letters_oldest_seconds: Option<f64>,
    dead_letters_discarded: u64,
    /// Since the newest commit or heartbeat that every partition has.
    lag_us: Option<i64>,
}

fn phase_of(tables: &[TableStatus], after_copy_done: bool) -> Phase {
    if !tables.is_empty() && after_copy_done && tables.iter().all(|table| table.state == CopyState::Copied) {
        Phase::Following
    } else if tables.iter().all(|table| table.state == CopyState::Pending) {
        Phase::New
    } else {
        Phase::Copying
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(state: CopyState) -> TableStatus {
        TableStatus { table: "t".into(), rows: 10, copied: 5, applied: 0, state }
    }

    #[test]
    fn the_copy_is_not_over_before_the_script_after_it_has_run() {
        assert_eq!(phase_of(&[], true), Phase::New);
        assert_eq!(phase_of(&[table(CopyState::Pending)], true), Phase::New);
        assert_eq!(phase_of(&[table(CopyState::Copied), table(CopyState::Pending)], true), Phase::Copying);
        assert_eq!(phase_of(&[table(CopyState::Copied)], false), Phase::Copying);
        assert_eq!(phase_of(&[table(CopyState::Copied)], true), Phase::Following);
    }
}
