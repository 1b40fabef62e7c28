//! Reading single rows again, by key, at a fresh watermark.
//!
//! What enters is the keys of rows that were set aside; what leaves is records in the snapshot topic, each carrying the
//! watermark of the read, so that they are applied like any other fact. **Invariant:** the watermark is at or after the
//! version at which the row was set aside. Deliberately absent: what becomes of the rows; the sink says that.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

use crate::{
    log::{
        Log, Offset, Record, Topic,
        envelope::{self, Encoder},
    },
    model::{Change, Column, ColumnType, DebeziumConnector, Images, Op, Origin, Problem, TableSchema, Value, Version},
    observe::{Captured, Environment, Frontier},
    snapshot::{Block, SnapshotError},
    source::Source,
};

/// Rows read with one query.
const KEYS_MAX: usize = 100;

/// What becomes of rows that the source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Send,
    Leave,
}

/// A row to read again.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The schema that the row had.
    pub schema: Arc<TableSchema>,
    /// The record's key, as JSON.
    pub key: Bytes,
    /// The version at which the row was set aside.
    pub version: Version,
    /// An envelope that shows the row: what is deleted if the source no longer has the row; none where that needs no
    /// delete, because the stream brings it.
    pub shown: Option<Bytes>,
}

/// Reads rows again and sends them on.
#[derive(Clone)]
pub struct Refetch {
    pub source: Arc<dyn Source>,
    pub log: Arc<dyn Log>,
    pub frontier: Arc<Frontier>,
    pub environment: Arc<dyn Environment>,
    pub pipeline: String,
    pub connector: DebeziumConnector,
}

impl std::fmt::Debug for Refetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refetch").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

impl Refetch {
    /// Sends the rows of one table, as the source has them now; returns when they are in the log. Those whose key has
    /// another shape by now are left out and handed back.
    pub async fn send(&self, table: &str, rows: Vec<Wanted>) -> Result<Vec<Wanted>, SnapshotError> {
        let schema = self.source.schema(table).await?;
        let (rows, strange): (Vec<Wanted>, Vec<Wanted>) =
            rows.into_iter().partition(|row| same_key(&row.schema, &schema));
        for rows in rows.chunks(KEYS_MAX) {
            self.send_some(&schema, rows, Found::Send).await?;
        }
        Ok(strange)
    }

    /// As [`Self::send`], of rows that the source no longer has alone; how many they are.
    pub async fn send_gone(&self, table: &str, rows: Vec<Wanted>) -> Result<u64, SnapshotError> {
        let schema = self.source.schema(table).await?;
        let rows: Vec<Wanted> = rows.into_iter().filter(|row| same_key(&row.schema, &schema)).collect();
        let mut gone = 0;
        for rows in rows.chunks(KEYS_MAX) {
            gone += self.send_some(&schema, rows, Found::Leave).await?;
        }
        Ok(gone)
    }

    /// Where the snapshot topic ends now, in each partition.
    pub async fn ends(&self) -> Result<Vec<Offset>, SnapshotError> {
        let mut ends = Vec::new();
        for partition in 0..self.log.partitions() {
            ends.push(self.log.bounds(Topic::Snapshot, partition).await?.1);
        }
        Ok(ends)
    }

    /// Waits until the target has the snapshot topic up to these offsets.
    pub async fn applied(&self, ends: &[Offset]) {
        let mut moved = self.frontier.watch_applied();
        let reached = || (0u32..).zip(ends).all(|(partition, end)| self.frontier.snapshot_offset(partition) >= *end);
        // The sender lives as long as the frontier that we hold.
        let _ = moved.wait_for(|_| reached()).await;
    }

    /// How many of the rows the source no longer has.
    async fn send_some(&self, schema: &Arc<TableSchema>, rows: &[Wanted], then: Found) -> Result<u64, SnapshotError> {
        let mut keys = Vec::new();
        for row in rows {
            keys.push(key_values(schema, &row.key).ok_or_else(|| unreadable(schema))?);
        }
        let captured = self.captured(rows.iter().map(|row| row.version).max().unwrap_or_default()).await;
        let Block { version, rows: found } = self.source.fetch(schema, &keys, &captured).await?;
        let at_us = self.environment.now_us();
        let mut encoder = Encoder::new(&self.pipeline, self.connector);
        let origin = Origin { snapshot: true, captured_ms: at_us / 1000, ..Origin::default() };
        let mut missing: HashMap<&Bytes, (&Wanted, Vec<Value>)> =
            rows.iter().zip(keys).map(|(row, key)| (&row.key, (row, key))).collect();
        let partitions = self.log.partitions();
        let mut records = announcement(schema, partitions);
        for row in found {
            let images = Images { before: None, after: Some(row) };
            let change = Change { schema: Arc::clone(schema), op: Op::Read, images, version, commit_us: at_us };
            let encoded = encoder.encode(&change, &origin).map_err(|error| defect(schema, &error.to_string()))?;
            // A key that only compares equal ('a' and 'A') is another row's, which the stream brings.
            if missing.remove(&encoded.key).is_some() && then == Found::Send {
                let record = Record::change(&change, encoded.key, encoded.value, schema.id());
                records.push((envelope::partition(&change, partitions), record));
            }
        }
        let gone = missing.len() as u64;
        for (row, key) in missing.into_values() {
            let Some(shown) = &row.shown else { continue };
            let value = envelope::deletion(shown).ok_or_else(|| unreadable(schema))?;
            let change = keyed(&row.schema, key, version, at_us);
            records.extend(announcement(&row.schema, partitions));
            let record = Record::change(&change, row.key.clone(), value, row.schema.id());
            records.push((envelope::partition(&change, partitions), record));
        }
        if then == Found::Send || gone > 0 {
            self.log.append(Topic::Snapshot, records).await?;
        }
        Ok(gone)
    }

