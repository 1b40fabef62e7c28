//! The tables of a source: columns, types, keys, and what of a row the server writes to its log.
//!
//! Types are as the transforms contract says: PostgreSQL's own as they are, a domain as what it is made of, and types
//! of the user's (enums, composites, those of extensions) as text, which the target's own type is made of. Generated
//! columns are left out, since the stream does not have them, and so are cutover's own in a table that it also writes
//! to.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::{PgError, catalog, sql};
use crate::model::{Column, ColumnType, Problem, TableName, TableSchema};

/// A table of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    pub schema: TableSchema,
    /// `pg_class.relreplident`: default, nothing, full, or index.
    pub identity: char,
    pub partitioned: bool,
    /// Partitions that log less or more of a row than the root says, each with its schema.
    pub odd_partitions: Vec<String>,
    /// Partitions whose rows are in no log, each with its schema.
    pub unlogged_partitions: Vec<String>,
    /// The current user may act for its owner, who alone may publish it.
    pub owned: bool,
    /// Columns that may be stored out of line.
    pub wide: Vec<String>,
    /// Columns that the server computes.
    pub generated: Vec<String>,
    /// Of each column, what the log calls its type.
    pub wire_types: Vec<(u32, i32)>,
    pub oid: u32,
}

/// No `pg_partition_tree`, which waits for every partition that somebody has locked.
const TABLES: &str = "
SELECT c.oid, c.relname::text, c.relkind = 'p', c.relreplident::text, pg_has_role(current_user, c.relowner, 'USAGE'),
  leaves.odd, leaves.unlogged
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  WITH RECURSIVE tree AS (
    SELECT c.oid AS oid WHERE c.relkind = 'p'
    UNION ALL SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
    WHERE coalesce(to_jsonb(i) ->> 'inhdetachpending', 'false') = 'false')
  SELECT coalesce(array_agg(l.oid::regclass::text) FILTER (WHERE l.relreplident <> c.relreplident), '{}') AS odd,
    coalesce(array_agg(l.oid::regclass::text) FILTER (WHERE l.relpersistence <> 'p'), '{}') AS unlogged
  FROM tree JOIN pg_class l ON l.oid = tree.oid WHERE l.relkind <> 'p') leaves
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND ($2::text[] IS NULL OR c.relname = ANY($2))
ORDER BY c.relname";

/// What a type is at last: domains taken off, with the modifier that the last of them gives.
macro_rules! described {
    ($oid:literal, $modifier:literal) => {
        concat!(
            "format_type(",
            $oid,
            ", ",
            $modifier,
            "), base.name, base.modifier, format_type(base.oid, base.modifier), base.built_in"
        )
    };
}
macro_rules! base {
    ($oid:literal, $modifier:literal) => {
        concat!(
            "CROSS JOIN LATERAL (
  WITH RECURSIVE chain AS (
    SELECT t.oid, t.typname, t.typtype, t.typbasetype, t.typnamespace, t.typtypmod, ",
            $modifier,
            " AS modifier FROM pg_type t WHERE t.oid = ",
            $oid,
            "
    UNION ALL SELECT b.oid, b.typname, b.typtype, b.typbasetype, b.typnamespace, b.typtypmod, chain.typtypmod
    FROM chain JOIN pg_type b ON b.oid = chain.typbasetype WHERE chain.typtype = 'd')
  SELECT oid, typname::text AS name, modifier, typnamespace = 'pg_catalog'::regnamespace AS built_in
  FROM chain WHERE typtype <> 'd') base"
        )
    };
}

const COLUMNS: &str = concat!(
    "SELECT ",
    described!("a.atttypid", "a.atttypmod"),
    ", a.attrelid, a.attname::text, a.attnotnull, a.attgenerated <> '', a.attstorage NOT IN ('p') AND a.attlen = -1,
  a.atttypid, a.atttypmod, co.collname::text
FROM pg_attribute a LEFT JOIN pg_collation co ON co.oid = a.attcollation ",
    base!("a.atttypid", "a.atttypmod"),
    " WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum"
);

const TYPES: &str = concat!(
    "SELECT ",
    described!("w.oid", "w.modifier"),
    " FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY w(oid, modifier, place) ",
    base!("w.oid", "w.modifier"),
    " ORDER BY w.place"
);

