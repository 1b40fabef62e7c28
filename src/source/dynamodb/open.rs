//! DynamoDB as the source.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio::time::Instant;

use super::{DynamoStream, Followed, StreamSettings};
use crate::{
    database::dynamodb::{
        Connector, DynamoError, Item, Service, attribute,
        catalog::{self, TableFacts},
        scan::{self, Page, ScanPosition},
    },
    model::{DebeziumConnector, Disposition, DynamoPosition, Position, Problem, TableSchema, Value, Version},
    observe::{Backoff, Captured, Environment},
    snapshot::{Block, Blocks, BlocksClosed, Digest, Estimate, KeyRange, Scan, SnapshotError},
    source::{
        CORRECT_THAT, CaptureError, ChangeStream, Examined, Selection, Settings, Source, SourceError, capture_error,
        copy_error, foreign_position, logs_cascades, not_begun, vanished,
    },
};

/// Segments that a scan has for each connection that reads: more than one, because they are of different lengths.
const SEGMENTS_PER_READER: usize = 4;
/// Items of a block: an item has 400 KB at most, and a page 1 MB.
const BLOCK_ITEMS_MAX: usize = 100;
/// Attempts at one page before the copy says that it is in trouble.
const ATTEMPTS_MAX: u32 = 8;

/// One account's tables in one region.
#[derive(Debug)]
pub struct DynamoSource {
    settings: Settings,
    connector: Connector,
    /// The service, once it has answered.
    service: OnceCell<Service>,
    budgets: Arc<Budgets>,
}

impl DynamoSource {
    /// The region that the URL names; it is not connected to.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SourceError> {
        let connector = Connector::new(&settings.config.url).map_err(refused)?;
        Ok(DynamoSource { settings, connector, service: OnceCell::new(), budgets: Arc::default() })
    }

    async fn service(&self) -> Result<&Service, DynamoError> {
        self.service.get_or_try_init(|| self.connector.connect()).await
    }

    async fn open(
        &self,
        selection: &Selection,
        from: Option<(DynamoPosition, Version)>,
        clock: Version,
    ) -> Result<Box<dyn ChangeStream>, CaptureError> {
        let service = self.connector.connect().await?;
        let date_us = service.now_us().await?;
        let tables: Vec<String> = selection.tables.iter().map(|table| table.table.clone()).collect();
        let facts = catalog::load_tables(&service, Some(&tables)).await?;
        if let Some(problem) = judge(&facts, &tables, &service.region).into_iter().next() {
            return Err(CaptureError::Halt(problem));
        }
        let followed = facts
            .into_iter()
            .filter_map(|facts| Some(Followed { schema: Arc::new(facts.schema), arn: facts.stream?.arn }));
        let settings = StreamSettings {
            date_us,
            clock_min: clock,
            clock_ahead_max_us: self.settings.config.clock_ahead_max_us(),
            environment: Arc::clone(&self.settings.environment),
        };
        let stream = DynamoStream::open(Arc::new(service), from, &followed.collect::<Vec<_>>(), settings)?;
        Ok(Box::new(stream))
    }

    async fn facts(&self, table: &str) -> Result<TableFacts, SnapshotError> {
        let found = catalog::load_table(self.service().await?, table).await?;
        found.ok_or_else(|| vanished(&format!("`{table}`")))
    }
}

fn refused(error: DynamoError) -> SourceError {
    SourceError::of(error.problem(), error.disposition())
}

#[async_trait]
impl Source for DynamoSource {
    async fn examine(&self) -> Result<Examined, SourceError> {
        let service = self.service().await.map_err(refused)?;
        let now_us = service.now_us().await.map_err(refused)?;
        let only = self.settings.config.tables.as_deref();
        let facts = catalog::load_tables(service, only).await.map_err(refused)?;
        SourceError::refuse(judge(&facts, only.unwrap_or_default(), self.connector.region()))?;
        Ok(Examined {
            tables: facts.into_iter().map(|facts| facts.schema).collect(),
            end: Position::Dynamo(DynamoPosition::at(now_us)),
            now_us,
            connector: DebeziumConnector::Dynamo,
            at: Instant::now(),
        })
    }

    // A stream shows whole items in any case.
    async fn stream(
        &self,
        selection: &Selection,
        from: Option<(Position, Version)>,
    ) -> Result<Box<dyn ChangeStream>, CaptureError> {
        let from = match from {
            Some((Position::Dynamo(position), clock)) => Some((position, clock)),
            Some((Position::Mysql(_) | Position::Debezium(_) | Position::Postgres(_), _)) => {
                return Err(foreign_position());
            }
            None => None,
        };
        self.open(selection, from, selection.clock_min).await
    }

    async fn stream_anew(&self, selection: &Selection, clock: Version) -> Result<Box<dyn ChangeStream>, CaptureError> {
        tracing::warn!("capture begins anew: every table is copied again");
        self.open(selection, None, clock.max(selection.clock_min)).await
    }

