//! A worker: what it has from its start to its end, and what all of its parts do alike.
//!
//! How it runs is in [`super::start`]; who leads, what is led and what only applies are modules of their own.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    error::{Attempt, WorkerError},
    follower,
    parts::Parts,
};
use crate::{
    config::Config,
    log::Log,
    model::Problem,
    observe::{Frontier, Halts},
    pipeline::{batches::Bounds, flow::ApplyHalf},
    source::{Examined, Source},
    state::{Store, waiting::WaitingFor},
    target::Target,
};

const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Which half of the pipeline a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Capture,
    Apply,
    All,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// It was asked to stop.
    Stopped,
    Synced,
    SyncedWithDeadLetters(u64),
    /// Everything else is done, and these rows wait for what does not come; with the open dead letters.
    SyncedWithWaiting(Vec<WaitingFor>, u64),
    /// It was to run until synced, and something halted.
    Halted(Problem),
}

/// A worker, around the parts that it is put together from.
#[derive(Clone)]
pub struct Worker {
    pub config: Arc<Config>,
    pub role: Role,
    pub parts: Arc<dyn Parts>,
    pub halts: Arc<Halts>,
    pub frontier: Arc<Frontier>,
    pub store: Arc<Store>,
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("pipeline", &self.config.name).field("role", &self.role).finish_non_exhaustive()
    }
}

impl Worker {
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
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(RETRY_EVERY) => {},
            }
        }
    }

    pub(super) async fn examine(&self, source: &dyn Source) -> Result<Option<Examined>, WorkerError> {
        self.patiently("source", || async { Ok(source.examine().await?) }).await
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

    /// The half that applies a log to a target.
    pub(super) fn apply_half(&self, target: Arc<dyn Target>, log: Arc<dyn Log>) -> ApplyHalf {
        let Config { apply, snapshot, .. } = &*self.config;
        let bounds = Bounds { rows_max: apply.batch_rows_max, bytes_max: apply.batch_bytes_max };
        ApplyHalf {
            target,
            log,
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            environment: self.parts.environment(),
            bounds,
            room: ApplyHalf::room_for(bounds),
            snapshot_sinks: snapshot.apply_parallel,
            lag_max_seconds: snapshot.lag_max_seconds,
        }
    }
}
