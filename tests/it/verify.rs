//! `cutover verify` on real servers: what was written behind its back is found, and nothing else, while both sides are
//! written.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    job::load,
    rules_rig::Rig,
    support::{Dynamo, Mysql, Postgres, Worker, Workspace, eventually},
};

const SOON: Duration = Duration::from_secs(60);

const MYSQL_TABLES: &str = "
    CREATE TABLE items (id bigint unsigned PRIMARY KEY, sku varchar(40) NOT NULL, qty int, price decimal(12,4), total double,
        details json, changed datetime(6) NULL);
    CREATE TABLE carts (owner varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci NOT NULL, no int NOT NULL, note text,
        PRIMARY KEY (owner, no));
    CREATE TABLE nothing (id int PRIMARY KEY)";
const TARGET_TABLES: &str = "
    CREATE TABLE items (id numeric(20) PRIMARY KEY, sku text NOT NULL, qty int, price numeric(12,2), total real, details jsonb,
        changed timestamp(3));
    CREATE TABLE carts (owner text, no int, note text, PRIMARY KEY (owner, no));
    CREATE TABLE nothing (id int PRIMARY KEY)";
const ROWS: u32 = 3000;

pub(crate) async fn seed(source: &Mysql) {
    source.exec(MYSQL_TABLES).await;
    let items: Vec<String> = (1..=ROWS)
        .map(|id| {
            format!("({id}, 'sku-{id}', {}, {id}.1250, {id} / 7, '{{\"b\": {id}, \"a\": [1.50, null]}}', '2024-01-01 10:00:00.123456')", id % 7)
        })
        .collect();
    source.exec(&format!("INSERT INTO items VALUES {}", items.join(", "))).await;
    // Keys that sort otherwise on the two servers, with the letters of both cases and of other alphabets.
    let carts: Vec<String> = (1..=ROWS)
        .map(|id| {
            let owner = ["abel", "Berta", "\u{e9}mile", "zoe", "\u{c4}gir", "carla"][id as usize % 6];
            format!("('{owner}{}', {id}, 'note {id} ')", id % 50)
        })
        .collect();
    source.exec(&format!("INSERT INTO carts VALUES {}", carts.join(", "))).await;
}

/// A verdict and the exit code with it.
pub(crate) async fn verify(work: &Workspace, arguments: &[&str]) -> (Option<i32>, Value) {
    let out = work.run(&[&["verify", "--json"], arguments].concat()).await;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let verdict = serde_json::from_str(&said);
    let verdict = verdict.unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&out.stderr)));
    (out.status.code(), verdict)
}

pub(crate) fn of<'v>(verdict: &'v Value, table: &str) -> &'v Value {
    let tables = verdict["tables"].as_array().expect("tables");
    tables.iter().find(|found| found["table"] == table).unwrap_or_else(|| panic!("{table}: {verdict}"))
}

