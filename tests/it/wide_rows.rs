//! Rows of megabytes: memory is bounded by bytes, whatever rows there are, in copy, stream, one large transaction, dead
//! letters, rows that are read again, replay, and in the comparing beside all of it
//! (docs/adr/0022-memory-is-bounded-by-bytes.md).

use std::time::Duration;

use serde_json::json;

use crate::{
    rules_rig::Rig,
    support::{Dynamo, Kafka, Mysql, Postgres, Worker, Workspace, eventually},
};

/// The longest that anything may take: hundreds of megabytes pass through four servers of one machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// Of one row.
const BYTES: u32 = 4_000_000;
const ROWS: u32 = 40;
/// What a worker with nothing to do has, and a hundred more. All rows together have more than 150.
const PEAK_MIB_MAX: u64 = 150;
/// What comparing takes beside the stream, which it does whenever it pleases.
const COMPARING_MIB_MAX: u64 = 50;
/// A worker has other things to do in its first minute.
const FIRST_COMPARED_AFTER: Duration = Duration::from_secs(60);
const NOTHING_COMPARED: &str = "[verify]\nrows_per_second = 0\n";

const AT_SOURCE: &str = "CREATE TABLE docs (id int PRIMARY KEY, n int NOT NULL, body longtext)";
const AT_TARGET: &str = "CREATE TABLE docs (id integer PRIMARY KEY, n integer NOT NULL, body text)";

fn bounded(worker: &Worker, what: &str) {
    let peak = worker.peak_mib();
    assert!(peak < PEAK_MIB_MAX, "{what}: the worker had {peak} MiB");
}

/// A pipeline from MySQL or MariaDB, with `ROWS` rows, that compares nothing.
async fn wide(source: Mysql) -> Rig {
    let rig = wide_and_compared(source).await;
    rig.work.configure_also(NOTHING_COMPARED);
    rig
}

async fn wide_and_compared(source: Mysql) -> Rig {
    let rig = Rig::new(source, Postgres::v15().await, &["docs"], AT_SOURCE, AT_TARGET).await;
    fill(&rig.source, 0).await;
    rig
}

async fn fill(source: &Mysql, first: u32) {
    for id in first..first + ROWS {
        source.exec(&format!("INSERT INTO docs VALUES ({id}, 0, REPEAT(MD5({id}), {}))", BYTES / 32)).await;
    }
}

async fn has(target: &Postgres, sql: &str, wanted: u32) {
    eventually(sql, PATIENCE, async || target.value(sql).await == Some(wanted.to_string())).await;
}

/// Whether every row is whole at the target: `md5` of the document by its id.
async fn is_whole(target: &Postgres, rows: u32) {
    let whole = format!("SELECT count(*) FROM docs WHERE body = repeat(md5(id::text), {})", BYTES / 32);
    assert_eq!(target.value(&whole).await, Some(rows.to_string()));
}

