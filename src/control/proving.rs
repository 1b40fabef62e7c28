//! The worker compares for ever, at a bounded rate: what writes past cutover is found, and so is a fault of ours.
//!
//! One table after the other, the one that was compared longest ago first; each pass is the command's own comparison,
//! paced. What it finds is noted as the command's is, so that status and metrics know of both. Deliberately absent: any
//! haste. A side that is away, a copy, a halt: the pass is left and begun anew later.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    repairing::{self, RepairRow, Repairs},
    worker::Worker,
};
use crate::{
    config::{VerifyConfig, VerifyLog},
    model::DebeziumConnector,
    observe::metric,
    pipeline::{flow::Flow, refetch::Refetch},
    state::{
        copies::CopyState,
        status::{Phase, Status},
        verifications::VerifiedTable,
    },
    verify::{Ask, Progress, Repair, TableVerdict, Verdict, Verifier, VerifyError},
};

/// A worker that has just begun has other things to do.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// How often it is looked whether a table is due, and what is known is shown.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A table is compared at most this often.
const PASS_EVERY: Duration = Duration::from_secs(600);
/// Rows of one read.
const CHUNK_ROWS_MAX: u64 = 2_000;

pub(super) struct Prover {
    verifier: Verifier,
    refetch: Refetch,
    config: VerifyConfig,
    /// When each table was compared last, or could not be, in µs since the Unix epoch: the others come first.
    tried: BTreeMap<String, i64>,
}

impl Prover {
    /// Begins to compare beside the worker, unless that is turned off.
    pub(super) fn begin(
        worker: &Worker,
        flow: &Flow,
        barrier: Arc<Mutex<()>>,
        stop: &CancellationToken,
    ) -> JoinSet<()> {
        let mut task = JoinSet::new();
        let config = worker.config.verify.clone();
        // There every row that is read is paid for: who wants that asks for it.
        let is_paid_for = matches!(flow.connector, DebeziumConnector::Dynamo);
        if config.rows_per_second == 0 || is_paid_for {
            return task;
        }
        let verifier = Verifier {
            source: Arc::clone(&flow.source),
            target: Arc::clone(&flow.apply.target),
            store: Arc::clone(&worker.store),
            environment: worker.parts.environment(),
            pipeline: flow.pipeline.clone(),
            connector: flow.connector,
            partitions: flow.apply.log.partitions(),
            chunk_rows: CHUNK_ROWS_MAX.min(worker.config.snapshot.chunk_rows).min(config.rows_per_second.max(100)),
            confirm_for: Duration::from_secs(config.confirm_seconds),
            notes_rows: config.log == VerifyLog::Rows,
            rows_per_second: Some(config.rows_per_second),
            barrier: Some(barrier),
        };
        let (prover, stop) =
            (Prover { verifier, refetch: flow.refetch(), config, tried: BTreeMap::new() }, stop.clone());
        task.spawn(async move {
            tokio::select! { biased; () = stop.cancelled() => {}, () = prover.run() => {} }
        });
        task
    }

    async fn run(mut self) {
        let begun = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let looked = self.look(begun.elapsed() > FIRST_AFTER).await;
            if let Err(error) = looked {
                tracing::debug!(%error, "the comparison in the background is left for now");
            }
        }
    }

    /// Shows what is known, and compares the table that is due, if one is.
    async fn look(&mut self, may_begin: bool) -> Result<(), VerifyError> {
        let verified = self.verifier.store.verified().await?;
        let now_us = self.verifier.environment.now_us();
        metrics::gauge!(metric::DRIFT_ROWS).set(verified.iter().map(VerifiedTable::drifted).sum::<u64>() as f64);
        for table in &verified {
            let age = (now_us - table.at_us).max(0) as f64 / 1e6;
            metrics::gauge!(metric::VERIFY_LAST_PASS_AGE, "table" => table.table.clone()).set(age);
        }
        let status = self.verifier.store.status().await?;
        match due(&status, &verified, &self.tried, now_us).filter(|_| may_begin) {
            Some(table) => {
                let passed = self.pass(&table).await;
                self.tried.insert(table, self.verifier.environment.now_us());
                passed
            }
            None => Ok(()),
        }
    }

    async fn pass(&self, table: &str) -> Result<(), VerifyError> {
        let schema = self.verifier.source.schema(table).await?;
        let plans = self.verifier.target.plans();
        let ask = Ask { tables: vec![table.to_owned()], ..Ask::default() };
        let shown = std::sync::atomic::AtomicU64::new(0);
        let show = |Progress { table, rows, .. }: Progress<'_>| {
            // A table that is walked anew counts once.
            let new = rows.saturating_sub(shown.fetch_max(rows, std::sync::atomic::Ordering::Relaxed));
            metrics::counter!(metric::VERIFY_ROWS, "table" => table.to_owned()).increment(new);
        };
        let began = Instant::now();
        let mut verdict = self.verifier.run(std::slice::from_ref(&schema), &plans, &ask, &show).await?;
        self.verifier.note_drift(&verdict).await?;
        let drifted = verdict.drifted();
        if drifted > 0 && self.config.auto_repair && drifted <= self.config.repair_rows_max {
            for table in &verdict.tables {
                // What somebody has discarded stays so, unless it is asked for.
                repairing::send(&self.refetch, &repairs(table, |repair| !repair.was_discarded)).await?;
            }
            verdict = self.verifier.look_again(&[schema], &plans, &ask, verdict).await?;
            self.verifier.note_drift(&verdict).await?;
        }
        self.tell(&verdict, began).await
    }

    async fn tell(&self, verdict: &Verdict, began: Instant) -> Result<(), VerifyError> {
        if verdict.tables.iter().all(|table| table.skipped.is_some()) {
            return Ok(());
        }
        for table in verdict.tables.iter().filter(|table| table.skipped.is_none()) {
            if table.drifted() > 0 {
                tracing::warn!(
                    table = table.table,
                    missing = table.missing,
                    extra = table.extra,
                    different = table.different,
                    "rows have drifted; `cutover verify --review list` names them"
                );
            }
            self.verifier.store.note_verified(&table.noted(self.verifier.environment.now_us())).await?;
        }
        let event = verdict.event(began.elapsed().as_secs_f64());
        Ok(self.verifier.store.tell_of(&event, self.verifier.environment.now_us() / 1000).await?)
    }
}

