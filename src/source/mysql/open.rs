//! A MySQL or MariaDB server as the source.

use std::sync::Arc;

use async_trait::async_trait;
use mysql_async::Conn;
use tokio::sync::watch;
use tokio::time::Instant;

use super::MysqlStream;
use crate::{
    database::mysql::{
        catalog::{self, CatalogError},
        connect::{ConnectError, Connector, QueryError},
        liveness,
        scan::{ChunkRows, ScanError, Scanner, Watermark},
        server::{self, Grants, ServerFacts},
    },
    model::{Disposition, MysqlPosition, Position, Problem, TableName, TableSchema, Value, Version},
    observe::{Captured, now_us},
    snapshot::{BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block, Blocks, Digest, Estimate, KeyRange, Scan, SnapshotError},
    source::{
        COPY_GOES_ON, CORRECT_THAT, CaptureError, Cascades, ChangeStream, Examined, Selection, Settings, Source,
        SourceError,
        asked::{Asked, Kept},
        capture_error, copy_error, foreign_position, known_schemas, not_begun, vanished,
    },
};

/// One MySQL or MariaDB server.
#[derive(Debug)]
pub struct MysqlSource {
    settings: Settings,
    connector: Connector,
    asked: Asked<Asking>,
}

/// A session that is asked, with what is known of the server once its log has been asked for.
struct Asking {
    conn: Conn,
    facts: Option<ServerFacts>,
}

impl Asking {
    /// Where the source's log ends now.
    async fn end(&mut self) -> Result<MysqlPosition, QueryError> {
        let facts = match &mut self.facts {
            Some(facts) => facts,
            unknown => unknown.insert(ServerFacts::load(&mut self.conn).await?),
        };
        server::current_position(&mut self.conn, facts).await
    }
}

impl MysqlSource {
    /// The server that the URL names; it is not connected to.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SourceError> {
        let connector = Connector::new(&settings.config.url)?;
        Ok(MysqlSource { settings, connector, asked: Asked::default() })
    }

    fn database(&self) -> &str {
        self.connector.database().unwrap_or_default()
    }

    async fn scanner(&self) -> Result<Scanner, SnapshotError> {
        let zero_dates = self.settings.config.zero_dates().unwrap_or_default();
        Ok(Scanner::connect(&self.connector, zero_dates).await?)
    }

    /// A session to ask over.
    async fn asking(&self) -> Result<Kept<Asking>, ScanError> {
        let open = async { Ok(Asking { conn: self.connector.connect().await?, facts: None }) };
        self.asked.session(Box::pin(open)).await
    }

    /// Schemas with their columns spelled as they were when they were captured first: a MODIFY that changes the case of
    /// a name changes nothing for a transform. Nothing is known before the first start.
    async fn spelled(&self, tables: Vec<TableSchema>) -> Vec<TableSchema> {
        let names: Vec<TableName> = tables.iter().map(|schema| schema.table.clone()).collect();
        let known = self.settings.store.newest_schemas(&names).await.unwrap_or_default();
        let spelled = |schema: TableSchema| match known.iter().find(|known| known.table == schema.table) {
            Some(known) => schema.spelled_as(known),
            None => schema,
        };
        tables.into_iter().map(spelled).collect()
    }

    /// A stream that tells what foreign keys may have done unseen, unless nobody wants to know.
    async fn telling_cascades(&self, stream: MysqlStream) -> Result<Box<dyn ChangeStream>, CaptureError> {
        Ok(match self.settings.config.cascades {
            Cascades::Refetch => Box::new(stream.with_cascades(Arc::clone(&self.settings.store)).await?),
            Cascades::Target | Cascades::None => Box::new(stream),
        })
    }

    /// What the source is, if it can be captured.
    async fn examine_server(&self, mut conn: Conn) -> Result<Examined, SourceError> {
        let grants =
            Grants::load(&mut conn).await.map_err(|error| SourceError::of(error.problem(), error.disposition()))?;
        // What a role gives is not in the list: then the server itself says what is missing.
        let told = |missing: Vec<Problem>| if grants.roles { Vec::new() } else { missing };
        SourceError::refuse(told(grants.missing_everywhere()))?;
        let facts = ServerFacts::load(&mut conn)
            .await
            .map_err(|error| SourceError::of(error.problem(), error.disposition()))?;
        let only = self.settings.config.tables.as_deref();
        let tables = catalog::load_tables(&mut conn, self.database(), only).await;
        let tables = tables.map_err(|error| SourceError::of(error.problem(), error.disposition()))?;
        let tables = self.spelled(tables).await;
        let mut problems = server::problems(&facts);
        problems.extend(judge_tables(&tables, only.unwrap_or_default(), self.database()));
        problems.extend(told(grants.missing_on(&tables, &facts)));
        SourceError::refuse(problems)?;
        let end = server::current_position(&mut conn, &facts).await;
        let end = end.map_err(|error| SourceError::Unreachable(error.to_string()))?;
        if let Err(error) = conn.disconnect().await {
            tracing::debug!(%error, "the connection for the catalog did not close well");
        }
        let connector = facts.flavor.connector();
        Ok(Examined { tables, end: Position::Mysql(end), now_us: facts.now_us, connector, at: Instant::now() })
    }
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

