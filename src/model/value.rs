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
/// | `DATETIME`, timestamp | `Text` | `2024-05-30T10:00:00.123456Z`, always six digits; the `Z` is Debezium's and means nothing |
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
