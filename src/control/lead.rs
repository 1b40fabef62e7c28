//! Who leads: the process that holds the lease. It captures and copies, and does what one process alone may do.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    lease::{self, Lease},
    members::Described,
    store::Store,
    target::TargetError,
    worker::{Attempt, Role, Worker, WorkerError},
};
use crate::{
    config::Config,
    database::postgres::PgError,
    log::{EmbeddedLog, KafkaLog, Log, LogError, kafka},
    model::Disposition,
    observe::Halt,
    pipeline::apply,
    transform,
};

impl Worker {
    /// Takes the lease and the log. A worker that lost the lease may still have the log open: it lets go when it notices.
    pub(super) async fn take_over(&self, leases: &Store) -> Result<(Lease, Arc<dyn Log>), Attempt> {
        let lease = self.take_lease(leases).await?;
        let error = match self.open_log(lease).await {
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

    async fn open_log(&self, lease: Lease) -> Result<Arc<dyn Log>, LogError> {
        let Config { name, log, folder, .. } = &*self.config;
        if let Some(folder) = log.folder(folder) {
            // A folder for each pipeline, as for all other state.
            return Ok(Arc::new(EmbeddedLog::open(&folder.join(name), log.into()).await?));
        }
        Ok(Arc::new(KafkaLog::open(self.kafka_settings()?.under_lease(lease.epoch)).await?))
    }

    pub(super) fn kafka_settings(&self) -> Result<kafka::Settings, LogError> {
        kafka::Settings::new(&self.config.name, &self.config.log).map_err(|reason| LogError::Client { reason })
    }

    /// Whether the log has everything that the target goes on with; halts if it has not.
    pub(super) async fn judge_log(&self, log: &Arc<dyn Log>) -> Result<bool, Attempt> {
        for (topic, partition, next) in self.store.next_offsets(log.epoch()).await? {
            if let Err(error) = apply::reaches(&**log, topic, partition, next).await {
                let remedy = "restart the worker when that is done".into();
                self.halts.halt("log", Halt { reason: error.to_string(), remedy });
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the lease, unless processes run that this one does not go together with.
    pub(super) async fn take_lease(&self, leases: &Store) -> Result<Lease, Attempt> {
        let (applies, transforms) = (self.leader_applies(), self.transforms()?);
        if let Some(reason) = leases.blocks_leader(applies, &transforms).await? {
            return Err(Attempt::Later(reason));
        }
        let lease = {
            let session = leases.session().await?;
            let (client, pipeline) = (session.client()?, &self.config.name);
            let taken = lease::acquire(client, pipeline, "worker", &process_name()).await.map_err(PgError::from)?;
            let lease = taken
                .map_err(|other| Attempt::Later(format!("waiting for the lease, which {} holds", other.holder)))?;
            let raised = lease::raise(client, pipeline, "worker", lease).await.map_err(PgError::from)?;
            raised.ok_or_else(|| Attempt::Later("the lease was lost again".into()))?
        };
        leases.mark_leader(lease, applies, &transforms).await?;
        // Now that others see it: whoever has begun meanwhile goes on.
        if let Some(reason) = leases.blocks_leader(applies, &transforms).await? {
            self.release_lease(leases, lease).await;
            return Err(Attempt::Later(reason));
        }
        let session = leases.session().await?;
        let ended = if applies {
            lease::end_predecessor(session.client()?, &self.config.name).await
        } else {
            lease::end_predecessor_of_capture(session.client()?, &self.config.name).await
        };
        ended.map_err(PgError::from)?;
        Ok(lease)
    }

    /// Whether who holds the lease applies too. A connector's topics are not shared: the one process that reads them leads.
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

    /// Identifies the transforms of this process.
    pub(super) fn transforms(&self) -> Result<String, TargetError> {
        let folder = self.config.path(&self.config.transform.folder);
        let files = transform::load(&folder, &self.config.target.schema).map_err(TargetError::Transforms)?;
        Ok(transform::files_hash(&files))
    }

    /// Gives the lease up, so that the next worker need not wait.
    pub(super) async fn release_lease(&self, leases: &Store, lease: Lease) {
        if let Ok(session) = leases.session().await
            && let Ok(client) = session.client()
            && let Err(error) = lease::release(client, &self.config.name, "worker", lease).await
        {
            tracing::warn!(%error, "the lease was not released; it runs out by itself");
        }
    }
}

/// Renews the lease until `stop`; true if it was lost.
pub(super) async fn renew(leases: Arc<Store>, pipeline: String, lease: Lease, stop: CancellationToken) -> bool {
    loop {
        tokio::select! { () = stop.cancelled() => return false, () = tokio::time::sleep(lease::RENEW_EVERY) => {} }
        let Ok(session) = leases.session().await else { continue };
        let Ok(client) = session.client() else { continue };
        match lease::renew(client, &pipeline, "worker", lease).await {
            Ok(true) => {}
            Ok(false) => return true,
            // An unreachable target cannot be written to either, so the lease is not at stake.
            Err(error) => tracing::warn!(%error, "the lease could not be renewed yet"),
        }
    }
}

/// What this process is called where others see it.
pub(super) fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.map_or_else(|_| "unknown host".into(), |name| name.trim().to_owned());
    format!("{host}:{}", std::process::id())
}
