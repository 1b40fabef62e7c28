//! One batch, from its events to the commit.
//!
//! The common case sends everything at once: every statement is on its way before the first has answered. If a row is
//! in the way, the batch starts again by bisection, which finds it.
//!
//! A source transaction that is too large for one batch keeps the target's transaction open; a batch is then a
//! savepoint, so that it can be taken back alone.

use super::{
    PostgresSink,
    answers::{self, Mark},
    failure::{Failure, clash, stop, unsendable},
    input::WriteInput,
    items,
    parked::{self, Parked},
    steps::Steps,
};
use crate::{
    database::postgres::PgError,
    target::{Applied, ApplyError, Batch, BatchEvent, Pass},
};

/// How often a batch starts over because another lane parks rows meanwhile.
const RELOADS_MAX: u32 = 5;
/// How often a batch starts over at once because it met another writer of its rows, on a server where no lock of ours
/// keeps them apart.
const COLLISIONS_MAX: u32 = 5;

impl PostgresSink {
    /// Once at full speed; then, if a row is in the way, by bisection.
    pub(super) async fn write_batch(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        self.fence_elsewhere(batch).await?;
        let (mut bisects, mut reloads, mut collisions) = (false, 0, 0);
        loop {
            let failure = match self.attempt(batch, bisects).await {
                Ok(applied) => return Ok(applied),
                Err(failure) => failure,
            };
            match failure {
                Failure::Reload if reloads < RELOADS_MAX => reloads += 1,
                // The victim of a deadlock elsewhere, or who came second to a key.
                Failure::Stop(ApplyError::Transient { .. })
                    if self.is_elsewhere() && self.begun && self.open.is_none() && collisions < COLLISIONS_MAX =>
                {
                    collisions += 1;
                }
                Failure::Rows(refusal) if !bisects => {
                    tracing::debug!(sqlstate = refusal.sqlstate, "a row was refused: looking for it");
                    bisects = true;
                }
                Failure::Clash | Failure::Unsendable if !bisects => bisects = true,
                Failure::Stop(error) => return Err(error),
                Failure::Rows(refusal) => return Err(stop(PgError::Refused(refusal))),
                Failure::Clash => return Err(clash()),
                Failure::Unsendable => return Err(unsendable()),
                Failure::Reload => return Err(ApplyError::Contended),
            }
            self.undo().await?;
            self.parked = Parked::load(&self.session.client, &self.options.pipeline).await.map_err(stop)?;
        }
    }

    /// Writes and commits the batch, unless its source transaction goes on in the next one.
    async fn attempt(&mut self, batch: &Batch, bisects: bool) -> Result<Applied, Failure> {
        let mut items = items::by_row(&batch.events);
        let mut fenced = self.parked.fence(&mut items);
        if self.replay == Some(Pass::Deletes) {
            // A delete clears nothing before the rest of its event is applied.
            fenced.touched.clear();
        }
        if self.replay.is_some() {
            // It ends with reading such rows again.
            fenced.kept_out.clear();
        }
        let (client, pipeline) = (&self.session.client, &self.options.pipeline);
        let older = parked::events(client, pipeline, &fenced.touched, &mut self.schemas).await;
        let older = older.map_err(|error| Failure::Stop(stop(error)))?;
        parked::attach(&mut items, &older);
        let mut applied = if bisects || !fenced.kept_out.is_empty() {
            self.write_by_bisection(batch, items, &fenced).await?
        } else {
            let plans = self.plans.clone();
            let input = WriteInput::new(&plans, &mut self.bindings, &items).map_err(Failure::Stop)?;
            if !input.unsendable.is_empty() {
                return Err(Failure::Unsendable);
            }
            let mut steps = Steps::default();
            self.queue_prelude(&mut steps, batch, &input).await?;
            self.queue_side_work(&mut steps, batch, &items, &fenced.touched).await?;
            self.queue_writes(&mut steps, &input, false).await?;
            if self.open.is_some() || !batch.complete {
                steps.simple(Mark::Done, "SET CONSTRAINTS ALL IMMEDIATE");
            }
            self.begin(batch).await?;
            let answers = steps.run(&self.session.client).await?;
            let mut tables = self.read_answers(&answers)?;
            self.write_elsewhere(&answers, false, &mut tables).await?;
            self.empty_elsewhere(batch).await?;
            let (held, keys) = self.held_and_freed(&input, &answers)?;
            let freed = answers::freed(&answers)? + self.free(keys).await?;
            self.store_held(&items, &held).await?;
            Applied { tables, freed, ..Applied::default() }
        };
        self.refresh_parked().await?;
        applied.waiting = self.parked.waiting.len() as u64;
        self.conclude(batch).await?;
        Ok(applied)
    }

