//! The progress of table copies, kept in the target.

use async_trait::async_trait;

use super::{StateError, Store, spelled::spelled};
use crate::{
    database::postgres::{PgError, sql},
    log::record::ChunkEnd,
    model::{Position, Problem, TableName, TableSchema, Version},
    snapshot::{Chunk, KeyRange, Progress, SnapshotError, TableCopy},
};

spelled! {
    /// How far the newest copy of a table is.
    pub enum CopyState: "state of a copy" {
        Pending = "pending",
        Copying = "copying",
        Copied = "copied",
    }
}

/// What is left to be copied, over all tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    pub tables: u64,
    pub unfinished: u64,
}

/// Of which version at least every row is that the present copy of a source table has met: SQL of one number; none of a
/// first copy, which has no rows before it.
pub(crate) fn floor(pipeline: &str, table: &TableName) -> String {
    format!(
        "SELECT greatest(n.value::bigint, z.not_before) FROM cutover.tables z JOIN cutover.notes n \
         ON n.pipeline = z.pipeline AND n.key = 'copy ' || z.generation || ' of ' || z.source_table || ' began' \
         WHERE z.pipeline = {} AND z.source_table = {} AND z.generation > 1",
        sql::literal(pipeline),
        sql::literal(&table.table)
    )
}

/// When the newest copy of a table was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyTimes {
    pub table: String,
    /// 1 for the first copy.
    pub copy: i64,
    pub state: CopyState,
    pub rows_copied: u64,
    /// µs since the Unix epoch; none before it begins.
    pub started_us: Option<i64>,
    /// When it was in the target as a whole.
    pub finished_us: Option<i64>,
}

