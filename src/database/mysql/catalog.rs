//! The catalog of MySQL and MariaDB: tables, columns and keys as [`TableSchema`].
//!
//! What enters: a connection and a database's name. What leaves: one schema per base table, its columns in table
//! order, with the PostgreSQL type that a transform sees (docs/types.md). Every column is read by position under an
//! alias of ours, since MySQL 8 answers in upper case what 5.7 and MariaDB answer in the case of the question.
//! Absent on purpose: views, sequences and MariaDB's system-versioned tables, whose binlog rows have columns that
//! the catalog does not list; and everything that only `init` and `check` want to know (indexes, defaults).

use std::collections::{BTreeMap, HashSet};

use mysql_async::{
    Conn, Params, Row,
    prelude::{FromRow, Queryable},
};

use crate::model::{Column, ColumnType, Disposition, Problem, TableName, TableSchema};

/// Why a catalog could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.problem())]
pub enum CatalogError {
    /// The server refused the query, or was not reached.
    Database(#[from] mysql_async::Error),
    /// The server answered with something that is not what its documentation says.
    Unreadable { database: String, what: &'static str },
    /// A column type that has no place in the model.
    UnknownType { table: String, column: String, source_type: String },
    /// Columns and indexes come from two queries, and a DDL statement fell between them.
    Changed { table: String },
}

impl CatalogError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            CatalogError::Database(told) => Problem::bare(format!("the catalog could not be read: {told}")),
            CatalogError::Unreadable { database, what } => Problem::new(
                format!("the catalog of `{database}` has a row that cannot be read ({what})"),
                "report it with the server's version",
            ),
            CatalogError::UnknownType { table, column, source_type } => Problem::new(
                format!("column `{table}.{column}` has the type `{source_type}`, which cutover does not know"),
                "leave the table out of [source] tables, or change the column's type",
            ),
            CatalogError::Changed { table } => {
                Problem::new(format!("table `{table}` was changed while its catalog was read"), "try again")
            }
        }
    }

    /// Whether trying again can help.
    pub fn disposition(&self) -> Disposition {
        match self {
            CatalogError::Database(mysql_async::Error::Server(_) | mysql_async::Error::Url(_)) => Disposition::Halt,
            CatalogError::Database(_) | CatalogError::Changed { .. } => Disposition::Retry,
            CatalogError::Unreadable { .. } | CatalogError::UnknownType { .. } => Disposition::Halt,
        }
    }
}

// One table of the catalog in each query: in a join, MariaDB and MySQL 5.7 open every table and view of every database
// on the server for the second one, which takes long on a large server and has made MariaDB 10.11 crash.
const BASE_TABLES: &str = "SELECT c.TABLE_NAME FROM information_schema.TABLES c \
     WHERE c.TABLE_SCHEMA = ? AND c.TABLE_TYPE = 'BASE TABLE'{tables}";

const COLUMNS: &str = "SELECT c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_TYPE, c.IS_NULLABLE, \
     c.CHARACTER_SET_NAME, c.COLLATION_NAME, c.EXTRA \
     FROM information_schema.COLUMNS c WHERE c.TABLE_SCHEMA = ?{tables} \
     ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION";

/// A row of [`COLUMNS`].
type ColumnRow = (String, String, String, String, String, Option<String>, Option<String>, String);

const UNIQUE_INDEXES: &str = "SELECT c.TABLE_NAME, c.INDEX_NAME, c.COLUMN_NAME, c.SUB_PART IS NOT NULL \
     FROM information_schema.STATISTICS c \
     WHERE c.TABLE_SCHEMA = ? AND c.NON_UNIQUE = 0{tables} \
     ORDER BY c.TABLE_NAME, c.INDEX_NAME, c.SEQ_IN_INDEX";

const JSON_CHECKS: &str = "SELECT c.TABLE_NAME, c.CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS c \
     WHERE c.CONSTRAINT_SCHEMA = ?{tables}";

