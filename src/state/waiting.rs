//! Rows that wait for another, as they are told and looked at again. The target writes them with the rows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{StateError, Store};
use crate::model::{TableSchema, Version};

/// Rows that wait for less are not looked for: most come in by themselves.
pub(crate) const LOOKED_FOR_AFTER_SECONDS: f64 = 3.0;

/// Along the index of waiting rows, whose keys may be too long to be in one.
const WAITED: &str = "
SELECT w.source_table, s.definition::text, w.key_text, w.version, pg_catalog.convert_from(w.value, 'UTF8') FROM (
  SELECT *, pg_catalog.sum(pg_catalog.octet_length(value)) OVER (ORDER BY source_table, pg_catalog.md5(key_text), version)
    - pg_catalog.octet_length(value) AS before FROM (
      SELECT source_table, key_text, version, schema_id, value FROM cutover.waiting
      WHERE pipeline = $1 AND (source_table, pg_catalog.md5(key_text), version) > ($2, pg_catalog.md5($3), $4)
        AND since < pg_catalog.clock_timestamp() - interval '3 seconds'
      ORDER BY source_table, pg_catalog.md5(key_text), version LIMIT $5) first) w
JOIN cutover.schemas s ON s.pipeline = $1 AND s.id = w.schema_id
WHERE w.before = 0 OR w.before + pg_catalog.octet_length(w.value) <= $6
ORDER BY w.source_table, pg_catalog.md5(w.key_text), w.version";

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

    /// Rows that have waited for [`LOOKED_FOR_AFTER_SECONDS`], behind that of this table, key and version: so many rows
    /// and bytes at most, but one row whatever it weighs.
    pub(crate) async fn waiting_rows(
        &self,
        (table, key, version): &(String, String, Version),
        rows_max: i64,
        bytes_max: i64,
    ) -> Result<Vec<WaitingRow>, StateError> {
        let session = self.session().await?;
        let rows =
            session.client()?.query(WAITED, &[&self.pipeline, table, key, version, &rows_max, &bytes_max]).await?;
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
