//! A pipeline whose changes a connector of Debezium captures, as its leader has it: it applies, and does nothing else.
//!
//! ```text
//! lease ── topics ──► lanes, one apply loop each ──► target
//!            └ looked at again: tables that show themselves later are taken in
//! ```
//!
//! The lanes' numbers are kept in the target, since offsets are stored under them. Deliberately absent: a connection to
//! the source, and with it copies, verification, dead letters that are read again, and a replay.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    error::{Attempt, WorkerError},
    leader::{Charge, End, Leader, Rounds},
    leadership::renew,
    parts::kafka_settings,
    worker::{Ended, Worker},
};
use crate::{
    database::postgres::type_names,
    log::{
        DebeziumConfig, LogError, Offset, Topic,
        debezium::{Known, Order, Sample},
        kafka::debezium::{DebeziumLog, DebeziumTopics, LANES_MAX, Memory, Reads, Table},
    },
    model::{Coverage, DebeziumPosition, Disposition, Plan, Position, Problem, TableName, TableSchema, Version},
    pipeline::flow::ApplyHalf,
    state::{
        StateError, Store,
        lease::Lease,
        requests::{Request, RequestState},
        status::Status,
    },
    target::{Target, TargetError},
};

/// How often topics are looked for that tables did not have.
const TOPICS_EVERY: Duration = Duration::from_secs(5);
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
    apply: ApplyHalf,
    lanes: Vec<u32>,
    tables: BTreeSet<String>,
}

/// The pipeline of a connector, as its leader has it.
struct Connector {
    worker: Worker,
    config: DebeziumConfig,
    topics: DebeziumTopics,
    lease: Lease,
    planned: Planned,
    loops: JoinSet<()>,
    loops_stop: CancellationToken,
    /// When topics are looked for that tables did not have.
    looks: Rounds,
    /// Where the topics ended when a worker that is to run until synced was started.
    ends: Option<Vec<(u32, Offset)>>,
}

/// Applies a connector's topics until the worker is stopped or synced.
pub(super) async fn run(
    worker: &Worker,
    config: DebeziumConfig,
    until_synced: bool,
    show: fn(&Status),
) -> Result<Ended, WorkerError> {
    let topics = DebeziumTopics::new(kafka_settings(&worker.config)?, config.clone())?;
    let leases = worker.parts.store()?;
    let Some(lease) = worker.patiently("lease", || worker.take_lease(&leases)).await? else {
        return Ok(Ended::Stopped);
    };
    let work = worker.stop.child_token();
    let mut renewing = JoinSet::new();
    renewing.spawn(renew(Arc::clone(&leases), lease));
    let ended = tokio::select! {
        biased;
        ended = lead(worker, config, topics, lease, (until_synced, show), &work) => ended,
        _lost = renewing.join_next() => Err(WorkerError::LeaseLost(worker.config.name.clone())),
    };
    work.cancel();
    worker.release_lease(&leases, lease).await;
    ended
}

async fn lead(
    worker: &Worker,
    config: DebeziumConfig,
    topics: DebeziumTopics,
    lease: Lease,
    (until_synced, show): (bool, fn(&Status)),
    stop: &CancellationToken,
) -> Result<Ended, WorkerError> {
    let Some(mut leader) = Leader::begin(worker, lease.epoch, show, stop).await? else { return Ok(Ended::Stopped) };
    let planned = worker.patiently("topics", || plan(worker, &config, &topics, lease)).await?;
    let Some(planned) = planned else { return Ok(Ended::Stopped) };
    let ends = worker
        .patiently("topics", || async { Ok(if until_synced { Some(planned.log.read_ends().await?) } else { None }) });
    let Some(ends) = ends.await? else { return Ok(Ended::Stopped) };
    let mut connector = Connector {
        worker: worker.clone(),
        config,
        topics,
        lease,
        planned,
        loops: JoinSet::new(),
        loops_stop: CancellationToken::new(),
        looks: Rounds::later(TOPICS_EVERY),
        ends,
    };
    connector.start(stop);
    let ended = leader.lead(&mut connector, stop).await;
    stop.cancel();
    connector.stop().await;
    leader.stop().await;
    ended
}