/// The schemas of the base tables of `database`, by table name; of those named in `only` where it is given. A name
/// that is no base table is simply not among the answers: the caller knows whether that is a mistake or a drop.
pub async fn load_tables(
    conn: &mut Conn,
    database: &str,
    only: Option<&[String]>,
) -> Result<Vec<TableSchema>, CatalogError> {
    if only.is_some_and(<[String]>::is_empty) {
        return Ok(Vec::new());
    }
    let json = if is_mariadb(conn).await? { json_aliases(conn, database, only).await? } else { HashSet::new() };
    let mut tables: Vec<TableSchema> = Vec::new();
    let base_tables: Vec<String> = query(conn, BASE_TABLES, database, only, "tables").await?;
    let base_tables: HashSet<String> = base_tables.into_iter().collect();
    let rows: Vec<ColumnRow> = query(conn, COLUMNS, database, only, "columns").await?;
    for (table, name, data_type, source_type, nullable, charset, collation, extra) in rows {
        if !wanted(&table, only) || !base_tables.contains(&table) {
            continue;
        }
        let Some(mapped) = column_type(&data_type, &source_type) else {
            return Err(CatalogError::UnknownType { table, column: name, source_type });
        };
        let is_json = json.contains(&(table.clone(), name.clone()));
        let column = Column {
            column_type: if is_json && data_type.eq_ignore_ascii_case("longtext") { ColumnType::Json } else { mapped },
            source_type: lower_case_outside_quotes(&source_type),
            nullable: nullable.eq_ignore_ascii_case("yes"),
            charset,
            collation,
            generated: is_generated(&extra),
            name,
        };
        // By name, not by order: names that differ only in case are one to the catalog's order.
        match tables.iter_mut().rev().find(|schema| schema.table.table == table) {
            Some(schema) => schema.columns.push(column),
            None => tables.push(TableSchema {
                table: TableName::new(database, table),
                columns: vec![column],
                key: Vec::new(),
            }),
        }
    }
    set_keys(conn, database, only, &mut tables).await?;
    Ok(tables)
}

/// Whether the server is MariaDB.
pub(crate) async fn is_mariadb(conn: &mut Conn) -> Result<bool, CatalogError> {
    let version: Option<String> = conn.query_first("SELECT VERSION()").await?;
    Ok(version.is_some_and(|version| version.to_ascii_lowercase().contains("mariadb")))
}

/// Runs `sql`, whose `{tables}` becomes a condition on `c.TABLE_NAME` and whose first parameter is the database.
pub(crate) async fn query<T: FromRow + Send + 'static>(
    conn: &mut Conn,
    sql: &str,
    database: &str,
    only: Option<&[String]>,
    what: &'static str,
) -> Result<Vec<T>, CatalogError> {
    // MariaDB takes names that differ only in case for one, and answers for the first: then all tables are asked for.
    let lower: HashSet<String> = only.unwrap_or_default().iter().map(|name| name.to_lowercase()).collect();
    let names = only.filter(|names| names.len() == lower.len()).unwrap_or_default();
    let condition = match names.len() {
        0 => String::new(),
        count => format!(" AND c.TABLE_NAME IN ({})", vec!["?"; count].join(", ")),
    };
    let parameters = std::iter::once(database).chain(names.iter().map(String::as_str));
    let parameters = Params::Positional(parameters.map(mysql_async::Value::from).collect());
    let rows: Vec<Row> = conn.exec(sql.replace("{tables}", &condition), parameters).await?;
    rows.into_iter()
        .map(|row| T::from_row_opt(row).map_err(|_| CatalogError::Unreadable { database: database.to_owned(), what }))
        .collect()
}

/// Table names compare without regard to case in the catalog of 5.7: the exact comparison is ours.
pub(crate) fn wanted(table: &str, only: Option<&[String]>) -> bool {
    only.is_none_or(|names| names.iter().any(|name| name == table))
}

/// `EXTRA` of a generated column; not `DEFAULT_GENERATED`, which is a default that is an expression.
fn is_generated(extra: &str) -> bool {
    let extra = extra.to_ascii_lowercase();
    ["virtual generated", "stored generated", "persistent"].iter().any(|mark| extra.contains(mark))
}

