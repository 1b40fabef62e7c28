//! The MySQL source, as the capture loop and the copier see it.

use std::sync::Arc;

use async_trait::async_trait;
use mysql_async::Conn;
use tokio::sync::{mpsc, watch};

use super::store::Store;
use crate::{
    capture::{
        CaptureError, Source,
        mysql::{MysqlSource, SourceConfig},
    },
    database::mysql::{
        catalog::{self, CatalogError},
        connect::{ConnectError, Connector, QueryError},
        liveness,
        scan::{ScanError, Scanner, Watermark},
        server::{self, ServerFacts},
    },
    model::{Disposition, MysqlPosition, Position, TableName, TableSchema, Value, Version},
    observe::{Captured, now_us},
    pipeline::capture::{OpenSource, Register},
    snapshot::{Block, OpenScan, Range, Scan, SnapshotError, refetch::Fetch},
};

/// Rows handed over at once.
const BLOCK_ROWS: usize = 500;

/// Opens the binlog and scans of one MySQL or MariaDB server.
#[derive(Debug)]
pub struct MysqlServer {
    pub pipeline: String,
    pub config: SourceConfig,
    pub connector: Connector,
    pub database: String,
    /// The captured tables.
    pub tables: Vec<TableName>,
    pub store: Arc<Store>,
    /// The highest version that the target has, for a capture that begins anew (CORRECTNESS rule 2).
    pub clock_min: Version,
}

impl MysqlServer {
    /// The schemas that held at `clock`, as far as they are known.
    async fn known_schemas(&self, clock: Version) -> Result<Vec<Arc<TableSchema>>, CaptureError> {
        let stored = self.store.schemas().await.map_err(|error| CaptureError::Unreachable(error.to_string()))?;
        let mut known: Vec<Arc<TableSchema>> = Vec::new();
        for (_, schema) in stored.into_iter().filter(|(since, _)| *since <= clock) {
            known.retain(|other| other.table != schema.table);
            known.push(Arc::new(schema));
        }
        Ok(known)
    }
}

/// A pipeline that applied what Debezium captured has no place in the source's log to go on from.
fn followed_debezium() -> CaptureError {
    CaptureError::Halt {
        reason: "the target has followed a connector of Debezium under this name".into(),
        remedy: "start a pipeline of another name, which copies the tables; versions at the target are kept".into(),
    }
}

#[async_trait]
impl OpenSource for MysqlServer {
    async fn open(&self, from: Option<(Position, Version)>) -> Result<Box<dyn Source>, CaptureError> {
        let (from, known) = match from {
            Some((Position::Mysql(position), clock)) => (Some((position, clock)), self.known_schemas(clock).await?),
            Some((Position::Debezium(_), _)) => return Err(followed_debezium()),
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

/// Takes note of schemas and of tables to copy again, in the target.
#[derive(Debug)]
pub struct Notes {
    pub store: Arc<Store>,
    /// Which source columns the transforms use, by table; what no transform uses needs no new copy.
    pub used: std::collections::BTreeMap<String, Vec<String>>,
}

#[async_trait]
impl Register for Notes {
    async fn schema(&self, schema: &TableSchema, clock: Version) -> Result<(), CaptureError> {
        self.store.add_schema(schema, clock).await.map_err(|error| CaptureError::Unreachable(error.to_string()))
    }

    async fn rewritten(&self, table: &TableName, columns: &[String], clock: Version) -> Result<(), CaptureError> {
        let used = self.used.get(&table.table).is_some_and(|used| columns.iter().any(|column| used.contains(column)));
        if !used {
            tracing::info!(%table, "the table was altered; no transform uses what changed");
            return Ok(());
        }
        let queued = self.store.queue_copy(&table.table, clock).await;
        queued.map_err(|error| CaptureError::Unreachable(error.to_string()))?;
        tracing::warn!(%table, "the table was altered in a column that a transform uses; it is copied again");
        Ok(())
    }

    async fn begins_anew(&self, has_rows: bool) -> Result<(), CaptureError> {
        let queued = self.store.queue_begun_copies(has_rows).await;
        let queued = queued.map_err(|error| CaptureError::Unreachable(error.to_string()))?;
        if queued > 0 {
            tracing::warn!(
                tables = queued,
                "the log is gone, and no position was stored yet: what was copied is copied again"
            );
        }
        Ok(())
    }

    async fn all_copied_again(&self) -> Result<bool, CaptureError> {
        let left = self.store.not_to_be_copied_again().await;
        Ok(left.map_err(|error| CaptureError::Unreachable(error.to_string()))?.is_empty())
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
        found.into_iter().next().map(Arc::new).ok_or_else(|| SnapshotError::Halt {
            reason: format!("the source has no table {}.{table} any more", self.database),
            remedy: "take it out of [source] tables and start again".into(),
        })
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
            return Err(SnapshotError::Source(followed_debezium().to_string()));
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
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: mpsc::Sender<Block>,
    ) -> Result<(), SnapshotError> {
        let point = captured.borrow_and_update().clone();
        let Some(Captured { position: Position::Mysql(position), clock, .. }) = point else {
            return Err(SnapshotError::Source("capture has not begun yet".into()));
        };
        let watermark = Watermark { position, version: clock };
        let (connector, id) = (self.connector.clone(), self.scanner.id());
        liveness::answered(&connector, id, self.rows(table, range, &watermark, &blocks)).await.unwrap_or_else(gone)
    }
}

impl From<ScanError> for SnapshotError {
    fn from(error: ScanError) -> Self {
        match error.disposition() {
            Disposition::Retry => SnapshotError::Source(error.to_string()),
            Disposition::DeadLetter | Disposition::Halt => SnapshotError::Halt {
                reason: error.to_string(),
                remedy: "correct that and restart the worker; the copy goes on where it was".into(),
            },
        }
    }
}

impl From<CatalogError> for SnapshotError {
    fn from(error: CatalogError) -> Self {
        match error.disposition() {
            Disposition::Retry => SnapshotError::Source(error.to_string()),
            Disposition::DeadLetter | Disposition::Halt => {
                SnapshotError::Halt { reason: error.to_string(), remedy: "correct that and restart the worker".into() }
            }
        }
    }
}

impl From<ConnectError> for CaptureError {
    fn from(error: ConnectError) -> Self {
        match error.disposition() {
            Disposition::Retry => CaptureError::Unreachable(error.to_string()),
            Disposition::DeadLetter | Disposition::Halt => CaptureError::Halt {
                reason: error.to_string(),
                remedy: "correct [source] url and restart the worker".into(),
            },
        }
    }
}
