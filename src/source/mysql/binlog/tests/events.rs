//! Events that carry no row of the wide table: GTIDs, compressed ones, statements, and what is refused.

use super::super::*;

fn header(event_type: u8, flags: u16) -> Header {
    Header { timestamp: 1, event_type, server_id: 1, event_size: 0, log_pos: 4, flags }
}

/// The events of a recorded file, checksums verified.
fn frames(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (frame, rest) = Frame::split(bytes, Checksum::Crc32).expect("a whole event");
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn recorded(flavor: Flavor, bytes: &[u8]) -> Vec<BinlogEvent<'_>> {
    frames(bytes).iter().map(|frame| decode(flavor, &frame.header, frame.body).expect("a known event")).collect()
}

#[test]
fn a_wrong_checksum_fails_closed() {
    let mut bytes = include_bytes!("../testdata/mysql97_tagged.binlog").to_vec();
    assert!(Frame::split(&bytes, Checksum::Crc32).is_ok());
    bytes[30] ^= 1;
    assert!(matches!(Frame::split(&bytes, Checksum::Crc32), Err(DecodeError::Checksum { .. })));
}

#[test]
fn a_compressed_transaction_of_mysql_unpacks_event_by_event() {
    let events = recorded(Flavor::Mysql, include_bytes!("../testdata/mysql97_payload.binlog"));
    let payload = events.iter().find_map(|event| match event {
        BinlogEvent::TransactionPayload(payload) => Some(payload),
        _ => None,
    });
    let inner: Vec<InnerEvent> =
        payload.expect("a payload").events().expect("zstd").map(|event| event.expect("an event")).collect();
    let (mut rows, mut map, mut committed) = (Vec::new(), None, false);
    for event in &inner {
        match decode(Flavor::Mysql, &event.header, &event.body).expect("a known event") {
            BinlogEvent::TableMap(body) => map = Some(body.parse().expect("a table map")),
            BinlogEvent::Rows(event) => {
                rows.push((event.kind, count_rows(map.as_ref().expect("a map"), &event).expect("rows")))
            }
            BinlogEvent::Xid(_) => committed = true,
            _ => {}
        }
    }
    assert_eq!(rows, [(RowsKind::Write, 2), (RowsKind::Update, 1), (RowsKind::Delete, 1)]);
    assert!(committed);
}

#[test]
fn a_cut_or_corrupt_compressed_transaction_is_an_error_and_never_an_empty_one() {
    let bytes = include_bytes!("../testdata/mysql97_payload.binlog");
    let frames = frames(bytes);
    let frame = frames.iter().find(|frame| frame.header.event_type == 40).expect("a payload");
    for at in 0..frame.body.len() {
        let mut body = frame.body.to_vec();
        body[at] ^= 0x55;
        let events = decode(Flavor::Mysql, &frame.header, &body).and_then(|event| match event {
            BinlogEvent::TransactionPayload(payload) => payload.events()?.collect::<Result<Vec<_>, _>>(),
            other => panic!("{other:?}"),
        });
        assert!(events.is_err() || events.is_ok_and(|events| !events.is_empty()), "byte {at}");
        assert!(decode(Flavor::Mysql, &frame.header, &frame.body[..at]).is_err());
    }
}

#[test]
fn compressed_rows_and_queries_of_mariadb_unpack() {
    let events = recorded(Flavor::Mariadb, include_bytes!("../testdata/mariadb1011_compressed.binlog"));
    let (mut rows, mut map, mut queries, mut gtids) = (Vec::new(), None, Vec::new(), Vec::new());
    for event in events {
        match event {
            BinlogEvent::TableMap(body) => map = Some(body.parse().expect("a table map")),
            BinlogEvent::Rows(event) => {
                rows.push((event.kind, count_rows(map.as_ref().expect("a map"), &event).expect("rows")))
            }
            BinlogEvent::Query(query) => queries.push(query.sql.into_owned()),
            BinlogEvent::MariaDbGtid(gtid) => gtids.push(gtid),
            _ => {}
        }
    }
    assert_eq!(rows, [(RowsKind::Write, 2), (RowsKind::Update, 1), (RowsKind::Delete, 1)]);
    assert!(matches!(queries.as_slice(), [alter] if alter.starts_with("alter table t comment 'a long")));
    assert!(gtids[0].is_transactional() && !gtids[0].is_standalone());
    assert!(gtids[1].is_standalone() && gtids[1].is_ddl());
    assert_eq!(gtids[0].sequence + 1, gtids[1].sequence);
}