/// MariaDB's JSON columns, as (table, column): JSON is LONGTEXT there, with a check that MariaDB adds by itself.
async fn json_aliases(
    conn: &mut Conn,
    database: &str,
    only: Option<&[String]>,
) -> Result<HashSet<(String, String)>, CatalogError> {
    let rows: Vec<(String, String)> = query(conn, JSON_CHECKS, database, only, "check constraints").await?;
    Ok(rows.into_iter().filter_map(|(table, clause)| Some((table, json_valid_column(&clause)?))).collect())
}

/// The column of a check that is exactly ``json_valid(`column`)``.
fn json_valid_column(clause: &str) -> Option<String> {
    let quoted = clause.trim().strip_prefix("json_valid(`")?.strip_suffix("`)")?;
    let name = quoted.replace("``", "`");
    // Anything after the name would have left an odd number of backquotes inside.
    (name.len() + quoted.matches("``").count() == quoted.len() && !quoted.replace("``", "").contains('`'))
        .then_some(name)
}

async fn set_keys(
    conn: &mut Conn,
    database: &str,
    only: Option<&[String]>,
    tables: &mut [TableSchema],
) -> Result<(), CatalogError> {
    let rows: Vec<(String, String, Option<String>, bool)> =
        query(conn, UNIQUE_INDEXES, database, only, "indexes").await?;
    let mut indexes: BTreeMap<String, BTreeMap<String, UniqueIndex>> = BTreeMap::new();
    for (table, index, column, prefix) in rows {
        let index = indexes.entry(table).or_default().entry(index).or_default();
        index.prefix |= prefix;
        // A part without a column is an expression (MySQL 8.0.13 and later).
        match column {
            Some(column) => index.columns.push(column),
            None => index.expression = true,
        }
    }
    for schema in tables {
        let Some(indexes) = indexes.get(&schema.table.table) else { continue };
        let key = best_key(indexes, &schema.columns);
        schema.key = key.ok_or_else(|| CatalogError::Changed { table: schema.table.table.clone() })?;
    }
    Ok(())
}

#[derive(Debug, Default)]
struct UniqueIndex {
    columns: Vec<String>,
    prefix: bool,
    expression: bool,
}

/// The primary key, else the unique index on NOT NULL columns that identifies rows best: whole columns before
/// prefixes (a unique prefix makes its column unique too), few columns before many, then by name. Empty if there
/// is none; none if an index names a column that is not there.
fn best_key(indexes: &BTreeMap<String, UniqueIndex>, columns: &[Column]) -> Option<Vec<usize>> {
    let mut best: Option<(bool, usize, Vec<usize>)> = None;
    for (name, index) in indexes {
        if index.expression {
            continue;
        }
        let positions: Option<Vec<usize>> =
            index.columns.iter().map(|name| columns.iter().position(|column| column.name == *name)).collect();
        let positions = positions?;
        if name == "PRIMARY" {
            return Some(positions);
        }
        if positions.iter().any(|position| columns.get(*position).is_none_or(|column| column.nullable)) {
            continue;
        }
        let rank = (index.prefix, positions.len());
        if best.as_ref().is_none_or(|(prefix, count, _)| rank < (*prefix, *count)) {
            best = Some((rank.0, rank.1, positions));
        }
    }
    Some(best.map(|(_, _, positions)| positions).unwrap_or_default())
}

