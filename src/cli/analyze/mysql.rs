//! MySQL and MariaDB: the catalog, `performance_schema`, and a sample of each table.

use std::{collections::BTreeMap, time::Duration};

use mysql_async::{Conn, prelude::Queryable};
use tokio::time::Instant;

use super::{Analysis, AnalyzeError, Rates, SAMPLE_BYTES_MAX, Sample, Table, failed, rate, sample_rows};
use crate::{
    config::Config,
    database::mysql::{
        catalog::{CatalogError, load_tables},
        connect::Connector,
        details::{TableDetails, load_details},
    },
    model::{Column, Problem, TableSchema},
};

const SIZES: &str = "SELECT c.TABLE_NAME, CAST(COALESCE(c.TABLE_ROWS, 0) AS UNSIGNED), \
     CAST(COALESCE(c.DATA_LENGTH, 0) + COALESCE(c.INDEX_LENGTH, 0) AS UNSIGNED) \
     FROM information_schema.TABLES c WHERE c.TABLE_SCHEMA = ? AND c.TABLE_TYPE = 'BASE TABLE'";
const COUNTERS: &str = "SELECT OBJECT_NAME, COUNT_FETCH, COUNT_INSERT, COUNT_UPDATE, COUNT_DELETE \
     FROM performance_schema.table_io_waits_summary_by_table WHERE OBJECT_TYPE = 'TABLE' AND OBJECT_SCHEMA = ?";
const UPTIME: &str = "SHOW GLOBAL STATUS LIKE 'Uptime'";
const TRIGGERS: &str = "SELECT c.TRIGGER_NAME, c.EVENT_OBJECT_TABLE, CONCAT(c.ACTION_TIMING, ' ', c.EVENT_MANIPULATION) \
     FROM information_schema.TRIGGERS c WHERE c.EVENT_OBJECT_SCHEMA = ? ORDER BY c.EVENT_OBJECT_TABLE, c.TRIGGER_NAME";
const VIEWS: &str =
    "SELECT c.TABLE_NAME FROM information_schema.VIEWS c WHERE c.TABLE_SCHEMA = ? ORDER BY c.TABLE_NAME";
const ROUTINES: &str = "SELECT CONCAT(LOWER(c.ROUTINE_TYPE), ' ', c.ROUTINE_NAME) FROM information_schema.ROUTINES c \
     WHERE c.ROUTINE_SCHEMA = ? ORDER BY 1";
const EVENTS: &str = "SELECT c.EVENT_NAME FROM information_schema.EVENTS c WHERE c.EVENT_SCHEMA = ? ORDER BY 1";

/// What the server has counted of a table: rows read, inserted, updated, deleted.
type Counters = (u64, u64, u64, u64);

pub(super) async fn analyze(config: &Config) -> Result<Analysis, AnalyzeError> {
    let connector = Connector::new(&config.source.url).map_err(|error| failed("[source] url", &error))?;
    let Some(database) = connector.database().map(str::to_owned) else {
        return Err(AnalyzeError(Problem::new("the source URL names no database", "end it with /database")));
    };
    let mut conn = connector.connect().await.map_err(|error| failed("connecting", &error))?;
    let analysis = asked(config, &mut conn, &database).await;
    if let Err(error) = conn.disconnect().await {
        tracing::debug!(%error, "the connection to the source ended badly");
    }
    analysis.map_err(|error| failed("its catalog cannot be read", &error))
}