/// What to ask for, of the rows that can be sent again and are wanted. A row of the source that makes several rows of
/// the target is sent once.
pub(super) fn repairs(table: &TableVerdict, wanted: impl Fn(&Repair) -> bool) -> Repairs {
    let mut rows: BTreeMap<&str, RepairRow> = BTreeMap::new();
    for Repair { key, version, is_extra, .. } in table.repairs.iter().filter(|repair| wanted(repair)) {
        let row = RepairRow { key: key.clone(), version: *version, is_extra: *is_extra };
        let row = rows.entry(key).or_insert(row);
        row.version = row.version.max(*version);
        row.is_extra |= is_extra;
    }
    Repairs { table: table.table.clone(), rows: rows.into_values().collect() }
}

/// The table that was compared, or tried, longest ago, if that is long, while nothing else is to be done.
fn due(status: &Status, verified: &[VerifiedTable], tried: &BTreeMap<String, i64>, now_us: i64) -> Option<String> {
    if status.phase != Phase::Following || status.halted.is_some() || status.replay.is_some() {
        return None;
    }
    let last = |table: &str| {
        let verified = verified.iter().find(|known| known.table == table).map(|known| known.at_us);
        verified.max(tried.get(table).copied()).unwrap_or(i64::MIN)
    };
    let copied = status.tables.iter().filter(|table| table.state == CopyState::Copied);
    let (at_us, table) = copied.map(|table| (last(&table.table), &table.table)).min()?;
    let is_due = now_us.saturating_sub(at_us) > i64::try_from(PASS_EVERY.as_micros()).unwrap_or(i64::MAX);
    is_due.then(|| table.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::status::TableStatus;

    fn status(tables: &[(&str, CopyState)]) -> Status {
        let json = serde_json::json!({
            "phase": "following", "synced": true, "lag_seconds": 0.1, "tables": [], "waiting": 0,
            "waiting_oldest_seconds": null, "dead_letters": 0, "dead_letters_oldest_seconds": null,
            "dead_letters_discarded": 0, "drift_rows": 0, "halted": null, "worker_running": true, "appliers": [],
            "retrying": {}, "copied_rows_per_second": 0.0, "changes_per_second": 0.0, "eta_seconds": null, "conflicts": 0
        });
        let mut status: Status = serde_json::from_value(json).expect("a status");
        let of = |(table, state): &(&str, CopyState)| TableStatus {
            table: (*table).into(),
            rows: 1,
            copied: 1,
            applied: 0,
            state: *state,
        };
        status.tables = tables.iter().map(of).collect();
        status
    }

    fn verified(table: &str, at_us: i64) -> VerifiedTable {
        VerifiedTable { table: table.into(), rows: 1, missing: 0, extra: 0, different: 0, is_clean: true, at_us }
    }

    #[test]
    fn the_table_that_was_compared_longest_ago_is_next_and_none_too_often() {
        let now = 10_000_000_000;
        let following = status(&[("a", CopyState::Copied), ("b", CopyState::Copied)]);
        let due = |status: &Status, verified: &[VerifiedTable]| due(status, verified, &BTreeMap::new(), now);
        assert_eq!(due(&following, &[verified("a", now - 1)]).as_deref(), Some("b"));
        let long_ago = now - 601_000_000;
        assert_eq!(due(&following, &[verified("a", long_ago), verified("b", now)]).as_deref(), Some("a"));
        assert_eq!(due(&following, &[verified("a", now), verified("b", now)]), None);
        let copying = Status { phase: Phase::Copying, ..following };
        assert_eq!(due(&copying, &[]), None);
    }

    #[test]
    fn a_table_that_cannot_be_compared_keeps_no_other_from_its_turn() {
        let now = 10_000_000_000;
        let following = status(&[("a", CopyState::Copied), ("b", CopyState::Copied)]);
        let mut tried = BTreeMap::new();
        assert_eq!(due(&following, &[], &tried, now).as_deref(), Some("a"));
        tried.insert("a".to_owned(), now);
        assert_eq!(due(&following, &[], &tried, now).as_deref(), Some("b"));
        tried.insert("b".to_owned(), now + 1);
        assert_eq!(due(&following, &[], &tried, now + 2), None, "none too often");
        assert_eq!(due(&following, &[], &tried, now + 601_000_000).as_deref(), Some("a"));
    }
}
