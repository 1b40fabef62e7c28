//! What the fuzz target of the envelope runs: arbitrary bytes decode or fail, what decodes is what an independent
//! parser finds there and encodes to an equal row, and an arbitrary row is the same after encoding and decoding.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value as Json;

use super::{Decoded, Encoded, Encoder, Row, cells, key_bytes};
use crate::model::{
    Change, Column, ColumnType, DebeziumConnector, Images, Op, Origin, TableName, TableSchema, Value, fuzz::Input,
};

/// Columns of the tables that arbitrary bytes are decoded for.
const TABLES: [&[&str]; 4] = [&["id", "a"], &["a", "b", "c"], &["q\"", "back\\slash", "line\n", "é😀", ""], &[]];
const OPS: [Op; 5] = [Op::Insert, Op::Update, Op::Delete, Op::Read, Op::Truncate];

/// The first byte says whether the rest is an envelope (of which table) or a row.
pub fn envelope(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    if first & 1 == 0 {
        let names = TABLES[usize::from(first >> 1) % TABLES.len()];
        decode(rest, &schema(names.iter().map(|name| (*name).to_owned()).collect(), Vec::new()));
    } else {
        round_trip(&mut Input::new(rest));
    }
}

fn decode(value: &[u8], schema: &Arc<TableSchema>) {
    let Ok(decoded) = cells(value, schema) else { return };
    let (before, after, op) = &decoded;
    let length = |row: &Option<Row<'_>>| -> usize { row.iter().flatten().flatten().map(|cell| cell.len()).sum() };
    assert!(length(before) + length(after) <= value.len(), "cells take no more room than their envelope");
    agrees(value, schema, &decoded);
    let image = |row: &Option<Row<'_>>| row.as_ref().map(|row| row.iter().map(text).collect());
    let encoded = encode(schema, *op, Images { before: image(before), after: image(after) });
    assert_eq!(cells(&encoded.value, schema), Ok(decoded), "what decodes encodes to an equal row");
}

fn text(cell: &Option<Cow<'_, str>>) -> Value {
    cell.as_ref().map_or(Value::Null, |text| Value::Text(text.clone().into_owned()))
}

/// Compares with what another JSON parser reads. Of a field that is there twice it knows the last one only.
fn agrees(value: &[u8], schema: &TableSchema, (before, after, _): &Decoded<'_>) {
    let document: Json = match serde_json::from_slice(value) {
        Ok(document) => document,
        Err(error) => return assert!(error.to_string().contains("number out of range"), "it is no JSON: {error}"),
    };
    for (name, row) in [("before", before), ("after", after)] {
        let image = document.get(name).or_else(|| document.get("payload")?.get(name));
        let (Some(row), Some(image)) = (row, image) else { continue };
        for (column, cell) in schema.columns.iter().zip(row) {
            let found = match image.get(&column.name) {
                Some(Json::Null) => None,
                Some(Json::String(text)) => Some(text.clone()),
                Some(Json::Number(number)) => Some(plain_number(&number.to_string())),
                Some(other) => Some(other.to_string()),
                None => Some("no such column".to_owned()),
            };
            let is_number = image.get(&column.name).is_some_and(Json::is_number);
            let cell = cell.as_deref().map(|cell| if is_number { plain_number(cell) } else { cell.to_owned() });
            assert_eq!(cell, found, "column {:?} as another parser reads it", column.name);
        }
    }
}

/// A number's spelling without what may be spelled in two ways.
fn plain_number(text: &str) -> String {
    text.replace('E', "e").replace('+', "")
}

