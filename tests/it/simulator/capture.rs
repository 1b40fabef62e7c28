//! The source as capture and copies see it: the model server's binlog as captured events, and chunks read from its
//! tables.
//!
//! Stands in for `capture::mysql` and `database::mysql::scan`, with the same rules: the clock ticks once for a row
//! inserted or deleted and twice for one updated, of any table; what was captured is held against what the server has
//! before anything is read; a chunk waits until what it is labelled with is visible.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use cutover::{
    model::{
        Change, Clock, DebeziumConnector, GtidSet, Images, MysqlPosition, Op, Position, Problem, TableName,
        TableSchema, Value, Version,
    },
    observe::{self, Environment},
    snapshot::{Block, Blocks, Digest, Estimate, KeyRange, Scan, SnapshotError},
    source::{CaptureError, CaptureEvent, ChangeStream, Examined, Selection, Source, SourceError, mysql::Links},
    state::Store,
};
use tokio::{sync::watch, time::Instant};

use super::{
    chance::{Chance, Fault},
    family,
    mutations::Mutation,
    postgres::hash,
    source::{self, Key, Logged, Refused, Server, Step},
    worker::Gate,
};

const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
const AHEAD_MAX_US: i64 = 60_000_000;
/// How long a chunk waits for what it is labelled with.
const VISIBLE_WAIT: Duration = Duration::from_secs(30);
const BLOCK_ROWS: usize = 3;

/// Opens captures and scans of the model server.
pub struct ModelServer {
    pub server: Arc<Server>,
    pub gate: Arc<Gate>,
    /// Where foreign keys that act below the log are noted.
    pub store: Arc<Store>,
    /// Who compares asks, and not a worker.
    pub verifies: bool,
}

impl ModelServer {
    fn chance(&self) -> &Chance {
        &self.server.chance
    }

    fn scanner(&self) -> ModelScan {
        ModelScan { server: Arc::clone(&self.server), gate: Arc::clone(&self.gate), held: None }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.chance().run.mutation == Some(mutation)
    }

    /// Whether who compares has this rule broken.
    fn verifies_with(&self, mutation: Mutation) -> bool {
        self.verifies && self.is(mutation)
    }

    /// The foreign keys that act below the log, which are noted before anything is read.
    async fn links(&self) -> Result<Links, CaptureError> {
        if !self.chance().taste.family {
            return Ok(Links::default());
        }
        let links = family::links();
        if self.store.cascade_links().await? != links {
            self.store.set_cascade_links(&links).await?;
        }
        Ok(Links::new(&links, Clone::clone))
    }

    fn stream_at(&self, next: usize, position: MysqlPosition, clock: Clock, links: Links) -> Box<dyn ChangeStream> {
        // After a failover the place is one in the new server's files.
        let position = MysqlPosition { gtids: position.gtids, ..self.server.place(next) };
        let schemas = source::watched(self.chance()).iter().map(|table| CaptureEvent::Schema(source::schema(table)));
        let mut delivered: VecDeque<CaptureEvent> = schemas.collect();
        delivered.push_back(heartbeat(&position, clock.last(), self.chance().now_us()));
        Box::new(ModelSource {
            server: Arc::clone(&self.server),
            gate: Arc::clone(&self.gate),
            number: self.server.number(),
            next,
            position,
            clock,
            links,
            delivered,
        })
    }
}

fn heartbeat(position: &MysqlPosition, clock: Version, at_us: i64) -> CaptureEvent {
    CaptureEvent::Heartbeat { position: Position::Mysql(position.clone()), clock, at_us }
}

fn away() -> CaptureError {
    CaptureError::Unreachable("the model's source is away".into())
}

#[async_trait]
impl Source for ModelServer {
    async fn examine(&self) -> Result<Examined, SourceError> {
        if self.server.is_away() {
            return Err(SourceError::Unreachable("the model's source is away".into()));
        }
        Ok(Examined {
            tables: source::watched(self.chance())
                .iter()
                .map(|table| TableSchema::clone(&source::schema(table)))
                .collect(),
            end: Position::Mysql(self.server.end()),
            now_us: self.chance().now_us(),
            connector: DebeziumConnector::Mysql,
            at: Instant::now(),
        })
    }

