//! `cutover verify` of targets that are MySQL and MariaDB: what was written behind cutover's back is found and mended,
//! and nothing else, while both sides are written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::{
    job::load,
    mysql_target::pipeline,
    support::{Mysql, Postgres, Worker, Workspace, eventually},
    verify::{assert_clean, counts, following, of, told, verify},
};

const ROWS: u32 = 3000;
const SOURCE: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku text NOT NULL, qty int, price numeric(12,4), total real, details jsonb,
        changed timestamp(3));
    CREATE TABLE carts (owner text, no int, note text, PRIMARY KEY (owner, no));
    CREATE TABLE tokens (id bytea, at timestamptz, until date, PRIMARY KEY (id, at));
    CREATE TABLE nothing (id int PRIMARY KEY)";
const TARGET: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40) NOT NULL, qty int, price decimal(12,4), total float, details json,
        changed datetime(3));
    CREATE TABLE carts (owner varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci, no int, note text, PRIMARY KEY (owner, no));
    CREATE TABLE tokens (id varbinary(16), at timestamp(6) NOT NULL DEFAULT '2000-01-01', until date, PRIMARY KEY (id, at));
    CREATE TABLE nothing (id int PRIMARY KEY)";

async fn moved(source: &Postgres, target: &Mysql) -> Workspace {
    source.exec(SOURCE).await;
    source
        .exec(&format!(
            "INSERT INTO items SELECT i, 'sku-' || i, i % 7, i + 0.125, i / 7.0, jsonb_build_object('b', i, 'a', '[1.5, null]'::jsonb),
                 timestamp '2024-01-01 10:00:00.123' FROM generate_series(1, {ROWS}) i;
             INSERT INTO carts SELECT (ARRAY['abel', 'Berta', '\u{e9}mile', 'zoe', '\u{c4}gir', 'carla'])[i % 6 + 1] || i % 50, i, 'note ' || i || ' '
                 FROM generate_series(1, {ROWS}) i;
             INSERT INTO tokens SELECT decode(md5(i::text), 'hex'), timestamptz '2024-01-01 10:00:00.5Z' + i * interval '1 us', '2024-05-30'
                 FROM generate_series(1, 500) i; ANALYZE"
        ))
        .await;
    target.exec(TARGET).await;
    let work = pipeline(&source.url(), target, &["items", "carts", "tokens", "nothing"]);
    work.configure_also("[snapshot]\nchunk_rows = 400\n");
    work
}

/// Drift of every kind, in tables with keys of every kind.
const DRIFT: &str = "
    DELETE FROM items WHERE id IN (1, 1500, 3000);
    UPDATE items SET qty = 99 WHERE id = 7; UPDATE items SET details = '{\"a\": [1.5, null], \"b\": 9}' WHERE id = 8;
    UPDATE items SET sku = 'sku-9 ' WHERE id = 9; UPDATE items SET price = NULL WHERE id = 10;
    UPDATE items SET sku = 'SKU-11' WHERE id = 11; UPDATE items SET total = total + 0.0625 WHERE id = 12;
    INSERT INTO items (id, sku) VALUES (0, 'below'), (1500000, 'beyond');
    DELETE FROM carts WHERE no = 77; UPDATE carts SET note = 'note 78' WHERE no = 78;
    INSERT INTO carts VALUES ('nobody', 1, 'x'); UPDATE carts SET owner = UPPER(owner) WHERE no = 90;
    UPDATE tokens SET until = '2024-05-31' WHERE MICROSECOND(at) = 500005;
    INSERT INTO tokens VALUES (UNHEX('00FF'), '2024-01-01 10:00:00.25', NULL)";

/// Rows from 20 to 70, and new ones from 10,000 on: written, changed, deleted and moved.
fn transaction(random: &mut StdRng) -> String {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..random.random_range(1..=4) {
        let (id, other) = (random.random_range(20..70), random.random_range(10_000..10_200));
        statements.push(match random.random_range(0..6) {
            0 => format!("UPDATE items SET qty = qty + 1, total = {other} / 7.0 WHERE id = {id}"),
            1 => format!("INSERT INTO items (id, sku, qty) VALUES ({other}, 'new', {id}) ON CONFLICT (id) DO UPDATE SET qty = {id}"),
            2 => format!("DELETE FROM items WHERE id = {other}"),
            3 => format!("INSERT INTO carts VALUES ('new', {other}, 'n{id}') ON CONFLICT DO NOTHING"),
            4 => format!("DELETE FROM carts WHERE no = {other}; UPDATE carts SET note = 'again {other}' WHERE no = {id}"),
            // One row, all the time.
            _ => "UPDATE items SET qty = qty + 1 WHERE id = 20".to_owned(),
        });
    }
    statements.push("COMMIT".into());
    statements.join("; ")
}

