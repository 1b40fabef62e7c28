//! A worker as `control::worker` puts it together, around the model source and the model log.
//!
//! Real are the lease, the state in the target, capture loop, copier, apply loops and sinks. Everything that leaves the
//! "process" goes through its gate, so that it can be paused as SIGSTOP would.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use cutover::{
    control::{
        lease::{self, Lease},
        source::Notes,
        store::Store,
        target::PgTarget,
    },
    database::postgres::{Dial, Options, PgError, Target, Wire},
    log::{Log, Topic},
    observe::{Frontier, Halt, Halts},
    pipeline::{
        apply::{self, ApplyLoop},
        batches::Bounds,
        capture::CaptureLoop,
    },
    snapshot::copier::Copier,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{capture::ModelServer, mutations::Mutation, target, world::World};

const RETRY_EVERY: Duration = Duration::from_secs(1);
const FORGET_EVERY: Duration = Duration::from_secs(2);

/// Holds a process still while it is closed.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Gate {
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    pub fn open(&self) {
        self.closed.store(false, Ordering::Relaxed);
        self.waiting.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    /// Waits until it is open.
    pub async fn passed(&self) {
        std::future::poll_fn(|context| self.pass(context)).await;
    }

    fn pass(&self, context: &Context<'_>) -> Poll<()> {
        if !self.closed.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        self.waiting.lock().unwrap().push(context.waker().clone());
        Poll::Pending
    }
}

/// Connections of one process.
struct Gated {
    inner: Arc<dyn Dial>,
    gate: Arc<Gate>,
}

#[async_trait]
impl Dial for Gated {
    async fn dial(&self) -> std::io::Result<Box<dyn Wire>> {
        Ok(Box::new(GatedWire { inner: self.inner.dial().await?, gate: Arc::clone(&self.gate) }))
    }
}

struct GatedWire {
    inner: Box<dyn Wire>,
    gate: Arc<Gate>,
}

impl AsyncRead for GatedWire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        std::task::ready!(self.gate.pass(context));
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for GatedWire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        std::task::ready!(self.gate.pass(context));
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        std::task::ready!(self.gate.pass(context));
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// A session on the pipeline's state, from a process of its own.
pub fn store(world: &World, gate: &Arc<Gate>) -> Arc<Store> {
    let options = Options {
        application_name: "cutover sim state".into(),
        schemas: vec!["public".into()],
        ca_file: None,
        replica: false,
    };
    Arc::new(Store::new("sim", address(world, gate), options))
}

fn address(world: &World, gate: &Arc<Gate>) -> Target {
    let dial = Gated { inner: Arc::clone(&world.postgres) as _, gate: Arc::clone(gate) };
    Target::parse(&world.config.target.url).unwrap().through(Arc::new(dial))
}

/// A running worker.
pub struct Process {
    pub gate: Arc<Gate>,
    pub halts: Arc<Halts>,
    pub frontier: Arc<Frontier>,
    pub stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Process {
    pub fn start(world: &Arc<World>) -> Self {
        let process = Process {
            gate: Arc::default(),
            halts: Arc::default(),
            frontier: Frontier::new(world.config.log.partitions),
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        let worker = Worker {
            world: Arc::clone(world),
            gate: Arc::clone(&process.gate),
            halts: Arc::clone(&process.halts),
            frontier: Arc::clone(&process.frontier),
            stop: process.stop.clone(),
        };
        let mut process = process;
        process.tasks.spawn(worker.run());
        process
    }

    /// Nothing of it runs any more.
    pub async fn kill(mut self) {
        self.gate.open();
        self.tasks.shutdown().await;
    }

    /// Asks it to end, and waits for as long as a container would.
    pub async fn end(mut self) {
        self.gate.open();
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(10), ended).await;
        self.tasks.shutdown().await;
    }
}

struct Worker {
    world: Arc<World>,
    gate: Arc<Gate>,
    halts: Arc<Halts>,
    frontier: Arc<Frontier>,
    stop: CancellationToken,
}

impl Worker {
    async fn run(self) {
        loop {
            match Box::pin(self.attempt()).await {
                Ok(()) => return,
                Err(error) => self.halts.trouble("start", &error.to_string()),
            }
            tokio::select! { biased; () = self.stop.cancelled() => return, () = tokio::time::sleep(RETRY_EVERY) => {} }
        }
    }

