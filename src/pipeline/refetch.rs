//! Reading single rows again, by key, at a fresh watermark.
//!
//! What enters is the keys of rows that were set aside; what leaves is records in the snapshot topic, each carrying the
//! watermark of the read, so that they are applied like any other fact. **Invariant:** the watermark is at or after the
//! version at which the row was set aside. Deliberately absent: what becomes of the rows; the sink says that.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};

use super::appender::snapshot_ends;
use crate::{
    log::{
        Log, Offset, Record, Topic,
        envelope::{self, Encoder, key_value, key_values},
    },
    model::{Change, ColumnType, DebeziumConnector, Images, Op, Origin, Problem, TableSchema, Value, Version},
    observe::{Captured, Environment, Frontier, Room, Taken},
    snapshot::{Block, Blocks, READ_BYTES_MAX, SnapshotError, take_blocks},
    source::Source,
};

/// Rows read with one query.
const KEYS_MAX: usize = 100;
/// Bytes of one append.
const GROUP_BYTES_MAX: usize = 1 << 20;

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

/// Rows that were read again and are not sent yet.
#[derive(Debug)]
pub struct ReadAgain {
    /// The rows that the source has.
    pub found: Vec<Vec<Value>>,
    records: Vec<(u32, Record)>,
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
    /// Held from before a read until what was read is at the target, by who must not miss what others have read.
    pub turn: Arc<Mutex<()>>,
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
        Ok(snapshot_ends(&*self.log).await?)
    }

    /// Waits until the target has the snapshot topic up to these offsets.
    pub async fn applied(&self, ends: &[Offset]) {
        self.frontier.is_so(|| self.frontier.copied(ends)).await;
    }

    /// Reads the rows with these keys, at a watermark of this version at least. Those that are missing are deletes, for
    /// which no more of a row is known than its key.
    pub async fn read(
        &self,
        schema: &Arc<TableSchema>,
        keys: &[Vec<Value>],
        version: Version,
    ) -> Result<ReadAgain, SnapshotError> {
        let captured = self.captured(version).await;
        let mut again = ReadAgain { found: Vec::new(), records: Vec::new() };
        let mut encoder = self.encoder(schema);
        for keys in keys.chunks(KEYS_MAX) {
            let (blocks, incoming) = Blocks::new(&Room::new(READ_BYTES_MAX));
            let mut there: HashSet<String> = HashSet::new();
            let reading = self.source.fetch(schema, keys, &captured, blocks);
            let encode = |block: Block| {
                there.extend(block.rows.iter().map(|row| folded(&key_of(schema, row))));
                self.rows(&mut encoder, schema, block, &mut again)
            };
            take_blocks(reading, incoming, encode).await?;
            for key in keys.iter().filter(|key| !there.contains(&folded(key))) {
                let change = keyed(schema, key.clone(), captured.watermark(), self.environment.now_us());
                again.records.push(self.record(&mut encoder, &change)?);
            }
        }
        Ok(again)
    }

    /// Reads the rows that have these values in their columns in these places into `blocks`, at a watermark of this
    /// version at least.
    pub async fn read_children(
        &self,
        schema: &Arc<TableSchema>,
        columns: &[usize],
        values: &[Value],
        version: Version,
        blocks: Blocks,
    ) -> Result<(), SnapshotError> {
        let captured = self.captured(version).await;
        self.source.children(schema, columns, values, &captured, blocks).await
    }

    /// Rows that were read, ready to be sent.
    pub fn encoded(&self, schema: &Arc<TableSchema>, block: Block) -> Result<ReadAgain, SnapshotError> {
        let mut again = ReadAgain { found: Vec::new(), records: Vec::new() };
        let mut encoder = self.encoder(schema);
        self.rows(&mut encoder, schema, block, &mut again)?;
        Ok(again)
    }

    /// Sends what was read; returns when it is in the log.
    pub async fn append(&self, schema: &TableSchema, again: ReadAgain) -> Result<(), SnapshotError> {
        let mut records = announcement(schema, self.log.partitions());
        records.extend(again.records);
        Ok(self.log.append(Topic::Snapshot, records).await?)
    }

    /// The values of a record's key, which is JSON, in the order of the schema's columns of these names.
    ///
    /// # Errors
    /// When it is no key of the schema.
    pub fn values(schema: &TableSchema, names: &[String], key: &str) -> Option<Vec<Value>> {
        let key: serde_json::Map<String, serde_json::Value> = serde_json::from_str(key).ok()?;
        names.iter().map(|name| key_value(schema.column(name)?, key.get(name)?)).collect()
    }

    fn rows(
        &self,
        encoder: &mut (Encoder, u64),
        schema: &Arc<TableSchema>,
        Block { version, rows }: Block,
        again: &mut ReadAgain,
    ) -> Result<(), SnapshotError> {
        for row in rows {
            let change = read_row(schema, row.clone(), version, self.environment.now_us());
            again.records.push(self.record(encoder, &change)?);
            again.found.push(row);
        }
        Ok(())
    }

    /// An encoder, and the schema's id, which is a digest and not to be computed for every row.
    fn encoder(&self, schema: &TableSchema) -> (Encoder, u64) {
        (Encoder::new(&self.pipeline, self.connector), schema.id())
    }

    /// A record with its partition, by an encoder and the schema's id.
    fn record(&self, encoder: &mut (Encoder, u64), change: &Change) -> Result<(u32, Record), SnapshotError> {
        let origin = Origin { snapshot: true, captured_ms: change.commit_us / 1000, ..Origin::default() };
        let encoded = encoder.0.encode(change, &origin);
        let encoded = encoded.map_err(|error| SnapshotError::not_encoded(&change.schema, &error))?;
        let record = Record::change(change, encoded.key, encoded.value, encoder.1);
        Ok((envelope::partition(change, self.log.partitions()), record))
    }

    /// Reads some rows again; how many of them the source no longer has.
    async fn send_some(&self, schema: &Arc<TableSchema>, rows: &[Wanted], then: Found) -> Result<u64, SnapshotError> {
        let mut keys = Vec::new();
        for row in rows {
            keys.push(key_values(schema, &row.key).ok_or_else(|| unreadable(schema))?);
        }
        let captured = self.captured(rows.iter().map(|row| row.version).max().unwrap_or_default()).await;
        match then {
            Found::Send => self.log.append(Topic::Snapshot, announcement(schema, self.log.partitions())).await?,
            Found::Leave => {}
        }
        // In the order of keys: a simulated run is to be the same every time.
        let missing: BTreeMap<&Bytes, (&Wanted, Vec<Value>)> =
            rows.iter().zip(keys.clone()).map(|(row, key)| (&row.key, (row, key))).collect();
        let (blocks, incoming) = Blocks::new(&Room::new(READ_BYTES_MAX));
        let reading = self.source.fetch(schema, &keys, &captured, blocks);
        let (read, missing) = tokio::join!(reading, self.found(schema, incoming, missing, then));
        // What is not there is known when all has been read.
        let missing = missing?;
        read?;
        self.gone(missing, captured.watermark()).await
    }

    /// Sends the rows that were found, if they are to be sent; those that were not.
    async fn found<'r>(
        &self,
        schema: &Arc<TableSchema>,
        mut blocks: mpsc::Receiver<(Block, Taken)>,
        mut missing: BTreeMap<&'r Bytes, (&'r Wanted, Vec<Value>)>,
        then: Found,
    ) -> Result<BTreeMap<&'r Bytes, (&'r Wanted, Vec<Value>)>, SnapshotError> {
        let at_us = self.environment.now_us();
        let mut encoder = self.encoder(schema);
        while let Some((Block { version, rows }, _taken)) = blocks.recv().await {
            let mut records = Vec::new();
            for row in rows {
                let (partition, record) = self.record(&mut encoder, &read_row(schema, row, version, at_us))?;
                // A key that only compares equal ('a' and 'A') is another row's, which the stream brings.
                if missing.remove(&record.key).is_some() && then == Found::Send {
                    records.push((partition, record));
                }
            }
            if !records.is_empty() {
                self.log.append(Topic::Snapshot, records).await?;
            }
        }
        Ok(missing)
    }

    /// Sends the deletes of rows that the source no longer has; how many they are.
    async fn gone(
        &self,
        missing: BTreeMap<&Bytes, (&Wanted, Vec<Value>)>,
        version: Version,
    ) -> Result<u64, SnapshotError> {
        let gone = missing.len() as u64;
        let (at_us, partitions) = (self.environment.now_us(), self.log.partitions());
        let (mut records, mut bytes) = (Vec::new(), 0);
        for (row, key) in missing.into_values() {
            let Some(shown) = &row.shown else { continue };
            let value = envelope::deletion(shown).ok_or_else(|| unreadable(&row.schema))?;
            let change = keyed(&row.schema, key, version, at_us);
            bytes += value.len();
            records.extend(announcement(&row.schema, partitions));
            let record = Record::change(&change, row.key.clone(), value, row.schema.id());
            records.push((envelope::partition(&change, partitions), record));
            if bytes >= GROUP_BYTES_MAX {
                bytes = 0;
                self.log.append(Topic::Snapshot, std::mem::take(&mut records)).await?;
            }
        }
        if !records.is_empty() {
            self.log.append(Topic::Snapshot, records).await?;
        }
        Ok(gone)
    }

    /// What capture has reached, once that is this version at least.
    async fn captured(&self, version: Version) -> Captured {
        self.frontier.captured_when(|point| point.watermark() >= version).await
    }
}

