//! Every type of MySQL and MariaDB, read by the snapshot and from the log: both must be equal, byte for byte, and
//! what they are is written down here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cutover::database::mysql::connect::Connector;
use cutover::database::mysql::scan::{Scanner, Watermark};
use cutover::model::{Images, TableName, TableSchema, Value, ZeroDates};
use cutover::source::{CaptureEvent, ChangeStream, SourceConfig, mysql::MysqlStream};

use crate::support::Mysql;

/// The column's type, and its values as SQL.
pub type Case = (&'static str, &'static [&'static str]);

pub const COMMON: &[Case] = &[
    ("TINYINT", &["-128", "127", "NULL"]),
    ("TINYINT UNSIGNED", &["0", "255"]),
    ("TINYINT(1)", &["0", "1", "-1"]),
    ("SMALLINT", &["-32768", "32767"]),
    ("SMALLINT UNSIGNED", &["65535"]),
    ("MEDIUMINT", &["-8388608", "-5", "8388607"]),
    ("MEDIUMINT UNSIGNED", &["16777215"]),
    ("INT", &["-2147483648", "2147483647"]),
    ("INT UNSIGNED", &["4294967295"]),
    ("INT(8) ZEROFILL", &["42"]),
    ("BIGINT", &["-9223372036854775808", "9223372036854775807"]),
    ("BIGINT UNSIGNED", &["0", "5", "18446744073709551615"]),
    (
        "DECIMAL(65,30)",
        &[
            "0",
            "-0.000000000000000000000000000001",
            "99999999999999999999999999999999999.999999999999999999999999999999",
        ],
    ),
    ("DECIMAL(10,2) UNSIGNED ZEROFILL", &["0", "12.5", "0.07"]),
    ("DECIMAL(5,0)", &["-12345", "0"]),
    ("DECIMAL(4,4)", &["-0.0001", "0.9999"]),
    ("FLOAT", &["0", "-0.0", "0.1", "1.17549435e-38", "3.40282347e38", "16777217", "123456.789"]),
    ("FLOAT(7,4)", &["999.00009"]),
    ("DOUBLE", &["0.1", "1e308", "-5e-324", "9007199254740993", "0.30000000000000004", "123456789012345678"]),
    ("DOUBLE(10,3)", &["1.0005"]),
    ("BIT(1)", &["b'0'", "b'1'"]),
    ("BIT(12)", &["b'101010101010'", "b'1'"]),
    ("BIT(64)", &["18446744073709551615"]),
    ("DATE", &["'1000-01-01'", "'2024-02-29'", "'9999-12-31'", "'0000-00-00'", "'2024-00-10'", "'0000-05-05'"]),
    ("DATETIME", &["'2024-05-30 10:00:00'", "'0000-00-00 00:00:00'", "'2024-05-00 10:00:00'"]),
    ("DATETIME(1)", &["'2024-05-30 10:00:00.1'"]),
    ("DATETIME(3)", &["'2024-05-30 10:00:00.123'"]),
    ("DATETIME(6)", &["'2024-05-30 10:00:00.000001'", "'9999-12-31 23:59:59.999999'", "'0000-00-00 00:00:00'"]),
    (
        "TIMESTAMP NULL",
        &["'2024-05-30 10:00:00'", "'1970-01-02 00:00:01'", "'2038-01-19 03:14:07'", "'0000-00-00 00:00:00'", "NULL"],
    ),
    ("TIMESTAMP(6) NULL", &["'2024-05-30 10:00:00.654321'"]),
    ("TIME", &["'-838:59:59'", "'838:59:59'", "'00:00:00'", "'-00:00:01'"]),
    ("TIME(1)", &["'-00:00:00.1'", "'-01:02:03.9'", "'10:11:12.3'"]),
    ("TIME(2)", &["'-00:00:00.01'", "'-838:59:58.99'"]),
    ("TIME(3)", &["'-00:00:00.001'", "'12:00:00.5'"]),
    ("TIME(4)", &["'-00:00:00.0001'"]),
    ("TIME(6)", &["'-00:00:00.000001'", "'-12:00:00.999999'", "'837:59:59.999999'"]),
    ("YEAR", &["1901", "2155", "0000"]),
    ("CHAR(10) CHARACTER SET latin1", &["'é€ab  '", "''"]),
    ("CHAR(10) CHARACTER SET utf8mb4", &["'😀 x '"]),
    ("VARCHAR(20) CHARACTER SET latin1", &["'Zürich € ‘x’'", "_latin1 X'81'", "'trail  '"]),
    ("VARCHAR(20) CHARACTER SET utf8", &["'日本é'"]),
    ("VARCHAR(300) CHARACTER SET utf8mb4", &["'😀日本é'", "REPEAT('é', 300)"]),
    ("VARCHAR(20) CHARACTER SET sjis", &["'表示ソ日本'", "'ｱｲｳ'"]),
    ("VARCHAR(20) CHARACTER SET cp932", &["'①㈱ソ'"]),
    ("VARCHAR(20) CHARACTER SET ucs2", &["'日é'"]),
    ("VARCHAR(20) CHARACTER SET utf16", &["'😀é'"]),
    ("VARCHAR(20) CHARACTER SET utf32", &["'😀é'"]),
    ("VARCHAR(20) CHARACTER SET koi8r", &["'Привет'"]),
    ("VARCHAR(20) CHARACTER SET cp1251", &["'Привет'"]),
    ("VARCHAR(20) CHARACTER SET gbk", &["'中文'"]),
    ("VARCHAR(20) CHARACTER SET big5", &["'中文'"]),
    ("VARCHAR(20) CHARACTER SET euckr", &["'한글'"]),
    ("VARCHAR(20) CHARACTER SET ascii", &["'plain'"]),
    ("TINYTEXT CHARACTER SET latin1", &["'ü'"]),
    ("TEXT CHARACTER SET utf8mb4", &["'line\\nbreak\\0nul'", "''"]),
    ("MEDIUMTEXT", &["REPEAT('x', 70000)"]),
    ("LONGTEXT", &["'long'"]),
    ("BINARY(4)", &["0x01", "0x0100", "0xffffffff"]),
    ("BINARY(16)", &["UNHEX('123E4567E89B12D3A456426655440000')"]),
    ("VARBINARY(300)", &["0x0001ff00", "''", "REPEAT(0x00, 300)"]),
    ("TINYBLOB", &["0x00"]),
    ("BLOB", &["0xdeadbeef00"]),
    ("MEDIUMBLOB", &["REPEAT(0x01, 70000)"]),
    ("LONGBLOB", &["0x05"]),
    ("ENUM('small','big','It''s','')", &["'small'", "'It''s'", "''"]),
    ("ENUM('ä','ö') CHARACTER SET latin1", &["'ö'"]),
    ("SET('a','b','c')", &["'a,c'", "''", "'b'", "'a,b,c'"]),
    ("GEOMETRY", &["ST_GeomFromText('POINT(1 2)')", "ST_GeomFromText('LINESTRING(0 0, 1 1, 2 0)', 4326)"]),
    ("POINT", &["ST_GeomFromText('POINT(-1.5 2.25)')"]),
    ("POLYGON", &["ST_GeomFromText('POLYGON((0 0, 1 0, 1 1, 0 0))')"]),
];

/// JSON is a type of its own on MySQL, text on MariaDB.
pub const JSON: &[Case] = &[(
    "JSON",
    &[
        "'null'",
        "'true'",
        "'\"text \\\\u00e9 \\\\\\\\ \\\\\" \\\\n \\\\u0001 /\"'",
        "'{\"b\": 1, \"a\": [1, 2.5, -3, 18446744073709551615, -9223372036854775808], \"long key here\": {}}'",
        "'[1.0, 1e3, 1e300, 0.1, 1e-7, 123456789012345678901234567890, 5e-324, -0.0, 100000000000000000000]'",
        "'[]'",
        "NULL",
    ],
)];

const MYSQL_JSON: &[Case] = &[(
    "JSON",
    &[
        "JSON_OBJECT('d', CAST('2024-02-29' AS DATE), 't', CAST('-10:11:12.5' AS TIME(3)), 'dt', CAST('2024-05-30 10:00:00.25' AS DATETIME(6)))",
        "JSON_ARRAY(CAST(1.500 AS DECIMAL(20,10)), CAST(12345678901234567890.123 AS DECIMAL(40,5)), CAST('bin' AS BINARY))",
        "JSON_ARRAY(CAST(2024 AS SIGNED), TRUE, NULL, ST_GeomFromText('POINT(1 2)'))",
        "JSON_OBJECT('big', REPEAT('x', 70000), 'small', 1)",
        "JSON_ARRAY(b'101', 'b', 1.5e0, 2e0)",
    ],
)];

pub const MARIADB: &[Case] = &[
    (
        "UUID",
        &[
            "'123e4567-e89b-12d3-a456-426655440000'",
            "'123e4567-e89b-42d3-a456-000000000000'",
            "'00000000-0000-0000-0000-000000000000'",
        ],
    ),
    ("INET6", &["'::'", "'2001:db8::ff00:42:8329'", "'::ffff:10.0.0.1'", "'1:0:0:2::'"]),
    ("INET4", &["'10.0.0.1'", "'255.255.255.255'"]),
    ("VARCHAR(300) COMPRESSED", &["REPEAT('é', 200)", "'short'", "''"]),
    ("BLOB COMPRESSED", &["REPEAT(0x01, 3000)", "0x00"]),
    ("TEXT COMPRESSED CHARACTER SET latin1", &["REPEAT('ü', 500)"]),
];

const VECTOR: &[Case] = &[("VECTOR(3)", &["TO_VECTOR('[1,2,3]')"])];

fn now_us() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

struct Both {
    server: Mysql,
    tables: Vec<(TableName, String)>,
}

impl Both {
    /// One table for every case, so that a failure names its type.
    async fn create(server: Mysql, groups: &[&[Case]]) -> Self {
        server.exec("SET NAMES utf8mb4; SET SESSION sql_mode = ''; SET time_zone = '+05:30'").await;
        let mut tables = Vec::new();
        for (number, (column, values)) in groups.iter().copied().flatten().enumerate() {
            let table = format!("c{number}");
            server.exec(&format!("CREATE TABLE {table} (id INT PRIMARY KEY, v {column})")).await;
            let rows: Vec<String> = values.iter().enumerate().map(|(id, value)| format!("({id}, {value})")).collect();
            let insert = format!("INSERT INTO {table} VALUES {}", rows.join(", "));
            tables.push((TableName::new(server.database(), table), insert));
        }
        Both { server, tables }
    }

    async fn expect_equal(self) -> Vec<(TableSchema, Vec<Vec<Value>>)> {
        let names: Vec<TableName> = self.tables.iter().map(|(name, _)| name.clone()).collect();
        let config: SourceConfig = toml::from_str(&format!("url = '{}'", self.server.url())).unwrap();
        let settings = config.resolve(self.server.database(), now_us).unwrap();
        let mut source = MysqlStream::open(&settings, None, &[], &names).await.unwrap();
        for (_, insert) in &self.tables {
            self.server.exec(insert).await;
        }
        let mut all = Vec::new();
        let connector = Connector::new(&self.server.url()).unwrap();
        let mut scanner = Scanner::connect(&connector, ZeroDates::Null).await.unwrap();
        for (name, insert) in &self.tables {
            let (schema, streamed) = next_images(&mut source, name).await;
            let (position, version) = source.current_position();
            let watermark = Watermark { position, version };
            let mut chunk = scanner.read_chunk(&schema, None, None, &watermark).await.unwrap();
            let read = chunk.next_batch(1000, usize::MAX).await.unwrap();
            let after: Vec<Vec<Value>> = streamed.into_iter().map(|images| images.after.unwrap()).collect();
            assert_eq!(
                after, read,
                "{} {}: the log (left) and the snapshot (right): {insert}",
                name, schema.columns[1].source_type
            );
            all.push((schema, read));
        }
        // The images before a change are the same rows again.
        for (name, _) in &self.tables {
            self.server.exec(&format!("DELETE FROM {} ORDER BY id", name.table)).await;
        }
        for ((name, _), (_, read)) in self.tables.iter().zip(&all) {
            let (_, deleted) = next_images(&mut source, name).await;
            let before: Vec<Vec<Value>> = deleted.into_iter().map(|images| images.before.unwrap()).collect();
            assert_eq!(&before, read, "{name}");
        }
        all
    }
}

/// The images of the next transaction, which is of this table.
async fn next_images(source: &mut MysqlStream, name: &TableName) -> (TableSchema, Vec<Images>) {
    let (mut images, mut schema) = (Vec::new(), None);
    loop {
        match tokio::time::timeout(Duration::from_secs(20), source.next()).await.unwrap().unwrap() {
            CaptureEvent::Change(change) => {
                assert_eq!(&change.schema.table, name);
                schema = Some(change.schema.as_ref().clone());
                images.push(change.images);
            }
            CaptureEvent::Commit { .. } => return (schema.unwrap(), images),
            CaptureEvent::Schema(_) | CaptureEvent::Heartbeat { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn snapshot_and_log_agree_on_every_type_of_mysql_57() {
    Both::create(Mysql::v57().await, &[COMMON, JSON, MYSQL_JSON]).await.expect_equal().await;
}

#[tokio::test]
async fn snapshot_and_log_agree_on_every_type_of_mysql_80() {
    Both::create(Mysql::v80().await, &[COMMON, JSON, MYSQL_JSON]).await.expect_equal().await;
}

#[tokio::test]
async fn snapshot_and_log_agree_on_every_type_of_mysql_97() {
    Both::create(Mysql::v97().await, &[COMMON, JSON, MYSQL_JSON, VECTOR]).await.expect_equal().await;
}

#[tokio::test]
async fn snapshot_and_log_agree_on_every_type_of_mariadb() {
    Both::create(Mysql::mariadb().await, &[COMMON, JSON, MARIADB]).await.expect_equal().await;
}

#[tokio::test]
async fn generated_columns_are_read_like_any_other() {
    for server in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        let column = "INT, kept INT GENERATED ALWAYS AS (v * 2) STORED, dry INT GENERATED ALWAYS AS (v + 1) VIRTUAL";
        server.exec(&format!("CREATE TABLE g (id INT PRIMARY KEY, v {column})")).await;
        let name = TableName::new(server.database(), "g");
        let both = Both { server, tables: vec![(name, "INSERT INTO g (id, v) VALUES (1, 5), (2, NULL)".into())] };
        let all = both.expect_equal().await;
        let row = |values: [Option<i64>; 4]| values.map(|value| value.map_or(Value::Null, Value::Int)).to_vec();
        assert_eq!(all[0].1, [row([Some(1), Some(5), Some(10), Some(6)]), row([Some(2), None, None, None])]);
    }
}

#[tokio::test]
async fn values_are_spelled_as_documented() {
    for server in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        let cases: &[Case] = &[
            ("TIMESTAMP(3) NULL", &["'2024-05-30 15:30:00.5'", "'0000-00-00'"]),
            ("DECIMAL(10,4)", &["-12.34"]),
            ("TIME(1)", &["'-00:00:00.1'"]),
            ("BINARY(3)", &["0x01"]),
            ("SET('a','b')", &["'b,a'"]),
            ("POINT", &["ST_GeomFromText('POINT(1 2)', 4326)"]),
            ("DATE", &["'2024-05-30'", "'2024-00-00'"]),
            ("BIT(10)", &["b'1000000001'"]),
        ];
        let all = Both::create(server, &[cases]).await.expect_equal().await;
        let values: Vec<Vec<&Value>> = all.iter().map(|(_, rows)| rows.iter().map(|row| &row[1]).collect()).collect();
        let text = |text: &str| Value::Text(text.to_owned());
        // Written in a session at +05:30.
        assert_eq!(values[0], [&text("2024-05-30T10:00:00.500000Z"), &Value::Null]);
        assert_eq!(values[1], [&text("-12.3400")]);
        assert_eq!(values[2], [&text("-00:00:00.100000")]);
        assert_eq!(values[3], [&Value::Bytes(vec![1, 0, 0])]);
        assert_eq!(values[4], [&text("a,b")]);
        assert!(matches!(values[5][0], Value::Bytes(wkb) if wkb.len() == 21 && wkb[..5] == [1, 1, 0, 0, 0]));
        assert_eq!(values[6], [&text("2024-05-30Z"), &Value::Null]);
        assert_eq!(values[7], [&Value::Bytes(vec![2, 1])]);
    }
}
