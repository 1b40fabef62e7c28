//! The PostgreSQL sink.
//!
//! What enters is a [`Batch`] of a lane; what leaves is one target transaction: the lane's lock, the offset, dead facts
//! (children before parents), live facts (parents before children). The invariant: for every target key the
//! row or tombstone with the highest version stays, in whatever order, however often and from however many workers facts come.
//! The common case sends everything at once; if a row fails, the batch starts again carefully and finds it.
//! Deliberately absent: retries of the world's failures. The caller retries, from the stored offset.

mod careful;
mod config;
mod failure;
mod held;
mod input;
mod lane;
mod letters;
mod merged;
mod pending;
mod sets;
mod statement;
mod steps;
mod store;
mod suspects;
mod sweep;
mod tombstones;
mod write;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use tokio_postgres::Statement;

pub use config::ApplyConfig;
pub use lane::{Claim, raise_fence};
pub use statement::Builder;
pub use sweep::{Swept, left_statement, sweep, sweep_statement};
pub use tombstones::{
    collect as collect_tombstones, highest_version, prepare as prepare_target, table as tombstone_table,
};

use self::{failure::Failure, held::Held, input::Bindings};
use super::{Applied, ApplyError, Batch, Counts, Pass, Sink};
use crate::{
    database::postgres::{Options, PgError, Session, Target, catalog},
    log::Topic,
    model::{Plan, TableSchema, Version},
};

/// How often a batch starts over because another lane set rows aside meanwhile.
const RELOADS_MAX: u32 = 5;

/// Rows that wait are tried again after this many batches; more often when nothing else comes.
const RETRY_BATCHES: u32 = 16;

/// What a sink works with.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    pub target: Target,
    pub session: Options,
    pub pipeline: String,
    pub topic: Topic,
    pub partition: u32,
    /// The lease's epoch under which this worker writes.
    pub lease_epoch: i64,
    /// Move the lane's offset with each batch. Several snapshot writers of one lane leave it alone: the caller then moves it
    /// with an empty batch, through a sink that has this on, once everything before it is applied.
    pub check_offset: bool,
    pub config: ApplyConfig,
}

/// Writes one lane to PostgreSQL, over a connection of its own.
#[derive(Debug)]
pub struct PostgresSink {
    options: SinkOptions,
    plans: Arc<[Plan]>,
    /// Each plan's place in the order of parents before children.
    ranks: Vec<usize>,
    session: Session,
    /// By text, for this session.
    statements: HashMap<String, Statement>,
    /// By binding and part, for this session.
    writes: HashMap<(usize, write::Part), Statement>,
    bindings: Bindings,
    schemas: HashMap<u64, Arc<TableSchema>>,
    held: Held,
    /// The pass of a replay, if this is not the live stream.
    replay: Option<Pass>,
    /// Batches since waiting rows were last tried.
    since_retry: u32,
    /// The open transaction's rows so far.
    open: Option<u64>,
    /// This batch has begun: a transaction, or its part of the open one.
    begun: bool,
    /// A call has not come to its end: the connection may be inside a transaction.
    unfinished: bool,
}

impl PostgresSink {
    /// Connects. The `cutover` schema and [`prepare_target`] come first.
    pub async fn open(options: SinkOptions, plans: Arc<[Plan]>) -> Result<Self, ApplyError> {
        let session = Session::open(&options.target, &options.session).await.map_err(stop)?;
        let order = catalog::order(plans.iter().map(|plan| plan.target.as_ref()));
        let rank = |plan: &Plan| order.parents_first.iter().position(|table| *table == plan.target.name);
        let ranks = plans.iter().map(|plan| rank(plan).unwrap_or_default()).collect();
        let schemas = plans.iter().map(|plan| (plan.source.id(), plan.source.clone())).collect();
        let held = Held::load(&session.client, &options.pipeline).await.map_err(stop)?;
        Ok(PostgresSink {
            options,
            plans,
            ranks,
            session,
            statements: HashMap::new(),
            writes: HashMap::new(),
            bindings: Bindings::default(),
            schemas,
            held,
            replay: None,
            since_retry: 0,
            open: None,
            begun: false,
            unfinished: false,
        })
    }