    async fn scan(&self) -> Result<Box<dyn Scan>, SnapshotError> {
        Ok(Box::new(DynamoScan {
            service: self.service().await?.clone(),
            segments: u32::try_from(self.settings.readers * SEGMENTS_PER_READER).unwrap_or(1),
            page_rows: self.settings.chunk_rows,
            read_units_per_second: self.settings.read_units_per_second,
            budgets: Arc::clone(&self.budgets),
            environment: Arc::clone(&self.settings.environment),
        }))
    }

    async fn schema(&self, table: &str) -> Result<Arc<TableSchema>, SnapshotError> {
        Ok(Arc::new(self.facts(table).await?.schema))
    }

    async fn end(&self) -> Result<Position, SnapshotError> {
        Ok(Position::Dynamo(DynamoPosition::at(self.service().await?.now_us().await?)))
    }

    async fn is_quiet_after(&self, _reached: &Position) -> Result<bool, SnapshotError> {
        // Shards are read to know it.
        Ok(false)
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
        // A consistent read sees every write that was answered before it, and so all that a stream has shown.
        let keys: Result<Vec<Item>, _> = keys.iter().map(|key| attribute::key_item(table, key)).collect();
        let mut left = keys.map_err(DynamoError::from)?;
        let service = self.service().await?;
        while !left.is_empty() {
            let answer = scan::fetch(service, &table.table.table, left).await?;
            left = answer.left;
            if hand_over(table, &answer.items, captured.watermark(), &blocks).await?.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// What keeps these tables from being captured.
pub fn judge(tables: &[TableFacts], wanted: &[String], region: &str) -> Vec<Problem> {
    let missing = wanted.iter().filter(|name| !tables.iter().any(|facts| facts.schema.table.table == **name));
    let missing = missing.map(|name| Problem {
        what: format!("there is no table `{name}` in {region}"),
        fix: "correct [source] tables, the region, or whose credentials these are".into(),
    });
    let mut problems: Vec<Problem> = missing.collect();
    if tables.is_empty() && wanted.is_empty() {
        problems.push(Problem {
            what: format!("there is no table in {region}"),
            fix: "correct the region in [source] url, or whose credentials these are".into(),
        });
    }
    problems.extend(tables.iter().flat_map(catalog::problems));
    problems
}

fn rows(table: &TableSchema, items: &[Item]) -> Result<Vec<Vec<Value>>, SnapshotError> {
    let rows = items.iter().map(|item| attribute::row(table, item, false));
    Ok(rows.collect::<Result<_, _>>().map_err(DynamoError::from)?)
}

/// Hands items over block by block. What the service answers at once is bounded, so that bytes are not counted here.
async fn hand_over(
    table: &TableSchema,
    items: &[Item],
    version: Version,
    blocks: &Blocks,
) -> Result<Result<(), BlocksClosed>, SnapshotError> {
    for items in items.chunks(BLOCK_ITEMS_MAX) {
        let sent = blocks.send(Block { version, rows: rows(table, items)? }).await;
        if sent.is_err() {
            return Ok(sent);
        }
    }
    Ok(Ok(()))
}

/// Reads pages of segments. A chunk is a page, since nobody knows where a segment may be divided until it is read; what
/// follows a page is a chunk of its own.
struct DynamoScan {
    service: Service,
    segments: u32,
    page_rows: u64,
    read_units_per_second: Option<u32>,
    budgets: Arc<Budgets>,
    environment: Arc<dyn Environment>,
}

impl DynamoScan {
    async fn budget(&self, table: &str) -> Arc<Mutex<Budget>> {
        Arc::clone(self.budgets.lock().await.entry(table.to_owned()).or_default())
    }

    /// Reads a page once the budget allows it. Being throttled is the table's own limit: it is waited out.
    async fn page(&self, table: &str, from: &ScanPosition) -> Result<Page, SnapshotError> {
        let mut backoff = Backoff::default();
        let mut attempts = 1;
        loop {
            let budget = self.budget(table).await;
            budget.lock().await.wait().await;
            let error = match scan::page(&self.service, table, from, self.page_rows).await {
                Ok(page) => {
                    budget.lock().await.spend(page.units);
                    return Ok(page);
                }
                Err(error) => error,
            };
            if error.disposition() != Disposition::Retry || attempts >= ATTEMPTS_MAX {
                return Err(error.into());
            }
            tracing::debug!(%error, table, "reading a page waits");
            attempts += 1;
            tokio::time::sleep(backoff.next(&*self.environment, Duration::ZERO)).await;
        }
    }
}

#[async_trait]
impl Scan for DynamoScan {
    /// The beginning of the segment after the one that begins at `lower`.
    async fn next_bound(
        &mut self,
        _table: &TableSchema,
        lower: Option<&str>,
        _rows: u64,
    ) -> Result<Option<String>, SnapshotError> {
        let position = position(lower, None, self.segments)?;
        let next = position.segment + 1;
        Ok((next < position.of).then(|| ScanPosition::start_of(next, position.of).text()))
    }

    async fn estimate(&mut self, table: &TableSchema) -> Result<Estimate, SnapshotError> {
        let facts = catalog::load_table(&self.service, &table.table.table).await?;
        // A copy leaves half of what the table may be read to those who use it.
        let half = facts.as_ref().and_then(|facts| facts.read_units).map(|units| (units / 2).max(1));
        self.budget(&table.table.table).await.lock().await.per_second = self.read_units_per_second.or(half);
        // A chunk is a page, which the service bounds by its bytes.
        Ok(Estimate { rows: facts.map(|facts| facts.items).unwrap_or_default(), row_bytes: 0 })
    }

    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        // A position's floor only rises, and had come to that before the first page was read.
        _floor: Version,
        captured: &mut watch::Receiver<Option<Captured>>,
        blocks: Blocks,
    ) -> Result<Option<String>, SnapshotError> {
        let Some(captured) = captured.borrow_and_update().clone() else {
            return Err(not_begun());
        };
        let from = position(range.lower.as_deref(), range.upper.as_deref(), self.segments)?;
        let page = self.page(&table.table.table, &from).await?;
        // A closed channel means that the writer has failed: its error is the one that counts.
        let _ = hand_over(table, &page.items, captured.watermark(), &blocks).await?;
        Ok(page.next.map(|position| position.text()))
    }

    /// The service computes nothing over its items.
    async fn digest(
        &mut self,
        _table: &Arc<TableSchema>,
        _range: &KeyRange,
        _captured: &mut watch::Receiver<Option<Captured>>,
        _held: bool,
    ) -> Result<Option<Digest>, SnapshotError> {
        Ok(None)
    }
}

/// Where a chunk begins. The first one has no lower bound; into how many segments its copy is divided then is in its
/// upper one, or, while that is being looked for, in the configuration.
fn position(lower: Option<&str>, upper: Option<&str>, segments: u32) -> Result<ScanPosition, SnapshotError> {
    let parse = |text: &str| {
        ScanPosition::parse(text).ok_or_else(|| {
            SnapshotError::Halt(Problem::new(
                "where a part of the copy begins cannot be read back",
                "copy the table again with `cutover resnapshot`",
            ))
        })
    };
    match (lower, upper) {
        (Some(lower), _) => parse(lower),
        (None, Some(upper)) => Ok(ScanPosition::start_of(0, parse(upper)?.of)),
        (None, None) => Ok(ScanPosition::start_of(0, segments)),
    }
}

/// By table: several are copied beside each other.
type Budgets = Mutex<HashMap<String, Arc<Mutex<Budget>>>>;

/// Read units that all readers of a table together may use.
#[derive(Debug, Default)]
struct Budget {
    per_second: Option<u32>,
    /// Until when what was read last counts.
    spent_until: Option<Instant>,
}

impl Budget {
    async fn wait(&self) {
        if let Some(until) = self.spent_until {
            tokio::time::sleep_until(until).await;
        }
    }

    /// What a page has taken is paid for afterwards, since nobody knows before what it takes.
    fn spend(&mut self, units: f64) {
        let Some(per_second) = self.per_second else { return };
        let now = Instant::now();
        let from = self.spent_until.map_or(now, |until| until.max(now));
        self.spent_until = Some(from + Duration::from_secs_f64((units / f64::from(per_second)).clamp(0.0, 60.0)));
    }
}

impl From<DynamoError> for SnapshotError {
    fn from(error: DynamoError) -> Self {
        copy_error(&error, error.disposition(), CORRECT_THAT)
    }
}

impl From<DynamoError> for CaptureError {
    fn from(error: DynamoError) -> Self {
        capture_error(&error, error.disposition(), CORRECT_THAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_its_number_of_segments_whatever_is_configured_later() {
        let first = position(None, None, 8).expect("a place");
        assert_eq!((first.segment, first.of), (0, 8));
        let second = ScanPosition::start_of(1, 8).text();
        assert_eq!(position(None, Some(&second), 2).expect("a place").of, 8);
        assert_eq!(position(Some(&second), None, 2).expect("a place").segment, 1);
        assert!(position(Some("no place"), None, 2).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn readers_wait_until_what_was_read_is_paid_for() {
        let mut budget = Budget { per_second: Some(100), ..Budget::default() };
        let began = Instant::now();
        budget.wait().await;
        budget.spend(50.0);
        budget.spend(25.0);
        budget.wait().await;
        assert_eq!(began.elapsed(), Duration::from_millis(750));
        budget.per_second = None;
        budget.spend(1e9);
        budget.wait().await;
        assert_eq!(began.elapsed(), Duration::from_millis(750));
    }
}