/// Unique keys without nulls, the best first: what the replica identity names, the primary key, then the shortest.
const KEYS: &str = "
SELECT i.indrelid,
  ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE k.place <= i.indnkeyatts ORDER BY k.place) AS columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE i.indrelid = ANY($1) AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE true END
  AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE k.place <= i.indnkeyatts AND (NOT a.attnotnull OR a.attgenerated <> ''))
ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, i.indexrelid";

/// Reads the tables of a schema, or those of them that are named.
pub async fn load(client: &Client, schema: &str, only: Option<&[String]>) -> Result<Vec<SourceTable>, PgError> {
    let mut tables: BTreeMap<u32, SourceTable> = BTreeMap::new();
    for row in client.query(TABLES, &[&schema, &only]).await? {
        let oid: u32 = row.try_get(0)?;
        let identity: String = row.try_get(3)?;
        let table = SourceTable {
            schema: TableSchema {
                table: TableName::new(schema, row.try_get::<_, String>(1)?),
                columns: Vec::new(),
                key: Vec::new(),
            },
            identity: identity.chars().next().unwrap_or('d'),
            partitioned: row.try_get(2)?,
            odd_partitions: row.try_get(5)?,
            unlogged_partitions: row.try_get(6)?,
            owned: row.try_get(4)?,
            wide: Vec::new(),
            generated: Vec::new(),
            wire_types: Vec::new(),
            oid,
        };
        tables.insert(oid, table);
    }
    let oids: Vec<u32> = tables.keys().copied().collect();
    for row in client.query(COLUMNS, &[&oids]).await? {
        let Some(table) = tables.get_mut(&row.try_get(5)?) else { continue };
        add_column(table, &row)?;
    }
    for row in client.query(KEYS, &[&oids]).await? {
        let columns: Vec<String> = row.try_get(1)?;
        let Some(table) = tables.get_mut(&row.try_get(0)?).filter(|table| table.schema.key.is_empty()) else {
            continue;
        };
        table.schema.key = places(&table.schema, &columns).unwrap_or_default();
    }
    let mut tables: Vec<SourceTable> = tables.into_values().collect();
    tables.sort_by(|a, b| a.schema.table.cmp(&b.schema.table));
    Ok(tables)
}

/// The places of these columns; none if one is missing.
pub fn places(schema: &TableSchema, columns: &[String]) -> Option<Vec<usize>> {
    columns.iter().map(|name| schema.columns.iter().position(|column| column.name == *name)).collect()
}

fn add_column(table: &mut SourceTable, row: &Row) -> Result<(), PgError> {
    let name: String = row.try_get(6)?;
    if row.try_get(8)? {
        table.generated.push(name);
        return Ok(());
    }
    if catalog::is_own(&name) {
        return Ok(());
    }
    if row.try_get(9)? {
        table.wide.push(name.clone());
    }
    let (source_type, column_type) = described(row)?;
    table.wire_types.push((row.try_get(10)?, row.try_get(11)?));
    table.schema.columns.push(Column {
        name,
        column_type,
        source_type,
        nullable: !row.try_get::<_, bool>(7)?,
        charset: None,
        collation: row.try_get(12)?,
        generated: false,
    });
    Ok(())
}

/// Types as the log calls them, each in the server's spelling and as a transform sees it.
pub async fn types(client: &Client, wanted: &[(u32, i32)]) -> Result<Vec<(String, ColumnType)>, PgError> {
    let (oids, modifiers): (Vec<u32>, Vec<i32>) = wanted.iter().copied().unzip();
    let rows = client.query(TYPES, &[&oids, &modifiers]).await?;
    if rows.len() != wanted.len() {
        return Err(PgError::Protocol("a type that a change uses is no longer in the catalog".into()));
    }
    rows.iter().map(described).collect()
}

