//! Reading tables in chunks, and rows by key, at a known point of the log.
//!
//! What enters: a table's schema, the bounds of a chunk, and a [`Watermark`], the position that capture has reached
//! with the version it had there. What leaves: rows that hold everything up to that watermark and are labelled with its
//! version. The invariant (rule 13): no row is read before everything up to the watermark is visible to the read. Rows
//! may be newer than their label; the stream brings those changes again, at higher versions. Absent on purpose: locks
//! for longer than the opening of a snapshot, and any knowledge of which chunks there are.

use std::time::Duration;

use mysql_async::{BinaryProtocol, Conn, QueryResult, Row, prelude::Queryable};
use tokio::time::Instant;

use super::{
    connect::{ConnectError, Connector, QueryError, quoted},
    digest::digest_sql,
    literal::{self, Side},
    server::{ServerFacts, table_sql},
    spelling::{RowSpeller, SpellingError},
};
use crate::model::{
    Disposition, Flavor, GtidSet, MariadbGtids, MysqlPosition, TableName, TableSchema, Value, Version, ZeroDates,
    row_bytes,
};

/// How long a chunk waits until the watermark is visible before it gives up for now.
const VISIBLE_WAIT: Duration = Duration::from_secs(10);
/// How long the table lock of a server without GTIDs may be waited for: writers queue up behind it meanwhile.
const LOCK_WAIT_SECONDS: u32 = 1;
/// What a table that is altered while it is copied answers: unknown column, no such table (the catalog knows better), a
/// definition newer than the snapshot.
const ALTERED: [u16; 3] = [1054, 1146, 1412];
/// Between two tries of a consistent snapshot on MariaDB. The gap between log and visibility is a few milliseconds.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(2);

/// Why a scan could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("table {table}: {source}")]
    Value { table: TableName, source: SpellingError },
    #[error("the changes captured so far did not become visible on the source within {} s; it will be tried again", VISIBLE_WAIT.as_secs())]
    NotVisible,
    #[error(
        "a stored chunk bound of {table} does not fit its key; start the copy of the table again with `cutover resnapshot`"
    )]
    Bound { table: TableName },
    #[error(
        "{table} has no primary key and no unique key without nulls; add one at the source, or leave the table out of [source] tables"
    )]
    NoKey { table: TableName },
    #[error(
        "the position {position} is of another server than the one that the snapshot reads; capture must reach this server first"
    )]
    OtherServer { position: String },
}

impl ScanError {
    /// Whether trying again can help.
    pub fn disposition(&self) -> Disposition {
        match self {
            ScanError::Connect(error) => error.disposition(),
            // Read again with the columns that the table has by then.
            ScanError::Query(error) if error.code().is_some_and(|code| ALTERED.contains(&code)) => Disposition::Retry,
            ScanError::Query(error) => error.disposition(),
            ScanError::Value { source, .. } => match source {
                SpellingError::ZeroDate { .. } | SpellingError::NotText { .. } => Disposition::Halt,
                SpellingError::Unexpected { .. } => Disposition::Retry,
            },
            ScanError::NotVisible | ScanError::OtherServer { .. } => Disposition::Retry,
            ScanError::Bound { .. } | ScanError::NoKey { .. } => Disposition::Halt,
        }
    }
}

/// A point that capture has reached: everything up to `position` has a version of at most `version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    pub position: MysqlPosition,
    pub version: Version,
}

/// A connection that reads tables.
#[derive(Debug)]
pub struct Scanner {
    conn: Conn,
    connector: Connector,
    facts: ServerFacts,
    zero_dates: ZeroDates,
    /// Holds the table lock while a snapshot opens, on a server without GTIDs.
    locker: Option<Conn>,
    /// A transaction is open on `conn`.
    in_snapshot: bool,
    /// What the open transaction holds at least, if it is kept for the next read.
    held: Option<Watermark>,
}

impl Scanner {
    pub async fn connect(connector: &Connector, zero_dates: ZeroDates) -> Result<Self, ScanError> {
        let mut conn = connector.connect().await?;
        let facts = ServerFacts::load(&mut conn).await?;
        Ok(Scanner {
            conn,
            connector: connector.clone(),
            facts,
            zero_dates,
            locker: None,
            in_snapshot: false,
            held: None,
        })
    }