fn round_trip(input: &mut Input<'_>) {
    let mut names: Vec<String> = Vec::new();
    for _ in 0..input.below(8) {
        let name = input.text();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let key: Vec<usize> = (0..names.len()).filter(|_| input.byte() & 1 == 1).collect();
    let schema = schema(names, key);
    let op = OPS[input.below(OPS.len())];
    let mut image = |wanted: bool| wanted.then(|| schema.columns.iter().map(|_| value(input)).collect::<Vec<_>>());
    let images = Images {
        before: image(matches!(op, Op::Update | Op::Delete)),
        after: image(matches!(op, Op::Insert | Op::Update | Op::Read)),
    };
    let change =
        Change { schema: Arc::clone(&schema), op, images, version: 1, commit_us: input.number().cast_signed() };
    let origin = Origin {
        file: input.text(),
        offset: input.number(),
        gtid: (input.byte() & 1 == 1).then(|| input.text()),
        snapshot: op == Op::Read,
        ..Origin::default()
    };
    let connector = if origin.offset & 1 == 0 { DebeziumConnector::Mysql } else { DebeziumConnector::Postgres };
    let encoded = Encoder::new("cart", connector).encode(&change, &origin);
    let Ok(encoded) = encoded else { return assert!(encoded.is_ok(), "a row of the schema's width encodes") };
    let decoded = match cells(&encoded.value, &schema) {
        Ok(decoded) => decoded,
        Err(error) => return assert_eq!(Some(error), None, "what was encoded decodes"),
    };
    let (before, after, read_op) = &decoded;
    assert_eq!(*read_op, op);
    same_row(before.as_ref(), change.images.before.as_ref());
    same_row(after.as_ref(), change.images.after.as_ref());
    agrees(&encoded.value, &schema, &decoded);
    let key: Option<Json> = serde_json::from_slice(&encoded.key).ok();
    let fields = key.as_ref().and_then(Json::as_object).map_or(0, serde_json::Map::len);
    assert_eq!(fields, if op == Op::Truncate { 0 } else { schema.key.len() }, "the key has the key's columns");
    assert!(key_bytes(&change).len() >= fields * size_of::<u64>(), "each value of the key has its length in front");
}

fn same_row(cells: Option<&Row<'_>>, values: Option<&Vec<Value>>) {
    assert_eq!(cells.map(Vec::len), values.map(Vec::len), "an image is there as it was");
    for (cell, value) in cells.into_iter().flatten().zip(values.into_iter().flatten()) {
        let same = match (cell.as_deref(), value) {
            (None, Value::Null) => true,
            (Some(cell), Value::Bool(flag)) => cell.parse() == Ok(*flag),
            (Some(cell), Value::Int(number)) => cell.parse() == Ok(*number),
            (Some(cell), Value::UInt(number)) => cell.parse() == Ok(*number),
            (Some(cell), Value::Float(number)) => cell
                .parse()
                .is_ok_and(|read: f32| read.to_bits() == number.to_bits() || read.is_nan() && number.is_nan()),
            (Some(cell), Value::Double(number)) => cell
                .parse()
                .is_ok_and(|read: f64| read.to_bits() == number.to_bits() || read.is_nan() && number.is_nan()),
            (Some(cell), Value::Text(text)) => cell == text,
            (Some(cell), Value::Bytes(bytes)) => STANDARD.decode(cell).as_ref() == Ok(bytes),
            (None, Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Double(_))
            | (None, Value::Text(_) | Value::Bytes(_))
            | (Some(_), Value::Null) => false,
        };
        assert!(same, "{value:?} was read as {cell:?}");
    }
}

fn value(input: &mut Input<'_>) -> Value {
    match input.below(8) {
        0 => Value::Null,
        1 => Value::Bool(input.byte() & 1 == 1),
        2 => Value::Int(input.number().cast_signed()),
        3 => Value::UInt(input.number()),
        4 => Value::Float(f32::from_bits(u32::try_from(input.number() & 0xffff_ffff).unwrap_or_default())),
        5 => Value::Double(f64::from_bits(input.number())),
        6 => Value::Text(input.text()),
        _ => Value::Bytes(input.bytes().to_vec()),
    }
}

fn encode(schema: &Arc<TableSchema>, op: Op, images: Images) -> Encoded {
    let change = Change { schema: Arc::clone(schema), op, images, version: 1, commit_us: 0 };
    let encoded = Encoder::new("cart", DebeziumConnector::Mysql).encode(&change, &Origin::default());
    assert_eq!(encoded.as_ref().err(), None, "a decoded row has the schema's width");
    encoded.unwrap_or(Encoded { key: crate::log::EMPTY, value: crate::log::EMPTY })
}

fn schema(names: Vec<String>, key: Vec<usize>) -> Arc<TableSchema> {
    let column = |name| Column {
        name,
        column_type: ColumnType::Text,
        source_type: "text".to_owned(),
        nullable: true,
        charset: None,
        collation: None,
        generated: false,
    };
    let table = TableName::new("shop", "items");
    Arc::new(TableSchema { table, columns: names.into_iter().map(column).collect(), key })
}
