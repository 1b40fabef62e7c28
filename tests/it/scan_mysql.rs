//! Chunked reading of real tables: every row once, whatever the key, spelled in one way.

use std::collections::BTreeSet;

use cutover::database::mysql::catalog::load_tables;
use cutover::database::mysql::connect::Connector;
use cutover::database::mysql::scan::{Scanner, Watermark};
use cutover::database::mysql::server;
use cutover::model::{TableSchema, Value, ZeroDates};

use crate::support::Mysql;

async fn scanner(server: &Mysql) -> Scanner {
    let connector = Connector::new(&server.url()).unwrap();
    Scanner::connect(&connector, ZeroDates::Null).await.unwrap()
}

async fn schema(server: &Mysql, table: &str) -> TableSchema {
    let mut conn = Connector::new(&server.url()).unwrap().connect().await.unwrap();
    load_tables(&mut conn, server.database(), Some(&[table.to_owned()])).await.unwrap().remove(0)
}

async fn watermark(server: &Mysql) -> Watermark {
    let mut conn = Connector::new(&server.url()).unwrap().connect().await.unwrap();
    let facts = server::ServerFacts::load(&mut conn).await.unwrap();
    Watermark { position: server::current_position(&mut conn, &facts).await.unwrap(), version: 7 }
}

/// Walks the table in chunks of `rows` and returns every row, with how many chunks there were.
async fn walk(server: &Mysql, table: &str, rows: u64) -> (Vec<Vec<Value>>, usize) {
    let schema = schema(server, table).await;
    let watermark = watermark(server).await;
    let mut scanner = scanner(server).await;
    let (mut all, mut chunks, mut lower) = (Vec::new(), 0, None::<String>);
    loop {
        let upper = scanner.next_bound(&schema, lower.as_deref(), rows).await.unwrap();
        let mut chunk = scanner.read_chunk(&schema, lower.as_deref(), upper.as_deref(), &watermark).await.unwrap();
        assert_eq!(chunk.version, 7);
        let batch = chunk.next_batch(usize::MAX, usize::MAX).await.unwrap();
        chunks += 1;
        if upper.is_some() {
            assert_eq!(batch.len() as u64, rows, "{table}: a chunk that is not the last is full");
        }
        all.extend(batch);
        match upper {
            Some(_) => lower = upper,
            None => return (all, chunks),
        }
    }
}

async fn expect_each_row_once(server: &Mysql, table: &str) {
    let count: usize = server.value(&format!("SELECT count(*) FROM {table}")).await.unwrap().parse().unwrap();
    for rows in [1, 3, 1000] {
        let (all, chunks) = walk(server, table, rows).await;
        let distinct: BTreeSet<String> = all.iter().map(|row| format!("{row:?}")).collect();
        assert_eq!((all.len(), distinct.len()), (count, count), "{table} in chunks of {rows}");
        assert_eq!(chunks, count / usize::try_from(rows).unwrap() + 1, "{table} in chunks of {rows}");
    }
}

