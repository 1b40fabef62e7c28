//! The steward: what happens beside the loops, once or twice a second.
//!
//! There is one, in the process that holds the lease. It reports, answers requests, runs the script after the copy, forgets
//! tombstones that nothing can need, and notices when the pipeline is synced.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    applying::Applying,
    jobs::{self, Jobs},
    replay::Replayer,
    requests,
    status::{Phase, Report, Status},
    target::{PgTarget, TargetError},
    teller::Teller,
    worker::{Ended, Worker, WorkerError, postgres_options},
};
use crate::{
    database::postgres::{self, PgError},
    log::Log,
    model::Position,
    observe::{Halt, metric, now_us},
    snapshot::refetch::Refetch,
};

const TICK: Duration = Duration::from_millis(200);
const REPORT_EVERY: Duration = Duration::from_secs(1);
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Rates are over this many reports.
const RATE_REPORTS: usize = 10;
/// A stream whose newest commit or heartbeat is older than this is not caught up.
const CAUGHT_UP_SECONDS_MAX: f64 = 5.0;
/// The note of a script that has not run yet.
const NOTE_PENDING: &str = "pending";

pub(super) struct Steward {
    worker: Worker,
    log: Arc<dyn Log>,
    target: Arc<PgTarget>,
    /// Where the source was when a worker that is to run until synced was started.
    end: Option<Position>,
    /// The log offsets at which `end` was captured.
    end_offsets: Option<Vec<u64>>,
    /// Where capture was at the last report.
    captured_before: Vec<u64>,
    show: fn(&Status),
    applying: Applying,
    jobs: Jobs,
    samples: VecDeque<(Instant, u64, u64)>,
    /// None until `run`.
    teller: Option<Teller>,
}

impl Steward {
    pub(super) fn new(
        worker: Worker,
        log: Arc<dyn Log>,
        target: Arc<PgTarget>,
        refetch: Refetch,
        end: Option<Position>,
        show: fn(&Status),
    ) -> Self {
        Steward {
            jobs: Jobs::new(
                &worker,
                Replayer {
                    config: Arc::clone(&worker.config),
                    store: Arc::clone(&worker.store),
                    log: Arc::clone(&log),
                    target: Arc::clone(&target),
                    refetch,
                },
            ),
            applying: Applying::new(worker.role),
            worker,
            log,
            target,
            end,
            end_offsets: None,
            captured_before: Vec::new(),
            show,
            samples: VecDeque::new(),
            teller: None,
        }
    }

    /// Starts the apply loops and looks after the pipeline until `stop` or until it is synced.
    pub(super) async fn run(&mut self, stop: CancellationToken) -> Result<Ended, WorkerError> {
        let prepared = self.worker.patiently("state", || async {
            self.remember_counts().await?;
            self.note_script().await?;
            let (epoch, partitions) = (self.log.epoch(), self.log.partitions());
            self.worker.store.note_transforms(epoch, partitions, &self.target.plans()).await?;
            Ok(Teller::resume(Arc::clone(&self.worker.store), self.target.lease_epoch).await?)
        });
        let Some(teller) = prepared.await? else { return Ok(Ended::Stopped) };
        self.teller = Some(teller);
        self.jobs.go_on_replaying();
        self.start_applying(&stop).await;
        let (mut reported, mut polled, mut forgot) = (None::<Instant>, None::<Instant>, Instant::now());
        loop {
            tokio::select! { () = stop.cancelled() => return Ok(Ended::Stopped), () = tokio::time::sleep(TICK) => {} }
            self.note_end();
            let due = |last: Option<Instant>, every: Duration| last.is_none_or(|last| last.elapsed() >= every);
            if due(reported, REPORT_EVERY) || self.end_reached() {
                reported = Some(Instant::now());
                match self.report(&stop).await {
                    Ok(Some(ended)) => return Ok(ended),
                    Ok(None) => self.worker.halts.well("state"),
                    Err(error) => self.worker.halts.trouble("state", &error.to_string()),
                }
            }
            if due(polled, requests::POLL_EVERY) {
                polled = Some(Instant::now());
                if let Err(error) = self.answer_requests().await {
                    self.worker.halts.trouble("state", &error.to_string());
                }
            }
            if forgot.elapsed() >= FORGET_EVERY {
                forgot = Instant::now();
                self.forget_tombstones().await;
            }
        }
    }

    /// Ends what was begun on request, which the next worker begins again, and stops the apply loops.
    pub(super) async fn stop(&mut self) {
        self.jobs.stop().await;
        self.stop_applying().await;
    }

    /// Stops the apply loops and waits for the batches at work.
    async fn stop_applying(&mut self) {
        self.applying.stop().await;
    }

    async fn start_applying(&mut self, stop: &CancellationToken) {
        self.applying.start(&self.worker, &self.log, &self.target, stop).await;
    }

    /// Goes on counting where the last worker stopped.
    async fn remember_counts(&self) -> Result<(), PgError> {
        if let Some((report, _)) = self.worker.store.last_report().await? {
            for (table, changes) in report.applied {
                self.worker.frontier.count_changes(&table, changes);
            }
        }
        Ok(())
    }

