//! `cutover verify --round-trip`: which rows of the source come back equal, before anybody depends on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use crate::{
    job::load,
    support::{Mysql, Postgres, Workspace, eventually},
    verify::{counts, following, of, told, verify},
};

fn columns(verdict: &Value, table: &str, key: &str) -> String {
    let drift = of(verdict, table)["drift"].as_array().unwrap();
    let row = drift.iter().find(|row| row["key"][0] == key).unwrap_or_else(|| panic!("{key}: {verdict}"));
    row["columns"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect::<Vec<_>>().join(",")
}

fn back(work: &Workspace, table: &str, select: &str) {
    std::fs::create_dir_all(work.path().join("reverse")).unwrap();
    std::fs::write(work.path().join(format!("reverse/{table}.sql")), select).unwrap();
}

const ORDERS: &str = "
    CREATE TABLE orders (id bigint unsigned PRIMARY KEY, price decimal(12,4) NOT NULL, state enum('open','done'), paid tinyint(1) NOT NULL,
        at datetime(6), extra json, note varchar(50), blobs varbinary(20));
    INSERT INTO orders VALUES (1, 1.5000, 'open', 1, '2024-01-01 10:00:00.123456', '{\"a\": [1.5, null]}', NULL, x'00ff'),
        (2, 2.1255, 'done', 0, NULL, NULL, NULL, NULL), (3, 3.2500, NULL, 1, '2024-01-01 10:00:00', '{}', 'a note', ''),
        (18446744073709551615, 0, 'open', 0, NULL, NULL, NULL, NULL)";
const MODERN: &str =
    "CREATE TABLE purchases (no numeric(20) PRIMARY KEY, price numeric(12,2), state text, paid boolean, at timestamptz,
        extra jsonb, blobs bytea)";
const THERE: &str = "SELECT id AS no, round(price, 2) AS price, state, paid = 1 AS paid, at AT TIME ZONE 'UTC' AS at, extra, blobs FROM orders";
const BACK: &str =
    "SELECT no AS id, price, state, paid::int AS paid, at AT TIME ZONE 'UTC' AS at, extra, blobs FROM purchases";

