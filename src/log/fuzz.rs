//! What the fuzz target of stored texts runs: what is read back from the log or the target as text or JSON is a value
//! or an error, and a value is written as it was read.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use super::{Control, Headers, record::ChunkEnd};
use crate::model::{Column, ColumnType, GtidSet, MysqlPosition, Position, TableName, TableSchema, fuzz::Input};

/// The first byte says what the rest is.
pub fn stored(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => headers(rest),
        1 => json(rest),
        2 => gtid_sets(rest),
        _ => values(&mut Input::new(rest)),
    }
}

/// A header in each line, `name=value`.
fn headers(bytes: &[u8]) {
    let pairs: Vec<(&str, &[u8])> = bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let (name, value) = line.split_at_checked(line.iter().position(|byte| *byte == b'=')?)?;
            Some((std::str::from_utf8(name).ok()?, value.get(1..)?))
        })
        .collect();
    let Ok(headers) = Headers::from_pairs(pairs.iter().copied()) else { return };
    let written = headers.to_pairs();
    let mut expected: Vec<(&str, &[u8])> = written.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    assert_eq!(Headers::from_pairs(expected.iter().copied()), Ok(headers), "headers read back as they were written");
    let mut ours: Vec<(&str, &[u8])> = pairs.into_iter().filter(|(name, _)| name.starts_with("cutover.")).collect();
    ours.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ours, expected, "a header has one spelling");
}

fn json(bytes: &[u8]) {
    reads_back::<Control>(bytes);
    reads_back::<ChunkEnd>(bytes);
    reads_back::<Position>(bytes);
    if let Some(schema) = reads_back::<TableSchema>(bytes) {
        assert!(schema.key_columns().count() <= schema.key.len(), "a key that points nowhere has no column");
    }
}

fn reads_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    writes_and_reads(&value);
    Some(value)
}

fn writes_and_reads<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let written = serde_json::to_vec(value).unwrap_or_default();
    let read: Option<T> = serde_json::from_slice(&written).ok();
    assert_eq!(read.as_ref(), Some(value), "a stored value reads back as it was written");
}

/// Two sets, a line each.
fn gtid_sets(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (first, second) = text.split_once('\n').unwrap_or((text, ""));
    let (Ok(first), Ok(second)) = (first.parse::<GtidSet>(), second.parse::<GtidSet>()) else { return };
    for set in [&first, &second] {
        assert_eq!(set.to_string().parse().as_ref(), Ok(set), "a set reads back as it prints");
        assert!(set.contains(set) && set.minus(set).is_empty());
    }
    let mut both = first.clone();
    both.union(&second);
    assert!(both.contains(&first) && both.contains(&second), "a union has what its parts have");
    let rest = first.minus(&second);
    assert!(first.contains(&rest), "what is left was there");
    assert_eq!(rest.is_empty(), second.contains(&first), "nothing is left of what the other set has, and only then");
    let mut again = rest;
    again.union(&second);
    assert_eq!(again.to_string(), both.to_string(), "what was taken away and what took it are the union");
    let at = |server: &str, gtids: &GtidSet| {
        let (file, gtids) = ("bin.000001".to_owned(), Some(gtids.to_string()));
        Position::Mysql(MysqlPosition { file, offset: 4, server: server.to_owned(), gtids })
    };
    assert_eq!(at("a", &first).covers(&at("b", &second)), first.contains(&second), "a failover goes by the sets");
}

/// Values of any content, written and read.
fn values(input: &mut Input<'_>) {
    let position = Position::Mysql(MysqlPosition {
        file: input.text(),
        offset: input.number(),
        server: input.text(),
        gtids: (input.byte() & 1 == 1).then(|| input.text()),
    });
    writes_and_reads(&position);
    let chunk = ChunkEnd {
        table: input.text(),
        generation: input.number().cast_signed(),
        chunk: input.number().cast_signed(),
        rows: input.number(),
    };
    let (position, chunk) = ((input.byte() & 1 == 1).then_some(position), (input.byte() & 1 == 1).then_some(chunk));
    writes_and_reads(&Control { position, clock: input.number().cast_signed(), chunk });
    let table = TableName::new(input.text(), input.text());
    let columns = (0..input.below(8)).map(|_| column(input)).collect();
    let key = (0..input.below(4)).map(|_| input.below(8)).collect();
    let schema = TableSchema { table, columns, key };
    writes_and_reads(&schema);
}

fn column(input: &mut Input<'_>) -> Column {
    let column_type = match input.below(5) {
        0 => ColumnType::BigInt,
        1 => ColumnType::Numeric { precision: u16::from(input.byte()) * 257, scale: u16::from(input.byte()) },
        2 => ColumnType::TimestampTz,
        3 => ColumnType::Named(input.text()),
        _ => ColumnType::Text,
    };
    let flags = input.byte();
    Column {
        name: input.text(),
        column_type,
        source_type: input.text(),
        nullable: flags & 1 == 1,
        charset: (flags & 2 == 2).then(|| input.text()),
        collation: (flags & 4 == 4).then(|| input.text()),
        generated: flags & 8 == 8,
    }
}