    async fn stream(
        &self,
        selection: &Selection,
        from: Option<(Position, Version)>,
    ) -> Result<Box<dyn ChangeStream>, CaptureError> {
        self.chance().sleep(Duration::from_millis(5)).await;
        if self.server.is_away() {
            return Err(away());
        }
        let (from, clock) = match from {
            Some((Position::Mysql(from), clock)) => (from, clock),
            Some((Position::Debezium(_) | Position::Postgres(_) | Position::Dynamo(_), _)) => {
                unreachable!("every simulated source is a MySQL server")
            }
            None if self.is(Mutation::ClockStartsLow) => (self.server.end(), 0),
            None => (self.server.end(), selection.clock_min.max(self.chance().now_us())),
        };
        // Before the place is looked up, which another server may not have.
        let links = self.links().await?;
        for attempt in 0..50 {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let (reason, remedy) = match self.server.seek(&from) {
                Ok(next) => {
                    return Ok(self.stream_at(next, from, Clock::new(clock, AHEAD_MAX_US), links));
                }
                Err(Refused::Away) => return Err(away()),
                Err(Refused::NeverExecuted(set)) if attempt == 49 => (format!("never executed {set}"), String::new()),
                Err(Refused::NeverExecuted(_)) => continue,
                Err(Refused::Purged(set)) => (format!("purged {set}"), String::new()),
            };
            if self.is(Mutation::SkipGaps) {
                let end = self.server.end();
                if let Ok(next) = self.server.seek(&end) {
                    return Ok(self.stream_at(next, end, Clock::new(clock, AHEAD_MAX_US), links));
                }
            }
            return Err(CaptureError::Lost(Problem::new(reason, remedy)));
        }
        Err(away())
    }

    async fn stream_anew(&self, selection: &Selection, clock: Version) -> Result<Box<dyn ChangeStream>, CaptureError> {
        if self.server.is_away() {
            return Err(away());
        }
        let from = Position::Mysql(self.server.end());
        let clock = if self.is(Mutation::ClockStartsLow) { 0 } else { clock.max(self.chance().now_us()) };
        self.stream(selection, Some((from, clock))).await
    }

    async fn scan(&self) -> Result<Box<dyn Scan>, SnapshotError> {
        if self.server.is_away() {
            return Err(SnapshotError::Source("away".into()));
        }
        Ok(Box::new(self.scanner()))
    }

    async fn schema(&self, table: &str) -> Result<Arc<TableSchema>, SnapshotError> {
        Ok(source::schema(table))
    }

    async fn end(&self) -> Result<Position, SnapshotError> {
        if self.server.is_away() {
            return Err(SnapshotError::Source("away".into()));
        }
        let end = self.server.end();
        // Every target has an end that nothing is before.
        let nowhere = |end| MysqlPosition { file: String::new(), offset: 0, gtids: Some(String::new()), ..end };
        Ok(Position::Mysql(if self.verifies_with(Mutation::VerifyDoesNotWait) { nowhere(end) } else { end }))
    }

    async fn is_quiet_after(&self, _reached: &Position) -> Result<bool, SnapshotError> {
        Ok(false)
    }

    async fn children(
        &self,
        table: &Arc<TableSchema>,
        columns: &[usize],
        values: &[Value],
        captured: &observe::Captured,
        blocks: Blocks,
    ) -> Result<(), SnapshotError> {
        let Position::Mysql(position) = &captured.position else {
            return Err(SnapshotError::Source("capture has not begun yet".into()));
        };
        let scan = self.scanner();
        scan.make_visible(position).await?;
        let mut rows: Vec<Vec<Value>> = scan.rows(&table.table.table).await?.into_iter().map(|(_, row)| row).collect();
        rows.retain(|row| columns.iter().zip(values).all(|(place, value)| row[*place] == *value));
        let block = Block { version: captured.watermark(), rows };
        // Who no longer listens has an error of its own.
        let _ = blocks.send(block).await;
        Ok(())
    }

    async fn fetch(
        &self,
        table: &Arc<TableSchema>,
        keys: &[Vec<Value>],
        captured: &observe::Captured,
        blocks: Blocks,
    ) -> Result<(), SnapshotError> {
        let Position::Mysql(position) = &captured.position else {
            return Err(SnapshotError::Source("capture has not begun yet".into()));
        };
        let scan = self.scanner();
        if !self.verifies_with(Mutation::VerifyTrustsStalePosition) {
            scan.make_visible(position).await?;
        }
        self.chance().sleep(Duration::from_millis(5)).await;
        let wanted: Vec<Key> = keys.iter().map(|key| key.iter().map(source::integer).collect()).collect();
        let rows = scan.rows(&table.table.table).await?;
        let rows = rows.into_iter().filter(|(key, _)| wanted.contains(key)).map(|(_, row)| row).collect();
        // A closed channel means that the writer has failed: its error is the one that counts.
        let _ = blocks.send(Block { version: captured.watermark(), rows }).await;
        Ok(())
    }
}

/// A dump of the model's binlog.
struct ModelSource {
    server: Arc<Server>,
    gate: Arc<Gate>,
    /// Which server this is a dump of.
    number: u64,
    next: usize,
    position: MysqlPosition,
    clock: Clock,
    links: Links,
    delivered: VecDeque<CaptureEvent>,
}

