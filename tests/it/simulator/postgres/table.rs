//! The user's tables as the model is told of them: data, and the meaning of each transform as a function.

use std::{fmt, sync::Arc};

use cutover::model::{ColumnType, Plan};

use super::value::{Row, SqlError, Value};

/// One result column. An error in it is raised by the statements that use the column: one of dead facts looks at keys
/// only.
pub type Cell = Result<Value, SqlError>;

/// What a `SELECT` makes of one source row: rows of result columns in the plan's order, or the error of its `WHERE`.
pub type Transformed = Result<Vec<Vec<Cell>>, SqlError>;

/// The meaning of a plan's `SELECT`.
pub type Transform = Arc<dyn Fn(&SourceRow<'_>) -> Transformed + Send + Sync>;

/// A `CHECK` constraint over a whole target row, in the order of the table's columns (without the version).
pub type Check = Arc<dyn Fn(&[Value]) -> Option<SqlError> + Send + Sync>;

/// A source row as the `SELECT` sees it: columns by name, cast when they are looked at.
pub struct SourceRow<'a> {
    pub names: &'a [String],
    pub types: &'a [ColumnType],
    pub texts: &'a [Option<Arc<str>>],
}

impl SourceRow<'_> {
    /// A column's value in its source type.
    pub fn get(&self, name: &str) -> Cell {
        let place = self.names.iter().position(|known| known == name);
        let place = place.unwrap_or_else(|| panic!("the plan does not read `{name}`, only {:?}", self.names));
        let Some(text) = &self.texts[place] else { return Ok(Value::Null) };
        match &self.types[place] {
            ColumnType::SmallInt => integer(text, "smallint", i64::from(i16::MIN), i64::from(i16::MAX)),
            ColumnType::Integer => integer(text, "integer", i64::from(i32::MIN), i64::from(i32::MAX)),
            ColumnType::BigInt => integer(text, "bigint", i64::MIN, i64::MAX),
            ColumnType::Numeric { .. }
            | ColumnType::Real
            | ColumnType::Double
            | ColumnType::Text
            | ColumnType::Bytes
            | ColumnType::Json
            | ColumnType::Date
            | ColumnType::Timestamp
            | ColumnType::TimestampTz
            | ColumnType::Interval
            | ColumnType::Named(_) => Ok(Value::Text(text.clone())),
        }
    }
}

/// A text cast to an integer type.
pub fn integer(text: &str, name: &str, min: i64, max: i64) -> Cell {
    let trimmed = text.trim();
    let digits = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("invalid input syntax for type {name}: \"{text}\"");
        return Err(SqlError::new("22P02", message));
    }
    match trimmed.parse::<i64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(Value::Int(number)),
        Ok(_) | Err(_) => Err(SqlError::new("22003", format!("value \"{text}\" is out of range for type {name}"))),
    }
}

/// A unique constraint besides the primary key.
#[derive(Debug, Clone)]
pub struct Unique {
    pub name: String,
    pub columns: Vec<String>,
}

/// When a foreign key is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deferral {
    NotDeferrable,
    InitiallyImmediate,
    InitiallyDeferred,
}

/// One plan with its target table. Several may share a target: what they say of the table must then be the same.
#[derive(Clone)]
pub struct ModelTable {
    /// Carries the table (columns, key, foreign keys) and the SQL.
    pub plan: Plan,
    pub transform: Transform,
    pub uniques: Vec<Unique>,
    pub check: Option<Check>,
    /// Values of columns that the plan does not fill; null where this names none.
    pub defaults: Vec<(String, Value)>,
    /// Of all foreign keys of the table.
    pub deferral: Deferral,
}

impl ModelTable {
    /// A table without constraints but its keys.
    pub fn new(plan: Plan, transform: Transform) -> Self {
        ModelTable {
            plan,
            transform,
            uniques: Vec::new(),
            check: None,
            defaults: Vec::new(),
            deferral: Deferral::NotDeferrable,
        }
    }
}

impl fmt::Debug for ModelTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelTable").field("plan", &self.plan.name()).finish_non_exhaustive()
    }
}

/// One row that a transaction changed, over all its statements.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// `public.users`, `cutover.offsets`, `cutover.tombstones_public_users`.
    pub table: String,
    pub before: Option<Row>,
    pub after: Option<Row>,
}
