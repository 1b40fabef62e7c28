//! The catalog of the target's tables: columns, keys, constraints, and the order that foreign keys ask for.
//!
//! Read in a fixed number of queries, however many tables there are. Version columns of our own are left out.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Row};

use super::PgError;
use crate::model::{ForeignKey, Identity, TableName, TargetColumn, TargetTable};

/// The column that holds a row's version.
pub const VERSION_COLUMN: &str = "cutover_version";

/// What the columns are called that hold the versions of a merged row's other contributors; their source table follows.
pub const VERSION_PREFIX: &str = "cutover_version_";

/// The target's column that says which source row a row is of, where that is not certain by its key.
pub const OWNER_COLUMN: &str = "cutover_owner";

/// Whether a column of this name is cutover's own, in a table that it writes to.
pub fn is_own(column: &str) -> bool {
    column == VERSION_COLUMN || column == OWNER_COLUMN || column.starts_with(VERSION_PREFIX)
}

const TABLES: &str = "
SELECT c.oid, n.nspname, c.relname, c.relkind = 'p' AS partitioned,
  NOT EXISTS (SELECT FROM pg_catalog.pg_constraint f
    WHERE f.confrelid = c.oid AND f.contype = 'f' AND f.confdeltype <> 'a') AS replaceable
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY n.nspname, c.relname";

/// `format_type(…, -1)` spells a type without its length (`bpchar`, not `character`).
const COLUMNS: &str = "
SELECT a.attrelid, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type_sql,
  pg_catalog.format_type(base.oid, -1) AS cast_sql,
  CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0
    THEN pg_catalog.format('%I.%I', cn.nspname, co.collname) END AS collation,
  a.attnotnull OR t.typnotnull AS not_null,
  a.atthasdef OR t.typdefault IS NOT NULL AS has_default,
  a.attidentity::text AS identity, a.attgenerated::text AS generated,
  coalesce(NOT co.collisdeterministic, false) AS folds
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
CROSS JOIN LATERAL (
  WITH RECURSIVE chain AS (
    SELECT t.oid, t.typtype, t.typbasetype
    UNION ALL SELECT b.oid, b.typtype, b.typbasetype
    FROM chain JOIN pg_catalog.pg_type b ON b.oid = chain.typbasetype WHERE chain.typtype = 'd')
  SELECT chain.oid FROM chain WHERE chain.typtype <> 'd') base
LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

const INDEXES: &str = "
SELECT i.indrelid, c.relname, i.indisprimary,
  ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE k.place <= i.indnkeyatts ORDER BY k.place) AS columns
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY($1) AND (i.indisunique OR i.indisexclusion)
ORDER BY i.indrelid, c.relname";

