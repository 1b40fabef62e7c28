//! Who leads: the process that holds the lease. It captures and copies, and does what one process alone may do.

use std::sync::Arc;

use super::{
    error::{Attempt, WorkerError},
    worker::{Role, Worker},
};
use crate::{
    log::{Control, Log, LogError, Topic},
    model::{Disposition, Problem, Version},
    pipeline::apply,
    state::{
        Store,
        appliers::Described,
        lease::{Lease, RENEW_EVERY, Taken},
    },
};

impl Worker {
    /// Takes the lease and the log. A worker that lost the lease may still have the log open: it lets go when it
    /// notices.
    pub(super) async fn take_over(&self, leases: &Store) -> Result<(Lease, Arc<dyn Log>), Attempt> {
        let lease = self.take_lease(leases).await?;
        let error = match self.parts.log(lease).await {
            Ok(log) => return Ok((lease, log)),
            Err(error) => error,
        };
        self.release_lease(leases, lease).await;
        match error {
            error @ LogError::InUse { .. } => Err(Attempt::Later(error.to_string())),
            error if error.disposition() == Disposition::Retry => Err(Attempt::Later(error.to_string())),
            error => Err(Attempt::Hopeless(WorkerError::Log(error))),
        }
    }

    /// Whether the log has everything that the target goes on with; halts if it has not.
    pub(super) async fn judge_log(&self, log: &Arc<dyn Log>) -> Result<bool, Attempt> {
        for (topic, partition, next) in self.store.next_offsets(log.epoch()).await? {
            if let Err(error) = apply::reaches(&**log, topic, partition, next).await {
                let remedy = "restart the worker when that is done";
                self.halts.halt("log", Problem::new(error.to_string(), remedy));
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the lease, unless processes run that this one does not go together with.
    pub(super) async fn take_lease(&self, leases: &Store) -> Result<Lease, Attempt> {
        let (applies, transforms) = (self.leader_applies(), self.parts.transforms()?);
        if let Some(reason) = leases.blocks_leader(applies, &transforms).await? {
            return Err(Attempt::Later(reason));
        }
        let lease = match leases.take_lease(&self.parts.process()).await? {
            Taken::Lease(lease) => lease,
            Taken::HeldBy(other) => {
                return Err(Attempt::Later(format!("waiting for the lease, which {} holds", other.holder)));
            }
            Taken::Lost => return Err(Attempt::Later("the lease was lost again".into())),
        };
        leases.mark_leader(lease, applies, &transforms).await?;
        // Now that others see it: whoever has begun meanwhile goes on.
        if let Some(reason) = leases.blocks_leader(applies, &transforms).await? {
            self.release_lease(leases, lease).await;
            return Err(Attempt::Later(reason));
        }
        leases.end_predecessor(applies).await?;
        Ok(lease)
    }

    /// Whether who holds the lease applies too. A connector's topics are not shared: the one process that reads them
    /// leads.
    fn leader_applies(&self) -> bool {
        match self.role {
            Role::All => true,
            Role::Capture | Role::Apply => self.config.log.debezium.is_some(),
        }
    }

    /// Prepares the lanes for this log, and tells the processes that apply, where they do, of the tables.
    pub(super) async fn prepare_lanes(&self, log: &Arc<dyn Log>, described: &Described) -> Result<(), Attempt> {
        self.store.begin_log(log.epoch(), log.partitions()).await?;
        if self.role == Role::Capture {
            self.store.describe(described).await?;
        }
        Ok(())
    }

    /// Gives the lease up, so that the next worker need not wait.
    pub(super) async fn release_lease(&self, leases: &Store, lease: Lease) {
        if let Err(error) = leases.release_lease(lease).await {
            tracing::warn!(%error, "the lease was not released; it runs out by itself");
        }
    }
}

/// Renews the lease, also while what was begun under it comes to its end; returns when it is lost.
pub(super) async fn renew(leases: Arc<Store>, lease: Lease) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        match leases.renew_lease(lease).await {
            Ok(true) => {}
            Ok(false) => return,
            // An unreachable target cannot be written to either, so the lease is not at stake.
            Err(error) => tracing::warn!(%error, "the lease could not be renewed yet"),
        }
    }
}

/// The last control record of each partition: where capture would go on.
pub(super) async fn last_controls(log: &Arc<dyn Log>) -> Result<Vec<Option<Control>>, Attempt> {
    let mut controls = Vec::new();
    for partition in 0..log.partitions() {
        let last = log.last_control(Topic::Changes, partition).await;
        controls.push(last.map_err(|error| Attempt::Later(error.to_string()))?.map(|(_, control)| control));
    }
    Ok(controls)
}

/// The version up to which everything happened before the source's tables were looked at, at `now_us` of its clock:
/// what the log holds may be of a clock that was ahead.
pub(super) fn newest_version(controls: &[Option<Control>], now_us: i64) -> Version {
    controls.iter().flatten().map(|control| control.clock).fold(now_us, Version::max)
}
