//! The PostgreSQL sink.
//!
//! What enters is a [`Batch`] of a lane; what leaves is one target transaction: the lane's lock, the offset, dead facts
//! (children before parents), live facts (parents before children). The invariant: for every target key the row or
//! tombstone with the highest version stays, in whatever order, however often and from however many workers facts come.
//! The common case sends everything at once; if a row fails, the batch starts again by bisection and finds it.
//! Deliberately absent: retries of the world's failures. The caller retries, from the stored offset.
//!
//! A row goes from `apply` through `batch` (the order of it all), `items` and `parked` (what is known of its source
//! row), `input` (its images as arrays), `lane` (lock and offset), `side_work` (what a batch writes besides rows),
//! `write` and `statement` (the SQL that its plan makes), `steps` (all of it on its way) and `answers`, and is
//! committed in `batch`.

mod answers;
mod batch;
mod bisect;
mod cascades;
mod column;
mod comparer;
mod comparison;
mod config;
mod copied;
mod dead_letters;
mod facts;
mod failure;
mod input;
mod items;
mod lane;
mod look;
mod made;
mod merged;
mod needs;
mod noting;
mod origin;
mod owned;
mod parked;
mod passes;
mod pending;
mod prepared;
mod round_trip;
mod schemas;
mod script;
mod second_look;
mod sets;
mod side_work;
mod statement;
mod steps;
mod stretches;
mod suspects;
mod sweep;
mod target;
mod tombstones;
mod waiting;
mod write;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use tokio_postgres::Statement;

pub use cascades::{children_statement, leads_back};
pub use comparer::PostgresComparer;
pub use comparison::{Comparison, orphans as orphans_statement, seen_table, shared_table};
pub use config::ApplyConfig;
pub use lane::{Claim, raise_fence};
pub(in crate::target) use made::{Made, Span};
pub(in crate::target) use origin::numbers;
pub use statement::Builder;
pub use sweep::{Swept, left_statement, sweep, sweep_statement};
pub use target::PostgresTarget;
pub use tombstones::{
    collect as collect_tombstones, highest_version, prepare as prepare_target, table as tombstone_table,
};

use self::{answers::add, failure::stop, input::Bindings, parked::Parked, statement::Part, waiting::Together};
use super::{Applied, ApplyError, Batch, Pass, Sink, rows::Rows};
use crate::{
    database::postgres::{Address, Options, Session, catalog, mark},
    log::Topic,
    model::{Plan, TableSchema, Version},
};

/// After a batch of more bytes the connection is made anew: its buffers keep the size of the largest that was sent.
const SENT_BYTES_MAX: usize = 8 << 20;
/// Rows that wait are tried again after this many batches; more often when nothing else comes.
const RETRY_BATCHES: u32 = 16;