async fn asked(config: &Config, conn: &mut Conn, database: &str) -> Result<Analysis, CatalogError> {
    let only = config.source.tables.as_deref();
    let version: Option<String> = conn.query_first("SELECT VERSION()").await?;
    let version = version.unwrap_or_default();
    let name = if version.to_lowercase().contains("mariadb") { "MariaDB" } else { "MySQL" };
    let mut analysis = Analysis { source: format!("{name} {version}"), ..Analysis::default() };
    let (tables, details) = (load_tables(conn, database, only).await?, load_details(conn, database, only).await?);
    fresh_sizes(conn).await?;
    let sizes: Vec<(String, u64, u64)> = conn.exec(SIZES, (database,)).await?;
    let counted = counters(conn, database, &mut analysis).await?;
    for schema in &tables {
        let name = &schema.table.table;
        let details = details.iter().find(|details| details.table == schema.table);
        let (rows, bytes) =
            sizes.iter().find(|(table, ..)| table == name).map_or((0, 0), |(_, rows, bytes)| (*rows, *bytes));
        let rates = counted.as_ref().map(|(over, counters)| {
            let (read, inserted, updated, deleted) = counters.get(name).copied().unwrap_or_default();
            Rates {
                inserted: rate(inserted, *over),
                updated: rate(updated, *over),
                deleted: rate(deleted, *over),
                read: rate(read, *over),
            }
        });
        analysis.tables.push(Table {
            table: name.clone(),
            rows,
            bytes,
            key: schema.key_columns().map(|column| column.name.clone()).collect(),
            parents: details.map(parents).unwrap_or_default(),
            rates,
            care: care(schema, details),
            sample: sample(conn, schema, sample_rows(rows, bytes)).await?,
            read_seconds: None,
        });
    }
    analysis.beside = beside(conn, database, &details).await?;
    Ok(analysis)
}