/// From the first five columns of a query.
fn described(row: &Row) -> Result<(String, ColumnType), PgError> {
    let (source_type, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let column_type = column_type(&name, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    Ok((source_type, column_type))
}

/// What a transform sees of a type that is no domain.
fn column_type(name: &str, modifier: i32, spelled: String, built_in: bool) -> ColumnType {
    if !built_in {
        return ColumnType::Text;
    }
    match name {
        "int2" => ColumnType::SmallInt,
        "int4" => ColumnType::Integer,
        "int8" => ColumnType::BigInt,
        "float4" => ColumnType::Real,
        "float8" => ColumnType::Double,
        "text" => ColumnType::Text,
        "bytea" => ColumnType::Bytes,
        "jsonb" => ColumnType::Json,
        "date" => ColumnType::Date,
        "timestamp" => ColumnType::Timestamp,
        "timestamptz" => ColumnType::TimestampTz,
        "interval" => ColumnType::Interval,
        "numeric" => numeric(modifier).unwrap_or(ColumnType::Named(spelled)),
        // Names of things that the target has under other numbers, or not at all.
        name if name.trim_start_matches('_').starts_with("reg") => ColumnType::Text,
        _ => ColumnType::Named(spelled),
    }
}

/// A modifier holds precision and scale, which may be negative or above the precision from PostgreSQL 15 on.
fn numeric(modifier: i32) -> Option<ColumnType> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    let (precision, scale) = (packed >> 16 & 0xffff, ((packed & 0x7ff) ^ 1024) - 1024);
    let (precision, scale) = (u16::try_from(precision).ok()?, u16::try_from(scale).ok()?);
    (scale <= precision).then_some(ColumnType::Numeric { precision, scale })
}

/// Every configured table is there, has a key, and writes to the log what a change needs.
pub fn problems(tables: &[SourceTable], wanted: &[String], schema: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, fix: String| problems.push(Problem { what, fix });
    for name in wanted.iter().filter(|name| !tables.iter().any(|table| table.schema.table.table == **name)) {
        let what = format!("schema `{schema}` has no table `{name}`, or it is a view, a partition, or not logged");
        add(what, "correct [source] tables or [source] schema; of a partitioned table name the root".into());
    }
    if tables.is_empty() && wanted.is_empty() {
        let what = format!("schema `{schema}` has no table");
        add(what, "correct the database in [source] url, or [source] schema".into());
    }
    for table in tables {
        let name = sql::table(&table.schema.table);
        if let Some(partition) = table.odd_partitions.first() {
            add(
                format!("partition {partition} has another REPLICA IDENTITY than its root {}", table.schema.table),
                format!("ALTER TABLE {partition} REPLICA IDENTITY as the root has it, and so of every partition"),
            );
        }
        if let Some(partition) = table.unlogged_partitions.first() {
            let Problem { what, fix } = unlogged(partition, &table.schema.table);
            add(what, fix);
        }
        if table.identity == 'n' {
            add(
                format!(
                    "{} has REPLICA IDENTITY NOTHING: what is updated or deleted is not logged",
                    table.schema.table
                ),
                format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),
            );
        } else if table.schema.key.is_empty() {
            let what = match table.identity {
                'd' => "has no primary key (or a deferrable one), so that its rows cannot be told apart",
                'i' => "has a replica identity whose index is gone, so that its rows cannot be told apart",
                _ => "has no primary key and no unique key without nulls, so that its rows cannot be told apart",
            };
            let fix = format!(
                "ALTER TABLE {name} ADD PRIMARY KEY (…); or, with a unique index without nulls, ALTER TABLE {name} REPLICA \
                 IDENTITY USING INDEX …; or leave the table out of [source] tables"
            );
            add(format!("{} {what}", table.schema.table), fix);
        }
    }
    problems
}

/// What is wrong with a partition that is not logged, which may be called with its schema.
pub fn unlogged(partition: &str, root: &TableName) -> Problem {
    Problem::new(
        format!("partition {partition} of {root} is UNLOGGED: what is changed in it is in no log"),
        format!("ALTER TABLE {partition} SET LOGGED and start again; a table that was copied before is copied again"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_as_they_are_where_the_target_knows_them() {
        let built_in = |name: &str, modifier, spelled: &str| column_type(name, modifier, spelled.into(), true);
        assert_eq!(built_in("int8", -1, "bigint"), ColumnType::BigInt);
        let money = ColumnType::Numeric { precision: 12, scale: 4 };
        assert_eq!(built_in("numeric", (12 << 16 | 4) + 4, "numeric(12,4)"), money);
        assert_eq!(built_in("numeric", -1, "numeric"), ColumnType::Named("numeric".into()));
        let rounded = (3 << 16 | (-2_i32 & 0x7ff)) + 4;
        assert_eq!(built_in("numeric", rounded, "numeric(3,-2)"), ColumnType::Named("numeric(3,-2)".into()));
        assert_eq!(built_in("_int4", -1, "integer[]"), ColumnType::Named("integer[]".into()));
        assert_eq!(built_in("regclass", -1, "regclass"), ColumnType::Text);
        assert_eq!(column_type("mood", -1, "public.mood".into(), false), ColumnType::Text);
    }
}