/// The PostgreSQL type that a transform sees for a column of this `DATA_TYPE` and `COLUMN_TYPE` (docs/types.md);
/// none for a type that cutover does not know.
pub fn column_type(data_type: &str, column_type: &str) -> Option<ColumnType> {
    let source_type = column_type.to_ascii_lowercase();
    let unsigned = source_type.contains(" unsigned") || source_type.contains(" zerofill");
    Some(match data_type.to_ascii_lowercase().as_str() {
        "tinyint" | "year" => ColumnType::SmallInt,
        "smallint" if unsigned => ColumnType::Integer,
        "smallint" => ColumnType::SmallInt,
        "mediumint" => ColumnType::Integer,
        "int" | "integer" if unsigned => ColumnType::BigInt,
        "int" | "integer" => ColumnType::Integer,
        "bigint" if unsigned => ColumnType::Numeric { precision: 20, scale: 0 },
        "bigint" => ColumnType::BigInt,
        "decimal" | "numeric" => decimal(&source_type)?,
        "float" => ColumnType::Real,
        "double" | "real" => ColumnType::Double,
        "bit" | "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "vector" => {
            ColumnType::Bytes
        }
        "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geometrycollection" | "geomcollection" => ColumnType::Bytes,
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "enum" | "set" => ColumnType::Text,
        "uuid" | "inet4" | "inet6" => ColumnType::Text,
        "json" => ColumnType::Json,
        "date" => ColumnType::Date,
        "datetime" => ColumnType::Timestamp,
        "timestamp" => ColumnType::TimestampTz,
        "time" => ColumnType::Interval,
        _ => return None,
    })
}

/// `decimal(p,s) …`; the catalog always spells both out.
fn decimal(source_type: &str) -> Option<ColumnType> {
    let (_, rest) = source_type.split_once('(')?;
    let (arguments, _) = rest.split_once(')')?;
    let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
    Some(ColumnType::Numeric { precision: precision.trim().parse().ok()?, scale: scale.trim().parse().ok()? })
}

/// The labels of an `enum(…)` or `set(…)` type in the catalog's spelling, which doubles single quotes and, whatever
/// the `sql_mode`, escapes backslash, NUL and line ends. None for any other type.
pub fn members(source_type: &str) -> Option<Vec<String>> {
    let list = source_type.strip_prefix("enum(").or_else(|| source_type.strip_prefix("set("))?.strip_suffix(')')?;
    let mut members = Vec::new();
    let mut rest = list;
    loop {
        let mut label = String::new();
        let mut characters = rest.strip_prefix('\'')?.char_indices().peekable();
        let end = loop {
            match characters.next()? {
                (_, '\'') if characters.next_if(|(_, next)| *next == '\'').is_some() => label.push('\''),
                (at, '\'') => break at + 2,
                (_, '\\') => label.push(match characters.next()?.1 {
                    '0' => '\0',
                    'n' => '\n',
                    'r' => '\r',
                    escaped => escaped,
                }),
                (_, character) => label.push(character),
            }
        };
        members.push(label);
        match rest.get(end..)?.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (rest.len() == end).then_some(members),
        }
    }
}

