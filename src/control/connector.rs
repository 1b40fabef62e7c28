//! The worker of a pipeline whose changes a connector of Debezium captures: it applies, and does nothing else.
//!
//! ```text
//! lease ── topics ──► lanes, one apply loop each ──► target
//!            └ looked at again: tables that show themselves later are taken in
//! ```
//!
//! The lanes' numbers are kept in the target, since offsets are stored under them. Deliberately absent: a connection to the source, and
//! with it copies, verification, dead letters that are read again, and a replay.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    columns,
    lead::renew,
    lease::Lease,
    status::{Report, Status},
    store::Store,
    target::PgTarget,
    worker::{Attempt, Ended, Worker, WorkerError, store},
};
use crate::{
    database::postgres,
    log::{
        DebeziumConfig, Log, LogError, Offset, Topic,
        debezium::{Known, Order, Sample},
        kafka::debezium::{DebeziumLog, DebeziumTopics, LANES_MAX, Memory, Reads, Table},
    },
    model::{Coverage, DebeziumPosition, Disposition, Plan, Position, TableName, TableSchema, Version},
    observe::{Halt, now_us},
};

const TICK: Duration = Duration::from_millis(200);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often topics are looked for that tables did not have.
const TOPICS_EVERY: Duration = Duration::from_secs(5);
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// Tables without a column that a transform reads are never taken for older than it: nobody would copy them again.
const NEVER: Version = 0;
/// The answer to commands that need the source.
const NO_SOURCE: &str = "this pipeline applies what a connector of Debezium captured, and has no source to read from: ask the connector for an \
                         incremental snapshot of the rows instead (its rows count as newest, and clear dead letters)";

/// The lanes of the pipeline, in the order of their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Lanes {
    topics: Vec<(String, u32)>,
}

impl Lanes {
    /// The first lane of a topic, which gets its lanes if it has none yet.
    ///
    /// # Errors
    /// When the topic has another number of partitions than before.
    fn first(&mut self, topic: &str, partitions: u32) -> Result<u32, LogError> {
        let mut first = 0;
        for (known, lanes) in &self.topics {
            if known == topic {
                let changed =
                    || LogError::DebeziumPartitions { topic: topic.to_owned(), before: *lanes, now: partitions };
                return if *lanes == partitions { Ok(first) } else { Err(changed()) };
            }
            first += lanes;
        }
        if first.saturating_add(partitions) > LANES_MAX {
            return Err(LogError::DebeziumLanes { lanes: first.saturating_add(partitions), max: LANES_MAX });
        }
        self.topics.push((topic.to_owned(), partitions));
        Ok(first)
    }
}

/// What the target has of the lanes.
struct Lines {
    store: Arc<Store>,
    epoch: String,
    /// New lanes begin above every version that the target has.
    clock_min: Version,
}

#[async_trait]
impl Memory for Lines {
    async fn recall(&self, lane: u32, from: Offset) -> Result<Order, LogError> {
        let stored = self.store.lane_seen(lane, &self.epoch).await;
        let stored =
            stored.map_err(|error| LogError::Other(format!("the target's offsets cannot be read: {error}")))?;
        match stored {
            Some((next, Some(Position::Debezium(seen)), clock)) if next == from && from > 0 => {
                Ok(Order { clock, seen })
            }
            Some((next, _, clock)) if next == from && from == 0 => {
                Ok(Order { clock: clock.max(self.clock_min), seen: DebeziumPosition::default() })
            }
            Some((next, _, _)) => {
                Err(LogError::Other(format!("lane {lane} is at {next} in the target, not at {from}")))
            }
            None => Err(LogError::Other(format!("lane {lane} is not in the target"))),
        }
    }
}

/// Everything that is applied, until another table shows itself.
struct Planned {
    log: Arc<DebeziumLog>,
    target: Arc<PgTarget>,
    lanes: Vec<u32>,
    tables: BTreeSet<String>,
}

/// Why the lanes are stopped.
enum Over {
    /// There is another table.
    More(String),
    Ended(Ended),
}

struct Applier<'a> {
    worker: &'a Worker,
    config: DebeziumConfig,
    topics: DebeziumTopics,
    lease: Lease,
    until_synced: bool,
    show: fn(&Status),
}