const FOREIGN_KEYS: &str = "
SELECT f.conrelid, f.conname, n.nspname, p.relname,
  ARRAY(SELECT a.attname::text FROM unnest(f.conkey) WITH ORDINALITY k(attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.attnum ORDER BY k.place) AS columns,
  ARRAY(SELECT a.attname::text FROM unnest(f.confkey) WITH ORDINALITY k(attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.attnum ORDER BY k.place) AS parents
FROM pg_catalog.pg_constraint f
JOIN pg_catalog.pg_class p ON p.oid = f.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
WHERE f.conrelid = ANY($1) AND f.contype = 'f' AND f.conparentid = 0
ORDER BY f.conrelid, f.conname";

/// Reads every ordinary and partitioned table of these schemas.
pub async fn tables(client: &Client, schemas: &[String]) -> Result<Vec<TargetTable>, PgError> {
    let mut tables: BTreeMap<u32, TargetTable> = BTreeMap::new();
    for row in client.query(TABLES, &[&schemas]).await? {
        let table = TargetTable {
            name: TableName::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?),
            columns: Vec::new(),
            key: Vec::new(),
            uniques: Vec::new(),
            foreign_keys: Vec::new(),
            replaceable: row.try_get(4)?,
            partitioned: row.try_get(3)?,
            has_owners: false,
            elsewhere: false,
        };
        tables.insert(row.try_get(0)?, table);
    }
    let oids: Vec<u32> = tables.keys().copied().collect();
    for row in client.query(COLUMNS, &[&oids]).await? {
        let column = column(&row)?;
        let Some(table) = tables.get_mut(&row.try_get(0)?) else { continue };
        table.has_owners |= column.name == OWNER_COLUMN;
        if !is_own(&column.name) {
            table.columns.push(column);
        }
    }
    for row in client.query(INDEXES, &[&oids]).await? {
        let (name, primary, columns): (String, bool, Vec<String>) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let Some(table) = tables.get_mut(&row.try_get(0)?) else { continue };
        if primary { table.key = columns } else { table.uniques.push(name) }
    }
    for row in client.query(FOREIGN_KEYS, &[&oids]).await? {
        let key = ForeignKey {
            name: row.try_get(1)?,
            parent: TableName::new(row.try_get::<_, String>(2)?, row.try_get::<_, String>(3)?),
            columns: row.try_get(4)?,
            parent_columns: row.try_get(5)?,
        };
        if let Some(table) = tables.get_mut(&row.try_get(0)?) {
            table.foreign_keys.push(key);
        }
    }
    Ok(tables.into_values().collect())
}

fn column(row: &Row) -> Result<TargetColumn, PgError> {
    let identity: String = row.try_get(7)?;
    let generated: String = row.try_get(8)?;
    Ok(TargetColumn {
        name: row.try_get(1)?,
        type_sql: row.try_get(2)?,
        cast_sql: row.try_get(3)?,
        collation: row.try_get(4)?,
        not_null: row.try_get(5)?,
        has_default: row.try_get(6)?,
        identity: match identity.as_str() {
            "a" => Some(Identity::Always),
            "d" => Some(Identity::ByDefault),
            _ => None,
        },
        generated: !generated.is_empty(),
        folds: row.try_get(9)?,
    })
}

/// Tables in an order in which parents come before their children.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    pub parents_first: Vec<TableName>,
    /// Tables on or behind a cycle of foreign keys, which no order satisfies; they come last.
    pub cyclic: Vec<TableName>,
}

/// Orders tables by their foreign keys; a table that refers to itself is no cycle.
pub fn order<'a>(tables: impl IntoIterator<Item = &'a TargetTable>) -> Order {
    let mut left: BTreeMap<&TableName, BTreeSet<&TableName>> = BTreeMap::new();
    for table in tables {
        let parents = table.foreign_keys.iter().map(|key| &key.parent).filter(|parent| **parent != table.name);
        left.insert(&table.name, parents.collect());
    }
    let known: BTreeSet<&TableName> = left.keys().copied().collect();
    for parents in left.values_mut() {
        parents.retain(|parent| known.contains(parent));
    }
    let mut order = Order::default();
    loop {
        let free: Vec<&TableName> =
            left.iter().filter(|(_, parents)| parents.is_empty()).map(|(table, _)| *table).collect();
        if free.is_empty() {
            break;
        }
        for table in free {
            left.remove(table);
            left.values_mut().for_each(|parents| {
                parents.remove(table);
            });
            order.parents_first.push(table.clone());
        }
    }
    order.cyclic = left.keys().map(|table| (*table).clone()).collect();
    order.parents_first.extend(order.cyclic.iter().cloned());
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, parents: &[&str]) -> TargetTable {
        let foreign_keys = parents
            .iter()
            .map(|parent| ForeignKey {
                name: format!("{name}_{parent}"),
                columns: vec![],
                parent: TableName::new("s", *parent),
                parent_columns: vec![],
            })
            .collect();
        TargetTable {
            name: TableName::new("s", name),
            columns: vec![],
            key: vec![],
            uniques: vec![],
            foreign_keys,
            replaceable: true,
            has_owners: false,
            elsewhere: false,
            partitioned: false,
        }
    }

    fn names(tables: &[TableName]) -> Vec<&str> {
        tables.iter().map(|table| table.table.as_str()).collect()
    }

    #[test]
    fn parents_come_before_children_whatever_their_names() {
        let order = order(&[table("a", &["b"]), table("b", &["c", "elsewhere"]), table("c", &["c"])]);
        assert_eq!(names(&order.parents_first), ["c", "b", "a"]);
        assert!(order.cyclic.is_empty());
    }

    #[test]
    fn a_cycle_is_reported_and_its_tables_come_last() {
        let order = order(&[table("a", &["b"]), table("b", &["a"]), table("c", &[])]);
        assert_eq!(names(&order.parents_first), ["c", "a", "b"]);
        assert_eq!(names(&order.cyclic), ["a", "b"]);
    }
}
