//! A pipeline that captures its source itself, as its leader has it: the flow, the script after the copy, requests.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    applying::Applying,
    background::{self, Background},
    cascades::Follower,
    error::WorkerError,
    leader::{Charge, End, Rounds},
    proving::Prover,
    replay::Replayer,
    worker::{Ended, Worker},
};
use crate::{
    model::{Position, Problem, SourceKind},
    pipeline::flow::Flow,
    state::{
        StateError,
        copies::CopyState,
        notes::AfterCopy,
        requests::{Command, Request, RequestState},
        status::{Phase, Status},
    },
    target::{Target, TargetError, TargetKind},
    transform::transforms_hash,
};

const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How often rows that wait are looked for at the source, once they have waited for so long; and how often by a worker
/// that ends when nothing else is left to be done.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_EVERY_AT_THE_END: Duration = Duration::from_secs(10);
const LOOK_AFTER_SECONDS: f64 = 4.0;
/// A stream whose newest commit or heartbeat is older than this is not caught up.
const CAUGHT_UP_SECONDS_MAX: f64 = 5.0;

pub(super) struct Capturing {
    worker: Worker,
    flow: Flow,
    /// Where the source was when a worker that is to run until synced was started.
    end: Option<Position>,
    /// The log offsets at which `end` was captured.
    end_offsets: Option<Vec<u64>>,
    /// Where capture was at the last report.
    captured_before: Vec<u64>,
    applying: Applying,
    background: Background,
    looks: Rounds,
    /// Compares in the background.
    proving: JoinSet<()>,
    /// Follows cascades that the source does not log.
    cascades: JoinSet<()>,
}

impl Capturing {
    /// Prepares the state, goes on with a replay that the last leader left, and starts the apply loops; none if the
    /// worker was stopped before.
    pub(super) async fn begin(
        worker: &Worker,
        flow: Flow,
        end: Option<Position>,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, WorkerError> {
        let refetch = flow.refetch();
        let mut cascades = JoinSet::new();
        // Whatever [source] cascades says now: what was stored before is followed to its end.
        if worker.config.source.kind() == Some(SourceKind::Mysql) {
            let (store, target) = (worker.parts.store()?, Arc::clone(&flow.apply.target));
            cascades.spawn(Follower::new(worker, store, target, refetch.clone()).run(stop.clone()));
        }
        let replayer = Replayer { store: Arc::clone(&worker.store), apply: flow.apply.clone(), refetch };
        let mut capturing = Capturing {
            applying: Applying::new(worker.role),
            background: Background::new(worker, replayer),
            looks: Rounds::at_once(if end.is_some() { LOOK_EVERY_AT_THE_END } else { LOOK_EVERY }),
            proving: JoinSet::new(),
            worker: worker.clone(),
            flow,
            end,
            end_offsets: None,
            captured_before: Vec::new(),
            cascades,
        };
        let prepared = worker.patiently("state", || async {
            capturing.note_script().await?;
            let log = &capturing.flow.apply.log;
            let plans = capturing.target().plans();
            worker.store.note_transforms(log.epoch(), log.partitions(), &transforms_hash(&plans), &plans).await?;
            Ok(())
        });
        let Some(()) = prepared.await? else { return Ok(None) };
        capturing.background.go_on_replaying();
        capturing.proving = Prover::begin(worker, &capturing.flow, capturing.background.barrier(), stop);
        capturing.start_applying(stop).await;
        Ok(Some(capturing))
    }

    /// Ends what was begun on request, which the next worker begins again, and stops the apply loops.
    pub(super) async fn stop(&mut self) {
        self.proving.shutdown().await;
        self.background.stop().await;
        // What one is in the middle of is stored, and begins again.
        self.cascades.shutdown().await;
        self.applying.stop().await;
    }

    async fn start_applying(&mut self, stop: &CancellationToken) {
        self.applying.start(&self.worker, &self.flow.apply, stop).await;
    }

    /// A script that is configured and has not run is still to run.
    async fn note_script(&self) -> Result<(), StateError> {
        let store = &self.worker.store;
        match (&self.worker.config.target.after_copy, store.after_copy().await?) {
            (Some(_), None) => store.set_after_copy(AfterCopy::Pending).await,
            (None, Some(AfterCopy::Pending)) => store.set_after_copy(AfterCopy::None).await,
            (Some(_), Some(_)) | (None, Some(AfterCopy::None | AfterCopy::Done) | None) => Ok(()),
        }
    }

    /// Once capture has passed the point where the source was at the start, notes where that is in the log.
    fn note_end(&mut self) {
        let (Some(end), None) = (&self.end, &self.end_offsets) else { return };
        let captured = self.worker.frontier.watch_captured().borrow().clone();
        if let Some(captured) = captured.filter(|captured| captured.position.covers(end)) {
            self.end_offsets = Some(captured.ends);
        }
    }

    /// Runs `[target] after_copy`, once, when every table is copied and the stream has passed what the copies saw
    /// (their barriers): each end of a batch is then a state that the source was in.
    ///
    /// The apply loops rest meanwhile: what the script makes (indexes, foreign keys) changes how they write.
    async fn run_script(&mut self, file: PathBuf, stop: &CancellationToken) -> Result<(), WorkerError> {
        let number = self.target().number();
        if let Err(error) = self.applying.rest(&self.worker, number).await {
            self.start_applying(stop).await;
            return Err(error.into());
        }
        tracing::info!(file = %file.display(), "the copy is complete; running the script after it");
        let ran = self.target().run_script(&self.worker.config.path(&file)).await;
        let halts = &self.worker.halts;
        let done = match ran {
            Ok(()) => {
                tracing::info!("the script after the copy has run");
                true
            }
            Err(error) if error.is_outage() => {
                halts.trouble("after_copy", &error.to_string());
                false
            }
            Err(error) => {
                // MySQL commits each of its statements by itself, which the error tells.
                let kept = match self.worker.config.target.kind() {
                    Some(TargetKind::Mysql) => "",
                    Some(TargetKind::Postgres) | None => ", and nothing of it was kept",
                };
                let reason = format!("the script after the copy failed{kept}: {error}");
                let remedy = "correct the script (or what it met) and restart the worker; the stream goes on meanwhile";
                halts.halt("after_copy", Problem::new(reason, remedy));
                false
            }
        };
        // A connection that broke may have committed: whatever was heard, the tables may be other ones now.
        if let Err(error) = self.plan_again(stop).await {
            let remedy = "make target tables and transforms fit and restart the worker; the log keeps everything";
            halts.halt("after_copy", Problem::new(error.to_string(), remedy));
            return Ok(());
        }
        if done {
            halts.well("after_copy");
        }
        self.start_applying(stop).await;
        Ok(())
    }

    /// Plans with the tables as the script has left them. Without that nothing more is applied, so it is tried until it
    /// works.
    async fn plan_again(&self, stop: &CancellationToken) -> Result<(), TargetError> {
        loop {
            match self.target().reload().await {
                Err(error) if error.is_outage() => self.worker.halts.trouble("after_copy", &error.to_string()),
                planned => return planned,
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY_EVERY) => {},
            }
        }
    }

