//! The PostgreSQL target of a pipeline: plans, sinks, offsets, and what is done once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use tokio_postgres::types::ToSql;

use super::{
    PostgresSink, SinkOptions, cascades, collect_tombstones, highest_version, lane::HAS_LEASE, parked, prepare_target,
    raise_fence, script, sweep, sweep::forget_older,
};
use crate::{
    database::postgres::{self, Options, PgError, Session, catalog, mark, privileges, type_names},
    log::{Offset, Topic, record::ChunkEnd},
    model::{ColumnType, Plan, TableName, TableSchema, TargetTable, Version},
    snapshot::SnapshotError,
    state::{StateError, lease},
    target::{
        ApplyError, Checked, ChildCursor, Children, ChildrenOf, Comparer, Lane, Looks, Resume, Settings, Sink, Target,
        TargetError,
    },
    transform::{self, Severity, TransformFile},
};

/// Sessions that prepare tables beside each other.
const PREPARED_BESIDE_MAX: usize = 8;

/// The source's tables, and the transforms from them to the target's.
#[derive(Debug, Clone)]
struct Planned {
    sources: Vec<Arc<TableSchema>>,
    /// The version as of which the source had these tables.
    at: Version,
    plans: Arc<[Plan]>,
}

/// A PostgreSQL database where rows end.
#[derive(Debug)]
pub struct PostgresTarget {
    pub(super) settings: Settings,
    pub(super) address: postgres::Address,
    number: i64,
    /// Whether other processes may have written the partitions before, and still be there.
    is_shared: bool,
    planned: RwLock<Planned>,
    /// The tables where rows end, if they are on another server.
    elsewhere: Option<Arc<[TargetTable]>>,
}