#[async_trait]
impl Source for MysqlSource {
    async fn examine(&self) -> Result<Examined, SourceError> {
        let conn = self.connector.connect().await?;
        let id = conn.id();
        let examined = liveness::answered(&self.connector, id, Box::pin(self.examine_server(conn))).await;
        examined.unwrap_or_else(|| Err(SourceError::Unreachable("the source has ended the session".into())))
    }

    // A row image that is not whole halts capture in any case: no table is asked for whole images.
    async fn stream(
        &self,
        selection: &Selection,
        from: Option<(Position, Version)>,
    ) -> Result<Box<dyn ChangeStream>, CaptureError> {
        let (from, known) = match from {
            Some((Position::Mysql(position), clock)) => {
                (Some((position, clock)), known_schemas(&self.settings.store, clock).await?)
            }
            Some((Position::Debezium(_) | Position::Postgres(_) | Position::Dynamo(_), _)) => {
                return Err(foreign_position());
            }
            None => (None, Vec::new()),
        };
        let mut config = self.settings.config.resolve(&self.settings.pipeline, now_us)?;
        config.clock_min = selection.clock_min;
        let stream = MysqlStream::open(&config, from, &known, &selection.tables).await?;
        self.telling_cascades(stream).await
    }

    async fn stream_anew(&self, selection: &Selection, clock: Version) -> Result<Box<dyn ChangeStream>, CaptureError> {
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
        let config = self.settings.config.resolve(&self.settings.pipeline, now_us)?;
        let from = Some((position, clock.max(facts.now_us)));
        let stream = MysqlStream::open(&config, from, &[], &selection.tables).await?;
        self.telling_cascades(stream).await
    }

    async fn scan(&self) -> Result<Box<dyn Scan>, SnapshotError> {
        Ok(Box::new(MysqlScan { scanner: self.scanner().await?, connector: self.connector.clone() }))
    }

    async fn schema(&self, table: &str) -> Result<Arc<TableSchema>, SnapshotError> {
        let mut asking = self.asking().await?;
        let (id, only) = (asking.session.conn.id(), [table.to_owned()]);
        let found = catalog::load_tables(&mut asking.session.conn, self.database(), Some(&only));
        let Some(found) = liveness::answered(&self.connector, id, found).await else { return gone() };
        let found = found?;
        self.asked.keep(asking);
        let found = self.spelled(found).await;
        found.into_iter().next().map(Arc::new).ok_or_else(|| vanished(&format!("{}.{table}", self.database())))
    }

    async fn end(&self) -> Result<Position, SnapshotError> {
        let mut asking = self.asking().await?;
        let id = asking.session.conn.id();
        let end = liveness::answered(&self.connector, id, asking.session.end()).await;
        let end = end.map_or_else(gone, |end| Ok(end.map_err(ScanError::from)?))?;
        self.asked.keep(asking);
        Ok(Position::Mysql(end))
    }

    async fn is_quiet_after(&self, _reached: &Position) -> Result<bool, SnapshotError> {
        // The end of the binlog is that of its last event, and moves with nothing else.
        Ok(false)
    }

    async fn fetch(
        &self,
        table: &Arc<TableSchema>,
        keys: &[Vec<Value>],
        captured: &Captured,
        blocks: Blocks,
    ) -> Result<(), SnapshotError> {
        let watermark = watermark(captured)?;
        let mut scanner = self.scanner().await?;
        let rows = scanner.fetch(table, &table.key, keys, &watermark).await?;
        hand_over(rows, captured.watermark(), &blocks).await?;
        Ok(scanner.close().await?)
    }