/// Applies a connector's topics until the worker is stopped or synced.
pub(super) async fn run(
    worker: &Worker,
    config: DebeziumConfig,
    until_synced: bool,
    show: fn(&Status),
) -> Result<Ended, WorkerError> {
    let topics = DebeziumTopics::new(worker.kafka_settings()?, config.clone())?;
    let leases = store(&worker.config)?;
    let Some(lease) = worker.patiently("lease", || worker.take_lease(&leases)).await? else {
        return Ok(Ended::Stopped);
    };
    let work = worker.stop.child_token();
    let renewing = renew(Arc::clone(&leases), worker.config.name.clone(), lease, work.clone());
    let mut renewing = tokio::spawn(renewing);
    let applier = Applier { worker, config, topics, lease, until_synced, show };
    let ended = tokio::select! {
        ended = applier.run(&work) => ended,
        lost = &mut renewing => match lost {
            Ok(true) => Err(WorkerError::LeaseLost(worker.config.name.clone())),
            Ok(false) | Err(_) => Ok(Ended::Stopped),
        },
    };
    work.cancel();
    worker.release_lease(&leases, lease).await;
    ended
}

impl Applier<'_> {
    async fn run(&self, stop: &CancellationToken) -> Result<Ended, WorkerError> {
        if let Some((report, _)) = self.worker.store.last_report().await? {
            for (table, changes) in report.applied {
                self.worker.frontier.count_changes(&table, changes);
            }
        }
        let Some(mut planned) = self.worker.patiently("topics", || self.plan()).await? else {
            return Ok(Ended::Stopped);
        };
        let mut ends = None;
        if self.until_synced {
            ends = self.worker.patiently("topics", || async { Ok(planned.log.look_at_ends().await?) }).await?;
        }
        loop {
            let lanes_stop = stop.child_token();
            let mut loops = self.start(&planned, &lanes_stop);
            let over = self.look_after(&planned, ends.as_ref(), stop).await;
            lanes_stop.cancel();
            while loops.join_next().await.is_some() {}
            let table = match over {
                Over::Ended(ended) => return Ok(ended),
                Over::More(table) => table,
            };
            tracing::info!(table, "there is another table; the plans are made again");
            match self.worker.patiently("topics", || self.plan()).await {
                Ok(Some(again)) => planned = again,
                Ok(None) => return Ok(Ended::Stopped),
                Err(error) => {
                    let remedy =
                        format!("correct that for table `{table}` and restart the worker; the other tables go on");
                    self.worker.halts.halt("topics", Halt { reason: error.to_string(), remedy });
                    planned.tables.insert(table);
                }
            }
        }
    }

    /// Which of the wanted tables have topics, with their partitions.
    async fn topics(&self) -> Result<BTreeMap<String, u32>, LogError> {
        let mut found = self.topics.tables().await?;
        if let Some(wanted) = &self.worker.config.source.tables {
            found.retain(|table, _| wanted.contains(table));
        }
        Ok(found)
    }

    /// Looks at the tables' records, checks the transforms against them, and numbers the lanes.
    async fn plan(&self) -> Result<Planned, Attempt> {
        let worker = self.worker;
        let (mut samples, mut silent) = (Vec::new(), Vec::new());
        for (table, partitions) in self.topics().await? {
            match self.topics.sample(&table, partitions).await? {
                Some(sample) => samples.push((table, partitions, sample)),
                None => silent.push(table),
            }
        }
        if samples.is_empty() {
            let topics = self.config.topic("<table>");
            return Err(Attempt::Later(format!(
                "no topic {topics} holds a change yet; start the connector, or correct [log.debezium] topics"
            )));
        }
        if !silent.is_empty() {
            tracing::info!(tables = ?silent, "topics without a change yet; they are taken in with their first one");
        }
        let known = columns::known(&worker.config, samples.iter().map(|(_, _, sample)| sample)).await?;
        let tables: Vec<TableSchema> =
            samples.iter().zip(&known).map(|((_, _, sample), known)| sample.schema(known)).collect();
        let target = PgTarget::prepare(worker, self.lease.epoch, &tables, NEVER).await?;
        let names: Vec<String> = tables.iter().map(|schema| schema.table.table.clone()).collect();
        worker.store.register_tables(&names).await?;
        worker.store.follow_only().await?;
        self.lay_lanes(Arc::new(target), samples.into_iter().zip(known)).await
    }

    async fn lay_lanes(
        &self,
        target: Arc<PgTarget>,
        samples: impl Iterator<Item = ((String, u32, Sample), Known)>,
    ) -> Result<Planned, Attempt> {
        let worker = self.worker;
        let epoch = format!("debezium {}", self.config.topics);
        let noted = worker.store.note(&epoch).await?;
        let before: Lanes = noted.and_then(|noted| serde_json::from_str(&noted).ok()).unwrap_or_default();
        let (mut lanes, mut tables, mut numbers, mut names) = (before.clone(), Vec::new(), Vec::new(), BTreeSet::new());
        for ((table, partitions, sample), known) in samples {
            let topic = self.config.topic(&table);
            let first = lanes.first(&topic, partitions)?;
            numbers.extend(first..first + partitions);
            let reads = reads_of(&target.plans(), &sample.table);
            tables.push((first, Table { topic, partitions, sample, known, reads }));
            names.insert(table);
        }
        if lanes != before {
            let json = serde_json::to_string(&lanes).map_err(|error| LogError::Other(error.to_string()))?;
            worker.store.set_note(&epoch, &json).await?;
        }
        worker.frontier.use_partitions(&numbers);
        let begun = worker.store.next_offsets(&epoch).await?;
        let is_begun = |lane: &u32| begun.iter().any(|(_, begun, next)| begun == lane && *next > 0);
        // Lanes that are begun have their clocks.
        let clock_min = if numbers.iter().all(is_begun) { 0 } else { target.highest_version().await? };
        let memory = Lines { store: Arc::clone(&worker.store), epoch: epoch.clone(), clock_min };
        let log = self.topics.log(epoch, tables, Arc::new(memory));
        Ok(Planned { log: Arc::new(log), target, lanes: numbers, tables: names })
    }

    fn start(&self, planned: &Planned, stop: &CancellationToken) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        let log: Arc<dyn Log> = Arc::clone(&planned.log) as _;
        for lane in &planned.lanes {
            let apply_loop = self.worker.apply_loop(&log, &planned.target, Topic::Changes, *lane);
            loops.spawn(apply_loop.run(stop.clone()));
        }
        loops
    }

    /// Reports, and looks for tables, until there is a reason to stop the lanes.
    async fn look_after(&self, planned: &Planned, ends: Option<&Vec<(u32, Offset)>>, stop: &CancellationToken) -> Over {
        let worker = self.worker;
        let (mut reported, mut looked, mut forgot) = (None::<Instant>, Instant::now(), Instant::now());
        loop {
            tokio::select! { () = stop.cancelled() => return Over::Ended(Ended::Stopped), () = tokio::time::sleep(TICK) => {} }
            if reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
                reported = Some(Instant::now());
                match self.report(planned, ends).await {
                    Ok(Some(ended)) => return Over::Ended(ended),
                    Ok(None) => worker.halts.well("state"),
                    Err(why) => worker.halts.trouble("state", &why),
                }
            }
            if looked.elapsed() >= TOPICS_EVERY {
                looked = Instant::now();
                match self.more_tables(planned).await {
                    Ok(Some(table)) => return Over::More(table),
                    Ok(None) => worker.halts.well("topics"),
                    Err(error) if error.disposition() == Disposition::Retry => {
                        worker.halts.trouble("topics", &error.to_string());
                    }
                    Err(error) => {
                        let remedy = "restart the worker when that is done".into();
                        worker.halts.halt("topics", Halt { reason: error.to_string(), remedy });
                    }
                }
            }
            if forgot.elapsed() >= FORGET_EVERY {
                forgot = Instant::now();
                self.forget_tombstones(planned).await;
            }
        }
    }

    async fn more_tables(&self, planned: &Planned) -> Result<Option<String>, LogError> {
        for (table, partitions) in self.topics().await?.iter().filter(|(table, _)| !planned.tables.contains(*table)) {
            if self.topics.sample(table, *partitions).await?.is_some() {
                return Ok(Some(table.clone()));
            }
        }
        Ok(None)
    }

    /// Writes the report, answers requests, and tells whether that was the end.
    async fn report(&self, planned: &Planned, ends: Option<&Vec<(u32, Offset)>>) -> Result<Option<Ended>, String> {
        let Worker { store, frontier, halts, .. } = self.worker;
        let asked_us = now_us();
        let now_ends = planned.log.look_at_ends().await.map_err(|error| error.to_string())?;
        let reached = |ends: &[(u32, Offset)]| ends.iter().all(|(lane, end)| frontier.changes_offset(*lane) >= *end);
        let caught_up: Vec<u32> = now_ends.iter().filter(|end| reached(&[**end])).map(|(lane, _)| *lane).collect();
        for lane in &caught_up {
            frontier.applied_changes(*lane, 0, None, Some(asked_us));
        }
        let refuse = |error: postgres::PgError| error.to_string();
        store.lanes_are_fresh(&caught_up, asked_us).await.map_err(refuse)?;
        let halted = halts.first();
        let report = Report {
            caught_up: caught_up.len() == now_ends.len() && halted.is_none(),
            halted: halted.clone(),
            retrying: halts.troubles(),
            applied: frontier.changes(),
            lease_epoch: self.lease.epoch,
            ..Report::default()
        };
        store.report(&report).await.map_err(refuse)?;
        for request in store.open_requests().await.map_err(refuse)? {
            store.answer(request.id, "refused", NO_SOURCE).await.map_err(refuse)?;
        }
        let status = store.status().await.map_err(refuse)?;
        (self.show)(&status);
        let Some(ends) = ends else { return Ok(None) };
        Ok(match (halted, status.dead_letters) {
            (Some(halt), _) => Some(Ended::Halted(halt)),
            (None, _) if !reached(ends) || status.waiting > 0 => None,
            (None, 0) => Some(Ended::Synced),
            (None, count) => Some(Ended::SyncedWithDeadLetters(count)),
        })
    }

    /// Every later change of a lane has a version above the lane's clock; only what waits may be older.
    async fn forget_tombstones(&self, planned: &Planned) {
        let Worker { store, frontier, .. } = self.worker;
        let idle = store.status().await.is_ok_and(|status| status.waiting == 0 && status.dead_letters == 0);
        let applied = frontier.applied_clock();
        if idle
            && applied > 0
            && let Err(error) = planned.target.forget_tombstones(applied).await
        {
            tracing::warn!(%error, "old tombstones were not removed; it will be tried again");
        }
    }
}

