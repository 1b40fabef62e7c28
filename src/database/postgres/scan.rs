//! Reading tables of a source in chunks, and rows by key, at a known point of its log.
//!
//! What enters: a table's schema, the bounds of a chunk, and what capture has reached. What leaves: rows, and the
//! version that they may be labelled with. Invariant (rule 14): the label is below the version of every change that the
//! read does not see. Rows may be newer than their label; the stream brings those changes again, at higher versions.
//! Keys are compared by the server, in the column's own type and collation. Absent on purpose: locks, and any knowledge
//! of which chunks there are.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::TryStreamExt;
use tokio::time::Instant;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryStream};

use super::{
    Address, Options, PgError, Session,
    bound::{self, Bound},
    in_flight::{InFlight, PgSnapshot, Visibility},
    spelling::{Spelling, SpellingError},
    sql,
};
use crate::model::{Disposition, Lsn, Problem, TableName, TableSchema, Value, Version, row_bytes};

/// How long a read waits for transactions that capture knows before it takes an older label, where it may.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long it waits where it may not.
const VISIBLE_WAIT: Duration = Duration::from_secs(10);
/// Between two looks. The gap between log and visibility is a few milliseconds.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Why a scan could not go on.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.problem())]
pub enum ScanError {
    /// What the server answered.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// A value that is not what its type says.
    Value { table: TableName, column: String, source: SpellingError },
    /// What the transaction writes may or may not be in a read.
    Running { xid: u64 },
    /// A read would not see what was captured.
    NotVisible,
    /// The table was changed since its copy began.
    Bound { table: TableName },
    /// Chunks are ranges of a key.
    NoKey { table: TableName },
}

/// What a table that is altered while it is copied answers: no such column, no such table.
const ALTERED: [&str; 2] = ["42703", "42P01"];

/// What a comparison answers that a type has not: no such operator, several, or none that is an order.
const NO_ORDER: [&str; 3] = ["42883", "42725", "0A000"];

impl ScanError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            ScanError::Postgres(error) => error.problem(),
            ScanError::Value { table, column, source } => {
                source.problem().at(format_args!("table {table}, column `{column}`"))
            }
            ScanError::Running { xid } => Problem::new(
                format!("transaction {xid} had begun before capture and may have been captured"),
                "reads wait until it has ended (if it waits for a synchronous standby, bring that back)",
            ),
            ScanError::NotVisible => Problem::new(
                "captured changes are not visible at the source yet",
                "if their commits wait for a synchronous standby, bring that back",
            ),
            ScanError::Bound { table } => Problem::new(
                format!("a stored chunk bound of {table} does not fit the table any more"),
                "start its copy again with `cutover resnapshot`",
            ),
            ScanError::NoKey { table } => Problem::new(
                format!("{table} has no key"),
                "add a primary key at the source, or leave the table out of [source] tables",
            ),
        }
    }

    /// Whether trying again can help.
    pub fn disposition(&self) -> Disposition {
        match self {
            ScanError::Postgres(PgError::Refused(refusal))
                if refusal.passes() || ALTERED.contains(&refusal.sqlstate.as_str()) =>
            {
                Disposition::Retry
            }
            ScanError::Postgres(PgError::Unreachable(_)) | ScanError::Running { .. } | ScanError::NotVisible => {
                Disposition::Retry
            }
            ScanError::Postgres(PgError::Login(_) | PgError::Refused(_) | PgError::Protocol(_))
            | ScanError::Value { .. }
            | ScanError::Bound { .. }
            | ScanError::NoKey { .. } => Disposition::Halt,
        }
    }
}

/// A point that capture has reached, and how old a label of what is read there may be.
#[derive(Debug, Clone, Copy)]
pub struct Watermark {
    pub lsn: Lsn,
    pub version: Version,
    /// No row may be labelled with less.
    pub floor: Version,
}

/// A connection that reads tables.
#[derive(Debug)]
pub struct Scanner {
    session: Session,
    in_flight: Arc<InFlight>,
    in_snapshot: bool,
    /// What rows of the open snapshot are labelled with, if it is kept for the next read.
    held: Option<Version>,
    /// What a table is read by.
    names: HashMap<TableName, String>,
    /// Its digests are of UTF-8, as the target's are.
    is_utf8: bool,
}

