//! The way back, beside the worker that goes there: what the target's own users change goes to the source.
//!
//! ```text
//! source ── Worker ──► target
//!   ▲                    │  each leaves out what the other one has written
//!   └────── Worker ◄─────┘
//! ```
//!
//! It is a worker like any other, of [`Config::reversed`], with a lease, a log and a state of its own, and copies
//! nothing. It begins when the copy there is complete, since all of that would pass through its slot for nothing, and
//! with later starts as soon as this process leads the way there. It has a thread for itself, on which every metric
//! gets the label `direction="reverse"`. Where it is halted or retries, the way there says so as well. Deliberately
//! absent: phases, and who may write which side when.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit};
use tokio_util::sync::CancellationToken;

use super::{
    dead_letter_topic,
    error::WorkerError,
    http::{Collector, Endpoints, Vitals},
    parts::{self, Configured, Parts},
    running::Running,
    worker::Role,
};
use crate::{
    config::Config,
    observe::{metric, now_us},
    state::{StateError, Store, status::Phase},
};

/// Under what the way there notes that the way back has begun.
const BEGUN: &str = "the way back has begun";
/// The part of the way there under which it tells how the way back fares.
const PART: &str = "reverse";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After how many such looks a way back that could not start tries again, and the tables are looked at that it reads.
const LOOKS: u32 = 5;

/// The way there, as the way back knows it.
pub(super) struct Forward {
    pub store: Arc<Store>,
    pub endpoints: Arc<Endpoints>,
}

/// The way back, on its thread.
pub(super) struct Reverse(JoinHandle<io::Result<()>>);

impl Reverse {
    /// Waits for its end.
    pub(super) async fn ended(self) {
        match tokio::task::spawn_blocking(move || self.0.join()).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(%error, "the way back could not run; restart the worker"),
            Ok(Err(_)) | Err(_) => {
                tracing::error!("the way back ended with a panic; restart the worker, and report it")
            }
        }
    }
}

/// The configuration of the way back, with the tables that it reads: those that the way there fills. None without
/// `[reverse]`.
///
/// # Errors
/// When the state of the way there cannot be read, or there is none yet.
pub async fn configured(config: &Config) -> Result<Option<Config>, WorkerError> {
    let Some(reversed) = config.reversed() else { return Ok(None) };
    match with_tables(reversed, &*parts::store(config)?).await? {
        Some(reversed) => Ok(Some(reversed)),
        None => Err(WorkerError::Usage(format!(
            "the way back reads the tables that `{}` fills, and it has filled none yet; start it with `cutover run`",
            config.name
        ))),
    }
}

async fn with_tables(mut reversed: Config, forward: &Store) -> Result<Option<Config>, StateError> {
    let filled = forward.filled_tables().await?;
    let schema = reversed.source.postgres_schema();
    let inside = filled.into_iter().filter(|table| table.schema == schema);
    let names: Vec<String> = inside.map(|table| table.table).collect();
    if names.is_empty() {
        return Ok(None);
    }
    reversed.source.tables = Some(names);
    Ok(Some(reversed))
}

/// Begins the way back, if there is to be one.
///
/// # Errors
/// When there is no thread for it.
pub(super) fn begin(
    config: &Config,
    forward: Forward,
    collector: Collector,
    stop: &CancellationToken,
) -> Result<Option<Reverse>, WorkerError> {
    let Some(config_back) = config.reversed() else { return Ok(None) };
    let shown = Mutex::new(Running::nothing_known(&config_back));
    let back = Back { config: config_back, asked: parts::store(config)?, forward, shown, stop: stop.clone() };
    let thread = std::thread::Builder::new().name("reverse".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _span = tracing::info_span!("reverse").entered();
        metrics::with_local_recorder(&Labelled(collector), || runtime.block_on(back.run()));
        runtime.shutdown_background();
        Ok(())
    });
    let thread = thread.map_err(|error| WorkerError::Thread { part: PART, source: error })?;
    Ok(Some(Reverse(thread)))
}

/// What the thread of the way back works with.
struct Back {
    config: Config,
    forward: Forward,
    /// The state of the way there, over a session of this thread's.
    asked: Arc<Store>,
    /// How its worker fares, or the last one did.
    shown: Mutex<Vitals>,
    stop: CancellationToken,
}

impl Drop for Back {
    /// A thread that ends before its time, in a panic too, is known from outside.
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            self.tell(Some("it has ended; restart the worker".into()));
        }
    }
}

