//! From the source's catalog to what the target's tables will be.
//!
//! What enters: schemas, details and the columns that hold zero dates. What leaves: one [`PlannedTable`] per source
//! table with a key, in which every decision about a column is made once; schema, transforms and indexes are
//! written from it. Everything that is not as at the source has a note that says so. A target that is MySQL or MariaDB
//! keeps the source's types; then names and NOT NULL are all that is decided here.

use std::collections::{HashMap, HashSet};

use super::{defaults, names::shortened};
use crate::{
    cli::eligible::unfit_column,
    database::mysql::details::{ColumnDetails, DefaultValue, TableDetails},
    model::{Column, ColumnType, TableSchema},
    target::TargetKind,
};

/// A table of the target.
#[derive(Debug)]
pub(super) struct PlannedTable {
    pub name: String,
    pub schema: TableSchema,
    pub details: TableDetails,
    pub columns: Vec<PlannedColumn>,
    /// Whether the key is the source's primary key, and not a unique index that stands in for it.
    pub primary: bool,
}

/// A column of the target, at the place of its source column.
#[derive(Debug)]
pub(super) struct PlannedColumn {
    pub name: String,
    pub column_type: ColumnType,
    pub not_null: bool,
    pub identity: bool,
    pub default: Option<String>,
    /// The SELECT casts to the type, since it is not the one that the source column has there.
    pub cast: bool,
    /// What a reader of schema.sql should know: the source's type first.
    pub notes: Vec<String>,
    /// What a writer of transforms should know.
    pub hint: Option<String>,
}

/// What is known about zero dates in a date column that is NOT NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ZeroDatesFound {
    /// Some row has one.
    Found,
    /// The rows could not all be looked at in the time that there was.
    Unknown,
}

/// Columns with zero dates, by table and column.
pub(super) type ZeroDateColumns = HashMap<(String, String), ZeroDatesFound>;

impl PlannedTable {
    /// The target's column for a source column.
    pub(super) fn column(&self, source: &str) -> Option<&PlannedColumn> {
        let position = self.schema.columns.iter().position(|column| column.name == source)?;
        self.columns.get(position)
    }

    /// The target's names of the key's columns, in key order.
    pub(super) fn key(&self) -> Vec<&str> {
        self.schema.key.iter().filter_map(|index| self.columns.get(*index)).map(|column| column.name.as_str()).collect()
    }
}

/// The target's tables for the source's, in the same order.
pub(super) fn plan(
    tables: Vec<(TableSchema, TableDetails)>,
    zero_dates: &ZeroDateColumns,
    target: TargetKind,
) -> Vec<PlannedTable> {
    let narrowed = match target {
        TargetKind::Postgres => narrowed(&tables),
        TargetKind::Mysql => HashSet::new(),
    };
    let planned = tables.into_iter().map(|(schema, details)| {
        let names = column_names(&schema);
        let columns = schema.columns.iter().zip(&details.columns).enumerate().map(|(index, (column, details))| {
            let place = (schema.table.table.clone(), column.name.clone());
            Facts {
                column,
                name: names.get(index).unwrap_or(&column.name).clone(),
                details,
                key: schema.key.contains(&index),
                narrowed: narrowed.contains(&place),
                zero_dates: zero_dates.get(&place).copied(),
            }
            .plan(target)
        });
        PlannedTable {
            name: shortened(&schema.table.table),
            columns: columns.collect(),
            primary: details.indexes.iter().any(|index| index.name == "PRIMARY"),
            schema,
            details,
        }
    });
    planned.collect()
}

/// The target's names of the columns: the source's own, unless no table there can have one.
fn column_names(schema: &TableSchema) -> Vec<String> {
    let fits = |name: &str| unfit_column(name).is_none();
    let own = schema.columns.iter().map(|column| column.name.as_str()).filter(|name| fits(name));
    let mut taken: HashSet<String> = own.map(str::to_owned).collect();
    let name = |column: &Column| {
        if fits(&column.name) {
            return column.name.clone();
        }
        let mut name = shortened(&column.name);
        if !fits(&name) {
            name = shortened(&format!("source_{name}"));
        }
        while !taken.insert(name.clone()) {
            name = shortened(&format!("{name}_"));
        }
        name
    };
    schema.columns.iter().map(name).collect()
}