/// The rows that were told of a table: kind and key.
pub(crate) fn told(verdict: &Value, table: &str) -> Vec<String> {
    let drift = of(verdict, table)["drift"].as_array().expect("drift");
    let text = |row: &Value| {
        let key: Vec<&str> = row["key"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        format!("{} {}", row["kind"].as_str().unwrap(), key.join(","))
    };
    let mut told: Vec<String> = drift.iter().map(text).collect();
    told.sort();
    told
}

pub(crate) fn counts(verdict: &Value, table: &str) -> [u64; 4] {
    ["rows", "missing", "extra", "different"].map(|name| of(verdict, table)[name].as_u64().unwrap())
}

pub(crate) async fn assert_clean(work: &Workspace) {
    let (code, verdict) = verify(work, &[]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
}

/// Drift of every kind, in both tables: what is told of each.
const DRIFT: &str = "
    DELETE FROM items WHERE id IN (1, 1500, 3000);
    UPDATE items SET qty = 99 WHERE id = 7; UPDATE items SET details = '{\"a\": [1.5, null], \"b\": 9}' WHERE id = 8;
    UPDATE items SET sku = 'sku-9 ' WHERE id = 9; UPDATE items SET price = NULL WHERE id = 10;
    INSERT INTO items (id, sku) VALUES (0, 'below'), (1500000, 'beyond');
    DELETE FROM carts WHERE no = 77; UPDATE carts SET note = 'note 78' WHERE no = 78;
    INSERT INTO carts VALUES ('nobody', 1, 'x'), ('ABEL6', 6, 'another case')";

fn assert_drift(verdict: &Value) {
    let items = ["different 10", "different 7", "different 8", "different 9", "extra 0", "extra 1500000"];
    let missing = ["missing 1", "missing 1500", "missing 3000"];
    assert_eq!(told(verdict, "items"), [&items[..], &missing[..]].concat(), "{verdict}");
    let carts = told(verdict, "carts");
    assert_eq!(carts.len(), 4, "{verdict}");
    assert_eq!(counts(verdict, "items")[1..], [3, 2, 4]);
    assert_eq!(counts(verdict, "carts")[1..], [1, 2, 1]);
    assert_eq!(counts(verdict, "nothing"), [0, 0, 0, 0]);
    let qty = of(verdict, "items")["drift"].as_array().unwrap().iter().find(|row| row["key"][0] == "7").unwrap();
    assert_eq!((qty["columns"].clone(), qty.get("values")), (json!(["qty"]), None), "no values unless asked for");
    let rate = verdict["match_rate"].as_f64().unwrap();
    assert!(rate > 0.99 && rate < 1.0, "{rate}");
}

pub(crate) async fn moved(source: Mysql) -> Rig {
    seed(&source).await;
    let rig = Rig::new(source, Postgres::v15().await, &["items", "carts", "nothing"], "SELECT 1", TARGET_TABLES).await;
    rig.work.configure_also("[snapshot]\nchunk_rows = 400\n");
    rig
}

/// Drift is found while a load goes on beside it that touches other rows; then nothing is left to be found.
async fn drift_is_found_under_load(source: Mysql) {
    let rig = moved(source).await;
    let mut worker = rig.following().await;
    assert_clean(&rig.work).await;
    rig.target.exec(DRIFT).await;

    let (stop, mut random) = (Arc::new(AtomicBool::new(false)), StdRng::seed_from_u64(3));
    let Rig { source, target, work } = rig;
    let source = Arc::new(source);
    let load = load(&source, &stop, move || transaction(&mut random));
    for _ in 0..3 {
        let (code, verdict) = verify(&work, &[]).await;
        assert_eq!((code, verdict["clean"].as_bool()), (Some(1), Some(false)), "{verdict}");
        assert_drift(&verdict);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 50, "the load ran");
    let (_, verdict) = verify(&work, &["--table", "items", "--values"]).await;
    let shown = of(&verdict, "items")["drift"].as_array().unwrap();
    let qty = shown.iter().find(|row| row["key"][0] == "7").unwrap();
    assert_eq!(qty["values"], json!([["0", "99"]]));
    target.exec("SELECT 1").await;
    worker.kill9().await;
}

/// Rows from 20 to 70, and new ones from 10,000 on, in both tables: written, changed, deleted and moved.
fn transaction(random: &mut StdRng) -> String {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..random.random_range(1..=4) {
        let (id, other) = (random.random_range(20..70), random.random_range(10_000..10_200));
        statements.push(match random.random_range(0..7) {
            0 => format!("UPDATE items SET qty = qty + 1 WHERE id = {id}"),
            1 => format!("REPLACE INTO items (id, sku, qty) VALUES ({other}, 'new', {id})"),
            2 => format!("DELETE FROM items WHERE id = {other}"),
            3 => format!("REPLACE INTO carts VALUES ('new', {other}, 'n{id}'), ('Neu', {other}, 'n')"),
            4 => format!("DELETE FROM carts WHERE no = {other}"),
            5 => format!("UPDATE carts SET note = concat('again ', {other}) WHERE no = {id}"),
            // One row, all the time.
            _ => "UPDATE items SET qty = qty + 1 WHERE id = 20".to_owned(),
        });
    }
    statements.push("COMMIT".into());
    statements.join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_under_load_on_mysql_57() {
    drift_is_found_under_load(Mysql::v57().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_under_load_on_mysql_80() {
    drift_is_found_under_load(Mysql::v80().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_under_load_on_mysql_97() {
    drift_is_found_under_load(Mysql::v97().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_under_load_on_mariadb() {
    drift_is_found_under_load(Mysql::mariadb().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_no_run_under_load_gives_a_false_alarm() {
    let rig = moved(Mysql::v80().await).await;
    let mut worker = rig.following().await;
    let (stop, mut random) = (Arc::new(AtomicBool::new(false)), StdRng::seed_from_u64(5));
    let Rig { source, work, .. } = rig;
    let source = Arc::new(source);
    let load = load(&source, &stop, move || transaction(&mut random));
    for _ in 0..15 {
        assert_clean(&work).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 100, "the load ran");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_without_a_worker_what_is_on_its_way_is_said_and_is_no_drift() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    worker.terminate().await;
    assert!(worker.wait_exit(SOON).await.success(), "{}", worker.stderr());
    assert_clean(&rig.work).await;
    rig.target.exec("UPDATE items SET qty = 99 WHERE id = 7").await;
    let (_, verdict) = verify(&rig.work, &[]).await;
    // Other tests write to the same server, whose log then has more than the target.
    let items = of(&verdict, "items");
    assert_eq!(items["different"].as_u64().unwrap() + items["unconfirmed"].as_u64().unwrap(), 1, "{verdict}");
    rig.source.exec("UPDATE items SET qty = 50 WHERE id = 8").await;
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, &counts(&verdict, "items")[1..]), (Some(1), &[0, 0, 0][..]), "{verdict}");
    assert_eq!(of(&verdict, "items")["unconfirmed"], 2, "{verdict}");
    let said = String::from_utf8_lossy(&rig.work.run(&["verify"]).await.stdout).into_owned();
    assert!(said.contains("may still be on their way"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_dead_letters_are_explained_and_neither_drift_nor_clean() {
    let rig = moved(Mysql::v57().await).await;
    rig.target.exec("ALTER TABLE items ADD CHECK (qty < 1000)").await;
    let mut worker = rig.following().await;
    rig.source
        .exec("UPDATE items SET qty = 5000 WHERE id = 7; INSERT INTO items (id, sku, qty) VALUES (9000, 'x', 5000)")
        .await;
    rig.eventually("two dead letters", async |status| status["dead_letters"] == 2).await;
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(1), Some(false)));
    assert_eq!(told(&verdict, "items"), ["explained 7", "explained 9000"], "{verdict}");
    assert_eq!(counts(&verdict, "items")[1..], [0, 0, 0]);
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_39_nothing_compared_a_table_left_out_or_another_transform_is_not_clean() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    let out = rig.work.run(&["verify", "--table", "nope"]).await;
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
    let (code, verdict) = verify(&rig.work, &["--table", "nothing"]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "empty on both sides is equal");
    worker.kill9().await;
    rig.target.exec("UPDATE cutover.tables SET state = 'copying' WHERE source_table = 'carts'").await;
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, of(&verdict, "carts")["skipped"].is_string()), (Some(1), true), "{verdict}");
    rig.target.exec("UPDATE cutover.tables SET state = 'copied' WHERE source_table = 'carts'").await;
    rig.work.transform("carts", "SELECT owner, no, note || '' AS note FROM carts");
    let (code, verdict) = verify(&rig.work, &[]).await;
    assert_eq!((code, verdict["clean"].as_bool(), verdict["caveat"].is_string()), (Some(1), Some(false), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_verifies_at_once_refuse_each_other_and_a_killed_one_leaves_nothing_behind() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    // It cannot end while its table is locked.
    let client = rig.target.connect().await;
    client.batch_execute("BEGIN; LOCK TABLE items IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut first = rig.work.spawn(&["verify"]);
    eventually("the first one compares", SOON, async || {
        let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
            AND application_name LIKE 'cutover %' AND wait_event_type = 'Lock'";
        rig.target.value(waits).await.as_deref() == Some("t")
    })
    .await;
    let second = rig.work.run(&["verify"]).await;
    assert_eq!(second.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `cutover verify`"));
    first.kill().await.unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
    eventually("the next one is let in", SOON, async || rig.work.run(&["verify"]).await.status.code() == Some(0)).await;
    worker.kill9().await;
}

const PG_TABLES: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40), qty int, price numeric(12,4), changed timestamptz);
    CREATE TABLE tokens (id uuid PRIMARY KEY, owner bigint, double int GENERATED ALWAYS AS (owner::int * 2) STORED);
    CREATE TABLE events (id bigint, day date, what text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE events_old PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2024-01-15');
    CREATE TABLE events_new PARTITION OF events FOR VALUES FROM ('2024-01-15') TO (MAXVALUE)";

#[tokio::test(flavor = "multi_thread")]
async fn drift_of_every_kind_is_found_on_postgresql_whatever_its_keys_and_partitions() {
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    source.exec(PG_TABLES).await;
    target.exec(PG_TABLES).await;
    source
        .exec(&format!(
            "INSERT INTO items SELECT i, 's' || i, i % 7, i + 0.25, timestamptz '2024-01-01 10:00:00Z' + i * interval '1 us'
                 FROM generate_series(1, {ROWS}) i;
             INSERT INTO tokens SELECT md5(i::text)::uuid, i FROM generate_series(1, {ROWS}) i;
             INSERT INTO events SELECT i, date '2024-01-01' + i % 30, 'e' || i FROM generate_series(1, {ROWS}) i"
        ))
        .await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["items", "tokens", "events"]);
    work.configure_also("[snapshot]\nchunk_rows = 500\n");
    let mut worker = following(&work).await;
    assert_clean(&work).await;
    target
        .exec(
            "DELETE FROM tokens WHERE id = md5('9')::uuid; INSERT INTO tokens (id, owner) VALUES (md5('x')::uuid, 1);
             UPDATE tokens SET owner = 0 WHERE id = md5('10')::uuid;
             UPDATE events SET what = 'else' WHERE id = 12; DELETE FROM events WHERE id = 13;
             INSERT INTO events VALUES (14, '2023-01-01', 'old'); DELETE FROM items WHERE id % 1000 = 0",
        )
        .await;
    let (stop, mut random) = (Arc::new(AtomicBool::new(false)), StdRng::seed_from_u64(3));
    let source = Arc::new(source);
    let load = load(&source, &stop, move || {
        let (id, other) = (random.random_range(100..200), random.random_range(10_000..10_050));
        format!(
            "UPDATE items SET qty = qty + 1 WHERE id = {id}; UPDATE items SET qty = qty + 1 WHERE id = 100;
             INSERT INTO tokens VALUES (md5('n{other}')::uuid, {id}) ON CONFLICT (id) DO UPDATE SET owner = {id};
             DELETE FROM tokens WHERE id = md5('n{}')::uuid; UPDATE events SET day = date '2024-01-01' + {} WHERE id = {id}",
            other + 7,
            id % 30
        )
    });
    for _ in 0..3 {
        let (code, verdict) = verify(&work, &[]).await;
        assert_eq!(code, Some(1), "{verdict}");
        assert_eq!(counts(&verdict, "items")[1..], [3, 0, 0], "{verdict}");
        assert_eq!(counts(&verdict, "tokens")[1..], [1, 1, 1], "{verdict}");
        assert_eq!(counts(&verdict, "events")[1..], [1, 1, 1], "{verdict}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 50, "the load ran");
    worker.kill9().await;
}

pub(crate) async fn following(work: &Workspace) -> Worker {
    let worker = work.start(&[]);
    eventually("synced", Duration::from_secs(60), async || {
        let status = work.run(&["status", "--json"]).await;
        String::from_utf8_lossy(&status.stdout).contains("\"synced\":true")
    })
    .await;
    worker
}

/// One table into a filtered one, a set, a merged one and one with a computed key.
const SHAPES: &str = "
    CREATE TABLE live_orders (id bigint PRIMARY KEY, state text);
    CREATE TABLE lines (order_id bigint, sku text, qty int, PRIMARY KEY (order_id, sku));
    CREATE TABLE profiles (id bigint PRIMARY KEY, name text, city text);
    CREATE TABLE codes (code text PRIMARY KEY, name text)";

#[tokio::test(flavor = "multi_thread")]
async fn filters_sets_merged_rows_and_computed_keys_are_verified() {
    let source = Mysql::v80().await;
    source
        .exec(
            "CREATE TABLE orders (id bigint PRIMARY KEY, state varchar(10), items json);
             CREATE TABLE users (id bigint PRIMARY KEY, name varchar(20)); CREATE TABLE addresses (id bigint PRIMARY KEY, city varchar(20));
             INSERT INTO orders VALUES (1, 'new', '[{\"s\": \"a\", \"q\": 1}, {\"s\": \"b\", \"q\": 2}]'), (2, 'void', '[]'), (3, 'new', '[]');
             INSERT INTO users VALUES (1, 'ann'), (2, 'bob'), (3, 'cyd'); INSERT INTO addresses VALUES (1, 'rome'), (2, 'oslo'), (9, 'bonn')",
        )
        .await;
    let tables = ["orders", "users", "addresses"];
    let rig = Rig::new(source, Postgres::v15().await, &tables, "SELECT 1", SHAPES).await;
    rig.work.transform("live_orders", "SELECT id, state FROM orders WHERE state <> 'void'");
    rig.work.transform(
        "lines",
        "-- cutover: parent_key = order_id\nSELECT o.id AS order_id, i ->> 's' AS sku, (i ->> 'q')::int AS qty \
         FROM orders o CROSS JOIN LATERAL jsonb_array_elements(o.items) i",
    );
    rig.work.transform("profiles", "SELECT id, name FROM users;\nSELECT id, city FROM addresses");
    rig.work.transform("codes", "SELECT 'u' || id AS code, upper(name) AS name FROM users");
    let mut worker = rig.following().await;
    assert_clean(&rig.work).await;
    rig.source.exec("DELETE FROM addresses WHERE id = 2; DELETE FROM users WHERE id = 3; UPDATE orders SET state = 'void' WHERE id = 3").await;
    rig.target_has("SELECT count(*) FROM live_orders", "1").await;
    rig.target_has("SELECT count(*) FROM profiles", "2").await;
    assert_clean(&rig.work).await;
    rig.target
        .exec(
            "INSERT INTO live_orders VALUES (2, 'void'); INSERT INTO lines VALUES (1, 'c', 1), (3, 'x', 1), (77, 'y', 1);
             UPDATE lines SET qty = 5 WHERE sku = 'b'; UPDATE profiles SET city = 'paris' WHERE id = 1; DELETE FROM profiles WHERE id = 2;
             INSERT INTO codes VALUES ('u77', 'EXTRA'); UPDATE codes SET name = 'ann' WHERE code = 'u1'",
        )
        .await;
    let (_, verdict) = verify(&rig.work, &[]).await;
    let orders = ["different 1,b", "extra 1,c", "extra 2", "extra 3,x", "extra 77,y"];
    assert_eq!(told(&verdict, "orders"), orders, "{verdict}");
    assert_eq!(told(&verdict, "users"), ["different u1", "extra u77", "missing 2"], "{verdict}");
    assert_eq!(told(&verdict, "addresses"), ["different 1"], "{verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_found_on_dynamodb_by_time() {
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let table = source.table("Carts", &[("id", "S")]).await;
    let items: Vec<Value> =
        (0..300).map(|id| json!({"id": {"S": format!("c{id}")}, "n": {"N": id.to_string()}})).collect();
    source.put_all(&table, &items).await;
    target.exec(&format!("CREATE TABLE \"{table}\" (id text PRIMARY KEY, item jsonb NOT NULL)")).await;
    let mut work = Workspace::new("verify_dynamo", &source.url, &target.url(), &[&table]);
    work.set_env("AWS_ACCESS_KEY_ID", "cutover");
    work.set_env("AWS_SECRET_ACCESS_KEY", "cutover");
    work.configure_also("[verify]\nconfirm_seconds = 5\n");
    let mut worker = following(&work).await;
    assert_clean(&work).await;
    target
        .exec(&format!(
            "DELETE FROM \"{table}\" WHERE id = 'c1'; INSERT INTO \"{table}\" VALUES ('x', '{{}}');
             UPDATE \"{table}\" SET item = '{{}}' WHERE id = 'c2'"
        ))
        .await;
    let (code, verdict) = verify(&work, &[]).await;
    assert_eq!(
        (code, told(&verdict, &table)),
        (Some(1), vec!["different c2".into(), "extra x".into(), "missing c1".into()])
    );
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_25_a_repair_mends_every_kind_of_drift_and_overcomes_versions_from_the_future() {
    let rig = moved(Mysql::v80().await).await;
    let mut worker = rig.following().await;
    rig.target.exec(DRIFT).await;
    let ahead = "(extract(epoch FROM now()) * 1000000)::bigint + 90000000";
    rig.target
        .exec(&format!(
            "UPDATE items SET qty = 77, cutover_version = {ahead} WHERE id = 100;
             INSERT INTO items (id, sku, cutover_version) VALUES (77777, 'future', {ahead})"
        ))
        .await;
    let out = rig.work.run(&["verify", "--repair"]).await;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("11 rows repaired") && said.contains("4 rows repaired"), "{said}");
    assert_clean(&rig.work).await;
    // What comes after is newer than what was overcome.
    rig.source.exec("UPDATE items SET qty = 5 WHERE id = 100; DELETE FROM items WHERE id = 101").await;
    rig.target_has("SELECT qty FROM items WHERE id = 100", "5").await;
    rig.target_has("SELECT count(*) FROM items WHERE id = 101", "0").await;
    assert_clean(&rig.work).await;
    assert_eq!(rig.status().await["drift_rows"], 0);
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repairs_that_race_with_deletes_bring_no_row_back() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    rig.target.exec("UPDATE items SET qty = 77 WHERE id BETWEEN 1000 AND 1499").await;
    let repair = rig.work.spawn(&["verify", "--repair", "--json"]);
    for id in 1000..1500 {
        rig.source.exec(&format!("DELETE FROM items WHERE id = {id}")).await;
    }
    let out = repair.wait_with_output().await.unwrap();
    assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stderr));
    rig.target_has("SELECT count(*) FROM items WHERE id BETWEEN 1000 AND 1499", "0").await;
    assert_clean(&rig.work).await;
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_stops_at_its_bound_and_without_a_worker_and_tells_what_the_target_refuses() {
    let rig = moved(Mysql::v57().await).await;
    rig.work.configure_also("[verify]\nrepair_rows_max = 2\n");
    let mut worker = rig.following().await;
    rig.target.exec("UPDATE items SET qty = 77 WHERE id IN (100, 101, 102)").await;
    let (code, verdict) = verify(&rig.work, &["--repair"]).await;
    assert_eq!((code, counts(&verdict, "items")[3]), (Some(1), 3), "{verdict}");
    assert!(verdict["caveat"].as_str().unwrap().contains("repair_rows_max"), "{verdict}");
    assert_eq!(rig.status().await["drift_rows"], 3);
    rig.target.exec("ALTER TABLE items ADD CHECK (id <> 101 OR qty = 77)").await;
    let (code, verdict) = verify(&rig.work, &["--repair-all"]).await;
    assert_eq!((code, told(&verdict, "items")), (Some(1), vec!["explained 101".into()]), "{verdict}");
    assert_eq!(of(&verdict, "items")["repaired"], 2, "what the target refuses is not repaired: {verdict}");
    worker.kill9().await;
    rig.eventually("no worker", async |status| status["worker_running"] == false).await;
    let out = rig.work.run(&["verify", "--repair"]).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no worker runs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_has_the_same_rows_on_both_sides_and_counts_have_their_tolerance() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    let (code, verdict) = verify(&rig.work, &["--sample", "10%", "--table", "items", "--table", "carts"]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
    for table in ["items", "carts"] {
        let rows = counts(&verdict, table)[0];
        assert!((200..400).contains(&rows), "{rows} of {ROWS} in {table}");
    }
    rig.target.exec("DELETE FROM items WHERE id <= 1000; INSERT INTO items (id, sku) SELECT i, 'x' FROM generate_series(10001, 10500) i").await;
    let (_, verdict) = verify(&rig.work, &["--sample", "50%", "--table", "items"]).await;
    let [rows, missing, extra, different] = counts(&verdict, "items");
    assert!((1300..1700).contains(&rows) && (400..600).contains(&missing) && (180..320).contains(&extra), "{verdict}");
    assert_eq!(different, 0);
    let (code, verdict) = verify(&rig.work, &["--count-only"]).await;
    assert_eq!((code, counts(&verdict, "items")), (Some(1), [3000, 500, 0, 0]), "{verdict}");
    rig.work.configure_also("[verify]\ncount_difference_max = 0.2\n");
    let (code, verdict) = verify(&rig.work, &["--count-only"]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
    worker.kill9().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn since_a_checkpoint_only_what_was_changed_is_compared_deletes_among_it() {
    let rig = moved(Mysql::v57().await).await;
    let mut worker = rig.following().await;
    rig.source.exec("UPDATE items SET qty = 1 WHERE id = 50").await;
    rig.target_has("SELECT qty FROM items WHERE id = 50", "1").await;
    assert!(rig.work.run(&["checkpoint", "create", "before"]).await.status.success());
    rig.source.exec("UPDATE items SET qty = 55 WHERE id IN (5, 6, 7); DELETE FROM items WHERE id = 8; UPDATE carts SET note = 'x' WHERE no = 9").await;
    rig.target_has("SELECT count(*) FROM items WHERE qty = 55", "3").await;
    rig.target_has("SELECT count(*) FROM items WHERE id = 8", "0").await;
    rig.target_has("SELECT count(*) FROM carts WHERE note = 'x'", "1").await;
    let (code, verdict) = verify(&rig.work, &["--since", "before"]).await;
    assert_eq!((code, verdict["clean"].as_bool()), (Some(0), Some(true)), "{verdict}");
    assert_eq!((counts(&verdict, "items")[0], counts(&verdict, "carts")[0]), (4, 1), "{verdict}");
    rig.target.exec("UPDATE items SET qty = 1 WHERE id = 6; DELETE FROM items WHERE id = 7; INSERT INTO items (id, sku) VALUES (8, 'back')").await;
    let (code, verdict) = verify(&rig.work, &["--since", "before"]).await;
    assert_eq!((code, told(&verdict, "items")), (Some(1), vec!["different 6".into(), "extra 8".into()]), "{verdict}");
    let out = rig.work.run(&["verify", "--since", "never"]).await;
    assert_eq!(out.status.code(), Some(2));
    let (_, verdict) = verify(&rig.work, &[]).await;
    assert_eq!(
        told(&verdict, "items"),
        ["different 6", "extra 8", "missing 7"],
        "a whole comparison finds what has no version any more"
    );
    let gates: Vec<(&str, bool)> = verdict["gates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gate| (gate["name"].as_str().unwrap(), gate["passed"].as_bool().unwrap()))
        .collect();
    assert_eq!(gates, [("unproven", true), ("match_rate", true), ("count_difference", true)]);
    let told = String::from_utf8_lossy(&rig.work.run(&["status", "--events"]).await.stdout).into_owned();
    assert!(told.contains("verification_result"), "{told}");
    worker.kill9().await;
}
