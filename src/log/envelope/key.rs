//! From a record's key back to the values that it was made of.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::model::{Column, ColumnType, TableSchema, Value};

/// The values of a record's key, in the order of the schema's key; none if it is no key of that schema.
pub fn key_values(schema: &TableSchema, key: &[u8]) -> Option<Vec<Value>> {
    let key: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(key).ok()?;
    schema.key_columns().map(|column| key_value(column, key.get(&column.name)?)).collect()
}

/// A value of a key, as a column of this type has it.
pub fn key_value(column: &Column, value: &serde_json::Value) -> Option<Value> {
    use serde_json::Value as Json;
    Some(match value {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => {
            let text = number.to_string();
            match column.column_type {
                ColumnType::Real => Value::Float(text.parse().ok()?),
                ColumnType::Double => Value::Double(text.parse().ok()?),
                ColumnType::SmallInt
                | ColumnType::Integer
                | ColumnType::BigInt
                | ColumnType::Numeric { .. }
                | ColumnType::Text
                | ColumnType::Bytes
                | ColumnType::Json
                | ColumnType::Date
                | ColumnType::Timestamp
                | ColumnType::TimestampTz
                | ColumnType::Interval
                | ColumnType::Named(_) => match text.parse() {
                    Ok(number) => Value::Int(number),
                    Err(_) => Value::UInt(text.parse().ok()?),
                },
            }
        }
        Json::String(text) if column.column_type == ColumnType::Bytes => Value::Bytes(STANDARD.decode(text).ok()?),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(_) | Json::Object(_) => return None,
    })
}
