//! What a worker is put together from: by the configuration, or of a simulation's models.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    error::{Attempt, WorkerError},
    notes::Notes,
};
use crate::{
    config::Config,
    database::postgres,
    log::{EmbeddedLog, EventFile, KafkaEvents, KafkaLog, Log, LogError, kafka},
    observe::{Environment, EventSink, Frontier, Machine},
    pipeline::capture::Register,
    source::{self, Source},
    state::{
        self, Store,
        lease::{self, Lease},
    },
    target::{self, Target, TargetError},
    transform,
};

/// How often tombstones that nothing can need are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// Everything around a worker that is not the worker.
#[async_trait]
pub trait Parts: Send + Sync {
    /// A session of its own on the pipeline's state.
    fn store(&self) -> Result<Arc<Store>, WorkerError>;
    /// Makes what the state is kept in, or brings it up to this release's format.
    async fn prepare_state(&self, store: &Store) -> Result<(), Attempt>;
    fn source(&self, store: Arc<Store>, frontier: Arc<Frontier>) -> Result<Arc<dyn Source>, WorkerError>;
    /// The log, for who holds this lease.
    async fn log(&self, lease: Lease) -> Result<Arc<dyn Log>, LogError>;
    /// The target, written to under this number.
    fn target(&self, store: Arc<Store>, number: i64) -> Result<Arc<dyn Target>, TargetError>;
    /// Where capture notes what it learns.
    fn register(&self, notes: Notes) -> Arc<dyn Register>;
    /// Identifies the transforms of this process.
    fn transforms(&self) -> Result<String, TargetError>;
    /// Where events are carried to.
    fn event_sink(&self) -> Result<Arc<dyn EventSink>, LogError>;
    fn environment(&self) -> Arc<dyn Environment>;
    /// What this process is called where others see it.
    fn process(&self) -> String;
    /// How often tombstones that nothing can need are looked for.
    fn forget_every(&self) -> Duration;
}

/// The parts that a configuration names.
#[derive(Debug)]
pub struct Configured(pub Arc<Config>);

impl Configured {
    fn settings(&self) -> Result<kafka::Settings, LogError> {
        kafka_settings(&self.0)
    }
}

/// The pipeline's topics and how to reach them.
pub(super) fn kafka_settings(config: &Config) -> Result<kafka::Settings, LogError> {
    kafka::Settings::new(&config.name, &config.log).map_err(|reason| LogError::Client { reason })
}

/// A session of its own on the pipeline's state.
pub fn store(config: &Config) -> Result<Arc<Store>, WorkerError> {
    let state = config.state();
    let target = postgres::Address::parse(state.url).map_err(|error| WorkerError::Usage(error.to_string()))?;
    let options = postgres::Options {
        application_name: lease::session_name(&config.name, "state"),
        schemas: vec![state.schema.to_owned()],
        ca_file: state.ca_file,
        replica: false,
    };
    // One target, which needs no name.
    Ok(Arc::new(Store::new(&state::key(&config.name, None), target, options)))
}

#[async_trait]
impl Parts for Configured {
    fn store(&self) -> Result<Arc<Store>, WorkerError> {
        store(&self.0)
    }

    async fn prepare_state(&self, store: &Store) -> Result<(), Attempt> {
        match store.prepare(self.0.state().schema).await? {
            missing if missing.is_empty() => Ok(()),
            missing => Err(Attempt::Hopeless(WorkerError::TargetRefused(missing))),
        }
    }

    fn source(&self, store: Arc<Store>, frontier: Arc<Frontier>) -> Result<Arc<dyn Source>, WorkerError> {
        let config = &self.0;
        let settings = source::Settings {
            pipeline: config.name.clone(),
            config: config.source.clone(),
            chunk_rows: config.snapshot.chunk_rows,
            readers: config.snapshot.parallel,
            read_units_per_second: config.snapshot.read_units_per_second,
            log_outlives_us: config.log.is_kafka(),
            both_ways: config.goes_both_ways(),
            store,
            frontier,
            environment: self.environment(),
        };
        Ok(source::of(settings)?)
    }

    async fn log(&self, lease: Lease) -> Result<Arc<dyn Log>, LogError> {
        let Config { name, log, folder, .. } = &*self.0;
        if let Some(folder) = log.folder(folder) {
            // A folder for each pipeline, as for all other state.
            return Ok(Arc::new(EmbeddedLog::open(&folder.join(name), log.into()).await?));
        }
        Ok(Arc::new(KafkaLog::open(self.settings()?.under_lease(lease.epoch)).await?))
    }

    fn target(&self, store: Arc<Store>, number: i64) -> Result<Arc<dyn Target>, TargetError> {
        let config = &self.0;
        let state = config.state();
        let settings = target::Settings {
            pipeline: config.name.clone(),
            url: config.target.url.clone(),
            schema: config.target.schema.clone(),
            state_url: state.url.to_owned(),
            state_schema: state.schema.to_owned(),
            ca_file: state.ca_file,
            transforms: config.path(&config.transform.folder),
            apply: config.apply.clone(),
            partitions: config.log.partitions,
            // Whether there is a way back or not: one that comes, or comes again, reads the log of before.
            marked: true,
            store,
        };
        target::of(settings, number)
    }

    fn register(&self, notes: Notes) -> Arc<dyn Register> {
        Arc::new(notes)
    }

    fn transforms(&self) -> Result<String, TargetError> {
        let folder = self.0.path(&self.0.transform.folder);
        let files = transform::load(&folder, &self.0.target.schema).map_err(TargetError::Transforms)?;
        Ok(transform::files_hash(&files))
    }

    fn event_sink(&self) -> Result<Arc<dyn EventSink>, LogError> {
        let Config { name, log, folder, .. } = &*self.0;
        match log.folder(folder) {
            Some(folder) => Ok(Arc::new(EventFile::new(folder.join(name)))),
            None => Ok(Arc::new(KafkaEvents::new(self.settings()?))),
        }
    }

    fn environment(&self) -> Arc<dyn Environment> {
        Arc::new(Machine)
    }

    fn process(&self) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
        let host = host.map_or_else(|_| "unknown host".into(), |name| name.trim().to_owned());
        format!("{host}:{}", std::process::id())
    }

    fn forget_every(&self) -> Duration {
        FORGET_EVERY
    }
}