    /// Begins a transaction, unless one is open. Its answer is waited for: were BEGIN refused (a cancel request that
    /// comes late is enough), what was sent behind it would be done and committed statement by statement, the offset
    /// too.
    pub(super) async fn begin(&mut self, batch: &Batch) -> Result<(), Failure> {
        let row = |event: &BatchEvent| matches!(event, BatchEvent::Row(_) | BatchEvent::Truncate { .. });
        // What has no rows, a heartbeat say, writes nothing elsewhere.
        let writes = self.open.is_some() || batch.events.iter().any(row);
        if let Some(rows) = self.rows.as_mut().filter(|_| writes) {
            rows.begin().await.map_err(Failure::Stop)?;
            if self.open.is_some() {
                rows.savepoint("SAVEPOINT cutover_part").await.map_err(Failure::Stop)?;
            }
        }
        if self.open.is_none() {
            // What it goes on with may have rows, if nothing of it has yet.
            let mark = if writes || !batch.complete { self.mark.as_str() } else { "" };
            self.session.client.batch_execute(&format!("BEGIN{mark}")).await.map_err(PgError::from)?;
        }
        self.begun = true;
        Ok(())
    }

    /// Commits, unless the source's transaction goes on in the next batch.
    pub(super) async fn conclude(&mut self, batch: &Batch) -> Result<(), Failure> {
        let rows = self.open.unwrap_or_default() + batch.events.len() as u64;
        self.begun = false;
        if !batch.complete && rows < self.options.config.transaction_rows_max {
            if self.open.replace(rows).is_some() {
                self.savepoint_elsewhere("RELEASE SAVEPOINT cutover_part").await.map_err(Failure::Stop)?;
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
        self.commit().await
    }

    /// Commits: the rows first, where they are elsewhere. The offset, and what could not be written, follow in one
    /// transaction of PostgreSQL; without it the batch comes again.
    pub(super) async fn commit(&mut self) -> Result<(), Failure> {
        if let Some(rows) = &mut self.rows {
            rows.commit().await.map_err(Failure::Stop)?;
        }
        self.session.client.batch_execute("COMMIT").await.map_err(PgError::from)?;
        Ok(())
    }

    /// Takes back what this batch wrote: its own part of an open transaction, or the transaction.
    pub(super) async fn undo(&mut self) -> Result<(), ApplyError> {
        if !std::mem::take(&mut self.begun) {
            if self.open.is_none() {
                self.roll_back_elsewhere().await;
            }
            return Ok(());
        }
        let undo = match self.open {
            Some(_) => {
                self.savepoint_elsewhere("ROLLBACK TO SAVEPOINT cutover_part").await?;
                "ROLLBACK TO cutover_part; RELEASE cutover_part"
            }
            None => {
                self.roll_back_elsewhere().await;
                "ROLLBACK"
            }
        };
        self.session.client.batch_execute(undo).await.map_err(|error| stop(error.into()))
    }

    /// Takes back everything that is not committed.
    pub(super) async fn roll_back(&mut self) -> Result<(), ApplyError> {
        self.open = None;
        self.begun = false;
        self.roll_back_elsewhere().await;
        self.session.client.batch_execute("ROLLBACK").await.map_err(|error| stop(error.into()))?;
        self.parked = Parked::load(&self.session.client, &self.options.pipeline).await.map_err(stop)?;
        self.unfinished = false;
        Ok(())
    }
}