    /// The session's number at the server.
    pub fn id(&self) -> u32 {
        self.conn.id()
    }

    /// The key of the row that is `rows` after `lower` (exclusive; none for the start), as a bound to store; none if
    /// fewer rows are left. Reads the key's index alone.
    pub async fn next_bound(
        &mut self,
        schema: &TableSchema,
        lower: Option<&str>,
        rows: u64,
    ) -> Result<Option<String>, ScanError> {
        let sql = next_bound_sql(schema, lower, rows)?;
        let row: Option<Row> = self
            .conn
            .query_first(sql)
            .await
            .map_err(|error| QueryError::new(format!("looking for the next chunk of {}", schema.table), error))?;
        let Some(row) = row else { return Ok(None) };
        let bound = || ScanError::Bound { table: schema.table.clone() };
        let raw: Vec<Option<String>> = (0..row.len()).map(|index| row.get_opt(index).and_then(Result::ok)).collect();
        let literals = schema.key_columns().zip(raw);
        let literals: Option<Vec<String>> = literals.map(|(column, raw)| literal::from_raw(column, &raw?)).collect();
        Ok(Some(literal::encode_bound(&literals.ok_or_else(bound)?)))
    }

    /// About how many rows the table has, and how many bytes, by the server's statistics.
    pub async fn estimate(&mut self, table: &TableName) -> Result<(u64, u64), ScanError> {
        let sql = "SELECT CAST(COALESCE(MAX(TABLE_ROWS), 0) AS UNSIGNED), CAST(COALESCE(MAX(DATA_LENGTH), 0) AS UNSIGNED) \
                   FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?";
        let estimate: Option<(u64, u64)> = self
            .conn
            .exec_first(sql, (&table.schema, &table.table))
            .await
            .map_err(|error| QueryError::new(format!("estimating the rows of {table}"), error))?;
        Ok(estimate.unwrap_or_default())
    }