/// What transforms read of a table.
pub(super) fn reads_of(plans: &[Plan], table: &TableName) -> Reads {
    let mut reads = Reads::default();
    for plan in plans.iter().filter(|plan| plan.source.table == *table) {
        reads.columns.extend(plan.reads.iter().cloned());
        reads.before |= plan.coverage != Coverage::Total;
    }
    reads
}

impl From<LogError> for Attempt {
    fn from(error: LogError) -> Self {
        match error.disposition() {
            Disposition::Retry => Attempt::Later(error.to_string()),
            Disposition::DeadLetter | Disposition::Halt => Attempt::Hopeless(WorkerError::Log(error)),
        }
    }
}

impl Store {
    /// Where a lane goes on, what was seen of it, and its clock; none if it was never claimed under this epoch.
    async fn lane_seen(
        &self,
        lane: u32,
        epoch: &str,
    ) -> Result<Option<(Offset, Option<Position>, Version)>, postgres::PgError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt(
                "SELECT next_offset, position::text, clock FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic = 'changes' AND part = $2 AND log_epoch = $3",
                &[&self.pipeline, &lane.cast_signed(), &epoch],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let position: Option<String> = row.get(1);
        let position = position.map(|text| serde_json::from_str(&text)).transpose();
        let position = position
            .map_err(|error| postgres::PgError::Protocol(format!("a stored position cannot be read: {error}")))?;
        Ok(Some((row.get::<_, i64>(0).cast_unsigned(), position, row.get(2))))
    }