const UNSIGNED_BIG: ColumnType = ColumnType::Numeric { precision: 20, scale: 0 };

/// The BIGINT UNSIGNED columns that become `bigint` instead of `numeric(20)`: those with AUTO_INCREMENT, since an
/// identity column needs an integer type, unless the counter is already beyond it; and what refers to them by a
/// foreign key, since PostgreSQL wants the two types to agree.
fn narrowed(tables: &[(TableSchema, TableDetails)]) -> HashSet<(String, String)> {
    let mut narrowed = HashSet::new();
    for (schema, details) in tables {
        let fits = details.auto_increment.is_none_or(|next| i64::try_from(next).is_ok());
        for (column, more) in schema.columns.iter().zip(&details.columns) {
            if more.auto_increment && fits && is_unsigned_big(column) {
                narrowed.insert((schema.table.table.clone(), column.name.clone()));
            }
        }
    }
    loop {
        let before = narrowed.len();
        for (schema, details) in tables {
            for key in details.foreign_keys.iter().filter(|key| key.parent.schema == schema.table.schema) {
                for (child, parent) in key.columns.iter().zip(&key.parent_columns) {
                    let refers = narrowed.contains(&(key.parent.table.clone(), parent.clone()));
                    if refers && schema.column(child).is_some_and(is_unsigned_big) {
                        narrowed.insert((schema.table.table.clone(), child.clone()));
                    }
                }
            }
        }
        if narrowed.len() == before {
            return narrowed;
        }
    }
}

fn is_unsigned_big(column: &Column) -> bool {
    column.source_type.starts_with("bigint") && column.column_type == UNSIGNED_BIG
}

/// Whether values of the type can be MySQL's zero dates.
pub(super) fn is_date(column_type: &ColumnType) -> bool {
    matches!(column_type, ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz)
}

/// All that decides about one column.
struct Facts<'a> {
    column: &'a Column,
    /// What it is called at the target.
    name: String,
    details: &'a ColumnDetails,
    key: bool,
    narrowed: bool,
    zero_dates: Option<ZeroDatesFound>,
}

