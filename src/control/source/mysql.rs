//! A MySQL or MariaDB server as the source.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use async_trait::async_trait;
use mysql_async::Conn;
use tokio::sync::{mpsc, watch};

use super::{
    BLOCK_ROWS, COPY_GOES_ON, CORRECT_THAT, Opened, Serve, Server, capture_error, copy_error, foreign_position,
    known_schemas, not_begun, refuse, source_attempt, vanished,
};
use crate::{
    control::{
        store::Store,
        worker::{Attempt, Worker, WorkerError},
    },
    database::{
        Problem,
        mysql::{
            catalog::{self, CatalogError},
            connect::{ConnectError, Connector, QueryError},
            liveness,
            scan::{ScanError, Scanner, Watermark},
            server::{self, Flavor, Grants, ServerFacts},
        },
    },
    model::{Disposition, MysqlPosition, Position, TableName, TableSchema, Value, Version},
    observe::{Captured, now_us},
    pipeline::capture::OpenSource,
    snapshot::{Block, OpenScan, Range, Scan, SnapshotError, refetch::Fetch},
    source::{CaptureError, Source, SourceConfig, mysql::MysqlSource},
};

/// A server that was looked at.
#[derive(Debug)]
struct Looked {
    config: SourceConfig,
    connector: Connector,
}

impl Serve for Looked {
    fn serve(
        &self,
        worker: &Worker,
        tables: &[TableSchema],
        clock_min: Version,
        // A row image that is not whole halts capture in any case.
        _whole_rows: BTreeSet<TableName>,
    ) -> Arc<dyn Server> {
        Arc::new(MysqlServer {
            pipeline: worker.config.name.clone(),
            config: self.config.clone(),
            connector: self.connector.clone(),
            database: tables.first().map(|schema| schema.table.schema.clone()).unwrap_or_default(),
            tables: tables.iter().map(|schema| schema.table.clone()).collect(),
            store: Arc::clone(&worker.store),
            clock_min,
        })
    }
}

/// Connects to the server and looks at it.
pub(super) async fn open(config: &SourceConfig) -> Result<Opened, Attempt> {
    let connector = Connector::new(&config.url)?;
    let conn = connector.connect().await?;
    let id = conn.id();
    let opened = liveness::answered(&connector, id, look_at(config, connector.clone(), conn)).await;
    opened.unwrap_or_else(|| Err(Attempt::Later("the source has ended the session".into())))
}

/// What the source is, if it can be captured.
async fn look_at(config: &SourceConfig, connector: Connector, mut conn: Conn) -> Result<Opened, Attempt> {
    let database = connector.database().unwrap_or_default();
    let grants = Grants::load(&mut conn).await.map_err(|error| source_attempt(&error, error.disposition()))?;
    // What a role gives is not in the list: then the server itself says what is missing.
    let told = |missing: Vec<Problem>| if grants.roles { Vec::new() } else { missing };
    refuse(told(grants.missing_everywhere()))?;
    let facts = ServerFacts::load(&mut conn).await.map_err(|error| source_attempt(&error, error.disposition()))?;
    let only = config.tables.as_deref();
    let tables = catalog::load_tables(&mut conn, database, only).await;
    let tables = tables.map_err(|error| source_attempt(&error, error.disposition()))?;
    let mut problems = server::problems(&facts);
    problems.extend(judge_tables(&tables, only.unwrap_or_default(), database));
    problems.extend(told(grants.missing_on(&tables, &facts)));
    refuse(problems)?;
    let end = server::current_position(&mut conn, &facts).await;
    let end = end.map_err(|error| Attempt::Later(error.to_string()))?;
    if let Err(error) = conn.disconnect().await {
        tracing::debug!(%error, "the connection for the catalog did not close well");
    }
    let name = match facts.flavor {
        Flavor::Mysql => "mysql",
        Flavor::Mariadb => "mariadb",
    };
    Ok(Opened {
        tables,
        end: Position::Mysql(end),
        now_us: facts.now_us,
        connector: name,
        source: Box::new(Looked { config: config.clone(), connector }),
        at: Instant::now(),
    })
}