    /// Says as of which version the plans know the source's tables. Without it no event is older than they are.
    #[must_use]
    pub fn planned_at(mut self, version: Version) -> Self {
        self.bindings.planned_at = version;
        self
    }

    /// The same sink for a pass of a replay: with an offset of its own, and the lock of the live lane. Rows that cannot be
    /// applied are noted, as no dead letters; the pass of deletes writes nothing else.
    pub fn replaying(mut self, pass: Pass) -> Self {
        self.replay = Some(pass);
        self
    }

    /// What the lane's offsets are stored under.
    fn lane_name(&self) -> &'static str {
        self.replay.map_or(self.options.topic.suffix(), Pass::lane)
    }

    /// Whether foreign keys and ordinary triggers rest in this sink's session.
    pub fn replica(&self) -> bool {
        self.session.replica
    }

    /// A connection that is whole and in no transaction but the open one.
    async fn ready(&mut self) -> Result<(), ApplyError> {
        if self.session.client.is_closed() {
            self.open = None;
            self.begun = false;
            self.statements.clear();
            self.writes.clear();
            self.session = Session::open(&self.options.target, &self.options.session).await.map_err(stop)?;
            self.held = Held::load(&self.session.client, &self.options.pipeline).await.map_err(stop)?;
        } else if self.unfinished {
            self.roll_back().await?;
        }
        self.unfinished = true;
        Ok(())
    }

    /// Leaves the connection as the next call wants it.
    async fn finish(&mut self, result: Result<Applied, ApplyError>) -> Result<Applied, ApplyError> {
        match &result {
            Ok(_) => self.unfinished = false,
            Err(_) if self.session.client.is_closed() => self.open = None,
            Err(_) => self.roll_back().await?,
        }
        result
    }

    async fn roll_back(&mut self) -> Result<(), ApplyError> {
        self.open = None;
        self.begun = false;
        self.session.client.batch_execute("ROLLBACK").await.map_err(|error| stop(error.into()))?;
        self.held = Held::load(&self.session.client, &self.options.pipeline).await.map_err(stop)?;
        self.unfinished = false;
        Ok(())
    }

    /// Once at full speed; then, if a row is in the way, carefully.
    async fn write_batch(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        let (mut careful, mut reloads) = (false, 0);
        loop {
            let mut items = input::items(&batch.events);
            let mut touched = self.held.fence(&mut items);
            if self.replay == Some(Pass::Deletes) {
                // A delete clears nothing before the rest of its event is applied.
                touched.clear();
            }
            let older = held::records(&self.session.client, &self.options.pipeline, &touched, &mut self.schemas);
            let older = older.await.map_err(stop)?;
            held::attach(&mut items, &older);
            let written = if careful {
                self.carefully(batch, items, &touched).await
            } else {
                self.fast(batch, &items, &touched).await
            };
            let failure = match written {
                Ok(applied) => match self.conclude(batch).await {
                    Ok(()) => return Ok(applied),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            match failure {
                Failure::Reload if reloads < RELOADS_MAX => reloads += 1,
                Failure::Rows(refusal) if !careful => {
                    tracing::debug!(sqlstate = refusal.sqlstate, "a row was refused: looking for it");
                    careful = true;
                }
                Failure::Clash if !careful => careful = true,
                Failure::Stop(error) => return Err(error),
                Failure::Rows(refusal) => return Err(stop(PgError::Refused(refusal))),
                Failure::Clash => return Err(clash()),
                Failure::Reload => {
                    let message = "other lanes keep setting rows aside".to_owned();
                    return Err(ApplyError::Transient { sqlstate: String::new(), message });
                }
            }
            self.undo().await?;
            self.held = Held::load(&self.session.client, &self.options.pipeline).await.map_err(stop)?;
        }
    }

    /// Commits, unless the source's transaction goes on in the next batch.
    async fn conclude(&mut self, batch: &Batch) -> Result<(), Failure> {
        let rows = self.open.unwrap_or_default() + batch.events.len() as u64;
        self.begun = false;
        if !batch.complete && rows < self.options.config.transaction_rows_max {
            if self.open.replace(rows).is_some() {
                self.session.client.batch_execute("RELEASE cutover_part").await.map_err(PgError::from)?;
            }
            return Ok(());
        }
        if !batch.complete {
            tracing::warn!(
                rows,
                "a source transaction is larger than [apply] transaction_rows_max: readers of the target see it in parts"
            );
        }
        self.open = None;
        self.session.client.batch_execute("COMMIT").await.map_err(PgError::from)?;
        Ok(())
    }

    /// Takes back what this batch wrote: its own part of an open transaction, or the transaction.
    async fn undo(&mut self) -> Result<(), ApplyError> {
        if !std::mem::take(&mut self.begun) {
            return Ok(());
        }
        let undo = match self.open {
            Some(_) => "ROLLBACK TO cutover_part; RELEASE cutover_part",
            None => "ROLLBACK",
        };
        self.session.client.batch_execute(undo).await.map_err(|error| stop(error.into()))
    }

    /// Whether a row of this partition waits. Other sinks set rows aside too, so that only the target knows.
    async fn anything_waits(&mut self) -> Result<bool, PgError> {
        let statement = self.statement(held::WAITS).await?;
        let part = i32::try_from(self.options.partition).unwrap_or(i32::MAX);
        Ok(self.session.client.query_one(&statement, &[&self.options.pipeline, &part]).await?.try_get(0)?)
    }

    /// The prepared form of a statement of ours.
    async fn statement(&mut self, text: &str) -> Result<Statement, PgError> {
        if let Some(known) = self.statements.get(text) {
            return Ok(known.clone());
        }
        let statement = self.session.client.prepare(text).await?;
        self.statements.insert(text.to_owned(), statement.clone());
        Ok(statement)
    }

    /// A target table as metrics name it: as its transform's file does, without the schema that unqualified names mean.
    fn name(&self, plan: usize) -> String {
        let Some(plan) = self.plans.get(plan) else { return String::new() };
        let name = &plan.target.name;
        if self.options.session.schemas.first() == Some(&name.schema) { name.table.clone() } else { name.to_string() }
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn apply(&mut self, batch: Batch) -> Result<Applied, ApplyError> {
        self.ready().await?;
        let result = self.write_batch(&batch).await;
        let mut applied = self.finish(result).await?;
        self.since_retry += 1;
        if self.since_retry >= RETRY_BATCHES && self.options.topic == Topic::Changes && self.replay.is_none() {
            let retried = self.retry_waiting().await?;
            retried.tables.into_iter().for_each(|(table, counts)| add(&mut applied.tables, table, counts));
            applied.dead_letters += retried.dead_letters;
            applied.waiting = retried.waiting;
        }
        Ok(applied)
    }

    async fn abandon(&mut self) -> Result<(), ApplyError> {
        if self.session.client.is_closed() {
            self.open = None;
            return Ok(());
        }
        if self.open.is_some() || self.unfinished { self.roll_back().await } else { Ok(()) }
    }

    async fn retry_waiting(&mut self) -> Result<Applied, ApplyError> {
        if self.open.is_some() {
            return Ok(Applied { waiting: self.held.waiting.len() as u64, ..Applied::default() });
        }
        self.since_retry = 0;
        self.ready().await?;
        let result = match self.anything_waits().await {
            Ok(true) => self.try_waiting().await,
            Ok(false) => Ok(Applied::default()),
            Err(error) => Err(stop(error)),
        };
        self.finish(result).await
    }
}

/// An error that no row is to blame for.
fn stop(error: PgError) -> ApplyError {
    match Failure::from(error) {
        Failure::Stop(error) => error,
        Failure::Rows(refusal) => ApplyError::Halt {
            reason: format!("the target refused cutover's own tables: {refusal}"),
            remedy: "let nothing else write to the schema `cutover`, and start again".into(),
        },
        Failure::Clash | Failure::Reload => clash(),
    }
}

fn clash() -> ApplyError {
    ApplyError::Halt {
        reason: "the target met one key twice in one statement".into(),
        remedy: "make the target's key depend on the source's key alone, one to one".into(),
    }
}

/// Adds counts up by table.
fn add(tables: &mut BTreeMap<String, Counts>, table: String, counts: Counts) {
    let sum = tables.entry(table).or_default();
    sum.inserted += counts.inserted;
    sum.updated += counts.updated;
    sum.deleted += counts.deleted;
    sum.stale += counts.stale;
}
