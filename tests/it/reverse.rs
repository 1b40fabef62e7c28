//! The way back: what is changed at the target goes to the source, and nothing goes round in circles.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use crate::{
    job::{Executes, load},
    support::{Kafka, Mysql, Postgres, Rows, Worker, Workspace, eventually},
};

const TABLES: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, sku varchar(40) NOT NULL, qty int, note text);
    CREATE TABLE carts (owner varchar(40) NOT NULL, no int NOT NULL, total bigint, PRIMARY KEY (owner, no))";
const NAMES: [&str; 2] = ["items", "carts"];
/// Rows as both sides write them.
const ROWS: [&str; 2] =
    ["SELECT id, sku, qty, note FROM items ORDER BY id", "SELECT owner, no, total FROM carts ORDER BY owner, no"];
const SOON: Duration = Duration::from_secs(60);
/// What comes back at all has come back after this long.
const AND_NOTHING_MORE: Duration = Duration::from_millis(2500);

/// The database that is left.
trait Legacy: Executes {
    fn address(&self) -> String;
    fn name(&self) -> String;
    fn rows(&self, sql: &str) -> impl Future<Output = Rows> + Send;
    /// Changes whenever the pipeline writes here.
    fn written(&self) -> impl Future<Output = String> + Send;
    /// What a transaction of a pipeline begins with here.
    fn mark(pipeline: &str) -> String;
}

impl Legacy for Mysql {
    fn address(&self) -> String {
        self.url()
    }

    fn name(&self) -> String {
        self.database().to_owned()
    }

    async fn rows(&self, sql: &str) -> Rows {
        self.query(sql).await
    }

    async fn written(&self) -> String {
        let pipeline = format!("{}-reverse", self.database());
        let nonces = |table: &str| {
            format!("(SELECT COALESCE(SUM(nonce), 0) FROM cutover.{table} WHERE pipeline = '{pipeline}')")
        };
        let sql = format!("SELECT CONCAT_WS('/', {}, {})", nonces("lanes"), nonces("pipeline_marks"));
        self.value(&sql).await.unwrap()
    }

    fn mark(pipeline: &str) -> String {
        format!(
            "INSERT INTO cutover.pipeline_marks (pipeline, writer) VALUES ('{pipeline}', 1) ON DUPLICATE KEY UPDATE nonce = nonce + 1"
        )
    }
}

impl Legacy for Postgres {
    fn address(&self) -> String {
        self.url()
    }

    fn name(&self) -> String {
        self.database().to_owned()
    }

    async fn rows(&self, sql: &str) -> Rows {
        self.query(sql).await
    }

    async fn written(&self) -> String {
        self.value("SELECT max(xmin::text::bigint) FROM (SELECT xmin FROM items UNION ALL SELECT xmin FROM carts) r")
            .await
            .unwrap()
    }

    fn mark(pipeline: &str) -> String {
        format!("SELECT pg_logical_emit_message(true, 'cutover.pipeline', '{pipeline}')")
    }
}

/// A pipeline that goes both ways.
fn both_ways(legacy: &impl Legacy, modern: &Postgres) -> Workspace {
    let work = Workspace::new(&legacy.name(), &legacy.address(), &modern.url(), &NAMES);
    work.configure_also("[reverse]\n");
    work
}

async fn seed(legacy: &impl Legacy, modern: &Postgres, rows: u32) {
    legacy.execute(TABLES.to_owned()).await;
    modern.exec(TABLES).await;
    let items: Vec<String> = (1..=rows).map(|i| format!("({i}, 'sku-{i}', {}, 'n{i}')", i % 7)).collect();
    let carts: Vec<String> = (1..=rows).map(|i| format!("('o{:03}', {i}, {i})", i % 100)).collect();
    legacy.execute(format!("INSERT INTO items VALUES {}", items.join(", "))).await;
    legacy.execute(format!("INSERT INTO carts VALUES {}", carts.join(", "))).await;
}

async fn status(work: &Workspace, direction: &[&str]) -> Option<Value> {
    let output = work.run(&[&["status", "--json"], direction].concat()).await;
    serde_json::from_slice(&output.stdout).ok()
}

/// Waits until a direction has copied what it has to, and runs.
async fn follows(work: &Workspace, direction: &[&str]) {
    eventually("the pipeline follows", SOON, async || {
        status(work, direction).await.is_some_and(|status| status["synced"] == true)
    })
    .await;
}

