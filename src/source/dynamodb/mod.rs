//! Capture from DynamoDB Streams.
//!
//! ```text
//!  per table:  DescribeStream ─► walk (which shards may be read, versions: pure)
//!                                  │
//!  per shard:  GetRecords ─► page ─┴─► one change, one commit, with a position over all shards
//! ```
//!
//! What enters: a position with the clock's state there, and the tables with their streams. What leaves: their changes,
//! in order along each shard's lineage, each a transaction of its own (the service tells no more of transactions), and
//! a heartbeat when every shard has been read to its end. Invariants: a change that is captured later than a position
//! has a version above that position's floor, so that a row that is read after the position is durable may be labelled
//! with the floor, whatever the service's clocks say (rule 15); a gap halts. Deliberately absent: order
//! between shards, and times finer than the service's seconds.

mod answers;
mod api;
mod open;
#[cfg(test)]
mod tests;
mod walk;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use self::answers::Answers;
pub use self::{
    api::{ItemChange, Listing, RecordPage, StreamRecord, Streams},
    open::{DynamoSource, judge},
    walk::Walk,
};
use super::{CaptureError, CaptureEvent, ChangeStream};
use crate::{
    database::dynamodb::{DynamoError, attribute},
    model::{Change, Clock, DynamoPosition, Images, Op, Position, Problem, StreamPosition, TableSchema, Version},
    observe::{Backoff, Environment},
};

/// How far the service's times may be apart: its answers' dates, its records' times, and when a record can be read.
pub const MARGIN_US: i64 = 5_000_000;
/// How much older than the beginning a record may be and is not left out, and how old one is that is about as new as
/// the answer. A record's time is rounded down: by the service to a second, by DynamoDB Local to a minute.
const BEGIN_MARGIN_US: i64 = 65_000_000;
/// How long the service keeps records.
const RETENTION_US: i64 = 24 * 3600 * 1_000_000;
/// How soon a shard is asked again after an answer without records, and by how much later at most where there are many
/// shards.
const POLL_EVERY: Duration = Duration::from_millis(200);
const POLL_FACTOR_MAX: u32 = 10;
const SHARDS_PER_FACTOR: usize = 20;
const LIST_EVERY: Duration = Duration::from_secs(10);
const LIST_SOON: Duration = Duration::from_millis(500);
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// After a gap there is one repair, whatever made it.
const COPY_AGAIN: &str = "records stay for 24 hours; copy every table again with `cutover resnapshot TABLE`: capture goes on from \
     where the source is then";

/// A table that is followed.
#[derive(Debug, Clone)]
pub struct Followed {
    pub schema: Arc<TableSchema>,
    /// Its stream.
    pub arn: String,
}

/// Where and how capture begins.
pub struct StreamSettings {
    /// The service's time now, µs since the Unix epoch.
    pub date_us: i64,
    /// No version is below this: the highest that the target has.
    pub clock_min: Version,
    pub clock_ahead_max_us: i64,
    pub environment: Arc<dyn Environment>,
}

impl fmt::Debug for StreamSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSettings").field("date_us", &self.date_us).finish_non_exhaustive()
    }
}

/// One stream that is read.
#[derive(Debug)]
struct TableStream {
    schema: Arc<TableSchema>,
    walk: Walk,
    /// Of each open shard, how it has answered last.
    answers: BTreeMap<String, Answers>,
    pauses: BTreeMap<String, Backoff>,
}

impl TableStream {
    /// Whether an iterator has answered that a shard has no records yet.
    fn is_read_from_its_beginning(&self, shard: &str) -> bool {
        let is_fresh = self.walk.position().shards.get(shard).is_some_and(|shard| shard.sequence.is_none());
        is_fresh && self.answers.get(shard).is_some_and(|answers| answers.empty > 0)
    }
}

/// What was asked of the service, and its answer.
enum Step {
    Listed { stream: usize, answer: Result<Listing, DynamoError> },
    Read { stream: usize, shard: String, answer: Result<RecordPage, DynamoError> },
}

/// A page whose records are handed out one by one.
struct Reading {
    stream: usize,
    shard: String,
    records: std::vec::IntoIter<StreamRecord>,
    newest_us: Option<i64>,
    date_us: Option<i64>,
    is_last: bool,
}

/// A running capture.
pub struct DynamoStream {
    api: Arc<dyn Streams>,
    settings: StreamSettings,
    streams: Vec<TableStream>,
    floor: Version,
    read_to_us: i64,
    /// The highest version so far.
    clock: Clock,
    /// Each open shard has one request under way, each stream one for its shards: at most one page of each waits here.
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
    reading: Option<Reading>,
    delivered: VecDeque<CaptureEvent>,
    said: Instant,
    failed: bool,
}

