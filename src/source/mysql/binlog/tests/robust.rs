//! Arbitrary bytes are a value or an error, in every event type and every column type.

use std::borrow::Cow;

use proptest::prelude::*;

use super::{
    super::*,
    build::{Column1, column, write},
};

/// One column of every kind.
fn columns() -> Vec<Column1<'static>> {
    let text = |code, metadata, source_type, charset| Column1 { code, metadata, source_type, charset: Some(charset) };
    vec![
        column(9, &[], "mediumint"),
        column(4, &[4], "float"),
        column(10, &[], "date"),
        column(11, &[], "time"),
        column(12, &[], "datetime"),
        column(7, &[], "timestamp"),
        column(19, &[3], "time(3)"),
        column(18, &[6], "datetime(6)"),
        column(17, &[2], "timestamp(2)"),
        column(246, &[20, 5], "decimal(20,5)"),
        column(16, &[4, 1], "bit(12)"),
        column(254, &[247, 1], "enum('a','b')"),
        column(254, &[248, 1], "set('a','b')"),
        column(254, &[254, 16], "uuid"),
        column(254, &[254, 16], "inet6"),
        column(254, &[254, 4], "binary(4)"),
        column(255, &[4], "geometry"),
        column(245, &[4], "json"),
        column(140, &[2], "blob"),
        text(15, &[200, 0], "varchar(50)", "utf8mb4"),
        text(15, &[200, 0], "varchar(50)", "sjis"),
        text(15, &[200, 0], "varchar(50)", "eucjpms"),
        text(15, &[200, 0], "varchar(50)", "gb18030"),
        text(15, &[200, 0], "varchar(50)", "utf16"),
        text(15, &[200, 0], "varchar(50)", "cp1257"),
    ]
}

/// Reads everything that an event leads to.
fn exhaust(flavor: Flavor, header: &Header, body: &[u8]) {
    match decode(flavor, header, body) {
        Ok(BinlogEvent::TableMap(map)) => drop(map.parse()),
        Ok(BinlogEvent::TransactionPayload(payload)) => {
            for event in payload.events().into_iter().flatten().flatten() {
                drop(decode(flavor, &event.header, &event.body));
            }
        }
        Ok(_) | Err(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_event_decodes_or_fails(event_type: u8, maria: bool, flags: u16, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let header = Header { timestamp: 0, event_type: event_type % 180, server_id: 0, event_size: 0, log_pos: 0, flags };
        exhaust(if maria { Flavor::Mariadb } else { Flavor::Mysql }, &header, &body);
    }

    #[test]
    fn any_row_decodes_or_fails(which in 0usize..25, data in prop::collection::vec(any::<u8>(), 0..120)) {
        let columns = columns();
        let column = &columns[which % columns.len()];
        let rows = write(&data);
        drop(count_rows(&column.map(), &rows));
        let decoder = RowDecoder::new(&column.map(), column.schema(), &DecodeOptions::default()).expect("fits");
        decoder.rows(&rows).into_iter().flatten().for_each(drop);
    }

    #[test]
    fn a_recorded_event_with_a_changed_byte_decodes_or_fails(at in 0usize..1 << 16, byte: u8, event in 0usize..64) {
        let bytes = include_bytes!("../testdata/mariadb1011.binlog");
        let mut rest = &bytes[..];
        for _ in 0..event {
            rest = Frame::split(rest, Checksum::Crc32).map_or(&bytes[..], |(_, following)| if following.is_empty() { &bytes[..] } else { following });
        }
        let (frame, _) = Frame::split(rest, Checksum::Crc32).expect("a whole event");
        let mut body = frame.body.to_vec();
        if !body.is_empty() {
            let at = at % body.len();
            body[at] = byte;
        }
        exhaust(Flavor::Mariadb, &frame.header, &body);
    }
}

#[test]
fn an_empty_rows_event_has_no_rows() {
    let int = column(3, &[], "int");
    let rows = Rows { table_id: 0xff_ffff, columns: 0, data: Cow::Borrowed(&[]), ..write(&[]) };
    assert_eq!(count_rows(&int.map(), &rows), Ok(0));
    let decoder = RowDecoder::new(&int.map(), int.schema(), &DecodeOptions::default()).expect("fits");
    assert_eq!(decoder.rows(&rows).expect("no rows").count(), 0);
}
