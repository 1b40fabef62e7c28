//! Whether what a statement writes to one table can end in another.
//!
//! What enters: a connection, the tables that a statement names, and the captured ones. What leaves: why the statement
//! may have changed a captured row, if it may. The catalog is that of now, and a user sees only what it may see: a
//! table that is not seen may be a view, and triggers that are not seen may be there.

use mysql_async::{Conn, Row, prelude::Queryable};

use super::{
    connect::QueryError,
    server::{Grants, table_sql},
};
use crate::model::TableName;

/// Engines whose tables hold their own rows: what is written to a MERGE or FEDERATED table is in another one.
const OWN_ROWS: [&str; 9] =
    ["InnoDB", "MyISAM", "Aria", "MEMORY", "ARCHIVE", "CSV", "BLACKHOLE", "ROCKSDB", "NDBCLUSTER"];
/// How many schemas foreign keys are followed through.
const SCHEMAS_MAX: usize = 100;

/// Why a statement that writes to `written` and reads `read` may have changed rows of `captured`; none if it cannot.
///
/// # Errors
/// When the catalog cannot be asked.
pub async fn why_captured_rows_may_change(
    conn: &mut Conn,
    written: &[TableName],
    read: &[TableName],
    captured: &[TableName],
) -> Result<Option<String>, QueryError> {
    for table in written.iter().chain(read) {
        if !holds_its_own_rows(conn, table).await? {
            return Ok(Some(format!(
                "{table} is no table with rows of its own that the source user may see (GRANT SELECT, TRIGGER ON {} to it and start \
                 again, if it is one)",
                table_sql(table)
            )));
        }
    }
    let grants = Grants::load(conn).await?;
    for table in written {
        if !grants.on("TRIGGER", &table.schema, &table.table) {
            return Ok(Some(format!(
                "the source user may not see whether {table} has triggers (GRANT TRIGGER ON {} to it and start again)",
                table_sql(table)
            )));
        }
        if has_triggers(conn, table).await? {
            return Ok(Some(format!("{table} has triggers")));
        }
    }
    let parents = parents_of(conn, captured).await?;
    let reaches = written.iter().find(|table| parents.contains(table));
    Ok(reaches.map(|table| format!("foreign keys lead from captured tables to {table}")))
}

/// Whether this is a table of the MEMORY engine, which a server empties when it comes up, or one that is not there any
/// more or that the user may not see.
///
/// # Errors
/// When the catalog cannot be asked.
pub async fn may_be_in_memory(conn: &mut Conn, table: &TableName) -> Result<bool, QueryError> {
    Ok(engine(conn, table).await?.is_none_or(|engine| engine.eq_ignore_ascii_case("MEMORY")))
}

async fn holds_its_own_rows(conn: &mut Conn, table: &TableName) -> Result<bool, QueryError> {
    let engine = engine(conn, table).await?;
    Ok(engine.is_some_and(|engine| OWN_ROWS.iter().any(|own| engine.eq_ignore_ascii_case(own))))
}

async fn engine(conn: &mut Conn, table: &TableName) -> Result<Option<String>, QueryError> {
    let sql = "SELECT ENGINE FROM information_schema.TABLES \
               WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND TABLE_TYPE = 'BASE TABLE'";
    let engine: Option<Option<String>> =
        conn.exec_first(sql, (&table.schema, &table.table)).await.map_err(|error| QueryError::new(ASKING, error))?;
    Ok(engine.flatten())
}

async fn has_triggers(conn: &mut Conn, table: &TableName) -> Result<bool, QueryError> {
    let sql = "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS \
               WHERE EVENT_OBJECT_SCHEMA = ? AND EVENT_OBJECT_TABLE = ? LIMIT 1";
    let found: Option<Row> =
        conn.exec_first(sql, (&table.schema, &table.table)).await.map_err(|error| QueryError::new(ASKING, error))?;
    Ok(found.is_some())
}

/// The tables whose rows foreign keys carry changes over from to these, through any number of tables.
async fn parents_of(conn: &mut Conn, captured: &[TableName]) -> Result<Vec<TableName>, QueryError> {
    let sql = "SELECT TABLE_NAME, UNIQUE_CONSTRAINT_SCHEMA, REFERENCED_TABLE_NAME \
               FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = ? \
               AND NOT (DELETE_RULE IN ('RESTRICT', 'NO ACTION') AND UPDATE_RULE IN ('RESTRICT', 'NO ACTION'))";
    let mut keys: Vec<(TableName, TableName)> = Vec::new();
    let mut asked: Vec<String> = Vec::new();
    let mut reached = captured.to_vec();
    loop {
        let schema = reached.iter().map(|table| &table.schema).find(|schema| !asked.contains(schema)).cloned();
        if let Some(schema) = schema.filter(|_| asked.len() < SCHEMAS_MAX) {
            let found: Vec<(String, String, String)> =
                conn.exec(sql, (&schema,)).await.map_err(|error| QueryError::new(ASKING, error))?;
            let key = |(child, parents, parent)| (TableName::new(&schema, child), TableName::new(parents, parent));
            keys.extend(found.into_iter().map(key));
            asked.push(schema);
        }
        let more = keys.iter().filter(|(child, parent)| reached.contains(child) && !reached.contains(parent));
        let more: Vec<TableName> = more.map(|(_, parent)| parent.clone()).collect();
        let schemas_left = reached.iter().chain(&more).any(|table| !asked.contains(&table.schema));
        if more.is_empty() && (!schemas_left || asked.len() >= SCHEMAS_MAX) {
            return Ok(reached);
        }
        reached.extend(more);
    }
}

const ASKING: &str = "asking where the changes of a table may end";
