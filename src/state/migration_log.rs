//! What was compared, chunk by chunk: the record of a migration, and what a further comparison may pass by.
//!
//! A chunk is a range of the source's keys. Its entry is replaced when it is compared again, so that the log has the
//! size of the tables' chunks and not of their history. Where each row is noted, the statement that compares does it
//! (`target::Looks::notes_rows`); what it did not meet is removed here.

use super::{StateError, Store, spelled::spelled};
use crate::{
    model::TableName,
    snapshot::{Digest, KeyRange},
};

spelled! {
    /// What a comparison has found of a chunk.
    pub enum ChunkState: "state of a compared chunk" {
        Equal = "equal",
        /// Some of its rows were in doubt.
        Doubted = "doubted",
    }
}

/// A chunk that was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedChunk {
    pub range: KeyRange,
    pub state: ChunkState,
    /// Rows of the source, and a digest of them.
    pub source: Digest,
    /// What the target had, in its own words; none where it has no words for it.
    pub target: Option<String>,
}

impl Store {
    /// The chunk of a table that begins at `lower`, as it was compared last.
    pub async fn compared_chunk(
        &self,
        table: &TableName,
        lower: Option<&str>,
    ) -> Result<Option<ComparedChunk>, StateError> {
        let session = self.session().await?;
        let sql = "SELECT lower, upper, state, rows, source_checksum, target_checksum FROM cutover.migration_log \
                   WHERE pipeline = $1 AND source_table = $2 AND md5(coalesce(lower, '')) = md5(coalesce($3, ''))";
        let row = session.client()?.query_opt(sql, &[&self.pipeline, &table.table, &lower]).await?;
        let chunk = |row: tokio_postgres::Row| {
            Ok(ComparedChunk {
                range: KeyRange { lower: row.get(0), upper: row.get(1) },
                state: ChunkState::read(row.get(2))?,
                source: Digest { rows: row.get::<_, i64>(3).cast_unsigned(), sum: row.get(4) },
                target: row.get(5),
            })
        };
        row.map(chunk).transpose()
    }

    /// Notes what a pass, which has this number, has found of a chunk.
    pub async fn note_chunk(&self, table: &TableName, chunk: &ComparedChunk, pass: i64) -> Result<(), StateError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "INSERT INTO cutover.migration_log \
                   (pipeline, source_table, lower, upper, state, rows, source_checksum, target_checksum, pass) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
                 ON CONFLICT (pipeline, source_table, md5(coalesce(lower, ''))) DO UPDATE SET upper = excluded.upper, \
                   state = excluded.state, rows = excluded.rows, source_checksum = excluded.source_checksum, \
                   target_checksum = excluded.target_checksum, pass = excluded.pass, compared_at = clock_timestamp()",
                &[
                    &self.pipeline,
                    &table.table,
                    &chunk.range.lower,
                    &chunk.range.upper,
                    &chunk.state.name(),
                    &chunk.source.rows.cast_signed(),
                    &chunk.source.sum,
                    &chunk.target,
                    &pass,
                ],
            )
            .await?;
        Ok(())
    }

    /// Every row of a table was looked at by the comparison of this number: what neither it nor a later one has met is
    /// no row any more.
    pub async fn end_noted_rows(&self, table: &str, number: i64) -> Result<(), StateError> {
        let session = self.session().await?;
        let gone = "DELETE FROM cutover.migration_rows WHERE pipeline = $1 AND source_table = $2 AND pass < $3";
        session.client()?.execute(gone, &[&self.pipeline, &table, &number]).await?;
        Ok(())
    }

    /// A pass over a table is through, and found the chunks that begin at these bounds unchanged: what it has not met
    /// is no chunk any more.
    pub async fn end_pass(&self, table: &TableName, unchanged: &[Option<String>], pass: i64) -> Result<(), StateError> {
        let session = self.session().await?;
        let lowers: Vec<&str> = unchanged.iter().map(|lower| lower.as_deref().unwrap_or_default()).collect();
        let client = session.client()?;
        let met = "UPDATE cutover.migration_log SET pass = $4, compared_at = clock_timestamp() \
                   WHERE pipeline = $1 AND source_table = $2 AND coalesce(lower, '') = ANY($3)";
        client.execute(met, &[&self.pipeline, &table.table, &lowers, &pass]).await?;
        let gone = "DELETE FROM cutover.migration_log WHERE pipeline = $1 AND source_table = $2 AND pass <> $3";
        client.execute(gone, &[&self.pipeline, &table.table, &pass]).await?;
        Ok(())
    }
}
