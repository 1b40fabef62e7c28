//! The schemas that records refer to.

use super::{StateError, Store};
use crate::model::{TableName, TableSchema, Version};

impl Store {
    /// Stores a schema before the first record that refers to it is appended.
    pub async fn add_schema(&self, schema: &TableSchema, clock: Version) -> Result<(), StateError> {
        let session = self.session().await?;
        let definition = serde_json::to_value(schema)?;
        let (id, table) = (schema.id().cast_signed(), schema.table.to_string());
        // `seq` orders a table's schemas; a schema that comes back after another one is the newest again.
        session
            .client()?
            .execute(
                "INSERT INTO cutover.schemas (pipeline, id, source_table, clock, definition) \
                 VALUES ($1, $2, $3, $4, $5::text::jsonb) \
                 ON CONFLICT (pipeline, id) DO UPDATE SET clock = greatest(cutover.schemas.clock, excluded.clock), \
                 seq = CASE WHEN cutover.schemas.clock < excluded.clock THEN excluded.seq ELSE cutover.schemas.seq END",
                &[&self.pipeline, &id, &table, &clock, &definition.to_string()],
            )
            .await?;
        Ok(())
    }

    /// Every schema stored for the pipeline, oldest first, with the clock from which it held.
    pub async fn schemas(&self) -> Result<Vec<(Version, TableSchema)>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT clock, definition::text FROM cutover.schemas WHERE pipeline = $1 ORDER BY clock, seq",
                &[&self.pipeline],
            )
            .await?;
        rows.iter().map(|row| Ok((row.get(0), read(row.get(1))?))).collect()
    }

    /// The newest schema that is stored of each of these tables.
    pub async fn newest_schemas(&self, tables: &[TableName]) -> Result<Vec<TableSchema>, StateError> {
        let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT DISTINCT ON (source_table) definition::text FROM cutover.schemas \
                 WHERE pipeline = $1 AND source_table = ANY($2) ORDER BY source_table, clock DESC, seq DESC",
                &[&self.pipeline, &names],
            )
            .await?;
        rows.iter().map(|row| read(row.get(0))).collect()
    }
}

fn read(definition: &str) -> Result<TableSchema, StateError> {
    serde_json::from_str(definition).map_err(|error| StateError::unreadable("a stored schema", &error))
}
