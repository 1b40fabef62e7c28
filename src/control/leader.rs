//! The leader's rounds: what the process with the lease does beside the loops, once or twice a second.
//!
//! ```text
//! round ─► report, status, events ─► what is led settles it ─► requests ─► tombstones ─► the end?
//! ```
//!
//! What is led is a [`Charge`]: a pipeline that captures itself, or one whose changes a connector captures.
//! Deliberately absent: anything that waits for long. A request that takes a while is a task in the background.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    announcer::{self, Announcer},
    dead_letter_topic,
    error::WorkerError,
    worker::{Ended, Worker},
};
use crate::{
    log::LogError,
    observe::metric,
    state::{
        StateError,
        lag_history::LagHistory,
        requests::{POLL_EVERY, Request},
        status::{Phase, Report, Status},
    },
    target::Target,
};

const TICK: Duration = Duration::from_millis(200);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Rows that wait, while nothing else is left to be done, wait for good after this long, if each was tried again
/// meanwhile and all were looked for at the source.
const WAITS_FOR_GOOD: Duration = Duration::from_secs(15);
/// Rates are over this many reports.
const RATE_REPORTS: usize = 10;

/// Where the end is that a worker was asked to run to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It runs until it is stopped.
    Never,
    Ahead,
    Reached,
}

/// What is led.
#[async_trait]
pub(super) trait Charge: Send {
    /// Looks after what changes between two rounds; an outcome if that ends the worker.
    async fn look_after(&mut self, stop: &CancellationToken) -> Result<Option<Ended>, WorkerError>;
    /// Whether the target has everything that there was a moment ago.
    async fn caught_up(&mut self) -> Result<bool, WorkerError>;
    /// Whether the end that the worker was asked to run to is reached.
    fn end(&self) -> End;
    /// Does what this status calls for.
    async fn settle(&mut self, status: &Status, stop: &CancellationToken) -> Result<(), WorkerError>;
    /// Answers a request, or begins what it asks for.
    async fn answer(&mut self, request: &Request) -> Result<(), StateError>;
    fn target(&self) -> Arc<dyn Target>;
    /// Whether the source was asked for all rows that have waited for so many seconds, since they do; true where it
    /// cannot be asked.
    fn has_looked(&self, seconds: f64) -> bool;
    /// Held while a replay begins, and while tombstones are forgotten.
    fn barrier(&self) -> Arc<tokio::sync::Mutex<()>>;
}

/// Something that is due every so often.
pub(super) struct Rounds {
    every: Duration,
    last: Option<Instant>,
}

impl Rounds {
    /// Due at once, and then every so often.
    pub(super) fn at_once(every: Duration) -> Self {
        Rounds { every, last: None }
    }

    /// Due after a first pause.
    pub(super) fn later(every: Duration) -> Self {
        Rounds { every, last: Some(Instant::now()) }
    }