/// A copy, a stream, and all rows in one transaction.
async fn copied_and_followed(rig: &Rig) {
    let worker = rig.work.start(&[]);
    has(&rig.target, "SELECT count(*) FROM docs", ROWS).await;
    bounded(&worker, "copy");
    fill(&rig.source, ROWS).await;
    has(&rig.target, "SELECT count(*) FROM docs", 2 * ROWS).await;
    bounded(&worker, "stream");
    rig.source.exec(&format!("UPDATE docs SET n = 1 WHERE id < {ROWS}")).await;
    has(&rig.target, "SELECT count(*) FROM docs WHERE n = 1", ROWS).await;
    bounded(&worker, "one transaction");
    is_whole(&rig.target, 2 * ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_of_mysql_are_copied_and_followed_in_bounded_memory() {
    copied_and_followed(&wide(Mysql::v80().await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_of_mariadb_are_copied_and_followed_in_bounded_memory() {
    copied_and_followed(&wide(Mysql::mariadb().await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_of_postgresql_are_copied_and_followed_in_bounded_memory() {
    let (source, target) = (Postgres::v18().await, Postgres::v15().await);
    source.exec(AT_TARGET).await;
    target.exec(AT_TARGET).await;
    let fill = async |first: u32| {
        let sql = "INSERT INTO docs SELECT i, 0, repeat(md5(i::text), {bytes}) FROM generate_series({first}, {last}) i";
        let sql = sql.replace("{bytes}", &(BYTES / 32).to_string()).replace("{first}", &first.to_string());
        source.exec(&sql.replace("{last}", &(first + ROWS - 1).to_string())).await;
    };
    fill(0).await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["docs"]);
    work.configure_also(NOTHING_COMPARED);
    let worker = work.start(&[]);
    has(&target, "SELECT count(*) FROM docs", ROWS).await;
    bounded(&worker, "copy");
    fill(ROWS).await;
    has(&target, "SELECT count(*) FROM docs", 2 * ROWS).await;
    bounded(&worker, "stream");
    // The documents do not change, so that they are not in the log.
    source.exec(&format!("UPDATE docs SET n = 1 WHERE id < {ROWS}")).await;
    has(&target, "SELECT count(*) FROM docs WHERE n = 1", ROWS).await;
    bounded(&worker, "one transaction");
    is_whole(&target, 2 * ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_items_of_dynamodb_are_copied_and_followed_in_bounded_memory() {
    const ITEMS: u32 = 150;
    let (source, target) = (Dynamo::shared().await, Postgres::v15().await);
    let table = source.table("Docs", &[("id", "S")]).await;
    let put = async |first: u32| {
        for id in first..first + ITEMS {
            // An item has 400 KB at most.
            let body = format!("{id:08}").repeat(48_000);
            source.put(&table, json!({"id": {"S": id.to_string()}, "body": {"S": body}})).await;
        }
    };
    put(0).await;
    target.exec(&format!("CREATE TABLE \"{table}\" (id text PRIMARY KEY, item jsonb NOT NULL)")).await;
    let mut work = Workspace::new("wide_items", &source.url, &target.url(), &[&table]);
    // The table's own limit would allow one of these items a second.
    work.configure_also(&format!("[snapshot]\nread_units_per_second = 1000000\n{NOTHING_COMPARED}"));
    work.set_env("AWS_ACCESS_KEY_ID", "cutover");
    work.set_env("AWS_SECRET_ACCESS_KEY", "cutover");
    let worker = work.start(&[]);
    let count = format!("SELECT count(*) FROM \"{table}\" WHERE length(item->>'body') = 384000");
    has(&target, &count, ITEMS).await;
    // The service's client has each page of 1 MB as bytes, as text and as values, of copy and stream at once.
    let bounded = |what: &str| {
        let peak = worker.peak_mib();
        assert!(peak < PEAK_MIB_MAX + 60, "{what}: the worker had {peak} MiB");
    };
    bounded("copy");
    put(ITEMS).await;
    has(&target, &count, 2 * ITEMS).await;
    bounded("stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_pass_through_kafka_in_bounded_memory() {
    let shared = Kafka::shared().await;
    let rig = wide(Mysql::v80().await).await;
    let _topics = Kafka::of(&shared.url, rig.source.database());
    rig.work.configure_also(&format!("[log]\nurl = {:?}\n", shared.url));
    let worker = rig.work.start(&[]);
    has(&rig.target, "SELECT count(*) FROM docs", ROWS).await;
    fill(&rig.source, ROWS).await;
    has(&rig.target, "SELECT count(*) FROM docs", 2 * ROWS).await;
    let peak = worker.peak_mib();
    // librdkafka holds what it sends and what it has fetched ahead.
    assert!(peak < PEAK_MIB_MAX + 100, "the worker had {peak} MiB");
    is_whole(&rig.target, 2 * ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_are_compared_beside_the_stream_in_bounded_memory() {
    let rig = wide_and_compared(Mysql::v80().await).await;
    let worker = rig.following().await;
    tokio::time::sleep(FIRST_COMPARED_AFTER).await;
    let compared = "SELECT count(*) FROM cutover.notes WHERE key LIKE 'verified %'";
    let mut n = 0;
    eventually("the table is compared", PATIENCE, async || {
        n += 1;
        rig.source.exec(&format!("UPDATE docs SET n = {n}")).await;
        has(&rig.target, &format!("SELECT count(*) FROM docs WHERE n = {n}"), ROWS).await;
        rig.target.value(compared).await.as_deref() == Some("1")
    })
    .await;
    let peak = worker.peak_mib();
    assert!(peak < PEAK_MIB_MAX + COMPARING_MIB_MAX, "the worker had {peak} MiB");
    is_whole(&rig.target, ROWS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_that_are_set_aside_read_again_and_replayed_stay_in_bounded_memory() {
    let rig = wide(Mysql::v80().await).await;
    rig.target.exec("ALTER TABLE docs ADD CONSTRAINT small CHECK (length(body) < 1000)").await;
    let mut worker = rig.work.start(&[]);
    eventually("all are set aside", PATIENCE, async || rig.status().await["dead_letters"] == ROWS).await;
    bounded(&worker, "dead letters");
    rig.target.exec("ALTER TABLE docs DROP CONSTRAINT small").await;
    let retried = rig.work.run(&["dlq", "retry", "--all"]).await;
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    bounded(&worker, "rows that are read again");
    is_whole(&rig.target, ROWS).await;
    worker.terminate().await;
    worker.wait_exit(PATIENCE).await;
    rig.work.transform("docs", "SELECT id, n + 7 AS n, body FROM docs");
    let worker = rig.following().await;
    let replayed = rig.work.run(&["replay", "--from", "beginning"]).await;
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    has(&rig.target, "SELECT count(*) FROM docs WHERE n = 7", ROWS).await;
    bounded(&worker, "replay");
}
