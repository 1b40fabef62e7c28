//! A comparison that a command asks for, put together from the configuration; a worker may run or not.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    error::WorkerError,
    parts::{Configured, Parts},
    proving,
    repairing::Repairs,
};
use crate::{
    config::{Config, VerifyLog},
    model::{Disposition, Plan, TableName, TableSchema},
    observe::Frontier,
    source::SourceError,
    state::{
        StateError, Store,
        requests::{Command, RequestState},
    },
    target::{Checked, Target, TargetError},
    transform::{Severity, transforms_hash},
    verify::{Ask, COUNT_DIFFERENCE_MAX, Progress, Verdict, Verifier, VerifyError},
};

/// Rows of one request to repair.
const REQUEST_ROWS_MAX: usize = 2_000;
/// How often the answer to a request is looked for.
const ANSWER_EVERY: Duration = Duration::from_millis(200);
/// How often the session is used that holds the lock, which keeps it from being idle.
const LOCK_LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a command has no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// Somebody else compares.
    #[error("another `cutover verify` of this pipeline runs; wait for its end, or stop it")]
    Busy,
    #[error("the pipeline has no source table `{0}`; `cutover status` lists them")]
    NoTable(String),
    /// The worker does not do it.
    #[error("the repair was not done: {0}")]
    NotRepaired(String),
    /// Tombstones may have been forgotten meanwhile.
    #[error("the session that kept tombstones from being forgotten was lost, so that nothing is proven; verify again")]
    LockLost,
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

impl Unverified {
    /// What whoever asked does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Unverified::Verify(error) => error.disposition(),
            Unverified::LockLost => Disposition::Retry,
            Unverified::Busy | Unverified::NoTable(_) | Unverified::NotRepaired(_) | Unverified::Worker(_) => {
                Disposition::Halt
            }
        }
    }
}

impl From<SourceError> for Unverified {
    fn from(error: SourceError) -> Self {
        Unverified::Worker(error.into())
    }
}

impl From<StateError> for Unverified {
    fn from(error: StateError) -> Self {
        Unverified::Worker(error.into())
    }
}

impl From<TargetError> for Unverified {
    fn from(error: TargetError) -> Self {
        Unverified::Worker(error.into())
    }
}

/// A comparison that has the pipeline to itself.
pub struct Verification {
    verifier: Verifier,
    schemas: Vec<Arc<TableSchema>>,
    plans: Arc<[Plan]>,
    match_min: f64,
    count_difference_max: f64,
    /// Its session holds the lock.
    lock: Arc<Store>,
}

impl std::fmt::Debug for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verification").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

impl Verification {
    /// Looks at both sides, and keeps others from comparing meanwhile.
    ///
    /// # Errors
    /// When nothing can be said: a side that cannot be read, transforms that do not fit, another comparison.
    pub async fn begin(config: &Config, ask: &Ask) -> Result<Self, Unverified> {
        if config.log.debezium.is_some() {
            let text = "with [log.debezium] there is no source to compare with; compare at the connector's database";
            return Err(WorkerError::Usage(text.into()).into());
        }
        Self::over(&Configured(Arc::new(config.clone())), config, ask).await
    }

    /// As [`Self::begin`], of these parts.
    ///
    /// # Errors
    /// As there.
    pub async fn over(parts: &dyn Parts, config: &Config, ask: &Ask) -> Result<Self, Unverified> {
        let (store, lock) = (parts.store()?, parts.store()?);
        if !lock.lock_verify().await? {
            return Err(Unverified::Busy);
        }
        let source = parts.source(Arc::clone(&store), Frontier::new(config.log.partitions))?;
        let examined = source.examine().await?;
        let known: BTreeSet<&str> = examined.tables.iter().map(|schema| schema.table.table.as_str()).collect();
        if let Some(unknown) = ask.tables.iter().find(|table| !known.contains(table.as_str())) {
            return Err(Unverified::NoTable(unknown.clone()));
        }
        let schemas: Vec<Arc<TableSchema>> = examined.tables.into_iter().map(Arc::new).collect();
        let target = parts.target(Arc::clone(&store), 0)?;
        let plans = plans(&*target, &schemas).await?;
        let verifier = Verifier {
            source,
            target,
            store,
            environment: parts.environment(),
            pipeline: config.name.clone(),
            connector: examined.connector,
            partitions: config.log.partitions,
            chunk_rows: config.snapshot.chunk_rows,
            confirm_for: Duration::from_secs(config.verify.confirm_seconds),
            notes_rows: config.verify.log == VerifyLog::Rows,
            rows_per_second: None,
            barrier: None,
        };
        let match_min = config.verify.match_min;
        let count_difference_max = config.verify.count_difference_max.unwrap_or(COUNT_DIFFERENCE_MAX);
        Ok(Verification { verifier, schemas, plans, match_min, count_difference_max, lock })
    }

