//! One column value, as captured.
//!
//! A value is kept in the form that the log stores (Debezium's JSON scalars), not in the form of
//! any database: text stays text, decimals and times are text in a canonical spelling, so that a
//! value read by the snapshot and the same value read from the log are equal byte for byte.

/// A captured column value.
///
/// | source | variant | spelling |
/// |---|---|---|
/// | integers, `YEAR` | `Int`, `UInt` | |
/// | `FLOAT` / `DOUBLE` | `Float` / `Double` | finite |
/// | `DECIMAL` | `Text` | plain digits, scale kept: `-12.3400` |
/// | `DATE` | `Text` | `2024-05-30Z` |
/// | `DATETIME`, timestamp | `Text` | `2024-05-30T10:00:00.123456Z`, always six digits; the `Z` is Debezium's and means
/// nothing |
/// | `TIMESTAMP`, timestamptz | `Text` | `2024-05-30T10:00:00.123456Z`, UTC |
/// | `TIME` | `Text` | `-838:59:59.000000`, always six digits |
/// | `CHAR`, `TEXT`, `ENUM`, `SET`, `UUID`, `INET6` | `Text` | UTF-8 |
/// | `JSON` | `Text` | JSON text |
/// | `BIT`, `BINARY`, `BLOB`, `GEOMETRY` | `Bytes` | |
///
/// MySQL's zero and partial-zero dates are not a value of any other database: the decoder turns
/// them into [`Value::Null`] or what the configuration says before they get here.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f32),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
}

/// The bytes that a row takes in memory, about.
pub fn row_bytes(row: &[Value]) -> usize {
    let own = |value: &Value| match value {
        Value::Text(text) => text.capacity(),
        Value::Bytes(bytes) => bytes.capacity(),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Double(_) => 0,
    };
    size_of_val(row) + row.iter().map(own).sum::<usize>()
}

/// What becomes of `0000-00-00`, of a date whose year, month or day is zero, and of TIMESTAMP 0: values that
/// MySQL stores and no other database can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ZeroDates {
    /// [`Value::Null`].
    #[default]
    Null,
    /// An error that names the column: capture and snapshot halt.
    Error,
    /// This date instead, at midnight where the type has a time.
    Replace { year: u16, month: u8, day: u8 },
}