/// How many changes a direction has applied.
async fn applied(work: &Workspace, direction: &[&str]) -> u64 {
    let status = status(work, direction).await.unwrap();
    status["tables"].as_array().unwrap().iter().map(|table| table["applied"].as_u64().unwrap()).sum()
}

async fn equal(legacy: &impl Legacy, modern: &Postgres, limit: Duration) {
    for (table, rows) in NAMES.iter().zip(ROWS) {
        eventually(&format!("{table} is the same on both sides"), limit, async || {
            let (old, new) = (legacy.rows(rows).await, modern.query(rows).await);
            assert!(!old.is_empty(), "{table} has rows to compare");
            old == new
        })
        .await;
    }
}

/// What nobody but the way there changes, and changes with every row that it writes.
async fn newest_version(modern: &Postgres) -> Option<String> {
    modern
        .value("SELECT max(v) FROM (SELECT cutover_version v FROM items UNION ALL SELECT cutover_version FROM carts) r")
        .await
}

async fn goes_there_and_back<L: Legacy>(legacy: L, modern: Postgres) {
    const BACK: &[&str] = &["--reverse"];
    seed(&legacy, &modern, 300).await;
    let work = both_ways(&legacy, &modern);
    let worker = work.start(&[]);
    follows(&work, &[]).await;
    follows(&work, BACK).await;

    // There: inserted, updated, deleted, another key; and nothing of it comes back.
    legacy.execute("INSERT INTO items VALUES (1001, 'new', 1, 'a')".into()).await;
    legacy
        .execute("UPDATE items SET note = 'there' WHERE id < 20; UPDATE items SET id = 2000 WHERE id = 30".into())
        .await;
    legacy.execute("DELETE FROM carts WHERE no BETWEEN 40 AND 50".into()).await;
    equal(&legacy, &modern, SOON).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!(applied(&work, BACK).await, 0, "nothing came back");
    let (there, version) = (applied(&work, &[]).await, newest_version(&modern).await);

    // Back, in one transaction; and nothing of it is sent there again.
    let changes = "INSERT INTO items VALUES (1002, 'back', NULL, 'b'); UPDATE items SET note = 'back', qty = 9 WHERE id BETWEEN 10 AND 25;
        UPDATE items SET id = 2001 WHERE id = 31; DELETE FROM items WHERE id = 32; INSERT INTO carts VALUES ('z', 1, 5);
        UPDATE carts SET owner = 'y' WHERE no = 60";
    modern.exec(&format!("BEGIN; {changes}; COMMIT")).await;
    equal(&legacy, &modern, SOON).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!(applied(&work, &[]).await, there, "nothing was sent again");
    assert_eq!(newest_version(&modern).await, version, "nothing was written again");
    assert!(applied(&work, BACK).await >= 22);

    // And there once more, over what came back.
    legacy.execute("UPDATE items SET note = 'again' WHERE id IN (12, 1002, 2001)".into()).await;
    equal(&legacy, &modern, SOON).await;

    // A copy does not come back either.
    tokio::time::sleep(AND_NOTHING_MORE).await;
    let (back, version) = (applied(&work, BACK).await, newest_version(&modern).await);
    let asked = work.run(&["resnapshot", "items"]).await;
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    eventually("the table is copied again", SOON, async || newest_version(&modern).await != version).await;
    follows(&work, &[]).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!(applied(&work, BACK).await, back, "the copy did not come back");

    // Whoever else marks transactions is no echo, and ours are, whatever they hold.
    let theirs = |id: u32| format!("INSERT INTO items VALUES ({id}, 'x', 1, 'x')");
    legacy.execute(format!("BEGIN; {}; {}; COMMIT", L::mark("others"), theirs(3001))).await;
    modern.exec(&format!("BEGIN; {}; {}; COMMIT", Postgres::mark("others"), theirs(3002))).await;
    equal(&legacy, &modern, SOON).await;
    legacy
        .execute(format!("BEGIN; {}; {}; COMMIT", L::mark(&format!("{}-reverse", legacy.name())), theirs(3003)))
        .await;
    modern.exec(&format!("BEGIN; {}; {}; COMMIT", Postgres::mark(&legacy.name()), theirs(3004))).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    let count = "SELECT count(*) FROM items WHERE id IN (3003, 3004)";
    assert_eq!(
        [legacy.rows(count).await, modern.query(count).await],
        [[[Some("1".to_owned())]], [[Some("1".to_owned())]]]
    );
    legacy.execute("DELETE FROM items WHERE id = 3003".into()).await;
    modern.exec("DELETE FROM items WHERE id = 3004").await;
    equal(&legacy, &modern, SOON).await;

    // Idle, the way back writes nothing.
    tokio::time::sleep(AND_NOTHING_MORE).await;
    let end = modern.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let passed = format!(
        "SELECT bool_or(confirmed_flush_lsn >= '{end}') FROM pg_replication_slots WHERE database = current_database()"
    );
    let written = legacy.written().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(legacy.written().await, written, "nothing was written while nothing was changed");
    eventually("the slot gives up what is through", SOON, async || modern.value(&passed).await.as_deref() == Some("t"))
        .await;
    measures_each_direction(&worker).await;
}

