//! Statements that this session has prepared: ours by their text, those of plans by binding and part.

use tokio_postgres::{Statement, types::ToSql};

use super::{
    PostgresSink,
    failure::{Failure, unprepared},
    statement::{Builder, Part},
    steps::Param,
};
use crate::database::postgres::PgError;

impl PostgresSink {
    /// The prepared form of a statement of ours.
    pub(super) async fn statement(&mut self, text: &str) -> Result<Statement, PgError> {
        if let Some(known) = self.statements.get(text) {
            return Ok(known.clone());
        }
        let statement = self.session.client.prepare(text).await?;
        self.statements.insert(text.to_owned(), statement.clone());
        Ok(statement)
    }

    /// The prepared form of a part of a binding; none if the plan has no such part.
    pub(super) async fn write_statement(&mut self, place: usize, part: Part) -> Result<Option<Statement>, Failure> {
        if let Some(known) = self.writes.get(&(place, part)) {
            return Ok(Some(known.clone()));
        }
        let Some(binding) = self.bindings.all.get(place) else { return Ok(None) };
        let Some(plan) = self.plans.get(binding.plan) else { return Ok(None) };
        let (types, replays) = (&binding.types, self.replay.is_some());
        let builder = Builder { plan, types, pipeline: &self.options.pipeline, replays };
        let Some(text) = builder.part(part) else { return Ok(None) };
        let statement = self.session.client.prepare(&text).await.map_err(|error| unprepared(error.into()))?;
        self.writes.insert((place, part), statement.clone());
        Ok(Some(statement))
    }

    /// Runs a prepared statement that answers nothing.
    pub(super) async fn execute(&self, statement: &Statement, params: Vec<Param<'_>>) -> Result<(), PgError> {
        let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| param.as_ref() as _).collect();
        self.session.client.execute(statement, &params).await?;
        Ok(())
    }
}