impl PostgresTarget {
    /// The server that the URL names; it is not connected to.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(settings: Settings, number: i64) -> Result<Self, TargetError> {
        let address = postgres::Address::parse(&settings.state_url)?;
        let planned = Planned { sources: Vec::new(), at: 0, plans: Arc::from([]) };
        let planned = RwLock::new(planned);
        Ok(PostgresTarget { settings, address, number, is_shared: false, planned, elsewhere: None })
    }

    /// A target whose tables and transforms need no check: those of a simulation.
    #[doc(hidden)]
    pub fn planned(settings: Settings, address: postgres::Address, number: i64, plans: Arc<[Plan]>) -> Self {
        let sources = plans.iter().map(|plan| Arc::clone(&plan.source)).collect();
        let planned = RwLock::new(Planned { sources, at: 0, plans });
        PostgresTarget { settings, address, number, is_shared: false, planned, elsewhere: None }
    }

    /// The same for rows that end in these tables, which are on another server.
    #[must_use]
    pub(in crate::target) fn with_tables(&self, tables: Arc<[TargetTable]>) -> Self {
        PostgresTarget { elsewhere: Some(tables), ..self.written_under(self.number, self.is_shared) }
    }

    /// The same, written to under another number.
    fn written_under(&self, number: i64, is_shared: bool) -> Self {
        PostgresTarget {
            settings: self.settings.clone(),
            address: self.address.clone(),
            number,
            is_shared,
            planned: RwLock::new(self.now()),
            elsewhere: self.elsewhere.clone(),
        }
    }

    /// The same, with its plans, for partitions that this process writes under a number of its own.
    #[must_use]
    pub(in crate::target) fn shared(&self, number: i64) -> Self {
        self.written_under(number, true)
    }

    pub(super) fn options(&self, purpose: &str, replica: bool) -> Options {
        Options {
            application_name: lease::session_name(&self.settings.pipeline, purpose),
            schemas: vec![self.settings.state_schema.clone()],
            ca_file: self.settings.ca_file.clone(),
            replica,
        }
    }

    /// What a transaction that writes rows says behind its BEGIN: whose it is.
    fn mark(&self) -> String {
        if self.settings.marked { mark::statement(&self.settings.pipeline) } else { String::new() }
    }

    /// A session of its own, for what is done once.
    pub(in crate::target) async fn session(&self, purpose: &str) -> Result<Session, PgError> {
        Session::open(&self.address, &self.options(purpose, false)).await
    }

    fn now(&self) -> Planned {
        self.planned.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, planned: Planned) {
        *self.planned.write().unwrap_or_else(PoisonError::into_inner) = planned;
    }

    /// The transforms as they are written, and the tables that are there for them.
    async fn files_and_tables(&self, session: &Session) -> Result<(Vec<TransformFile>, Vec<TargetTable>), TargetError> {
        let schema = &self.settings.schema;
        let files = transform::load(&self.settings.transforms, schema).map_err(TargetError::Transforms)?;
        let mut schemas = vec![schema.clone()];
        schemas.extend(files.iter().map(|file| file.target.schema.clone()));
        if let Some(tables) = &self.elsewhere {
            return Ok((files, tables.to_vec()));
        }
        schemas.sort();
        schemas.dedup();
        let tables = catalog::tables(&session.client, &schemas).await?;
        Ok((files, tables))
    }

    async fn plan(&self, session: &Session, sources: &[Arc<TableSchema>]) -> Result<Arc<[Plan]>, TargetError> {
        let schema = &self.settings.schema;
        let (files, tables) = self.files_and_tables(session).await?;
        let mut checked = transform::check(&session.client, sources, &files, &tables, schema, &BTreeSet::new()).await?;
        if !checked.passed() {
            // A column added at the source since is harmless to a copy column by column that runs without it.
            let settled = self.without_added_columns(sources, &tables).await?;
            if settled != sources {
                let again =
                    transform::check(&session.client, &settled, &files, &tables, schema, &BTreeSet::new()).await?;
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

    /// Notes which columns the copies without a transform have. A table that has got another one since, at both sides,
    /// is copied again: its rows from before have a value there too.
    async fn remember_columns(&self, plans: &[Plan]) -> Result<(), StateError> {
        let store = &self.settings.store;
        let mut changed = Vec::new();
        for plan in plans.iter().filter(|plan| plan.file.is_none()) {
            let table = &plan.source.table;
            let noted = store.noted_columns(table).await?;
            if noted.as_ref().is_some_and(|noted| plan.reads.iter().any(|name| !noted.contains(name))) {
                tracing::warn!(%table, "the target has a new column of the source; the table is copied again");
                store.queue_copy(&table.table, 0).await?;
            }
            if noted.as_ref() != Some(&plan.reads) {
                changed.push((table, plan.reads.as_slice()));
            }
        }
        store.note_columns(&changed).await
    }

    /// Adds what the plans' targets lack of ours. Each needs commits of its own, since a table is locked until then.
    async fn prepare_tables(&self, plans: &[Plan]) -> Result<(), PgError> {
        let mut by_target: BTreeMap<&TableName, Vec<&Plan>> = BTreeMap::new();
        for plan in plans {
            by_target.entry(&plan.target.name).or_default().push(plan);
        }
        let targets: Vec<Vec<&Plan>> = by_target.into_values().collect();
        let share = targets.len().div_ceil(PREPARED_BESIDE_MAX).max(1);
        let preparing = targets.chunks(share).map(|targets| async move {
            let session = self.session("prepare").await?;
            for plan in targets.iter().flatten() {
                prepare_target(&session, plan).await?;
            }
            Ok::<_, PgError>(())
        });
        futures::future::try_join_all(preparing).await?;
        Ok(())
    }

    /// The source tables, less the columns that came after their copies were first planned and that the target lacks.
    async fn without_added_columns(
        &self,
        sources: &[Arc<TableSchema>],
        tables: &[TargetTable],
    ) -> Result<Vec<Arc<TableSchema>>, StateError> {
        let mut settled = Vec::new();
        for source in sources {
            let noted = self.settings.store.noted_columns(&source.table).await?;
            let name = TableName::new(&self.settings.schema, &source.table.table);
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

    /// Plans for these tables of the source, and makes nothing at the target.
    pub(in crate::target) async fn adopt(
        &self,
        sources: Vec<Arc<TableSchema>>,
        at: Version,
    ) -> Result<(), TargetError> {
        let session = self.session("plan").await?;
        let plans = self.plan(&session, &sources).await?;
        self.set(Planned { sources, at, plans });
        Ok(())
    }

    /// As [`Self::adopt`], for the tables that are planned for.
    pub(in crate::target) async fn adopt_again(&self) -> Result<(), TargetError> {
        let Planned { sources, at, .. } = self.now();
        self.adopt(sources, at).await
    }

    /// Whether the lease is still the one under whose number this target is written to.
    pub(in crate::target) async fn leads(&self, session: &Session) -> Result<bool, PgError> {
        const LEADS: &str =
            "SELECT EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $2)";
        let row = session.client.query_one(LEADS, &[&self.settings.pipeline, &self.number]).await?;
        Ok(row.try_get(0)?)
    }

    /// Whether a partition of a lane is still claimed under this target's number.
    pub(in crate::target) async fn has_claimed(&self, lane: Lane, partition: u32) -> Result<bool, ApplyError> {
        let asked = async {
            let session = self.session("lanes").await?;
            let part = i32::try_from(partition).unwrap_or(i32::MAX);
            let params: [&(dyn ToSql + Sync); 4] = [&self.settings.pipeline, &lane.name(), &part, &self.number];
            Ok::<bool, PgError>(session.client.query_opt(HAS_LEASE, &params).await?.is_some())
        };
        asked.await.map_err(|error| ApplyError::Unreachable(error.to_string()))
    }

    /// The highest version that is kept beside the rows.
    pub(in crate::target) async fn highest_parked(&self) -> Result<Version, TargetError> {
        let session = self.session("versions").await?;
        Ok(parked::highest_version(&session.client, &self.settings.pipeline).await?)
    }

    /// Keeps everything of a source table out that is older than its new copy, and forgets what is set aside of it.
    /// Whether something newer is set aside still.
    pub(in crate::target) async fn fence_table(&self, table: &str, before: Version) -> Result<bool, SnapshotError> {
        let session = Session::open(&self.address, &self.options(lease::SWEEP, true)).await?;
        let plans = self.plans();
        self.fence(&session, &plans, table, before).await?;
        let Some(plan) = plans.iter().find(|plan| plan.source.table.table == table) else { return Ok(false) };
        let source = plan.source.table.to_string();
        Ok(forget_older(&session, &self.settings.pipeline, &source, before).await?)
    }

    /// Everything of a source table that is older than its new copy is out of date, whoever brings it again (a replay).
    async fn fence(&self, session: &Session, plans: &[Plan], table: &str, before: Version) -> Result<(), PgError> {
        let own: Vec<&Plan> = plans.iter().filter(|plan| plan.source.table.table == table).collect();
        let Some(source) = own.first().map(|plan| &plan.source.table) else { return Ok(()) };
        let holder = (self.settings.pipeline.as_str(), self.number);
        raise_fence(session, holder, source, &own, self.settings.partitions, before).await
    }

    /// A process that was paused inside a transaction keeps the locks that the next writer of its partition needs.
    async fn end_predecessor(&self, topic: Topic, partition: u32) -> Result<(), StateError> {
        self.settings.store.end_sinks(topic, partition).await
    }

    /// A sink for a partition of a lane.
    pub(in crate::target) async fn sink(&self, lane: Lane, partition: u32) -> Result<PostgresSink, ApplyError> {
        let topic = lane.topic();
        let (purpose, check_offset) = match lane {
            Lane::Live(topic) => (lease::sink_purpose(topic, partition), topic == Topic::Changes),
            Lane::Replay(_) => (lease::REPLAY.to_owned(), true),
        };
        let planned = self.now();
        let options = SinkOptions {
            target: self.address.clone(),
            session: self.options(&purpose, true),
            pipeline: self.settings.pipeline.clone(),
            topic,
            partition,
            lease_epoch: self.number,
            check_offset,
            config: self.settings.apply.clone(),
        };
        let mut sink = PostgresSink::open(options, planned.plans).await?.planned_at(planned.at);
        if self.settings.marked && self.elsewhere.is_none() {
            sink = sink.marking();
        }
        Ok(match lane {
            Lane::Live(_) => sink,
            Lane::Replay(pass) => sink.replaying(pass),
        })
    }
}

#[async_trait]
impl Target for PostgresTarget {
    async fn prepare(&self, tables: &[TableSchema], planned_at: Version) -> Result<(), TargetError> {
        let sources: Vec<Arc<TableSchema>> = tables.iter().cloned().map(Arc::new).collect();
        let session = self.session("prepare").await?;
        let plans = self.plan(&session, &sources).await?;
        let mut missing = Vec::new();
        for plan in plans.iter() {
            missing.extend(privileges::on_table(&session.client, plan).await?);
        }
        if !missing.is_empty() {
            return Err(TargetError::Refused(missing));
        }
        self.prepare_tables(&plans).await?;
        self.set(Planned { sources, at: planned_at, plans });
        Ok(())
    }

    async fn check(&self, tables: &[Arc<TableSchema>]) -> Result<Checked, TargetError> {
        let session = Session::open(&self.address, &self.options("check", true)).await?;
        let (files, targets) = self.files_and_tables(&session).await?;
        let checked =
            transform::check(&session.client, tables, &files, &targets, &self.settings.schema, &BTreeSet::new())
                .await?;
        Ok(Checked { plans: checked.plans, problems: checked.problems })
    }

    async fn reload(&self) -> Result<(), TargetError> {
        let session = self.session("plan").await?;
        let planned = self.now();
        let plans = self.plan(&session, &planned.sources).await?;
        // Another type of a key may be no proof any more that keys stay apart, or one now.
        for plan in plans.iter().filter(|plan| plan.is_owned() || plan.target.has_owners) {
            prepare_target(&session, plan).await?;
        }
        self.set(Planned { plans, ..planned });
        Ok(())
    }

    fn plans(&self) -> Arc<[Plan]> {
        self.now().plans
    }

    async fn column_types(&self, table: &str) -> Result<BTreeMap<String, ColumnType>, TargetError> {
        let session = self.session("columns").await?;
        let name = TableName::new(&self.settings.schema, table);
        let tables = catalog::tables(&session.client, std::slice::from_ref(&self.settings.schema)).await?;
        let columns = tables.iter().filter(|table| table.name == name).flat_map(|table| &table.columns);
        Ok(columns.map(|column| (column.name.clone(), type_names::of_column(column))).collect())
    }

    fn number(&self) -> i64 {
        self.number
    }

    fn under(&self, number: i64) -> Arc<dyn Target> {
        Arc::new(self.shared(number))
    }

    async fn resume(&self, lane: Lane, partition: u32, log_epoch: &str) -> Result<Resume, ApplyError> {
        if self.is_shared {
            self.end_predecessor(lane.topic(), partition).await.map_err(unreachable)?;
        }
        let claim = self.sink(lane, partition).await?.claim(log_epoch).await?;
        let store = &self.settings.store;
        let stored = store.schemas().await.map_err(unreachable)?;
        let schemas: HashMap<u64, Arc<TableSchema>> =
            stored.into_iter().map(|(_, schema)| (schema.id(), Arc::new(schema))).collect();
        let fences = match lane {
            // A live sink holds every row against them in the transaction that writes it.
            Lane::Live(_) => HashMap::new(),
            Lane::Replay(_) => store.fences().await.map_err(unreachable)?,
        };
        Ok(Resume { from: claim.next_offset, schemas, fences })
    }

    async fn open(&self, lane: Lane, partition: u32) -> Result<Box<dyn Sink>, ApplyError> {
        Ok(Box::new(self.sink(lane, partition).await?))
    }

    async fn advance(
        &self,
        partition: u32,
        log_epoch: &str,
        to: Offset,
        chunks: &[ChunkEnd],
    ) -> Result<(), ApplyError> {
        let Settings { store, partitions, pipeline, .. } = &self.settings;
        let advanced = store.advance_snapshot(partition, *partitions, self.number, log_epoch, to, chunks).await;
        if advanced.map_err(unreachable)? {
            return Ok(());
        }
        Err(ApplyError::Fenced { topic: Topic::Snapshot.suffix(), partition, pipeline: pipeline.clone() })
    }

    async fn sweep(&self, table: &str, before: Version) -> Result<bool, SnapshotError> {
        let session = Session::open(&self.address, &self.options(lease::SWEEP, true)).await?;
        session.client.batch_execute("SET statement_timeout = 0").await.map_err(PgError::from)?;
        // What comes back of the pipeline's own is kept here, and written elsewhere.
        let alone =
            "SELECT NOT EXISTS (SELECT FROM cutover.tables WHERE pipeline NOT IN ($1::text, $1::text || '-reverse'))";
        let row = session.client.query_one(alone, &[&self.settings.pipeline]).await.map_err(PgError::from)?;
        let (alone, plans, mut complete): (bool, _, _) = (row.get(0), self.plans(), true);
        let (pipeline, mark) = (self.settings.pipeline.as_str(), self.mark());
        self.fence(&session, &plans, table, before).await?;
        for plan in plans.iter().filter(|plan| plan.source.table.table == table) {
            let target = &plan.target.name;
            let leads_back = plan.key_reads.is_some() || plan.is_owned();
            if !alone || !leads_back {
                let reason =
                    if !leads_back { "its key is not that of the source" } else { "other pipelines may write to it" };
                tracing::warn!(%target, reason, "rows that the source has deleted unseen are not looked for");
                continue;
            }
            let swept = sweep(&session, (pipeline, &mark), (plan, &plans), before, self.number).await?;
            if swept.rows > 0 {
                tracing::info!(%target, rows = swept.rows, "removed rows that the copy has not met");
            }
            complete &= swept.complete;
        }
        Ok(complete)
    }

    async fn children(&self, of: &ChildrenOf<'_>, from: Option<ChildCursor>) -> Result<Children, TargetError> {
        let session = self.session("cascades").await?;
        session.client.batch_execute("SET statement_timeout = 0").await.map_err(PgError::from)?;
        Ok(cascades::children(&session, &self.plans(), of, from).await?)
    }

    async fn highest_version(&self) -> Result<Version, TargetError> {
        let session = self.session("versions").await?;
        let mut highest = parked::highest_version(&session.client, &self.settings.pipeline).await?;
        for plan in self.plans().iter() {
            highest = highest.max(highest_version(&session, plan).await?);
        }
        Ok(highest)
    }

    async fn forget_tombstones(&self, version: Version) -> Result<(), TargetError> {
        let session = self.session("tombstones").await?;
        for plan in self.plans().iter() {
            let forgotten = collect_tombstones(&session, plan, version).await?;
            if forgotten > 0 {
                tracing::debug!(table = %plan.target.name, forgotten, "old tombstones removed");
            }
        }
        Ok(())
    }

    async fn run_script(&self, file: &Path) -> Result<(), TargetError> {
        let session = self.session("after copy").await?;
        let Settings { pipeline, schema, .. } = &self.settings;
        Ok(script::run(&session, (pipeline, &self.mark()), schema, file).await?)
    }

    async fn comparer(&self, plans: Arc<[Plan]>, looks: Looks) -> Result<Box<dyn Comparer>, ApplyError> {
        Ok(Box::new(self.maker(plans, looks).await?))
    }
}

fn unreachable(error: StateError) -> ApplyError {
    ApplyError::Unreachable(error.to_string())
}