impl Store {
    /// When the newest copy of each table was made, in the order in which they are copied.
    pub async fn copy_times(&self) -> Result<Vec<CopyTimes>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT source_table, generation, state, rows_copied, (extract(epoch FROM started_at) * 1000000)::bigint, \
                        (extract(epoch FROM finished_at) * 1000000)::bigint \
                 FROM cutover.tables WHERE pipeline = $1 ORDER BY position, source_table",
                &[&self.pipeline],
            )
            .await?;
        let times = |row: &tokio_postgres::Row| {
            Ok(CopyTimes {
                table: row.get(0),
                copy: row.get(1),
                state: CopyState::read(row.get(2))?,
                rows_copied: row.get::<_, i64>(3).cast_unsigned(),
                started_us: row.get(4),
                finished_us: row.get(5),
            })
        };
        rows.iter().map(times).collect()
    }

    /// Registers the tables of the configuration: new ones are to be copied, missing ones are forgotten.
    pub async fn register_tables(&self, tables: &[String]) -> Result<(), StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        client
            .execute(
                "INSERT INTO cutover.tables (pipeline, source_table, position, generation, state) \
                 SELECT $1, name, place, 1, 'pending' FROM unnest($2::text[]) WITH ORDINALITY t(name, place) \
                 ON CONFLICT (pipeline, source_table) DO UPDATE SET position = excluded.position",
                &[&self.pipeline, &tables],
            )
            .await?;
        for table in ["tables", "chunks"] {
            let sql = format!("DELETE FROM cutover.{table} WHERE pipeline = $1 AND source_table <> ALL($2::text[])");
            client.execute(&sql, &[&self.pipeline, &tables]).await?;
        }
        Ok(())
    }

    /// Has a table copied again, from the beginning, once capture has reached `not_before`; false if the pipeline
    /// has no such table.
    pub async fn queue_copy(&self, table: &str, not_before: Version) -> Result<bool, StateError> {
        let session = self.session().await?;
        let queued = session
            .client()?
            .execute(
                "UPDATE cutover.tables SET generation = generation + 1, state = 'pending', bounds_done = false, \
                        rows_copied = 0, requested_at = now(), started_at = NULL, finished_at = NULL, \
                        not_before = greatest(not_before, $3) \
                 WHERE pipeline = $1 AND source_table = $2",
                &[&self.pipeline, &table, &not_before],
            )
            .await?;
        Ok(queued == 1)
    }

    /// Has every table whose copy has begun copied again, or `all` of them; how many they are. Only a repeated copy
    /// removes what it does not meet.
    pub async fn queue_begun_copies(&self, all: bool) -> Result<u64, StateError> {
        let session = self.session().await?;
        let queued = session
            .client()?
            .execute(
                "UPDATE cutover.tables SET generation = generation + 1, state = 'pending', bounds_done = false, \
                        rows_copied = 0, requested_at = now(), started_at = NULL, finished_at = NULL \
                 WHERE pipeline = $1 AND (state <> 'pending' OR ($2 AND generation = 1))",
                &[&self.pipeline, &all],
            )
            .await?;
        Ok(queued)
    }

    /// The tables that nobody has asked to copy again, or whose copy has begun already.
    pub async fn not_to_be_copied_again(&self) -> Result<Vec<String>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT source_table FROM cutover.tables \
                 WHERE pipeline = $1 AND NOT (state = 'pending' AND generation > 1) ORDER BY position, source_table",
                &[&self.pipeline],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// How many tables there are and how many are not copied completely.
    pub async fn copies_left(&self) -> Result<Left, StateError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_one(
                "SELECT count(*), count(*) FILTER (WHERE state <> 'copied') FROM cutover.tables WHERE pipeline = $1",
                &[&self.pipeline],
            )
            .await?;
        Ok(Left { tables: row.get::<_, i64>(0).cast_unsigned(), unfinished: row.get::<_, i64>(1).cast_unsigned() })
    }

    /// Moves the snapshot topic's offset and counts the chunks that it passed; a chunk is copied when
    /// every partition has passed its end. False if another lease has the lane.
    pub async fn advance_snapshot(
        &self,
        partition: u32,
        partitions: u32,
        lease_epoch: i64,
        log_epoch: &str,
        to: u64,
        chunks: &[ChunkEnd],
    ) -> Result<bool, StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        let (partition, partitions) = (partition.cast_signed(), partitions.cast_signed());
        let tables: Vec<&str> = chunks.iter().map(|chunk| chunk.table.as_str()).collect();
        let generations: Vec<i64> = chunks.iter().map(|chunk| chunk.generation).collect();
        let numbers: Vec<i64> = chunks.iter().map(|chunk| chunk.chunk).collect();
        let rows: Vec<i64> = chunks.iter().map(|chunk| chunk.rows.cast_signed()).collect();
        let moved = client
            .query_opt(
                "WITH moved AS (UPDATE cutover.offsets SET next_offset = $5, updated_at = clock_timestamp() \
                               WHERE pipeline = $1 AND topic = 'snapshot' AND part = $3 AND log_epoch = $2 \
                                 AND lease_epoch = $10 RETURNING 1), \
                      ended AS (SELECT * FROM unnest($6::text[], $7::bigint[], $8::bigint[], $9::bigint[]) \
                                  AS e(source_table, generation, chunk, rows) WHERE EXISTS (SELECT FROM moved)), \
                      counted AS (UPDATE cutover.chunks c SET parts_done = array_append(c.parts_done, $3::int), \
                                    rows = c.rows + e.rows, \
                                    state = CASE WHEN cardinality(c.parts_done) + 1 >= $4::int THEN 'done' ELSE c.state END \
                                  FROM ended e WHERE c.pipeline = $1 AND c.source_table = e.source_table \
                                   AND c.generation = e.generation AND c.chunk = e.chunk AND $3::int <> ALL(c.parts_done) \
                                  RETURNING c.source_table, c.generation, e.rows), \
                      summed AS (SELECT source_table, generation, sum(rows)::bigint AS rows FROM counted GROUP BY 1, 2), \
                      shown AS (UPDATE cutover.tables t SET rows_copied = t.rows_copied + s.rows FROM summed s \
                                WHERE t.pipeline = $1 AND t.source_table = s.source_table AND t.generation = s.generation) \
                 SELECT FROM moved",
                &[
                    &self.pipeline,
                    &log_epoch,
                    &partition,
                    &partitions,
                    &to.cast_signed(),
                    &tables,
                    &generations,
                    &numbers,
                    &rows,
                    &lease_epoch,
                ],
            )
            .await?;
        Ok(moved.is_some())
    }

    /// No table is copied: rows of a snapshot are the connector's to bring, or there are none to bring.
    pub(crate) async fn follow_only(&self) -> Result<(), StateError> {
        let session = self.session().await?;
        let follow = "UPDATE cutover.tables SET state = 'copied' WHERE pipeline = $1 AND state <> 'copied'";
        session.client()?.execute(follow, &[&self.pipeline]).await?;
        Ok(())
    }
}

/// Under what a copy notes where the source was when it was read.
fn seen_note(copy: &TableCopy) -> String {
    format!("copy {} of {} has seen", copy.generation, copy.table)
}