    /// What capture has reached, once that is this version at least.
    async fn captured(&self, version: Version) -> Captured {
        let mut captured = self.frontier.watch_captured();
        loop {
            if let Some(point) = captured.borrow_and_update().clone().filter(|point| point.watermark() >= version) {
                return point;
            }
            // The sender lives as long as the frontier that we hold, so this only ends with news.
            if captured.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Whether two schemas of a table spell a row's key alike.
fn same_key(a: &TableSchema, b: &TableSchema) -> bool {
    let shape = |schema: &TableSchema| -> Vec<(String, ColumnType)> {
        schema.key_columns().map(|column| (column.name.clone(), column.column_type.clone())).collect()
    };
    shape(a) == shape(b)
}

/// The values of a record's key, in the order of the schema's key.
fn key_values(schema: &TableSchema, key: &[u8]) -> Option<Vec<Value>> {
    let key: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(key).ok()?;
    schema.key_columns().map(|column| key_value(column, key.get(&column.name)?)).collect()
}

fn key_value(column: &Column, value: &serde_json::Value) -> Option<Value> {
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

/// A delete that knows no more of the row than its key.
fn keyed(schema: &Arc<TableSchema>, key: Vec<Value>, version: Version, commit_us: i64) -> Change {
    let mut row = vec![Value::Null; schema.columns.len()];
    for (index, value) in schema.key.iter().zip(key) {
        if let Some(cell) = row.get_mut(*index) {
            *cell = value;
        }
    }
    let images = Images { before: Some(row), after: None };
    Change { schema: Arc::clone(schema), op: Op::Delete, images, version, commit_us }
}

/// The schema that rows refer to, in every partition.
fn announcement(schema: &TableSchema, partitions: u32) -> Vec<(u32, Record)> {
    let record = Record::schema(schema);
    (0..partitions).map(|partition| (partition, record.clone())).collect()
}

fn unreadable(schema: &TableSchema) -> SnapshotError {
    SnapshotError::Halt(Problem::new(
        format!("a row of {} that was set aside cannot be read back", schema.table),
        "copy the table again with `cutover resnapshot`",
    ))
}

fn defect(schema: &TableSchema, error: &str) -> SnapshotError {
    SnapshotError::Halt(Problem::new(
        format!("a row of {} cannot be encoded: {error}", schema.table),
        "this is a defect of cutover: report it with this message",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TableName;

    fn schema(types: &[ColumnType]) -> TableSchema {
        let column = |(index, column_type): (usize, &ColumnType)| Column {
            name: format!("k{index}"),
            column_type: column_type.clone(),
            source_type: String::new(),
            nullable: false,
            charset: None,
            collation: None,
            generated: false,
        };
        TableSchema {
            table: TableName::new("shop", "t"),
            columns: types.iter().enumerate().map(column).collect(),
            key: (0..types.len()).collect(),
        }
    }

    #[test]
    fn a_records_key_gives_back_the_values_that_it_was_made_of() {
        let numeric = ColumnType::Numeric { precision: 20, scale: 0 };
        let schema = schema(&[ColumnType::BigInt, numeric, ColumnType::Bytes, ColumnType::Date, ColumnType::Real]);
        let row = vec![
            Value::Int(-5),
            Value::UInt(u64::MAX),
            Value::Bytes(vec![0, 255]),
            Value::Text("2024-05-30Z".into()),
            Value::Float(1.1),
        ];
        let change = keyed(&Arc::new(schema.clone()), row.clone(), 1, 0);
        let encoded =
            Encoder::new("p", DebeziumConnector::Mysql).encode(&change, &Origin::default()).expect("well formed");
        assert_eq!(key_values(&schema, &encoded.key), Some(row));
    }

    #[test]
    fn a_key_of_another_shape_is_not_looked_for() {
        let (narrow, wide) = (schema(&[ColumnType::Integer]), schema(&[ColumnType::Integer, ColumnType::Text]));
        assert!(same_key(&narrow, &narrow) && !same_key(&narrow, &wide));
        assert!(!same_key(&narrow, &schema(&[ColumnType::Text])), "5 and '5' are two keys");
        assert_eq!(key_values(&wide, br#"{"k0":1}"#), None);
    }
}
