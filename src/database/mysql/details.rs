//! What the catalog says beyond columns and keys: indexes, foreign keys, defaults, comments, size.
//!
//! What enters: a connection, a database and the names of its tables. What leaves: one [`TableDetails`] per base
//! table, for `init` to write the target's schema from and for `check` to judge. The pipeline itself never needs it.
//! Absent on purpose: CHECK constraints, triggers, views and routines, which speak MySQL's own SQL.

use std::collections::{BTreeMap, HashMap};

use mysql_async::{Conn, prelude::Queryable};

use super::catalog::{CatalogError, is_mariadb, query, wanted};
use crate::model::TableName;

/// A table's details, in the order of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDetails {
    pub table: TableName,
    pub columns: Vec<ColumnDetails>,
    pub indexes: Vec<Index>,
    pub foreign_keys: Vec<ForeignKey>,
    /// The next value of the AUTO_INCREMENT column, where the server knows it; MySQL 8 answers from a cache.
    pub auto_increment: Option<u64>,
    pub comment: String,
    /// The storage engine's guess.
    pub rows_estimate: u64,
    pub engine: String,
}

/// What a column's schema leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDetails {
    pub name: String,
    pub default: Option<DefaultValue>,
    pub auto_increment: bool,
    /// `ON UPDATE CURRENT_TIMESTAMP`.
    pub on_update_now: bool,
    /// The expression of a generated column, in MySQL's spelling.
    pub generation: Option<String>,
    pub comment: String,
}

/// A column's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultValue {
    /// The value as text, without quotes.
    Literal(String),
    /// An expression in MySQL's spelling; numbers and bit literals too, where the server does not tell them apart.
    Expression(String),
}

/// A secondary or primary index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub name: String,
    pub unique: bool,
    /// `BTREE`, `HASH`, `FULLTEXT`, `SPATIAL`, …
    pub kind: String,
    /// False for an invisible (MySQL) or ignored (MariaDB) index.
    pub visible: bool,
    pub parts: Vec<IndexPart>,
}

/// One part of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexPart {
    pub key: IndexKey,
    pub descending: bool,
}

/// What an index part orders by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexKey {
    Column(String),
    /// The first characters (bytes for binary types) of a column.
    Prefix(String, u32),
    /// An expression in MySQL's spelling.
    Expression(String),
}

/// A foreign key of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub columns: Vec<String>,
    pub parent: TableName,
    pub parent_columns: Vec<String>,
    /// `CASCADE`, `SET NULL`, `RESTRICT` or `NO ACTION`.
    pub on_delete: String,
    pub on_update: String,
}

impl Index {
    /// The columns, if every part is a whole column.
    pub fn whole_columns(&self) -> Option<Vec<&str>> {
        self.parts
            .iter()
            .map(|part| match &part.key {
                IndexKey::Column(name) => Some(name.as_str()),
                IndexKey::Prefix(..) | IndexKey::Expression(_) => None,
            })
            .collect()
    }
}

const TABLES: &str = "SELECT c.TABLE_NAME, c.AUTO_INCREMENT, c.TABLE_COMMENT, c.TABLE_ROWS, c.ENGINE \
     FROM information_schema.TABLES c WHERE c.TABLE_SCHEMA = ? AND c.TABLE_TYPE = 'BASE TABLE'{tables} \
     ORDER BY c.TABLE_NAME";

const COLUMNS: &str = "SELECT c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_DEFAULT, c.EXTRA, \
     c.GENERATION_EXPRESSION, c.COLUMN_COMMENT \
     FROM information_schema.COLUMNS c WHERE c.TABLE_SCHEMA = ?{tables} ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION";

const FOREIGN_KEYS: &str = "SELECT c.TABLE_NAME, c.CONSTRAINT_NAME, c.COLUMN_NAME, c.REFERENCED_TABLE_SCHEMA, \
     c.REFERENCED_TABLE_NAME, c.REFERENCED_COLUMN_NAME \
     FROM information_schema.KEY_COLUMN_USAGE c \
     WHERE c.TABLE_SCHEMA = ? AND c.REFERENCED_TABLE_NAME IS NOT NULL{tables} \
     ORDER BY c.TABLE_NAME, c.CONSTRAINT_NAME, c.ORDINAL_POSITION";

const FOREIGN_KEY_RULES: &str = "SELECT c.TABLE_NAME, c.CONSTRAINT_NAME, c.DELETE_RULE, c.UPDATE_RULE \
     FROM information_schema.REFERENTIAL_CONSTRAINTS c WHERE c.CONSTRAINT_SCHEMA = ?{tables}";

/// A row of [`TABLES`].
type TableRow = (String, Option<u64>, Option<String>, Option<u64>, Option<String>);

