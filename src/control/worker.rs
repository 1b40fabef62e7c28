//! The worker: everything that `cutover run` runs, from the first connection to the last batch.
//!
//! Of the roles, `capture` has all of it but the apply loops, and `apply` nothing else ([`super::applier`]).
//!
//! ```text
//! http ── lease ── capture ──► log ──► apply (changes) ──► target
//!                  copier  ──► log ──► apply (snapshot) ──┘
//!                  steward: requests, the script after the copy, reports, tombstones
//!                  letter_topic: the dead letters' copy on Kafka
//! ```
//!
//! Every task has its place in one `JoinSet` and ends with the token that it was given.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    applier, connector, follower,
    http::{self, Endpoints},
    lead::renew,
    lease::{self, Lease},
    letter_topic,
    members::Described,
    source::{self, Notes, Opened},
    status::Status,
    steward::Steward,
    store::Store,
    target::{PgTarget, TargetError},
    teller,
};
use crate::{
    config::Config,
    database::{
        Problem,
        mysql::connect::ConnectError,
        postgres::{self, PgError, privileges},
    },
    log::{EventFile, KafkaEvents, Log, LogError, Topic, kafka::debezium::LANES_MAX},
    model::{Position, Version},
    observe::{EventSink, Frontier, Halt, Halts, Machine},
    pipeline::{apply::ApplyLoop, batches::Bounds, capture::CaptureLoop},
    snapshot::{copier::Copier, refetch::Refetch},
};

/// How long a stopping worker waits for its tasks.
const DRAIN_MAX: Duration = Duration::from_secs(8);
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// A worker that has waited for longer than this looks at the source again.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// Snapshot rows written in one transaction: the stream waits for at most one such transaction.
const SNAPSHOT_BATCH_ROWS_MAX: usize = 2_000;

/// Which half of the pipeline a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Capture,
    Apply,
    All,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to stop.
    Stopped,
    Synced,
    SyncedWithDeadLetters(u64),
    /// It was to run until synced, and something halted.
    Halted(Halt),
}

/// Why a worker could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Source(#[from] ConnectError),
    #[error("the source cannot be captured:{}", listed(.0))]
    SourceRefused(Vec<Problem>),
    #[error(transparent)]
    TargetLogin(Problem),
    #[error("the target cannot be written to:{}", listed(.0))]
    TargetRefused(Vec<Problem>),
    #[error("the target: {0}")]
    Target(PgError),
    #[error(transparent)]
    Transform(#[from] TargetError),
    #[error(
        "cannot listen on {address} for metrics and health ({source}); stop what holds it (another worker?), or choose another \
         address with --listen or [http] listen"
    )]
    Listen { address: String, source: std::io::Error },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("another worker has taken the lease of `{0}`; this one has stopped writing")]
    LeaseLost(String),
    #[error("metrics cannot be collected: {0}")]
    Metrics(String),
}

/// One problem on the line, several on lines of their own.
fn listed(problems: &[Problem]) -> String {
    match problems {
        [problem] => format!(" {problem}"),
        problems => problems.iter().map(|problem| format!("\n  {problem}")).collect(),
    }
}

impl From<PgError> for WorkerError {
    fn from(error: PgError) -> Self {
        match error {
            PgError::Login(reason) => {
                let (what, fix) =
                    reason.split_once("; ").unwrap_or((&reason, "correct user, password or database in [target] url"));
                WorkerError::TargetLogin(Problem { what: what.into(), fix: fix.into() })
            }
            PgError::Unreachable(_) | PgError::Refused(_) | PgError::Protocol(_) => WorkerError::Target(error),
        }
    }
}

/// A session of its own on the pipeline's state in the target.
pub fn store(config: &Config) -> Result<Arc<Store>, WorkerError> {
    let target = postgres::Target::parse(&config.target.url).map_err(|error| WorkerError::Usage(error.to_string()))?;
    Ok(Arc::new(Store::new(&config.name, target, postgres_options(config, "state", false))))
}

pub(super) fn postgres_options(config: &Config, purpose: &str, replica: bool) -> postgres::Options {
    postgres::Options {
        application_name: lease::session_name(&config.name, purpose),
        schemas: vec![config.target.schema.clone()],
        ca_file: config.target.ca_file.as_ref().map(|file| config.path(file)),
        replica,
    }
}