/// The key of a row.
fn key_of(schema: &TableSchema, row: &[Value]) -> Vec<Value> {
    schema.key.iter().filter_map(|place| row.get(*place)).cloned().collect()
}

/// A key such that one which the source may take for the same is the same: a row that is there under another spelling
/// is not gone.
fn folded(key: &[Value]) -> String {
    let names: Vec<String> = (0..key.len()).map(|place| place.to_string()).collect();
    let fold = |value: &Value| match value {
        Value::Text(text) => Value::Text(text.trim_end().to_lowercase()),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::UInt(_)
        | Value::Float(_)
        | Value::Double(_)
        | Value::Bytes(_) => value.clone(),
    };
    envelope::object(&names, &key.iter().map(fold).collect::<Vec<_>>())
}

/// Whether two schemas of a table spell a row's key alike.
fn same_key(a: &TableSchema, b: &TableSchema) -> bool {
    let shape = |schema: &TableSchema| -> Vec<(String, ColumnType)> {
        schema.key_columns().map(|column| (column.name.clone(), column.column_type.clone())).collect()
    };
    shape(a) == shape(b)
}

/// A row that the source has.
fn read_row(schema: &Arc<TableSchema>, row: Vec<Value>, version: Version, commit_us: i64) -> Change {
    let images = Images { before: None, after: Some(row) };
    Change { schema: Arc::clone(schema), op: Op::Read, images, version, commit_us }
}

/// A delete that knows no more of the row than its key.
fn keyed(schema: &Arc<TableSchema>, key: Vec<Value>, version: Version, commit_us: i64) -> Change {
    let images = Images { before: Some(schema.row_of_key(key)), after: None };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, TableName};

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