/// The details of the base tables of `database`, by table name; of those named in `only` where it is given.
pub async fn load_details(
    conn: &mut Conn,
    database: &str,
    only: Option<&[String]>,
) -> Result<Vec<TableDetails>, CatalogError> {
    if only.is_some_and(<[String]>::is_empty) {
        return Ok(Vec::new());
    }
    let rows: Vec<TableRow> = query(conn, TABLES, database, only, "tables").await?;
    let mut tables: BTreeMap<String, TableDetails> = BTreeMap::new();
    for (table, auto_increment, comment, rows_estimate, engine) in rows {
        if wanted(&table, only) {
            let details = TableDetails {
                table: TableName::new(database, &table),
                columns: Vec::new(),
                indexes: Vec::new(),
                foreign_keys: Vec::new(),
                auto_increment,
                comment: comment.unwrap_or_default(),
                rows_estimate: rows_estimate.unwrap_or_default(),
                engine: engine.unwrap_or_default(),
            };
            tables.insert(table, details);
        }
    }
    load_columns(conn, database, only, &mut tables).await?;
    load_indexes(conn, database, only, &mut tables).await?;
    load_foreign_keys(conn, database, only, &mut tables).await?;
    Ok(tables.into_values().collect())
}

/// A row of [`COLUMNS`].
type ColumnRow = (String, String, String, Option<String>, String, Option<String>, String);

async fn load_columns(
    conn: &mut Conn,
    database: &str,
    only: Option<&[String]>,
    tables: &mut BTreeMap<String, TableDetails>,
) -> Result<(), CatalogError> {
    let mariadb = is_mariadb(conn).await?;
    let rows: Vec<ColumnRow> = query(conn, COLUMNS, database, only, "columns").await?;
    for (table, name, data_type, default, extra, generation, comment) in rows {
        let Some(details) = tables.get_mut(&table) else { continue };
        let extra = extra.to_ascii_lowercase();
        let default = match default {
            Some(text) if mariadb => mariadb_default(text),
            Some(text) => Some(mysql_default(text, &data_type, &extra)),
            None => None,
        };
        details.columns.push(ColumnDetails {
            name,
            default,
            auto_increment: extra.contains("auto_increment"),
            on_update_now: extra.contains("on update"),
            generation: generation.filter(|expression| !expression.is_empty()),
            comment,
        });
    }
    Ok(())
}

/// MariaDB (10.2.7 and later) spells defaults as SQL: strings in quotes, the default null as `NULL`.
fn mariadb_default(text: String) -> Option<DefaultValue> {
    if text == "NULL" {
        return None;
    }
    match text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(quoted) => Some(unquote(quoted).map_or(DefaultValue::Expression(text.clone()), DefaultValue::Literal)),
        None => Some(DefaultValue::Expression(text)),
    }
}

/// The text between single quotes, escapes undone; none if a quote inside stands alone.
fn unquote(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '\'' if characters.next() != Some('\'') => return None,
            '\\' => text.push(match characters.next()? {
                '0' => '\0',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                escaped => escaped,
            }),
            plain => text.push(plain),
        }
    }
    Some(text)
}

/// MySQL spells a literal without quotes, and marks an expression only from 8.0.13 on.
fn mysql_default(text: String, data_type: &str, extra: &str) -> DefaultValue {
    let data_type = data_type.to_ascii_lowercase();
    let now = matches!(data_type.as_str(), "datetime" | "timestamp")
        && text.to_ascii_uppercase().starts_with("CURRENT_TIMESTAMP");
    let bits = data_type == "bit" || (data_type.ends_with("binary") && text.starts_with("0x"));
    if now || bits || extra.contains("default_generated") {
        DefaultValue::Expression(text)
    } else {
        DefaultValue::Literal(text)
    }
}

/// A row of the indexes query.
type IndexRow = (String, String, bool, String, Option<String>, Option<u32>, bool, Option<String>, bool);