/// Runs the worker until `stop`, until it is synced (if it is to), or until it cannot go on.
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
    let metrics = http::install_metrics().map_err(|error| WorkerError::Metrics(error.to_string()))?;
    let halts = Arc::new(Halts::default());
    let lanes = if config.log.debezium.is_some() { LANES_MAX } else { config.log.partitions };
    let frontier = Frontier::new(lanes);
    let store = store(&config)?;
    let serving = CancellationToken::new();
    let endpoints = Arc::new(Endpoints {
        frontier: Arc::clone(&frontier),
        halts: Arc::clone(&halts),
        store: Arc::clone(&store),
        metrics,
        ready_lag_max_seconds: config.http.ready_lag_max_seconds,
    });
    tracing::info!(listen = %config.http.listen, pipeline = %config.name, "metrics and health");
    let http = tokio::spawn(http::serve(listener, endpoints, serving.clone()));
    let worker = Worker { config: Arc::new(config), role, halts, frontier, store, stop: stop.clone() };
    let ended = tokio::select! {
        ended = worker.run(until_synced, show) => ended,
        () = drained(&stop) => {
            tracing::warn!("not every batch could be finished in time; the next start repeats them");
            Ok(Ended::Stopped)
        }
    };
    serving.cancel();
    http.abort();
    ended
}

/// Ends when a worker that was asked to stop has had its time.
async fn drained(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(DRAIN_MAX).await;
}

#[derive(Clone)]
pub(super) struct Worker {
    pub config: Arc<Config>,
    pub role: Role,
    pub halts: Arc<Halts>,
    pub frontier: Arc<Frontier>,
    pub store: Arc<Store>,
    pub stop: CancellationToken,
}

impl Worker {
    async fn run(self, until_synced: bool, show: fn(&Status)) -> Result<Ended, WorkerError> {
        let Some(()) = self.patiently("target", || self.prepare_store()).await? else { return Ok(Ended::Stopped) };
        if let Some(debezium) = self.config.log.debezium.clone() {
            return Box::pin(connector::run(&self, debezium, until_synced, show)).await;
        }
        if self.role == Role::Apply {
            return self.apply(until_synced).await;
        }
        let Some(opened) = self.patiently("source", || self.open_source()).await? else { return Ok(Ended::Stopped) };
        // The lease's liveness is that of its session, so it has one of its own.
        let leases = store(&self.config)?;
        let Some((lease, log)) = self.patiently("lease", || self.take_over(&leases)).await? else {
            return Ok(Ended::Stopped);
        };
        let ended = self.hold(opened, lease, log, &leases, until_synced, show).await;
        self.release_lease(&leases, lease).await;
        ended
    }

    /// Applies what other processes capture. Only where the source is now, if that is the end, is asked of it.
    async fn apply(&self, until_synced: bool) -> Result<Ended, WorkerError> {
        let mut end = None;
        if until_synced {
            let Some(opened) = self.patiently("source", || self.open_source()).await? else {
                return Ok(Ended::Stopped);
            };
            end = Some(opened.end);
        }
        applier::run(self, end).await
    }

