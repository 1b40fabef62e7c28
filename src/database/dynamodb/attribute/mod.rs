//! Attribute values, and the JSON and the rows that they become.
//!
//! | attribute | JSON |
//! |---|---|
//! | `S` | string |
//! | `N` | number, all 38 digits |
//! | `B` | string, base64 |
//! | `BOOL`, `NULL` | `true`, `false`, `null` |
//! | `M`, `L` | object, array |
//! | `SS`, `NS`, `BS` | array, sorted: a set has no order, and the same set is to be the same text |
//!
//! An attribute that an item does not have is not in the JSON either.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::model::{Column, ColumnType, Problem, TTL_COLUMN, TableName, TableSchema, Value};

/// The column that holds the whole item.
pub const ITEM_COLUMN: &str = "item";

/// An item's attributes by name.
pub type Item = BTreeMap<String, Attribute>;

/// One attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    Null,
    Bool(bool),
    /// As the service spells it, which spells equal numbers alike.
    Number(String),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Attribute>),
    Map(Item),
    Texts(Vec<String>),
    Numbers(Vec<String>),
    Blobs(Vec<Vec<u8>>),
}

/// Why an item cannot be a row.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", self.problem())]
pub enum AttributeError {
    UnknownType,
    NotANumber,
    Key(String),
}

impl AttributeError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            AttributeError::UnknownType => {
                Problem::new("an attribute has a type that this release does not know", "use a newer one")
            }
            AttributeError::NotANumber => {
                Problem::new("an attribute of type N is not a number", "report this with the item's type of attributes")
            }
            AttributeError::Key(told) => Problem::new(
                format!("an item lacks its key attribute `{told}`, or has it with another type"),
                "that contradicts DynamoDB's own rules: report it",
            ),
        }
    }
}

/// Both clients have a type of their own for the same thing.
macro_rules! from_client {
    ($client:ident) => {
        impl TryFrom<$client::types::AttributeValue> for Attribute {
            type Error = AttributeError;

            fn try_from(value: $client::types::AttributeValue) -> Result<Self, AttributeError> {
                use $client::types::AttributeValue as Given;
                Ok(match value {
                    Given::Null(_) => Attribute::Null,
                    Given::Bool(flag) => Attribute::Bool(flag),
                    Given::N(number) => Attribute::Number(number),
                    Given::S(text) => Attribute::Text(text),
                    Given::B(blob) => Attribute::Bytes(blob.into_inner()),
                    Given::L(list) => {
                        Attribute::List(list.into_iter().map(Attribute::try_from).collect::<Result<_, _>>()?)
                    }
                    Given::M(map) => Attribute::Map(item(map)?),
                    Given::Ss(texts) => Attribute::Texts(sorted(texts)),
                    Given::Ns(numbers) => Attribute::Numbers(sorted(numbers)),
                    Given::Bs(blobs) => {
                        Attribute::Blobs(sorted(blobs.into_iter().map(|blob| blob.into_inner()).collect()))
                    }
                    _ => return Err(AttributeError::UnknownType),
                })
            }
        }
    };
}
from_client!(aws_sdk_dynamodb);
from_client!(aws_sdk_dynamodbstreams);

/// An item as a client has it.
pub fn item<V>(attributes: impl IntoIterator<Item = (String, V)>) -> Result<Item, AttributeError>
where
    Attribute: TryFrom<V, Error = AttributeError>,
{
    attributes.into_iter().map(|(name, value)| Ok((name, Attribute::try_from(value)?))).collect()
}

fn sorted<T: Ord>(mut set: Vec<T>) -> Vec<T> {
    set.sort_unstable();
    set
}

/// The relation that a transform sees: the key's attributes, the whole item, and whether Time to Live removed it.
pub fn table_schema(region: &str, table: &str, key: &[(String, KeyType)]) -> TableSchema {
    let column = |name: &str, column_type, source_type: &str| Column {
        name: name.to_owned(),
        column_type,
        source_type: source_type.to_owned(),
        nullable: false,
        charset: None,
        collation: None,
        generated: false,
    };
    let mut columns: Vec<Column> =
        key.iter().map(|(name, key_type)| column(name, key_type.column_type(), key_type.name())).collect();
    columns.push(column(ITEM_COLUMN, ColumnType::Json, "item"));
    columns.push(column(TTL_COLUMN, ColumnType::Named("boolean".into()), "cutover"));
    TableSchema { table: TableName::new(region, table), columns, key: (0..key.len()).collect() }
}

/// The types that an attribute of a key may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    Text,
    Number,
    Bytes,
}