impl Scanner {
    pub async fn connect(target: &Address, options: &Options, in_flight: Arc<InFlight>) -> Result<Self, ScanError> {
        let session = Session::open(target, options).await?;
        // A chunk is read as slowly as the target takes it.
        let sql = "SELECT set_config('statement_timeout', '0', false), current_setting('server_encoding') = 'UTF8'";
        let row = session.client.query_one(sql, &[]).await.map_err(PgError::from)?;
        let is_utf8 = row.try_get(1).map_err(PgError::from)?;
        Ok(Scanner { session, in_flight, in_snapshot: false, held: None, names: HashMap::new(), is_utf8 })
    }

    /// The session, with no snapshot open, for the catalog.
    pub async fn client(&mut self) -> Result<&Client, ScanError> {
        self.end_snapshot().await?;
        Ok(&self.session.client)
    }

    /// What a read sees that begins now.
    pub async fn snapshot(&mut self) -> Result<PgSnapshot, ScanError> {
        let client = self.client().await?;
        let row = client.query_one("SELECT pg_current_snapshot()::text", &[]).await;
        let text: String = row.and_then(|row| row.try_get(0)).map_err(PgError::from)?;
        Ok(parsed(&text)?)
    }

    /// The row with this key as it is after transaction `xid` or later; none if there is none any more.
    pub async fn after(
        &mut self,
        schema: &TableSchema,
        key: &[Value],
        xid: u32,
    ) -> Result<Option<Vec<Value>>, ScanError> {
        let started = Instant::now();
        while !self.snapshot().await?.has_seen(xid) {
            if started.elapsed() >= VISIBLE_WAIT {
                return Err(ScanError::NotVisible);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let condition = bound::key_condition(schema, &[key.to_vec()]).ok_or_else(|| no_key(schema))?;
        let mut rows = self.rows(schema, &condition, 0).await?;
        let found = rows.next_batch(2, usize::MAX).await?.pop();
        Ok(found)
    }

    /// The bound of the chunk after `lower` of about `rows` rows, to be stored; none if fewer are left.
    pub async fn next_bound(
        &mut self,
        schema: &TableSchema,
        lower: Option<&str>,
        rows: u64,
    ) -> Result<Option<String>, ScanError> {
        self.end_snapshot().await?;
        let lower = decoded(schema, lower)?;
        let table = self.name(&schema.table).await?;
        let (by_place, by_key) = match &lower {
            Some(Bound::Place { .. }) => (true, false),
            Some(Bound::Key(_)) => (false, true),
            None => {
                let by_key = self.has_ranges(&table, schema).await?;
                ((bound::prefers_places(schema) || !by_key) && self.has_places(schema).await?, by_key)
            }
        };
        if by_place {
            return self.next_place(schema, lower.as_ref(), rows).await;
        }
        if !by_key {
            // All of it in one chunk: a kill begins it anew, and that is all.
            return Ok(None);
        }
        let sql = bound::next_key_sql(&table, schema, lower.as_ref(), rows).ok_or_else(|| no_key(schema))?;
        let found = self.session.client.query_opt(sql.as_str(), &[]).await.map_err(PgError::from)?;
        let Some(row) = found else { return Ok(None) };
        let key: Vec<String> =
            (0..row.len()).map(|index| row.try_get(index)).collect::<Result<_, _>>().map_err(PgError::from)?;
        Ok(Some(Bound::Key(key).encode()))
    }

    /// Whether keys of the table make ranges. An index needs an order, and not that it is called `<`: that of hstore is
    /// not.
    async fn has_ranges(&self, table: &str, schema: &TableSchema) -> Result<bool, ScanError> {
        let sql = bound::ranges_sql(table, schema).ok_or_else(|| no_key(schema))?;
        match self.session.client.prepare(&sql).await.map_err(PgError::from) {
            Ok(_) => Ok(true),
            Err(PgError::Refused(refusal)) if NO_ORDER.contains(&refusal.sqlstate.as_str()) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the table has places of rows to go by, which partitioned ones have not, and ranges of them are not read
    /// without an index before PostgreSQL 14.
    async fn has_places(&self, schema: &TableSchema) -> Result<bool, ScanError> {
        let sql = "SELECT relkind = 'r' AND current_setting('server_version_num')::int >= 140000 FROM pg_class \
                   WHERE oid = to_regclass($1::text)";
        let row = self.session.client.query_opt(sql, &[&sql::table(&schema.table)]).await.map_err(PgError::from)?;
        Ok(row.map(|row| row.try_get(0)).transpose().map_err(PgError::from)?.unwrap_or(false))
    }

    async fn next_place(
        &self,
        schema: &TableSchema,
        lower: Option<&Bound>,
        rows: u64,
    ) -> Result<Option<String>, ScanError> {
        let sql = "SELECT pg_relation_filenode(c.oid)::bigint, pg_relation_size(c.oid) / current_setting('block_size')::bigint, \
                   greatest(c.reltuples, 0)::float8, greatest(c.relpages, 0)::float8 FROM pg_class c WHERE c.oid = to_regclass($1::text)";
        let row = self.session.client.query_one(sql, &[&sql::table(&schema.table)]).await.map_err(PgError::from)?;
        let get = |index| row.try_get::<_, i64>(index).map(i64::unsigned_abs).map_err(PgError::from);
        let (file, blocks) = (get(0)?, get(1)?);
        let (tuples, pages): (f64, f64) =
            (row.try_get(2).map_err(PgError::from)?, row.try_get(3).map_err(PgError::from)?);
        let block = match lower {
            Some(Bound::Place { file: before, block }) if *before == file => *block,
            Some(Bound::Place { .. } | Bound::Key(_)) => return Err(bound_error(schema)),
            None => 0,
        };
        let per_block = if pages > 0.0 && tuples > 0.0 { tuples / pages } else { 50.0 };
        // As many rows as asked for by the statistics; a block at least.
        let step = ((rows as f64 / per_block.max(1.0)) as u64).max(1);
        let next = block.saturating_add(step);
        Ok((next < blocks).then(|| Bound::Place { file, block: next }.encode()))
    }

    /// About how many rows the table has, by the server's statistics, or by its size where it has none; and how many
    /// bytes, with what is stored out of line.
    pub async fn estimate(&mut self, table: &TableName) -> Result<(u64, u64), ScanError> {
        self.end_snapshot().await?;
        let sql = "WITH RECURSIVE t AS (SELECT to_regclass($1::text)::oid AS oid UNION ALL \
                   SELECT i.inhrelid FROM t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class p ON p.oid = t.oid WHERE p.relkind = 'p') \
                   SELECT coalesce(sum(CASE WHEN c.relkind = 'p' THEN 0 WHEN c.reltuples > 0 THEN c.reltuples \
                   ELSE pg_relation_size(c.oid) / 100.0 END), 0)::float8, coalesce(sum(pg_table_size(c.oid)), 0)::float8 \
                   FROM t JOIN pg_class c ON c.oid = t.oid";
        let row = self.session.client.query_one(sql, &[&sql::table(table)]).await.map_err(PgError::from)?;
        let (rows, bytes): (f64, f64) =
            (row.try_get(0).map_err(PgError::from)?, row.try_get(1).map_err(PgError::from)?);
        Ok((rows.max(0.0) as u64, bytes.max(0.0) as u64))
    }

    /// Opens the chunk after `lower` up to and with `upper`.
    pub async fn read_chunk(
        &mut self,
        schema: &TableSchema,
        lower: Option<&str>,
        upper: Option<&str>,
        watermark: Watermark,
    ) -> Result<ChunkRows<'_>, ScanError> {
        let version = match self.held.take() {
            Some(version) => version,
            None => self.open_snapshot(watermark).await?,
        };
        let condition = self.chunk(schema, lower, upper).await?;
        self.rows(schema, &condition, version).await
    }

    /// The condition of a chunk, within an open snapshot.
    async fn chunk(
        &mut self,
        schema: &TableSchema,
        lower: Option<&str>,
        upper: Option<&str>,
    ) -> Result<String, ScanError> {
        let (lower, upper) = (decoded(schema, lower)?, decoded(schema, upper)?);
        for bound in [&lower, &upper].into_iter().flatten() {
            if let Bound::Place { file, .. } = bound {
                self.same_file(schema, *file).await?;
            }
        }
        bound::chunk_condition(schema, lower.as_ref(), upper.as_ref()).ok_or_else(|| bound_error(schema))
    }

    /// The key that a chunk ends with, as text by column; none if it ends otherwise, or if digests of chunks are of no
    /// use to another server.
    pub fn last_key(&self, schema: &TableSchema, upper: &str) -> Option<Vec<String>> {
        match Bound::decode(upper, schema.key.len()).filter(|_| self.is_utf8)? {
            Bound::Key(key) => Some(key),
            Bound::Place { .. } => None,
        }
    }

    /// How many rows the chunk has, and the sum of their hashes. If it is `held`, the next read is of the same moment.
    pub async fn digest(
        &mut self,
        schema: &TableSchema,
        (lower, upper): (Option<&str>, Option<&str>),
        watermark: Watermark,
        held: bool,
    ) -> Result<(u64, String), ScanError> {
        let version = self.open_snapshot(watermark).await?;
        let condition = self.chunk(schema, lower, upper).await?;
        let columns = sql::list("t.", schema.columns.iter().map(|column| column.name.as_str()));
        // A record's text has each value in its place, quoted where it has to be.
        let sql = format!(
            "SELECT count(*), coalesce(sum(hashtextextended(r::text, 0)), 0)::text FROM (SELECT {columns} FROM {} t WHERE {condition}) r",
            self.name(&schema.table).await?
        );
        let row = self.session.client.query_one(sql.as_str(), &[]).await.map_err(PgError::from)?;
        let (rows, sum): (i64, String) =
            (row.try_get(0).map_err(PgError::from)?, row.try_get(1).map_err(PgError::from)?);
        if held {
            self.held = Some(version);
        } else {
            self.end_snapshot().await?;
        }
        Ok((rows.unsigned_abs(), sum))
    }

    /// Rows keep their places until the table is rewritten (VACUUM FULL, CLUSTER): then what was read by place is
    /// worth nothing.
    async fn same_file(&self, schema: &TableSchema, file: u64) -> Result<(), ScanError> {
        let sql = "SELECT pg_relation_filenode(to_regclass($1::text))::bigint";
        let row = self.session.client.query_one(sql, &[&sql::table(&schema.table)]).await.map_err(PgError::from)?;
        let now: Option<i64> = row.try_get(0).map_err(PgError::from)?;
        if now.map(i64::unsigned_abs) == Some(file) { Ok(()) } else { Err(bound_error(schema)) }
    }

    /// Opens the rows with these keys, which are in the order of the schema's key.
    pub async fn fetch(
        &mut self,
        schema: &TableSchema,
        keys: &[Vec<Value>],
        watermark: Watermark,
    ) -> Result<ChunkRows<'_>, ScanError> {
        let condition = bound::key_condition(schema, keys).ok_or_else(|| no_key(schema))?;
        let version = self.open_snapshot(watermark).await?;
        self.rows(schema, &condition, version).await
    }

    /// A table without those that inherit from it, which are tables of their own; a root has nothing but its
    /// partitions.
    async fn name(&mut self, table: &TableName) -> Result<String, ScanError> {
        if let Some(name) = self.names.get(table) {
            return Ok(name.clone());
        }
        let own = sql::table(table);
        let sql = "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1::text)";
        let row = self.session.client.query_opt(sql, &[&own]).await.map_err(PgError::from)?;
        let root = row.map(|row| row.try_get(0)).transpose().map_err(PgError::from)?.unwrap_or(false);
        let name = if root { own } else { format!("ONLY {own}") };
        self.names.insert(table.clone(), name.clone());
        Ok(name)
    }

    async fn rows(
        &mut self,
        schema: &TableSchema,
        condition: &str,
        version: Version,
    ) -> Result<ChunkRows<'_>, ScanError> {
        let columns = sql::list("t.", schema.columns.iter().map(|column| column.name.as_str()));
        let sql = format!("SELECT {columns} FROM {} t WHERE {condition}", self.name(&schema.table).await?);
        let stream = self.session.client.simple_query_raw(&sql).await.map_err(PgError::from)?;
        Ok(ChunkRows {
            stream: Box::pin(stream),
            ended: false,
            spellings: schema.columns.iter().map(|column| (Spelling::of(column), column.name.clone())).collect(),
            table: schema.table.clone(),
            version,
            _scanner: std::marker::PhantomData,
        })
    }

    /// Takes a snapshot that what was captured is visible in, and says what its rows are to be labelled with.
    async fn open_snapshot(&mut self, watermark: Watermark) -> Result<Version, ScanError> {
        let started = Instant::now();
        loop {
            self.end_snapshot().await?;
            let ticket = self.in_flight.ticket(watermark.lsn);
            self.in_snapshot = true;
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
            self.session.client.batch_execute(begin).await.map_err(PgError::from)?;
            let row = self.session.client.query_one("SELECT pg_current_snapshot()::text", &[]).await;
            let text: String = row.and_then(|row| row.try_get(0)).map_err(PgError::from)?;
            let snapshot = parsed(&text)?;
            let error = match ticket.judge(&snapshot) {
                Visibility::Everything => {
                    self.in_flight.forget(&ticket, &snapshot);
                    return Ok(watermark.version);
                }
                Visibility::UpTo(version) if version >= watermark.floor && started.elapsed() >= PATIENCE => {
                    self.in_flight.forget(&ticket, &snapshot);
                    return Ok(version.min(watermark.version));
                }
                Visibility::UpTo(_) => ScanError::NotVisible,
                Visibility::NotYet(xid) => ScanError::Running { xid },
            };
            self.end_snapshot().await?;
            if started.elapsed() >= VISIBLE_WAIT {
                return Err(error);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the transaction of the last read, which keeps the table's definition as it is while it is open.
    pub async fn end_snapshot(&mut self) -> Result<(), ScanError> {
        self.held = None;
        if self.in_snapshot {
            self.session.client.batch_execute("COMMIT").await.map_err(PgError::from)?;
            self.in_snapshot = false;
        }
        Ok(())
    }
}

/// The rows of one chunk, read as fast as they are taken.
pub struct ChunkRows<'a> {
    stream: std::pin::Pin<Box<SimpleQueryStream>>,
    /// There is no more, and asking for it would be an error.
    ended: bool,
    spellings: Vec<(Spelling, String)>,
    table: TableName,
    /// What every row is labelled with.
    pub version: Version,
    _scanner: std::marker::PhantomData<&'a mut Scanner>,
}

impl std::fmt::Debug for ChunkRows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkRows").field("table", &self.table).finish_non_exhaustive()
    }
}

impl ChunkRows<'_> {
    /// Up to `rows` rows, and no more once they have `bytes`; none at the end.
    pub async fn next_batch(&mut self, rows: usize, bytes: usize) -> Result<Vec<Vec<Value>>, ScanError> {
        let (mut batch, mut has) = (Vec::new(), 0);
        while batch.len() < rows && has < bytes && !self.ended {
            match self.stream.try_next().await.map_err(PgError::from)? {
                Some(SimpleQueryMessage::Row(row)) => {
                    let values = self.spellings.iter().enumerate().map(|(index, (spelling, column))| {
                        let Some(text) = row.get(index) else { return Ok(Value::Null) };
                        let wrong =
                            |source| ScanError::Value { table: self.table.clone(), column: column.clone(), source };
                        spelling.value(text.as_bytes()).map_err(wrong)
                    });
                    let row: Vec<Value> = values.collect::<Result<_, _>>()?;
                    has += row_bytes(&row);
                    batch.push(row);
                }
                Some(_) => {}
                None => self.ended = true,
            }
        }
        Ok(batch)
    }
}

fn parsed(snapshot: &str) -> Result<PgSnapshot, PgError> {
    PgSnapshot::parse(snapshot).ok_or_else(|| PgError::Protocol("the server's snapshot cannot be read".into()))
}

fn decoded(schema: &TableSchema, bound: Option<&str>) -> Result<Option<Bound>, ScanError> {
    bound.map(|text| Bound::decode(text, schema.key.len()).ok_or_else(|| bound_error(schema))).transpose()
}

fn bound_error(schema: &TableSchema) -> ScanError {
    ScanError::Bound { table: schema.table.clone() }
}

fn no_key(schema: &TableSchema) -> ScanError {
    ScanError::NoKey { table: schema.table.clone() }
}
