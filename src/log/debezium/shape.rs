//! A table's columns, and a change as a record of ours.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    DebeziumError,
    connect::{self, Described},
    message::{Cell, DebeziumChange, Object},
    values::{self, Rule},
};
use crate::{
    log::envelope::json::write_string,
    model::{Column, ColumnType, Op, TableName, TableSchema},
};

/// Types of columns that others declare: the target's table, or the transform.
pub type Known = BTreeMap<String, ColumnType>;

/// A table, as one of its records shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub table: TableName,
    pub has_schema: bool,
    is_postgres: bool,
    columns: Vec<Described>,
    key: Vec<String>,
}

/// What of a table is applied, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordShape {
    pub schema: Arc<TableSchema>,
    rules: Vec<Rule>,
    needs_before: bool,
    is_postgres: bool,
}

impl Sample {
    /// Whether InnoDB may have changed rows that no record tells of: foreign keys act below the level at which it logs
    /// rows, until MySQL 9.6.
    pub fn may_hide_cascades(&self) -> bool {
        !self.is_postgres
    }

    /// Looks at a change; none at one that shows no columns.
    ///
    /// # Errors
    /// When it has no key, or a schema that cannot be read.
    pub fn of(change: &DebeziumChange<'_>) -> Result<Option<Self>, DebeziumError> {
        let Some(image) = change.after.as_ref().or(change.before.as_ref()) else { return Ok(None) };
        if change.key.is_empty() {
            return Err(DebeziumError::NoKey);
        }
        let source = &change.source;
        let columns = match change.schema {
            Some(schema) => connect::columns(schema, source.is_postgres)?,
            None => image.iter().map(|(name, cell)| guess(name, cell)).collect(),
        };
        Ok(Some(Sample {
            table: TableName::new(source.schema.clone(), source.table.clone()),
            has_schema: change.schema.is_some(),
            is_postgres: source.is_postgres,
            columns,
            key: change.key.iter().map(|(name, _)| name.clone().into_owned()).collect(),
        }))
    }

    /// The table as transforms are checked against it. Without schemas, a column has the type that is known of it.
    pub fn schema(&self, known: &Known) -> TableSchema {
        self.table_schema(known, |_| true)
    }

    /// The columns that are read, and the key.
    pub fn shape(&self, known: &Known, reads: &[String], needs_before: bool) -> RecordShape {
        let schema = self.table_schema(known, |name| reads.iter().chain(&self.key).any(|read| read == name));
        let rule = |column: &Column| {
            let described = self.columns.iter().find(|described| described.name == column.name);
            match described.filter(|_| self.has_schema) {
                Some(described) => described.rule.clone(),
                None => rule_of(&column.column_type),
            }
        };
        let rules = schema.columns.iter().map(rule).collect();
        RecordShape { schema: Arc::new(schema), rules, needs_before, is_postgres: self.is_postgres }
    }

    fn table_schema(&self, known: &Known, wanted: impl Fn(&str) -> bool) -> TableSchema {
        let columns: Vec<Column> = self
            .columns
            .iter()
            .filter(|column| wanted(&column.name))
            .map(|column| Column {
                name: column.name.clone(),
                column_type: match known.get(&column.name).filter(|_| !self.has_schema) {
                    Some(known) => known.clone(),
                    None => column.column_type.clone(),
                },
                source_type: String::new(),
                nullable: !self.key.contains(&column.name),
                charset: None,
                collation: None,
                generated: false,
            })
            .collect();
        let place = |name: &String| columns.iter().position(|column| column.name == *name);
        let key = self.key.iter().filter_map(place).collect();
        TableSchema { table: self.table.clone(), columns, key }
    }
}

/// What a value without a schema may be, where nobody knows better.
fn guess(name: &str, cell: &Cell<'_>) -> Described {
    let column_type = match cell {
        Cell::Bool(_) => ColumnType::Named("boolean".into()),
        Cell::Number(text) if text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) => ColumnType::Double,
        Cell::Number(_) => ColumnType::Named("numeric".into()),
        Cell::Null | Cell::Text(_) | Cell::Nested(_) => ColumnType::Text,
    };
    Described { name: name.to_owned(), column_type, rule: Rule::Plain }
}

/// How values without a schema are read as a type.
fn rule_of(column_type: &ColumnType) -> Rule {
    match column_type {
        ColumnType::Numeric { .. } => Rule::Decimal,
        ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz => Rule::Time,
        ColumnType::Interval => Rule::Interval,
        ColumnType::Bytes => Rule::Bytes,
        ColumnType::Named(name) => rule_named(name),
        ColumnType::SmallInt
        | ColumnType::Integer
        | ColumnType::BigInt
        | ColumnType::Real
        | ColumnType::Double
        | ColumnType::Text
        | ColumnType::Json => Rule::Plain,
    }
}