    /// Opens the chunk of keys after `lower` up to and with `upper` (none: to the table's end). The rows hold at
    /// least everything up to `watermark`; their version is the watermark's.
    pub async fn read_chunk(
        &mut self,
        schema: &TableSchema,
        lower: Option<&str>,
        upper: Option<&str>,
        watermark: &Watermark,
    ) -> Result<ChunkRows<'_>, ScanError> {
        let condition = chunk_condition(schema, lower, upper)?;
        self.read(schema, &condition, watermark).await
    }

    /// Opens the rows whose `columns` (indexes into the schema) have one of the given values: by key to read
    /// rows again, by foreign key to read a changed parent's children.
    pub async fn fetch(
        &mut self,
        schema: &TableSchema,
        columns: &[usize],
        values: &[Vec<Value>],
        watermark: &Watermark,
    ) -> Result<ChunkRows<'_>, ScanError> {
        let bound = || ScanError::Bound { table: schema.table.clone() };
        let condition = fetch_condition(schema, columns, values).ok_or_else(bound)?;
        self.read(schema, &condition, watermark).await
    }

    /// Ends what is open.
    pub async fn close(self) -> Result<(), ScanError> {
        let Scanner { conn, locker, .. } = self;
        for conn in [Some(conn), locker].into_iter().flatten() {
            conn.disconnect().await.map_err(|error| QueryError::new("closing a connection", error))?;
        }
        Ok(())
    }

    async fn read(
        &mut self,
        schema: &TableSchema,
        condition: &str,
        watermark: &Watermark,
    ) -> Result<ChunkRows<'_>, ScanError> {
        let held = self.held.take();
        if held.is_none() {
            self.make_visible(&schema.table, &watermark.position).await?;
        }
        let columns: Vec<String> = schema.columns.iter().map(|column| format!("t.{}", quoted(&column.name))).collect();
        let sql = format!("SELECT {} FROM {} AS t WHERE {condition}", columns.join(", "), table_sql(&schema.table));
        let result = self
            .conn
            .exec_iter(sql, ())
            .await
            .map_err(|error| QueryError::new(format!("reading {}", schema.table), error))?;
        Ok(ChunkRows {
            result,
            speller: RowSpeller::new(schema, self.zero_dates),
            table: schema.table.clone(),
            version: held.as_ref().unwrap_or(watermark).version,
        })
    }

    /// How many rows the chunk has, and a hash of them; none if the server cannot say. If it is `held`, the next read
    /// is of the same moment.
    pub async fn digest(
        &mut self,
        schema: &TableSchema,
        (lower, upper): (Option<&str>, Option<&str>),
        watermark: &Watermark,
        held: bool,
    ) -> Result<Option<(u64, u64)>, ScanError> {
        let sql = digest_sql(schema, &chunk_condition(schema, lower, upper)?);
        self.make_visible(&schema.table, &watermark.position).await?;
        if !self.in_snapshot {
            self.begin_snapshot().await?;
        }
        let told: Result<Option<(u64, u64, u64)>, _> = self.conn.query_first(sql).await;
        let told = match told.map_err(|error| QueryError::new(format!("hashing rows of {}", schema.table), error)) {
            Ok(told) => told,
            // It is reachable, and cannot make one of these columns.
            Err(error) if error.code().is_some() && error.disposition() == Disposition::Halt => {
                tracing::debug!(table = %schema.table, %error, "the source makes no digests of the table");
                None
            }
            Err(error) => return Err(error.into()),
        };
        if held {
            self.held = Some(watermark.clone());
        } else {
            self.end_snapshot().await?;
        }
        Ok(told.and_then(|(rows, hashed, hash)| (rows == hashed).then_some((rows, hash))))
    }

    /// Waits until the next read sees everything up to `captured`.
    async fn make_visible(&mut self, table: &TableName, captured: &MysqlPosition) -> Result<(), ScanError> {
        self.end_snapshot().await?;
        match (self.facts.flavor, captured.gtids.as_deref()) {
            (Flavor::Mysql, Some(gtids)) if self.facts.gtids => self.wait_for_gtids(gtids).await,
            (Flavor::Mysql, Some(_) | None) => {
                self.check_server(captured)?;
                self.snapshot_under_lock(table).await
            }
            (Flavor::Mariadb, Some(_) | None) => self.snapshot_at_least(captured).await,
        }
    }

    /// MySQL with GTIDs: a transaction is visible once the server says that it is executed.
    async fn wait_for_gtids(&mut self, gtids: &str) -> Result<(), ScanError> {
        if gtids.is_empty() {
            return Ok(());
        }
        // The set is checked before it becomes part of a statement.
        let set: GtidSet = gtids.parse().map_err(|_| ScanError::OtherServer { position: gtids.to_owned() })?;
        let sql = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{set}', {})", VISIBLE_WAIT.as_secs());
        let answer: Option<Option<i64>> = self
            .conn
            .query_first(sql)
            .await
            .map_err(|error| QueryError::new("waiting for captured transactions to become visible", error))?;
        if answer.flatten() == Some(0) { Ok(()) } else { Err(ScanError::NotVisible) }
    }

    /// MariaDB: a consistent snapshot knows the position in the log that it corresponds to exactly.
    async fn snapshot_at_least(&mut self, captured: &MysqlPosition) -> Result<(), ScanError> {
        let same_server = captured.server == self.facts.server;
        let deadline = Instant::now() + VISIBLE_WAIT;
        loop {
            self.begin_snapshot().await?;
            let rows: Vec<(String, String)> = self
                .conn
                .query("SHOW STATUS LIKE 'binlog_snapshot_%'")
                .await
                .map_err(|error| QueryError::new("asking for the snapshot's position", error))?;
            let value = |name: &str| {
                rows.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
            };
            let file = value("binlog_snapshot_file").unwrap_or_default();
            let offset = value("binlog_snapshot_position").and_then(|text| text.parse().ok()).unwrap_or_default();
            let snapshot = MysqlPosition { file, offset, server: self.facts.server.clone(), gtids: None };
            let visible = if same_server {
                snapshot.file_order(captured).is_ge()
            } else {
                self.domains_reach(&snapshot, captured).await?
            };
            if visible {
                return Ok(());
            }
            self.end_snapshot().await?;
            if Instant::now() >= deadline {
                return Err(ScanError::NotVisible);
            }
            tokio::time::sleep(SNAPSHOT_RETRY).await;
        }
    }

    /// After a failover the files have other names: what counts is how far each domain has come.
    async fn domains_reach(&mut self, snapshot: &MysqlPosition, captured: &MysqlPosition) -> Result<bool, ScanError> {
        let sql = format!("SELECT BINLOG_GTID_POS({}, {})", literal::quoted_literal(&snapshot.file), snapshot.offset);
        let reached: Option<Option<String>> = self
            .conn
            .query_first(sql)
            .await
            .map_err(|error| QueryError::new("asking for the snapshot's GTIDs", error))?;
        let reached: Result<MariadbGtids, _> = reached.flatten().unwrap_or_default().parse();
        let wanted: Result<MariadbGtids, _> = captured.gtids.as_deref().unwrap_or_default().parse();
        Ok(reached.is_ok_and(|reached| wanted.is_ok_and(|wanted| reached.contains(&wanted))))
    }

    /// MySQL without GTIDs: whoever has written the table keeps its metadata lock until the commit is visible, so
    /// that a read lock on the table waits for all of them. It is held for the opening of the snapshot alone.
    async fn snapshot_under_lock(&mut self, table: &TableName) -> Result<(), ScanError> {
        let mut locker = match self.locker.take() {
            Some(locker) => locker,
            None => self.connector.connect().await?,
        };
        let sql = format!("SET SESSION lock_wait_timeout = {LOCK_WAIT_SECONDS}");
        locker.query_drop(sql).await.map_err(|error| QueryError::new("bounding the wait for a table lock", error))?;
        let lock = format!("LOCK TABLES {} READ", table_sql(table));
        locker
            .query_drop(lock)
            .await
            .map_err(|error| QueryError::new(format!("locking {table} for the opening of a snapshot"), error))?;
        let opened = self.begin_snapshot().await;
        locker.query_drop("UNLOCK TABLES").await.map_err(|error| QueryError::new("unlocking", error))?;
        self.locker = Some(locker);
        opened
    }

    fn check_server(&self, captured: &MysqlPosition) -> Result<(), ScanError> {
        if captured.server == self.facts.server {
            return Ok(());
        }
        Err(ScanError::OtherServer { position: format!("{}:{}", captured.file, captured.offset) })
    }

    async fn begin_snapshot(&mut self) -> Result<(), ScanError> {
        let sql = "START TRANSACTION WITH CONSISTENT SNAPSHOT";
        self.conn.query_drop(sql).await.map_err(|error| QueryError::new("opening a snapshot", error))?;
        self.in_snapshot = true;
        Ok(())
    }

    /// Ends the transaction of the last read, which keeps the table's definition as it is while it is open.
    pub async fn end_snapshot(&mut self) -> Result<(), ScanError> {
        self.held = None;
        if self.in_snapshot {
            self.conn.query_drop("COMMIT").await.map_err(|error| QueryError::new("closing a snapshot", error))?;
            self.in_snapshot = false;
        }
        Ok(())
    }
}

