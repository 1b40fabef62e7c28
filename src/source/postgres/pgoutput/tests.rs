//! Messages byte by byte, as the protocol's documentation has them, and damaged ones.

use proptest::prelude::*;

use super::{fuzz::message as fuzzed, *};

fn begin() -> Vec<u8> {
    let mut bytes = vec![b'B'];
    bytes.extend(0x16_b374_d848_u64.to_be_bytes());
    bytes.extend(0_i64.to_be_bytes());
    bytes.extend(733_u32.to_be_bytes());
    bytes
}

fn relation_bytes() -> Vec<u8> {
    let mut bytes = vec![b'R'];
    bytes.extend(16_385_u32.to_be_bytes());
    bytes.extend(b"public\0items\0d");
    bytes.extend(2_u16.to_be_bytes());
    for (flags, name, oid) in [(1_u8, "id", 23_u32), (0, "na\u{ef}f", 25)] {
        bytes.push(flags);
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.extend(oid.to_be_bytes());
        bytes.extend((-1_i32).to_be_bytes());
    }
    bytes
}

fn tuple_bytes(cells: &[Option<&str>]) -> Vec<u8> {
    let mut bytes = u16::try_from(cells.len()).expect("few").to_be_bytes().to_vec();
    for cell in cells {
        match cell {
            Some("\u{1}unchanged") => bytes.push(b'u'),
            Some(text) => {
                bytes.push(b't');
                bytes.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
                bytes.extend(text.as_bytes());
            }
            None => bytes.push(b'n'),
        }
    }
    bytes
}

fn update_bytes() -> Vec<u8> {
    let mut bytes = vec![b'U'];
    bytes.extend(16_385_u32.to_be_bytes());
    bytes.push(b'K');
    bytes.extend(tuple_bytes(&[Some("1"), None]));
    bytes.push(b'N');
    bytes.extend(tuple_bytes(&[Some("2"), Some("\u{1}unchanged")]));
    bytes
}

fn all() -> Vec<Vec<u8>> {
    let with = |kind: u8, rest: &[u8]| [&[kind], rest].concat();
    let insert = [&16_385_u32.to_be_bytes()[..], b"N", &tuple_bytes(&[Some("1"), Some("x")])].concat();
    let delete = [&16_385_u32.to_be_bytes()[..], b"O", &tuple_bytes(&[Some("1"), None])].concat();
    let truncate = [&2_u32.to_be_bytes()[..], &[3], &7_u32.to_be_bytes(), &8_u32.to_be_bytes()].concat();
    let commit = [&[0; 9][..], &5_u64.to_be_bytes(), &1_i64.to_be_bytes()].concat();
    let origin = [&[0; 8][..], b"elsewhere\0"].concat();
    let logical = [&[1; 9][..], b"cutover:heartbeat\0", &2_u32.to_be_bytes(), b"hi"].concat();
    let kind = [&99_u32.to_be_bytes()[..], b"public\0mood\0"].concat();
    vec![
        begin(),
        relation_bytes(),
        update_bytes(),
        with(b'I', &insert),
        with(b'D', &delete),
        with(b'T', &truncate),
        with(b'C', &commit),
        with(b'O', &origin),
        with(b'M', &logical),
        with(b'Y', &kind),
    ]
}

#[test]
fn a_transaction_begins_with_its_commit_time_and_number() {
    let expected = Message::Begin { commit: Lsn(0x16_b374_d848), commit_us: 946_684_800_000_000, xid: 733 };
    assert_eq!(Message::decode(&begin()), Ok(expected));
}

#[test]
fn a_relation_names_its_columns_and_its_identity() {
    let column = |key, name: &str, type_oid| RelationColumn { key, name: name.into(), type_oid, type_modifier: -1 };
    let expected = Relation {
        id: 16_385,
        schema: "public".into(),
        table: "items".into(),
        identity: ReplicaIdentity::Default,
        columns: vec![column(true, "id", 23), column(false, "na\u{ef}f", 25)],
    };
    assert_eq!(Message::decode(&relation_bytes()), Ok(Message::Relation(expected)));
}

#[test]
fn an_update_tells_unchanged_values_from_nulls() {
    let expected = Message::Update {
        relation: 16_385,
        old: Some(Old::Key(vec![Cell::Text(b"1"), Cell::Null])),
        new: vec![Cell::Text(b"2"), Cell::Unchanged],
    };
    assert_eq!(Message::decode(&update_bytes()), Ok(expected));
}

#[test]
fn every_message_is_read_to_its_last_byte() {
    for bytes in all() {
        let kind = char::from(bytes[0]);
        assert!(Message::decode(&bytes).is_ok(), "{kind}");
        for length in 0..bytes.len() {
            assert!(Message::decode(&bytes[..length]).is_err(), "{kind} cut off at {length}");
        }
        assert!(Message::decode(&[&bytes[..], &[0]].concat()).is_err(), "{kind} with a byte more");
    }
}

#[test]
fn what_is_unknown_is_refused() {
    assert_eq!(Message::decode(b"S\0\0\0\x01\x01"), Err(DecodeError::Unknown { kind: b'S' }), "nothing is streamed");
    assert_eq!(Frame::decode(b"r"), Err(DecodeError::Unknown { kind: b'r' }));
    assert_eq!(Message::decode(b""), Err(DecodeError::Truncated { what: "kind" }));
}

#[test]
fn a_count_that_the_message_cannot_hold_makes_no_room() {
    let bytes = [&b"T"[..], &u32::MAX.to_be_bytes(), &[0]].concat();
    assert_eq!(Message::decode(&bytes), Err(DecodeError::Truncated { what: "relations" }));
}

#[test]
fn a_keepalive_says_how_far_the_server_has_come() {
    let bytes = [&b"k"[..], &7_u64.to_be_bytes(), &1_i64.to_be_bytes(), &[1]].concat();
    let expected = Frame::Keepalive { end: Lsn(7), at_us: 946_684_800_000_001, answer: true };
    assert_eq!(Frame::decode(&bytes), Ok(expected));
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzzed(&bytes);
        let _ = Message::decode(&bytes);
    }

    #[test]
    fn damage_to_a_message_never_panics(which in 0..10_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = all().swap_remove(which);
        let place = at.index(bytes.len());
        bytes[place] = byte;
        let frame = [&b"w"[..], &[0; 24], &bytes].concat();
        fuzzed(&frame);
    }

    #[test]
    fn rows_come_out_as_they_went_in(cells in proptest::collection::vec(proptest::option::of("\\PC{0,12}"), 0..20)) {
        let given: Vec<Option<&str>> = cells.iter().map(|cell| cell.as_deref()).collect();
        let bytes = [&b"I\0\0\0\x01N"[..], &tuple_bytes(&given)].concat();
        let expected: Vec<Cell<'_>> =
            given.iter().map(|cell| cell.map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))).collect();
        prop_assert_eq!(Message::decode(&bytes), Ok(Message::Insert { relation: 1, new: expected }));
    }
}