impl KeyType {
    fn column_type(self) -> ColumnType {
        match self {
            KeyType::Text => ColumnType::Text,
            KeyType::Number => ColumnType::Named("numeric".into()),
            KeyType::Bytes => ColumnType::Bytes,
        }
    }

    fn name(self) -> &'static str {
        match self {
            KeyType::Text => "S",
            KeyType::Number => "N",
            KeyType::Bytes => "B",
        }
    }
}

/// An item as a row of its table's relation.
pub fn row(schema: &TableSchema, item: &Item, ttl_delete: bool) -> Result<Vec<Value>, AttributeError> {
    let mut row = key_row(schema, item)?;
    row.push(Value::Text(json(item)?));
    row.push(Value::Bool(ttl_delete));
    Ok(row)
}

/// The key's part of a row.
fn key_row(schema: &TableSchema, item: &Item) -> Result<Vec<Value>, AttributeError> {
    let value = |column: &Column| match (item.get(&column.name), column.source_type.as_str()) {
        (Some(Attribute::Text(text)), "S") => Ok(Value::Text(text.clone())),
        (Some(Attribute::Number(number)), "N") => Ok(Value::Text(json_number(number)?.into_owned())),
        (Some(Attribute::Bytes(bytes)), "B") => Ok(Value::Bytes(bytes.clone())),
        _ => Err(AttributeError::Key(column.name.clone())),
    };
    schema.key_columns().map(value).collect()
}

/// A key as the service takes it, from the values of a row's key.
pub fn key_item(schema: &TableSchema, key: &[Value]) -> Result<Item, AttributeError> {
    let attribute = |(column, value): (&Column, &Value)| {
        let attribute = match (value, column.source_type.as_str()) {
            (Value::Text(text), "S") => Attribute::Text(text.clone()),
            (Value::Text(number), "N") => Attribute::Number(number.clone()),
            (Value::Bytes(bytes), "B") => Attribute::Bytes(bytes.clone()),
            _ => return Err(AttributeError::Key(column.name.clone())),
        };
        Ok((column.name.clone(), attribute))
    };
    schema.key_columns().zip(key).map(attribute).collect()
}

/// An item as JSON, its attributes in the order of their names.
pub fn json(item: &Item) -> Result<String, AttributeError> {
    let mut text = String::with_capacity(item.len() * 24);
    write_map(&mut text, item)?;
    Ok(text)
}

fn write(out: &mut String, attribute: &Attribute) -> Result<(), AttributeError> {
    match attribute {
        Attribute::Null => out.push_str("null"),
        Attribute::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Attribute::Number(number) => out.push_str(&json_number(number)?),
        Attribute::Text(text) => write_text(out, text),
        Attribute::Bytes(bytes) => write_bytes(out, bytes),
        Attribute::List(list) => write_list(out, list, write)?,
        Attribute::Map(map) => write_map(out, map)?,
        Attribute::Texts(texts) => write_list(out, texts, |out, text| {
            write_text(out, text);
            Ok(())
        })?,
        Attribute::Numbers(numbers) => write_list(out, numbers, |out, number| {
            out.push_str(&json_number(number)?);
            Ok(())
        })?,
        Attribute::Blobs(blobs) => write_list(out, blobs, |out, blob| {
            write_bytes(out, blob);
            Ok(())
        })?,
    }
    Ok(())
}

fn write_map(out: &mut String, map: &Item) -> Result<(), AttributeError> {
    out.push('{');
    for (place, (name, attribute)) in map.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        write_text(out, name);
        out.push(':');
        write(out, attribute)?;
    }
    out.push('}');
    Ok(())
}

fn write_list<T>(
    out: &mut String,
    list: &[T],
    each: impl Fn(&mut String, &T) -> Result<(), AttributeError>,
) -> Result<(), AttributeError> {
    out.push('[');
    for (place, element) in list.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        each(out, element)?;
    }
    out.push(']');
    Ok(())
}

fn write_text(out: &mut String, text: &str) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn write_bytes(out: &mut String, bytes: &[u8]) {
    out.push('"');
    STANDARD.encode_string(bytes, out);
    out.push('"');
}

/// A number as JSON spells it, every digit kept. The service's own spelling already is one; others are told from it.
fn json_number(number: &str) -> Result<Cow<'_, str>, AttributeError> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (number, None),
    };
    let unsigned = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let (whole, fraction) = match unsigned.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (unsigned, None),
    };
    let is_whole = digits(whole) && (whole == "0" || !whole.starts_with('0'));
    let is_exponent = exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)));
    if is_whole && fraction.is_none_or(digits) && is_exponent {
        Ok(Cow::Borrowed(number))
    } else {
        Err(AttributeError::NotANumber)
    }
}

#[cfg(test)]
mod tests;
