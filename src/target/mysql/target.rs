//! The MySQL or MariaDB target of a pipeline: its tables, its connections, and what is done once.
//!
//! Plans, lanes and offsets are those of the PostgreSQL that runs the transforms.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use mysql_async::{Conn, prelude::Queryable};

use super::{
    MysqlError,
    comparer::MysqlComparer,
    own,
    rows::{LaneOf, MysqlRows},
    tables::{self, Tables},
};
use crate::{
    database::mysql::connect::{self, Connector, QueryError},
    log::{Offset, Topic, record::ChunkEnd},
    model::{ColumnType, Disposition, Plan, Problem, TableName, TableSchema, Version},
    snapshot::SnapshotError,
    state::lease,
    target::{
        ApplyError, Checked, ChildCursor, Children, ChildrenOf, Comparer, Lane, Looks, Resume, Settings, Sink, Target,
        TargetError, postgres::PostgresTarget, rows::Rows,
    },
};

/// Rows that one transaction of a sweep removes.
const SWEPT_AT_ONCE: u64 = 5000;

/// What a server says of a statement that is nothing but comments (`ER_EMPTY_QUERY`).
const EMPTY_QUERY: u16 = 1065;

/// The target's tables as they were read last, with the PostgreSQL that plans for them.
#[derive(Debug, Clone)]
struct Read {
    planner: Arc<PostgresTarget>,
    tables: Arc<Tables>,
}

/// A MySQL or MariaDB database where rows end.
#[derive(Debug)]
pub struct MysqlTarget {
    settings: Settings,
    connector: Connector,
    read: RwLock<Read>,
}

impl MysqlTarget {
    /// The server that the URL names; it is not connected to.
    ///
    /// # Errors
    /// When a URL cannot be used.
    pub fn new(settings: Settings, number: i64) -> Result<Self, TargetError> {
        let connector = Connector::new(&settings.url).map_err(MysqlError::from)?;
        let planner = PostgresTarget::new(settings.clone(), number)?.with_tables(Arc::from([]));
        let read = RwLock::new(Read { planner: Arc::new(planner), tables: Arc::default() });
        Ok(MysqlTarget { settings, connector, read })
    }

    fn now(&self) -> Read {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn connect(&self) -> Result<Conn, MysqlError> {
        Ok(self.connector.connect().await?)
    }

    /// Reads the tables; who plans then plans for these.
    async fn read_tables(&self) -> Result<Read, TargetError> {
        let mut conn = self.connect().await?;
        let (seen, tables) = tables::load(&mut conn, &self.settings.schema).await?;
        let planner = Arc::new(self.now().planner.with_tables(seen.into()));
        Ok(Read { planner, tables: Arc::new(tables) })
    }

    fn set(&self, read: Read) {
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = read;
    }

    fn rows(&self, read: &Read, lane: Lane, partition: u32) -> MysqlRows {
        let of = LaneOf { pipeline: self.settings.pipeline.clone(), lane, partition, number: read.planner.number() };
        MysqlRows::new(self.connector.clone(), Arc::clone(&read.tables), of)
    }

    /// Makes what the plans' tables need of ours, or says why they cannot have it.
    async fn prepare_tables(&self, read: &Read) -> Result<(), TargetError> {
        let plans = read.planner.plans();
        let unfit = problems(&plans, &read.tables);
        if !unfit.is_empty() {
            return Err(TargetError::Refused(unfit));
        }
        let mut conn = self.connect().await?;
        own::ensure(&mut conn).await?;
        for table in read.tables.of(&plans) {
            own::prepare(&mut conn, table, &self.settings.pipeline).await?;
        }
        Ok(())
    }
}

/// What keeps these plans' tables from being written to.
pub(super) fn problems(plans: &[Plan], tables: &Tables) -> Vec<Problem> {
    let partial = tables.of(plans).flat_map(|table| table.partial_keys().map(move |column| (table, column)));
    let partial = partial.map(|(table, column)| {
        Problem::new(
            format!(
                "the key of target table {} has the column `{}` by its first bytes alone, or as a FLOAT",
                table.name, column.name
            ),
            "give it a key of whole columns with exact values: a VARCHAR, VARBINARY, DECIMAL or DOUBLE",
        )
    });
    let unfit = tables.of(plans).filter(|table| !table.is_transactional()).map(|table| {
        Problem::new(
            format!("target table {} has the storage engine {}, which has no transactions", table.name, table.engine()),
            format!("ALTER TABLE {} ENGINE = InnoDB", table.sql()),
        )
    });
    unfit.chain(partial).collect()
}

#[async_trait]
impl Target for MysqlTarget {
    async fn prepare(&self, tables: &[TableSchema], planned_at: Version) -> Result<(), TargetError> {
        let read = self.read_tables().await?;
        read.planner.adopt(tables.iter().cloned().map(Arc::new).collect(), planned_at).await?;
        self.prepare_tables(&read).await?;
        self.set(read);
        Ok(())
    }

