//! Values, rows and errors, and the few wire types that the product's statements use.

use std::sync::Arc;

/// A stored value. Times are µs since the Unix epoch. Nulls sort last, as in `ORDER BY`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Text(Arc<str>),
    Ints(Vec<i64>),
    Texts(Vec<Option<Arc<str>>>),
    Null,
}

/// A row of a table: its values in the order of its columns.
pub type Row = Arc<[Value]>;

impl Value {
    pub fn text(text: impl AsRef<str>) -> Self {
        Value::Text(Arc::from(text.as_ref()))
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The number; panics on anything else.
    pub fn int(&self) -> i64 {
        match self {
            Value::Int(number) => *number,
            Value::Bool(_) | Value::Text(_) | Value::Ints(_) | Value::Texts(_) | Value::Null => {
                panic!("{self:?} is no number")
            }
        }
    }

    /// The text; panics on anything else.
    pub fn str(&self) -> &str {
        match self {
            Value::Text(text) => text,
            Value::Bool(_) | Value::Int(_) | Value::Ints(_) | Value::Texts(_) | Value::Null => {
                panic!("{self:?} is no text")
            }
        }
    }

    /// As `::text` prints it, for comparisons with a real server.
    pub fn print(&self) -> Option<String> {
        match self {
            Value::Bool(value) => Some(if *value { "t" } else { "f" }.to_owned()),
            Value::Int(value) => Some(value.to_string()),
            Value::Text(value) => Some(value.to_string()),
            Value::Ints(values) => {
                Some(format!("{{{}}}", values.iter().map(i64::to_string).collect::<Vec<_>>().join(",")))
            }
            Value::Texts(values) => {
                let text = |value: &Option<Arc<str>>| value.as_deref().unwrap_or("NULL").to_owned();
                Some(format!("{{{}}}", values.iter().map(text).collect::<Vec<_>>().join(",")))
            }
            Value::Null => None,
        }
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Value::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::text(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// An error report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    pub sqlstate: String,
    pub message: String,
    pub constraint: Option<String>,
}

impl SqlError {
    pub fn new(sqlstate: &str, message: impl Into<String>) -> Self {
        SqlError { sqlstate: sqlstate.to_owned(), message: message.into(), constraint: None }
    }

    pub fn of(sqlstate: &str, constraint: &str, message: impl Into<String>) -> Self {
        SqlError { constraint: Some(constraint.to_owned()), ..SqlError::new(sqlstate, message) }
    }
}

/// A type on the wire; all are built in, so that the client asks nothing about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Bool,
    Int8,
    Int4,
    Text,
    /// A `float8` that is a span of time: an [`Value::Int`] of µs, sent as seconds.
    Seconds,
    Void,
    Bools,
    Int4s,
    Int8s,
    Texts,
}

impl Type {
    pub fn oid(self) -> u32 {
        match self {
            Type::Bool => 16,
            Type::Int8 => 20,
            Type::Int4 => 23,
            Type::Text => 25,
            Type::Seconds => 701,
            Type::Void => 2278,
            Type::Bools => 1000,
            Type::Int4s => 1007,
            Type::Int8s => 1016,
            Type::Texts => 1009,
        }
    }
}

/// A bound parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    Null,
    Value(Value),
    Bools(Vec<bool>),
    Ints(Vec<i64>),
    Texts(Vec<Option<Arc<str>>>),
}

impl Param {
    pub fn value(&self) -> Value {
        match self {
            Param::Value(value) => value.clone(),
            Param::Null => Value::Null,
            Param::Bools(_) | Param::Ints(_) | Param::Texts(_) => panic!("{self:?} is an array"),
        }
    }

    pub fn int(&self) -> i64 {
        self.value().int()
    }

    pub fn ints(&self) -> &[i64] {
        match self {
            Param::Ints(values) => values,
            Param::Null | Param::Value(_) | Param::Bools(_) | Param::Texts(_) => panic!("{self:?} is no bigint[]"),
        }
    }

    pub fn bools(&self) -> &[bool] {
        match self {
            Param::Bools(values) => values,
            Param::Null | Param::Value(_) | Param::Ints(_) | Param::Texts(_) => panic!("{self:?} is no boolean[]"),
        }
    }

    pub fn texts(&self) -> &[Option<Arc<str>>] {
        match self {
            Param::Texts(values) => values,
            Param::Null | Param::Value(_) | Param::Ints(_) | Param::Bools(_) => panic!("{self:?} is no text[]"),
        }
    }

    /// The values of an array of texts.
    pub fn text_values(&self) -> Vec<Value> {
        let value = |text: &Option<Arc<str>>| text.clone().map_or(Value::Null, Value::Text);
        self.texts().iter().map(value).collect()
    }
}