    /// Whether it is due, or wanted `early`; it then counts as done.
    pub(super) fn due(&mut self, early: bool) -> bool {
        let due = early || self.last.is_none_or(|last| last.elapsed() >= self.every);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

/// What a status means for a worker that was asked to run to an end.
pub(super) fn ended(status: &Status, end: End, waits_for_good: bool) -> Option<Ended> {
    let reached = match end {
        End::Never => return None,
        End::Ahead => false,
        End::Reached => true,
    };
    if let Some(halt) = &status.halted {
        return Some(Ended::Halted(halt.clone()));
    }
    let done = reached && status.phase == Phase::Following && status.cascades == 0;
    match (done, status.waiting, status.dead_letters) {
        (false, _, _) => None,
        (true, 0, 0) => Some(Ended::Synced),
        (true, 0, count) => Some(Ended::SyncedWithDeadLetters(count)),
        (true, _, count) => waits_for_good.then(|| Ended::SyncedWithWaiting(status.waiting_for.clone(), count)),
    }
}

/// For how long the same rows wait while nothing else is left to be done.
#[derive(Debug, Default)]
struct Standstill {
    since: Option<Still>,
}

/// Rows that wait, as they were when that began.
#[derive(Debug)]
struct Still {
    began: Instant,
    rows: u64,
    /// How often each had been tried at least, and has been by now.
    tried: (i64, i64),
}

impl Standstill {
    /// Whether rows wait for good by now: none has come or gone for a while, none was freed, each was tried again, and
    /// the source was `looked` at for all of them.
    fn lasts(&mut self, status: &Status, looked: impl Fn(f64) -> bool) -> bool {
        let waits = status.phase == Phase::Following && status.waiting > 0;
        let (true, Some(newest), Some(tried)) = (waits, status.waiting_newest_seconds, status.waiting_tried) else {
            self.since = None;
            return false;
        };
        let still = match self.since.take() {
            Some(still) if still.rows == status.waiting && tried >= still.tried.1 => {
                Still { tried: (still.tried.0, tried), ..still }
            }
            Some(_) | None => Still { began: Instant::now(), rows: status.waiting, tried: (tried, tried) },
        };
        // As many may wait as did, and be others.
        let long = still.began.elapsed() >= WAITS_FOR_GOOD && newest >= WAITS_FOR_GOOD.as_secs_f64();
        let again = still.tried.1 > still.tried.0;
        self.since = Some(still);
        long && again && looked(newest)
    }
}

/// The process that holds the lease.
pub(super) struct Leader<'a> {
    worker: &'a Worker,
    /// The lease's epoch.
    number: i64,
    show: fn(&Status),
    samples: VecDeque<(Instant, u64, u64)>,
    lag: LagHistory,
    announcer: Announcer,
    standstill: Standstill,
    /// What carries on what was told: events, and dead letters.
    carriers: JoinSet<()>,
}

impl<'a> Leader<'a> {
    /// Goes on with what the last leader has counted and told; none if the worker was stopped.
    pub(super) async fn begin(
        worker: &'a Worker,
        number: i64,
        show: fn(&Status),
        stop: &CancellationToken,
    ) -> Result<Option<Self>, WorkerError> {
        let announcer = worker.patiently("state", || async {
            if let Some((report, _)) = worker.store.last_report().await? {
                for (table, changes) in report.applied {
                    worker.frontier.count_changes(&table, changes);
                }
            }
            let lag = worker.store.lag_history().await?;
            Ok((lag, Announcer::resume(Arc::clone(&worker.store), number).await?))
        });
        let Some((lag, announcer)) = announcer.await? else { return Ok(None) };
        let mut leader = Leader {
            worker,
            number,
            show,
            samples: VecDeque::new(),
            lag,
            announcer,
            standstill: Standstill::default(),
            carriers: JoinSet::new(),
        };
        leader.carry(stop)?;
        Ok(Some(leader))
    }

    fn carry(&mut self, stop: &CancellationToken) -> Result<(), LogError> {
        let Worker { config, store, halts, parts, .. } = self.worker;
        let (store, halts) = (Arc::clone(store), Arc::clone(halts));
        self.carriers.spawn(announcer::carry(
            Arc::clone(&store),
            parts.event_sink()?,
            Arc::clone(&halts),
            stop.clone(),
        ));
        if config.log.is_kafka() {
            self.carriers.spawn(dead_letter_topic::carry(Arc::clone(config), store, self.number, halts, stop.clone()));
        }
        Ok(())
    }

