//! The main job on real servers: copied while it changes, killed at any moment, equal in the end.

use std::{sync::Arc, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    job::run_through_kills,
    support::{Mysql, Postgres, Workspace},
};

const SOURCE_TABLES: &str = "
    CREATE TABLE items (id bigint unsigned PRIMARY KEY, sku varchar(40) CHARACTER SET latin1 NOT NULL, qty int, price decimal(12,4),
        note text CHARACTER SET utf8mb4, changed datetime(6) NULL);
    CREATE TABLE carts (owner varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, no int NOT NULL, total double,
        PRIMARY KEY (owner, no))";
const TARGET_TABLES: &str = "
    CREATE TABLE items (id numeric(20) PRIMARY KEY, sku text NOT NULL, qty int, price numeric(12,4), note text, changed timestamp);
    CREATE TABLE carts (owner text COLLATE \"C\", no int, total double precision, PRIMARY KEY (owner, no))";

/// The same text on both sides, row by row.
async fn contents(source: &Mysql, target: &Postgres) -> [(Vec<Vec<Option<String>>>, Vec<Vec<Option<String>>>); 2] {
    let items = "SELECT id, sku, qty, price, note, changed FROM items ORDER BY id";
    let carts = "SELECT owner, no, total FROM carts ORDER BY owner, no";
    let text = "SELECT id, sku, qty, price, note, to_char(changed, 'YYYY-MM-DD HH24:MI:SS.US') FROM items ORDER BY id";
    [(source.query(items).await, target.query(text).await), (source.query(carts).await, target.query(carts).await)]
}

async fn assert_equal(source: &Mysql, target: &Postgres) {
    for (table, (at_source, at_target)) in ["items", "carts"].iter().zip(contents(source, target).await) {
        assert!(!at_source.is_empty(), "{table} has rows to compare");
        assert_eq!(at_source.len(), at_target.len(), "{table}: rows");
        for (wanted, found) in at_source.iter().zip(&at_target) {
            assert_eq!(wanted, found, "{table}");
        }
    }
}

async fn seed(source: &Mysql, rows: u32) {
    source.exec(SOURCE_TABLES).await;
    for start in (1..=rows).step_by(1000) {
        let values: Vec<String> = (start..(start + 1000).min(rows + 1))
            .map(|id| {
                format!(
                    "({id}, 'caf\u{e9}-{id}', {}, {id}.2500, 'n\u{1F600}{id}', '2024-01-01 10:00:00.{:06}')",
                    id % 7,
                    id
                )
            })
            .collect();
        source.exec(&format!("INSERT INTO items VALUES {}", values.join(", "))).await;
        let values: Vec<String> =
            (start..(start + 1000).min(rows + 1)).map(|id| format!("('o{}', {id}, {id}.5)", id % 100)).collect();
        source.exec(&format!("INSERT INTO carts VALUES {}", values.join(", "))).await;
    }
}

/// One transaction of one to five statements: inserts, updates, deletes, changed keys.
fn transaction(random: &mut StdRng, rows: u32) -> String {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..random.random_range(1..=5) {
        let (id, other) = (random.random_range(1..=rows * 2), random.random_range(1..=rows * 2));
        let changed = "'2025-06-07 08:09:10.111213'";
        statements.push(match random.random_range(0..7) {
            0 | 1 => format!("INSERT INTO items VALUES ({id}, 'new', {other}, 1.5, NULL, {changed}) ON DUPLICATE KEY UPDATE qty = {other}, note = 'hit'"),
            2 => format!("UPDATE items SET qty = {other}, price = {other}.0125, changed = {changed} WHERE id BETWEEN {id} AND {id} + 3"),
            3 => format!("DELETE FROM items WHERE id = {id}"),
            4 => format!("UPDATE IGNORE items SET id = {other} WHERE id = {id}"),
            5 => format!("UPDATE IGNORE carts SET no = no + {other}, total = {id} / 3 WHERE owner = 'o{}' AND no = {id}", id % 100),
            _ => format!("REPLACE INTO carts VALUES ('o{}', {id}, {other}), ('o{}', {id}, {other}.25)", id % 100, id % 100),
        });
    }
    statements.push("COMMIT".into());
    statements.join("; ")
}

/// Copies `rows` rows of each table while transactions go on, and kills the worker `kills` times.
async fn copied_and_followed(source: Mysql, target: Postgres, rows: u32, kills: u32) {
    seed(&source, rows).await;
    target.exec(TARGET_TABLES).await;
    let work = Workspace::new("main_job", &source.url(), &target.url(), &["items", "carts"]);
    work.configure_also("[snapshot]\nchunk_rows = 500\n");

    let source = Arc::new(source);
    let mut random = StdRng::seed_from_u64(7);
    let transactions = move || transaction(&mut random, rows);
    run_through_kills(&work, &source, transactions, kills, Duration::from_secs(60)).await;
    assert_equal(&source, &target).await;
    assert_eq!(target.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_57_is_copied_and_followed_through_kills() {
    copied_and_followed(Mysql::v57().await, Postgres::v15().await, 8000, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_80_is_copied_and_followed_through_kills() {
    copied_and_followed(Mysql::v80().await, Postgres::v18().await, 8000, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_97_is_copied_and_followed_through_kills() {
    copied_and_followed(Mysql::v97().await, Postgres::v15().await, 8000, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_is_copied_and_followed_through_kills() {
    copied_and_followed(Mysql::mariadb().await, Postgres::v18().await, 8000, 2).await;
}