/// Lower case, except what stands in single quotes: the labels of an enum or set.
fn lower_case_outside_quotes(source_type: &str) -> String {
    let mut quoted = false;
    let lowered = source_type.chars().map(|character| {
        quoted ^= character == '\'';
        if quoted { character } else { character.to_ascii_lowercase() }
    });
    lowered.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(precision: u16, scale: u16) -> ColumnType {
        ColumnType::Numeric { precision, scale }
    }

    #[test]
    fn every_type_maps_to_the_postgresql_type_that_holds_it() {
        let cases = [
            ("tinyint", "tinyint(1)", ColumnType::SmallInt),
            ("tinyint", "tinyint(3) unsigned", ColumnType::SmallInt),
            ("smallint", "smallint(6)", ColumnType::SmallInt),
            ("smallint", "smallint(5) unsigned zerofill", ColumnType::Integer),
            ("mediumint", "mediumint", ColumnType::Integer),
            ("mediumint", "mediumint unsigned", ColumnType::Integer),
            ("int", "int(11)", ColumnType::Integer),
            ("INT", "INT UNSIGNED", ColumnType::BigInt),
            ("bigint", "bigint(20)", ColumnType::BigInt),
            ("bigint", "bigint(20) unsigned", numeric(20, 0)),
            ("decimal", "decimal(65,30)", numeric(65, 30)),
            ("decimal", "decimal(10,0) unsigned zerofill", numeric(10, 0)),
            ("float", "float(7,4)", ColumnType::Real),
            ("double", "double unsigned", ColumnType::Double),
            ("bit", "bit(64)", ColumnType::Bytes),
            ("binary", "binary(16)", ColumnType::Bytes),
            ("longblob", "longblob", ColumnType::Bytes),
            ("geomcollection", "geomcollection", ColumnType::Bytes),
            ("vector", "vector(3)", ColumnType::Bytes),
            ("char", "char(36)", ColumnType::Text),
            ("enum", "enum('unsigned','int')", ColumnType::Text),
            ("set", "set('a','b')", ColumnType::Text),
            ("inet6", "inet6", ColumnType::Text),
            ("json", "json", ColumnType::Json),
            ("year", "year(4)", ColumnType::SmallInt),
            ("date", "date", ColumnType::Date),
            ("datetime", "datetime(6)", ColumnType::Timestamp),
            ("timestamp", "timestamp(3)", ColumnType::TimestampTz),
            ("time", "time(1)", ColumnType::Interval),
        ];
        for (data_type, source_type, expected) in cases {
            assert_eq!(column_type(data_type, source_type), Some(expected), "{source_type}");
        }
        assert_eq!(column_type("xmltype", "xmltype"), None);
    }

    #[test]
    fn labels_keep_their_case_and_quotes() {
        let source_type = lower_case_outside_quotes("ENUM('It''s','UPPER,x','')");
        assert_eq!(source_type, "enum('It''s','UPPER,x','')");
        let labels = ["It's", "UPPER,x", ""].map(str::to_owned).to_vec();
        assert_eq!(members(&source_type), Some(labels));
        assert_eq!(members("set('é','b')"), Some(vec!["é".to_owned(), "b".to_owned()]));
        assert_eq!(members(r"enum('a\\b\n''')"), Some(vec!["a\\b\n'".to_owned()]));
        for broken in ["varchar(3)", "enum('a'", "enum('a',)", "enum(a)", "enum('a'x)"] {
            assert_eq!(members(broken), None, "{broken}");
        }
    }

    #[test]
    fn only_an_exact_json_check_makes_a_json_column() {
        assert_eq!(json_valid_column("json_valid(`doc`)"), Some("doc".to_owned()));
        assert_eq!(json_valid_column("json_valid(`a``b`)"), Some("a`b".to_owned()));
        assert_eq!(json_valid_column("json_valid(`a`) or json_valid(`b`)"), None);
        assert_eq!(json_valid_column("`doc` is null or json_valid(`doc`)"), None);
    }

    #[test]
    fn generated_is_not_a_default_that_is_an_expression() {
        assert!(is_generated("VIRTUAL GENERATED") && is_generated("STORED GENERATED INVISIBLE"));
        assert!(!is_generated("DEFAULT_GENERATED on update CURRENT_TIMESTAMP") && !is_generated("auto_increment"));
    }

    #[test]
    fn the_key_is_primary_or_the_narrowest_whole_unique_index_without_nulls() {
        let column = |name: &str, nullable| Column {
            name: name.into(),
            column_type: ColumnType::Integer,
            source_type: "int".into(),
            nullable,
            charset: None,
            collation: None,
            generated: false,
        };
        let columns = [column("a", false), column("b", false), column("n", true)];
        let index = |columns: &[&str], prefix| UniqueIndex {
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            prefix,
            expression: false,
        };
        let mut indexes = BTreeMap::from([
            ("nullable".to_owned(), index(&["n"], false)),
            ("prefix".to_owned(), index(&["a"], true)),
            ("wide".to_owned(), index(&["b", "a"], false)),
            ("zz".to_owned(), index(&["b"], false)),
            ("expression".to_owned(), UniqueIndex { expression: true, ..index(&[], false) }),
        ]);
        assert_eq!(best_key(&indexes, &columns), Some(vec![1]));
        indexes.insert("PRIMARY".into(), index(&["b", "a"], false));
        assert_eq!(best_key(&indexes, &columns), Some(vec![1, 0]));
        indexes.insert("new".into(), index(&["gone"], false));
        assert_eq!(best_key(&BTreeMap::from([("u".into(), index(&["n"], false))]), &columns), Some(vec![]));
        assert_eq!(best_key(&BTreeMap::from([("u".into(), index(&["gone"], false))]), &columns), None);
    }
}