#[async_trait]
impl ChangeStream for ModelSource {
    async fn next(&mut self) -> Result<CaptureEvent, CaptureError> {
        let (server, chance) = (Arc::clone(&self.server), Arc::clone(&self.server.chance));
        let silent = Instant::now() + HEARTBEAT_EVERY;
        loop {
            self.gate.passed().await;
            let moved = server.moves();
            if server.is_away() || server.number() != self.number {
                return Err(away());
            }
            if let Some(captured) = self.delivered.pop_front() {
                if chance.likely(0.1) {
                    chance.sleep(Duration::from_millis(4)).await;
                }
                if chance.strikes(Fault::SourceAway, 0.002, || "in the middle of the stream".into()) {
                    return Err(away());
                }
                return Ok(captured);
            }
            match self.server.at(self.next) {
                Some((logged, position)) => self.take(logged, position)?,
                None => tokio::select! {
                    biased;
                    () = moved => {}
                    () = tokio::time::sleep_until(silent) => {
                        return Ok(heartbeat(&self.position, self.clock.last(), chance.now_us()));
                    }
                },
            }
        }
    }

    fn raise_clock(&mut self, floor: Version) -> bool {
        self.delivered.is_empty() && self.clock.raise(floor)
    }
}

impl ModelSource {
    /// Delivers a transaction. A dump goes by place once it has begun; what it passes is added to the set.
    fn take(&mut self, logged: Logged, position: MysqlPosition) -> Result<(), CaptureError> {
        let commit_us = logged.commit_us;
        let mut ours = false;
        if let Err(error) = self.clock.check(commit_us, self.server.chance.now_us()) {
            return Err(CaptureError::Halt(Problem::new(error.to_string(), String::new())));
        }
        let once = self.server.chance.run.mutation == Some(Mutation::ClockPerTransaction);
        let at = once.then(|| self.clock.tick(commit_us));
        let seen = logged.steps.into_iter().filter(|step| !matches!(step, Step::Cascaded { .. }));
        for step in seen {
            let ticks = if matches!(step, Step::Update { .. }) { 2 } else { 1 };
            let version = match at {
                Some(version) => version,
                None => self.clock.tick_many(commit_us, ticks),
            };
            if source::watched(&self.server.chance).contains(&step.table()) {
                ours = true;
                self.deliver(step, version, commit_us);
            }
        }
        let mut gtids: GtidSet = self.position.gtids.as_deref().unwrap_or_default().parse().unwrap();
        gtids.add(&logged.gtid.0, logged.gtid.1);
        self.position = MysqlPosition { gtids: Some(gtids.to_string()), ..position };
        self.next += 1;
        if ours {
            let (position, clock) = (Position::Mysql(self.position.clone()), self.clock.last());
            self.delivered.push_back(CaptureEvent::Commit { position, clock, commit_us });
        }
        Ok(())
    }

    fn deliver(&mut self, step: Step, version: Version, commit_us: i64) {
        let schema = source::schema(step.table());
        let images = match &step {
            Step::Insert { after, .. } => Images { before: None, after: Some(after.clone()) },
            Step::Update { before, after, .. } => Images { before: Some(before.clone()), after: Some(after.clone()) },
            Step::Delete { before, .. } => Images { before: Some(before.clone()), after: None },
            Step::Truncate { .. } | Step::Alter { .. } | Step::Cascaded { .. } => Images::default(),
        };
        let told = self.links.told(&schema.table, &schema, &images, (version, commit_us));
        let mut row = |op, before: Option<Vec<Value>>, after: Option<Vec<Value>>, version| {
            let images = Images { before, after };
            let change = Change { schema: Arc::clone(&schema), op, images, version, commit_us };
            self.delivered.push_back(CaptureEvent::Change(change));
        };
        match step {
            Step::Insert { after, .. } => row(Op::Insert, None, Some(after), version),
            Step::Delete { before, .. } => row(Op::Delete, Some(before), None, version),
            Step::Update { table, before, after } if source::key(table, &before) != source::key(table, &after) => {
                row(Op::Delete, Some(before), None, version);
                row(Op::Insert, None, Some(after), version + 1);
            }
            Step::Update { before, after, .. } => row(Op::Update, Some(before), Some(after), version),
            Step::Truncate { .. } => {
                self.delivered.push_back(CaptureEvent::Truncate { table: schema, version, commit_us });
            }
            Step::Alter { column, .. } => {
                let columns = vec![schema.columns[column].name.clone()];
                let table = TableName::clone(&schema.table);
                self.delivered.push_back(CaptureEvent::Rewritten { table, columns, clock: version });
            }
            Step::Cascaded { .. } => unreachable!("the log does not show it"),
        }
        self.delivered.extend(told);
    }
}

struct ModelScan {
    server: Arc<Server>,
    gate: Arc<Gate>,
    /// What the next read sees, if a digest was made of it.
    held: Option<Vec<(Key, Vec<Value>)>>,
}