    /// Tries until it works, until it is hopeless, or until the worker is stopped (then none).
    pub(super) async fn patiently<T, F>(
        &self,
        part: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<Option<T>, WorkerError>
    where
        F: Future<Output = Result<T, Attempt>>,
    {
        loop {
            match attempt().await {
                Ok(value) => {
                    self.halts.well(part);
                    return Ok(Some(value));
                }
                Err(Attempt::Later(why)) => self.halts.trouble(part, &why),
                Err(Attempt::Hopeless(error)) => return Err(error),
            }
            tokio::select! { () = self.stop.cancelled() => return Ok(None), () = tokio::time::sleep(RETRY_EVERY) => {} }
        }
    }

    async fn prepare_store(&self) -> Result<(), Attempt> {
        let session = self.store.session().await?;
        let client = session.client()?;
        let missing = privileges::on_database(client, &self.config.target.schema).await?;
        if !missing.is_empty() {
            return Err(Attempt::Hopeless(WorkerError::TargetRefused(missing)));
        }
        postgres::state::ensure(client).await.map_err(|error| match error {
            postgres::state::StateError::Postgres(error) => Attempt::from(error),
            error @ postgres::state::StateError::NewerFormat { .. } => {
                Attempt::Hopeless(WorkerError::Usage(error.to_string()))
            }
        })
    }

    async fn open_source(&self) -> Result<Opened, Attempt> {
        source::open(&self.config.source).await
    }

    /// The tables may have changed while this worker waited for another one's end.
    async fn up_to_date(&self, opened: Opened) -> Result<Option<Opened>, WorkerError> {
        if opened.at.elapsed() < STALE_AFTER {
            return Ok(Some(opened));
        }
        let again = self.patiently("source", || self.open_source()).await?;
        Ok(again.map(|again| Opened { end: opened.end, ..again }))
    }

    /// Registers the tables, and takes from the target what it has: how far it is behind, and its position in the source.
    async fn take_stock(&self, tables: &[String]) -> Result<Option<(Position, Version)>, Attempt> {
        // A stalled pipeline that is restarted has the lag that it had.
        for (partition, newest_us) in self.store.newest_commits().await? {
            self.frontier.applied_changes(partition, 0, None, Some(newest_us));
        }
        self.store.register_tables(tables).await?;
        Ok(self.store.position().await?)
    }

    /// Brings what the target has to the frontier, for as long as it is polled.
    pub(super) fn follow(
        &self,
        store: Arc<Store>,
        log_epoch: String,
        every: Duration,
    ) -> impl Future<Output = ()> + use<> {
        follower::follow(store, Arc::clone(&self.frontier), Arc::clone(&self.halts), log_epoch, every)
    }

    /// Runs the pipeline while this process holds the lease.
    async fn hold(
        &self,
        opened: Opened,
        lease: Lease,
        log: Arc<dyn Log>,
        leases: &Arc<Store>,
        until_synced: bool,
        show: fn(&Status),
    ) -> Result<Ended, WorkerError> {
        let work = self.stop.child_token();
        let _ended_with_this = work.clone().drop_guard();
        let renewing = renew(Arc::clone(leases), self.config.name.clone(), lease, work.clone());
        let mut renewing = tokio::spawn(renewing);
        let Some(opened) = self.up_to_date(opened).await? else { return Ok(Ended::Stopped) };
        let names: Vec<String> = opened.tables.iter().map(|schema| schema.table.table.clone()).collect();
        let Some(fallback) = self.patiently("target", || self.take_stock(&names)).await? else {
            return Ok(Ended::Stopped);
        };
        let Some(planned_at) = self.patiently("log", || newest_version(&log, opened.now_us)).await? else {
            return Ok(Ended::Stopped);
        };
        let prepared = self.patiently("target", || async {
            Ok(PgTarget::prepare(self, lease.epoch, &opened.tables, planned_at).await?)
        });
        let Some(target) = prepared.await?.map(Arc::new) else { return Ok(Ended::Stopped) };
        let mut tasks = JoinSet::new();

        // With a stored position the clock is stored as well, and is the highest; unless it is made of several clocks.
        let has_clock = fallback.as_ref().is_some_and(|(position, _)| position.has_one_order());
        let clock_min =
            self.patiently("target", || async { Ok(if has_clock { 0 } else { target.highest_version().await? }) });
        let Some(clock_min) = clock_min.await? else { return Ok(Ended::Stopped) };
        let server = opened.source.serve(self, &opened.tables, clock_min, target.whole_rows());
        let connector = opened.connector;
        let capture = CaptureLoop {
            source: Arc::clone(&server) as _,
            register: Arc::new(Notes { store: Arc::clone(&self.store), used: target.used_columns() }),
            log: Arc::clone(&log),
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            ambient: Arc::new(Machine),
            pipeline: self.config.name.clone(),
            connector: connector.into(),
            fallback,
        };
        let Some(sound) = self.patiently("log", || self.judge_log(&log)).await? else {
            return Ok(Ended::Stopped);
        };
        let described = Described { tables: opened.tables, planned_at };
        let prepared = self.patiently("state", || self.prepare_lanes(&log, &described));
        let Some(()) = prepared.await? else { return Ok(Ended::Stopped) };
        if self.role == Role::Capture {
            let following = self.follow(store(&self.config)?, log.epoch().to_owned(), follower::OFTEN);
            let stop = work.clone();
            tasks.spawn(async move {
                tokio::select! { () = stop.cancelled() => {}, () = following => {} }
            });
        }
        let copier = Copier {
            scans: Arc::clone(&server) as _,
            progress: Arc::clone(&self.store) as _,
            sweep: Arc::clone(&target) as _,
            log: Arc::clone(&log),
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            ambient: Arc::new(Machine),
            pipeline: self.config.name.clone(),
            connector: connector.into(),
            chunk_rows: self.config.snapshot.chunk_rows,
            parallel: self.config.snapshot.parallel,
            lag_max_seconds: self.config.snapshot.lag_max_seconds,
        };
        let (store, halts) = (Arc::clone(&self.store), Arc::clone(&self.halts));
        tasks.spawn(teller::carry(store, self.event_sink()?, halts, work.clone()));
        if sound {
            tasks.spawn(capture.run(work.clone()));
            tasks.spawn(copier.run(work.clone()));
        }
        if self.config.log.is_kafka() {
            let (config, store) = (Arc::clone(&self.config), Arc::clone(&self.store));
            tasks.spawn(letter_topic::carry(config, store, lease.epoch, Arc::clone(&self.halts), work.clone()));
        }
        let end = until_synced.then_some(opened.end);
        let refetch = Refetch {
            scans: Arc::clone(&server) as _,
            fetch: server,
            log: Arc::clone(&log),
            frontier: Arc::clone(&self.frontier),
            ambient: Arc::new(Machine),
            pipeline: self.config.name.clone(),
            connector: connector.into(),
        };
        let mut steward = Steward::new(self.clone(), log, target, refetch, end, show);
        let ended = tokio::select! {
            ended = steward.run(work.clone()) => ended,
            lost = &mut renewing => match lost {
                Ok(true) => Err(WorkerError::LeaseLost(self.config.name.clone())),
                Ok(false) | Err(_) => Ok(Ended::Stopped),
            },
        };
        work.cancel();
        steward.stop().await;
        while tasks.join_next().await.is_some() {}
        ended
    }

    /// Where events are carried to: beside the log.
    fn event_sink(&self) -> Result<Arc<dyn EventSink>, LogError> {
        let Config { name, log, folder, .. } = &*self.config;
        match log.folder(folder) {
            Some(folder) => Ok(Arc::new(EventFile::new(folder.join(name)))),
            None => Ok(Arc::new(KafkaEvents::new(self.kafka_settings()?))),
        }
    }

    /// Starts the apply loops; they end with `stop`.
    pub(super) fn start_applying(
        &self,
        log: &Arc<dyn Log>,
        target: &Arc<PgTarget>,
        stop: &CancellationToken,
    ) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        for partition in 0..log.partitions() {
            for topic in [Topic::Changes, Topic::Snapshot] {
                loops.spawn(self.apply_loop(log, target, topic, partition).run(stop.clone()));
            }
        }
        loops
    }

