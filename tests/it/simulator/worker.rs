//! A worker, `control::worker` itself, around the model source, the model log and the model PostgreSQL.
//!
//! Everything that leaves the "process" goes through its gate, so that it can be paused as SIGSTOP would.

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
        error::{Attempt, WorkerError},
        http::Vitals,
        notes::Notes,
        parts::Parts,
        worker::{Role, Worker},
    },
    database::postgres::{self, Dial, Options, Wire},
    log::{Log, LogError},
    observe::{Environment, EventSink, EventSinkError, Frontier, NumberedEvent},
    pipeline::capture::Register,
    source::Source,
    state::{Store, lease::Lease},
    target::{Target, TargetError},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    capture::ModelServer,
    mutations::Mutation,
    target::{self, Twisted},
    world::World,
};

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

fn address(world: &World, gate: &Arc<Gate>) -> postgres::Address {
    let dial = Gated { inner: Arc::clone(&world.postgres) as _, gate: Arc::clone(gate) };
    postgres::Address::parse(&world.config.target.url).unwrap().through(Arc::new(dial))
}

/// A running worker.
pub struct Process {
    pub gate: Arc<Gate>,
    vitals: Arc<Mutex<Vitals>>,
    pub stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Process {
    pub fn start(world: &Arc<World>) -> Self {
        let process = Process {
            gate: Arc::default(),
            vitals: Arc::new(Mutex::new(unknown(world.config.log.partitions))),
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        let parts: Arc<dyn Parts> = Arc::new(Models::new(world, &process.gate));
        let Vitals { halts, frontier } = process.vitals();
        let worker = Worker {
            config: Arc::clone(&world.config),
            role: Role::All,
            store: store(world, &process.gate),
            parts,
            halts,
            frontier,
            stop: process.stop.clone(),
        };
        let mut process = process;
        if world.is(Mutation::TombstonesForgottenEarly) || world.is(Mutation::TombstonesForgottenInReplay) {
            let in_replay = world.is(Mutation::TombstonesForgottenInReplay);
            process.tasks.spawn(forget_early(worker.clone(), Arc::clone(&process.vitals), in_replay));
        }
        process.tasks.spawn(supervise(worker, Arc::clone(&process.vitals)));
        process
    }

    /// How it fares, from when it last began.
    pub fn vitals(&self) -> Vitals {
        self.vitals.lock().unwrap().clone()
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

fn unknown(partitions: u32) -> Vitals {
    Vitals { halts: Arc::default(), frontier: Frontier::new(partitions) }
}

/// Starts the worker again whenever it ends by itself, knowing nothing, as a process does that lost its lease.
async fn supervise(mut worker: Worker, vitals: Arc<Mutex<Vitals>>) {
    while let Err(error) = Box::pin(worker.run(false, |_| {})).await {
        let fresh = unknown(worker.config.log.partitions);
        fresh.halts.trouble("start", &error.to_string());
        (worker.halts, worker.frontier) = (Arc::clone(&fresh.halts), Arc::clone(&fresh.frontier));
        *vitals.lock().unwrap() = fresh;
        tokio::select! { biased; () = worker.stop.cancelled() => return, () = tokio::time::sleep(RETRY_EVERY) => {} }
    }
}

/// A leader that forgets tombstones although something old may still come: always, or only while a replay runs.
async fn forget_early(worker: Worker, vitals: Arc<Mutex<Vitals>>, in_replay: bool) {
    // A replay of so few rows is over soon.
    let every = if in_replay { FORGET_EVERY / 200 } else { FORGET_EVERY };
    loop {
        tokio::time::sleep(every).await;
        let applied = vitals.lock().unwrap().frontier.applied_clock();
        if applied == 0 || (in_replay && !worker.store.any_replay().await.unwrap_or_default()) {
            continue;
        }
        if let Ok(target) = worker.parts.target(Arc::clone(&worker.store), 0) {
            let _ = target.forget_tombstones(applied).await;
        }
    }
}

/// Events that nobody follows.
#[derive(Debug)]
struct Nowhere;

#[async_trait]
impl EventSink for Nowhere {
    async fn append(&self, _events: &[NumberedEvent]) -> Result<(), EventSinkError> {
        Ok(())
    }
}

/// The parts of a simulated worker, or of a command.
pub struct Models {
    world: Arc<World>,
    gate: Arc<Gate>,
    verifies: bool,
}

impl Models {
    fn new(world: &Arc<World>, gate: &Arc<Gate>) -> Self {
        Models { world: Arc::clone(world), gate: Arc::clone(gate), verifies: false }
    }

    /// Of a command that compares, which is a process of its own.
    pub fn that_verify(world: &Arc<World>) -> Self {
        Models { verifies: true, ..Models::new(world, &Arc::default()) }
    }
}

#[async_trait]
impl Parts for Models {
    fn store(&self) -> Result<Arc<Store>, WorkerError> {
        Ok(store(&self.world, &self.gate))
    }

    // The model's tables are there from the beginning.
    async fn prepare_state(&self, _store: &Store) -> Result<(), Attempt> {
        Ok(())
    }

    fn source(&self, store: Arc<Store>, _frontier: Arc<Frontier>) -> Result<Arc<dyn Source>, WorkerError> {
        let (server, gate) = (Arc::clone(&self.world.source), Arc::clone(&self.gate));
        Ok(Arc::new(ModelServer { server, gate, store, verifies: self.verifies }))
    }

    async fn log(&self, _lease: Lease) -> Result<Arc<dyn Log>, LogError> {
        Ok(self.world.log.open(Arc::clone(&self.gate)))
    }

    fn target(&self, store: Arc<Store>, number: i64) -> Result<Arc<dyn Target>, TargetError> {
        let inner = target::planned(&self.world, address(&self.world, &self.gate), store, number);
        Ok(Arc::new(Twisted { inner: Arc::new(inner), mutation: self.world.chance.run.mutation }))
    }

    fn register(&self, notes: Notes) -> Arc<dyn Register> {
        self.world.register(notes)
    }

    fn transforms(&self) -> Result<String, TargetError> {
        Ok("simulated".into())
    }

    fn event_sink(&self) -> Result<Arc<dyn EventSink>, LogError> {
        Ok(Arc::new(Nowhere))
    }

    fn environment(&self) -> Arc<dyn Environment> {
        Arc::clone(&self.world.chance) as _
    }

    fn process(&self) -> String {
        "simulated".into()
    }

    fn forget_every(&self) -> Duration {
        FORGET_EVERY
    }
}