async fn load_indexes(
    conn: &mut Conn,
    database: &str,
    only: Option<&[String]>,
    tables: &mut BTreeMap<String, TableDetails>,
) -> Result<(), CatalogError> {
    let columns: Vec<String> = conn
        .query(
            "SELECT COLUMN_NAME FROM information_schema.COLUMNS \
             WHERE TABLE_SCHEMA = 'information_schema' AND TABLE_NAME = 'STATISTICS'",
        )
        .await?;
    let has = |name: &str| columns.iter().any(|column| column.eq_ignore_ascii_case(name));
    // Functional indexes came with 8.0.13; invisible ones with 8.0, ignored ones with MariaDB 10.6.
    let expression = if has("EXPRESSION") { "c.EXPRESSION" } else { "NULL" };
    let visible = match (has("IS_VISIBLE"), has("IGNORED")) {
        (true, _) => "c.IS_VISIBLE = 'YES'",
        (false, true) => "c.IGNORED = 'NO'",
        (false, false) => "TRUE",
    };
    let sql = format!(
        "SELECT c.TABLE_NAME, c.INDEX_NAME, c.NON_UNIQUE = 0, c.INDEX_TYPE, c.COLUMN_NAME, c.SUB_PART, \
         COALESCE(c.COLLATION = 'D', FALSE), {expression}, {visible} \
         FROM information_schema.STATISTICS c WHERE c.TABLE_SCHEMA = ?{{tables}} \
         ORDER BY c.TABLE_NAME, c.INDEX_NAME, c.SEQ_IN_INDEX"
    );
    let rows: Vec<IndexRow> = query(conn, &sql, database, only, "indexes").await?;
    for (table, name, unique, kind, column, prefix, descending, expression, visible) in rows {
        let Some(details) = tables.get_mut(&table) else { continue };
        // The catalog gives SPATIAL indexes the length of their bounding box as a prefix.
        let prefix = prefix.filter(|_| kind != "SPATIAL" && kind != "FULLTEXT");
        let key = match (column, prefix) {
            (Some(column), Some(length)) => IndexKey::Prefix(column, length),
            (Some(column), None) => IndexKey::Column(column),
            (None, _) => IndexKey::Expression(expression.unwrap_or_default()),
        };
        let part = IndexPart { key, descending };
        match details.indexes.last_mut() {
            Some(last) if last.name == name => last.parts.push(part),
            Some(_) | None => details.indexes.push(Index { name, unique, kind, visible, parts: vec![part] }),
        }
    }
    Ok(())
}

/// A row of [`FOREIGN_KEYS`].
type ForeignKeyRow = (String, String, String, String, String, String);

async fn load_foreign_keys(
    conn: &mut Conn,
    database: &str,
    only: Option<&[String]>,
    tables: &mut BTreeMap<String, TableDetails>,
) -> Result<(), CatalogError> {
    let rules: Vec<(String, String, String, String)> =
        query(conn, FOREIGN_KEY_RULES, database, only, "foreign keys").await?;
    let rules: HashMap<(String, String), (String, String)> =
        rules.into_iter().map(|(table, name, on_delete, on_update)| ((table, name), (on_delete, on_update))).collect();
    let rows: Vec<ForeignKeyRow> = query(conn, FOREIGN_KEYS, database, only, "foreign keys").await?;
    for (table, name, column, parent_schema, parent, parent_column) in rows {
        let Some(details) = tables.get_mut(&table) else { continue };
        // Dropped between the two queries.
        let Some((on_delete, on_update)) = rules.get(&(table, name.clone())) else { continue };
        match details.foreign_keys.last_mut() {
            Some(last) if last.name == name => {
                last.columns.push(column);
                last.parent_columns.push(parent_column);
            }
            Some(_) | None => details.foreign_keys.push(ForeignKey {
                name,
                columns: vec![column],
                parent: TableName::new(parent_schema, parent),
                parent_columns: vec![parent_column],
                on_delete: on_delete.to_ascii_uppercase(),
                on_update: on_update.to_ascii_uppercase(),
            }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mariadb_defaults_are_sql() {
        let literal = |text: &str| Some(DefaultValue::Literal(text.to_owned()));
        let expression = |text: &str| Some(DefaultValue::Expression(text.to_owned()));
        assert_eq!(mariadb_default("NULL".into()), None);
        assert_eq!(mariadb_default("'NULL'".into()), literal("NULL"));
        assert_eq!(mariadb_default(r"'it''s \\ \n'".into()), literal("it's \\ \n"));
        assert_eq!(mariadb_default("5".into()), expression("5"));
        assert_eq!(mariadb_default("current_timestamp(3)".into()), expression("current_timestamp(3)"));
        assert_eq!(mariadb_default("'a' || 'b'".into()), expression("'a' || 'b'"));
    }

    #[test]
    fn mysql_defaults_are_text_unless_they_are_marked() {
        let of = |text: &str, data_type: &str, extra: &str| mysql_default(text.into(), data_type, extra);
        assert_eq!(of("x'y", "varchar", ""), DefaultValue::Literal("x'y".into()));
        assert_eq!(of("CURRENT_TIMESTAMP", "varchar", ""), DefaultValue::Literal("CURRENT_TIMESTAMP".into()));
        assert_eq!(of("CURRENT_TIMESTAMP(3)", "datetime", ""), DefaultValue::Expression("CURRENT_TIMESTAMP(3)".into()));
        assert_eq!(of("uuid()", "char", "default_generated"), DefaultValue::Expression("uuid()".into()));
        assert_eq!(of("b'101'", "bit", ""), DefaultValue::Expression("b'101'".into()));
        assert_eq!(of("0x6162", "binary", ""), DefaultValue::Expression("0x6162".into()));
    }
}
