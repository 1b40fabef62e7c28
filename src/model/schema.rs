//! Table schemas: what a row's values mean, by name.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::value::Value;

/// A table of the source or the target, with its schema (PostgreSQL) or database (MySQL).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        TableName { schema: schema.into(), table: table.into() }
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// The type of a column as a transform sees it: a PostgreSQL type.
///
/// MySQL types map as the transforms contract says: integers to the next PostgreSQL integer that holds
/// them, `BIGINT UNSIGNED` to `numeric(20)`, `DATETIME` to `timestamp`, and so on (docs/types.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    SmallInt,
    Integer,
    BigInt,
    /// `numeric(precision, scale)`.
    Numeric {
        precision: u16,
        scale: u16,
    },
    Real,
    Double,
    Text,
    /// `bytea`; base64 on the wire.
    Bytes,
    /// `jsonb`; JSON text on the wire.
    Json,
    Date,
    /// `timestamp` without time zone.
    Timestamp,
    /// `timestamptz`.
    TimestampTz,
    Interval,
    /// Any other PostgreSQL type, by its SQL name; text on the wire.
    Named(String),
}

impl ColumnType {
    /// The PostgreSQL spelling of this type.
    pub fn sql(&self) -> String {
        match self {
            ColumnType::SmallInt => "smallint".into(),
            ColumnType::Integer => "integer".into(),
            ColumnType::BigInt => "bigint".into(),
            ColumnType::Numeric { precision, scale } => format!("numeric({precision},{scale})"),
            ColumnType::Real => "real".into(),
            ColumnType::Double => "double precision".into(),
            ColumnType::Text => "text".into(),
            ColumnType::Bytes => "bytea".into(),
            ColumnType::Json => "jsonb".into(),
            ColumnType::Date => "date".into(),
            ColumnType::Timestamp => "timestamp".into(),
            ColumnType::TimestampTz => "timestamptz".into(),
            ColumnType::Interval => "interval".into(),
            ColumnType::Named(name) => name.clone(),
        }
    }
}

/// One column of a source table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// The source's own spelling of the type, in lower case: `int(10) unsigned`.
    pub source_type: String,
    pub nullable: bool,
    /// The source's character set for text (`latin1`), for decoding raw bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charset: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collation: Option<String>,
    /// A generated column: it is captured, and the target computes its own or takes the value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub generated: bool,
}

impl Column {
    /// The name of the source's type alone: `int` of `int(10) unsigned`.
    pub fn base_type(&self) -> &str {
        self.source_type.split(['(', ' ']).next().unwrap_or_default()
    }

    /// What stands in the parentheses of the source's type, where that is one number: 20 of `varchar(20)`.
    pub fn type_length(&self) -> Option<u32> {
        let (_, rest) = self.source_type.split_once('(')?;
        rest.split(')').next()?.parse().ok()
    }
}

/// A source table's columns and key at a point of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    pub table: TableName,
    pub columns: Vec<Column>,
    /// Indexes into `columns` of the key: the primary key, or the unique not-null key that stands in for it.
    pub key: Vec<usize>,
}

impl TableSchema {
    /// The same, with names of columns that differ from a known schema's in case alone spelled as they are there: to
    /// MySQL they are one name.
    #[must_use]
    pub fn spelled_as(mut self, known: &TableSchema) -> Self {
        for column in &mut self.columns {
            let lower = column.name.to_lowercase();
            if let Some(same) = known.columns.iter().find(|other| other.name.to_lowercase() == lower) {
                column.name.clone_from(&same.name);
            }
        }
        self
    }

    /// The schema's identity: the first eight bytes of the SHA-256 of its JSON.
    pub fn id(&self) -> u64 {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(&json);
        digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// A row of which no more is known than its key, in key order.
    pub fn row_of_key(&self, key: Vec<Value>) -> Vec<Value> {
        let mut row = vec![Value::Null; self.columns.len()];
        for (place, value) in self.key.iter().zip(key) {
            if let Some(cell) = row.get_mut(*place) {
                *cell = value;
            }
        }
        row
    }

    /// The key's columns, in key order.
    pub fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().filter_map(|index| self.columns.get(*index))
    }
}