    /// The loop of one partition of a topic.
    pub(super) fn apply_loop(
        &self,
        log: &Arc<dyn Log>,
        target: &Arc<PgTarget>,
        topic: Topic,
        partition: u32,
    ) -> ApplyLoop {
        let apply = &self.config.apply;
        let (rows_max, sinks) = match topic {
            Topic::Changes => (apply.batch_rows_max, 1),
            Topic::Snapshot => (apply.batch_rows_max.min(SNAPSHOT_BATCH_ROWS_MAX), self.config.snapshot.apply_parallel),
        };
        ApplyLoop {
            target: Arc::clone(target) as _,
            log: Arc::clone(log),
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            ambient: Arc::new(Machine),
            topic,
            partition,
            bounds: Bounds { rows_max, bytes_max: apply.batch_bytes_max },
            sinks,
        }
    }
}

/// Why one attempt at something needed for the start did not work.
pub(super) enum Attempt {
    Later(String),
    Hopeless(WorkerError),
}

impl From<PgError> for Attempt {
    fn from(error: PgError) -> Self {
        match error {
            PgError::Unreachable(_) => Attempt::Later(error.to_string()),
            PgError::Refused(refusal) if refusal.passes() => Attempt::Later(refusal.to_string()),
            PgError::Login(_) | PgError::Refused(_) | PgError::Protocol(_) => Attempt::Hopeless(error.into()),
        }
    }
}

impl From<TargetError> for Attempt {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Postgres(error) => Attempt::from(error),
            TargetError::Transforms(_) | TargetError::Refused(_) | TargetError::Url(_) => {
                Attempt::Hopeless(WorkerError::Transform(error))
            }
        }
    }
}

/// The version up to which everything happened before the source's tables were looked at, at `now_us` of its clock: what the
/// log holds may be of a clock that was ahead.
async fn newest_version(log: &Arc<dyn Log>, now_us: i64) -> Result<Version, Attempt> {
    let mut newest = now_us;
    for partition in 0..log.partitions() {
        let last = log.last_control(Topic::Changes, partition).await;
        let last = last.map_err(|error| Attempt::Later(error.to_string()))?;
        newest = last.map_or(newest, |(_, control)| newest.max(control.clock));
    }
    Ok(newest)
}
