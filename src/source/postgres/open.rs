//! A PostgreSQL server as the source.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{PostgresSourceConfig, PostgresStream, begin_anew, options};
use crate::{
    database::postgres::{
        Address, PgError, Session, mark,
        scan::{ChunkRows, ScanError, Scanner, Watermark},
        server::ServerFacts,
        tables,
    },
    model::{DebeziumConnector, Position, PostgresPosition, TableSchema, Value, Version},
    observe::{Captured, Frontier, now_us},
    snapshot::{BLOCK_BYTES_MAX, BLOCK_ROWS_MAX, Block, Blocks, Digest, Estimate, KeyRange, Scan, SnapshotError},
    source::{
        COPY_GOES_ON, CaptureError, CaptureEvent, ChangeStream, Examined, Selection, Settings, Source, SourceError,
        asked::{Asked, Kept},
        copy_error, foreign_position, known_schemas, logs_cascades, not_begun, vanished,
    },
    state::Store,
};

/// How often it is looked up what the server need not keep. With the embedded log that is a query at the target.
const DURABLE_EVERY: Duration = Duration::from_secs(2);

/// Whether the slot `$1`, which nobody reads, has no row of the publication `$2` in a transaction that ended behind
/// `$3`. The log goes on by itself (checkpoints, other databases), so that its end says nothing. A slot that was told
/// of more than that does not have it any more, and one with much to decode is not asked. Of each transaction the last
/// message is its commit, at its end: I, U, D and T are its rows.
const IS_QUIET: &str = "SELECT CASE WHEN NOT s.active AND s.confirmed_flush_lsn <= $3::text::pg_lsn \
    AND pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.restart_lsn) < 1073741824 \
  THEN (SELECT coalesce(sum(c.messages), 0) < $4::bigint AND NOT coalesce(bool_or(c.rows AND c.ended > $3::text::pg_lsn), false) \
    FROM (SELECT max(p.lsn) AS ended, bool_or(get_byte(p.data, 0) IN (73, 85, 68, 84)) AS rows, count(*) AS messages \
      FROM pg_logical_slot_peek_binary_changes(s.slot_name, NULL, $4::bigint::int, \
        'proto_version', '1', 'publication_names', $2::text) p GROUP BY p.xid) c) \
  ELSE false END FROM pg_replication_slots s WHERE s.slot_name = $1";
/// Messages of the slot that are looked at.
const PEEKED_MAX: i64 = 100_000;

/// One PostgreSQL server.
#[derive(Debug)]
pub struct PostgresSource {
    settings: Settings,
    capture: PostgresSourceConfig,
    asked: Asked<Session>,
}