#[async_trait]
impl Progress for Store {
    async fn unfinished(&self) -> Result<Vec<TableCopy>, SnapshotError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT source_table, generation, bounds_done, not_before FROM cutover.tables \
                 WHERE pipeline = $1 AND state <> 'copied' ORDER BY position, source_table",
                &[&self.pipeline],
            )
            .await
            .map_err(StateError::from)?;
        Ok(rows
            .iter()
            .map(|row| TableCopy {
                table: row.get(0),
                generation: row.get(1),
                bounds_done: row.get(2),
                not_before: row.get(3),
            })
            .collect())
    }

    async fn schema(&self, copy: &TableCopy, schema: &TableSchema, rows_estimate: u64) -> Result<(), SnapshotError> {
        self.add_schema(schema, 0).await?;
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "UPDATE cutover.tables SET state = 'copying', rows_estimate = $4, started_at = coalesce(started_at, now()) \
                 WHERE pipeline = $1 AND source_table = $2 AND generation = $3",
                &[&self.pipeline, &copy.table, &copy.generation, &rows_estimate.cast_signed()],
            )
            .await
            .map_err(StateError::from)?;
        Ok(())
    }

    // What [`floor`] reads.
    async fn began(&self, copy: &TableCopy, clock: Version) -> Result<Version, SnapshotError> {
        let key = format!("copy {} of {} began", copy.generation, copy.table);
        if let Some(noted) = self.note(&key).await?.and_then(|noted| noted.parse().ok()) {
            return Ok(noted);
        }
        self.set_note(&key, &clock.to_string()).await?;
        Ok(clock)
    }

    async fn seen(&self, copy: &TableCopy) -> Result<Vec<Position>, SnapshotError> {
        let Some(noted) = self.note(&seen_note(copy)).await? else { return Ok(Vec::new()) };
        serde_json::from_str(&noted).map_err(|error| {
            SnapshotError::Halt(Problem::new(
                format!("where the copy of {} was read cannot be read back: {error}", copy.table),
                "copy the table again with `cutover resnapshot`",
            ))
        })
    }

    async fn saw(&self, copy: &TableCopy, seen: &[Position]) -> Result<(), SnapshotError> {
        let json = serde_json::to_string(seen).map_err(StateError::from)?;
        Ok(self.set_note(&seen_note(copy), &json).await?)
    }

    async fn again(&self, copy: &TableCopy) -> Result<(), SnapshotError> {
        let unfinished = self.unfinished().await?;
        if unfinished.iter().any(|other| other.table == copy.table && other.generation == copy.generation) {
            self.queue_copy(&copy.table, copy.not_before).await?;
        }
        Ok(())
    }

    async fn chunks(&self, copy: &TableCopy) -> Result<Vec<Chunk>, SnapshotError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT chunk, lower, upper, state = 'done' FROM cutover.chunks \
                 WHERE pipeline = $1 AND source_table = $2 AND generation = $3 ORDER BY chunk",
                &[&self.pipeline, &copy.table, &copy.generation],
            )
            .await
            .map_err(StateError::from)?;
        Ok(rows
            .iter()
            .map(|row| Chunk {
                number: row.get(0),
                range: KeyRange { lower: row.get(1), upper: row.get(2) },
                done: row.get(3),
            })
            .collect())
    }

    async fn add_chunk(&self, copy: &TableCopy, chunk: &Chunk, last: bool) -> Result<(), SnapshotError> {
        let session = self.session().await?;
        // One statement: a bound that is found is never known without its chunk.
        session
            .client()?
            .execute(
                "WITH t AS (UPDATE cutover.tables SET bounds_done = $7 \
                            WHERE pipeline = $1 AND source_table = $2 AND generation = $3) \
                 INSERT INTO cutover.chunks (pipeline, source_table, generation, chunk, lower, upper, rows, state) \
                 VALUES ($1, $2, $3, $4, $5, $6, 0, 'reading') ON CONFLICT DO NOTHING",
                &[
                    &self.pipeline,
                    &copy.table,
                    &copy.generation,
                    &chunk.number,
                    &chunk.range.lower,
                    &chunk.range.upper,
                    &last,
                ],
            )
            .await
            .map_err(StateError::from)?;
        Ok(())
    }

    async fn finish(&self, copy: &TableCopy) -> Result<bool, SnapshotError> {
        let session = self.session().await?;
        let client = session.client()?;
        let finished = client
            .execute(
                "UPDATE cutover.tables SET state = 'copied', finished_at = now() \
                 WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND NOT EXISTS ( \
                     SELECT 1 FROM cutover.chunks WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND state <> 'done')",
                &[&self.pipeline, &copy.table, &copy.generation],
            )
            .await
            .map_err(StateError::from)?;
        if finished == 1 {
            client
                .execute(
                    "DELETE FROM cutover.chunks WHERE pipeline = $1 AND source_table = $2",
                    &[&self.pipeline, &copy.table],
                )
                .await
                .map_err(StateError::from)?;
        }
        Ok(finished == 1)
    }

    // The session is everybody's.
    async fn rest(&self) {}
}

impl From<StateError> for SnapshotError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Postgres(PgError::Login(reason)) => SnapshotError::Halt(Problem::new(
                format!("the target refuses the login: {reason}"),
                "correct [target] url and start again",
            )),
            StateError::Postgres(PgError::Unreachable(_) | PgError::Refused(_) | PgError::Protocol(_))
            | StateError::Unreadable(_)
            | StateError::NewerFormat { .. }
            | StateError::Superseded => SnapshotError::Target(error.to_string()),
        }
    }
}

impl From<PgError> for SnapshotError {
    fn from(error: PgError) -> Self {
        StateError::from(error).into()
    }
}