/// What a sink works with.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    pub target: Address,
    pub session: Options,
    pub pipeline: String,
    pub topic: Topic,
    pub partition: u32,
    /// The lease's epoch under which this worker writes.
    pub lease_epoch: i64,
    /// Move the lane's offset with each batch. Several snapshot writers of one lane leave it alone: the caller then
    /// moves it with an empty batch, through a sink that has this on, once everything before it is applied.
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
    /// Which plans' rows children may wait for.
    parents: Vec<bool>,
    session: Session,
    /// By text, for this session.
    statements: HashMap<String, Statement>,
    /// By binding and part, for this session.
    writes: HashMap<(usize, Part), Statement>,
    bindings: Bindings,
    schemas: HashMap<u64, Arc<TableSchema>>,
    parked: Parked,
    /// The connection that writes the rows, where they are on another server.
    rows: Option<Box<dyn Rows>>,
    /// What a transaction that writes rows says behind its BEGIN.
    mark: String,
    /// The pass of a replay, if this is not the live stream.
    replay: Option<Pass>,
    /// Batches since waiting rows were last tried.
    since_retry: u32,
    /// How many of them the next round tries.
    waiting_round_rows: i64,
    /// When waiting rows of all partitions are tried.
    together: Together,
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
        let parents = plans.iter().map(|plan| needs::is_parent(plan, &plans)).collect();
        let schemas = plans.iter().map(|plan| (plan.source.id(), plan.source.clone())).collect();
        let parked = Parked::load(&session.client, &options.pipeline).await.map_err(stop)?;
        Ok(PostgresSink {
            options,
            plans,
            ranks,
            parents,
            session,
            statements: HashMap::new(),
            writes: HashMap::new(),
            bindings: Bindings::default(),
            schemas,
            parked,
            rows: None,
            mark: String::new(),
            replay: None,
            since_retry: 0,
            waiting_round_rows: waiting::WAITING_ROUND_FIRST,
            together: Together::default(),
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

    /// The same sink for a pass of a replay: with an offset of its own, and the lock of the live lane. Rows that cannot
    /// be applied are noted, as no dead letters; the pass of deletes writes nothing else.
    pub fn replaying(mut self, pass: Pass) -> Self {
        self.replay = Some(pass);
        self
    }

    /// The same sink for a target that is captured as well: whose log says which transactions are this pipeline's.
    #[must_use]
    pub fn marking(mut self) -> Self {
        self.mark = mark::statement(&self.options.pipeline);
        self
    }

    /// The same sink for plans whose rows are on another server.
    pub(crate) fn writing_to(mut self, rows: Box<dyn Rows>) -> Self {
        self.rows = Some(rows);
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

    /// A connection that is whole and in no transaction but the open one. A transaction that was lost between two of
    /// its parts is an error, so that the log is read again from where it begins: the next part alone would commit an
    /// offset behind parts that are not there.
    async fn ready(&mut self) -> Result<(), ApplyError> {
        let closed = self.session.client.is_closed();
        if self.open.is_some() && (closed || self.unfinished) {
            self.abandon().await?;
            return Err(ApplyError::Unreachable("the connection was lost inside a source transaction".into()));
        }
        if closed {
            self.begun = false;
            self.roll_back_elsewhere().await;
            self.statements.clear();
            self.writes.clear();
            self.session = Session::open(&self.options.target, &self.options.session).await.map_err(stop)?;
            self.parked = Parked::load(&self.session.client, &self.options.pipeline).await.map_err(stop)?;
        } else if self.unfinished {
            self.roll_back().await?;
        }
        self.unfinished = true;
        Ok(())
    }

    /// Takes another connection. What is stored stays stored, so that a server that gives none is met by the next call.
    async fn take_another_connection(&mut self) {
        if let Ok(session) = Session::open(&self.options.target, &self.options.session).await {
            self.statements.clear();
            self.writes.clear();
            self.session = session;
        }
    }

    /// Leaves the connection as the next call wants it.
    async fn finish(&mut self, result: Result<Applied, ApplyError>) -> Result<Applied, ApplyError> {
        match &result {
            Ok(_) => self.unfinished = false,
            Err(_) if self.session.client.is_closed() => {
                self.open = None;
                self.roll_back_elsewhere().await;
            }
            Err(_) => self.roll_back().await?,
        }
        result
    }

    /// A target table as metrics name it: as its transform's file does, without the schema that unqualified names mean.
    fn name(&self, plan: usize) -> String {
        let Some(plan) = self.plans.get(plan) else { return String::new() };
        let name = &plan.target.name;
        if self.is_elsewhere() || self.options.session.schemas.first() == Some(&name.schema) {
            name.table.clone()
        } else {
            name.to_string()
        }
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn apply(&mut self, batch: Batch) -> Result<Applied, ApplyError> {
        self.ready().await?;
        let result = self.write_batch(&batch).await;
        let mut applied = self.finish(result).await?;
        let bytes = batch.bytes();
        drop(batch);
        if bytes > SENT_BYTES_MAX && self.open.is_none() {
            self.take_another_connection().await;
        }
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
            self.roll_back_elsewhere().await;
            return Ok(());
        }
        if self.open.is_some() || self.unfinished { self.roll_back().await } else { Ok(()) }
    }

    async fn retry_waiting(&mut self) -> Result<Applied, ApplyError> {
        if self.open.is_some() {
            return Ok(Applied { waiting: self.parked.waiting.len() as u64, ..Applied::default() });
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