/// Which of the wanted tables have topics, with their partitions.
async fn wanted(worker: &Worker, topics: &DebeziumTopics) -> Result<BTreeMap<String, u32>, LogError> {
    let mut found = topics.tables().await?;
    if let Some(wanted) = &worker.config.source.tables {
        found.retain(|table, _| wanted.contains(table));
    }
    Ok(found)
}

/// Looks at the tables' records, checks the transforms against them, and numbers the lanes.
async fn plan(
    worker: &Worker,
    config: &DebeziumConfig,
    topics: &DebeziumTopics,
    lease: Lease,
) -> Result<Planned, Attempt> {
    let (mut samples, mut silent) = (Vec::new(), Vec::new());
    for (table, partitions) in wanted(worker, topics).await? {
        match topics.sample(&table, partitions).await? {
            Some(sample) => samples.push((table, partitions, sample)),
            None => silent.push(table),
        }
    }
    if samples.is_empty() {
        let topics = config.topic("<table>");
        return Err(Attempt::Later(format!(
            "no topic {topics} holds a change yet; start the connector, or correct [log.debezium] topics"
        )));
    }
    if !silent.is_empty() {
        tracing::info!(tables = ?silent, "topics without a change yet; they are taken in with their first one");
    }
    let target = worker.parts.target(Arc::clone(&worker.store), lease.epoch)?;
    let mut known = Vec::new();
    for (_, _, sample) in &samples {
        known.push(known_types(config, &*target, &sample.table.table).await?);
    }
    let tables: Vec<TableSchema> =
        samples.iter().zip(&known).map(|((_, _, sample), known)| sample.schema(known)).collect();
    target.prepare(&tables, NEVER).await?;
    let names: Vec<String> = tables.iter().map(|schema| schema.table.table.clone()).collect();
    worker.store.register_tables(&names).await?;
    worker.store.follow_only().await?;
    lay_lanes(worker, config, topics, target, samples.into_iter().zip(known)).await
}

/// The types of a table's columns: what the target's table of the same name has, or what is declared instead.
pub(super) async fn known_types(
    config: &DebeziumConfig,
    target: &dyn Target,
    table: &str,
) -> Result<Known, TargetError> {
    let mut known: Known = target.column_types(table).await?.into_iter().collect();
    for (column, sql) in config.columns.get(table).into_iter().flatten() {
        known.insert(column.clone(), type_names::named(sql));
    }
    Ok(known)
}

async fn lay_lanes(
    worker: &Worker,
    config: &DebeziumConfig,
    topics: &DebeziumTopics,
    target: Arc<dyn Target>,
    samples: impl Iterator<Item = ((String, u32, Sample), Known)>,
) -> Result<Planned, Attempt> {
    let epoch = format!("debezium {}", config.topics);
    let noted = worker.store.connector_lanes(&epoch).await?;
    let before: Lanes = noted.and_then(|noted| serde_json::from_str(&noted).ok()).unwrap_or_default();
    let (mut lanes, mut tables, mut numbers, mut names) = (before.clone(), Vec::new(), Vec::new(), BTreeSet::new());
    for ((table, partitions, sample), known) in samples {
        let topic = config.topic(&table);
        let first = lanes.first(&topic, partitions)?;
        numbers.extend(first..first + partitions);
        let reads = reads_of(&target.plans(), &sample.table);
        tables.push((first, Table { topic, partitions, sample, known, reads }));
        names.insert(table);
    }
    if lanes != before {
        let json = serde_json::to_string(&lanes).map_err(|error| LogError::Other(error.to_string()))?;
        worker.store.set_connector_lanes(&epoch, &json).await?;
    }
    worker.frontier.use_partitions(&numbers);
    let begun = worker.store.next_offsets(&epoch).await?;
    let is_begun = |lane: &u32| begun.iter().any(|(_, begun, next)| begun == lane && *next > 0);
    // Lanes that are begun have their clocks.
    let clock_min = if numbers.iter().all(is_begun) { 0 } else { target.highest_version().await? };
    let memory = Lines { store: Arc::clone(&worker.store), epoch: epoch.clone(), clock_min };
    let log = Arc::new(topics.log(epoch, tables, Arc::new(memory)));
    let apply = worker.apply_half(target, Arc::clone(&log) as _);
    Ok(Planned { log, apply, lanes: numbers, tables: names })
}