impl Back {
    /// Runs until it is stopped, and tries again what does not work.
    async fn run(&self) {
        while !self.stop.is_cancelled() {
            let Err(error) = self.attempt().await else { continue };
            self.tell(Some(error.to_string()));
            for _ in 0..LOOKS {
                self.measure();
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => {},
                }
            }
        }
    }

    /// One worker of the way back, until it is stopped, or is to read other tables.
    async fn attempt(&self) -> Result<(), WorkerError> {
        let config = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            config = self.turn() => config?,
        };
        let tables = config.source.tables.clone();
        let config = Arc::new(config);
        let parts: Arc<dyn Parts> = Arc::new(Configured(Arc::clone(&config)));
        let (store, stop) = (parts.store()?, self.stop.child_token());
        let begun = Running::nothing_known(&config);
        self.show(begun.clone());
        let running = Running { config, role: Role::All, parts, store, stop: stop.clone() };
        let mut running = Box::pin(running.run(begun, false, |_| {}, |vitals| self.show(vitals)));
        let ended = tokio::select! {
            biased;
            ended = &mut running => ended,
            () = self.watch(tables) => {
                stop.cancel();
                running.await
            }
        };
        ended.map(|_| ())
    }

    /// Waits until it may begin.
    async fn turn(&self) -> Result<Config, WorkerError> {
        loop {
            if self.forward.store.has_led()
                && self.may_begin().await?
                && let Some(config) = with_tables(self.config.clone(), &self.asked).await?
            {
                if self.asked.note(BEGUN).await?.is_none() {
                    tracing::info!("the copy is complete: the way back begins with what is changed from now on");
                    self.asked.set_note(BEGUN, "true").await?;
                }
                return Ok(config);
            }
            // It waits, and nothing is wrong with that.
            self.tell(None);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn may_begin(&self) -> Result<bool, StateError> {
        let has_begun = self.asked.note(BEGUN).await?.is_some();
        Ok(has_begun || self.asked.status().await?.phase == Phase::Following)
    }

    /// Tells how it fares, and ends when the way there fills other tables than these.
    async fn watch(&self, tables: Option<Vec<String>>) {
        loop {
            for _ in 0..LOOKS {
                tokio::time::sleep(LOOK_EVERY).await;
                self.measure();
                match self.trouble() {
                    // What keeps it from starting holds until it has started.
                    None if self.shown().frontier.lag_seconds(now_us()).is_none() => {}
                    trouble => self.tell(trouble),
                }
            }
            // While the state is out of reach there is nothing to be known.
            let now = with_tables(self.config.clone(), &self.asked).await;
            if let Ok(Some(now)) = now
                && now.source.tables != tables
            {
                tracing::info!("the way there fills other tables: the way back begins anew with these");
                return;
            }
        }
    }

    fn show(&self, vitals: Vitals) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = vitals;
    }

    fn shown(&self) -> Vitals {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nobody asks here for the lag when it is scraped, so that it is shown again and again.
    fn measure(&self) {
        let (now, Vitals { frontier, .. }) = (now_us(), self.shown());
        if let Some(lag) = frontier.lag_seconds(now) {
            metrics::gauge!(metric::SYNC_LAG_SECONDS).set(lag);
        }
        if let Some(lag) = frontier.capture_lag_seconds(now) {
            metrics::gauge!(metric::CAPTURE_LAG_SECONDS).set(lag);
        }
    }

    /// What keeps it from being ready.
    fn trouble(&self) -> Option<String> {
        let Vitals { frontier, halts } = self.shown();
        if let Some(halt) = halts.first() {
            return Some(format!("halted: {halt}"));
        }
        let mut troubles = halts.troubles().into_iter().filter(|(part, _)| part != dead_letter_topic::PART);
        if let Some((part, what)) = troubles.next() {
            return Some(format!("{part} is retrying: {what}"));
        }
        let most = self.config.http.ready_lag_max_seconds;
        frontier
            .lag_seconds(now_us())
            .filter(|lag| *lag > most)
            .map(|_| format!("its lag is above [http] ready_lag_max_seconds = {most}"))
    }

    fn tell(&self, trouble: Option<String>) {
        let halts = self.forward.endpoints.vitals().halts;
        match trouble {
            Some(what) => halts.trouble(PART, &format!("the way back: {what} (`cutover status --reverse`)")),
            None => halts.well(PART),
        }
    }
}

/// Collects what its thread measures under a label, so that nothing of it is taken for the way there.
struct Labelled(Collector);

impl Labelled {
    fn key(key: &Key) -> Key {
        key.with_extra_labels(vec![Label::new("direction", "reverse")])
    }
}

impl Recorder for Labelled {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.0.register_counter(&Self::key(key), metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.0.register_gauge(&Self::key(key), metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.0.register_histogram(&Self::key(key), metadata)
    }
}
