//! A PostgreSQL server as the source.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::{
    BLOCK_ROWS, COPY_GOES_ON, Opened, Serve, Server, copy_error, foreign_position, known_schemas, not_begun, refuse,
    source_attempt, vanished,
};
use crate::{
    control::{
        store::Store,
        worker::{Attempt, Worker, WorkerError},
    },
    database::postgres::{
        Options, PgError, Session, Target,
        scan::{ScanError, Scanner, Watermark},
        server::ServerFacts,
        tables,
    },
    model::{Disposition, Position, PostgresPosition, TableName, TableSchema, Value, Version},
    observe::{Captured, Frontier, now_us},
    pipeline::capture::OpenSource,
    snapshot::{Block, OpenScan, Range, Scan, SnapshotError, refetch::Fetch},
    source::{
        self, CaptureError, Source, SourceConfig,
        postgres::{PostgresSource, PostgresSourceConfig, begin_anew},
    },
};

/// How often it is looked up what the server need not keep. With the embedded log that is a query at the target.
const DURABLE_EVERY: Duration = Duration::from_secs(2);

/// A server that was looked at.
#[derive(Debug)]
struct Looked {
    config: SourceConfig,
    target: Target,
}

impl Serve for Looked {
    fn serve(
        &self,
        worker: &Worker,
        tables: &[TableSchema],
        clock_min: Version,
        whole_rows: BTreeSet<TableName>,
    ) -> Arc<dyn Server> {
        let name = &worker.config.name;
        let options = source::postgres::options(name, self.config.ca_file.clone());
        let mut capture = PostgresSourceConfig::new(name, self.target.clone(), options, now_us);
        capture.clock_ahead_max_us = self.config.clock_ahead_max_us();
        capture.clock_min = clock_min;
        capture.whole_rows = whole_rows;
        Arc::new(PostgresServer {
            capture,
            schema: self.config.postgres_schema().to_owned(),
            tables: tables.iter().map(|schema| schema.table.clone()).collect(),
            store: Arc::clone(&worker.store),
            frontier: Arc::clone(&worker.frontier),
            log_outlives_us: worker.config.log.is_kafka(),
        })
    }
}

/// Connects to the server and looks at it.
pub(super) async fn open(config: &SourceConfig) -> Result<Opened, Attempt> {
    let target =
        Target::parse(&config.url).map_err(|error| Attempt::Hopeless(WorkerError::Usage(error.to_string())))?;
    let options = source::postgres::options("", config.ca_file.clone());
    let session = Session::open(&target, &options).await.map_err(|error| attempt(&error))?;
    let facts = ServerFacts::load(&session.client).await.map_err(|error| attempt(&error))?;
    let (schema, only) = (config.postgres_schema(), config.tables.as_deref());
    let found = tables::load(&session.client, schema, only).await.map_err(|error| attempt(&error))?;
    let mut problems = facts.problems();
    problems.extend(tables::problems(&found, only.unwrap_or_default(), schema));
    refuse(problems)?;
    Ok(Opened {
        tables: found.into_iter().map(|table| table.schema).collect(),
        end: Position::Postgres(facts.position("")),
        now_us: facts.now_us,
        connector: "postgresql",
        source: Box::new(Looked { config: config.clone(), target }),
        at: Instant::now(),
    })
}

fn attempt(error: &PgError) -> Attempt {
    source_attempt(error, disposition(error))
}

fn disposition(error: &PgError) -> Disposition {
    match error {
        PgError::Unreachable(_) => Disposition::Retry,
        PgError::Refused(refusal) if refusal.passes() => Disposition::Retry,
        PgError::Login(_) | PgError::Refused(_) | PgError::Protocol(_) => Disposition::Halt,
    }
}

/// Opens the slot and scans of one PostgreSQL server.
struct PostgresServer {
    capture: PostgresSourceConfig,
    schema: String,
    /// The captured tables.
    tables: Vec<TableName>,
    store: Arc<Store>,
    frontier: Arc<Frontier>,
    /// Kafka keeps what it has; the embedded log may be lost with its disk, and then the source is asked again for all that the
    /// target has not (CORRECTNESS rule 17).
    log_outlives_us: bool,
}

impl PostgresServer {
    fn options(&self) -> &Options {
        &self.capture.options
    }

    async fn session(&self) -> Result<Session, SnapshotError> {
        Session::open(&self.capture.target, self.options()).await.map_err(|error| ScanError::from(error).into())
    }

    async fn scanner(&self) -> Result<Scanner, SnapshotError> {
        let unseen = Arc::clone(&self.capture.unseen);
        Ok(Scanner::connect(&self.capture.target, self.options(), unseen).await?)
    }

    /// The source, with what tells it what is durable beside it.
    async fn serve(
        &self,
        from: Option<(PostgresPosition, Version)>,
        known: &[Arc<TableSchema>],
    ) -> Result<Box<dyn Source>, CaptureError> {
        let source = PostgresSource::open(&self.capture, from, known, &self.tables).await?;
        let store = (!self.log_outlives_us).then(|| Arc::clone(&self.store));
        let telling = tell(Arc::clone(&self.capture.durable), store, Arc::clone(&self.frontier));
        Ok(Box::new(Told { source, telling: Box::pin(telling) }))
    }
}