async fn measures_each_direction(worker: &Worker) {
    let lag = worker.metric("cutover_sync_lag_seconds").await.unwrap();
    let back = worker.metric("cutover_sync_lag_seconds{direction=\"reverse\"}").await.unwrap();
    assert!(lag < 30.0 && back < 30.0, "{lag} {back}");
    let metrics = worker.metrics().await;
    let counts =
        |line: &&str| line.starts_with("cutover_changes_applied_total{") && line.contains("direction=\"reverse\"");
    assert!(metrics.lines().any(|line| counts(&line)), "{metrics}");
    let (code, ready) = worker.get("/readyz").await.unwrap();
    assert_eq!(code, 200, "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_57_and_postgres_15() {
    goes_there_and_back(Mysql::v57().await, Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_80_and_postgres_18() {
    goes_there_and_back(Mysql::v80().await, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_97_and_postgres_18() {
    let legacy = Mysql::v97().await;
    // What users write is packed, and so are the marks of others.
    legacy.exec("SET SESSION binlog_transaction_compression = ON").await;
    goes_there_and_back(legacy, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_and_postgres_15() {
    goes_there_and_back(Mysql::mariadb().await, Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_15_and_postgres_18() {
    goes_there_and_back(Postgres::v15().await, Postgres::v18().await).await;
}

/// One transaction of one to three statements that both kinds of server take.
fn transaction(random: &mut StdRng, keys: u32) -> String {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..random.random_range(1..=3) {
        let (id, other) = (random.random_range(1..=keys), random.random_range(1..=keys));
        statements.push(match random.random_range(0..5) {
            0 => format!(
                "DELETE FROM items WHERE id = {id}; INSERT INTO items VALUES ({id}, 'sku-{id}', {other}, 'l{other}')"
            ),
            1 => format!("UPDATE items SET qty = {other}, note = 'u{other}' WHERE id BETWEEN {id} AND {id} + 5"),
            2 => {
                format!("DELETE FROM carts WHERE no = {id}; INSERT INTO carts VALUES ('l{}', {id}, {other})", other % 9)
            }
            3 => format!("DELETE FROM items WHERE id = {id}"),
            _ => format!("UPDATE carts SET total = {other} WHERE no = {id}"),
        });
    }
    statements.push("COMMIT".into());
    statements.join("; ")
}

/// Has one side written while the worker is killed three times; both sides are equal afterwards.
async fn written_through_kills(work: &Workspace, side: &Arc<impl Executes>, seed: u64) -> Worker {
    let stop = Arc::new(AtomicBool::new(false));
    let mut random = StdRng::seed_from_u64(seed);
    let load = load(side, &stop, move || transaction(&mut random, 400));
    for kill in 0..3 {
        let mut worker = work.start(&[]);
        tokio::time::sleep(Duration::from_millis(3000 + 700 * kill)).await;
        assert!(worker.is_running(), "{}", worker.stderr());
        worker.kill9().await;
    }
    let worker = work.start(&[]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 100, "the load ran");
    worker
}

async fn survives_kills<L: Legacy>(legacy: L, modern: Postgres) {
    seed(&legacy, &modern, 300).await;
    let work = both_ways(&legacy, &modern);
    let mut worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    worker.kill9().await;
    let (legacy, modern) = (Arc::new(legacy), Arc::new(modern));

    let version = newest_version(&modern).await;
    let mut worker = written_through_kills(&work, &modern, 3).await;
    equal(&*legacy, &modern, SOON * 2).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!(newest_version(&modern).await, version, "nothing was sent again");
    worker.kill9().await;

    let back = applied(&work, &["--reverse"]).await;
    let _worker = written_through_kills(&work, &legacy, 4).await;
    equal(&*legacy, &modern, SOON * 2).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!(applied(&work, &["--reverse"]).await, back, "nothing came back");
    assert_eq!(modern.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_echo_nothing_with_mysql_80() {
    survives_kills(Mysql::v80().await, Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_echo_nothing_with_mariadb() {
    survives_kills(Mysql::mariadb().await, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_echo_nothing_with_postgres() {
    survives_kills(Postgres::v18().await, Postgres::v15().await).await;
}

/// The legacy's triggers write in the transaction of the way back: what they write is left out with it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_trigger_writes_for_the_way_back_is_left_out_with_it() {
    let (legacy, modern) = (Mysql::v80().await, Postgres::v15().await);
    seed(&legacy, &modern, 20).await;
    let log = "CREATE TABLE log (id int PRIMARY KEY, what varchar(20))";
    legacy.exec(log).await;
    legacy
        .exec("CREATE TRIGGER told AFTER UPDATE ON items FOR EACH ROW INSERT INTO log VALUES (NEW.id, NEW.note)")
        .await;
    modern.exec(log).await;
    let work = Workspace::new(legacy.database(), &legacy.url(), &modern.url(), &["items", "carts", "log"]);
    work.configure_also("[reverse]\n");
    let _worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    legacy.exec("UPDATE items SET note = 'x' WHERE id = 1").await;
    modern.exec("UPDATE items SET note = 'y' WHERE id = 2").await;
    equal(&legacy, &modern, SOON).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    let found = "SELECT id, what FROM log ORDER BY id";
    let row = |id: &str, what: &str| vec![Some(id.to_owned()), Some(what.to_owned())];
    assert_eq!(legacy.query(found).await, [row("1", "x"), row("2", "y")]);
    assert_eq!(modern.query(found).await, [row("1", "x")]);
}

/// Whatever the way there writes, and however: rows that waited for others, dead letters that are sent again, and what
/// a new copy has not met.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_retried_or_swept_does_not_come_back() {
    let (legacy, modern) = (Mysql::v80().await, Postgres::v15().await);
    seed(&legacy, &modern, 20).await;
    modern.exec("ALTER TABLE items ADD UNIQUE (sku), ADD CONSTRAINT few CHECK (qty < 100)").await;
    let work = both_ways(&legacy, &modern);
    let _worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    let count = async |sql: &str| modern.value(sql).await;

    legacy.exec("INSERT INTO items VALUES (101, 'sku-1', 1, 'waits')").await;
    legacy.exec("UPDATE items SET qty = 500 WHERE id = 2").await;
    eventually("one row waits, and one is set aside", SOON, async || {
        let aside = "SELECT (SELECT count(*) FROM cutover.waiting) || '/' || (SELECT count(*) FROM cutover.dead_letters WHERE state = 'open')";
        count(aside).await.as_deref() == Some("1/1")
    })
    .await;
    legacy.exec("DELETE FROM items WHERE id = 1").await;
    modern.exec("ALTER TABLE items DROP CONSTRAINT few").await;
    let retried = work.run(&["dlq", "retry", "--all"]).await;
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    equal(&legacy, &modern, SOON).await;

    legacy.exec("SET SESSION sql_log_bin = 0; DELETE FROM items WHERE id = 7; SET SESSION sql_log_bin = 1").await;
    let asked = work.run(&["resnapshot", "items"]).await;
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    equal(&legacy, &modern, SOON).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!(applied(&work, &["--reverse"]).await, 0, "nothing came back");
}

/// Each direction has topics of its own, in partitions.
#[tokio::test(flavor = "multi_thread")]
async fn kafka_has_topics_of_each_direction() {
    let (legacy, modern) = (Mysql::mariadb().await, Postgres::v18().await);
    seed(&legacy, &modern, 50).await;
    let work = both_ways(&legacy, &modern);
    let shared = Kafka::shared().await;
    let topics = [legacy.name(), format!("{}-reverse", legacy.name())].map(|name| Kafka::of(&shared.url, &name));
    work.configure_also(&format!("[log]\nurl = {:?}\npartitions = 2\n", shared.url));
    let _worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    legacy.exec("UPDATE items SET note = 'there' WHERE id < 20").await;
    equal(&legacy, &modern, SOON).await;
    modern.exec("UPDATE items SET note = 'back' WHERE id > 30; DELETE FROM carts WHERE no < 10").await;
    equal(&legacy, &modern, SOON).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!((applied(&work, &[]).await, applied(&work, &["--reverse"]).await), (19, 29));
    assert!(topics.iter().all(|topics| !topics.consume("changes", 0).is_empty()));
}

/// The commands that look at both sides look at them the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_is_checked_and_verified() {
    let (legacy, modern) = (Postgres::v15().await, Postgres::v18().await);
    seed(&legacy, &modern, 30).await;
    let work = both_ways(&legacy, &modern);
    let early = work.run(&["check", "--reverse"]).await;
    assert_ne!(early.status.code(), Some(0), "{}", String::from_utf8_lossy(&early.stderr));
    let _worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    modern.exec("UPDATE items SET note = 'back' WHERE id > 20").await;
    equal(&legacy, &modern, SOON).await;
    for arguments in [["check", "--reverse"], ["verify", "--reverse"], ["verify", "--full"]] {
        let output = work.run(&arguments).await;
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(output.status.success(), "{arguments:?}: {said:?}");
    }
    let peer = format!("{}-reverse", legacy.database());
    legacy.exec(&format!("BEGIN; {}; UPDATE items SET note = 'x' WHERE id = 3; COMMIT", Postgres::mark(&peer))).await;
    let drifted = work.run(&["verify", "--reverse", "--full"]).await;
    assert_eq!(drifted.status.code(), Some(1), "{}", String::from_utf8_lossy(&drifted.stdout));
}

/// The legacy's shape is another one: transforms of the way back make it.
#[tokio::test(flavor = "multi_thread")]
async fn transforms_lead_back_to_another_shape() {
    let (legacy, modern) = (Mysql::v57().await, Postgres::v18().await);
    legacy.exec("CREATE TABLE old (id bigint PRIMARY KEY, cents bigint, label varchar(40)); INSERT INTO old VALUES (1, 150, 'a')").await;
    modern.exec("CREATE TABLE prices (no bigint PRIMARY KEY, price numeric(10,2), label text)").await;
    let work = Workspace::new(legacy.database(), &legacy.url(), &modern.url(), &["old"]);
    work.configure_also("[reverse]\ntransforms = \"back\"\n");
    work.transform("prices", "SELECT id AS no, cents / 100.0 AS price, label FROM old");
    std::fs::create_dir(work.path().join("back")).unwrap();
    let back = "SELECT no AS id, (price * 100)::bigint AS cents, label FROM prices";
    std::fs::write(work.path().join("back/old.sql"), back).unwrap();
    let _worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    modern.exec("UPDATE prices SET price = 2.25 WHERE no = 1; INSERT INTO prices VALUES (2, 0.99, 'b')").await;
    eventually("the changes come back", SOON, async || {
        let rows = legacy.query("SELECT id, cents, label FROM old ORDER BY id").await;
        let row = |columns: [&str; 3]| columns.map(|text| Some(text.to_owned())).to_vec();
        rows == [row(["1", "225", "a"]), row(["2", "99", "b"])]
    })
    .await;
    let compared = async || {
        let output = work.run(&["verify", "--reverse"]).await;
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = compared().await;
    assert_eq!(code, Some(0), "{said}");
    let peer = <Mysql as Legacy>::mark(&format!("{}-reverse", legacy.database()));
    legacy.exec(&format!("BEGIN; {peer}; UPDATE old SET cents = 1 WHERE id = 2; COMMIT")).await;
    let (code, said) = compared().await;
    assert!(code == Some(1) && said.contains("cents"), "{said}");
}

/// What is written while nobody asks for a way back bears the mark all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_was_left_out_for_a_while_brings_nothing_round() {
    let (legacy, modern) = (Mysql::v80().await, Postgres::v18().await);
    seed(&legacy, &modern, 50).await;
    let work = both_ways(&legacy, &modern);
    let with = work.configuration();
    let mut worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    for (configuration, note) in [(with.replace("[reverse]\n", ""), "without"), (with, "with")] {
        worker.terminate().await;
        assert!(worker.wait_exit(Duration::from_secs(10)).await.success(), "{}", worker.stderr());
        work.configure(&configuration);
        worker = work.start(&[]);
        follows(&work, &[]).await;
        legacy.exec(&format!("UPDATE items SET note = '{note}'; DELETE FROM carts WHERE no = {}", note.len())).await;
        equal(&legacy, &modern, SOON).await;
    }
    follows(&work, &["--reverse"]).await;
    tokio::time::sleep(AND_NOTHING_MORE).await;
    assert_eq!(applied(&work, &["--reverse"]).await, 0);
    modern.exec("UPDATE items SET note = 'back'").await;
    equal(&legacy, &modern, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_of_the_way_back_is_no_reason_to_copy_a_table() {
    let (legacy, modern) = (Mysql::v57().await, Postgres::v15().await);
    seed(&legacy, &modern, 20).await;
    let work = both_ways(&legacy, &modern);
    let mut worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    worker.kill9().await;
    eventually("the slot is left", SOON, async || {
        let slot = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE NOT active AND database = current_database()";
        modern.value(slot).await.as_deref() == Some("1")
    })
    .await;
    let worker = work.start(&[]);
    eventually("the worker is not ready", SOON, async || {
        let said = worker.get("/readyz").await;
        said.is_ok_and(|(code, why)| {
            code == 503 && why.contains("do not copy any table again") && !why.contains("resnapshot")
        })
    })
    .await;
}

/// The column that each table of the old side gets waits for those who read it, and others behind it.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_the_old_side_holds_others_up_for_a_moment_alone() {
    let (legacy, modern) = (Postgres::v15().await, Postgres::v18().await);
    seed(&legacy, &modern, 20).await;
    let work = both_ways(&legacy, &modern);
    let reader = legacy.connect().await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM items; SELECT count(*) FROM carts").await.unwrap();
    let worker = work.start(&[]);
    follows(&work, &[]).await;
    eventually("the way back waits", SOON, async || {
        worker.get("/readyz").await.is_ok_and(|(_, why)| why.contains("the way back: target is retrying"))
    })
    .await;
    for _ in 0..20 {
        let began = std::time::Instant::now();
        legacy.query("SELECT count(*) FROM items").await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reader.batch_execute("COMMIT").await.unwrap();
    follows(&work, &["--reverse"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halt_of_the_way_back_is_seen_and_the_way_there_goes_on() {
    let (legacy, modern) = (Mysql::v80().await, Postgres::v15().await);
    seed(&legacy, &modern, 20).await;
    let work = both_ways(&legacy, &modern);
    let worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    let publication = modern.value("SELECT pubname FROM pg_publication").await.unwrap();
    modern.exec(&format!("DROP PUBLICATION {publication}")).await;
    eventually("the worker is not ready", SOON, async || {
        let (code, why) = worker.get("/readyz").await.unwrap();
        code == 503 && why.contains("the way back: halted")
    })
    .await;
    eventually("both directions say so", SOON, async || {
        let (there, back) = (status(&work, &[]).await.unwrap(), status(&work, &["--reverse"]).await.unwrap());
        there["retrying"]["reverse"].is_string() && there["halted"].is_null() && back["halted"].is_object()
    })
    .await;
    legacy.exec("UPDATE items SET note = 'goes on'").await;
    equal(&legacy, &modern, SOON).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_of_a_way_back_is_a_usage_error() {
    let (legacy, modern) = (Mysql::v80().await, Postgres::v15().await);
    seed(&legacy, &modern, 5).await;
    let work = both_ways(&legacy, &modern);
    let refused = async |arguments: &[&str], why: &str| {
        let output = work.run(arguments).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(why), "{arguments:?}: {said}");
    };
    refused(&["run", "--role", "apply"], "run without --role").await;
    refused(&["resnapshot", "items", "--reverse"], "--reverse is for").await;
    refused(&["run", "--reverse"], "--reverse is for").await;
    let _worker = work.start(&[]);
    follows(&work, &["--reverse"]).await;
    refused(&["verify", "--repair", "--reverse"], "repairs nothing").await;
    for arguments in [&["dlq", "list", "--reverse"][..], &["checkpoint", "list", "--reverse"]] {
        let output = work.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    work.configure(&work.configuration().replace("[reverse]", ""));
    refused(&["status", "--reverse"], "has no [reverse]").await;
}
