//! Tables as the store knows them: columns, unique indexes, foreign keys.

use std::fmt;

use super::{
    store::TableId,
    table::{Check, Deferral},
    value::Value,
};

/// A unique index; the first of a table is its primary key, if it has one.
#[derive(Debug, Clone)]
pub struct Index {
    pub name: String,
    pub columns: Vec<usize>,
    /// Of a partial index: which rows are in it.
    pub only: Option<fn(&[Value]) -> bool>,
}

impl Index {
    /// The row's key; none if it has a null, which is never equal to another, or is not in the index.
    pub fn key(&self, row: &[Value]) -> Option<Vec<Value>> {
        if self.only.is_some_and(|only| !only(row)) {
            return None;
        }
        let key: Vec<Value> = self.columns.iter().map(|column| row[*column].clone()).collect();
        (!key.iter().any(Value::is_null)).then_some(key)
    }
}

#[derive(Debug, Clone)]
pub struct Foreign {
    pub name: String,
    pub columns: Vec<usize>,
    pub parent: TableId,
    pub parent_columns: Vec<usize>,
    pub deferral: Deferral,
}

#[derive(Clone)]
pub struct Shape {
    /// With its schema.
    pub name: String,
    pub columns: Vec<String>,
    /// Columns by which a row is known in reports of changes.
    pub key: Vec<usize>,
    pub indexes: Vec<Index>,
    pub not_null: Vec<usize>,
    pub check: Option<Check>,
    pub foreign: Vec<Foreign>,
    /// Foreign keys that refer to this table: table and place.
    pub referring: Vec<(TableId, usize)>,
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Shape {
    /// The name without its schema, as error messages have it.
    pub fn relation(&self) -> &str {
        self.name.split_once('.').map_or(&*self.name, |(_, table)| table)
    }

    pub fn column(&self, name: &str) -> usize {
        let place = self.columns.iter().position(|column| column == name);
        place.unwrap_or_else(|| panic!("{} has no column `{name}`", self.name))
    }

    /// Whether a change of this column locks the row as a delete does: it is in a unique index.
    pub fn is_key(&self, column: usize) -> bool {
        self.indexes.iter().any(|index| index.only.is_none() && index.columns.contains(&column))
    }
}
