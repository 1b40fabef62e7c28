//! The PostgreSQL target, as the apply loops see it: plans, sinks, offsets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;

use super::{
    lease,
    store::Store,
    worker::{Worker, postgres_options},
};
use crate::{
    config::Config,
    database::{
        Problem,
        postgres::{self, PgError, Session, catalog, privileges},
    },
    log::{Offset, Topic, record::ChunkEnd},
    model::{Plan, TableName, TableSchema, TargetTable, Version},
    pipeline::{
        apply::{Resume, Target},
        replay,
    },
    snapshot::{SnapshotError, Sweep},
    target::{
        ApplyError, Pass, Sink,
        postgres::{
            PostgresSink, SinkOptions, collect_tombstones, highest_version, prepare_target, raise_fence, sweep,
        },
    },
    transform::{self, Severity},
};

/// Why the target cannot be written to as the transforms say.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("the transforms do not fit the target:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Transforms(Vec<transform::Problem>),
    #[error("the target cannot be written to:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Refused(Vec<Problem>),
    #[error("the target url: {0}")]
    Url(#[from] postgres::UrlError),
    #[error(transparent)]
    Postgres(#[from] PgError),
}

/// Under what the columns of a copy without a transform are noted.
fn columns_note(source: &TableName) -> String {
    format!("columns of {source}")
}

/// The target of a running worker.
#[derive(Debug)]
pub struct PgTarget {
    config: Arc<Config>,
    address: postgres::Target,
    store: Arc<Store>,
    /// Under what rows are written: the lease, or what was drawn for a part of the partitions.
    pub(super) lease_epoch: i64,
    /// Whether other processes may have written the partitions before, and still be there.
    is_shared: bool,
    sources: Vec<Arc<TableSchema>>,
    /// The version as of which the source had these tables.
    planned_at: Version,
    plans: RwLock<Arc<[Plan]>>,
}

impl PgTarget {
    /// Checks the transforms and makes version columns and tombstone tables where they are missing.
    pub(super) async fn prepare(
        worker: &Worker,
        lease_epoch: i64,
        tables: &[TableSchema],
        planned_at: Version,
    ) -> Result<Self, TargetError> {
        let target = PgTarget {
            config: Arc::clone(&worker.config),
            address: postgres::Target::parse(&worker.config.target.url)?,
            store: Arc::clone(&worker.store),
            lease_epoch,
            is_shared: false,
            sources: tables.iter().cloned().map(Arc::new).collect(),
            planned_at,
            plans: RwLock::new(Arc::from([])),
        };
        let session = target.session("prepare").await?;
        let plans = target.plan(&session).await?;
        let mut missing = Vec::new();
        for plan in plans.iter() {
            missing.extend(privileges::on_table(&session.client, plan).await?);
        }
        if !missing.is_empty() {
            return Err(TargetError::Refused(missing));
        }
        for plan in plans.iter() {
            prepare_target(&session, plan).await?;
        }
        target.set_plans(plans);
        Ok(target)
    }

    /// A target whose tables and transforms need no check: those of a simulation.
    #[doc(hidden)]
    pub fn planned(
        config: Arc<Config>,
        address: postgres::Target,
        store: Arc<Store>,
        lease_epoch: i64,
        plans: Arc<[Plan]>,
    ) -> Self {
        let sources = plans.iter().map(|plan| Arc::clone(&plan.source)).collect();
        let plans = RwLock::new(plans);
        PgTarget { config, address, store, lease_epoch, is_shared: false, sources, planned_at: 0, plans }
    }

    /// This target, for partitions that this process writes under a number of its own.
    pub(super) fn under(&self, number: i64) -> PgTarget {
        PgTarget {
            config: Arc::clone(&self.config),
            address: self.address.clone(),
            store: Arc::clone(&self.store),
            lease_epoch: number,
            is_shared: true,
            sources: self.sources.clone(),
            planned_at: self.planned_at,
            plans: RwLock::new(self.plans()),
        }
    }

    /// Plans again, after the target's tables were changed.
    pub(super) async fn reload(&self) -> Result<(), TargetError> {
        let session = self.session("plan").await?;
        let plans = self.plan(&session).await?;
        self.set_plans(plans);
        Ok(())
    }

    async fn session(&self, purpose: &str) -> Result<Session, PgError> {
        Session::open(&self.address, &postgres_options(&self.config, purpose, false)).await
    }

    async fn plan(&self, session: &Session) -> Result<Arc<[Plan]>, TargetError> {
        let schema = &self.config.target.schema;
        let folder = self.config.path(&self.config.transform.folder);
        let files = transform::load(&folder, schema).map_err(TargetError::Transforms)?;
        let mut schemas = vec![schema.clone()];
        schemas.extend(files.iter().map(|file| file.target.schema.clone()));
        schemas.sort();
        schemas.dedup();
        let tables = catalog::tables(&session.client, &schemas).await?;
        let mut checked = transform::check(&session.client, &self.sources, &files, &tables, schema).await?;
        if !checked.passed() {
            // A column added at the source since is harmless to a copy column by column that runs without it.
            let settled = self.without_added_columns(&tables).await?;
            if settled != self.sources {
                let again = transform::check(&session.client, &settled, &files, &tables, schema).await?;
                if again.passed() {
                    checked = again;
                }
            }
        }
        if checked.passed() {
            self.remember_columns(&checked.plans).await?;
        }
        for problem in checked.problems.iter().filter(|problem| problem.severity == Severity::Warning) {
            tracing::warn!("{problem}");
        }
        if checked.passed() { Ok(checked.plans.into()) } else { Err(TargetError::Transforms(checked.problems)) }
    }

    /// Notes which columns the copies without a transform have. A table that has got another one since, at both sides, is
    /// copied again: its rows from before have a value there too.
    async fn remember_columns(&self, plans: &[Plan]) -> Result<(), PgError> {
        for plan in plans.iter().filter(|plan| plan.file.is_none()) {
            let table = &plan.source.table;
            let columns = serde_json::to_string(&plan.reads).map_err(|error| PgError::Protocol(error.to_string()))?;
            let noted: Option<Vec<String>> = self.noted_columns(table).await?;
            if noted.is_some_and(|noted| plan.reads.iter().any(|name| !noted.contains(name))) {
                tracing::warn!(%table, "the target has a new column of the source; the table is copied again");
                self.store.queue_copy(&table.table, 0).await?;
            }
            self.store.set_note(&columns_note(table), &columns).await?;
        }
        Ok(())
    }

    async fn noted_columns(&self, source: &TableName) -> Result<Option<Vec<String>>, PgError> {
        let noted = self.store.note(&columns_note(source)).await?;
        Ok(noted.and_then(|noted| serde_json::from_str(&noted).ok()))
    }

    /// The source tables, less the columns that came after their copies were first planned and that the target lacks.
    async fn without_added_columns(&self, tables: &[TargetTable]) -> Result<Vec<Arc<TableSchema>>, PgError> {
        let mut settled = Vec::new();
        for source in &self.sources {
            let noted = self.noted_columns(&source.table).await?;
            let name = TableName::new(&self.config.target.schema, &source.table.table);
            let table = tables.iter().find(|table| table.name == name);
            let (Some(noted), Some(table)) = (noted, table) else {
                settled.push(Arc::clone(source));
                continue;
            };
            let added = |name: &String| !noted.contains(name) && table.column(name).is_none();
            let mut reduced = TableSchema::clone(source);
            let key: Vec<String> = source.key_columns().map(|column| column.name.clone()).collect();
            for column in source.columns.iter().filter(|column| added(&column.name) && !key.contains(&column.name)) {
                tracing::warn!(
                    table = %source.table,
                    column = %column.name,
                    "the source has a new column that the target lacks; it is not copied: add it to the target and restart"
                );
                reduced.columns.retain(|other| other.name != column.name);
            }
            reduced.key =
                key.iter().filter_map(|name| reduced.columns.iter().position(|column| column.name == *name)).collect();
            settled.push(if reduced == **source { Arc::clone(source) } else { Arc::new(reduced) });
        }
        Ok(settled)
    }

    /// The transforms of today.
    pub fn plans(&self) -> Arc<[Plan]> {
        Arc::clone(&self.plans.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_plans(&self, plans: Arc<[Plan]>) {
        *self.plans.write().unwrap_or_else(PoisonError::into_inner) = plans;
    }

    /// The source columns that transforms read, by source table.
    pub fn used_columns(&self) -> BTreeMap<String, Vec<String>> {
        let mut used: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for plan in self.plans().iter() {
            used.entry(plan.source.table.table.clone()).or_default().extend(plan.reads.iter().cloned());
        }
        used
    }

    /// Source tables whose rows before a change a transform needs whole, to tell which rows it had made of them.
    pub fn whole_rows(&self) -> BTreeSet<TableName> {
        let plans = self.plans();
        let told = plans.iter().filter(|plan| plan.needs_whole_rows());
        told.map(|plan| plan.source.table.clone()).collect()
    }

    /// Everything of a source table that is older than its new copy is out of date, whoever brings it again (a replay).
    async fn fence(&self, session: &Session, plans: &[Plan], table: &str, before: Version) -> Result<(), PgError> {
        let own: Vec<&Plan> = plans.iter().filter(|plan| plan.source.table.table == table).collect();
        let Some(source) = own.first().map(|plan| &plan.source.table) else { return Ok(()) };
        let holder = (self.config.name.as_str(), self.lease_epoch);
        raise_fence(session, holder, source, &own, self.config.log.partitions, before).await
    }

    /// The highest version among the target's rows and tombstones, which earlier pipelines may have left.
    pub async fn highest_version(&self) -> Result<Version, PgError> {
        let session = self.session("versions").await?;
        let mut highest = 0;
        for plan in self.plans().iter() {
            highest = highest.max(highest_version(&session, plan).await?);
        }
        Ok(highest)
    }

    /// Forgets the tombstones older than `version`. The caller knows that nothing older can come.
    pub async fn forget_tombstones(&self, version: Version) -> Result<(), PgError> {
        let session = self.session("tombstones").await?;
        for plan in self.plans().iter() {
            let forgotten = collect_tombstones(&session, plan, version).await?;
            if forgotten > 0 {
                tracing::debug!(table = %plan.target.name, forgotten, "old tombstones removed");
            }
        }
        Ok(())
    }

    /// A process that was paused inside a transaction keeps the locks that the next writer of its partition needs.
    async fn end_predecessor(&self, topic: Topic, partition: u32) -> Result<(), PgError> {
        let session = self.store.session().await?;
        Ok(lease::end_sinks(session.client()?, &self.config.name, topic, partition).await?)
    }

    async fn sink(&self, topic: Topic, partition: u32) -> Result<PostgresSink, ApplyError> {
        self.sink_named(&lease::sink_purpose(topic, partition), topic, partition).await
    }

    /// A sink of a pass of a replay.
    async fn replay_sink(&self, pass: Pass, partition: u32) -> Result<PostgresSink, ApplyError> {
        let sink = self.sink_named(lease::REPLAY, pass.topic(), partition).await?;
        Ok(sink.replaying(pass))
    }

    async fn sink_named(&self, purpose: &str, topic: Topic, partition: u32) -> Result<PostgresSink, ApplyError> {
        let options = SinkOptions {
            target: self.address.clone(),
            session: postgres_options(&self.config, purpose, true),
            pipeline: self.config.name.clone(),
            topic,
            partition,
            lease_epoch: self.lease_epoch,
            check_offset: topic == Topic::Changes || purpose == lease::REPLAY,
            config: self.config.apply.clone(),
        };
        Ok(PostgresSink::open(options, self.plans()).await?.planned_at(self.planned_at))
    }
}

#[async_trait]
impl Target for PgTarget {
    async fn resume(&self, topic: Topic, partition: u32, log_epoch: &str) -> Result<Resume, ApplyError> {
        if self.is_shared {
            self.end_predecessor(topic, partition).await.map_err(unreachable)?;
        }
        let claim = self.sink(topic, partition).await?.claim(log_epoch).await?;
        let stored = self.store.schemas().await.map_err(unreachable)?;
        let schemas: HashMap<u64, Arc<TableSchema>> =
            stored.into_iter().map(|(_, schema)| (schema.id(), Arc::new(schema))).collect();
        Ok(Resume { from: claim.next_offset, schemas })
    }

    async fn open(&self, topic: Topic, partition: u32) -> Result<Box<dyn Sink>, ApplyError> {
        Ok(Box::new(self.sink(topic, partition).await?))
    }

    async fn advance(
        &self,
        partition: u32,
        log_epoch: &str,
        to: Offset,
        chunks: &[ChunkEnd],
    ) -> Result<(), ApplyError> {
        let partitions = self.config.log.partitions;
        let advanced =
            self.store.advance_snapshot(partition, partitions, self.lease_epoch, log_epoch, to, chunks).await;
        if advanced.map_err(unreachable)? {
            return Ok(());
        }
        let pipeline = self.config.name.clone();
        Err(ApplyError::Fenced { topic: Topic::Snapshot.suffix(), partition, pipeline })
    }
}

#[async_trait]
impl replay::Target for PgTarget {
    async fn resume(&self, pass: Pass, partition: u32, log_epoch: &str) -> Result<replay::Resume, ApplyError> {
        let claim = self.replay_sink(pass, partition).await?.claim(log_epoch).await?;
        let stored = self.store.schemas().await.map_err(unreachable)?;
        let schemas = stored.into_iter().map(|(_, schema)| (schema.id(), Arc::new(schema))).collect();
        let fences = self.store.fences().await.map_err(unreachable)?;
        Ok(replay::Resume { from: claim.next_offset, schemas, fences })
    }

    async fn open(&self, pass: Pass, partition: u32) -> Result<Box<dyn Sink>, ApplyError> {
        Ok(Box::new(self.replay_sink(pass, partition).await?))
    }
}

#[async_trait]
impl Sweep for PgTarget {
    async fn sweep(&self, table: &str, before: Version) -> Result<bool, SnapshotError> {
        let options = postgres_options(&self.config, lease::SWEEP, true);
        let session = Session::open(&self.address, &options).await?;
        session.client.batch_execute("SET statement_timeout = 0").await.map_err(PgError::from)?;
        let alone = "SELECT NOT EXISTS (SELECT FROM cutover.tables WHERE pipeline <> $1)";
        let row = session.client.query_one(alone, &[&self.config.name]).await.map_err(PgError::from)?;
        let (alone, plans, mut complete): (bool, _, _) = (row.get(0), self.plans(), true);
        self.fence(&session, &plans, table, before).await?;
        for plan in plans.iter().filter(|plan| plan.source.table.table == table) {
            let target = &plan.target.name;
            if !alone || plan.key_reads.is_none() {
                let reason = if plan.key_reads.is_none() {
                    "its key is not that of the source"
                } else {
                    "other pipelines may write to it"
                };
                tracing::warn!(%target, reason, "rows that the source has deleted unseen are not looked for");
                continue;
            }
            let swept = sweep(&session, &self.config.name, (plan, &plans), before, self.lease_epoch).await?;
            if swept.rows > 0 {
                tracing::info!(%target, rows = swept.rows, "removed rows that the copy has not met");
            }
            complete &= swept.complete;
        }
        Ok(complete)
    }
}

fn unreachable(error: PgError) -> ApplyError {
    ApplyError::Unreachable(error.to_string())
}
