//! What the fuzz targets run, here so that a unit test replays their corpora without the fuzzer.

use std::sync::Arc;

use super::{
    BinlogEvent, DecodeOptions, Flavor, Header, RowDecoder, SqlMode, TableMap, TableMapBody, WireType, count_rows,
    ddl::{self, Statement},
    decode,
};
use crate::model::{Column, ColumnType, TableName, TableSchema, fuzz::Input};

/// The first byte is the flavor, the next nineteen a header, the rest a body.
pub fn event(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let flavor = flavor(*first);
    let (Ok(header), Some(body)) = (Header::parse(bytes), bytes.get(Header::LENGTH..)) else { return };
    match decode(flavor, &header, body) {
        Ok(BinlogEvent::TableMap(map)) => drop(map.parse()),
        Ok(BinlogEvent::Query(query)) => drop(ddl::classify(&query.sql, &query.schema, query.sql_mode)),
        Ok(BinlogEvent::TransactionPayload(payload)) => {
            for event in payload.events().into_iter().flatten().flatten() {
                drop(decode(flavor, &event.header, &event.body));
            }
        }
        Ok(_) | Err(_) => {}
    }
}

/// The first byte is the flavor; then a length of two bytes and a table map's body; the rest is the body of a
/// rows event (its type in the first byte) of a table whose catalog fits that map.
pub fn rows(bytes: &[u8]) {
    let Some(([first, low, high], bytes)) = bytes.split_first_chunk::<3>() else { return };
    let Some((map, rows)) = bytes.split_at_checked(usize::from(u16::from_le_bytes([*low, *high]))) else { return };
    let flavor = flavor(*first);
    let Ok(map) = (TableMapBody { flavor, table_id: 0, bytes: map }).parse() else { return };
    let Some((event_type, body)) = rows.split_first() else { return };
    let header = Header { timestamp: 0, event_type: *event_type, server_id: 0, event_size: 0, log_pos: 0, flags: 0 };
    let Ok(BinlogEvent::Rows(rows)) = decode(flavor, &header, body) else { return };
    let counted = count_rows(&map, &rows);
    let Ok(decoder) = RowDecoder::new(&map, fitting_schema(&map), &DecodeOptions::default()) else { return };
    let Ok(images) = decoder.rows(&rows) else { return };
    let mut decoded = 0;
    for row in images {
        if row.is_err() {
            return;
        }
        decoded += 1;
    }
    // The decoder is handed rows of its own table only.
    if rows.table_id == map.table_id {
        assert_eq!(counted, Ok(decoded), "a table that is not followed moves the clock as one that is");
    }
}

/// The first byte is the SQL mode, and whether the rest is the text of a statement, or names and a comment for some.
pub fn statements(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mode = SqlMode { ansi_quotes: first & 1 == 1, no_backslash_escapes: first & 2 == 2 };
    if first & 4 == 4 {
        return named_statements(&mut Input::new(rest), mode);
    }
    let text = String::from_utf8_lossy(rest);
    let found = ddl::classify(&text, "s", mode);
    let ends = text.bytes().filter(|byte| *byte == b';').count() + 1;
    // CREATE OR REPLACE TABLE is two, with a SELECT three; REPAIR TABLE is one for each table.
    let commas = text.bytes().filter(|byte| *byte == b',').count();
    assert!(found.len() <= 3 * ends + commas, "a semicolon ends a statement");
    for statement in found {
        if let Statement::AlterTable { kinds, columns, .. } = statement {
            assert!(!kinds.is_empty() && kinds.len() + columns.len() <= 2 * text.len() + 1);
        }
    }
}

