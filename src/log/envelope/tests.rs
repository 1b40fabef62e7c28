//! The envelope: round trips, hostile bytes, exact spellings.

#![allow(clippy::disallowed_methods, reason = "a rate is measured by the machine's clock")]

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;

use super::*;
use crate::model::{Change, Column, ColumnType, DebeziumConnector, Images, Op, Origin, TableSchema, Value};

fn schema(names: &[&str], key: &[usize]) -> Arc<TableSchema> {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        column_type: ColumnType::Text,
        source_type: "text".into(),
        nullable: true,
        charset: None,
        collation: None,
        generated: false,
    };
    let table = TableName::new("shop", "items");
    Arc::new(TableSchema { table, columns: names.iter().map(column).collect(), key: key.to_vec() })
}

fn change(schema: &Arc<TableSchema>, op: Op, before: Option<Vec<Value>>, after: Option<Vec<Value>>) -> Change {
    let images = Images { before, after };
    Change { schema: Arc::clone(schema), op, images, version: 7, commit_us: 1_700_000_000_123_456 }
}

fn encode(change: &Change) -> Encoded {
    Encoder::new("cart", DebeziumConnector::Mysql).encode(change, &Origin::default()).expect("a well-formed change")
}

/// What a value's cell reads as.
fn cell_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::UInt(number) => Some(number.to_string()),
        Value::Float(number) => Some(format!("{number:?}")),
        Value::Double(number) => Some(format!("{number:?}")),
        Value::Text(text) => Some(text.clone()),
        Value::Bytes(bytes) => Some(STANDARD.encode(bytes)),
    }
}

fn owned(row: Option<Row<'_>>) -> Option<Vec<Option<String>>> {
    row.map(|row| row.into_iter().map(|cell| cell.map(std::borrow::Cow::into_owned)).collect())
}

fn decode(json: &str, schema: &TableSchema) -> Result<Vec<Option<String>>, EnvelopeError> {
    cells(json.as_bytes(), schema).map(|(_, after, _)| owned(after).expect("an after image"))
}