/// MySQL 8 keeps a table's size for a day, and answers with that.
async fn fresh_sizes(conn: &mut Conn) -> Result<(), CatalogError> {
    match conn.query_drop("SET SESSION information_schema_stats_expiry = 0").await {
        // Others have no such variable.
        Ok(()) | Err(mysql_async::Error::Server(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A table's name, and how many of its rows were read, inserted, updated and deleted.
type CounterRow = (String, u64, u64, u64, u64);

/// What the server counts, where it does.
async fn counters(
    conn: &mut Conn,
    database: &str,
    analysis: &mut Analysis,
) -> Result<Option<(Duration, BTreeMap<String, Counters>)>, CatalogError> {
    let what = "how the tables are read and written";
    let on: Option<u8> = conn.query_first("SELECT @@performance_schema").await?;
    if on != Some(1) {
        let fix = "start the server with performance_schema = ON, and run it again after a typical day";
        analysis.unknown.push(Problem::new(what, fix));
        return Ok(None);
    }
    let found: Result<Vec<CounterRow>, mysql_async::Error> = conn.exec(COUNTERS, (database,)).await;
    let found = match found {
        Ok(found) => found,
        Err(mysql_async::Error::Server(error)) => {
            let fix =
                format!("GRANT SELECT ON performance_schema.* TO the source user (the server says: {})", error.message);
            analysis.unknown.push(Problem::new(what, fix));
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let uptime: Option<(String, u64)> = conn.query_first(UPTIME).await?;
    let seconds = uptime.map_or(1, |(_, seconds)| seconds.max(1));
    analysis.counted_seconds = Some(seconds as f64);
    let found =
        found.into_iter().map(|(name, read, inserted, updated, deleted)| (name, (read, inserted, updated, deleted)));
    Ok(Some((Duration::from_secs(seconds), found.collect())))
}

fn parents(details: &TableDetails) -> Vec<String> {
    let mut parents: Vec<String> = details.foreign_keys.iter().map(|key| key.parent.table.clone()).collect();
    parents.sort();
    parents.dedup();
    parents
}

async fn beside(conn: &mut Conn, database: &str, details: &[TableDetails]) -> Result<Vec<String>, CatalogError> {
    let mut beside = Vec::new();
    let triggers: Vec<(String, String, String)> = conn.exec(TRIGGERS, (database,)).await?;
    beside.extend(triggers.into_iter().map(|(name, table, when)| format!("trigger {name} on {table} ({when})")));
    for details in details {
        let changing = details.foreign_keys.iter().filter(|key| {
            [&key.on_delete, &key.on_update].iter().any(|rule| matches!(rule.as_str(), "CASCADE" | "SET NULL"))
        });
        beside.extend(changing.map(|key| {
            format!(
                "foreign key {} of {}: ON DELETE {}, ON UPDATE {} of {}",
                key.name, details.table.table, key.on_delete, key.on_update, key.parent.table
            )
        }));
    }
    let views: Vec<String> = conn.exec(VIEWS, (database,)).await?;
    beside.extend(views.into_iter().map(|name| format!("view {name}")));
    beside.extend(conn.exec::<String, _, _>(ROUTINES, (database,)).await?);
    let events: Vec<String> = conn.exec(EVENTS, (database,)).await?;
    beside.extend(events.into_iter().map(|name| format!("event {name}")));
    Ok(beside)
}

/// What of the columns is another thing in PostgreSQL (docs/types.md).
fn care(schema: &TableSchema, details: Option<&TableDetails>) -> Vec<String> {
    let mut care: Vec<String> = Vec::new();
    let mut add = |what: &str, is_one: &dyn Fn(&Column) -> bool| {
        let names: Vec<&str> =
            schema.columns.iter().filter(|column| is_one(column)).map(|column| column.name.as_str()).collect();
        if !names.is_empty() {
            care.push(format!("{what}: {}", names.join(", ")));
        }
    };
    let begins = |column: &Column, names: &[&str]| names.iter().any(|name| column.source_type.starts_with(name));
    add("may hold zero dates, which PostgreSQL has not", &|column| begins(column, &["date", "timestamp"]));
    add("unsigned above what PostgreSQL's bigint holds", &|column| {
        begins(column, &["bigint"]) && column.source_type.contains("unsigned")
    });
    add("times beyond a day, or negative", &|column| {
        column.source_type.starts_with("time") && !begins(column, &["timestamp"])
    });
    add("sets and enums, which are text", &|column| begins(column, &["enum", "set"]));
    add("bits", &|column| begins(column, &["bit"]));
    add("years, with 0000 among them", &|column| begins(column, &["year"]));
    add("geometry", &|column| {
        begins(column, &["geometry", "point", "linestring", "polygon", "multi", "geomcollection"])
    });
    add("single precision", &|column| begins(column, &["float"]));
    add("not in UTF-8", &|column| {
        column.charset.as_deref().is_some_and(|charset| !["utf8", "utf8mb3", "utf8mb4", "ascii"].contains(&charset))
    });
    add("keys that compare without case or accents", &|column| {
        schema.key_columns().any(|key| key.name == column.name)
            && column.collation.as_deref().is_some_and(|collation| collation.ends_with("_ci"))
    });
    add("generated", &|column| column.generated);
    if let Some(details) = details.filter(|details| !details.engine.eq_ignore_ascii_case("innodb")) {
        care.push(format!("engine {}: reads of the copy may hold writers up", details.engine));
    }
    care
}

/// Reads the first rows; none where the table has none.
async fn sample(conn: &mut Conn, schema: &TableSchema, rows_max: u64) -> Result<Option<Sample>, CatalogError> {
    let quoted = |name: &str| format!("`{}`", name.replace('`', "``"));
    let columns: Vec<String> = schema.columns.iter().map(|column| quoted(&column.name)).collect();
    let (database, table) = (quoted(&schema.table.schema), quoted(&schema.table.table));
    let sql = format!("SELECT {} FROM {database}.{table} LIMIT {rows_max}", columns.join(", "));
    let began = Instant::now();
    let (mut rows, mut bytes) = (0, 0);
    let mut result = conn.query_iter(sql).await?;
    while let Some(row) = result.next().await? {
        rows += 1;
        bytes += row.unwrap_raw().iter().flatten().map(width).sum::<u64>();
        if bytes >= SAMPLE_BYTES_MAX {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    result.drop_result().await?;
    Ok((rows > 0).then_some(Sample { rows, bytes, seconds }))
}

fn width(value: &mysql_async::Value) -> u64 {
    match value {
        mysql_async::Value::NULL => 0,
        mysql_async::Value::Bytes(bytes) => bytes.len() as u64,
        mysql_async::Value::Int(_)
        | mysql_async::Value::UInt(_)
        | mysql_async::Value::Float(_)
        | mysql_async::Value::Double(_)
        | mysql_async::Value::Date(..)
        | mysql_async::Value::Time(..) => 8,
    }
}