/// The rows of one chunk, read as fast as they are taken.
#[derive(Debug)]
pub struct ChunkRows<'a> {
    result: QueryResult<'a, 'static, BinaryProtocol>,
    speller: RowSpeller,
    table: TableName,
    /// What every row is labelled with.
    pub version: Version,
}

impl ChunkRows<'_> {
    /// The next row, its values in the schema's column order.
    pub async fn next_row(&mut self) -> Result<Option<Vec<Value>>, ScanError> {
        let row =
            self.result.next().await.map_err(|error| QueryError::new(format!("reading {}", self.table), error))?;
        let Some(row) = row else { return Ok(None) };
        let values = self.speller.row(row);
        values.map(Some).map_err(|source| ScanError::Value { table: self.table.clone(), source })
    }

    /// Up to `rows` rows, and no more once they have `bytes`; none at the end.
    pub async fn next_batch(&mut self, rows: usize, bytes: usize) -> Result<Vec<Vec<Value>>, ScanError> {
        let (mut batch, mut has) = (Vec::new(), 0);
        while batch.len() < rows
            && has < bytes
            && let Some(row) = self.next_row().await?
        {
            has += row_bytes(&row);
            batch.push(row);
        }
        Ok(batch)
    }
}

fn next_bound_sql(schema: &TableSchema, lower: Option<&str>, rows: u64) -> Result<String, ScanError> {
    if schema.key.is_empty() {
        return Err(ScanError::NoKey { table: schema.table.clone() });
    }
    let raw: Vec<String> = schema.key_columns().map(literal::raw_expression).collect();
    let order: Vec<String> = schema.key_columns().map(|column| format!("t.{}", quoted(&column.name))).collect();
    Ok(format!(
        "SELECT {} FROM {} AS t WHERE {} ORDER BY {} LIMIT 1 OFFSET {}",
        raw.join(", "),
        table_sql(&schema.table),
        chunk_condition(schema, lower, None)?,
        order.join(", "),
        rows.saturating_sub(1)
    ))
}