    /// Makes its rounds until `stop` or until the end.
    pub(super) async fn lead(
        &mut self,
        charge: &mut dyn Charge,
        stop: &CancellationToken,
    ) -> Result<Ended, WorkerError> {
        let halts = &self.worker.halts;
        let mut reports = Rounds::at_once(REPORT_EVERY);
        let mut requests = Rounds::at_once(POLL_EVERY);
        let mut tombstones = Rounds::later(self.worker.parts.forget_every());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ended::Stopped),
                () = tokio::time::sleep(TICK) => {},
            }
            if let Some(ended) = charge.look_after(stop).await? {
                return Ok(ended);
            }
            if reports.due(charge.end() == End::Reached) {
                match self.report(charge, stop).await {
                    Ok(Some(ended)) => return Ok(ended),
                    Ok(None) => halts.well("state"),
                    Err(error) => halts.trouble("state", &error.to_string()),
                }
            }
            if requests.due(false)
                && let Err(error) = self.answer_requests(charge).await
            {
                halts.trouble("state", &error.to_string());
            }
            if tombstones.due(false) {
                self.forget_tombstones(charge).await;
            }
        }
    }

    /// Lets the carriers, which end with the worker, tell what is left.
    pub(super) async fn stop(mut self) {
        while self.carriers.join_next().await.is_some() {}
    }

    /// Writes the report, shows and tells the status, and says whether that was the end.
    async fn report(
        &mut self,
        charge: &mut dyn Charge,
        stop: &CancellationToken,
    ) -> Result<Option<Ended>, WorkerError> {
        let Worker { store, halts, frontier, parts, .. } = self.worker;
        let caught_up = charge.caught_up().await?;
        let halted = halts.first();
        let mut report = Report {
            caught_up: caught_up && halted.is_none(),
            halted,
            retrying: halts.troubles(),
            applied: frontier.changes(),
            lease_epoch: self.number,
            ..Report::default()
        };
        let before = store.status().await?;
        (report.copied_rows_per_second, report.changes_per_second) = self.rates(&before);
        store.report(&report).await?;
        let status = store.status().await?;
        metrics::gauge!(metric::SNAPSHOT_PROGRESS).set(status.progress());
        (self.show)(&status);
        self.remember(&status).await?;
        self.announcer.tell(&status, status.halted.clone(), parts.environment().now_us() / 1000).await?;
        charge.settle(&status, stop).await?;
        let waits_for_good = self.standstill.lasts(&status, |seconds| charge.has_looked(seconds));
        Ok(ended(&status, charge.end(), waits_for_good))
    }

    /// Keeps the lag for the report of the migration.
    async fn remember(&mut self, status: &Status) -> Result<(), StateError> {
        let Some(lag) = status.lag_seconds else { return Ok(()) };
        let changes = status.tables.iter().map(|table| table.applied).sum();
        let Worker { store, parts, .. } = self.worker;
        if self.lag.add(parts.environment().now_us(), lag, changes) {
            store.set_lag_history(&self.lag).await?;
        }
        Ok(())
    }

    fn rates(&mut self, status: &Status) -> (f64, f64) {
        let copied: u64 = status.tables.iter().map(|table| table.copied).sum();
        let changes: u64 = status.tables.iter().map(|table| table.applied).sum();
        self.samples.push_back((Instant::now(), copied, changes));
        if self.samples.len() > RATE_REPORTS {
            self.samples.pop_front();
        }
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return (0.0, 0.0) };
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        (last.1.saturating_sub(first.1) as f64 / seconds, last.2.saturating_sub(first.2) as f64 / seconds)
    }

    async fn answer_requests(&self, charge: &mut dyn Charge) -> Result<(), StateError> {
        for request in self.worker.store.open_requests().await? {
            charge.answer(&request).await?;
        }
        Ok(())
    }

    /// Forgets tombstones that no late row can meet: nothing is being copied, nothing waits or is
    /// set aside, nothing is replayed, and the stream has passed them (rule 22).
    async fn forget_tombstones(&self, charge: &mut dyn Charge) {
        let Worker { store, frontier, .. } = self.worker;
        // No replay begins meanwhile; one that is about to comes first.
        let Ok(_barrier) = charge.barrier().try_lock_owned() else { return };
        let applied = frontier.applied_clock();
        let idle = store.status().await.is_ok_and(|status| {
            let nothing_left = status.waiting == 0 && status.dead_letters == 0 && status.cascades == 0;
            status.phase == Phase::Following && nothing_left
        });
        if idle
            && applied > 0
            && store.any_replay().await.is_ok_and(|replaying| !replaying)
            && store.is_verified().await.is_ok_and(|verified| !verified)
            && let Err(error) = charge.target().forget_tombstones(applied).await
        {
            tracing::warn!(%error, "old tombstones were not removed; it will be tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(waiting: u64, newest: f64, tried: i64) -> Status {
        serde_json::from_value(serde_json::json!({
            "phase": "following", "synced": false, "tables": [], "waiting": waiting, "waiting_newest_seconds": newest,
            "waiting_tried": tried, "dead_letters": 0, "dead_letters_discarded": 0, "drift_rows": 0,
            "worker_running": true, "appliers": [], "retrying": {}, "copied_rows_per_second": 0.0,
            "changes_per_second": 0.0, "conflicts": 0,
        }))
        .expect("a status")
    }

    /// Whether rows wait for good after 40 seconds of this; each was tried once in four.
    async fn lasts(shown: impl Fn(u32) -> (u64, f64, i64), looked: bool) -> bool {
        let (mut standstill, mut lasted) = (Standstill::default(), false);
        for second in 0..40 {
            let (waiting, newest, tried) = shown(second);
            lasted |= standstill.lasts(&status(waiting, newest, tried), |_| looked);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        lasted
    }

    #[tokio::test(start_paused = true)]
    async fn rows_wait_for_good_once_all_were_tried_and_looked_for_and_none_came_or_went() {
        let still = |second: u32| (3, f64::from(second), i64::from(second / 4));
        assert!(lasts(still, true).await);
        assert!(!lasts(still, false).await, "the source was not asked");
        assert!(
            !lasts(|second| (3, f64::from(second % 10), i64::from(second / 4)), true).await,
            "others took the place"
        );
        assert!(!lasts(|second| (u64::from(99 - second), 90.0, i64::from(second / 4)), true).await, "they come in");
        assert!(!lasts(|_| (3, 90.0, 7), true).await, "none was tried");
        assert!(!lasts(|second| (3, 90.0, i64::from(second % 8) - 1), true).await, "parents come");
    }
}