/// Every configured table exists and has a key.
fn judge_tables(tables: &[TableSchema], wanted: &[String], database: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, fix: &str| problems.push(Problem { what, fix: fix.to_owned() });
    for name in wanted.iter().filter(|name| !tables.iter().any(|schema| schema.table.table == **name)) {
        let what = format!("`{database}` has no table `{name}`, or the source user may not see it");
        add(what, "correct [source] tables, or GRANT SELECT on it");
    }
    if tables.is_empty() && wanted.is_empty() {
        let what = format!("`{database}` has no table that the source user may see");
        add(what, "correct the database in [source] url, or GRANT SELECT on its tables");
    }
    for schema in tables.iter().filter(|schema| schema.key.is_empty()) {
        let what = format!(
            "table {} has no primary key and no unique key without nulls, so that its rows cannot be told apart",
            schema.table
        );
        add(what, "add one at the source, or leave the table out of [source] tables");
    }
    problems
}

/// Opens the binlog and scans of one MySQL or MariaDB server.
#[derive(Debug)]
struct MysqlServer {
    pipeline: String,
    config: SourceConfig,
    connector: Connector,
    database: String,
    /// The captured tables.
    tables: Vec<TableName>,
    store: Arc<Store>,
    /// The highest version that the target has, for a capture that begins anew (CORRECTNESS rule 2).
    clock_min: Version,
}

#[async_trait]
impl OpenSource for MysqlServer {
    async fn open(&self, from: Option<(Position, Version)>) -> Result<Box<dyn Source>, CaptureError> {
        let (from, known) = match from {
            Some((Position::Mysql(position), clock)) => {
                (Some((position, clock)), known_schemas(&self.store, clock).await?)
            }
            Some((Position::Debezium(_) | Position::Postgres(_) | Position::Dynamo(_), _)) => {
                return Err(foreign_position());
            }
            None => (None, Vec::new()),
        };
        let mut settings = self.config.resolve(&self.pipeline, now_us)?;
        settings.clock_min = self.clock_min;
        let source = MysqlSource::open(&settings, from, &known, &self.tables).await?;
        Ok(Box::new(source))
    }

    async fn open_anew(&self, clock: Version) -> Result<Box<dyn Source>, CaptureError> {
        let retried = |error: QueryError| CaptureError::Unreachable(error.to_string());
        let mut conn = self.connector.connect().await?;
        let facts = ServerFacts::load(&mut conn).await.map_err(retried)?;
        let position = server::current_position(&mut conn, &facts).await.map_err(retried)?;
        drop(conn.disconnect().await);
        tracing::warn!(
            file = position.file,
            offset = position.offset,
            "capture begins anew: every table is copied again"
        );
        let settings = self.config.resolve(&self.pipeline, now_us)?;
        let from = Some((position, clock.max(facts.now_us)));
        Ok(Box::new(MysqlSource::open(&settings, from, &[], &self.tables).await?))
    }
}

#[async_trait]
impl OpenScan for MysqlServer {
    async fn open(&self) -> Result<Box<dyn Scan>, SnapshotError> {
        let scanner = Scanner::connect(&self.connector, self.config.zero_dates().unwrap_or_default()).await?;
        Ok(Box::new(MysqlScan { scanner, connector: self.connector.clone() }))
    }

    async fn schema(&self, table: &str) -> Result<Arc<TableSchema>, SnapshotError> {
        let mut conn = self.connector.connect().await.map_err(ScanError::from)?;
        let (id, only) = (conn.id(), [table.to_owned()]);
        let found = catalog::load_tables(&mut conn, &self.database, Some(&only));
        let Some(found) = liveness::answered(&self.connector, id, found).await else { return gone() };
        let found = found?;
        drop(conn.disconnect().await);
        found.into_iter().next().map(Arc::new).ok_or_else(|| vanished(&format!("{}.{table}", self.database)))
    }

    async fn end(&self) -> Result<Position, SnapshotError> {
        let mut conn = self.connector.connect().await.map_err(ScanError::from)?;
        let id = conn.id();
        let end = liveness::answered(&self.connector, id, here(&mut conn)).await;
        let end = end.map_or_else(gone, |end| Ok(end.map_err(ScanError::from)?))?;
        drop(conn.disconnect().await);
        Ok(Position::Mysql(end))
    }
}