async fn drift_is_found_and_mended_under_load(source: Postgres, target: Mysql) {
    let work = moved(&source, &target).await;
    let mut worker = following(&work).await;
    assert_clean(&work).await;
    target.exec(DRIFT).await;

    let (stop, mut random) = (Arc::new(AtomicBool::new(false)), StdRng::seed_from_u64(3));
    let source = Arc::new(source);
    let load = load(&source, &stop, move || transaction(&mut random));
    let (code, verdict) = verify(&work, &[]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(1), Some(false)), "{verdict}");
    let different = ["10", "11", "12", "7", "8", "9"].map(|id| format!("different {id}"));
    let others = ["extra 0", "extra 1500000", "missing 1", "missing 1500", "missing 3000"].map(str::to_owned);
    assert_eq!(told(&verdict, "items"), [&different[..], &others].concat(), "{verdict}");
    // A cart in another case is another row, and the one that it was is missing.
    assert_eq!(counts(&verdict, "carts")[1..], [2, 2, 1], "{verdict}");
    assert_eq!(counts(&verdict, "tokens"), [500, 0, 1, 1], "{verdict}");
    assert_eq!(counts(&verdict, "nothing"), [0, 0, 0, 0]);
    let qty = of(&verdict, "items")["drift"].as_array().unwrap().iter().find(|row| row["key"][0] == "7").unwrap();
    assert_eq!((qty["columns"].clone(), qty.get("values")), (json!(["qty"]), None), "no values unless asked for");
    let (_, verdict) = verify(&work, &["--table", "items", "--values"]).await;
    let shown = of(&verdict, "items")["drift"].as_array().unwrap();
    let qty = shown.iter().find(|row| row["key"][0] == "7").unwrap();
    assert_eq!(qty["values"], json!([["0", "99"]]));

    let (code, verdict) = verify(&work, &["--repair"]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
    assert_clean(&work).await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 50, "the load ran");
    let orphans = target.value("SELECT COUNT(*) FROM items WHERE id IN (0, 1500000)").await;
    assert_eq!(orphans.as_deref(), Some("0"), "what nothing makes is gone");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_and_mended_under_load_on_a_target_of_mysql_57() {
    drift_is_found_and_mended_under_load(Postgres::v18().await, Mysql::v57().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_and_mended_under_load_on_a_target_of_mysql_80() {
    drift_is_found_and_mended_under_load(Postgres::v15().await, Mysql::v80().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_and_mended_under_load_on_a_target_of_mysql_97() {
    drift_is_found_and_mended_under_load(Postgres::v18().await, Mysql::v97().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_and_mended_under_load_on_a_target_of_mariadb() {
    drift_is_found_and_mended_under_load(Postgres::v18().await, Mysql::mariadb().await).await;
}

/// A worker, and a status that says so much.
async fn waits_for(work: &Workspace, worker: &Worker, what: &str) {
    eventually(&format!("{what}: {}", worker.stderr()), Duration::from_secs(60), async || {
        String::from_utf8_lossy(&work.run(&["status", "--json"]).await.stdout).contains(what)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_or_is_a_dead_letter_there_is_explained_and_neither_drift_nor_clean() {
    for target in [Mysql::v57().await, Mysql::mariadb().await] {
        let source = Postgres::v18().await;
        let work = moved(&source, &target).await;
        target.exec("ALTER TABLE items ADD UNIQUE (sku)").await;
        let mut worker = following(&work).await;
        // One has no room, one no unique value, and one a key that the collation takes for another.
        source
            .exec(
                "UPDATE items SET sku = repeat('x', 41) WHERE id = 7; INSERT INTO items (id, sku) VALUES (9000, 'sku-8');
                 INSERT INTO carts VALUES ('ABEL6', 6, 'another case')",
            )
            .await;
        waits_for(&work, &worker, "\"dead_letters\":1").await;
        waits_for(&work, &worker, "\"waiting\":2").await;
        let (code, verdict) = verify(&work, &[]).await;
        assert_eq!((code, verdict["clean"].as_bool()), (Some(1), Some(false)), "{verdict}");
        assert_eq!(of(&verdict, "items")["explained"], 2, "{verdict}");
        assert_eq!(of(&verdict, "carts")["explained"], 1, "{verdict}");
        for table in ["items", "carts", "tokens"] {
            assert_eq!(counts(&verdict, table)[1..], [0, 0, 0], "{verdict}");
        }
        worker.kill9().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_counts_and_what_was_changed_since_a_checkpoint_are_compared_there() {
    let (source, target) = (Postgres::v18().await, Mysql::v80().await);
    let work = moved(&source, &target).await;
    let mut worker = following(&work).await;
    let (code, verdict) = verify(&work, &["--sample", "10%", "--table", "items", "--table", "carts"]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
    for table in ["items", "carts"] {
        let rows = counts(&verdict, table)[0];
        assert!((200..400).contains(&rows), "{rows} of {ROWS} in {table}");
    }
    assert!(work.run(&["checkpoint", "create", "before"]).await.status.success());
    source.exec("UPDATE items SET qty = 55 WHERE id IN (5, 6, 7); DELETE FROM items WHERE id = 8; UPDATE carts SET note = 'x' WHERE no = 9").await;
    eventually("the changes", Duration::from_secs(30), async || {
        let there = "SELECT (SELECT COUNT(*) FROM items WHERE qty = 55) + (SELECT COUNT(*) FROM carts WHERE note = 'x') - \
                     (SELECT COUNT(*) FROM items WHERE id = 8)";
        target.value(there).await.as_deref() == Some("4")
    })
    .await;
    let (code, verdict) = verify(&work, &["--since", "before"]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
    assert_eq!((counts(&verdict, "items")[0], counts(&verdict, "carts")[0]), (4, 1), "{verdict}");
    target
        .exec("UPDATE items SET qty = 1 WHERE id = 6; DELETE FROM items WHERE id = 7; INSERT INTO items (id, sku) VALUES (8, 'back')")
        .await;
    let (code, verdict) = verify(&work, &["--since", "before"]).await;
    // Unlike a row's own version, that of a side table outlives who deletes the row behind it.
    assert_eq!(
        (code, told(&verdict, "items")),
        (Some(1), ["different 6", "extra 8", "missing 7"].map(str::to_owned).to_vec()),
        "{verdict}"
    );
    let (code, verdict) = verify(&work, &["--count-only", "--table", "items"]).await;
    assert_eq!((code, counts(&verdict, "items")), (Some(0), [2999, 0, 0, 0]), "{verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_lead_back_to_no_row_of_the_source_and_rows_that_have_no_parent_are_told_there() {
    let (source, target) = (Postgres::v18().await, Mysql::v97().await);
    source
        .exec("CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE t (id uuid PRIMARY KEY, parent int); INSERT INTO parents VALUES (1);
               INSERT INTO t SELECT ('00000000-0000-4000-8000-0000000000' || i)::uuid, 1 FROM generate_series(10, 60) i")
        .await;
    target
        .exec("CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE t (id char(36) PRIMARY KEY, parent int, FOREIGN KEY of_parent (parent) REFERENCES parents (id))")
        .await;
    let work = pipeline(&source.url(), &target, &["parents", "t"]);
    let mut worker = following(&work).await;
    assert_clean(&work).await;
    target
        .exec("INSERT INTO t VALUES ('x', 1); SET foreign_key_checks = 0; UPDATE t SET parent = 7 WHERE id LIKE '%33'")
        .await;
    let (code, verdict) = verify(&work, &[]).await;
    assert_eq!(
        (code, told(&verdict, "t")),
        (Some(1), vec!["different 00000000-0000-4000-8000-000000000033".into(), "extra x".into()]),
        "{verdict}"
    );
    let gate = verdict["gates"].as_array().unwrap().iter().find(|gate| gate["passed"] == json!(false)).unwrap();
    assert!(verdict.to_string().contains("parent"), "{gate}: {verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_the_server_spells_in_its_own_way_are_compared_and_no_repair_takes_their_rows_away() {
    let (source, target) = (Postgres::v18().await, Mysql::v80().await);
    source
        .exec("CREATE TABLE b (id bytea PRIMARY KEY, n int); INSERT INTO b VALUES ('\\x0a', 1), ('\\x0a0b0c0d', 2);
               CREATE TABLE u (id uuid PRIMARY KEY, name text); INSERT INTO u VALUES ('00000000-0000-4000-8000-00000000000a', 'a')")
        .await;
    target
        .exec("CREATE TABLE b (id binary(4) PRIMARY KEY, n int); CREATE TABLE u (id char(36) PRIMARY KEY, name varchar(5))")
        .await;
    let work = pipeline(&source.url(), &target, &["b", "u"]);
    let mut worker = following(&work).await;
    assert_clean(&work).await;
    assert!(work.run(&["checkpoint", "create", "before"]).await.status.success());
    source.exec("UPDATE b SET n = n + 10; UPDATE u SET name = 'too long'").await;
    waits_for(&work, &worker, "\"dead_letters\":1").await;
    let (code, verdict) = verify(&work, &["--since", "before", "--repair"]).await;
    assert_eq!((code, of(&verdict, "b")["skipped"].is_string()), (Some(1), true), "{verdict}");
    let (code, verdict) = verify(&work, &["--repair"]).await;
    assert_eq!(
        (code, counts(&verdict, "b"), of(&verdict, "u")["explained"].as_u64()),
        (Some(1), [2, 0, 0, 0], Some(1)),
        "{verdict}"
    );
    assert_eq!(counts(&verdict, "u")[1..], [0, 0, 0], "what is there of the dead letter is none's drift: {verdict}");
    let there = target.query("SELECT HEX(id), CAST(n AS CHAR) FROM b ORDER BY id").await;
    let there: Vec<String> =
        there.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(there, ["0A000000 11", "0A0B0C0D 12"]);
    worker.kill9().await;
}