#[async_trait]
impl OpenSource for PostgresServer {
    async fn open(&self, from: Option<(Position, Version)>) -> Result<Box<dyn Source>, CaptureError> {
        match from {
            Some((Position::Postgres(position), clock)) => {
                let known = known_schemas(&self.store, clock).await?;
                self.serve(Some((position, clock)), &known).await
            }
            Some((Position::Mysql(_) | Position::Debezium(_) | Position::Dynamo(_), _)) => Err(foreign_position()),
            None => self.serve(None, &[]).await,
        }
    }

    async fn open_anew(&self, clock: Version) -> Result<Box<dyn Source>, CaptureError> {
        let (position, now_us) = begin_anew(&self.capture, &self.tables).await?;
        tracing::warn!(lsn = %position.lsn, "capture begins anew: every table is copied again");
        self.serve(Some((position, clock.max(now_us))), &[]).await
    }
}

/// A source whose server is told what is durable, for as long as it is read.
struct Told {
    source: PostgresSource,
    telling: Pin<Box<dyn Future<Output = Infallible> + Send>>,
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

#[async_trait]
impl Source for Told {
    async fn next(&mut self) -> Result<source::Captured, CaptureError> {
        tokio::select! {
            biased;
            captured = self.source.next() => captured,
            never = &mut self.telling => match never {},
        }
    }

    fn raise_clock(&mut self, floor: Version) -> bool {
        self.source.raise_clock(floor)
    }
}

/// Keeps `durable` up to date: from the target's offsets where there is a store to ask, else from what the log has.
async fn tell(durable: Arc<AtomicU64>, store: Option<Arc<Store>>, frontier: Arc<Frontier>) -> Infallible {
    loop {
        tokio::time::sleep(DURABLE_EVERY).await;
        let captured = frontier.watch_captured().borrow().as_ref().map(|captured| captured.position.clone());
        let Some(Position::Postgres(captured)) = captured else { continue };
        let position = match &store {
            None => Some(captured.clone()),
            // An unreachable target has nothing new, and is noticed by others.
            Some(store) => match store.position().await {
                Ok(Some((Position::Postgres(applied), _))) => Some(applied),
                Ok(_) | Err(_) => None,
            },
        };
        // What the target has of another history says nothing of this one.
        if let Some(position) = position.filter(|position| position.same_history(&captured)) {
            durable.fetch_max(position.lsn.0, Ordering::AcqRel);
        }
    }
}

#[async_trait]
impl OpenScan for PostgresServer {
    async fn open(&self) -> Result<Box<dyn Scan>, SnapshotError> {
        Ok(Box::new(PostgresScan(self.scanner().await?)))
    }

    async fn schema(&self, table: &str) -> Result<Arc<TableSchema>, SnapshotError> {
        let (session, only) = (self.session().await?, [table.to_owned()]);
        let found = tables::load(&session.client, &self.schema, Some(&only)).await.map_err(ScanError::from)?;
        found
            .into_iter()
            .next()
            .map(|table| Arc::new(table.schema))
            .ok_or_else(|| vanished(&format!("{}.{table}", self.schema)))
    }

    async fn end(&self) -> Result<Position, SnapshotError> {
        let session = self.session().await?;
        let facts = ServerFacts::load(&session.client).await.map_err(ScanError::from)?;
        Ok(Position::Postgres(facts.position(&self.capture.slot)))
    }
}

#[async_trait]
impl Fetch for PostgresServer {
    async fn fetch(
        &self,
        table: &Arc<TableSchema>,
        keys: &[Vec<Value>],
        captured: &Captured,
    ) -> Result<Vec<Vec<Value>>, SnapshotError> {
        // What is read again is labelled with all that was captured.
        let watermark = watermark(Some(captured), captured.clock)?;
        let mut scanner = self.scanner().await?;
        let mut rows = scanner.fetch(table, keys, watermark).await?;
        Ok(rows.next_batch(usize::MAX).await?)
    }
}

struct PostgresScan(Scanner);

/// What capture has reached.
fn watermark(captured: Option<&Captured>, floor: Version) -> Result<Watermark, SnapshotError> {
    let Some(Captured { position: Position::Postgres(position), clock, .. }) = captured else {
        return Err(not_begun());
    };
    Ok(Watermark { lsn: position.lsn, version: *clock, floor })
}

#[async_trait]
impl Scan for PostgresScan {
    async fn next_bound(
        &mut self,
        table: &TableSchema,
        lower: Option<&str>,
        rows: u64,
    ) -> Result<Option<String>, SnapshotError> {
        Ok(self.0.next_bound(table, lower, rows).await?)
    }

    async fn estimate_rows(&mut self, table: &TableSchema) -> Result<u64, SnapshotError> {
        Ok(self.0.estimate_rows(&table.table).await?)
    }

    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &Range,
        floor: Version,
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: mpsc::Sender<Block>,
    ) -> Result<Option<String>, SnapshotError> {
        let watermark = watermark(captured.borrow_and_update().as_ref(), floor)?;
        let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
        let mut rows = self.0.read_chunk(table, lower, upper, watermark).await?;
        loop {
            let batch = rows.next_batch(BLOCK_ROWS).await?;
            // A closed channel means that the writer has failed: its error is the one that counts.
            if batch.is_empty() || blocks.send(Block { version: rows.version, rows: batch }).await.is_err() {
                return Ok(None);
            }
        }
    }
}

impl From<ScanError> for SnapshotError {
    fn from(error: ScanError) -> Self {
        copy_error(&error, error.disposition(), COPY_GOES_ON)
    }
}
