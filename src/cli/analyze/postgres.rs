//! PostgreSQL: its catalog, `pg_stat_user_tables`, and a sample of each table.

use std::{pin::pin, time::Duration};

use futures::TryStreamExt;
use tokio::time::Instant;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Analysis, AnalyzeError, Rates, Sample, Table, failed, rate, sample_rows};
use crate::{
    config::Config,
    database::postgres::{
        Address, PgError, Session,
        server::ServerFacts,
        sql,
        tables::{self, SourceTable},
    },
    model::{ColumnType, Problem, TableSchema},
    source,
};

/// Sizes, counters and parents of a table, over its partitions. It takes no lock but the one that a size does.
const FACTS: &str = "
WITH RECURSIVE tree AS (
  SELECT $1::oid AS oid UNION ALL
  SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid JOIN pg_class p ON p.oid = i.inhparent WHERE p.relkind = 'p')
SELECT coalesce(sum(greatest(c.reltuples, 0)::float8) FILTER (WHERE c.relkind <> 'p'), 0)::int8,
  coalesce(sum(pg_total_relation_size(c.oid)), 0)::int8,
  bool_and(c.reltuples >= 0 OR c.relkind = 'p'),
  coalesce(sum(s.n_tup_ins), 0)::int8, coalesce(sum(s.n_tup_upd), 0)::int8, coalesce(sum(s.n_tup_del), 0)::int8,
  coalesce(sum(coalesce(s.seq_tup_read, 0) + coalesce(s.idx_tup_fetch, 0)), 0)::int8,
  ARRAY(SELECT DISTINCT p.relname::text FROM pg_constraint k JOIN pg_class p ON p.oid = k.confrelid
    WHERE k.conrelid = $1 AND k.contype = 'f' ORDER BY 1)
FROM tree JOIN pg_class c ON c.oid = tree.oid LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid";

/// Since when the server counts: its statistics' last reset, or its own start.
const COUNTED: &str = "
SELECT extract(epoch FROM clock_timestamp() - greatest(coalesce(stats_reset, '-infinity'), pg_postmaster_start_time()))::float8,
  coalesce(stats_reset, '-infinity') = '-infinity', current_setting('track_counts')::bool
FROM pg_stat_database WHERE datname = current_database()";

/// What does not move, or does something beside the move.
const BESIDE: &str = "
SELECT 'trigger ' || t.tgname || ' on ' || c.relname || CASE WHEN t.tgenabled = 'D' THEN ' (disabled)' ELSE '' END
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND c.oid = ANY($1)
UNION ALL SELECT 'foreign key ' || k.conname || ' of ' || c.relname || ' changes rows of it ON ' ||
  concat_ws(' and ', CASE WHEN k.confdeltype IN ('c', 'n', 'd') THEN 'DELETE' END, CASE WHEN k.confupdtype IN ('c', 'n', 'd') THEN 'UPDATE' END) ||
  ' of ' || p.relname || '; the stream shows these changes'
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class p ON p.oid = k.confrelid
WHERE k.contype = 'f' AND k.conparentid = 0 AND c.oid = ANY($1) AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
UNION ALL SELECT CASE v.relkind WHEN 'm' THEN 'materialized view ' ELSE 'view ' END || v.relname
FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace WHERE v.relkind IN ('v', 'm') AND n.nspname = $2
UNION ALL SELECT count(*) || ' functions and procedures of schema ' || $2 FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
WHERE n.nspname = $2 AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = f.oid AND d.deptype = 'e') HAVING count(*) > 0
UNION ALL SELECT 'rule ' || r.rulename || ' on ' || c.relname FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
WHERE c.oid = ANY($1) AND r.rulename <> '_RETURN'
ORDER BY 1";

pub(super) async fn analyze(config: &Config) -> Result<Analysis, AnalyzeError> {
    let address =
        Address::parse(&config.source.url).map_err(|error| failed("[source] url", &error.problem().to_string()))?;
    let options = source::postgres::options(&config.name, config.source.ca_file.clone());
    let session = Session::open(&address, &options).await.map_err(|error| failed("connecting", &error))?;
    asked(config, &session.client).await.map_err(|error| failed("its catalog cannot be read", &error))
}

