//! A worker that begins anew whenever it has lost its lease.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    error::WorkerError,
    http::Vitals,
    parts::Parts,
    worker::{Ended, Role, Worker},
};
use crate::{
    config::Config,
    log::kafka::debezium::LANES_MAX,
    observe::{Frontier, Halts},
    state::{Store, status::Status},
};

/// How long a stopping worker waits for its tasks.
const DRAIN_MAX: Duration = Duration::from_secs(8);

/// What a worker is made of, each time that it begins.
pub(super) struct Running {
    pub config: Arc<Config>,
    pub role: Role,
    pub parts: Arc<dyn Parts>,
    pub store: Arc<Store>,
    pub stop: CancellationToken,
}

impl Running {
    /// What a worker that has just begun knows of the pipeline.
    pub(super) fn nothing_known(config: &Config) -> Vitals {
        let lanes = if config.log.debezium.is_some() { LANES_MAX } else { config.log.partitions };
        Vitals { halts: Arc::new(Halts::of(config.is_reverse())), frontier: Frontier::new(lanes) }
    }

    /// Runs until it is stopped, until it is synced (if it is to), or until it cannot go on. One that loses its lease
    /// waits for it again, as a reserve; `tell` hears how the next one fares.
    ///
    /// # Errors
    /// When it could not start.
    pub(super) async fn run(
        self,
        begun: Vitals,
        until_synced: bool,
        show: fn(&Status),
        tell: impl Fn(Vitals),
    ) -> Result<Ended, WorkerError> {
        let Running { config, role, parts, store, stop } = self;
        let mut vitals = begun;
        loop {
            let Vitals { halts, frontier } = vitals;
            let (parts, store) = (Arc::clone(&parts), Arc::clone(&store));
            let worker =
                Worker { config: Arc::clone(&config), role, parts, halts, frontier, store, stop: stop.clone() };
            let ended = tokio::select! {
                biased;
                ended = Box::pin(worker.run(until_synced, show)) => ended,
                () = drained(&stop) => {
                    tracing::warn!("not every batch could be finished in time; the next start repeats them");
                    Ok(Ended::Stopped)
                }
            };
            // It begins as a new process would: nothing that it knew under the lost lease counts any more, and its last
            // tasks, which may not have heard of their end yet, tell nobody what they do.
            let Err(lost @ WorkerError::LeaseLost(_)) = ended else { return ended };
            tracing::warn!(%lost, "it waits for the lease again");
            vitals = Self::nothing_known(&config);
            tell(vitals.clone());
        }
    }
}

/// Ends when a worker that was asked to stop has had its time.
async fn drained(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(DRAIN_MAX).await;
}
