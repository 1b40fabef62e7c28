//! Rows that wait for another, as they are told and looked at again. The target writes them with the rows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{StateError, Store};
use crate::model::{TableSchema, Version};

/// Rows of a source table that wait for one reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitingFor {
    /// The source table, with its database.
    pub table: String,
    /// What the target says of them: the constraint that they would violate.
    pub reason: String,
    pub rows: u64,
    pub oldest_seconds: f64,
}

/// A row that waits.
#[derive(Debug)]
pub(crate) struct WaitingRow {
    /// The source table, with its database.
    pub table: String,
    pub schema: Arc<TableSchema>,
    /// The record's key, as JSON.
    pub key: String,
    pub version: Version,
    /// The envelope that shows it, as JSON.
    pub record: String,
}

impl Store {
    /// What rows wait for; ten reasons at most.
    pub(super) async fn waiting_for(&self) -> Result<Vec<WaitingFor>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT source_table, reason, count(*), extract(epoch FROM clock_timestamp() - min(since))::float8 \
                 FROM cutover.waiting WHERE pipeline = $1 GROUP BY source_table, reason \
                 ORDER BY min(since), source_table, reason LIMIT 10",
                &[&self.pipeline],
            )
            .await?;
        let waiting = |row: &tokio_postgres::Row| {
            Ok(WaitingFor {
                table: row.try_get(0)?,
                reason: row.try_get(1)?,
                rows: row.try_get::<_, i64>(2)?.cast_unsigned(),
                oldest_seconds: row.try_get(3)?,
            })
        };
        rows.iter().map(waiting).collect()
    }

    /// Rows that have waited for some seconds, in the order of table and key, after this one; so many at most.
    pub(crate) async fn waiting_rows(
        &self,
        (table, key): (&str, &str),
        limit: i64,
    ) -> Result<Vec<WaitingRow>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT w.source_table, s.definition::text, w.key_text, w.version, pg_catalog.convert_from(w.value, 'UTF8') \
                 FROM cutover.waiting w JOIN cutover.schemas s ON s.pipeline = w.pipeline AND s.id = w.schema_id \
                 WHERE w.pipeline = $1 AND (w.source_table, w.key_text) > ($2, $3) \
                   AND w.since < clock_timestamp() - interval '3 seconds' \
                 ORDER BY w.source_table, w.key_text, w.version LIMIT $4",
                &[&self.pipeline, &table, &key, &limit],
            )
            .await?;
        let mut waiting = Vec::new();
        for row in rows {
            let schema: TableSchema = serde_json::from_str(row.try_get(1)?)
                .map_err(|error| StateError::unreadable("a stored schema", &error))?;
            waiting.push(WaitingRow {
                table: row.try_get(0)?,
                schema: Arc::new(schema),
                key: row.try_get(2)?,
                version: row.try_get(3)?,
                record: row.try_get(4)?,
            });
        }
        Ok(waiting)
    }
}