#[test]
fn the_envelope_is_debeziums_to_the_byte() {
    let schema = schema(&["id", "order \"no\"", "price", "blob"], &[1, 0]);
    let row = vec![
        Value::UInt(u64::MAX),
        Value::Text("a\"\\\n\u{1}é😀".into()),
        Value::Text("-0.50".into()),
        Value::Bytes(vec![0, 255]),
    ];
    let origin = Origin {
        file: "bin.000003".into(),
        offset: 4711,
        row: 2,
        gtid: Some("3e11fa47-71ca-11e1-9e33-c80aa9429562:5".into()),
        server_id: Some(1),
        replicated_from: None,
        snapshot: false,
        captured_ms: 1_700_000_000_200,
    };
    let encoded = Encoder::new("cart", DebeziumConnector::Mysql)
        .encode(&change(&schema, Op::Insert, None, Some(row)), &origin)
        .expect("encodes");
    let image = r#"{"id":18446744073709551615,"order \"no\"":"a\"\\\n\u0001é😀","price":"-0.50","blob":"AP8="}"#;
    let source = concat!(
        r#"{"version":""#,
        env!("CARGO_PKG_VERSION"),
        r#"","connector":"mysql","name":"cart","ts_ms":1700000000123,"snapshot":"false","db":"shop","table":"items","#,
        r#""server_id":1,"gtid":"3e11fa47-71ca-11e1-9e33-c80aa9429562:5","file":"bin.000003","pos":4711,"row":2}"#
    );
    let expected = format!(r#"{{"before":null,"after":{image},"source":{source},"op":"c","ts_ms":1700000000200}}"#);
    assert_eq!(std::str::from_utf8(&encoded.value).expect("UTF-8"), expected);
    assert_eq!(encoded.key, r#"{"order \"no\"":"a\"\\\n\u0001é😀","id":18446744073709551615}"#.as_bytes());
}

#[test]
fn the_source_block_says_of_each_kind_of_log_what_it_has() {
    let schema = schema(&["id"], &[0]);
    let change = change(&schema, Op::Insert, None, Some(vec![Value::Int(1)]));
    let from = |name: Option<&str>| Origin { offset: 4711, replicated_from: name.map(Into::into), ..Origin::default() };
    for (connector, origin, place) in [
        (DebeziumConnector::Postgres, from(None), r#""schema":"shop","table":"items","lsn":4711,"origin":null}"#),
        (
            DebeziumConnector::Postgres,
            from(Some("node \"b\"")),
            r#""schema":"shop","table":"items","lsn":4711,"origin":"node \"b\""}"#,
        ),
        (DebeziumConnector::Dynamo, Origin::default(), r#""db":"shop","table":"items"}"#),
        (
            DebeziumConnector::Mariadb,
            Origin::default(),
            r#""db":"shop","table":"items","gtid":null,"file":"","pos":0,"row":0}"#,
        ),
    ] {
        let encoded = Encoder::new("cart", connector).encode(&change, &origin).expect("encodes");
        let value = std::str::from_utf8(&encoded.value).expect("UTF-8");
        assert!(value.contains(&format!(r#""snapshot":"false",{place},"op":"c""#)), "{value}");
    }
}

#[test]
fn a_delete_has_the_key_of_its_before_image_and_a_truncate_has_none() {
    let schema = schema(&["id"], &[0]);
    let deleted = encode(&change(&schema, Op::Delete, Some(vec![Value::Int(-5)]), None));
    assert_eq!(deleted.key, br#"{"id":-5}"#.as_slice());
    let truncated = encode(&change(&schema, Op::Truncate, None, None));
    assert!(truncated.key.is_empty());
    assert_eq!(cells(&truncated.value, &schema), Ok((None, None, Op::Truncate)));
}

#[test]
fn an_encoder_keeps_tables_apart() {
    let (one, two) = (schema(&["a"], &[0]), schema(&["b"], &[0]));
    let mut encoder = Encoder::new("cart", DebeziumConnector::Mysql);
    for schema in [&one, &two, &one] {
        let change = change(schema, Op::Read, None, Some(vec![Value::Int(1)]));
        let encoded = encoder.encode(&change, &Origin::default()).expect("encodes");
        assert_eq!(encoded.key, format!(r#"{{"{}":1}}"#, schema.columns[0].name).as_bytes());
    }
}

#[test]
fn an_image_of_the_wrong_width_is_refused() {
    let schema = schema(&["a", "b"], &[0]);
    let narrow = change(&schema, Op::Insert, None, Some(vec![Value::Int(1)]));
    let refused = Encoder::new("cart", DebeziumConnector::Mysql).encode(&narrow, &Origin::default());
    assert!(matches!(refused, Err(EnvelopeError::Shape { columns: 2, values: 1, .. })));
}

#[test]
fn numbers_are_exact_whatever_their_width() {
    let schema = schema(&["a", "b", "c"], &[0]);
    let json = r#"{"after":{"a":18446744073709551615,"b":-9223372036854775808,"c":12345678901234567890123456789012345678},"op":"c"}"#;
    let expected = ["18446744073709551615", "-9223372036854775808", "12345678901234567890123456789012345678"];
    assert_eq!(decode(json, &schema).expect("decodes"), expected.map(|text| Some(text.to_owned())));
}

#[test]
fn other_writers_may_reorder_add_wrap_and_space() {
    let schema = schema(&["a", "b", "c"], &[0]);
    for json in [
        r#"{"after":{"a":1,"b":"x","c":null},"op":"c"}"#,
        r#"{"after":{"c":null,"b":"x","a":1},"op":"c"}"#,
        r#"{"op":"c","after":{"c":null,"extra":{"deep":[1,{"x":"\ud83d\ude00"}]},"a":1,"b":"x"}}"#,
        r#"{"schema":{"type":"struct","fields":[]},"payload":{"before":null,"after":{"a":1,"b":"x","c":null},"op":"c"}}"#,
        "\n{ \"after\" : { \"a\" : 1 ,\t\"b\" : \"x\" , \"c\" : null } , \"op\" : \"c\" } ",
        r#"{"after":{"\u0061":1,"b":"\u0078","c":null},"op":"c"}"#,
    ] {
        assert_eq!(decode(json, &schema), Ok(vec![Some("1".into()), Some("x".into()), None]), "{json}");
    }
}

#[test]
fn a_column_whose_name_needs_escapes_is_found_by_its_name_and_not_by_its_spelling() {
    for (name, right, wrong) in [
        ("back\\slash", r#""back\\slash""#, r#""back\slash""#),
        ("a\\n", r#""a\\n""#, r#""a\n""#),
        ("line\n", r#""line\n""#, "\"line\n\""),
        ("a\":1,\"b", r#""a\":1,\"b""#, r#""a":1,"b""#),
    ] {
        let schema = schema(&[name], &[0]);
        let image = |key: &str| format!(r#"{{"after":{{{key}:2}},"op":"c"}}"#);
        assert_eq!(decode(&image(right), &schema), Ok(vec![Some("2".into())]), "{name:?}");
        assert!(decode(&image(wrong), &schema).is_err(), "{wrong} is not {name:?}");
    }
}

#[test]
fn what_is_missing_or_ambiguous_is_an_error() {
    let schema = schema(&["a", "b"], &[0]);
    let image = r#"{"a":1,"b":2}"#;
    let error = |json: &str| cells(json.as_bytes(), &schema).expect_err(json);
    assert!(
        matches!(error(r#"{"after":{"a":1},"op":"c"}"#), EnvelopeError::MissingColumn { column, .. } if column == "b")
    );
    assert!(matches!(error(r#"{"after":{"a":1,"a":2,"b":3},"op":"c"}"#), EnvelopeError::RepeatedColumn { .. }));
    assert!(matches!(error(r#"{"after":{"a":1,"b":{}},"op":"c"}"#), EnvelopeError::NestedColumn { .. }));
    assert_eq!(error(&format!(r#"{{"after":{image}}}"#)), EnvelopeError::NoOperation);
    assert_eq!(error(&format!(r#"{{"after":{image},"op":"m"}}"#)), EnvelopeError::UnknownOperation);
    assert_eq!(error(&format!(r#"{{"before":{image},"op":"u"}}"#)), EnvelopeError::NoImage { op: 'u', image: "after" });
    assert_eq!(error(&format!(r#"{{"after":{image},"op":"d"}}"#)), EnvelopeError::NoImage { op: 'd', image: "before" });
    assert_eq!(error(r#"{"op":"r"}"#), EnvelopeError::NoImage { op: 'r', image: "after" });
    for json in [
        "",
        "null",
        "[]",
        "{",
        r#"{"op":"t"}x"#,
        r#"{"op":"t",}"#,
        r#"{"op":"t","op":"c"}"#,
        r#"{"op":"t","x":01}"#,
        r#"{"op":"t","x":1.}"#,
        r#"{"op":"t","x":-}"#,
        r#"{"op":"t","x":1e}"#,
        r#"{"op":"t","x":nul}"#,
        r#"{"op":"t","x":"\ud800"}"#,
        r#"{"op":"t","x":"\ud800\u0041"}"#,
        r#"{"op":"t","x":"\udc00"}"#,
        r#"{"op":"t","x":"\x"}"#,
        "{\"op\":\"t\",\"x\":\"\n\"}",
        r#"{"payload":{"payload":{"op":"t"}}}"#,
    ] {
        assert!(cells(json.as_bytes(), &schema).is_err(), "{json}");
    }
    assert_eq!(cells(b"{\"op\":\"\xff\"}", &schema), Err(EnvelopeError::NotUtf8 { at: 7 }));
    let deep = format!(r#"{{"op":"t","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(cells(deep.as_bytes(), &schema), Err(EnvelopeError::Malformed { expected: "less nesting", .. })));
}

#[test]
fn floats_without_a_json_spelling_are_words_and_not_lost() {
    let schema = schema(&["a", "b", "c", "d"], &[0]);
    let row = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0].map(Value::Double).to_vec();
    let encoded = encode(&change(&schema, Op::Insert, None, Some(row)));
    let json = std::str::from_utf8(&encoded.value).expect("UTF-8");
    let expected = ["NaN", "Infinity", "-Infinity", "-0.0"].map(|text| Some(text.to_owned()));
    assert_eq!(decode(json, &schema).expect("decodes"), expected);
}

#[test]
fn a_row_and_its_merged_sibling_share_a_partition_whatever_their_column_is_called() {
    let (users, addresses) = (schema(&["id", "x"], &[0]), schema(&["y", "user_id"], &[1]));
    for id in 0..100_i64 {
        let user = change(&users, Op::Insert, None, Some(vec![Value::Int(id), Value::Null]));
        let address = change(&addresses, Op::Delete, Some(vec![Value::Null, Value::UInt(id.unsigned_abs())]), None);
        assert_eq!(partition(&user, 8), partition(&address, 8));
    }
    let hashed = change(&users, Op::Insert, None, Some(vec![Value::Int(1), Value::Null]));
    assert_eq!(key_bytes(&hashed), b"\0\0\0\0\0\0\0\x011");
    assert_eq!(partition(&hashed, 8), 5, "the partitioner is part of the stored format and must not change");
    assert_eq!(partition(&hashed, 1), 0);
}

#[test]
fn composite_keys_do_not_run_together() {
    let schema = schema(&["a", "b"], &[0, 1]);
    let of = |a: &str, b: &str| {
        key_bytes(&change(&schema, Op::Insert, None, Some(vec![Value::Text(a.into()), Value::Text(b.into())])))
    };
    assert_ne!(of("ab", "c"), of("a", "bc"));
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<u64>().prop_map(Value::UInt),
        prop::num::f32::NORMAL.prop_map(Value::Float),
        (prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO).prop_map(Value::Double),
        any::<Vec<char>>().prop_map(|chars| Value::Text(chars.into_iter().collect())),
        "[\\x00-\\x7f\"\\\\]{0,40}".prop_map(Value::Text),
        any::<Vec<u8>>().prop_map(Value::Bytes),
    ]
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(
        names in prop::collection::btree_set(".{0,12}", 1..8),
        seed in any::<prop::sample::Index>(),
        values in prop::collection::vec((any_value(), any_value()), 8),
    ) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let schema = schema(&names, &[seed.index(names.len())]);
        let (before, after): (Vec<Value>, Vec<Value>) = values.into_iter().take(names.len()).unzip();
        let encoded = encode(&change(&schema, Op::Update, Some(before.clone()), Some(after.clone())));
        let decoded = cells(&encoded.value, &schema).expect("decodes");
        prop_assert_eq!(decoded.2, Op::Update);
        prop_assert_eq!(owned(decoded.0), Some(before.iter().map(cell_of).collect()));
        prop_assert_eq!(owned(decoded.1), Some(after.iter().map(cell_of).collect()));
        // An independent parser agrees, on the value and on the key.
        let parsed: serde_json::Value = serde_json::from_slice(&encoded.value).expect("JSON");
        let key: serde_json::Value = serde_json::from_slice(&encoded.key).expect("JSON");
        for (name, value) in names.iter().zip(&after) {
            let read = &parsed["after"][*name];
            let text = if read.is_null() { None } else { read.as_str().map(str::to_owned).or(Some(read.to_string())) };
            prop_assert_eq!(text.is_some(), cell_of(value).is_some());
            if matches!(value, Value::Text(_) | Value::Bytes(_) | Value::Int(_) | Value::UInt(_) | Value::Bool(_)) {
                prop_assert_eq!(text, cell_of(value));
            }
        }
        prop_assert_eq!(key.as_object().map(serde_json::Map::len), Some(1));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>()) {
        let _ = cells(&bytes, &schema(&["a", "b"], &[0]));
    }

    #[test]
    fn damaged_envelopes_never_panic(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
        text in "[\\x00-\\x7f\"\\\\]{0,20}",
    ) {
        let schema = schema(&["a", "b"], &[0]);
        let row = vec![Value::Text(text), Value::Double(1.5e300)];
        let encoded = encode(&change(&schema, Op::Insert, None, Some(row)));
        let mut damaged = encoded.value.to_vec();
        let place = at.index(damaged.len());
        damaged[place] = byte;
        let _ = cells(&damaged, &schema);
        let _ = cells(&encoded.value[..cut.index(encoded.value.len())], &schema);
    }
}

/// `cargo test --release --lib log::envelope -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
fn rows_per_second() {
    const ROWS: u32 = 1_000_000;
    let names = ["id", "session_id", "sku", "title", "quantity", "price", "weight", "added_at", "payload"];
    let schema = schema(&names, &[0]);
    let row = vec![
        Value::UInt(1_234_567),
        Value::Int(98_765),
        Value::Text("SKU-00012345".into()),
        Value::Text("A \"quoted\" title, with an é".into()),
        Value::Int(3),
        Value::Text("1234.50".into()),
        Value::Double(0.125),
        Value::Text("2024-05-30T10:00:00.123456Z".into()),
        Value::Text(r#"{"color": "red", "size": "L"}"#.into()),
    ];
    let insert = change(&schema, Op::Insert, None, Some(row));
    let mut origin = Origin {
        file: "bin.000003".into(),
        gtid: Some("3e11fa47-71ca-11e1-9e33-c80aa9429562:5".into()),
        ..Origin::default()
    };
    let mut encoder = Encoder::new("cart", DebeziumConnector::Mysql);
    let (start, mut bytes) = (std::time::Instant::now(), 0);
    for row in 0..ROWS {
        origin.row = row;
        bytes += encoder.encode(&insert, &origin).expect("encodes").value.len();
    }
    let rate = |start: std::time::Instant| f64::from(ROWS) / start.elapsed().as_secs_f64();
    println!("encode: {:.0} rows/s, {} bytes a row", rate(start), bytes / ROWS as usize);
    let value = encoder.encode(&insert, &origin).expect("encodes").value;
    let (start, mut cells_seen) = (std::time::Instant::now(), 0);
    for _ in 0..ROWS {
        cells_seen += cells(std::hint::black_box(&value), &schema).expect("decodes").1.map_or(0, |row| row.len());
    }
    println!("decode: {:.0} rows/s, {cells_seen} cells", rate(start));
}