    async fn check(&self, tables: &[Arc<TableSchema>]) -> Result<Checked, TargetError> {
        let read = self.read_tables().await?;
        read.planner.check(tables).await
    }

    async fn reload(&self) -> Result<(), TargetError> {
        let read = self.read_tables().await?;
        read.planner.adopt_again().await?;
        self.prepare_tables(&read).await?;
        self.set(read);
        Ok(())
    }

    fn plans(&self) -> Arc<[Plan]> {
        self.now().planner.plans()
    }

    async fn column_types(&self, table: &str) -> Result<BTreeMap<String, ColumnType>, TargetError> {
        let read = self.read_tables().await?;
        let name = TableName::new(&self.settings.schema, table);
        let columns = read.tables.0.get(&name).map(|table| table.columns.clone()).unwrap_or_default();
        Ok(columns.into_iter().map(|column| (column.name, column.column_type)).collect())
    }

    fn number(&self) -> i64 {
        self.now().planner.number()
    }

    fn under(&self, number: i64) -> Arc<dyn Target> {
        let read = self.now();
        let read = Read { planner: Arc::new(read.planner.shared(number)), tables: read.tables };
        Arc::new(MysqlTarget {
            settings: self.settings.clone(),
            connector: self.connector.clone(),
            read: RwLock::new(read),
        })
    }

    async fn resume(&self, lane: Lane, partition: u32, log_epoch: &str) -> Result<Resume, ApplyError> {
        let read = self.now();
        let resume = read.planner.resume(lane, partition, log_epoch).await?;
        let mut rows = self.rows(&read, lane, partition);
        match rows.claim().await? {
            None => Ok(resume),
            Some(holder) if read.planner.has_claimed(lane, partition).await? => Err(rows.of_another_state(holder)),
            // Another worker has come in between.
            Some(_) => Err(rows.fenced()),
        }
    }

    async fn open(&self, lane: Lane, partition: u32) -> Result<Box<dyn Sink>, ApplyError> {
        let read = self.now();
        let rows = self.rows(&read, lane, partition);
        Ok(Box::new(read.planner.sink(lane, partition).await?.writing_to(Box::new(rows))))
    }

    async fn advance(
        &self,
        partition: u32,
        log_epoch: &str,
        to: Offset,
        chunks: &[ChunkEnd],
    ) -> Result<(), ApplyError> {
        self.now().planner.advance(partition, log_epoch, to, chunks).await
    }