    /// A script that is configured and has not run is still to run.
    async fn note_script(&self) -> Result<(), PgError> {
        let store = &self.worker.store;
        let noted = store.note("after_copy").await?;
        match (&self.worker.config.target.after_copy, noted.as_deref()) {
            (Some(_), None) => store.set_note("after_copy", NOTE_PENDING).await,
            (None, Some(NOTE_PENDING)) => store.set_note("after_copy", "none").await,
            (Some(_), Some(_)) | (None, Some(_) | None) => Ok(()),
        }
    }

    /// Writes the report, shows the status, and tells whether that was the end.
    async fn report(&mut self, stop: &CancellationToken) -> Result<Option<Ended>, WorkerError> {
        let frontier = &self.worker.frontier;
        let captured = frontier.watch_captured().borrow().clone();
        // Others are heard of a little later than capture goes on.
        let before = std::mem::take(&mut self.captured_before);
        let heard = matches!(self.applying, Applying::Elsewhere) && !before.is_empty() && frontier.reached(&before);
        let applied_all = heard || captured.as_ref().is_some_and(|captured| frontier.reached(&captured.ends));
        self.captured_before = captured.map(|captured| captured.ends).unwrap_or_default();
        let fresh = frontier.capture_lag_seconds(now_us()).is_some_and(|lag| lag < CAUGHT_UP_SECONDS_MAX);
        let halted = self.worker.halts.first();
        let changes = frontier.changes();
        let mut report = Report {
            caught_up: applied_all && fresh && halted.is_none(),
            halted,
            retrying: self.worker.halts.troubles(),
            applied: changes,
            lease_epoch: self.target.lease_epoch,
            ..Report::default()
        };
        let before = self.worker.store.status().await?;
        (report.copied_rows_per_second, report.changes_per_second) = self.rates(&before);
        self.worker.store.report(&report).await?;
        let status = self.worker.store.status().await?;
        metrics::gauge!(metric::SNAPSHOT_PROGRESS).set(status.progress());
        (self.show)(&status);
        if let Some(teller) = &mut self.teller {
            teller.tell(&status, status.halted.clone(), now_us() / 1000).await?;
        }
        if status.tables.iter().all(|table| table.state == "copied") && status.phase == Phase::Copying {
            self.run_script(stop).await?;
        }
        Ok(self.ended(&status))
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

    /// Once capture has passed the point where the source was at the start, notes where that is in the log.
    fn note_end(&mut self) {
        let (Some(end), None) = (&self.end, &self.end_offsets) else { return };
        let captured = self.worker.frontier.watch_captured().borrow().clone();
        if let Some(captured) = captured.filter(|captured| captured.position.covers(end)) {
            self.end_offsets = Some(captured.ends);
        }
    }

    fn end_reached(&self) -> bool {
        self.end_offsets.as_ref().is_some_and(|ends| self.worker.frontier.reached(ends))
    }

    fn ended(&self, status: &Status) -> Option<Ended> {
        self.end.as_ref()?;
        if let Some(halt) = &status.halted {
            return Some(Ended::Halted(halt.clone()));
        }
        let synced = self.end_reached() && status.phase == Phase::Following && status.waiting == 0;
        match (synced, status.dead_letters) {
            (false, _) => None,
            (true, 0) => Some(Ended::Synced),
            (true, count) => Some(Ended::SyncedWithDeadLetters(count)),
        }
    }

    /// Runs `[target] after_copy`, once, when every table is copied and the stream has passed what the copies saw
    /// (their barriers): each end of a batch is then a state that the source was in.
    ///
    /// The apply loops rest meanwhile: what the script makes (indexes, foreign keys) changes how they write.
    async fn run_script(&mut self, stop: &CancellationToken) -> Result<(), WorkerError> {
        let Some(file) = self.worker.config.target.after_copy.clone() else { return Ok(()) };
        if self.worker.halts.first().is_some() {
            return Ok(());
        }
        if let Err(error) = self.applying.rest(&self.worker, self.target.lease_epoch).await {
            self.start_applying(stop).await;
            return Err(error.into());
        }
        tracing::info!(file = %file.display(), "the copy is complete; running the script after it");
        let ran = self.execute_script(&file).await;
        let done = match ran {
            Ok(()) => {
                tracing::info!("the script after the copy has run");
                true
            }
            Err(PgError::Unreachable(why)) => {
                self.worker.halts.trouble("after_copy", &why);
                false
            }
            Err(error) => {
                let reason = format!("the script after the copy failed, and nothing of it was kept: {error}");
                let remedy = "correct the script (or what it met) and restart the worker; the stream goes on meanwhile";
                self.worker.halts.halt("after_copy", Halt { reason, remedy: remedy.into() });
                false
            }
        };
        // A connection that broke may have committed: whatever was heard, the tables may be other ones now.
        if let Err(error) = self.plan_again(stop).await {
            let remedy = "make target tables and transforms fit and restart the worker; the log keeps everything";
            self.worker.halts.halt("after_copy", Halt { reason: error.to_string(), remedy: remedy.into() });
            return Ok(());
        }
        if done {
            self.worker.halts.well("after_copy");
        }
        self.start_applying(stop).await;
        Ok(())
    }

    /// Plans with the tables as the script has left them. Without that nothing more is applied, so it is tried until it works.
    async fn plan_again(&self, stop: &CancellationToken) -> Result<(), TargetError> {
        loop {
            match self.target.reload().await {
                Err(TargetError::Postgres(PgError::Unreachable(why))) => self.worker.halts.trouble("after_copy", &why),
                planned => return planned,
            }
            tokio::select! { () = stop.cancelled() => return Ok(()), () = tokio::time::sleep(REPORT_EVERY) => {} }
        }
    }

    /// The script and the note that it has run are one transaction.
    async fn execute_script(&self, file: &std::path::Path) -> Result<(), PgError> {
        let config = &self.worker.config;
        let path = config.path(file);
        let script = tokio::fs::read_to_string(&path)
            .await
            .map_err(|error| PgError::Protocol(format!("{} cannot be read: {error}", path.display())))?;
        let target = postgres::Target::parse(&config.target.url).map_err(|error| PgError::Login(error.to_string()))?;
        let session = postgres::Session::open(&target, &postgres_options(config, "after copy", false)).await?;
        let schema = postgres::sql::ident(&config.target.schema);
        let client = &session.client;
        client
            .batch_execute(&format!(
                "SET statement_timeout = 0; SET lock_timeout = '1min'; SET search_path = {schema}, pg_catalog; BEGIN"
            ))
            .await?;
        client.batch_execute(&script).await.map_err(|error| located(error.into(), &path, &script))?;
        client
            .execute(
                "UPDATE cutover.notes SET value = 'done' WHERE pipeline = $1 AND key = 'after_copy'",
                &[&config.name],
            )
            .await?;
        client.batch_execute("COMMIT").await?;
        Ok(())
    }

    async fn answer_requests(&mut self) -> Result<(), PgError> {
        let store = Arc::clone(&self.worker.store);
        for request in store.open_requests().await? {
            match request.command.as_str() {
                "resnapshot" if store.queue_copy(&request.subject, 0).await? => {
                    tracing::info!(table = %request.subject, "asked to copy the table again");
                    // A capture that lost its place waits for all of them.
                    let lost =
                        self.worker.frontier.watch_captured().borrow().is_none() && self.worker.halts.first().is_some();
                    let left = if lost { store.not_to_be_copied_again().await? } else { Vec::new() };
                    let answer = match left.join(", ") {
                        left if left.is_empty() => "queued".to_owned(),
                        left => {
                            format!("queued; the copy begins when every table is to be copied again, not yet {left}")
                        }
                    };
                    store.answer(request.id, "done", &answer).await?;
                }
                "resnapshot" => {
                    let text = format!("the pipeline has no source table `{}`", request.subject);
                    store.answer(request.id, "refused", &text).await?;
                }
                "dlq retry" => self.jobs.retry(&request),
                "replay" => self.jobs.replay(&request),
                "dlq discard" => {
                    let discarded = store.discard_letters(&jobs::ids(&request)).await?;
                    tracing::warn!(discarded, "dead letters were closed; their rows stay as they are at the target");
                    store.answer(request.id, "done", &discarded.to_string()).await?;
                }
                other => {
                    let text = format!("this worker does not know the request `{other}`; use a newer one");
                    store.answer(request.id, "refused", &text).await?;
                }
            }
        }
        Ok(())
    }

    /// Forgets tombstones that no late row can meet: nothing is being copied, nothing waits or is
    /// set aside, nothing is replayed, and the stream has passed them (CORRECTNESS rule 22).
    async fn forget_tombstones(&self) {
        // No replay begins meanwhile; one that is about to comes first.
        let Ok(_barrier) = self.jobs.barrier().try_lock_owned() else { return };
        let applied = self.worker.frontier.applied_clock();
        let idle =
            self.worker.store.status().await.is_ok_and(|status| {
                status.phase == Phase::Following && status.waiting == 0 && status.dead_letters == 0
            });
        if idle
            && applied > 0
            && self.worker.store.any_replay().await.is_ok_and(|replaying| !replaying)
            && let Err(error) = self.target.forget_tombstones(applied).await
        {
            tracing::warn!(%error, "old tombstones were not removed; it will be tried again");
        }
    }
}

/// What a script met, with the place in it where the server can tell.
fn located(error: PgError, file: &std::path::Path, script: &str) -> PgError {
    let PgError::Refused(mut refusal) = error else { return error };
    let place = refusal.position.map(|position| {
        let before: String = script.chars().take((position as usize).saturating_sub(1)).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!(":{line}:{column}")
    });
    refusal.message = format!("{}{}: {}", file.display(), place.unwrap_or_default(), refusal.message);
    PgError::Refused(refusal)
}
