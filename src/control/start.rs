//! The worker: everything that `cutover run` runs, from the first connection to the last batch.
//!
//! Of the roles, `capture` has all of it but the apply loops, and `apply` nothing else ([`super::applier`]).
//!
//! ```text
//! http ── lease ── flow ──► capture, copier ──► log ──► apply loops ──► target
//!                  leader: requests, the script after the copy, reports, events, tombstones
//! ```
//!
//! With `[reverse]` a second one goes the other way ([`super::reverse`]).
//!
//! Every task has its place in one `JoinSet` and ends with the token that it was given.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    applier,
    capturing::Capturing,
    connector, copy_order,
    error::{Attempt, WorkerError},
    follower,
    http::{self, Endpoints},
    leader::Leader,
    leadership::{last_controls, newest_version, renew},
    notes::Notes,
    parts::{Configured, Parts},
    reverse,
    running::Running,
    worker::{Ended, Role, Worker},
};
use crate::{
    config::Config,
    log::Log,
    model::{Beyond, Position, Version},
    pipeline::flow::{CopyBounds, Flow},
    source::{Examined, Selection, Source},
    state::{appliers::Described, copying::Copying, lease::Lease, status::Status},
    target::{Needs, Target},
};

/// A worker that has waited for longer than this looks at the source again.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// Runs the worker until `stop`, until it is synced (if it is to), or until it cannot go on. One that loses its lease
/// (it was paused, or cut off) waits for it again, as a reserve.
///
/// # Errors
/// When it cannot listen, or could not start.
pub async fn run(
    config: Config,
    role: Role,
    until_synced: bool,
    stop: CancellationToken,
    show: fn(&Status),
) -> Result<Ended, WorkerError> {
    let listener = tokio::net::TcpListener::bind(&config.http.listen)
        .await
        .map_err(|source| WorkerError::Listen { address: config.http.listen.clone(), source })?;
    let (metrics, recorder) = http::install_metrics().map_err(|error| WorkerError::Metrics(error.to_string()))?;
    let config = Arc::new(config);
    let parts: Arc<dyn Parts> = Arc::new(Configured(Arc::clone(&config)));
    let store = parts.store()?;
    let begun = Running::nothing_known(&config);
    let endpoints = Arc::new(Endpoints::new(begun.clone(), Arc::clone(&store), metrics, &config.http));
    tracing::info!(listen = %config.http.listen, pipeline = %config.name, "metrics and health");
    let (serving, turning) = (CancellationToken::new(), stop.child_token());
    let http = tokio::spawn(http::serve(listener, Arc::clone(&endpoints), serving.clone()));
    let forward = reverse::Forward { store: Arc::clone(&store), endpoints: Arc::clone(&endpoints) };
    let reverse = reverse::begin(&config, forward, recorder, &turning)?;
    let running = Running { config, role, parts, store, stop };
    let ended = running.run(begun, until_synced, show, |vitals| endpoints.show(vitals)).await;
    turning.cancel();
    if let Some(reverse) = reverse {
        reverse.ended().await;
    }
    serving.cancel();
    http.abort();
    ended
}

impl Worker {
    /// Runs until it is stopped, until it is synced (if it is to), or until it cannot go on.
    ///
    /// # Errors
    /// When it could not start, or lost its lease.
    pub async fn run(&self, until_synced: bool, show: fn(&Status)) -> Result<Ended, WorkerError> {
        let prepared = self.patiently("target", || self.parts.prepare_state(&self.store)).await?;
        let Some(()) = prepared else { return Ok(Ended::Stopped) };
        if let Some(debezium) = self.config.log.debezium.clone() {
            return Box::pin(connector::run(self, debezium, until_synced, show)).await;
        }
        let source = self.parts.source(Arc::clone(&self.store), Arc::clone(&self.frontier))?;
        if self.role == Role::Apply {
            return self.apply(&*source, until_synced).await;
        }
        let Some(examined) = self.examine(&*source).await? else { return Ok(Ended::Stopped) };
        // The lease's liveness is that of its session, so it has one of its own.
        let leases = self.parts.store()?;
        let Some((lease, log)) = self.patiently("lease", || self.take_over(&leases)).await? else {
            return Ok(Ended::Stopped);
        };
        let end = until_synced.then(|| examined.end.clone());
        let work = self.stop.child_token();
        let ended = {
            let _ended_with_this = work.clone().drop_guard();
            let mut renewing = JoinSet::new();
            renewing.spawn(renew(Arc::clone(&leases), lease));
            tokio::select! {
                biased;
                ended = Box::pin(self.lead(source, examined, lease, log, end, show, &work)) => ended,
                _lost = renewing.join_next() => Err(WorkerError::LeaseLost(self.config.name.clone())),
            }
        };
        self.release_lease(&leases, lease).await;
        ended
    }

    /// Applies what other processes capture. Only where the source is now, if that is the end, is asked of it.
    async fn apply(&self, source: &dyn Source, until_synced: bool) -> Result<Ended, WorkerError> {
        let mut end = None;
        if until_synced {
            let Some(examined) = self.examine(source).await? else { return Ok(Ended::Stopped) };
            end = Some(examined.end);
        }
        applier::run(self, end).await
    }

    /// Takes from the target what it has: how far it is behind, and its position in the source.
    async fn take_stock(&self) -> Result<Option<(Position, Version)>, Attempt> {
        // A stalled pipeline that is restarted has the lag that it had.
        for (partition, newest_us) in self.store.newest_commits().await? {
            self.frontier.applied_changes(partition, 0, None, Some(newest_us));
        }
        Ok(self.store.position().await?)
    }