    async fn sweep(&self, table: &str, before: Version) -> Result<bool, SnapshotError> {
        let read = self.now();
        let set_aside = read.planner.fence_table(table, before).await?;
        let plans = read.planner.plans();
        let mut conn = self.connect().await.map_err(ApplyError::from).map_err(unswept)?;
        let mut rows = self.rows(&read, Lane::Live(Topic::Snapshot), 0);
        let lease = read.planner.session(lease::SWEEP).await?;
        for plan in plans.iter().filter(|plan| plan.source.table.table == table) {
            let target = &plan.target.name;
            let Some(written) = read.tables.0.get(target) else { continue };
            let shared = own::is_shared(&mut conn, written, &self.settings.pipeline).await;
            let reason = match shared.map_err(ApplyError::from).map_err(unswept)? {
                true => Some("other pipelines write to it"),
                false => set_aside.then_some("rows of it are dead letters or wait, whose last good state stays"),
            };
            if let Some(reason) = reason {
                tracing::warn!(%target, reason, "rows that the source has deleted unseen are not looked for");
                continue;
            }
            let mut removed = 0;
            loop {
                // The lanes are held up for no longer than a piece takes.
                rows.begin_alone().await.map_err(unswept)?;
                if !read.planner.leads(&lease).await? {
                    rows.roll_back().await;
                    return Err(SnapshotError::Target("another worker has taken the lease".into()));
                }
                let piece = rows.remove_older(target, before, SWEPT_AT_ONCE).await;
                let piece = piece.map_err(|error| unswept(error.into()))?;
                rows.commit().await.map_err(unswept)?;
                removed += piece;
                if piece < SWEPT_AT_ONCE {
                    break;
                }
            }
            if removed > 0 {
                tracing::info!(%target, rows = removed, "removed rows that the copy has not met");
            }
        }
        Ok(true)
    }

    async fn children(&self, _: &ChildrenOf<'_>, _: Option<ChildCursor>) -> Result<Children, TargetError> {
        Err(TargetError::Mysql(MysqlError::Unusable(Problem::new(
            "children that a foreign key of the source changes unseen cannot be looked for in a target that is MySQL or MariaDB",
            "set [source] cascades = \"none\" where no parent is deleted, and nobody changes its key; or let the \
             application delete the children itself",
        ))))
    }

    async fn highest_version(&self) -> Result<Version, TargetError> {
        let read = self.now();
        let mut highest = read.planner.highest_parked().await?;
        let mut conn = self.connect().await?;
        for table in read.tables.of(&read.planner.plans()) {
            highest = highest.max(own::highest_version(&mut conn, table).await?);
        }
        Ok(highest)
    }

    async fn forget_tombstones(&self, version: Version) -> Result<(), TargetError> {
        let read = self.now();
        let mut conn = self.connect().await?;
        for table in read.tables.of(&read.planner.plans()) {
            let forgotten = own::forget(&mut conn, table, version).await?;
            if forgotten > 0 {
                tracing::debug!(table = %table.name, forgotten, "old tombstones removed");
            }
        }
        Ok(())
    }

    async fn run_script(&self, file: &Path) -> Result<(), TargetError> {
        let script = tokio::fs::read_to_string(file).await.map_err(|error| {
            MysqlError::Unusable(Problem::new(
                format!("{} cannot be read: {error}", file.display()),
                "correct [target] after_copy",
            ))
        })?;
        let mut conn = self.connect().await?;
        let ran = match conn.query_drop(script).await {
            // Nothing but comments, at its end or in all of it.
            Err(mysql_async::Error::Server(error)) if error.code == EMPTY_QUERY => Ok(()),
            ran => ran,
        };
        ran.map_err(|error| {
            if connect::disposition(&error) == Disposition::Retry {
                return MysqlError::Query(QueryError::new(file.display().to_string(), error));
            }
            MysqlError::Unusable(Problem::new(
                format!("{}: {error}", file.display()),
                "correct the script; what it has done already stays done, since MySQL commits each change of a table by itself",
            ))
        })?;
        Ok(self.settings.store.after_copy_done().await?)
    }

    async fn comparer(&self, plans: Arc<[Plan]>, looks: Looks) -> Result<Box<dyn Comparer>, ApplyError> {
        let read = self.now();
        // The tables may have changed since they were read.
        let (_, tables) = tables::load(&mut self.connect().await?, &self.settings.schema).await?;
        let maker = read.planner.maker(Arc::clone(&plans), looks).await?;
        Ok(Box::new(MysqlComparer::open(&self.connector, tables, maker, plans, looks).await?))
    }
}

fn unswept(error: ApplyError) -> SnapshotError {
    match error {
        ApplyError::Halt(problem) => SnapshotError::Halt(problem),
        other => SnapshotError::Target(other.to_string()),
    }
}
