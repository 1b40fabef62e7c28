//! One batch, from its events to the commit.
//!
//! The common case sends everything at once: every statement is on its way before the first has answered. If a row is
//! in the way, the batch starts again by bisection, which finds it.

use super::{
    PostgresSink,
    answers::Mark,
    failure::{Failure, clash, stop, unsendable},
    input::WriteInput,
    items,
    parked::{self, Parked},
    steps::Steps,
};
use crate::{
    database::postgres::PgError,
    target::{Applied, ApplyError, Batch, Pass},
};

/// How often a batch starts over because another lane parks rows meanwhile.
const RELOADS_MAX: u32 = 5;

impl PostgresSink {
    /// Once at full speed; then, if a row is in the way, by bisection.
    pub(super) async fn write_batch(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        let (mut bisects, mut reloads) = (false, 0);
        loop {
            let failure = match self.attempt(batch, bisects).await {
                Ok(applied) => return Ok(applied),
                Err(failure) => failure,
            };
            match failure {
                Failure::Reload if reloads < RELOADS_MAX => reloads += 1,
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
        let mut touched = self.parked.fence(&mut items);
        if self.replay == Some(Pass::Deletes) {
            // A delete clears nothing before the rest of its event is applied.
            touched.clear();
        }
        let (client, pipeline) = (&self.session.client, &self.options.pipeline);
        let older = parked::events(client, pipeline, &touched, &mut self.schemas).await;
        let older = older.map_err(|error| Failure::Stop(stop(error)))?;
        parked::attach(&mut items, &older);
        let mut applied = if bisects {
            self.write_by_bisection(batch, items, &touched).await?
        } else {
            let plans = self.plans.clone();
            let input = WriteInput::new(&plans, &mut self.bindings, &items).map_err(Failure::Stop)?;
            if !input.unsendable.is_empty() {
                return Err(Failure::Unsendable);
            }
            let mut steps = Steps::default();
            self.queue_prelude(&mut steps, batch, &input).await?;
            self.queue_side_work(&mut steps, batch, &items, &touched).await?;
            self.queue_writes(&mut steps, &input, false).await?;
            if self.open.is_some() || !batch.complete {
                steps.simple(Mark::Done, "SET CONSTRAINTS ALL IMMEDIATE");
            }
            self.begin().await?;
            let answers = steps.run(&self.session.client).await?;
            Applied { tables: self.read_answers(&answers)?, ..Applied::default() }
        };
        self.refresh_parked().await?;
        applied.waiting = self.parked.waiting.len() as u64;
        self.conclude(batch).await?;
        Ok(applied)
    }
}