    async fn children(
        &self,
        table: &Arc<TableSchema>,
        columns: &[usize],
        values: &[Value],
        captured: &Captured,
        blocks: Blocks,
    ) -> Result<(), SnapshotError> {
        let watermark = watermark(captured)?;
        let mut scanner = self.scanner().await?;
        let rows = scanner.fetch(table, columns, &[values.to_vec()], &watermark).await?;
        hand_over(rows, captured.watermark(), &blocks).await?;
        Ok(scanner.close().await?)
    }
}

/// What a read has to see of what was captured.
fn watermark(captured: &Captured) -> Result<Watermark, SnapshotError> {
    match captured.position.clone() {
        Position::Mysql(position) => Ok(Watermark { position, version: captured.clock }),
        Position::Debezium(_) | Position::Postgres(_) | Position::Dynamo(_) => {
            Err(SnapshotError::Source(foreign_position().to_string()))
        }
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
        range: &KeyRange,
        watermark: &Watermark,
        blocks: &Blocks,
    ) -> Result<(), SnapshotError> {
        let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
        let rows = self.scanner.read_chunk(table, lower, upper, watermark).await?;
        let version = rows.version;
        hand_over(rows, version, blocks).await?;
        // The connection may rest until another table has a chunk to be read.
        Ok(self.scanner.end_snapshot().await?)
    }
}

/// Hands rows over block by block, as they come.
async fn hand_over(mut rows: ChunkRows<'_>, version: Version, blocks: &Blocks) -> Result<(), SnapshotError> {
    loop {
        let batch = rows.next_batch(BLOCK_ROWS_MAX, BLOCK_BYTES_MAX).await?;
        // A closed channel means that the writer has failed: its error is the one that counts.
        if batch.is_empty() || blocks.send(Block { version, rows: batch }).await.is_err() {
            return Ok(());
        }
    }
}

/// What capture has reached by now.
fn reached(captured: &mut watch::Receiver<Option<Captured>>) -> Result<Watermark, SnapshotError> {
    captured.borrow_and_update().as_ref().map_or_else(|| Err(not_begun()), watermark)
}

/// The error of a scan whose session is gone.
fn gone<T>() -> Result<T, SnapshotError> {
    Err(SnapshotError::Source("it no longer has the session, though the connection stands".into()))
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

    async fn estimate(&mut self, table: &TableSchema) -> Result<Estimate, SnapshotError> {
        let (connector, id) = (self.connector.clone(), self.scanner.id());
        let estimate = liveness::answered(&connector, id, self.scanner.estimate(&table.table)).await;
        let (rows, bytes) = estimate.map_or_else(gone, |estimate| Ok(estimate?))?;
        Ok(Estimate::new(rows, bytes))
    }

    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        // What is captured is waited for, and is above it.
        _floor: Version,
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: Blocks,
    ) -> Result<Option<String>, SnapshotError> {
        let watermark = reached(captured)?;
        let (connector, id) = (self.connector.clone(), self.scanner.id());
        liveness::answered(&connector, id, self.rows(table, range, &watermark, &blocks)).await.unwrap_or_else(gone)?;
        Ok(None)
    }

    async fn digest(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        captured: &mut watch::Receiver<Option<Captured>>,
        held: bool,
    ) -> Result<Option<Digest>, SnapshotError> {
        let watermark = reached(captured)?;
        let (connector, id) = (self.connector.clone(), self.scanner.id());
        let bounds = (range.lower.as_deref(), range.upper.as_deref());
        let digest = liveness::answered(&connector, id, self.scanner.digest(table, bounds, &watermark, held)).await;
        let digest = digest.map_or_else(gone, |digest| Ok(digest?))?;
        Ok(digest.map(|(rows, hash)| Digest { rows, sum: hash.to_string() }))
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

impl From<ConnectError> for SourceError {
    fn from(error: ConnectError) -> Self {
        match error.disposition() {
            Disposition::Retry => SourceError::Unreachable(error.to_string()),
            Disposition::DeadLetter | Disposition::Halt => SourceError::Login(error.to_string()),
        }
    }
}