impl PostgresSource {
    /// The server that the URL names; it is not connected to.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SourceError> {
        let target =
            Address::parse(&settings.config.url).map_err(|error| SourceError::Configured(error.to_string()))?;
        let options = options(&settings.pipeline, settings.config.ca_file.clone());
        let mut capture = PostgresSourceConfig::new(&settings.pipeline, target, options, now_us);
        capture.state = Some(Arc::clone(&settings.store));
        capture.clock_ahead_max_us = settings.config.clock_ahead_max_us();
        Ok(PostgresSource { settings, capture, asked: Asked::default() })
    }

    fn schema_name(&self) -> &str {
        self.settings.config.postgres_schema()
    }

    /// What a stream of these tables needs to know; what is durable and what reads may not see is shared with the
    /// source.
    fn selected(&self, selection: &Selection) -> PostgresSourceConfig {
        let mut capture = self.capture.clone();
        capture.clock_min = selection.clock_min;
        capture.full_row_images = selection.full_row_images.clone();
        capture
    }

    async fn session(&self) -> Result<Session, PgError> {
        Session::open(&self.capture.target, &self.capture.options).await
    }

    /// A session to ask over.
    async fn asking(&self) -> Result<Kept<Session>, ScanError> {
        Ok(self.asked.session(Box::pin(self.session())).await?)
    }

    async fn scanner(&self) -> Result<Scanner, SnapshotError> {
        let in_flight = Arc::clone(&self.capture.in_flight);
        Ok(Scanner::connect(&self.capture.target, &self.capture.options, in_flight).await?)
    }

    /// The stream, with what tells it what is durable beside it.
    async fn open(
        &self,
        selection: &Selection,
        from: Option<(PostgresPosition, Version)>,
        known: &[Arc<TableSchema>],
    ) -> Result<Box<dyn ChangeStream>, CaptureError> {
        let stream = PostgresStream::open(&self.selected(selection), from, known, &selection.tables).await?;
        let Settings { store, frontier, log_outlives_us, .. } = &self.settings;
        let store = (!log_outlives_us).then(|| Arc::clone(store));
        let mut telling = JoinSet::new();
        telling.spawn(tell(Arc::clone(&self.capture.durable), store, Arc::clone(frontier)));
        Ok(Box::new(Told { stream, _telling: telling }))
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn examine(&self) -> Result<Examined, SourceError> {
        let refused = |error: PgError| SourceError::of(error.problem(), error.disposition());
        let session = self.session().await.map_err(refused)?;
        let facts = ServerFacts::load(&session.client).await.map_err(refused)?;
        let (schema, only) = (self.schema_name(), self.settings.config.tables.as_deref());
        let found = tables::load(&session.client, schema, only).await.map_err(refused)?;
        let mut problems = facts.problems();
        if self.settings.both_ways {
            problems.extend(mark::problem(facts.version));
        }
        problems.extend(tables::problems(&found, only.unwrap_or_default(), schema));
        SourceError::refuse(problems)?;
        Ok(Examined {
            tables: found.into_iter().map(|table| table.schema).collect(),
            end: Position::Postgres(facts.position("")),
            now_us: facts.now_us,
            connector: DebeziumConnector::Postgres,
            at: Instant::now(),
        })
    }

    async fn stream(
        &self,
        selection: &Selection,
        from: Option<(Position, Version)>,
    ) -> Result<Box<dyn ChangeStream>, CaptureError> {
        match from {
            Some((Position::Postgres(position), clock)) => {
                let known = known_schemas(&self.settings.store, clock).await?;
                self.open(selection, Some((position, clock)), &known).await
            }
            Some((Position::Mysql(_) | Position::Debezium(_) | Position::Dynamo(_), _)) => Err(foreign_position()),
            None => self.open(selection, None, &[]).await,
        }
    }

    async fn stream_anew(&self, selection: &Selection, clock: Version) -> Result<Box<dyn ChangeStream>, CaptureError> {
        let (position, now_us) = begin_anew(&self.selected(selection), &selection.tables).await?;
        tracing::warn!(lsn = %position.lsn, "capture begins anew: every table is copied again");
        self.open(selection, Some((position, clock.max(now_us))), &[]).await
    }

    async fn scan(&self) -> Result<Box<dyn Scan>, SnapshotError> {
        Ok(Box::new(PostgresScan(self.scanner().await?)))
    }

    async fn schema(&self, table: &str) -> Result<Arc<TableSchema>, SnapshotError> {
        let (asking, only) = (self.asking().await?, [table.to_owned()]);
        let found = tables::load(&asking.session.client, self.schema_name(), Some(&only)).await;
        let found = found.map_err(ScanError::from)?;
        self.asked.keep(asking);
        found
            .into_iter()
            .next()
            .map(|table| Arc::new(table.schema))
            .ok_or_else(|| vanished(&format!("{}.{table}", self.schema_name())))
    }

    async fn end(&self) -> Result<Position, SnapshotError> {
        let asking = self.asking().await?;
        let facts = ServerFacts::load(&asking.session.client).await.map_err(ScanError::from)?;
        self.asked.keep(asking);
        Ok(Position::Postgres(facts.position(&self.capture.slot)))
    }

    async fn is_quiet_after(&self, reached: &Position) -> Result<bool, SnapshotError> {
        let Position::Postgres(reached) = reached else { return Ok(false) };
        let session = self.session().await.map_err(ScanError::from)?;
        let facts = ServerFacts::load(&session.client).await.map_err(ScanError::from)?;
        if !facts.position(&self.capture.slot).same_history(reached) {
            return Ok(false);
        }
        let publication = format!("\"{}\"", self.capture.slot);
        let (slot, reached) = (&self.capture.slot, reached.lsn.to_string());
        let answer = session.client.query_opt(IS_QUIET, &[slot, &publication, &reached, &PEEKED_MAX]).await;
        let answer = answer.map_err(|error| ScanError::from(PgError::from(error)))?;
        Ok(answer.is_some_and(|row| row.get(0)))
    }

    async fn children(
        &self,
        _table: &Arc<TableSchema>,
        _columns: &[usize],
        _values: &[Value],
        _captured: &Captured,
        _blocks: Blocks,
    ) -> Result<(), SnapshotError> {
        logs_cascades()
    }

    async fn fetch(
        &self,
        table: &Arc<TableSchema>,
        keys: &[Vec<Value>],
        captured: &Captured,
        blocks: Blocks,
    ) -> Result<(), SnapshotError> {
        // What is read again is labelled with all that was captured.
        let watermark = watermark(Some(captured), captured.clock)?;
        let mut scanner = self.scanner().await?;
        let rows = scanner.fetch(table, keys, watermark).await?;
        hand_over(rows, captured.watermark(), &blocks).await
    }
}

/// A source whose server is told what is durable, for as long as it is read.
#[derive(Debug)]
struct Told {
    stream: PostgresStream,
    /// A task, which ends with the stream. It holds the session of the pipeline's state while it waits for an answer:
    /// if it were polled with the stream alone, whoever handles an event would wait for that session for ever.
    _telling: JoinSet<Infallible>,
}

#[async_trait]
impl ChangeStream for Told {
    async fn next(&mut self) -> Result<CaptureEvent, CaptureError> {
        self.stream.next().await
    }

    fn raise_clock(&mut self, floor: Version) -> bool {
        self.stream.raise_clock(floor)
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

    async fn estimate(&mut self, table: &TableSchema) -> Result<Estimate, SnapshotError> {
        let (rows, bytes) = self.0.estimate(&table.table).await?;
        Ok(Estimate::new(rows, bytes))
    }

    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        floor: Version,
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: Blocks,
    ) -> Result<Option<String>, SnapshotError> {
        let watermark = watermark(captured.borrow_and_update().as_ref(), floor)?;
        let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
        let rows = self.0.read_chunk(table, lower, upper, watermark).await?;
        let version = rows.version;
        hand_over(rows, version, &blocks).await?;
        // The connection may rest until another table has a chunk to be read.
        self.0.end_snapshot().await?;
        Ok(None)
    }

    async fn digest(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        captured: &mut watch::Receiver<Option<Captured>>,
        held: bool,
    ) -> Result<Option<Digest>, SnapshotError> {
        let watermark = watermark(captured.borrow_and_update().as_ref(), Version::MIN)?;
        let bounds = (range.lower.as_deref(), range.upper.as_deref());
        let (rows, sum) = self.0.digest(table, bounds, watermark, held).await?;
        Ok(Some(Digest { rows, sum }))
    }

    fn last_key(&self, table: &TableSchema, range: &KeyRange) -> Option<Vec<String>> {
        self.0.last_key(table, range.upper.as_deref()?)
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

impl From<ScanError> for SnapshotError {
    fn from(error: ScanError) -> Self {
        copy_error(&error, error.disposition(), COPY_GOES_ON)
    }
}