    async fn attempt(&self) -> Result<(), PgError> {
        let (store, leases) = (store(&self.world, &self.gate), store(&self.world, &self.gate));
        let lease = {
            let session = leases.session().await?;
            let taken = lease::acquire(session.client()?, "sim", "worker", "simulated").await?;
            let lease = taken.map_err(|holder| PgError::Unreachable(format!("{} holds the lease", holder.holder)))?;
            lease::end_predecessor(session.client()?, "sim").await?;
            lease
        };
        let log = self.world.log.open(Arc::clone(&self.gate));
        for (partition, newest_us) in store.newest_commits().await? {
            self.frontier.applied_changes(partition, 0, None, Some(newest_us));
        }
        store.register_tables(&super::source::WATCHED.map(str::to_owned)).await?;
        let plans = target::tables().into_iter().map(|table| table.plan).collect();
        let config = Arc::clone(&self.world.config);
        let target =
            PgTarget::planned(config, address(&self.world, &self.gate), Arc::clone(&store), lease.epoch, plans);
        let target = Arc::new(target);
        let fallback = store.position().await?;
        let clock_min = if fallback.is_none() { target.highest_version().await? } else { 0 };
        if !self.judge_log(&store, &*log).await? {
            self.stop.cancelled().await;
            return Ok(());
        }
        let server =
            Arc::new(ModelServer { server: Arc::clone(&self.world.source), gate: Arc::clone(&self.gate), clock_min });
        let work = self.stop.child_token();
        let _ended_with_this = work.clone().drop_guard();
        let mut tasks = JoinSet::new();
        let capture = CaptureLoop {
            source: Arc::clone(&server) as _,
            register: self.world.register(Notes { store: Arc::clone(&store), used: target.used_columns() }),
            log: Arc::clone(&log) as _,
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            ambient: Arc::clone(&self.world.chance) as _,
            pipeline: "sim".into(),
            connector: "mysql".into(),
            fallback,
        };
        tasks.spawn(capture.run(work.clone()));
        tasks.spawn(self.copier(&server, &store, &target, &log).run(work.clone()));
        for partition in 0..log.partitions() {
            for topic in [Topic::Changes, Topic::Snapshot] {
                tasks.spawn(self.apply_loop(&target, &log, topic, partition).run(work.clone()));
            }
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = renew(&leases, lease) => self.halts.trouble("lease", "it was lost"),
            () = self.forget_tombstones(&target) => {}
        }
        work.cancel();
        while tasks.join_next().await.is_some() {}
        if let Ok(session) = leases.session().await
            && let Ok(client) = session.client()
        {
            let _ = lease::release(client, "sim", "worker", lease).await;
        }
        Ok(())
    }

    async fn judge_log(&self, store: &Store, log: &dyn Log) -> Result<bool, PgError> {
        if self.world.is(Mutation::NoTailCheck) {
            return Ok(true);
        }
        for (topic, partition, next) in store.next_offsets(log.epoch()).await? {
            if let Err(error) = apply::reaches(log, topic, partition, next).await {
                self.halts.halt("log", Halt { reason: error.to_string(), remedy: String::new() });
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn copier(
        &self,
        server: &Arc<ModelServer>,
        store: &Arc<Store>,
        target: &Arc<PgTarget>,
        log: &Arc<impl Log + 'static>,
    ) -> Copier {
        let snapshot = &self.world.config.snapshot;
        Copier {
            scans: Arc::clone(server) as _,
            progress: Arc::clone(store) as _,
            sweep: self.world.sweep(target),
            log: Arc::clone(log) as _,
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            ambient: Arc::clone(&self.world.chance) as _,
            pipeline: "sim".into(),
            connector: "mysql".into(),
            chunk_rows: snapshot.chunk_rows,
            parallel: snapshot.parallel,
            lag_max_seconds: snapshot.lag_max_seconds,
        }
    }

    fn apply_loop(
        &self,
        target: &Arc<PgTarget>,
        log: &Arc<impl Log + 'static>,
        topic: Topic,
        partition: u32,
    ) -> ApplyLoop {
        let config = &self.world.config;
        ApplyLoop {
            target: Arc::clone(target) as _,
            log: Arc::clone(log) as _,
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            ambient: Arc::clone(&self.world.chance) as _,
            topic,
            partition,
            bounds: Bounds { rows_max: config.apply.batch_rows_max, bytes_max: config.apply.batch_bytes_max },
            sinks: if topic == Topic::Changes { 1 } else { config.snapshot.apply_parallel },
        }
    }

    /// As the steward does.
    async fn forget_tombstones(&self, target: &PgTarget) {
        loop {
            tokio::time::sleep(FORGET_EVERY).await;
            let applied = self.frontier.applied_clock();
            let idle = self.world.is_following() || self.world.is(Mutation::TombstonesForgottenEarly);
            if idle && applied > 0 {
                let _ = target.forget_tombstones(applied).await;
            }
        }
    }
}

/// Renews the lease until it is lost.
async fn renew(leases: &Store, lease: Lease) {
    loop {
        tokio::time::sleep(lease::RENEW_EVERY).await;
        let Ok(session) = leases.session().await else { continue };
        let Ok(client) = session.client() else { continue };
        if let Ok(false) = lease::renew(client, "sim", "worker", lease).await {
            return;
        }
    }
}