async fn asked(config: &Config, client: &Client) -> Result<Analysis, PgError> {
    let facts = ServerFacts::load(client).await?;
    let (schema, only) = (config.source.postgres_schema(), config.source.tables.as_deref());
    let found = tables::load(client, schema, only).await?;
    let version = facts.version;
    let mut analysis =
        Analysis { source: format!("PostgreSQL {}.{}", version / 10_000, version % 10_000), ..Analysis::default() };
    let counted = client.query_one(COUNTED, &[]).await?;
    let (seconds, since_start, counts): (f64, bool, bool) =
        (counted.try_get(0)?, counted.try_get(1)?, counted.try_get(2)?);
    let over = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    if counts {
        analysis.counted_seconds = Some(seconds);
    }
    if counts && since_start {
        let what = "since when the server has counted: its statistics outlive a restart, and were never reset, so that the rates may be too high";
        analysis.unknown.push(Problem::new(what, "SELECT pg_stat_reset(), and run it again after a typical day"));
    }
    for table in &found {
        let (mut row, estimated) = table_of(client, table, counts.then_some(over)).await?;
        if !estimated {
            let name = sql::table(&table.schema.table);
            analysis.unknown.push(Problem::new(format!("how many rows {name} has"), format!("ANALYZE {name}")));
        }
        row.sample = sample(client, &table.schema, sample_rows(row.rows, row.bytes)).await?;
        analysis.tables.push(row);
    }
    let oids: Vec<u32> = found.iter().map(|table| table.oid).collect();
    for row in client.query(BESIDE, &[&oids, &schema]).await? {
        analysis.beside.push(row.try_get(0)?);
    }
    Ok(analysis)
}

/// A table, and whether its rows have ever been counted.
async fn table_of(client: &Client, table: &SourceTable, over: Option<Duration>) -> Result<(Table, bool), PgError> {
    let row = client.query_one(FACTS, &[&table.oid]).await?;
    let count = |index: usize| row.try_get::<_, i64>(index).map(i64::unsigned_abs);
    let rates = match over {
        None => None,
        Some(over) => Some(Rates {
            inserted: rate(count(3)?, over),
            updated: rate(count(4)?, over),
            deleted: rate(count(5)?, over),
            read: rate(count(6)?, over),
        }),
    };
    let described = Table {
        table: table.schema.table.table.clone(),
        rows: count(0)?,
        bytes: count(1)?,
        key: table.schema.key_columns().map(|column| column.name.clone()).collect(),
        parents: row.try_get(7)?,
        rates,
        care: care(table),
        ..Table::default()
    };
    Ok((described, row.try_get(2)?))
}

fn care(table: &SourceTable) -> Vec<String> {
    let mut care = Vec::new();
    if table.partitioned {
        care.push(
            "partitioned: it is moved as one table; DETACH, DROP and TRUNCATE of a partition copy it again".into(),
        );
    }
    if !table.wide.is_empty() && table.identity != 'f' {
        let columns = table.wide.join(", ");
        care.push(format!(
            "values that may be stored out of line ({columns}): an update that leaves them as they are costs a query"
        ));
    }
    if !table.generated.is_empty() {
        care.push(format!("generated, and not in the stream: {}", table.generated.join(", ")));
    }
    let texts = table
        .schema
        .columns
        .iter()
        .filter(|column| column.column_type == ColumnType::Text && !is_text(&column.source_type));
    let texts: Vec<String> = texts.map(|column| format!("{} {}", column.name, column.source_type)).collect();
    if !texts.is_empty() {
        care.push(format!("text in a transform: {}", texts.join(", ")));
    }
    care
}

fn is_text(source_type: &str) -> bool {
    ["text", "character", "varchar", "bpchar"].iter().any(|name| source_type.starts_with(name))
}

/// Reads the first rows; none where the table has none.
async fn sample(client: &Client, schema: &TableSchema, rows_max: u64) -> Result<Option<Sample>, PgError> {
    let columns = sql::list("t.", schema.columns.iter().map(|column| column.name.as_str()));
    let began = Instant::now();
    let sql = format!("SELECT {columns} FROM {} t LIMIT {rows_max}", sql::table(&schema.table));
    let mut stream = pin!(client.simple_query_raw(&sql).await?);
    let (mut rows, mut bytes) = (0, 0);
    while let Some(message) = stream.try_next().await? {
        if let SimpleQueryMessage::Row(row) = message {
            rows += 1;
            bytes += (0..row.len()).filter_map(|index| row.get(index)).map(|text| text.len() as u64).sum::<u64>();
        }
    }
    Ok((rows > 0).then(|| Sample { rows, bytes, seconds: began.elapsed().as_secs_f64() }))
}