impl fmt::Debug for DynamoStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamoStream").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl DynamoStream {
    /// Goes on after `from`, a position and the clock's state there; without it, with what is changed from now on.
    ///
    /// First come the tables' schemas and a heartbeat with the position.
    pub fn open(
        api: Arc<dyn Streams>,
        from: Option<(DynamoPosition, Version)>,
        tables: &[Followed],
        settings: StreamSettings,
    ) -> Result<Self, CaptureError> {
        let begin_us = settings.date_us.saturating_sub(BEGIN_MARGIN_US);
        let (position, clock) = from.unwrap_or_else(|| {
            let floor = settings.date_us.saturating_sub(MARGIN_US);
            (DynamoPosition { floor, read_to_us: begin_us, streams: BTreeMap::new() }, floor)
        });
        if settings.date_us.saturating_sub(position.read_to_us) > RETENTION_US {
            return Err(lost(
                "what was captured last is older than the 24 hours that DynamoDB keeps a stream's records",
            ));
        }
        let mut streams = Vec::new();
        for followed in tables {
            let table = &followed.schema.table.table;
            let known = position.streams.get(table);
            if known.is_some_and(|known| known.arn != followed.arn) {
                return Err(lost(&format!(
                    "the stream of table `{table}` is another one than was read: it was turned off and on again, or the table was \
                     made again"
                )));
            }
            let fresh = || StreamPosition { arn: followed.arn.clone(), begin_us, shards: BTreeMap::new() };
            streams.push(TableStream {
                schema: Arc::clone(&followed.schema),
                walk: Walk::new(known.cloned().unwrap_or_else(fresh), position.read_to_us),
                answers: BTreeMap::new(),
                pauses: BTreeMap::new(),
            });
        }
        let floor = position.floor.max(settings.clock_min);
        let mut source = DynamoStream {
            clock: Clock::new(clock.max(floor), settings.clock_ahead_max_us),
            api,
            settings,
            streams,
            floor,
            read_to_us: position.read_to_us,
            steps: FuturesUnordered::new(),
            reading: None,
            delivered: VecDeque::new(),
            said: Instant::now(),
            failed: false,
        };
        source.begin();
        Ok(source)
    }

    fn begin(&mut self) {
        for stream in &self.streams {
            self.delivered.push_back(CaptureEvent::Schema(Arc::clone(&stream.schema)));
        }
        self.say(self.read_to_us);
        for index in 0..self.streams.len() {
            self.list(index, Duration::ZERO);
            let open = self.streams.get(index).map(|stream| stream.walk.open().map(|(id, _)| id.to_owned()).collect());
            let open: Vec<String> = open.unwrap_or_default();
            for shard in open {
                self.read(index, shard, None, Duration::ZERO);
            }
        }
        let tables = self.streams.len();
        tracing::info!(tables, floor = self.floor, read_to_us = self.read_to_us, "capture starts");
    }

    /// How far every stream has been read.
    fn position(&self) -> Position {
        let streams = self.streams.iter();
        let streams =
            streams.map(|stream| (stream.schema.table.table.clone(), stream.walk.position().clone())).collect();
        Position::Dynamo(DynamoPosition { floor: self.floor, read_to_us: self.read_to_us, streams })
    }

    /// Says that nothing up to `at_us` is missing.
    fn say(&mut self, at_us: i64) {
        self.said = Instant::now();
        self.delivered.push_back(CaptureEvent::Heartbeat {
            position: self.position(),
            clock: self.clock.last(),
            at_us,
        });
    }

    fn list(&self, stream: usize, pause: Duration) {
        let Some(followed) = self.streams.get(stream) else { return };
        let (api, arn) = (Arc::clone(&self.api), followed.walk.position().arn.clone());
        self.steps.push(Box::pin(async move {
            sleep(pause).await;
            Step::Listed { stream, answer: api.shards(&arn).await }
        }));
    }

    /// Asks for more of a shard, from an iterator, or, without one, after the last record that was read of it.
    fn read(&self, stream: usize, shard: String, iterator: Option<String>, pause: Duration) {
        let Some(followed) = self.streams.get(stream) else { return };
        let (api, position) = (Arc::clone(&self.api), followed.walk.position());
        let arn = position.arn.clone();
        let after = position.shards.get(&shard).and_then(|shard| shard.sequence.clone());
        self.steps.push(Box::pin(async move {
            sleep(pause).await;
            let answer = async {
                let iterator = match iterator {
                    Some(iterator) => iterator,
                    None => api.iterator(&arn, &shard, after.as_deref()).await?,
                };
                api.records(&iterator).await
            };
            let answer = answer.await;
            Step::Read { stream, shard, answer }
        }));
    }

    async fn next_event(&mut self) -> Result<CaptureEvent, CaptureError> {
        loop {
            if let Some(captured) = self.delivered.pop_front() {
                return Ok(captured);
            }
            if let Some(reading) = &mut self.reading {
                match reading.records.next() {
                    Some(record) => {
                        let (stream, shard) = (reading.stream, reading.shard.clone());
                        self.take(stream, &shard, record)?;
                    }
                    None => self.end_page(),
                }
                continue;
            }
            let (is_quiet, due) = (self.is_quiet(), self.said + HEARTBEAT_EVERY);
            let step = tokio::select! {
                biased;
                () = sleep_until(due), if is_quiet => None,
                step = self.steps.next() => step,
            };
            match step {
                Some(Step::Listed { stream, answer }) => self.listed(stream, answer)?,
                Some(Step::Read { stream, shard, answer }) => self.answered(stream, shard, answer)?,
                None => self.say(self.read_to_us.saturating_add(MARGIN_US)),
            }
        }
    }

    /// Whether every shard has been read to its end.
    fn is_quiet(&self) -> bool {
        self.streams.iter().all(|stream| {
            let mut open = stream.walk.open();
            !stream.walk.awaits_children()
                && !stream.answers.is_empty()
                && open.all(|(id, _)| stream.answers.get(id).is_some_and(|answers| answers.is_quiet()))
        })
    }

    fn listed(&mut self, index: usize, answer: Result<Listing, DynamoError>) -> Result<(), CaptureError> {
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        let table = &stream.schema.table.table;
        let listing = match answer {
            Ok(listing) if !listing.is_enabled => {
                return Err(lost(&format!("the stream of table `{table}` has been turned off")));
            }
            Ok(listing) => listing,
            Err(error @ DynamoError::Throttled(_)) => {
                tracing::debug!(%error, table, "listing shards waits");
                self.list(index, LIST_EVERY);
                return Ok(());
            }
            Err(error) => return Err(refused(table, error)),
        };
        let begun = stream.walk.listed(&listing.shards, self.floor, self.read_to_us);
        for shard in &begun {
            stream.answers.insert(shard.clone(), Answers::default());
        }
        let soon = stream.walk.awaits_children() || listing.shards.is_empty();
        for shard in begun {
            tracing::debug!(shard, "reading a shard");
            self.read(index, shard, None, Duration::ZERO);
        }
        self.list(index, if soon { LIST_SOON } else { LIST_EVERY });
        Ok(())
    }

    fn answered(
        &mut self,
        index: usize,
        shard: String,
        answer: Result<RecordPage, DynamoError>,
    ) -> Result<(), CaptureError> {
        let shards: usize = self.streams.iter().map(|stream| stream.walk.open().count()).sum();
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        let page = match answer {
            Ok(page) => page,
            Err(DynamoError::IteratorExpired(_)) => {
                self.read(index, shard, None, Duration::ZERO);
                return Ok(());
            }
            // Nothing can be older than a day that was not there when this iterator answered last. DynamoDB Local says
            // so of an iterator over a shard without records, once other tables' changes have used up the numbers that
            // it points to.
            Err(DynamoError::Trimmed(_)) if stream.is_read_from_its_beginning(&shard) => {
                stream.answers.insert(shard.clone(), Answers::default());
                self.read(index, shard, None, Duration::ZERO);
                return Ok(());
            }
            Err(error @ DynamoError::Throttled(_)) => {
                let backoff = stream.pauses.entry(shard.clone()).or_default();
                let pause = backoff.next(&*self.settings.environment, Duration::ZERO);
                tracing::debug!(%error, shard, pause_ms = pause.as_millis(), "reading a shard waits");
                self.read(index, shard, None, pause);
                return Ok(());
            }
            Err(error) => return Err(refused(&stream.schema.table.table, error)),
        };
        stream.pauses.remove(&shard);
        stream.answers.entry(shard.clone()).or_default().take(&page);
        if let Some(iterator) = &page.next {
            let factor = u32::try_from(shards / SHARDS_PER_FACTOR + 1).unwrap_or(POLL_FACTOR_MAX).min(POLL_FACTOR_MAX);
            let pause = if page.records.is_empty() { POLL_EVERY * factor } else { Duration::ZERO };
            self.read(index, shard.clone(), Some(iterator.clone()), pause);
        }
        self.reading = Some(Reading {
            stream: index,
            shard,
            newest_us: page.records.last().map(|record| record.created_us),
            date_us: page.date_us,
            is_last: page.next.is_none(),
            records: page.records.into_iter(),
        });
        Ok(())
    }

    /// Hands out one record's change and its commit.
    fn take(&mut self, index: usize, shard: &str, record: StreamRecord) -> Result<(), CaptureError> {
        let Some(stream) = self.streams.get_mut(index) else { return Ok(()) };
        let commit_us = record.created_us;
        if let Err(error) = self.clock.check(commit_us, self.settings.environment.now_us()) {
            return Err(CaptureError::Halt(error.problem()));
        }
        let Some(version) = stream.walk.tick(shard, &record.sequence, commit_us, self.floor) else { return Ok(()) };
        let change = change(&stream.schema, record, version)?;
        self.delivered.push_back(CaptureEvent::Change(change));
        // Above every version, and above the clock of the commit before, which tells two positions apart.
        let clock = self.clock.tick(version);
        self.delivered.push_back(CaptureEvent::Commit { position: self.position(), clock, commit_us });
        Ok(())
    }

    /// All records of a page have been handed out.
    fn end_page(&mut self) {
        let Some(Reading { stream: index, shard, newest_us, date_us, is_last, .. }) = self.reading.take() else {
            return;
        };
        let Some(stream) = self.streams.get_mut(index) else { return };
        let is_quiet = stream.answers.get(&shard).is_some_and(|answers| answers.is_quiet());
        // A date from the future would only make versions greater than they need to be; still it must not run away.
        let environment = &self.settings.environment;
        let date_us = date_us.filter(|date_us| is_quiet && self.clock.check(*date_us, environment.now_us()).is_ok());
        if let Some(time_us) = date_us.max(newest_us) {
            stream.walk.read_to(&shard, time_us.saturating_sub(MARGIN_US));
        }
        if is_last {
            tracing::debug!(shard, "a shard has been read to its end");
            stream.walk.drained(&shard);
            stream.answers.remove(&shard);
            self.list(index, Duration::ZERO);
        }
        let read_to_us = self.streams.iter().map(|stream| stream.walk.all_read_to()).min().flatten();
        self.read_to_us = self.read_to_us.max(read_to_us.unwrap_or(i64::MIN));
        self.floor = self.floor.max(self.read_to_us);
        self.clock.raise(self.floor);
    }
}