    /// Says that these lanes have all that their topics held at a time.
    async fn lanes_are_fresh(&self, lanes: &[u32], at_us: i64) -> Result<(), postgres::PgError> {
        let lanes: Vec<i32> = lanes.iter().map(|lane| lane.cast_signed()).collect();
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "UPDATE cutover.offsets SET newest_commit_us = greatest(newest_commit_us, $3) \
                 WHERE pipeline = $1 AND topic = 'changes' AND part = ANY($2)",
                &[&self.pipeline, &lanes, &at_us],
            )
            .await?;
        Ok(())
    }

    /// No table is copied: rows of a snapshot are the connector's to bring.
    async fn follow_only(&self) -> Result<(), postgres::PgError> {
        let session = self.session().await?;
        let follow = "UPDATE cutover.tables SET state = 'copied' WHERE pipeline = $1 AND state <> 'copied'";
        session.client()?.execute(follow, &[&self.pipeline]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_keep_their_numbers_and_topics_their_partitions() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.first("a", 2).ok(), Some(0));
        assert_eq!(lanes.first("b", 1).ok(), Some(2));
        assert_eq!(lanes.first("c", 3).ok(), Some(3));
        assert_eq!(lanes.first("b", 1).ok(), Some(2));
        assert!(matches!(lanes.first("a", 3), Err(LogError::DebeziumPartitions { before: 2, now: 3, .. })));
        assert!(matches!(lanes.first("d", LANES_MAX), Err(LogError::DebeziumLanes { .. })));
    }
}