#[test]
fn a_tagged_gtid_names_its_tag() {
    let events = recorded(Flavor::Mysql, include_bytes!("../testdata/mysql97_tagged.binlog"));
    let gtid = events.iter().find_map(|event| match event {
        BinlogEvent::Gtid(gtid) => Some(gtid),
        _ => None,
    });
    let gtid = gtid.expect("a GTID");
    assert!(gtid.source.ends_with(":some_tag") && gtid.source.len() == 45, "{}", gtid.source);
    assert_eq!(gtid.number, 1);
    let commit = gtid.commit.immediate_commit_us.expect("a commit time");
    assert_eq!(gtid.commit.original_commit_us, Some(commit));
    assert!(commit > 1_700_000_000_000_000);
}

#[test]
fn unknown_events_halt_unless_the_server_calls_them_ignorable() {
    let decode = |flavor, event_type, flags| decode(flavor, &header(event_type, flags), &[]);
    assert_eq!(decode(Flavor::Mysql, 200, 0), Err(DecodeError::UnknownEvent { event_type: 200 }));
    assert_eq!(decode(Flavor::Mysql, 200, 0x80), Ok(BinlogEvent::Ignorable(200)));
    assert_eq!(decode(Flavor::Mysql, 166, 0), Err(DecodeError::UnknownEvent { event_type: 166 }));
    assert_eq!(decode(Flavor::Mariadb, 172, 0), Err(DecodeError::UnknownEvent { event_type: 172 }));
    for event_type in [160, 161, 164] {
        assert_eq!(decode(Flavor::Mariadb, event_type, 0), Ok(BinlogEvent::Ignorable(event_type)));
    }
    // 5, 13 and 14 say what the statement behind them has to know; the statement is what is judged.
    for event_type in [3, 5, 13, 14, 28, 29, 36, 37] {
        assert_eq!(decode(Flavor::Mysql, event_type, 0), Ok(BinlogEvent::Ignorable(event_type)));
    }
}

#[test]
fn what_cannot_be_followed_says_which_setting_to_change() {
    let message = |event_type| match decode(Flavor::Mysql, &header(event_type, 0), &[1, 0, 2, b'h', b'i']) {
        Err(error) => error.to_string(),
        Ok(event) => panic!("{event:?}"),
    };
    assert!(message(39).contains("binlog_row_value_options=''"));
    for event_type in [6, 8, 12, 17, 18] {
        assert!(message(event_type).contains("binlog_format=ROW"));
    }
    assert!(message(26).contains("incident 1: hi"));
}

#[test]
fn the_first_rotate_of_mariadb_has_a_checksum_that_is_no_part_of_the_name() {
    let header = header(4, 0x20);
    let mut body = [&4u64.to_le_bytes()[..], b"bin.000001"].concat();
    let rotated = |body: &[u8]| match decode(Flavor::Mariadb, &header, body) {
        Ok(BinlogEvent::Rotate { position: 4, file }) => file,
        other => panic!("{other:?}"),
    };
    assert_eq!(rotated(&body), "bin.000001");
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header.to_bytes());
    hasher.update(&body);
    body.extend(hasher.finalize().to_le_bytes());
    assert_eq!(rotated(&body), "bin.000001");
}

#[test]
fn heartbeats_of_both_versions_say_file_and_position() {
    let expected = |position| Ok(BinlogEvent::Heartbeat { file: "bin.000001".into(), position });
    assert_eq!(decode(Flavor::Mysql, &header(27, 0), b"bin.000001"), expected(4));
    let second = [&[1, 10][..], b"bin.000001", &[2, 3, 252, 0, 1, 0]].concat();
    assert_eq!(decode(Flavor::Mysql, &header(41, 0), &second), expected(256));
}

#[test]
fn an_xa_prepare_tells_one_phase_from_two() {
    let body = [&[1, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0][..], b"gb"].concat();
    let xid = "X'67',X'62',7".to_owned();
    let event = decode(Flavor::Mysql, &header(38, 0), &body);
    assert_eq!(event, Ok(BinlogEvent::XaPrepare { one_phase: true, xid }));
}

