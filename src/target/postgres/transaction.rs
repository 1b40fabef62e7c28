//! The target's transaction: begun, gone on with, committed or taken back.
//!
//! A source transaction that is too large for one batch keeps it open; a batch is then a savepoint, so that it can be
//! taken back alone.

use super::{
    PostgresSink,
    failure::{Failure, stop},
    parked::Parked,
};
use crate::{
    database::postgres::PgError,
    target::{ApplyError, Batch},
};

impl PostgresSink {
    /// Begins a transaction, unless one is open. Its answer is waited for: were BEGIN refused (a cancel request that
    /// comes late is enough), what was sent behind it would be done and committed statement by statement, the offset
    /// too.
    pub(super) async fn begin(&mut self) -> Result<(), PgError> {
        if self.open.is_none() {
            self.session.client.batch_execute("BEGIN").await?;
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
    pub(super) async fn undo(&mut self) -> Result<(), ApplyError> {
        if !std::mem::take(&mut self.begun) {
            return Ok(());
        }
        let undo = match self.open {
            Some(_) => "ROLLBACK TO cutover_part; RELEASE cutover_part",
            None => "ROLLBACK",
        };
        self.session.client.batch_execute(undo).await.map_err(|error| stop(error.into()))
    }

    /// Takes back everything that is not committed.
    pub(super) async fn roll_back(&mut self) -> Result<(), ApplyError> {
        self.open = None;
        self.begun = false;
        self.session.client.batch_execute("ROLLBACK").await.map_err(|error| stop(error.into()))?;
        self.parked = Parked::load(&self.session.client, &self.options.pipeline).await.map_err(stop)?;
        self.unfinished = false;
        Ok(())
    }
}