#[async_trait]
impl ChangeStream for DynamoStream {
    async fn next(&mut self) -> Result<CaptureEvent, CaptureError> {
        if self.failed {
            return Err(CaptureError::Unreachable("its streams have ended".into()));
        }
        let captured = self.next_event().await;
        self.failed = captured.is_err();
        captured
    }

    fn raise_clock(&mut self, _floor: Version) -> bool {
        // What is captured is above the position's own floor, which rises with the service's date.
        false
    }
}

/// A record as a change of a row.
fn change(schema: &Arc<TableSchema>, record: StreamRecord, version: Version) -> Result<Change, CaptureError> {
    let StreamRecord { created_us: commit_us, change, before, after, is_ttl, .. } = record;
    let row = |item: Option<attribute::Item>, is_ttl| {
        let row = item.map(|item| attribute::row(schema, &item, is_ttl)).transpose();
        row.map_err(|error| CaptureError::Halt(error.problem().at(format_args!("in the stream of {}", schema.table))))
    };
    let (op, before, after) = match (change, before, after) {
        (ItemChange::Insert, None, Some(after)) => (Op::Insert, None, Some(after)),
        (ItemChange::Modify, Some(before), Some(after)) => (Op::Update, Some(before), Some(after)),
        (ItemChange::Remove, Some(before), None) => (Op::Delete, Some(before), None),
        (ItemChange::Insert | ItemChange::Modify | ItemChange::Remove, _, _) => {
            return Err(lost(&format!(
                "the stream of table `{}` does not show items before and after a change: it has another view type than \
                 NEW_AND_OLD_IMAGES",
                schema.table.table
            )));
        }
    };
    let images = Images { before: row(before, is_ttl)?, after: row(after, false)? };
    Ok(Change { schema: Arc::clone(schema), op, images, version, commit_us })
}

/// What was captured and what the service still has do not join.
fn lost(reason: &str) -> CaptureError {
    CaptureError::Lost(Problem::new(reason, COPY_AGAIN))
}

fn refused(table: &str, error: DynamoError) -> CaptureError {
    match error {
        DynamoError::Unreachable(_) | DynamoError::Throttled(_) | DynamoError::IteratorExpired(_) => {
            CaptureError::Unreachable(error.to_string())
        }
        DynamoError::Trimmed(told) | DynamoError::Missing(told) => {
            lost(&format!("the stream of table `{table}` no longer has what was to be read next ({told})"))
        }
        DynamoError::Url(_) | DynamoError::Denied(_) | DynamoError::Refused(_) => {
            CaptureError::Halt(error.problem().at(format_args!("table `{table}`")))
        }
    }
}
