//! Records as connectors of Debezium 3.3 write them.

use super::*;
use crate::{
    log::envelope::{self, Row},
    model::{ColumnType, Op, SourcePlace},
};

const KEY: &str = r#"{"a":2,"b":"y"}"#;

/// A change of MySQL's, without schemas.
fn mysql(op: &str, before: &str, after: &str, pos: u64, ts_us: i64) -> String {
    format!(
        r#"{{"before":{before},"after":{after},"source":{{"version":"3.3.1.Final","connector":"mysql","name":"legacy","ts_ms":{},
        "snapshot":"false","db":"shop","sequence":null,"ts_us":{ts_us},"ts_ns":{ts_us}000,"table":"pairs","server_id":26307,
        "gtid":"fcf4f69e-e5d9-11f1-87dd-02fc00000001:{pos}","file":"binlog.000001","pos":{pos},"row":0,"thread":14,"query":null}},
        "transaction":null,"op":"{op}","ts_ms":1795286052725,"ts_us":1795286052725641,"ts_ns":1795286052725641446}}"#,
        ts_us / 1000
    )
}

fn row(v: &str) -> String {
    format!(r#"{{"a":2,"b":"y","v":{v}}}"#)
}

fn change<'a>(key: &'a str, value: &'a str) -> DebeziumChange<'a> {
    changed(message(Some(key.as_bytes()), Some(value.as_bytes())))
}

fn changed(read: Result<DebeziumMessage<'_>, DebeziumError>) -> DebeziumChange<'_> {
    let change = match read.expect("sound") {
        DebeziumMessage::Change(change) => Some(*change),
        DebeziumMessage::Tombstone => None,
    };
    change.expect("a change")
}

fn shape_of(change: &DebeziumChange<'_>, known: &[(&str, ColumnType)], needs_before: bool) -> RecordShape {
    let sample = Sample::of(change).expect("sound").expect("shows the table");
    let known: Known = known.iter().map(|(name, column_type)| ((*name).to_owned(), column_type.clone())).collect();
    let reads: Vec<String> = sample.schema(&known).columns.into_iter().map(|column| column.name).collect();
    sample.shape(&known, &reads, needs_before)
}

/// An image's cells.
type Cells = Option<Vec<Option<String>>>;

fn cells(shape: &RecordShape, value: &[u8]) -> (Cells, Cells, Op) {
    let owned = |row: Row<'_>| row.into_iter().map(|cell| cell.map(Cow::into_owned)).collect();
    let (before, after, op) = envelope::cells(value, &shape.schema).expect("an envelope of ours");
    (before.map(owned), after.map(owned), op)
}

#[test]
fn a_change_without_schemas_becomes_a_record_of_ours() {
    let value = mysql("u", &row("\"12.50\""), &row("\"12.75\""), 2378, 1_795_286_052_710_751);
    let change = change(KEY, &value);
    assert_eq!(
        (change.op, change.source.commit_us, change.source.is_snapshot),
        (Op::Update, 1_795_286_052_710_751, false)
    );
    let place = SourcePlace::Mysql { file: "binlog.000001".into(), offset: 2378, row: 0 };
    assert_eq!(change.source.place, Some(place));
    assert_eq!(change.source.transaction, Some(("fcf4f69e-e5d9-11f1-87dd-02fc00000001".into(), 2378)));
    let shape = shape_of(&change, &[("v", ColumnType::Numeric { precision: 12, scale: 2 })], true);
    assert_eq!(shape.schema.table.to_string(), "shop.pairs");
    let (key, value) = shape.record(&change).expect("fits");
    assert_eq!(key, KEY);
    let text = |v: &str| Some(vec![Some("2".to_owned()), Some("y".to_owned()), Some(v.to_owned())]);
    assert_eq!(cells(&shape, &value), (text("12.50"), text("12.75"), Op::Update));
}

#[test]
fn a_tombstone_is_no_change_and_what_is_no_envelope_is_refused() {
    for value in [None, Some(&b""[..]), Some(&b"null"[..]), Some(&br#"{"schema":null,"payload":null}"#[..])] {
        assert_eq!(message(Some(KEY.as_bytes()), value), Ok(DebeziumMessage::Tombstone));
    }
    let unwrapped = message(Some(KEY.as_bytes()), Some(br#"{"a":2,"b":"y","v":1}"#)).expect_err("unwrapped");
    assert!(unwrapped.to_string().contains("ExtractNewRecordState"), "{unwrapped}");
    let other = mysql("c", "null", &row("1"), 1, 1).replace("\"mysql\"", "\"oracle\"");
    assert!(message(None, Some(other.as_bytes())).expect_err("unknown").to_string().contains("`oracle`"));
    let value = mysql("c", "null", &row("1"), 1, 1);
    let keyless = changed(message(None, Some(value.as_bytes())));
    assert!(Sample::of(&keyless).expect_err("no key").to_string().contains("message.key.columns"));
}

#[test]
fn a_second_snapshot_behind_changes_is_told_from_the_first_and_from_an_incremental_one() {
    let of = |snapshot: &str| {
        mysql("u", &row("1"), &row("2"), 4, 500)
            .replace("\"snapshot\":\"false\"", &format!("\"snapshot\":\"{snapshot}\""))
    };
    let mut order = Order::default();
    for (snapshot, is_second) in [
        ("first", false),
        ("true", false),
        ("last", false),
        ("false", false),
        ("incremental", false),
        ("last_in_data_collection", true),
        ("false", false),
    ] {
        let value = of(snapshot);
        let source = change(KEY, &value).source;
        assert_eq!(order.is_second_snapshot(&source), is_second, "{snapshot}");
        order.admit(&source, 1_000).expect("one connector");
    }
}

#[test]
fn what_is_sent_again_gets_no_version_and_a_snapshot_row_the_newest() {
    let mut order = Order::default();
    let mut admit = |pos, ts_us, snapshot: &str| {
        let value = mysql("u", &row("1"), &row("2"), pos, ts_us).replace("\"snapshot\":\"false\"", snapshot);
        order.admit(&change(KEY, &value).source, 1_000_000).expect("one connector")
    };
    let stream = "\"snapshot\":\"false\"";
    assert_eq!(admit(4, 500, "\"snapshot\":\"first\""), Verdict::New(500));
    assert_eq!(admit(10, 500, stream), Verdict::New(501), "two changes at one time have their order");
    assert_eq!(admit(20, 600, stream), Verdict::New(600));
    assert_eq!(admit(10, 500, stream), Verdict::Seen);
    assert_eq!(admit(20, 600, stream), Verdict::New(601), "the delete and the create of a changed key have one place");
    assert_eq!(admit(5, 700, "\"snapshot\":\"incremental\""), Verdict::New(700));
    assert_eq!(admit(10, 500, stream), Verdict::Seen, "an incremental snapshot does not hide what was seen");
    assert_eq!(
        admit(30, 9_000_000, stream),
        Verdict::New(1_000_000),
        "a clock that is ahead raises no version into the future"
    );
    let other = mysql("u", &row("1"), &row("2"), 40, 1).replace("\"legacy\"", "\"other\"");
    let error = order.admit(&change(KEY, &other).source, 1).expect_err("two connectors");
    assert!(error.to_string().contains("`legacy` and `other`"), "{error}");
}

/// A change of PostgreSQL's.
fn postgres(op: &str, before: &str, after: &str) -> String {
    mysql(op, before, after, 1, 1)
        .replace("\"mysql\"", "\"postgresql\"")
        .replace("\"sequence\":null", r#""sequence":"[\"31654680\",\"31654700\"]","schema":"public","lsn":31654700"#)
}

#[test]
fn an_image_that_transforms_need_must_be_whole() {
    let key_only = r#"{"a":2,"b":"y","v":null}"#;
    let (update, delete) = (postgres("u", "null", &row("2")), postgres("d", key_only, "null"));
    for value in [&update, &delete] {
        let change = change(KEY, value);
        let place = SourcePlace::Postgres { last_commit: 31_654_680, lsn: 31_654_700 };
        assert_eq!(change.source.place, Some(place));
        let error = shape_of(&change, &[], true).record(&change).expect_err("not whole");
        assert!(error.to_string().contains("REPLICA IDENTITY FULL"), "{error}");
        let shape = shape_of(&change, &[], false);
        let (_, record) = shape.record(&change).expect("the key is enough");
        assert!(matches!(cells(&shape, &record).2, Op::Insert | Op::Delete));
    }
    let toast = postgres("u", "null", &row("\"__debezium_unavailable_value\""));
    let toast = change(KEY, &toast);
    assert!(matches!(shape_of(&toast, &[], false).record(&toast), Err(DebeziumError::Unavailable { .. })));
    let sample = Sample::of(&toast).expect("sound").expect("shows the table");
    assert!(sample.shape(&Known::new(), &[], false).record(&toast).is_ok(), "no transform reads the column");
}

#[test]
fn a_key_that_is_not_the_rows_is_refused() {
    let value = mysql("u", &row("1"), r#"{"a":3,"b":"y","v":1}"#, 1, 1);
    let changed = change(KEY, &value);
    assert_eq!(shape_of(&changed, &[], false).record(&changed), Err(DebeziumError::KeyChanged));
    let value = mysql("c", "null", &row("1"), 1, 1);
    let shape = shape_of(&change(KEY, &value), &[], false);
    assert_eq!(shape.record(&change(r#"{"a":2}"#, &value)), Err(DebeziumError::OtherKey));
    let error = shape.record(&change(r#"{"a":2,"b":null}"#, &value)).expect_err("null");
    assert_eq!(error, DebeziumError::NullKey { column: "b".into() });
}

/// Fields of a schema, and their values, with what becomes of them.
const DESCRIBED: [(&str, &str, &str, Option<&str>); 14] = [
    (r#""type":"int32","name":"io.debezium.time.Date""#, "19873", "date", Some("2024-05-30")),
    (
        r#""type":"int64","name":"io.debezium.time.Timestamp""#,
        "1717063200123",
        "timestamp",
        Some("2024-05-30T10:00:00.123000Z"),
    ),
    (r#""type":"int64","name":"io.debezium.time.MicroTime""#, "-45296789000", "interval", Some("-12:34:56.789000")),
    (
        r#""type":"string","name":"io.debezium.time.ZonedTimestamp""#,
        "\"2024-05-30T10:00:00Z\"",
        "timestamptz",
        Some("2024-05-30T10:00:00Z"),
    ),
    (
        r#""type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2","connect.decimal.precision":"12"}"#,
        "\"BOI=\"",
        "numeric(12,2)",
        Some("12.50"),
    ),
    (
        r#""type":"struct","name":"io.debezium.data.VariableScaleDecimal""#,
        r#"{"scale":1,"value":"fQ=="}"#,
        "numeric",
        Some("12.5"),
    ),
    (
        r#""type":"bytes","name":"io.debezium.data.Bits","parameters":{"length":"12"}"#,
        "\"FgE=\"",
        "bytea",
        Some("ARY="),
    ),
    (r#""type":"string","name":"io.debezium.data.Json""#, r#""{\"a\": 1}""#, "jsonb", Some("{\"a\": 1}")),
    (r#""type":"array","items":{"type":"int32","optional":true}"#, "[1,null]", "integer[]", Some("{\"1\",NULL}")),
    (r#""type":"int16""#, "1", "smallint", Some("1")),
    (r#""type":"boolean""#, "true", "boolean", Some("true")),
    (r#""type":"bytes""#, "\"AP8Q\"", "bytea", Some("AP8Q")),
    (r#""type":"int64","name":"io.debezium.time.MicroDuration""#, "1", "interval", None),
    (r#""type":"double","parameters":{"__debezium.source.column.type":"DECIMAL"}"#, "1.5", "double precision", None),
];

#[test]
fn schemas_say_what_values_mean() {
    for (field, json, sql, expected) in DESCRIBED {
        let schema = format!(
            r#"{{"type":"struct","fields":[{{"type":"struct","fields":[{{"type":"int32","optional":false,"field":"a"}},
            {{{field},"optional":true,"field":"v"}}],"optional":true,"field":"after"}}]}}"#
        );
        let payload = mysql("c", "null", &format!(r#"{{"a":1,"v":{json}}}"#), 1, 1);
        let value = format!(r#"{{"schema":{schema},"payload":{payload}}}"#);
        let key = r#"{"schema":{"type":"struct","fields":[{"type":"int32","optional":false,"field":"a"}]},"payload":{"a":1}}"#;
        let change = change(key, &value);
        let shape = shape_of(&change, &[("v", ColumnType::Text)], false);
        assert_eq!(shape.schema.columns[1].column_type.sql(), sql, "{field}");
        let record = shape.record(&change);
        let Some(expected) = expected else {
            let error = record.expect_err(field);
            assert!(error.to_string().contains("handling.mode"), "{error}");
            continue;
        };
        let (key, value) = record.expect(field);
        assert_eq!(key, "{\"a\":1}");
        let after = cells(&shape, &value).1.expect("an image");
        assert_eq!(after[1].as_deref(), Some(expected), "{field}");
    }
}