impl Connector {
    fn start(&mut self, stop: &CancellationToken) {
        self.loops_stop = stop.child_token();
        for lane in &self.planned.lanes {
            let apply_loop = self.planned.apply.apply_loop(Topic::Changes, *lane);
            self.loops.spawn(apply_loop.run(self.loops_stop.clone()));
        }
    }

    async fn stop(&mut self) {
        self.loops_stop.cancel();
        while self.loops.join_next().await.is_some() {}
    }

    async fn more_tables(&self) -> Result<Option<String>, LogError> {
        for (table, partitions) in wanted(&self.worker, &self.topics).await? {
            if !self.planned.tables.contains(&table) && self.topics.sample(&table, partitions).await?.is_some() {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    /// Makes the plans again with one more table; the others go on in any case.
    async fn take_in(&mut self, table: String, stop: &CancellationToken) {
        self.stop().await;
        tracing::info!(table, "there is another table; the plans are made again");
        let Connector { worker, config, topics, lease, .. } = &*self;
        match worker.patiently("topics", || plan(worker, config, topics, *lease)).await {
            Ok(Some(again)) => self.planned = again,
            Ok(None) => return,
            Err(error) => {
                let remedy = format!("correct that for table `{table}` and restart the worker; the other tables go on");
                self.worker.halts.halt("topics", Problem::new(error.to_string(), remedy));
                self.planned.tables.insert(table);
            }
        }
        self.start(stop);
    }

    fn reached(&self, ends: &[(u32, Offset)]) -> bool {
        ends.iter().all(|(lane, end)| self.worker.frontier.changes_offset(*lane) >= *end)
    }
}

#[async_trait]
impl Charge for Connector {
    async fn look_after(&mut self, stop: &CancellationToken) -> Result<Option<Ended>, WorkerError> {
        if !self.looks.due(false) {
            return Ok(None);
        }
        let halts = Arc::clone(&self.worker.halts);
        match self.more_tables().await {
            Ok(Some(table)) => self.take_in(table, stop).await,
            Ok(None) => halts.well("topics"),
            Err(error) if error.disposition() == Disposition::Retry => halts.trouble("topics", &error.to_string()),
            Err(error) => {
                let remedy = "restart the worker when that is done";
                halts.halt("topics", Problem::new(error.to_string(), remedy));
            }
        }
        Ok(None)
    }

    /// Lanes that have all that their topics held are as fresh as the question.
    async fn caught_up(&mut self) -> Result<bool, WorkerError> {
        let Worker { store, frontier, parts, .. } = &self.worker;
        let asked_us = parts.environment().now_us();
        let ends = self.planned.log.read_ends().await?;
        let fresh: Vec<u32> = ends.iter().filter(|end| self.reached(&[**end])).map(|(lane, _)| *lane).collect();
        for lane in &fresh {
            frontier.applied_changes(*lane, 0, None, Some(asked_us));
        }
        store.lanes_are_fresh(&fresh, asked_us).await?;
        Ok(fresh.len() == ends.len())
    }

    fn end(&self) -> End {
        match &self.ends {
            None => End::Never,
            Some(ends) if self.reached(ends) => End::Reached,
            Some(_) => End::Ahead,
        }
    }

    // Nothing is copied, so nothing comes after the copy.
    async fn settle(&mut self, _status: &Status, _stop: &CancellationToken) -> Result<(), WorkerError> {
        Ok(())
    }

    async fn answer(&mut self, request: &Request) -> Result<(), StateError> {
        self.worker.store.answer(request.id, RequestState::Refused, NO_SOURCE).await
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::clone(&self.planned.apply.target)
    }

    fn has_looked(&self, _seconds: f64) -> bool {
        true
    }

    // There are no replays that it would keep out. Every later change of a lane has a version above the lane's clock;
    // only what waits may be older.
    fn barrier(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::default()
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
