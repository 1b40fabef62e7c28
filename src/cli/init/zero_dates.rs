//! Which NOT NULL date columns hold zero dates: one bounded look at the rows, since no setting of the server says
//! what was written before it was set.

use std::time::Duration;

use mysql_async::{Conn, Error, Row, prelude::Queryable};

use super::plan::{ZeroDateColumns, ZeroDatesFound, is_date};
use crate::{
    database::mysql::connect::{QueryError, quoted},
    model::TableSchema,
};

/// How long one table may be looked at: a scan of some millions of rows.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// MySQL's and MariaDB's errors for a statement that took too long.
const TIMED_OUT: [u16; 2] = [3024, 1969];

/// The NOT NULL date columns of `tables` that hold zero dates, or may.
pub(super) async fn find(
    conn: &mut Conn,
    mariadb: bool,
    tables: &[TableSchema],
) -> Result<ZeroDateColumns, QueryError> {
    let mut found = ZeroDateColumns::new();
    for schema in tables {
        let columns: Vec<&str> = schema
            .columns
            .iter()
            .filter(|column| !column.nullable && is_date(&column.column_type))
            .map(|column| column.name.as_str())
            .collect();
        if columns.is_empty() {
            continue;
        }
        for (column, zero) in columns.iter().zip(read_zero_dates(conn, mariadb, schema, &columns).await?) {
            if let Some(zero) = zero {
                found.insert((schema.table.table.clone(), (*column).to_owned()), zero);
            }
        }
    }
    Ok(found)
}

async fn read_zero_dates(
    conn: &mut Conn,
    mariadb: bool,
    schema: &TableSchema,
    columns: &[&str],
) -> Result<Vec<Option<ZeroDatesFound>>, QueryError> {
    let tests = columns.iter().map(|column| {
        let column = quoted(column);
        format!("COALESCE(MAX(YEAR({column}) = 0 OR MONTH({column}) = 0 OR DAYOFMONTH({column}) = 0), 0)")
    });
    let tests = tests.collect::<Vec<_>>().join(", ");
    let table = format!("{}.{}", quoted(&schema.table.schema), quoted(&schema.table.table));
    let sql = if mariadb {
        format!("SET STATEMENT max_statement_time = {} FOR SELECT {tests} FROM {table}", LOOK_TIMEOUT.as_secs())
    } else {
        format!("SELECT /*+ MAX_EXECUTION_TIME({}) */ {tests} FROM {table}", LOOK_TIMEOUT.as_millis())
    };
    let row: Option<Row> = match conn.query_first(sql).await {
        Ok(row) => row,
        Err(Error::Server(error)) if TIMED_OUT.contains(&error.code) => {
            return Ok(vec![Some(ZeroDatesFound::Unknown); columns.len()]);
        }
        Err(error) => return Err(QueryError::new(format!("looking for zero dates in {}", schema.table), error)),
    };
    let found = (0..columns.len()).map(|index| {
        let zero = row.as_ref().and_then(|row| row.get_opt::<u8, _>(index)).and_then(Result::ok);
        zero.is_none_or(|zero| zero != 0).then_some(ZeroDatesFound::Found)
    });
    Ok(found.collect())
}