#[async_trait]
impl Fetch for MysqlServer {
    async fn fetch(
        &self,
        table: &Arc<TableSchema>,
        keys: &[Vec<Value>],
        captured: &Captured,
    ) -> Result<Vec<Vec<Value>>, SnapshotError> {
        let Position::Mysql(position) = captured.position.clone() else {
            return Err(SnapshotError::Source(foreign_position().to_string()));
        };
        let watermark = Watermark { position, version: captured.clock };
        let mut scanner = Scanner::connect(&self.connector, self.config.zero_dates().unwrap_or_default()).await?;
        let mut rows = scanner.fetch(table, &table.key, keys, &watermark).await?;
        let found = rows.next_batch(usize::MAX).await?;
        drop(rows);
        scanner.close().await?;
        Ok(found)
    }
}

struct MysqlScan {
    scanner: Scanner,
    connector: Connector,
}

impl MysqlScan {
    /// Rows as they come: a server may take its time, but it has to have the session still.
    async fn rows(
        &mut self,
        table: &TableSchema,
        range: &Range,
        watermark: &Watermark,
        blocks: &mpsc::Sender<Block>,
    ) -> Result<(), SnapshotError> {
        let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
        let mut rows = self.scanner.read_chunk(table, lower, upper, watermark).await?;
        loop {
            let batch = rows.next_batch(BLOCK_ROWS).await?;
            // A closed channel means that the writer has failed: its error is the one that counts.
            if batch.is_empty() || blocks.send(Block { version: rows.version, rows: batch }).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Where the source's log ends now.
async fn here(conn: &mut Conn) -> Result<MysqlPosition, QueryError> {
    let facts = ServerFacts::load(conn).await?;
    server::current_position(conn, &facts).await
}

/// The error of a scan whose session is gone.
fn gone<T>() -> Result<T, SnapshotError> {
    Err(SnapshotError::Source("it has the session no more, though the connection stands".into()))
}

#[async_trait]
impl Scan for MysqlScan {
    async fn next_bound(
        &mut self,
        table: &TableSchema,
        lower: Option<&str>,
        rows: u64,
    ) -> Result<Option<String>, SnapshotError> {
        let (connector, id) = (self.connector.clone(), self.scanner.id());
        let bound = liveness::answered(&connector, id, self.scanner.next_bound(table, lower, rows)).await;
        bound.map_or_else(gone, |bound| Ok(bound?))
    }

    async fn estimate_rows(&mut self, table: &TableSchema) -> Result<u64, SnapshotError> {
        let (connector, id) = (self.connector.clone(), self.scanner.id());
        let rows = liveness::answered(&connector, id, self.scanner.estimate_rows(&table.table)).await;
        rows.map_or_else(gone, |rows| Ok(rows?))
    }

    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &Range,
        // What is captured is waited for, and is above it.
        _floor: Version,
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: mpsc::Sender<Block>,
    ) -> Result<Option<String>, SnapshotError> {
        let point = captured.borrow_and_update().clone();
        let Some(Captured { position: Position::Mysql(position), clock, .. }) = point else {
            return Err(not_begun());
        };
        let watermark = Watermark { position, version: clock };
        let (connector, id) = (self.connector.clone(), self.scanner.id());
        liveness::answered(&connector, id, self.rows(table, range, &watermark, &blocks)).await.unwrap_or_else(gone)?;
        Ok(None)
    }
}

impl From<ScanError> for SnapshotError {
    fn from(error: ScanError) -> Self {
        copy_error(&error, error.disposition(), COPY_GOES_ON)
    }
}

impl From<CatalogError> for SnapshotError {
    fn from(error: CatalogError) -> Self {
        copy_error(&error, error.disposition(), CORRECT_THAT)
    }
}

impl From<ConnectError> for CaptureError {
    fn from(error: ConnectError) -> Self {
        capture_error(&error, error.disposition(), "correct [source] url and restart the worker")
    }
}

impl From<ConnectError> for Attempt {
    fn from(error: ConnectError) -> Self {
        match error.disposition() {
            Disposition::Retry => Attempt::Later(error.to_string()),
            Disposition::DeadLetter | Disposition::Halt => Attempt::Hopeless(WorkerError::Source(error)),
        }
    }
}