    /// Queues another copy of a table, and says what it waits for.
    async fn resnapshot(&self, request: &Request) -> Result<(), StateError> {
        let Worker { config, store, frontier, halts, .. } = &self.worker;
        if config.is_reverse() {
            let text = "nothing is copied on the way back";
            return store.answer(request.id, RequestState::Refused, text).await;
        }
        if !store.queue_copy(&request.subject, 0).await? {
            let text = format!("the pipeline has no source table `{}`", request.subject);
            return store.answer(request.id, RequestState::Refused, &text).await;
        }
        tracing::info!(table = %request.subject, "asked to copy the table again");
        // A capture that lost its place waits for all of them.
        let lost = frontier.watch_captured().borrow().is_none() && halts.first().is_some();
        let left = if lost { store.not_to_be_copied_again().await? } else { Vec::new() };
        let answer = match left.join(", ") {
            left if left.is_empty() => "queued".to_owned(),
            left => format!("queued; the copy begins when every table is to be copied again, not yet {left}"),
        };
        store.answer(request.id, RequestState::Done, &answer).await
    }
}

#[async_trait]
impl Charge for Capturing {
    async fn look_after(&mut self, _stop: &CancellationToken) -> Result<Option<Ended>, WorkerError> {
        self.note_end();
        Ok(None)
    }

    async fn caught_up(&mut self) -> Result<bool, WorkerError> {
        let frontier = &self.worker.frontier;
        let captured = frontier.watch_captured().borrow().clone();
        // Others are heard of a little later than capture goes on.
        let before = std::mem::take(&mut self.captured_before);
        let heard = matches!(self.applying, Applying::Elsewhere) && !before.is_empty() && frontier.reached(&before);
        let applied_all = heard || captured.as_ref().is_some_and(|captured| frontier.reached(&captured.ends));
        self.captured_before = captured.map(|captured| captured.ends).unwrap_or_default();
        let now_us = self.worker.parts.environment().now_us();
        Ok(applied_all && frontier.capture_lag_seconds(now_us).is_some_and(|lag| lag < CAUGHT_UP_SECONDS_MAX))
    }

    fn end(&self) -> End {
        match (&self.end, &self.end_offsets) {
            (None, _) => End::Never,
            (Some(_), Some(offsets)) if self.worker.frontier.reached(offsets) => End::Reached,
            (Some(_), _) => End::Ahead,
        }
    }

    async fn settle(&mut self, status: &Status, stop: &CancellationToken) -> Result<(), WorkerError> {
        let waits_long = status.waiting_oldest_seconds.is_some_and(|seconds| seconds > LOOK_AFTER_SECONDS);
        if status.phase == Phase::Following && waits_long && status.halted.is_none() && self.looks.due(false) {
            self.background.look_for_waiting();
        }
        let copied = status.tables.iter().all(|table| table.state == CopyState::Copied);
        let Some(file) = self.worker.config.target.after_copy.clone() else { return Ok(()) };
        if copied && status.phase == Phase::Copying && self.worker.halts.first().is_none() {
            self.run_script(file, stop).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, request: &Request) -> Result<(), StateError> {
        let store = &self.worker.store;
        match &request.command {
            Ok(Command::Resnapshot) => self.resnapshot(request).await,
            Ok(Command::RetryDeadLetters) => {
                self.background.retry(request);
                Ok(())
            }
            Ok(Command::Replay) => {
                self.background.replay(request);
                Ok(())
            }
            Ok(Command::Repair) => {
                self.background.repair(request);
                Ok(())
            }
            Ok(Command::DiscardDeadLetters) => {
                let discarded = store.discard_dead_letters(&background::ids(request)).await?;
                tracing::warn!(discarded, "dead letters were closed; their rows stay as they are at the target");
                store.answer(request.id, RequestState::Done, &discarded.to_string()).await
            }
            Err(other) => {
                let text = format!("this worker does not know the request `{other}`; use a newer one");
                store.answer(request.id, RequestState::Refused, &text).await
            }
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::clone(&self.flow.apply.target)
    }

    fn has_looked(&self, seconds: f64) -> bool {
        self.background.has_looked(seconds)
    }

    fn barrier(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.background.barrier()
    }
}