fn rule_named(name: &str) -> Rule {
    if let Some(member) = name.strip_suffix("[]") {
        return Rule::List(Box::new(rule_named(member)));
    }
    let begins = |names: &[&str]| names.iter().any(|known| name.starts_with(known));
    if begins(&["numeric", "decimal"]) {
        Rule::Decimal
    } else if begins(&["date", "time"]) {
        Rule::Time
    } else if begins(&["interval"]) {
        Rule::Interval
    } else if name == "bytea" {
        Rule::Bytes
    } else {
        Rule::Plain
    }
}

impl RecordShape {
    /// A change's key and envelope, as our own records have them.
    ///
    /// # Errors
    /// When it does not fit the columns, or holds what cannot be known.
    pub fn record(&self, change: &DebeziumChange<'_>) -> Result<(Bytes, Bytes), DebeziumError> {
        let (mut op, before, after) = (change.op, change.before.as_ref(), change.after.as_ref());
        let missing = |image| DebeziumError::NoImage { op: op.letter(), image };
        match op {
            Op::Insert | Op::Read | Op::Update if after.is_none() => return Err(missing("after")),
            Op::Delete if before.is_none() => return Err(missing("before")),
            Op::Insert | Op::Read | Op::Update | Op::Delete | Op::Truncate => {}
        }
        if self.needs_before && (op == Op::Update || op == Op::Delete) && !before.is_some_and(|row| self.is_whole(row))
        {
            return Err(missing("before"));
        }
        if let (Op::Update, Some(before), Some(after)) = (op, before, after) {
            self.same_key(before, after)?;
        }
        // What an update says without an image before is what an insert says.
        if op == Op::Update && before.is_none() {
            op = Op::Insert;
        }
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"{\"before\":");
        self.write_image(&mut out, before)?;
        out.extend_from_slice(b",\"after\":");
        self.write_image(&mut out, after)?;
        out.extend_from_slice(b",\"op\":\"");
        out.extend(u8::try_from(op.letter()));
        out.extend_from_slice(b"\"}");
        Ok((self.key(&change.key)?, out.into()))
    }

    /// Without the full replica identity PostgreSQL has an image of the key alone, the rest of which is null.
    fn is_whole(&self, before: &Object<'_>) -> bool {
        let is_key = |name: &str| self.schema.key_columns().any(|column| column.name == name);
        let mut others = before.iter().filter(|(name, _)| !is_key(name)).peekable();
        !self.is_postgres || others.peek().is_none() || others.any(|(_, cell)| *cell != Cell::Null)
    }

    fn same_key(&self, before: &Object<'_>, after: &Object<'_>) -> Result<(), DebeziumError> {
        for column in self.schema.key_columns() {
            if find(before, &column.name) != find(after, &column.name) {
                return Err(DebeziumError::KeyChanged);
            }
        }
        Ok(())
    }

    fn key(&self, key: &Object<'_>) -> Result<Bytes, DebeziumError> {
        if key.is_empty() {
            return Err(DebeziumError::NoKey);
        }
        if key.len() != self.schema.key.len() {
            return Err(DebeziumError::OtherKey);
        }
        let mut out = Vec::with_capacity(32);
        for (place, (index, column)) in self.schema.key.iter().zip(self.schema.key_columns()).enumerate() {
            let cell = find(key, &column.name).ok_or(DebeziumError::OtherKey)?;
            if *cell == Cell::Null {
                return Err(DebeziumError::NullKey { column: column.name.clone() });
            }
            out.push(if place == 0 { b'{' } else { b',' });
            write_string(&mut out, &column.name);
            out.push(b':');
            values::write(&mut out, self.rules.get(*index).unwrap_or(&Rule::Plain), &column.name, cell)?;
        }
        out.push(b'}');
        Ok(out.into())
    }

    fn write_image(&self, out: &mut Vec<u8>, image: Option<&Object<'_>>) -> Result<(), DebeziumError> {
        let Some(image) = image else {
            out.extend_from_slice(b"null");
            return Ok(());
        };
        out.push(b'{');
        let mut expected = 0;
        for (place, (column, rule)) in self.schema.columns.iter().zip(&self.rules).enumerate() {
            // Columns mostly come in their order: the search begins where the last one was found.
            let found = (expected..image.len()).chain(0..expected).find(|at| image[*at].0 == column.name);
            let Some(found) = found else { return Err(DebeziumError::MissingColumn { column: column.name.clone() }) };
            expected = found + 1;
            if place > 0 {
                out.push(b',');
            }
            write_string(out, &column.name);
            out.push(b':');
            values::write(out, rule, &column.name, &image[found].1)?;
        }
        out.push(b'}');
        Ok(())
    }
}

fn find<'o, 'a>(object: &'o Object<'a>, name: &str) -> Option<&'o Cell<'a>> {
    object.iter().find(|(known, _)| known == name).map(|(_, cell)| cell)
}