impl ModelScan {
    /// Waits until everything that was captured is visible (rule 13).
    async fn make_visible(&self, captured: &MysqlPosition) -> Result<(), SnapshotError> {
        let captured: GtidSet = captured.gtids.as_deref().unwrap_or_default().parse().unwrap();
        let deadline = Instant::now() + VISIBLE_WAIT;
        loop {
            let moved = self.server.moves();
            if self.server.executed().contains(&captured) {
                return Ok(());
            }
            if self.server.is_away() || Instant::now() >= deadline {
                return Err(SnapshotError::Source("what was captured is not visible".into()));
            }
            tokio::select! { biased; () = moved => {}, () = tokio::time::sleep_until(deadline) => {} }
        }
    }

    /// The rows of a table at one moment; waits while a DDL keeps reads out.
    async fn rows(&self, table: &str) -> Result<Vec<(Key, Vec<Value>)>, SnapshotError> {
        loop {
            let moved = self.server.moves();
            if self.server.is_away() {
                return Err(SnapshotError::Source("away".into()));
            }
            if let Some(rows) = self.server.read(table) {
                return Ok(rows.into_iter().collect());
            }
            moved.await;
        }
    }
}

fn within(key: &Key, lower: Option<&str>, upper: Option<&str>) -> bool {
    let bound = |text: &str| -> Key { serde_json::from_str(text).unwrap() };
    lower.is_none_or(|lower| *key > bound(lower)) && upper.is_none_or(|upper| *key <= bound(upper))
}

#[async_trait]
impl Scan for ModelScan {
    async fn next_bound(
        &mut self,
        table: &TableSchema,
        lower: Option<&str>,
        rows: u64,
    ) -> Result<Option<String>, SnapshotError> {
        self.server.chance.sleep(Duration::from_millis(3)).await;
        let all = self.rows(&table.table.table).await?;
        let mut after = all.iter().filter(|(key, _)| within(key, lower, None));
        let last = after.nth(rows as usize - 1);
        Ok(last.map(|(key, _)| serde_json::to_string(key).unwrap()))
    }

    async fn estimate(&mut self, table: &TableSchema) -> Result<Estimate, SnapshotError> {
        Ok(Estimate { rows: self.rows(&table.table.table).await?.len() as u64, row_bytes: 0 })
    }

    async fn read(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        _floor: Version,
        captured: &mut watch::Receiver<Option<observe::Captured>>,
        blocks: Blocks,
    ) -> Result<Option<String>, SnapshotError> {
        let point = captured.borrow_and_update().clone();
        let Some(observe::Captured { position: Position::Mysql(position), clock, .. }) = point else {
            return Err(SnapshotError::Source("capture has not begun yet".into()));
        };
        let held = self.held.take();
        if held.is_none() && self.server.chance.run.mutation != Some(Mutation::NoWatermarkWait) {
            self.make_visible(&position).await?;
        }
        self.server.chance.sleep(Duration::from_millis(5)).await;
        let rows = match held {
            Some(rows) => rows,
            None => self.rows(&table.table.table).await?,
        };
        let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
        let rows: Vec<Vec<Value>> =
            rows.into_iter().filter(|(key, _)| within(key, lower, upper)).map(|(_, row)| row).collect();
        for block in rows.chunks(BLOCK_ROWS) {
            // Rows travel for a while after they were read.
            self.server.chance.sleep(self.server.chance.taste.travel).await;
            self.gate.passed().await;
            if self.server.is_away() {
                return Err(SnapshotError::Source("away".into()));
            }
            if blocks.send(Block { version: clock, rows: block.to_vec() }).await.is_err() {
                return Ok(None);
            }
        }
        Ok(None)
    }

    async fn digest(
        &mut self,
        table: &Arc<TableSchema>,
        range: &KeyRange,
        captured: &mut watch::Receiver<Option<observe::Captured>>,
        held: bool,
    ) -> Result<Option<Digest>, SnapshotError> {
        let point = captured.borrow_and_update().clone();
        let Some(observe::Captured { position: Position::Mysql(position), .. }) = point else {
            return Err(SnapshotError::Source("capture has not begun yet".into()));
        };
        self.make_visible(&position).await?;
        self.server.chance.sleep(Duration::from_millis(2)).await;
        let all = self.rows(&table.table.table).await?;
        let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
        let of_range: Vec<String> =
            all.iter().filter(|(key, _)| within(key, lower, upper)).map(|row| format!("{row:?}")).collect();
        let sum: i128 = of_range.iter().map(|row| i128::from(hash(row))).sum();
        self.held = held.then_some(all);
        Ok(Some(Digest { rows: of_range.len() as u64, sum: sum.to_string() }))
    }
}