/// Key columns of every kind that an index can have, with values around the traps of each.
const KEYS: &[(&str, &str, &str)] = &[
    ("k_int", "a INT", "(-2147483648), (-1), (0), (1), (2147483647)"),
    ("k_ubig", "a BIGINT UNSIGNED", "(0), (1), (9223372036854775807), (9223372036854775808), (18446744073709551615)"),
    ("k_dec", "a DECIMAL(65,30)", "(-0.000000000000000000000000000001), (0), (12345678901234567890123456789012345.5)"),
    ("k_zero", "a INT(8) UNSIGNED ZEROFILL", "(0), (7), (4294967295)"),
    ("k_float", "a FLOAT", "(-1.5), (0), (0.1), (1.1), (3.4e38)"),
    ("k_double", "a DOUBLE", "(-1e308), (0.1), (0.30000000000000004), (1e-320)"),
    (
        "k_ci",
        "a VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
        "('a'), ('B'), ('c'), ('Z'), ('é'), ('😀'), ('it''s'), ('back\\\\slash'), ('')",
    ),
    (
        "k_latin1",
        "a VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_german2_ci",
        "('ab'), ('Ä'), ('af'), ('ß'), ('x''y')",
    ),
    ("k_sjis", "a VARCHAR(20) CHARACTER SET sjis", "('日本'), ('ソ'), ('表'), ('a')"),
    ("k_char", "a CHAR(10) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "('a'), ('A'), ('b'), ('ab')"),
    ("k_bin", "a BINARY(4)", "(0x00000000), (0x00000001), (0xff), (0x27), (0xffffffff)"),
    ("k_varbin", "a VARBINARY(8)", "(''), (0x00), (0x0000), (0xff), (0x27)"),
    ("k_enum", "a ENUM('z','a','m')", "('a'), ('z'), ('m')"),
    ("k_set", "a SET('z','a')", "('a'), ('z'), ('a,z'), ('')"),
    ("k_bit", "a BIT(40)", "(0), (1), (255), (256), (1099511627775)"),
    ("k_year", "a YEAR", "(1901), (2024), (2155)"),
    ("k_date", "a DATE", "('1000-01-01'), ('2024-02-29'), ('9999-12-31')"),
    ("k_dt", "a DATETIME(6)", "('2024-05-30 10:00:00.000001'), ('2024-05-30 10:00:00.000002'), ('1000-01-01')"),
    ("k_ts", "a TIMESTAMP(3)", "('2024-05-30 10:00:00.001'), ('2024-05-30 10:00:00.002'), ('1970-01-02')"),
    ("k_time", "a TIME(2)", "('-838:59:59'), ('-00:00:00.01'), ('00:00:00'), ('838:59:59')"),
];

async fn keys_of_every_kind(server: Mysql) {
    for (table, column, values) in KEYS {
        let sql = format!(
            "SET NAMES utf8mb4; SET time_zone='+00:00'; CREATE TABLE {table} ({column} NOT NULL, PRIMARY KEY (a)); INSERT INTO {table} VALUES {values}"
        );
        server.exec(&sql).await;
        expect_each_row_once(&server, table).await;
        // With a second column that every first one has several times.
        let composite = format!(
            "CREATE TABLE {table}_2 ({column} NOT NULL, b VARCHAR(9) CHARACTER SET utf8 NOT NULL, PRIMARY KEY (a, b)); \
             INSERT INTO {table}_2 SELECT a, x FROM {table} JOIN (SELECT 'x' AS x UNION SELECT 'é' UNION SELECT '') AS v"
        );
        server.exec(&composite).await;
        expect_each_row_once(&server, &format!("{table}_2")).await;
    }
}

#[tokio::test]
async fn chunks_hold_each_row_once_by_keys_of_every_kind_on_mysql_57() {
    keys_of_every_kind(Mysql::v57().await).await;
}

#[tokio::test]
async fn chunks_hold_each_row_once_by_keys_of_every_kind_on_mysql_80() {
    keys_of_every_kind(Mysql::v80().await).await;
}

#[tokio::test]
async fn chunks_hold_each_row_once_by_keys_of_every_kind_on_mysql_97() {
    keys_of_every_kind(Mysql::v97().await).await;
}

#[tokio::test]
async fn chunks_hold_each_row_once_by_keys_of_every_kind_on_mariadb() {
    let server = Mysql::mariadb().await;
    server.exec("CREATE TABLE k_uuid (a UUID PRIMARY KEY)").await;
    server
        .exec(
            "INSERT INTO k_uuid VALUES ('123e4567-e89b-12d3-a456-426655440000'), ('123e4567-e89b-42d3-a456-426655440000'), \
             ('ffffffff-e89b-12d3-a456-426655440000'), ('00000000-0000-0000-0000-000000000000')",
        )
        .await;
    expect_each_row_once(&server, "k_uuid").await;
    server.exec("CREATE TABLE k_inet (a INET6 PRIMARY KEY)").await;
    server.exec("INSERT INTO k_inet VALUES ('::1'), ('2001:db8::ff00:42:8329'), ('ffff::'), ('::ffff:10.0.0.1')").await;
    expect_each_row_once(&server, "k_inet").await;
    keys_of_every_kind(server).await;
}

#[tokio::test]
async fn rows_are_read_again_by_their_key_as_it_was_captured() {
    for server in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        for (table, column, values) in KEYS.iter().filter(|(table, ..)| *table != "k_float") {
            let sql = format!(
                "SET NAMES utf8mb4; SET time_zone='+00:00'; CREATE TABLE {table} ({column} NOT NULL, PRIMARY KEY (a)); INSERT INTO {table} VALUES {values}"
            );
            server.exec(&sql).await;
            let (rows, _) = walk(&server, table, 1000).await;
            let (schema, watermark) = (schema(&server, table).await, watermark(&server).await);
            let mut scanner = scanner(&server).await;
            let mut again = Vec::new();
            for row in &rows {
                let mut found =
                    scanner.fetch(&schema, &schema.key, std::slice::from_ref(row), &watermark).await.unwrap();
                again.extend(found.next_batch(10, usize::MAX).await.unwrap());
            }
            assert_eq!(again, rows, "{table}");
        }
    }
}

#[tokio::test]
async fn a_large_chunk_is_read_without_holding_it() {
    let server = Mysql::v57().await;
    server.exec("CREATE TABLE big (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(50), price DECIMAL(10,2), at DATETIME, n BIGINT)").await;
    server.exec("INSERT INTO big (name, price, at, n) VALUES ('name of it', 12.50, '2024-05-30 10:00:00', 5)").await;
    for _ in 0..17 {
        server.exec("INSERT INTO big (name, price, at, n) SELECT name, price, at, n FROM big").await;
    }
    let (schema, watermark) = (schema(&server, "big").await, watermark(&server).await);
    let mut scanner = scanner(&server).await;
    assert!(scanner.estimate(&schema.table).await.unwrap().0 > 0);
    let mut chunk = scanner.read_chunk(&schema, None, None, &watermark).await.unwrap();
    let mut rows = 0;
    while chunk.next_row().await.unwrap().is_some() {
        rows += 1;
    }
    assert_eq!(rows, 1 << 17);
}
