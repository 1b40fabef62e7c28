//! Every type of a PostgreSQL source: `init` writes the target's tables, and what the snapshot copies and what the
//! stream brings is what the source has, byte for byte.

use std::{fs, sync::Arc, time::Duration};

use cutover::{
    cli::init::{self, InitArgs},
    database::postgres::{
        Address, Session,
        scan::{Scanner, Watermark},
        tables,
    },
    model::{Lsn, Value},
    observe::now_us,
    source::{
        CaptureEvent, ChangeStream as _,
        postgres::{PostgresSourceConfig, PostgresStream, options},
    },
};

use crate::{
    pipeline_postgres::assert_equal,
    support::{Postgres, Workspace},
};

/// What columns are made of, besides the built-in types.
const TYPES: &str = "
    CREATE EXTENSION hstore;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s \"fine\"');
    CREATE DOMAIN short AS varchar(8) CHECK (VALUE <> 'bad');
    CREATE TYPE pair AS (a integer, b text);
    CREATE TYPE floats AS RANGE (SUBTYPE = float8);
    CREATE DOMAIN amounts AS numeric(10,2)[]";

/// A type and values of it, as SQL.
const CASES: &[(&str, &[&str])] = &[
    ("smallint", &["-32768", "32767"]),
    ("integer", &["-2147483648", "2147483647"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    (
        "numeric",
        &["'NaN'", "0.00", "123456789012345678901234567890.1234567890123456789012345", "-0.000000000000000000000001"],
    ),
    ("numeric(12,4)", &["'NaN'", "-12.3400", "99999999.9999"]),
    ("real", &["'NaN'", "'Infinity'", "1.1", "-3.4028235e38", "1e-45"]),
    ("double precision", &["'-Infinity'", "0.1", "1.7976931348623157e308", "5e-324", "-0.0"]),
    ("money", &["'-1234567.89'", "'92233720368547758.07'"]),
    ("boolean", &["true", "false"]),
    ("text", &["''", "E'tab\\t \"q\" \\\\ \\u00e9 \\U0001F600'", "repeat('long \u{e4}', 5000)"]),
    ("varchar(10)", &["'ten chars'", "' '"]),
    ("char(5)", &["'ab'", "''"]),
    ("\"char\"", &["'x'"]),
    ("name", &["'a name'"]),
    ("bytea", &["''", "'\\x00ff5c27'", "decode(repeat('00ab', 3000), 'hex')"]),
    ("date", &["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'5874897-12-31'", "'2024-02-29'"]),
    ("time", &["'00:00'", "'24:00:00'", "'23:59:59.999999'"]),
    ("time(3)", &["'10:00:00.125'"]),
    ("timetz", &["'10:00:00.5+05:30'", "'24:00:00-15:59'"]),
    (
        "timestamp",
        &["'infinity'", "'4713-01-01 00:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'2024-05-30 10:00:00.5'"],
    ),
    ("timestamp(0)", &["'2024-05-30 10:00:01'"]),
    (
        "timestamptz",
        &[
            "'-infinity'",
            "'0001-01-01 00:00:00+00 BC'",
            "'2024-05-30 10:00:00.123456+05:30'",
            "'12345-01-01 00:00:00Z'",
        ],
    ),
    ("interval", &["'1 year 2 mons -3 days 04:05:06.789'", "'-178000000 years'", "'0'", "'-00:00:00.000001'"]),
    ("interval day to second(2)", &["'3 04:05:06.78'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("json", &["'{\"b\":1,  \"a\":[1.10, 12345678901234567890.123], \"b\":2}'", "'null'"]),
    ("jsonb", &["'{\"b\":1, \"a\":[1.10, 12345678901234567890.123, 1e400]}'", "'null'", "'\"\\u00e9\"'"]),
    ("integer[]", &["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1]={7,8}'"]),
    ("text[]", &["ARRAY['a,b', NULL, '\"q\"', '', 'NULL', E'back\\\\slash']"]),
    ("bytea[]", &["ARRAY['\\x00ff'::bytea, NULL]"]),
    ("timestamptz[]", &["ARRAY['2024-05-30 10:00:00+05:30'::timestamptz, 'infinity']"]),
    ("numeric(6,2)[]", &["'{1.50,NaN}'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'"]),
    ("tstzrange", &["'[2024-01-01 00:00:00+05:30,infinity)'"]),
    ("int4multirange", &["'{[1,3),[5,9)}'", "'{}'"]),
    ("mood", &["'sad'", "'it''s \"fine\"'"]),
    ("mood[]", &["'{sad,NULL,ok}'"]),
    ("short", &["'good'"]),
    ("amounts", &["'{1.50,2.00}'"]),
    ("pair", &["ROW(1, 'x, \"y\"')", "ROW(NULL, NULL)"]),
    ("pair[]", &["ARRAY[ROW(1, 'a')::pair, ROW(2, 'b\\c')::pair]"]),
    ("floats", &["'[0.1,0.30000000000000004]'"]),
    ("hstore", &["'a=>1, b=>NULL, \"c d\"=>\"e\\\"f\"'"]),
    ("inet", &["'192.168.1.5/24'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(5)", &["B'10101'"]),
    ("bit varying(8)", &["B''", "B'110'"]),
    ("point", &["'(1.1,-0.30000000000000004)'"]),
    ("line", &["'{1,-1,0}'"]),
    ("lseg", &["'[(0,0),(1,1)]'"]),
    ("box", &["'(1,1),(0,0)'"]),
    ("path", &["'((0,0),(1,1))'", "'[(0,0),(1,1)]'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("circle", &["'<(0,0),1.5>'"]),
    ("tsvector", &["'''a b'':1A cat:3B'"]),
    ("tsquery", &["'fat & (rat | !cat)'"]),
    ("xml", &["'<a b=\"c\">d<!-- e --></a>'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("oid", &["4294967295"]),
    ("regclass", &["'pg_class'"]),
    ("regproc", &["'array_in'"]),
    ("regprocedure", &["'lower(text)'"]),
    ("regoper", &["'||/'"]),
    ("regoperator", &["'+(integer,integer)'"]),
    ("regtype", &["'integer'", "'character varying'"]),
    ("regrole", &["'pg_monitor'"]),
    ("regnamespace", &["'pg_catalog'"]),
    ("regconfig", &["'english'"]),
    ("regdictionary", &["'simple'"]),
    ("regtype[]", &["'{integer,\"double precision\"}'"]),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
];

/// Where each kind of row begins.
const SNAPSHOT: usize = 0;
const INSERTED: usize = 1_000;
const UPDATED: usize = 2_000;

fn rows() -> usize {
    CASES.iter().map(|(_, values)| values.len()).max().unwrap()
}

async fn create(source: &Postgres) {
    // A database whose settings differ from cutover's own in all that could change a value's text.
    for setting in [
        "timezone = 'Asia/Kolkata'",
        "datestyle = 'German, DMY'",
        "intervalstyle = 'sql_standard'",
        "bytea_output = 'escape'",
        "extra_float_digits = -3",
        "xmlbinary = 'hex'",
    ] {
        source.exec(&format!("ALTER DATABASE {} SET {setting}", source.database())).await;
    }
    source.exec(TYPES).await;
    let columns: Vec<String> = CASES.iter().enumerate().map(|(n, (kind, _))| format!("c{n} {kind}")).collect();
    let generated = "twice integer GENERATED ALWAYS AS (id * 2) STORED";
    source.exec(&format!("CREATE TABLE kinds (id integer PRIMARY KEY, {}, {generated})", columns.join(", "))).await;
}

/// Values of every case, row by row.
async fn fill(source: &Postgres, from: usize) {
    for row in 0..rows() {
        let values: Vec<&str> = CASES.iter().map(|(_, values)| values.get(row).copied().unwrap_or("NULL")).collect();
        source.exec(&format!("INSERT INTO kinds VALUES ({}, {})", from + row, values.join(", "))).await;
    }
}

async fn update(source: &Postgres) {
    for row in 0..rows() {
        let id = UPDATED + row;
        source.exec(&format!("INSERT INTO kinds (id) VALUES ({id})")).await;
        for (n, (_, values)) in CASES.iter().enumerate() {
            if let Some(value) = values.get(row) {
                source.exec(&format!("UPDATE kinds SET c{n} = {value} WHERE id = {id}")).await;
            }
        }
    }
}

async fn every_type_arrives(source: Postgres, target: Postgres) {
    create(&source).await;
    fill(&source, SNAPSHOT).await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("move");
    let args = InitArgs {
        source: source.url(),
        target: target.url(),
        tables: Vec::new(),
        schema: None,
        engine: None,
        out: out.clone(),
    };
    init::run(args).await.unwrap();
    target.exec(&fs::read_to_string(out.join("schema.sql")).unwrap()).await;

    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["kinds"]);
    work.transform("kinds", &fs::read_to_string(out.join("transforms/kinds.sql")).unwrap());
    let synced = async || {
        let mut worker = work.start(&["--until-synced"]);
        let status = worker.wait_exit(Duration::from_secs(90)).await;
        assert!(status.success(), "{status}: {}", worker.stderr());
    };
    synced().await;
    fill(&source, INSERTED).await;
    update(&source).await;
    synced().await;
    let letters = "SELECT error FROM cutover.dead_letters";
    assert_eq!(target.query(letters).await, Vec::<Vec<Option<String>>>::new());
    let settings = "SET timezone = 'UTC'; SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1; \
                    SET bytea_output = 'hex'; SET xmlbinary = 'base64'";
    source.exec(settings).await;
    target.exec(settings).await;
    assert_equal(&source, &target, &["kinds"]).await;
    for (n, (kind, _)) in CASES.iter().enumerate() {
        let by_row = format!("SELECT c{n}::text FROM kinds WHERE id BETWEEN ");
        let of = async |from: usize| target.query(&format!("{by_row}{from} AND {from} + 900 ORDER BY id")).await;
        let (copied, inserted, updated) = (of(SNAPSHOT).await, of(INSERTED).await, of(UPDATED).await);
        assert!(copied == inserted && copied == updated, "{kind}: {copied:?}, {inserted:?}, {updated:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_from_15_at_18() {
    every_type_arrives(Postgres::v15().await, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_from_18_at_15() {
    every_type_arrives(Postgres::v18().await, Postgres::v15().await).await;
}

/// What a value is in the log does not depend on the way that it came.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_and_stream_give_the_same_bytes() {
    let source = Postgres::v15().await;
    create(&source).await;
    let address = Address::parse(&source.url()).unwrap();
    let settings = options("bytes", None);
    let config = PostgresSourceConfig::new(source.database(), address.clone(), settings.clone(), now_us);
    let session = Session::open(&address, &settings).await.unwrap();
    let table = tables::load(&session.client, "public", None).await.unwrap().remove(0);
    assert_eq!(table.generated, ["twice"]);
    let schema = Arc::new(table.schema);
    let watched = [schema.table.clone()];
    let mut stream = PostgresStream::open(&config, None, &[], &watched).await.unwrap();
    fill(&source, SNAPSHOT).await;

    let mut streamed: Vec<Vec<Value>> = Vec::new();
    while streamed.len() < rows() {
        match tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap().unwrap() {
            CaptureEvent::Change(change) => {
                assert_eq!(change.schema, schema, "the stream describes the table as the catalog does");
                streamed.push(change.images.after.unwrap());
            }
            CaptureEvent::Schema(_) | CaptureEvent::Commit { .. } | CaptureEvent::Heartbeat { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let mut scanner = Scanner::connect(&address, &settings, Arc::clone(&config.in_flight)).await.unwrap();
    let watermark = Watermark { lsn: Lsn(u64::MAX), version: 1, floor: 0 };
    let mut scanned = scanner.read_chunk(&schema, None, None, watermark).await.unwrap();
    let mut scanned = scanned.next_batch(usize::MAX, usize::MAX).await.unwrap();
    scanned.sort_by_key(|row| format!("{:?}", row[0]));
    for (row, (streamed, scanned)) in streamed.iter().zip(&scanned).enumerate() {
        for ((column, a), b) in schema.columns.iter().zip(streamed).zip(scanned) {
            // NaN is not equal to itself.
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "row {row}, {} {}", column.name, column.source_type);
        }
    }
}
