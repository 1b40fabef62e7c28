//! `[verify] log = "rows"` on real servers: what every row was found to be, as it was seen last.

use std::time::Duration;

use serde_json::Value;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres, Workspace, eventually},
    verify::{assert_clean, verify},
};

const SOON: Duration = Duration::from_secs(60);
const ROWS: &str = "[verify]\nlog = \"rows\"\nrows_per_second = 0\n";

/// What is noted of rows that are not equal, and which sides have a checksum.
async fn unequal(target: &Postgres) -> Vec<String> {
    let sql = "SELECT concat_ws(' ', source_table, key, state,
            CASE WHEN source_checksum IS NOT NULL THEN 'source' END, CASE WHEN target_checksum IS NOT NULL THEN 'target' END)
        FROM cutover.migration_rows WHERE state <> 'equal' OR source_checksum IS DISTINCT FROM target_checksum ORDER BY 1";
    target.query(sql).await.into_iter().flatten().flatten().collect()
}

/// How many rows are noted of each table, by how many comparisons.
async fn noted(target: &Postgres) -> String {
    let sql = "SELECT string_agg(said, ', ' ORDER BY said) FROM (
            SELECT format('%s %s by %s', source_table, count(*), count(DISTINCT pass)) AS said
            FROM cutover.migration_rows GROUP BY source_table) t";
    target.value(sql).await.unwrap_or_default()
}

async fn each_row_is_noted(source: Mysql) {
    source
        .exec(
            "CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40) NOT NULL, qty int, price decimal(9,2));
             CREATE TABLE codes (code varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PRIMARY KEY, what varchar(20));
             INSERT INTO codes VALUES ('A\"', 'x'), ('B', 'x'), ('Ç', NULL)",
        )
        .await;
    let items: Vec<String> = (1..=200).map(|id| format!("({id}, 'sku-{id}', {}, 1.5)", id % 7)).collect();
    source.exec(&format!("INSERT INTO items VALUES {}", items.join(", "))).await;
    let at_target = "CREATE TABLE items (id bigint PRIMARY KEY, sku text NOT NULL, qty int, price numeric(9,2));
        CREATE TABLE codes (code text PRIMARY KEY, what text)";
    let rig = Rig::new(source, Postgres::v15().await, &["items", "codes"], "SELECT 1", at_target).await;
    rig.work.transform("codes", "SELECT lower(code) AS code, what FROM codes");
    rig.work.configure_also(ROWS);
    let mut worker = rig.following().await;
    assert_clean(&rig.work).await;
    assert_eq!((unequal(&rig.target).await, noted(&rig.target).await), (vec![], "codes 3 by 1, items 200 by 1".into()));

    rig.target
        .exec(
            "DELETE FROM items WHERE id = 1; UPDATE items SET qty = 991199 WHERE id = 7; INSERT INTO items VALUES (5000, 'more', 1);
             INSERT INTO codes VALUES ('zz', 'x'); DELETE FROM codes WHERE code = 'a\"'",
        )
        .await;
    assert_eq!(verify(&rig.work, &[]).await.0, Some(1));
    let found = [
        r#"codes ["a\""] missing source"#,
        r#"codes ["zz"] extra target"#,
        r#"items ["1"] missing source"#,
        r#"items ["5000"] extra target"#,
        r#"items ["7"] different source target"#,
    ];
    assert_eq!(unequal(&rig.target).await, found);
    assert_eq!(noted(&rig.target).await, "codes 4 by 1, items 201 by 1");

    // A part of the rows says nothing of the others, and is not noted.
    assert_eq!(verify(&rig.work, &["--sample", "50%"]).await.0, Some(1));
    assert_eq!(unequal(&rig.target).await, found);
    // What is repaired is looked at once more, and noted as it is then.
    assert_eq!(verify(&rig.work, &["--repair", "--table", "items"]).await.0, Some(0));
    assert_eq!(unequal(&rig.target).await, found[..2]);
    assert_eq!(
        rig.target.value("SELECT count(*) FROM cutover.migration_rows WHERE source_table = 'items'").await.as_deref(),
        Some("200")
    );

    // Rows that are gone on both sides are no rows any more.
    rig.target.exec("DELETE FROM codes WHERE code = 'zz'").await;
    rig.source.exec("DELETE FROM items WHERE id IN (2, 200); UPDATE items SET qty = 5 WHERE id = 3").await;
    rig.same("SELECT count(*), sum(qty) FROM items").await;
    assert_eq!(verify(&rig.work, &["--repair"]).await.0, Some(0));
    assert_eq!(unequal(&rig.target).await, Vec::<String>::new());
    assert_eq!(verify(&rig.work, &[]).await.0, Some(0));
    assert_eq!(noted(&rig.target).await, "codes 3 by 1, items 198 by 1");
    worker.terminate().await;
    worker.wait_exit(SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_noted_as_it_was_seen_last_on_mysql() {
    each_row_is_noted(Mysql::v80().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_noted_as_it_was_seen_last_on_mariadb() {
    each_row_is_noted(Mysql::mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_noted_as_it_was_seen_last_on_postgresql() {
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    let table = "CREATE TABLE items (a bigint, b uuid, body jsonb, seen timestamptz, PRIMARY KEY (a, b))";
    for side in [&source, &target] {
        side.exec(table).await;
    }
    source
        .exec("INSERT INTO items SELECT i, md5(i::text)::uuid, jsonb_build_object('n', i), now() FROM generate_series(1, 500) i")
        .await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["items"]);
    work.configure_also(ROWS);
    let mut worker = work.start(&[]);
    eventually("synced", SOON, async || {
        let status: Value = serde_json::from_slice(&work.run(&["status", "--json"]).await.stdout).unwrap_or_default();
        status["synced"] == true
    })
    .await;
    assert_clean(&work).await;
    assert_eq!((unequal(&target).await, noted(&target).await), (vec![], "items 500 by 1".into()));
    target.exec("UPDATE items SET body = '{}' WHERE a = 3; DELETE FROM items WHERE a = 4").await;
    assert_eq!(verify(&work, &[]).await.0, Some(1));
    let key = |a: &str| format!("md5({a}::text)::uuid::text");
    let keys = target.query(&format!("SELECT {}, {}", key("3"), key("4"))).await.remove(0);
    let [three, four] = [&keys[0], &keys[1]].map(|key| key.clone().expect("a key"));
    let found = [
        format!(r#"items ["3","{three}"] different source target"#),
        format!(r#"items ["4","{four}"] missing source"#),
    ];
    assert_eq!(unequal(&target).await, found);
    worker.terminate().await;
    worker.wait_exit(SOON).await;
}