async fn strays_are_named(legacy: Mysql, modern: Postgres) {
    legacy.exec(ORDERS).await;
    modern.exec(MODERN).await;
    let work = Workspace::new(legacy.database(), &legacy.url(), &modern.url(), &["orders"]);
    work.transform("purchases", THERE);
    back(&work, "orders", BACK);
    let mut worker = following(&work).await;
    let early = work.run(&["verify", "--round-trip"]).await;
    assert_eq!(early.status.code(), Some(2), "there is no [reverse]");
    // It is looked at before the way back has begun, and while the source is written.
    work.configure_also("[reverse]\n");
    let (stop, mut paid) = (Arc::new(AtomicBool::new(false)), 0);
    let legacy = Arc::new(legacy);
    let writes = load(&legacy, &stop, move || {
        paid = 1 - paid;
        format!("UPDATE orders SET paid = {paid} WHERE id = 1")
    });
    for _ in 0..3 {
        let (code, verdict) = verify(&work, &["--round-trip"]).await;
        assert_eq!((code, counts(&verdict, "orders")), (Some(1), [4, 0, 0, 2]), "{verdict}");
        assert_eq!(
            (columns(&verdict, "orders", "2"), columns(&verdict, "orders", "3")),
            ("price".into(), "note".into())
        );
    }
    stop.store(true, Ordering::Relaxed);
    writes.await.unwrap();
    legacy.exec("UPDATE orders SET price = 2.12, note = NULL").await;
    let (code, verdict) = verify(&work, &["--round-trip"]).await;
    assert_eq!((code, counts(&verdict, "orders")), (Some(0), [4, 0, 0, 0]), "{verdict}");

    // A filter, there or back, brings nothing of some rows.
    work.transform("purchases", &format!("{THERE} WHERE state IS NOT NULL"));
    back(&work, "orders", &format!("{BACK} WHERE price <> 2.12 OR no <> 1"));
    let (code, verdict) = verify(&work, &["--round-trip"]).await;
    assert_eq!(
        (code, told(&verdict, "orders")),
        (Some(1), vec!["different 1".into(), "different 3".into()]),
        "{verdict}"
    );
    assert!(verdict.to_string().contains("a filter leaves it out"), "{verdict}");
    // What cannot be read as a number is told as what it is, and the others all the same.
    work.transform("purchases", THERE);
    back(&work, "orders", &BACK.replace("price,", "10 / (no - 2) AS price,"));
    let (code, verdict) = verify(&work, &["--round-trip"]).await;
    assert_eq!((code, counts(&verdict, "orders")[3]), (Some(1), 4), "{verdict}");
    assert!(verdict.to_string().contains("22012"), "{verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_come_back_equal_to_mysql_57_are_named_with_their_columns() {
    strays_are_named(Mysql::v57().await, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_come_back_equal_to_mysql_97_are_named_with_their_columns() {
    strays_are_named(Mysql::v97().await, Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_copied_as_they_are_come_back_as_they_are_and_sets_are_left_out() {
    let (legacy, modern) = (Postgres::v15().await, Postgres::v18().await);
    let tables = "CREATE TABLE a (id int PRIMARY KEY, name text, x double precision, j json, u uuid, t timestamptz(3), n numeric(10,2)[]);
         CREATE TABLE tags (id int PRIMARY KEY, tags text[])";
    legacy
        .exec(&format!(
            "{tables}; INSERT INTO a SELECT i, 'n' || i, i / 3.0, '{{\"b\":  1}}', gen_random_uuid(), now(), ARRAY[i / 4.0] FROM generate_series(1, 500) i;
             INSERT INTO tags VALUES (1, '{{x,y}}')"
        ))
        .await;
    modern.exec(&format!("{tables}; CREATE TABLE tag (id int, tag text, PRIMARY KEY (id, tag))")).await;
    let work = Workspace::new(legacy.database(), &legacy.url(), &modern.url(), &["a", "tags"]);
    work.transform("tag", "-- cutover: parent_key = id\nSELECT id, unnest(tags) AS tag FROM tags");
    work.configure_also("[reverse]\n");
    back(&work, "tags", "SELECT id, ARRAY[tag] AS tags FROM tag WHERE tag = 'x'");
    let mut worker = following(&work).await;
    let (code, verdict) = verify(&work, &["--round-trip", "--table", "a"]).await;
    assert_eq!((code, counts(&verdict, "a")), (Some(0), [500, 0, 0, 0]), "{verdict}");
    let (code, verdict) = verify(&work, &["--round-trip"]).await;
    assert_eq!((code, of(&verdict, "tags")["skipped"].is_string()), (Some(1), true), "{verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_side_cannot_store_does_not_come_back_and_what_it_stores_otherwise_does() {
    let (legacy, modern) = (Postgres::v15().await, Postgres::v18().await);
    legacy
        .exec("CREATE TYPE mood AS ENUM ('ok', 'bad');
               CREATE TABLE p (id int PRIMARY KEY, m mood, j json, c varchar(10), nick text, n numeric(10,2));
               CREATE TABLE e (email text PRIMARY KEY); INSERT INTO e VALUES ('A@x'), ('a@x');
               INSERT INTO p VALUES (1, 'ok', '{\"a\":   1}', 'abcd', 'x', 1.10), (2, 'bad', NULL, 'abcde', 'x', NULL), (3, NULL, NULL, NULL, NULL, 0)")
        .await;
    modern
        .exec("CREATE TABLE p (id int PRIMARY KEY, m text, j jsonb, c varchar(4), nick text NOT NULL, n double precision);
               CREATE TABLE e (email text PRIMARY KEY)")
        .await;
    let work = Workspace::new(legacy.database(), &legacy.url(), &modern.url(), &["p", "e"]);
    work.transform("e", "SELECT lower(email) AS email FROM e");
    work.configure_also("[reverse]\n");
    let mut worker = work.start(&[]);
    eventually("the rows that can be stored are", Duration::from_secs(60), async || {
        modern.value("SELECT (SELECT count(*) FROM p) + (SELECT count(*) FROM e)").await.as_deref() == Some("2")
    })
    .await;
    let (code, verdict) = verify(&work, &["--round-trip"]).await;
    assert_eq!((code, told(&verdict, "p")), (Some(1), vec!["different 2".into(), "different 3".into()]), "{verdict}");
    assert!(of(&verdict, "e")["skipped"].is_string(), "two rows may make one: {verdict}");
    worker.kill9().await;
}