#[test]
fn a_query_event_is_read_in_its_session_s_character_set() {
    let status = [1, 4, 0, 0, 0, 0, 0, 0, 0, 4, 8, 0, 8, 0, 8, 0];
    let mut body = vec![9, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, status.len() as u8, 0];
    body.extend(status);
    body.extend(b"shop\0TRUNCATE \"t\xe9\"");
    match decode(Flavor::Mysql, &header(2, 0), &body) {
        Ok(BinlogEvent::Query(query)) => {
            assert_eq!((query.schema.as_str(), &*query.sql), ("shop", "TRUNCATE \"té\""));
            let statements = ddl::classify(&query.sql, &query.schema, query.sql_mode);
            assert_eq!(statements, [ddl::Statement::Truncate(crate::model::TableName::new("shop", "té"))]);
        }
        other => panic!("{other:?}"),
    }
}

/// The signs that a table map gives to numbers (INT for `n`, YEAR for `y`), whose bitmap is `bits`.
fn signs(flavor: Flavor, columns: &str, bits: &[u8]) -> Vec<Option<bool>> {
    let mut body = vec![7, 0, 0, 0, 0, 0, 1, 0, 1, b's', 0, 1, b't', 0, columns.len() as u8];
    body.extend(columns.bytes().map(|column| if column == b'y' { 13 } else { 3 }));
    body.push(0);
    body.resize(body.len() + columns.len().div_ceil(8), 0);
    body.extend([1, bits.len() as u8]);
    body.extend(bits);
    let map = TableMapBody { flavor, table_id: 7, bytes: &body }.parse().expect("a table map");
    map.metadata.unsigned.expect("a bitmap of signs")
}

#[test]
fn year_counts_in_the_signedness_bitmap() {
    assert_eq!(signs(Flavor::Mariadb, "nyn", &[0b1010_0000]), [Some(true), Some(false), Some(true)]);
}

#[test]
fn the_length_of_the_signedness_bitmap_tells_whether_a_year_counts_on_mysql() {
    let (yes, no) = (Some(true), Some(false));
    let mut later = vec![yes; 9];
    later[1] = no;
    assert_eq!(signs(Flavor::Mysql, "nynnnnnnn", &[0b1011_1111, 0b1000_0000]), later);
    let mut earlier = vec![yes; 9];
    earlier[1] = None;
    assert_eq!(signs(Flavor::Mysql, "nynnnnnnn", &[0b1111_1111]), earlier);
}

#[test]
fn a_sign_that_the_bitmap_leaves_open_is_left_to_the_catalog() {
    // INT UNSIGNED, YEAR, INT UNSIGNED with a bit for each, or INT UNSIGNED, YEAR, INT with none for the YEAR.
    assert_eq!(signs(Flavor::Mysql, "nyn", &[0b1010_0000]), [Some(true), None, None]);
    assert_eq!(signs(Flavor::Mysql, "nny", &[0b1100_0000]), [Some(true), Some(true), None]);
}

/// What a file says about the ends of transactions, in order.
fn story(flavor: Flavor, bytes: &[u8]) -> Vec<String> {
    let mut story = Vec::new();
    for event in recorded(flavor, bytes) {
        match event {
            BinlogEvent::Query(query) => {
                let statements = ddl::classify(&query.sql, &query.schema, query.sql_mode);
                story.extend(statements.iter().map(|statement| format!("{statement:?}")));
            }
            BinlogEvent::XaPrepare { one_phase, xid } => story.push(format!("prepared {one_phase} {xid}")),
            BinlogEvent::Xid(_) => story.push("xid".into()),
            BinlogEvent::MariaDbGtid(gtid) if gtid.is_prepared_xa() => story.push("group prepared".into()),
            BinlogEvent::MariaDbGtid(gtid) if gtid.is_completed_xa() => story.push("group completed".into()),
            _ => {}
        }
    }
    story
}

/// Recorded: one XA transaction prepared and then committed, one committed in one phase, a TRUNCATE.
#[test]
fn xa_transactions_are_told_from_committed_ones() {
    let mysql = story(Flavor::Mysql, include_bytes!("../testdata/mysql57_xa.binlog"));
    let truncate = "Truncate(TableName { schema: \"decoder_ev\", table: \"t\" })";
    let two_phases = ["Xa(Start)", "Xa(End)", "prepared false X'67',X'62',7", "Xa(Commit)"];
    let one_phase = ["Xa(Start)", "Xa(End)", "prepared true X'68',X'',1", truncate];
    assert_eq!(mysql, [two_phases, one_phase].concat());
    let mariadb = story(Flavor::Mariadb, include_bytes!("../testdata/mariadb1011_xa.binlog"));
    let two_phases = ["group prepared", "Xa(End)", "prepared false X'67',X'62',7", "group completed", "Xa(Commit)"];
    assert_eq!(mariadb, [&two_phases[..], &["xid", truncate]].concat());
}
