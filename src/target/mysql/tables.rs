//! The target's tables: what the transforms are checked against, and what writing a row needs to know.

use std::collections::BTreeMap;

use mysql_async::Conn;
use sha2::{Digest, Sha256};

use super::{
    MysqlError,
    literal::{is_exact, side_value},
};
use crate::{
    database::mysql::{
        catalog,
        connect::quoted,
        details::{self, ColumnDetails, ForeignKey, TableDetails},
    },
    model::{Column, ColumnType, Plan, Problem, TableName, TableSchema, TargetColumn, TargetTable},
    target::ApplyError,
};

/// The longest name of a table, in characters (MySQL, "Identifier Length Limits").
const NAME_CHARS_MAX: usize = 64;

/// A table that rows are written to.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub name: TableName,
    pub columns: Vec<Column>,
    /// Places in `columns` of its key.
    pub key: Vec<usize>,
    /// Those that it has, which are not asked for while cutover writes.
    pub foreign_keys: Vec<ForeignKey>,
    /// The index of the key.
    key_index: Option<String>,
    engine: String,
}

/// All tables of the target's database, by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables(pub BTreeMap<TableName, Table>);

impl Tables {
    /// A table that is written to.
    ///
    /// # Errors
    /// [`ApplyError::Halt`] without it.
    pub fn get(&self, name: &TableName) -> Result<&Table, ApplyError> {
        self.0.get(name).ok_or_else(|| {
            ApplyError::Halt(Problem::new(
                format!("the target has no table {name} any more"),
                "make it again, then copy it again with `cutover resnapshot`",
            ))
        })
    }

    /// The tables of these plans.
    pub fn of<'a>(&'a self, plans: &'a [Plan]) -> impl Iterator<Item = &'a Table> {
        plans.iter().filter_map(|plan| self.0.get(&plan.target.name))
    }
}

impl Table {
    /// Its name as SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", quoted(&self.name.schema), quoted(&self.name.table))
    }

    /// The side table of its versions, as SQL.
    pub fn side(&self) -> String {
        format!("`cutover`.{}", quoted(&self.side_name()))
    }

    /// The side table's own name.
    pub fn side_name(&self) -> String {
        let digest = Sha256::digest(format!("{}\0{}", self.name.schema, self.name.table).as_bytes());
        let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let readable: String = self.name.table.chars().take(NAME_CHARS_MAX - digest.len() - 1).collect();
        format!("{readable}_{digest}")
    }

    pub fn key_columns(&self) -> impl Iterator<Item = &Column> + Clone {
        self.key.iter().filter_map(|place| self.columns.get(*place))
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Makes the server look rows up by their key, and lock no others.
    pub fn by_key(&self) -> String {
        self.key_index.as_ref().map(|index| format!(" FORCE INDEX ({})", quoted(index))).unwrap_or_default()
    }

    /// `t.a = s.a AND …`, where the table is called `t`.
    pub fn same_key(&self, t: &str) -> String {
        let same = |column: &Column| {
            let name = quoted(&column.name);
            format!("{} = s.{name}", side_value(column, &format!("{t}.{name}")))
        };
        self.key_columns().map(same).collect::<Vec<_>>().join(" AND ")
    }

    /// Whether what is written to it can be taken back.
    pub fn is_transactional(&self) -> bool {
        self.engine.eq_ignore_ascii_case("innodb")
    }

    /// The columns of its key by which a row cannot be found again, or that the side table cannot have.
    pub fn partial_keys(&self) -> impl Iterator<Item = &Column> {
        self.key_columns().filter(|column| self.key_index.is_none() || !is_exact(column))
    }

    pub fn engine(&self) -> &str {
        &self.engine
    }
}

/// Reads the base tables of a database: as transforms see them, and as rows are written.
pub(super) async fn load(conn: &mut Conn, database: &str) -> Result<(Vec<TargetTable>, Tables), MysqlError> {
    let schemas = catalog::load_tables(conn, database, None).await?;
    let mut details: BTreeMap<String, TableDetails> = BTreeMap::new();
    for table in details::load_details(conn, database, None).await? {
        details.insert(table.table.table.clone(), table);
    }
    let (mut seen, mut tables) = (Vec::new(), Tables::default());
    for schema in schemas {
        let Some(details) = details.get(&schema.table.table) else { continue };
        seen.push(as_seen(&schema, details));
        let table = Table {
            foreign_keys: details.foreign_keys.clone(),
            key_index: key_index(&schema, details),
            engine: details.engine.clone(),
            name: schema.table.clone(),
            columns: schema.columns,
            key: schema.key,
        };
        tables.0.insert(schema.table, table);
    }
    Ok((seen, tables))
}

/// The name of the index that the key is.
fn key_index(schema: &TableSchema, details: &TableDetails) -> Option<String> {
    let key: Vec<&str> = schema.key_columns().map(|column| column.name.as_str()).collect();
    let is_key = |index: &&details::Index| {
        index.unique && index.visible && index.whole_columns().is_some_and(|columns| columns == key)
    };
    details.indexes.iter().find(is_key).map(|index| index.name.clone())
}

fn as_seen(schema: &TableSchema, details: &TableDetails) -> TargetTable {
    let key_index = key_index(schema, details);
    let uniques = details.indexes.iter().filter(|index| index.unique && Some(&index.name) != key_index.as_ref());
    TargetTable {
        name: schema.table.clone(),
        columns: schema
            .columns
            .iter()
            .map(|column| column_seen(column, details.columns.iter().find(|other| other.name == column.name)))
            .collect(),
        key: schema.key_columns().map(|column| column.name.clone()).collect(),
        uniques: uniques.map(|index| index.name.clone()).collect(),
        // They rest while cutover writes.
        foreign_keys: Vec::new(),
        replaceable: true,
        partitioned: false,
        has_owners: false,
        elsewhere: true,
    }
}

fn column_seen(column: &Column, details: Option<&ColumnDetails>) -> TargetColumn {
    let filled = |details: &ColumnDetails| details.default.is_some() || details.auto_increment;
    TargetColumn {
        name: column.name.clone(),
        type_sql: column.column_type.sql(),
        cast_sql: match &column.column_type {
            // The server refuses what it would have to round.
            ColumnType::Numeric { .. } => "numeric".into(),
            other => other.sql(),
        },
        collation: None,
        // Two keys that its collation takes for one are told when they meet.
        folds: false,
        not_null: !column.nullable,
        has_default: details.is_some_and(filled),
        identity: None,
        generated: column.generated,
    }
}
