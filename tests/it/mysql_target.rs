//! Targets that are MySQL and MariaDB: copied into while the source changes, killed at any moment, equal in the end.

use std::{sync::Arc, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    job::run_through_kills,
    support::{Mysql, Postgres, Rows, Workspace},
};

/// A key of one column, one of two with text, one of bytes.
const SOURCE: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40) NOT NULL UNIQUE, qty int, price numeric(12,4), note text,
      changed timestamptz, open boolean NOT NULL DEFAULT true, extra jsonb);
    CREATE TABLE carts (owner text NOT NULL, no int NOT NULL, total double precision, PRIMARY KEY (owner, no));
    CREATE TABLE tokens (id bytea PRIMARY KEY, owner bigint)";
const TARGET: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40) NOT NULL UNIQUE, qty int, price decimal(12,4), note mediumtext,
      changed datetime(6), open tinyint(1) NOT NULL DEFAULT 1, extra json, KEY (qty));
    CREATE TABLE carts (owner varchar(60) NOT NULL, no int NOT NULL, total double, PRIMARY KEY (owner, no));
    CREATE TABLE tokens (id varbinary(16) PRIMARY KEY, owner bigint)";
const NAMES: [&str; 3] = ["items", "carts", "tokens"];

/// The same rows of both sides, as texts that both write alike.
const AT_SOURCE: [&str; 3] = [
    "SELECT id::text, sku, qty::text, price::text, encode(sha256(convert_to(note, 'UTF8')), 'hex'), to_char(changed AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'),
       open::int::text, extra->>'a' FROM items ORDER BY items.id",
    "SELECT owner, no::text, round(total::numeric * 1000, 0)::text FROM carts ORDER BY carts.owner COLLATE \"C\", carts.no",
    "SELECT encode(id, 'hex'), owner::text FROM tokens ORDER BY tokens.id",
];
const AT_TARGET: [&str; 3] = [
    "SELECT CAST(id AS CHAR), sku, CAST(qty AS CHAR), CAST(price AS CHAR), SHA2(note, 256), DATE_FORMAT(changed, '%Y-%m-%d %H:%i:%s.%f'),
       CAST(open AS CHAR), JSON_UNQUOTE(JSON_EXTRACT(extra, '$.a')) FROM items ORDER BY items.id",
    "SELECT owner, CAST(no AS CHAR), CAST(ROUND(total * 1000) AS CHAR) FROM carts ORDER BY BINARY carts.owner, carts.no",
    "SELECT LOWER(HEX(id)), CAST(owner AS CHAR) FROM tokens ORDER BY tokens.id",
];

/// A pipeline into `target`, whose name is its own: servers of MySQL are shared by all tests.
pub fn pipeline(source_url: &str, target: &Mysql, tables: &[&str]) -> Workspace {
    Workspace::new(target.database(), source_url, &target.url(), tables)
}

fn assert_rows(what: &str, wanted: &Rows, found: &Rows) {
    assert!(!wanted.is_empty(), "{what} has rows to compare");
    for (wanted, found) in wanted.iter().zip(found) {
        assert_eq!(wanted, found, "{what}");
    }
    assert_eq!(wanted.len(), found.len(), "{what}: rows");
}

/// One transaction of one to four statements: inserts, updates, deletes, changed keys, exchanged unique values.
fn transaction(random: &mut StdRng, rows: u32) -> String {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..random.random_range(1..=4) {
        let (id, other) = (random.random_range(1..=rows * 2), random.random_range(1..=rows * 2));
        statements.push(match random.random_range(0..8) {
            0 | 1 => format!(
                "INSERT INTO items VALUES ({id}, 'sku-{id}', {other}, 1.5, repeat('x{other}', 70), now(), {}, '{{\"a\": {other}}}') \
                 ON CONFLICT DO NOTHING; UPDATE items SET qty = {other}, extra = '{{\"a\": -{other}}}' WHERE id = {id}",
                other % 2 == 0
            ),
            2 => format!("UPDATE items SET qty = {other}, price = {other}.0125, changed = clock_timestamp() WHERE id BETWEEN {id} AND {id} + 3"),
            3 => format!("DELETE FROM items WHERE id = {id}"),
            4 => format!("UPDATE items SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE id = {other})"),
            5 => format!("UPDATE carts SET total = {id} / 3.0 WHERE owner = 'o{}' AND no = {id}", id % 100),
            6 => format!(
                "UPDATE tokens SET owner = {other} WHERE id = decode(md5('{id}'), 'hex'); \
                 DELETE FROM tokens WHERE id = decode(md5('{other}'), 'hex')"
            ),
            _ => format!("INSERT INTO carts VALUES ('n{}', {id}, {other}) ON CONFLICT DO NOTHING", id % 100),
        });
    }
    statements.push("COMMIT".into());
    statements.join("; ")
}

async fn copied_and_followed(source: Postgres, target: Mysql) {
    const ROWS: u32 = 1200;
    source.exec(SOURCE).await;
    source
        .exec(&format!(
            "INSERT INTO items SELECT i, 'caf\u{e9}-' || i, i % 7, i + 0.25, repeat('n' || i, CASE WHEN i % 10 = 0 THEN 900 ELSE 1 END),
                 timestamptz '2024-01-01 10:00:00Z' + i * interval '1 us', i % 3 = 0, jsonb_build_object('a', i) FROM generate_series(1, {ROWS}) i;
             INSERT INTO carts SELECT 'o' || i % 100, i, i + 0.5 FROM generate_series(1, {ROWS}) i;
             INSERT INTO tokens SELECT decode(md5(i::text), 'hex'), i FROM generate_series(1, {ROWS}) i; ANALYZE"
        ))
        .await;
    target.exec(TARGET).await;
    let work = pipeline(&source.url(), &target, &NAMES);
    work.configure_also("[snapshot]\nchunk_rows = 200\n");
    let source = Arc::new(source);
    let mut random = StdRng::seed_from_u64(11);
    run_through_kills(&work, &source, move || transaction(&mut random, ROWS), 3, Duration::from_secs(120)).await;
    for ((table, at_source), at_target) in NAMES.iter().zip(AT_SOURCE).zip(AT_TARGET) {
        assert_rows(table, &source.query(at_source).await, &target.query(at_target).await);
    }
    assert_eq!(source.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_57_gets_what_postgres_18_has_through_kills() {
    copied_and_followed(Postgres::v18().await, Mysql::v57().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_80_gets_what_postgres_15_has_through_kills() {
    copied_and_followed(Postgres::v15().await, Mysql::v80().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_97_gets_what_postgres_18_has_through_kills() {
    copied_and_followed(Postgres::v18().await, Mysql::v97().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_gets_what_postgres_15_has_through_kills() {
    copied_and_followed(Postgres::v15().await, Mysql::mariadb().await).await;
}