fn chunk_condition(schema: &TableSchema, lower: Option<&str>, upper: Option<&str>) -> Result<String, ScanError> {
    let sides = [(lower, Side::After), (upper, Side::UpTo)];
    let mut conditions = Vec::new();
    for (bound, side) in sides {
        let Some(bound) = bound else { continue };
        let literals = literal::decode_bound(bound, schema.key.len())
            .ok_or_else(|| ScanError::Bound { table: schema.table.clone() })?;
        conditions.push(format!("({})", literal::condition(schema, &literals, side)));
    }
    if conditions.is_empty() { Ok("TRUE".into()) } else { Ok(conditions.join(" AND ")) }
}

/// None if a value is none of its column, or there is nothing to look for.
fn fetch_condition(schema: &TableSchema, columns: &[usize], values: &[Vec<Value>]) -> Option<String> {
    let mut rows = Vec::with_capacity(values.len());
    for row in values.iter().filter(|row| row.len() == columns.len()) {
        let mut parts = Vec::with_capacity(columns.len());
        for (index, value) in columns.iter().zip(row) {
            let column = schema.columns.get(*index)?;
            let operand = literal::equality_operand(column, value);
            parts.push(format!("{operand} = {}", literal::from_value(column, value)?));
        }
        rows.push(format!("({})", parts.join(" AND ")));
    }
    (!rows.is_empty()).then(|| rows.join(" OR "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, ColumnType};

    fn schema(key: &[usize]) -> TableSchema {
        let column = |name: &str, source_type: &str| Column {
            name: name.into(),
            column_type: ColumnType::Integer,
            source_type: source_type.into(),
            nullable: false,
            charset: None,
            collation: None,
            generated: false,
        };
        TableSchema {
            table: TableName::new("shop", "it`em"),
            columns: vec![column("id", "int(11)"), column("day", "date")],
            key: key.to_vec(),
        }
    }

    #[test]
    fn the_next_bound_is_looked_for_in_the_key_alone() {
        let sql = next_bound_sql(&schema(&[0]), Some(r#"["7"]"#), 1_000).expect("valid");
        let expected = "SELECT CAST(t.`id` AS CHAR) FROM `shop`.`it``em` AS t WHERE (t.`id` > 7) \
                        ORDER BY t.`id` LIMIT 1 OFFSET 999";
        assert_eq!(sql, expected);
    }

    #[test]
    fn a_chunk_excludes_its_lower_bound_and_includes_its_upper() {
        let condition = chunk_condition(&schema(&[0]), Some(r#"["7"]"#), Some(r#"["9"]"#)).expect("valid");
        assert_eq!(condition, "(t.`id` > 7) AND (t.`id` <= 9)");
        assert_eq!(chunk_condition(&schema(&[0]), None, None).expect("valid"), "TRUE");
    }

    #[test]
    fn a_bound_of_another_key_is_refused() {
        let error = chunk_condition(&schema(&[0, 1]), Some(r#"["7"]"#), None).expect_err("one column short");
        assert_eq!(error.disposition(), Disposition::Halt);
        assert!(matches!(next_bound_sql(&schema(&[]), None, 1), Err(ScanError::NoKey { .. })));
    }

    #[test]
    fn rows_are_fetched_by_any_columns() {
        let values = [vec![Value::Int(1), Value::Text("2024-01-02Z".into())]];
        let condition = fetch_condition(&schema(&[0]), &[0, 1], &values);
        assert_eq!(condition.as_deref(), Some("(t.`id` = 1 AND t.`day` = '2024-01-02')"));
        assert_eq!(fetch_condition(&schema(&[0]), &[0], &[]), None);
    }
}
