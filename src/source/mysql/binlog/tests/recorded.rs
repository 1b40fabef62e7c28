//! Events of a wide table, recorded from real servers, against what the same servers' SELECT said of the rows.
//!
//! `testdata/<server>.binlog` holds whole events, `.columns.tsv` the catalog's columns, `.rows.tsv` the rows.

use std::sync::Arc;

use super::super::*;
use crate::model::{Column, ColumnType, Images, TableName, TableSchema, Value};

struct Recorded {
    flavor: Flavor,
    binlog: &'static [u8],
    columns: &'static str,
    rows: &'static str,
    doubles: JsonDoubles,
}

macro_rules! recorded {
    ($name:literal, $flavor:ident, $doubles:ident) => {
        Recorded {
            flavor: Flavor::$flavor,
            binlog: include_bytes!(concat!("../testdata/", $name, ".binlog")),
            columns: include_str!(concat!("../testdata/", $name, ".columns.tsv")),
            rows: include_str!(concat!("../testdata/", $name, ".rows.tsv")),
            doubles: JsonDoubles::$doubles,
        }
    };
}

impl Recorded {
    fn schema(&self) -> Arc<TableSchema> {
        let column = |line: &str| {
            let line = unescape(line, '\u{1}');
            let fields: Vec<&str> = line.split('\t').collect();
            Column {
                name: fields[0].to_owned(),
                column_type: ColumnType::Text,
                source_type: fields[1].to_owned(),
                nullable: fields[3] == "1",
                charset: Some(fields[2].to_owned()).filter(|charset| !charset.is_empty()),
                collation: None,
                generated: fields[4] == "1",
            }
        };
        let columns = self.columns.lines().map(column).collect();
        Arc::new(TableSchema { table: TableName::new("decoder_wide", "w"), columns, key: vec![0] })
    }

    /// Every event of the file, then every row of the table, in order.
    fn images(&self) -> Vec<Images> {
        let options = DecodeOptions { zero_dates: ZeroDates::Null, json_doubles: self.doubles };
        let (mut rest, mut images, mut current) = (self.binlog, Vec::new(), None);
        while !rest.is_empty() {
            let (frame, following) = Frame::split(rest, Checksum::Crc32).expect("a whole event");
            rest = following;
            match decode(self.flavor, &frame.header, frame.body).expect("a known event") {
                BinlogEvent::TableMap(map) => {
                    let map = map.parse().expect("a table map");
                    let decoder = RowDecoder::new(&map, self.schema(), &options).expect("the same columns");
                    current = Some((map, decoder));
                }
                BinlogEvent::Rows(rows) => {
                    let (map, decoder) = current.as_ref().expect("a table map before rows");
                    let before = images.len();
                    images.extend(decoder.rows(&rows).expect("full images").map(|row| row.expect("a row")));
                    assert_eq!(count_rows(map, &rows), Ok((images.len() - before) as u64));
                }
                _ => {}
            }
        }
        images
    }
}

fn check(recorded: &Recorded) {
    let images = recorded.images();
    let schema = recorded.schema();
    let inserted: Vec<&Vec<Value>> =
        images.iter().filter(|row| row.before.is_none()).flat_map(|row| &row.after).collect();
    let selected: Vec<Vec<String>> =
        recorded.rows.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
    assert_eq!(inserted.len(), selected.len());
    let mut differences = Vec::new();
    for (values, fields) in inserted.iter().zip(&selected) {
        assert_eq!(values.len(), schema.columns.len());
        for ((value, field), column) in values.iter().zip(fields).zip(&schema.columns) {
            let expected = expected(field, &column.source_type, recorded.doubles);
            if *value != expected {
                differences.push(format!("{} {}: {value:?} is not {expected:?}", fields[0], column.name));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let update = images.iter().find(|row| row.before.is_some() && row.after.is_some()).expect("an update");
    assert_eq!(update.before.as_ref(), inserted.get(1).copied());
    let delete = images.iter().find(|row| row.after.is_none()).expect("a delete");
    assert_eq!(delete.before.as_ref(), inserted.get(2).copied());
}

/// The value that a field of the client's output stands for.
fn expected(field: &str, source_type: &str, doubles: JsonDoubles) -> Value {
    if field == "NULL" {
        return Value::Null;
    }
    let base = source_type.split(['(', ' ']).next().unwrap_or_default();
    let unsigned = source_type.contains("unsigned");
    match base {
        "bigint" if unsigned => Value::UInt(field.parse().expect("a number")),
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "year" => {
            Value::Int(field.parse().expect("a number"))
        }
        "float" => Value::Float(field.parse::<f64>().expect("a number") as f32),
        "double" => Value::Double(field.parse().expect("a number")),
        "date" if is_zero_date(field) => Value::Null,
        "date" => Value::Text(format!("{field}Z")),
        "datetime" | "timestamp" if is_zero_date(field) => Value::Null,
        "datetime" | "timestamp" => Value::Text(format!("{}Z", micros(field).replace(' ', "T"))),
        "time" => Value::Text(micros(field)),
        "bit" | "binary" | "varbinary" | "tinyblob" | "blob" | "longblob" | "vector" | "geometry" | "point" => {
            let digits = field.as_bytes().as_chunks::<2>().0;
            let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).expect("ascii"), 16).expect("hex");
            Value::Bytes(digits.iter().map(byte).collect())
        }
        "json" => {
            let text = unescape(field, '\n');
            // 5.7 breaks the lines of base64 without an escape, which is not JSON.
            Value::Text(if doubles == JsonDoubles::Bare { text.replace('\n', "\\n") } else { text })
        }
        _ => Value::Text(unescape(field, '\n')),
    }
}

fn is_zero_date(field: &str) -> bool {
    field.starts_with("0000") || field.contains("-00")
}

fn micros(field: &str) -> String {
    match field.split_once('.') {
        Some((whole, fraction)) => format!("{whole}.{fraction:0<6}"),
        None => format!("{field}.000000"),
    }
}

/// Undoes the client's escapes.
fn unescape(field: &str, line_end: char) -> String {
    let mut text = String::new();
    let mut chars = field.chars();
    while let Some(character) = chars.next() {
        match character {
            '\\' => match chars.next() {
                Some('n') => text.push(line_end),
                Some('t') => text.push('\t'),
                Some('0') => text.push('\0'),
                other => text.extend(other),
            },
            plain => text.push(plain),
        }
    }
    text
}

#[test]
fn rows_of_mysql_5_7_decode_to_what_it_selects() {
    check(&recorded!("mysql57", Mysql, Bare));
}

#[test]
fn rows_of_mysql_8_0_decode_to_what_it_selects() {
    check(&recorded!("mysql80", Mysql, Marked));
}

#[test]
fn rows_of_mysql_9_7_decode_to_what_it_selects() {
    check(&recorded!("mysql97", Mysql, Marked));
}

#[test]
fn rows_of_mariadb_10_11_decode_to_what_it_selects() {
    check(&recorded!("mariadb1011", Mariadb, Marked));
}