/// Statements about tables and columns of any name, behind any comment, are told for what they are.
fn named_statements(input: &mut Input<'_>, mode: SqlMode) {
    let quote = if mode.ansi_quotes && input.byte() & 1 == 1 { '"' } else { '`' };
    let quoted = |name: &str| format!("{quote}{}{quote}", name.replace(quote, &format!("{quote}{quote}")));
    let (schema, old, new) = (input.text(), input.text(), input.text());
    let comment = input.text().replace(['*', '\n'], " ");
    let comment = match input.below(3) {
        0 => format!("/* {comment} */"),
        1 => format!("-- {comment}\n"),
        _ => format!("#{comment}\n"),
    };
    let table = |name: &str| TableName::new(&*schema, name);
    let spelled = |name: &str| format!("{}.{}", quoted(&schema), quoted(name));
    let (a, b) = (spelled(&old), spelled(&new));
    let altered = Statement::AlterTable {
        table: table(&old),
        kinds: vec![ddl::AlterKind::DropColumn, ddl::AlterKind::AddColumn],
        columns: if old == new { vec![old.clone()] } else { vec![new.clone(), old.clone()] },
    };
    let deleted = Statement::RowChange(ddl::RowChange {
        verb: "DELETE".into(),
        names: Some(ddl::Names { written: vec![table(&old)], read: Vec::new() }),
    });
    for (sql, expected) in [
        (format!("TRUNCATE {comment} TABLE {a}"), Statement::Truncate(table(&old))),
        (format!("{comment}DROP TABLE IF EXISTS {a} , {b}"), Statement::DropTable(vec![table(&old), table(&new)])),
        (format!("RENAME TABLE {a}{comment}TO {b};"), Statement::RenameTable(vec![(table(&old), table(&new))])),
        (format!("CREATE TABLE {a} (x INT {comment})"), Statement::CreateTable(table(&old))),
        (format!("ALTER TABLE {a} DROP {}, ADD {} INT", quoted(&new), quoted(&old)), altered),
        (format!("{comment} DELETE FROM {a}"), deleted),
    ] {
        assert_eq!(ddl::classify(&sql, "other", mode), [expected], "{sql}");
    }
}

fn flavor(byte: u8) -> Flavor {
    if byte & 1 == 0 { Flavor::Mysql } else { Flavor::Mariadb }
}

/// A catalog in which every column is what the map says.
fn fitting_schema(map: &TableMap) -> Arc<TableSchema> {
    let names = map.metadata.names.iter().flatten().cloned().map(Some).chain(std::iter::repeat(None));
    let unsigned = map.metadata.unsigned.iter().flatten().copied().chain(std::iter::repeat(None));
    let columns = map.columns.iter().zip(names).zip(unsigned).enumerate();
    let columns = columns.map(|(index, ((column, name), unsigned))| Column {
        name: name.unwrap_or_default(),
        column_type: ColumnType::Text,
        source_type: source_type(column.wire_type, index, unsigned == Some(true)),
        nullable: column.nullable,
        charset: Some(["utf8mb4", "latin1", "sjis", "ucs2", "gb18030", "ujis"][index % 6].to_owned()),
        collation: None,
        generated: false,
    });
    Arc::new(TableSchema { table: TableName::new("s", "t"), columns: columns.collect(), key: Vec::new() })
}

fn source_type(wire_type: WireType, index: usize, unsigned: bool) -> String {
    let integer = |name: &str| if unsigned { format!("{name} unsigned") } else { name.to_owned() };
    match wire_type {
        WireType::Tiny => integer("tinyint"),
        WireType::Short => integer("smallint"),
        WireType::Int24 => integer("mediumint"),
        WireType::Long => integer("int"),
        WireType::LongLong => integer("bigint"),
        WireType::Float => "float".to_owned(),
        WireType::Double | WireType::Null => "double".to_owned(),
        WireType::Year => "year".to_owned(),
        WireType::Date => "date".to_owned(),
        WireType::OldTime => "time".to_owned(),
        WireType::OldDateTime => "datetime".to_owned(),
        WireType::OldTimestamp => "timestamp".to_owned(),
        WireType::Time { digits } => format!("time({digits})"),
        WireType::DateTime { digits } => format!("datetime({digits})"),
        WireType::Timestamp { digits } => format!("timestamp({digits})"),
        WireType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
        WireType::Bit { bits } => format!("bit({bits})"),
        WireType::Varchar { .. } | WireType::VarcharCompressed { .. } => pick(index, ["varchar(9)", "varbinary(9)"]),
        WireType::Fixed { bytes_max: 4 } => pick(index, ["char(4)", "inet4"]),
        WireType::Fixed { bytes_max: 16 } => pick(index, ["uuid", "inet6"]),
        WireType::Fixed { .. } => pick(index, ["char(9)", "binary(9)"]),
        WireType::Enum { .. } => "enum('a','b')".to_owned(),
        WireType::Set { .. } => "set('a','b')".to_owned(),
        WireType::Blob { .. } | WireType::BlobCompressed { .. } => pick(index, ["text", "blob"]),
        WireType::Json { .. } => "json".to_owned(),
        WireType::Geometry { .. } => "geometry".to_owned(),
        WireType::Vector { .. } => "vector(1)".to_owned(),
    }
}

fn pick(index: usize, types: [&str; 2]) -> String {
    types[index / 6 % 2].to_owned()
}
