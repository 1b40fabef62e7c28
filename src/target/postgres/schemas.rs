//! Schemas stored at the target: what is parked can only be read again with its own.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio_postgres::Client;

use super::{PostgresSink, parked::ParkedRow, steps::Param};
use crate::{database::postgres::PgError, model::TableSchema};

pub const STORE: &str = "
INSERT INTO cutover.schemas (pipeline, id, definition) VALUES ($1, $2, $3::text::jsonb) ON CONFLICT DO NOTHING";

impl PostgresSink {
    /// Stores the schemas of rows that are about to be parked.
    pub(super) async fn store_schemas(&mut self, rows: &[ParkedRow<'_>]) -> Result<(), PgError> {
        let mut stored = HashSet::new();
        for row in rows {
            if stored.insert(Arc::as_ptr(&row.event.schema) as usize) {
                let statement = self.statement(STORE).await?;
                self.execute(&statement, params(&self.options.pipeline, &row.event.schema)).await?;
            }
        }
        Ok(())
    }
}

/// Parameters of [`STORE`].
pub fn params(pipeline: &str, schema: &TableSchema) -> Vec<Param<'static>> {
    let definition = serde_json::to_string(schema).unwrap_or_default();
    vec![Box::new(pipeline.to_owned()), Box::new(schema.id().cast_signed()), Box::new(definition)]
}

/// The schema of this number: known, or as the target has it.
pub async fn load(
    client: &Client,
    pipeline: &str,
    id: i64,
    known: &mut HashMap<u64, Arc<TableSchema>>,
) -> Result<Arc<TableSchema>, PgError> {
    if let Some(schema) = known.get(&id.cast_unsigned()) {
        return Ok(schema.clone());
    }
    let row = client
        .query_opt("SELECT definition::text FROM cutover.schemas WHERE pipeline = $1 AND id = $2", &[&pipeline, &id])
        .await?;
    let text: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
    let schema: Option<TableSchema> = text.and_then(|text| serde_json::from_str(&text).ok());
    let schema =
        schema.ok_or_else(|| PgError::Protocol(format!("cutover.schemas lacks schema {id} of a parked row")))?;
    let schema = Arc::new(schema);
    known.insert(id.cast_unsigned(), schema.clone());
    Ok(schema)
}