    /// Under a log that is lost or new, notes what the target has from beyond its stored position.
    async fn take_stock_beyond(
        &self,
        source: &dyn Source,
        target: &dyn Target,
        stored: Option<&(Position, Version)>,
    ) -> Result<(), Attempt> {
        let Some((position, clock)) = stored.filter(|(position, _)| position.has_one_order()) else { return Ok(()) };
        let (highest, noted) = (target.highest_version().await?, self.store.beyond().await?);
        if highest > *clock || noted.is_some() {
            let was_moved = self.store.moved_clock().await? > *clock;
            let end = source.end().await.map_err(|error| Attempt::Later(error.to_string()))?;
            let known = noted.is_none_or(|noted| noted.end.is_some()) && end.same_server(position);
            let clock = if was_moved { highest.max(*clock) } else { *clock };
            let beyond = Beyond { position: position.clone(), highest, clock, end: known.then_some(end) };
            self.store.set_beyond(&beyond).await?;
        }
        Ok(())
    }

    /// Puts the flow together from what source, log and target hold; none if the worker was stopped before.
    async fn assemble(
        &self,
        source: Arc<dyn Source>,
        examined: Examined,
        lease: Lease,
        log: Arc<dyn Log>,
    ) -> Result<Option<(Flow, Described)>, WorkerError> {
        // The tables may have changed while this worker waited for another one's end.
        let stale = examined.at.elapsed() >= STALE_AFTER;
        let examined = if stale { self.examine(&*source).await? } else { Some(examined) };
        let Some(Examined { tables, now_us, connector, .. }) = examined else { return Ok(None) };
        let names: Vec<String> = tables.iter().map(|schema| schema.table.table.clone()).collect();
        let Some(fallback) = self.patiently("target", || self.take_stock()).await? else { return Ok(None) };
        let Some(controls) = self.patiently("log", || last_controls(&log)).await? else { return Ok(None) };
        let planned_at = newest_version(&controls, now_us);
        let target = self.parts.target(Arc::clone(&self.store), lease.epoch)?;
        let prepared = self.patiently("target", || async { Ok(target.prepare(&tables, planned_at).await?) });
        let Some(()) = prepared.await? else { return Ok(None) };
        // In the order in which they are copied.
        let names = copy_order::parents_first(&target.plans(), &names);
        let copies = !self.config.is_reverse();
        let registered = self.patiently("state", || async {
            self.store.register_tables(&names).await?;
            if !copies {
                self.store.follow_only().await?;
            }
            Ok(())
        });
        let Some(()) = registered.await? else { return Ok(None) };
        // With a stored position the clock is stored as well, and is the highest; unless it is made of several clocks.
        let has_clock = fallback.as_ref().is_some_and(|(position, _)| position.has_one_order());
        let clock_min =
            self.patiently("target", || async { Ok(if has_clock { 0 } else { target.highest_version().await? }) });
        let Some(clock_min) = clock_min.await? else { return Ok(None) };
        // The log has no place for capture to go on from.
        if controls.iter().any(Option::is_none) {
            let stock = || self.take_stock_beyond(&*source, &*target, fallback.as_ref());
            let Some(()) = self.patiently("target", stock).await? else { return Ok(None) };
        }
        let needs = Needs::of(&target.plans());
        let snapshot = &self.config.snapshot;
        let flow = Flow {
            pipeline: self.config.name.clone(),
            connector,
            source,
            selection: Selection::of(&tables, clock_min, needs.full_row_images),
            register: self.parts.register(Notes { store: Arc::clone(&self.store), used: needs.columns, copies }),
            progress: Arc::new(Copying::new(&self.store)),
            fallback,
            copy: copies.then(|| CopyBounds {
                chunk_rows: snapshot.chunk_rows,
                parallel: snapshot.parallel,
                lag_max_seconds: snapshot.lag_max_seconds,
                parents: copy_order::parents(&target.plans()),
            }),
            apply: self.apply_half(target, log),
        };
        Ok(Some((flow, Described { tables, planned_at })))
    }

    /// Runs the pipeline while this process holds the lease.
    #[expect(clippy::too_many_arguments, reason = "what a leader has in its hands when it begins")]
    async fn lead(
        &self,
        source: Arc<dyn Source>,
        examined: Examined,
        lease: Lease,
        log: Arc<dyn Log>,
        end: Option<Position>,
        show: fn(&Status),
        work: &CancellationToken,
    ) -> Result<Ended, WorkerError> {
        self.store.leads(lease.epoch);
        let assembled = self.assemble(source, examined, lease, Arc::clone(&log)).await?;
        let Some((flow, described)) = assembled else { return Ok(Ended::Stopped) };
        let Some(sound) = self.patiently("log", || self.judge_log(&log)).await? else { return Ok(Ended::Stopped) };
        let prepared = self.patiently("state", || self.prepare_lanes(&log, &described)).await?;
        let Some(()) = prepared else { return Ok(Ended::Stopped) };
        let mut tasks = if sound { flow.start(work) } else { JoinSet::new() };
        if self.role == Role::Capture {
            let following = self.follow(self.parts.store()?, log.epoch().to_owned(), follower::OFTEN);
            let stop = work.clone();
            tasks.spawn(async move {
                tokio::select! { biased; () = stop.cancelled() => {}, () = following => {} }
            });
        }
        let Some(mut leader) = Leader::begin(self, lease.epoch, show, work).await? else { return Ok(Ended::Stopped) };
        let Some(mut capturing) = Capturing::begin(self, flow, end, work).await? else { return Ok(Ended::Stopped) };
        let ended = leader.lead(&mut capturing, work).await;
        work.cancel();
        capturing.stop().await;
        leader.stop().await;
        while tasks.join_next().await.is_some() {}
        ended
    }
}