impl Facts<'_> {
    fn plan(&self, target: TargetKind) -> PlannedColumn {
        match target {
            TargetKind::Postgres => self.plan_for_postgres(),
            TargetKind::Mysql => self.plan_for_mysql(),
        }
    }

    /// Why it is not called as at the source, if it is not.
    fn name_note(&self) -> Option<String> {
        let name = &self.column.name;
        unfit_column(name).map(|why| format!("`{name}` at the source, {why}"))
    }

    /// Its default and its type are spelled from the source's own.
    fn plan_for_mysql(&self) -> PlannedColumn {
        let mut notes: Vec<String> = self.name_note().into_iter().collect();
        let not_null = self.not_null(&mut notes);
        if let Some(expression) = &self.details.generation {
            notes.push(format!("generated at the source as {expression}; here it takes the source's value"));
        }
        PlannedColumn {
            name: self.name.clone(),
            column_type: self.column.column_type.clone(),
            not_null,
            identity: self.details.auto_increment,
            default: None,
            cast: false,
            notes,
            hint: None,
        }
    }

    fn plan_for_postgres(&self) -> PlannedColumn {
        let column = self.column;
        let column_type = if self.narrowed { ColumnType::BigInt } else { column.column_type.clone() };
        let mut notes = vec![column.source_type.clone()];
        notes.extend(type_note(column, self.narrowed));
        notes.extend(self.name_note());
        let identity = self.identity(&column_type, &mut notes);
        let not_null = self.not_null(&mut notes);
        let default = if identity { None } else { self.default(&column_type, &mut notes) };
        if self.details.on_update_now {
            notes.push("ON UPDATE CURRENT_TIMESTAMP is not carried over: the application or a trigger sets it".into());
        }
        if let Some(expression) = &self.details.generation {
            notes.push(format!("generated at the source as {expression}; here it takes the source's value"));
        }
        PlannedColumn {
            name: self.name.clone(),
            column_type,
            not_null,
            identity,
            default,
            cast: self.narrowed,
            notes,
            hint: hint(column, self.narrowed),
        }
    }

    fn identity(&self, column_type: &ColumnType, notes: &mut Vec<String>) -> bool {
        if !self.details.auto_increment {
            return false;
        }
        let integer = matches!(column_type, ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt);
        if !integer {
            notes.push(format!(
                "AUTO_INCREMENT, but {} cannot be an identity column: give it a default",
                column_type.sql()
            ));
        }
        integer
    }

    fn not_null(&self, notes: &mut Vec<String>) -> bool {
        let dates = is_date(&self.column.column_type);
        let zero_default = dates && self.details.default.as_ref().is_some_and(defaults::is_zero_date);
        let reason = match (self.zero_dates, zero_default) {
            (Some(ZeroDatesFound::Found), _) => {
                "NOT NULL at the source, where some rows hold a zero date, which becomes null"
            }
            (None | Some(ZeroDatesFound::Unknown), true) => {
                "NOT NULL at the source, where the default is a zero date, which becomes null"
            }
            (Some(ZeroDatesFound::Unknown), false) => {
                "NOT NULL at the source; whether some rows hold a zero date, which becomes null, took too long to find out"
            }
            (None, false) => return !self.column.nullable,
        };
        if self.column.nullable {
            return false;
        }
        if self.key {
            notes.push(
                "zero dates in the key cannot become null: set [source] zero_dates, or correct them first".into(),
            );
            return true;
        }
        notes.push(reason.into());
        false
    }

    fn default(&self, column_type: &ColumnType, notes: &mut Vec<String>) -> Option<String> {
        let default = self.details.default.as_ref()?;
        let translated = defaults::translate(default, column_type, &self.column.source_type);
        if translated.is_none() {
            let (DefaultValue::Literal(text) | DefaultValue::Expression(text)) = default;
            notes.push(format!("the default {text} is not carried over"));
        }
        translated
    }
}

/// What the target's type does not keep.
fn type_note(column: &Column, narrowed: bool) -> Option<String> {
    let source_type = column.source_type.as_str();
    let kind = source_type.split(['(', ' ']).next().unwrap_or_default();
    let note = match kind {
        "bigint" if narrowed => "a value above 9223372036854775807 goes to the dead letters",
        "enum" => "text: schema_after.sql has the check of the labels, to be switched on by hand",
        "set" => "text: the labels, joined by commas",
        "bit" => "bytes, big endian",
        "json" => "jsonb keeps neither spaces nor the order of keys, and refuses \\u0000",
        "longtext" if column.column_type == ColumnType::Json => {
            "MariaDB's JSON; jsonb keeps neither spaces, nor the order of keys, nor double keys"
        }
        "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geometrycollection" | "geomcollection" => "WKB without the SRID",
        "vector" => "the vector's floats, little endian",
        _ if source_type.contains("zerofill") => "without the leading zeros",
        _ => return None,
    };
    Some(note.into())
}

/// What a transform can make of the type.
fn hint(column: &Column, narrowed: bool) -> Option<String> {
    let kind = column.base_type();
    let hint = match kind {
        "bigint" if narrowed => "numeric(20) before the cast".to_owned(),
        "tinyint" if column.source_type.starts_with("tinyint(1)") => "a boolean: <> 0".to_owned(),
        "bit" if column.source_type == "bit(1)" => "a boolean: get_byte(…, 0) <> 0".to_owned(),
        "set" => "an array: string_to_array(…, ',')".to_owned(),
        "datetime" => "DATETIME has no time zone; to give it one: AT TIME ZONE 'UTC'".to_owned(),
        "uuid" | "inet4" | "inet6" => {
            format!("text; the type of its own: ::{}", if kind == "uuid" { "uuid" } else { "inet" })
        }
        _ => return None,
    };
    Some(hint)
}
