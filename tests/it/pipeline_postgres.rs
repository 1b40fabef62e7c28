//! PostgreSQL to PostgreSQL: copied while it changes, killed at any moment, equal in the end.

use std::{sync::Arc, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    job::run_through_kills,
    support::{Postgres, Workspace},
};

/// `carts` has a key of two columns and text; the long notes of `items` are stored out of line; `events` is in
/// partitions, and the keys of `tokens` are in no order.
const TABLES: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40) NOT NULL, qty int, price numeric(12,4), note text, changed timestamptz);
    ALTER TABLE items ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE carts (owner text NOT NULL, no int NOT NULL, total double precision, PRIMARY KEY (owner, no));
    CREATE TABLE tokens (id uuid PRIMARY KEY, owner bigint);
    CREATE TABLE events (id bigint, day date, what text, PRIMARY KEY (id, day))";
const PARTITIONED: &str = "
    CREATE TABLE events (id bigint, day date, what text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE events_old PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2024-01-15');
    CREATE TABLE events_new PARTITION OF events FOR VALUES FROM ('2024-01-15') TO (MAXVALUE)";
const NAMES: [&str; 4] = ["items", "carts", "tokens", "events"];

fn source_tables() -> String {
    let end = TABLES.find("    CREATE TABLE events").unwrap();
    format!("{}{PARTITIONED}", &TABLES[..end])
}

pub async fn assert_equal(source: &Postgres, target: &Postgres, tables: &[&str]) {
    for table in tables {
        let columns = source
            .value(&format!(
                "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
                 WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
            ))
            .await
            .unwrap();
        let rows = format!("SELECT ROW({columns})::text FROM {table} ORDER BY 1");
        let (at_source, at_target) = (source.query(&rows).await, target.query(&rows).await);
        assert!(!at_source.is_empty(), "{table} has rows to compare");
        for (wanted, found) in at_source.iter().zip(&at_target) {
            assert_eq!(wanted, found, "{table}");
        }
        assert_eq!(at_source.len(), at_target.len(), "{table}: rows");
    }
}

async fn seed(source: &Postgres, rows: u32) {
    source.exec(&source_tables()).await;
    source
        .exec(&format!(
            "INSERT INTO items SELECT i, 'caf\u{e9}-' || i, i % 7, i + 0.25, repeat('n' || i, CASE WHEN i % 10 = 0 THEN 900 ELSE 1 END),
                 timestamptz '2024-01-01 10:00:00Z' + i * interval '1 us' FROM generate_series(1, {rows}) i;
             INSERT INTO carts SELECT 'o' || i % 100, i, i + 0.5 FROM generate_series(1, {rows}) i;
             INSERT INTO tokens SELECT md5(i::text)::uuid, i FROM generate_series(1, {rows}) i;
             INSERT INTO events SELECT i, date '2024-01-01' + i % 30, 'e' || i FROM generate_series(1, {rows}) i;
             ANALYZE"
        ))
        .await;
}

/// One transaction of one to five statements: inserts, updates, deletes, changed keys, moves between partitions.
fn transaction(random: &mut StdRng, rows: u32) -> String {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..random.random_range(1..=5) {
        let (id, other) = (random.random_range(1..=rows * 2), random.random_range(1..=rows * 2));
        statements.push(match random.random_range(0..9) {
            0 | 1 => format!("INSERT INTO items VALUES ({id}, 'new', {other}, 1.5, repeat('x{other}', 700), now()) ON CONFLICT (id) DO UPDATE SET qty = {other}"),
            2 => format!("UPDATE items SET qty = {other}, price = {other}.0125, changed = clock_timestamp() WHERE id BETWEEN {id} AND {id} + 3"),
            3 => format!("DELETE FROM items WHERE id = {id}"),
            4 => format!("UPDATE items SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE id = {other})"),
            5 => format!("UPDATE carts SET total = {id} / 3.0 WHERE owner = 'o{}' AND no = {id}", id % 100),
            6 => format!("UPDATE tokens SET owner = {other} WHERE id = md5('{id}')::uuid; DELETE FROM tokens WHERE id = md5('{other}')::uuid"),
            7 => format!("UPDATE events SET day = date '2024-01-01' + {} WHERE id = {id}", other % 30),
            _ => format!("INSERT INTO carts VALUES ('n{}', {id}, {other}) ON CONFLICT DO NOTHING", id % 100),
        });
    }
    statements.push("COMMIT".into());
    statements.join("; ")
}

/// Copies `rows` rows of each table while transactions go on, and kills the worker `kills` times.
async fn copied_and_followed(source: Postgres, target: Postgres, rows: u32, kills: u32) {
    seed(&source, rows).await;
    target.exec(TABLES).await;
    let work = Workspace::new("pg_job", &source.url(), &target.url(), &NAMES);
    work.configure_also("[snapshot]\nchunk_rows = 500\n");

    let source = Arc::new(source);
    let mut random = StdRng::seed_from_u64(7);
    let transactions = move || transaction(&mut random, rows);
    run_through_kills(&work, &source, transactions, kills, Duration::from_secs(90)).await;
    assert_equal(&source, &target, &NAMES).await;
    assert_eq!(target.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_15_is_copied_and_followed_through_kills() {
    copied_and_followed(Postgres::v15().await, Postgres::v18().await, 6000, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_18_is_copied_and_followed_through_kills() {
    copied_and_followed(Postgres::v18().await, Postgres::v15().await, 6000, 2).await;
}