    /// Compares as asked, and notes which rows are to be reviewed and what a whole comparison of a table has found.
    ///
    /// # Errors
    /// When a side cannot be read.
    pub async fn run(&self, ask: &Ask, show: &(dyn Fn(Progress<'_>) + Sync)) -> Result<Verdict, Unverified> {
        let began = Instant::now();
        let verdict = self
            .locked(async { Ok(Box::pin(self.verifier.run(&self.schemas, &self.plans, ask, show)).await?) })
            .await?;
        let verdict = self.judge(verdict).await?;
        self.note_drift(&verdict).await?;
        let verdict = self.gated(ask, verdict).await?;
        if ask.is_whole() {
            self.note(&verdict, began).await?;
        }
        Ok(verdict)
    }

    /// Looks for rows of the source that do not come back equal, by today's transforms and by those of the way back,
    /// whose configuration is `reversed`. What the tables of either side hold plays no part.
    ///
    /// # Errors
    /// When the source cannot be read, or the transforms of the way back do not fit.
    pub async fn round_trip(
        &self,
        mut reversed: Config,
        ask: &Ask,
        show: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Verdict, Unverified> {
        let schema = reversed.source.postgres_schema().to_owned();
        let filled = self.plans.iter().map(|plan| &plan.target.name).filter(|table| table.schema == schema);
        let filled: BTreeSet<String> = filled.map(|table| table.table.clone()).collect();
        if filled.is_empty() {
            let text =
                format!("the transforms fill no table in [target] schema `{schema}`, and nothing else goes back");
            return Err(WorkerError::Usage(text).into());
        }
        reversed.source.tables = Some(filled.into_iter().collect());
        let (frontier, parts) = (Frontier::new(reversed.log.partitions), Configured(Arc::new(reversed)));
        let store = parts.store()?;
        let examined = parts.source(Arc::clone(&store), frontier)?.examine().await?;
        let schemas: Vec<Arc<TableSchema>> = examined.tables.into_iter().map(Arc::new).collect();
        let back = plans(&*parts.target(store, 0)?, &schemas).await?;
        Ok(Box::pin(self.verifier.round_trip(&self.schemas, &self.plans, &back, ask, show)).await?)
    }

    /// Sends the drifted rows through the log again, and compares these rows once more.
    ///
    /// # Errors
    /// When the worker does not do it, or a side cannot be read.
    pub async fn repair(&self, ask: &Ask, verdict: Verdict) -> Result<Verdict, Unverified> {
        let began = Instant::now();
        let again = async {
            for table in &verdict.tables {
                let Repairs { table, rows } = proving::repairs(table, |_| true);
                for rows in rows.chunks(REQUEST_ROWS_MAX) {
                    self.send(&Repairs { table: table.clone(), rows: rows.to_vec() }).await?;
                }
            }
            Ok(self.verifier.look_again(&self.schemas, &self.plans, ask, verdict).await?)
        };
        let verdict = self.locked(Box::pin(again)).await?;
        self.note_drift(&verdict).await?;
        let verdict = self.gated(ask, verdict).await?;
        if ask.is_whole() {
            self.note(&verdict, began).await?;
        }
        Ok(verdict)
    }

    /// Does what needs the lock, for as long as the lock is there.
    async fn locked<T>(&self, work: impl Future<Output = Result<T, Unverified>>) -> Result<T, Unverified> {
        let lost = async {
            loop {
                tokio::time::sleep(LOCK_LOOK_EVERY).await;
                if !matches!(self.lock.has_verify_lock().await, Ok(true)) {
                    return;
                }
            }
        };
        let done = tokio::select! {
            biased;
            done = work => done?,
            () = lost => return Err(Unverified::LockLost),
        };
        if matches!(self.lock.has_verify_lock().await, Ok(true)) { Ok(done) } else { Err(Unverified::LockLost) }
    }

    async fn send(&self, repairs: &Repairs) -> Result<(), Unverified> {
        let store = &self.verifier.store;
        let arguments = serde_json::to_value(repairs).map_err(StateError::from)?;
        let request = store.ask_with(Command::Repair, &arguments).await?;
        loop {
            tokio::time::sleep(ANSWER_EVERY).await;
            match store.request_state(request).await? {
                (RequestState::Done, _) => return Ok(()),
                (RequestState::Refused, why) => return Err(Unverified::NotRepaired(why)),
                (RequestState::New, _) => {
                    let status = store.status().await?;
                    if !status.worker_running {
                        let why = "the worker has gone; start one with `cutover run`, it will find the request";
                        return Err(Unverified::NotRepaired(why.into()));
                    }
                    if let Some(halt) = status.halted {
                        let text =
                            format!("the worker is halted: {halt}; the request stays, and is done when it goes on");
                        return Err(Unverified::NotRepaired(text));
                    }
                }
            }
        }
    }

    /// By transforms that are not in force a row may differ that is as it should be.
    async fn note_drift(&self, verdict: &Verdict) -> Result<(), Unverified> {
        if verdict.caveat.is_none() {
            self.verifier.note_drift(verdict).await?;
        }
        Ok(())
    }

    async fn note(&self, verdict: &Verdict, began: Instant) -> Result<(), StateError> {
        for table in verdict.tables.iter().filter(|table| table.skipped.is_none()) {
            let mut verified = table.noted(self.verifier.environment.now_us());
            verified.is_clean &= verdict.caveat.is_none();
            self.verifier.store.note_verified(&verified).await?;
        }
        self.verifier.store.note_verdict(&verdict.noted(self.verifier.environment.now_us())).await?;
        let event = verdict.event(began.elapsed().as_secs_f64());
        self.verifier.store.tell_of(&event, self.verifier.environment.now_us() / 1000).await
    }

    /// The verdict with what a switch asks for. Foreign keys, each of which is a pass over its table, are looked at
    /// where every row was.
    async fn gated(&self, ask: &Ask, verdict: Verdict) -> Result<Verdict, Unverified> {
        let compared = self.schemas.iter().map(|schema| &schema.table);
        let compared = compared.filter(|table| verdict.tables.iter().any(|found| found.table == table.table));
        let compared: Vec<TableName> = compared.filter(|_| ask.is_whole()).cloned().collect();
        let orphans =
            if compared.is_empty() { Vec::new() } else { self.verifier.orphans(&self.plans, &compared).await? };
        Ok(verdict.gated(self.match_min, self.count_difference_max, orphans))
    }

    /// A verdict by transforms that are not in force, or were changed meanwhile, is none.
    async fn judge(&self, verdict: Verdict) -> Result<Verdict, Unverified> {
        let hash = transforms_hash(&self.plans);
        if transforms_hash(&plans(&*self.verifier.target, &self.schemas).await?) != hash {
            return Ok(verdict.but("the transforms were changed meanwhile; verify again".into()));
        }
        let in_force = self.verifier.store.transforms_in_force().await?;
        if in_force.is_some_and(|in_force| in_force != hash) {
            let caveat = "the transforms are not those that the worker last applied; restart it, `cutover replay` or `cutover \
                          resnapshot` what they change, and verify again";
            return Ok(verdict.but(caveat.into()));
        }
        Ok(verdict)
    }
}

/// Today's transforms, if they fit.
async fn plans(target: &dyn Target, schemas: &[Arc<TableSchema>]) -> Result<Arc<[Plan]>, TargetError> {
    let Checked { plans, problems } = target.check(schemas).await?;
    let errors: Vec<_> = problems.into_iter().filter(|problem| problem.severity == Severity::Error).collect();
    if errors.is_empty() { Ok(plans.into()) } else { Err(TargetError::Transforms(errors)) }
}
