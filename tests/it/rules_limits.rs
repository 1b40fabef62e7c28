//! Rules 20, 23 (the fence), 24, 26, 27 and 28: what large, late, failing or hostile input must not do.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use cutover::log::Topic;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    apply_rig::{Rig, insert, read, table, update},
    follow::{Follow, Load, Network, PATIENCE, Proxy, following, lag, metric, ready, status, stop},
    support::{Mysql, Postgres, eventually},
};

/// The row counts that a reader of the target sees until there are `last` rows.
async fn counts_seen(pipe: &Follow, last: u64) -> BTreeSet<u64> {
    let client = pipe.target.connect().await;
    let started = Instant::now();
    let mut seen = BTreeSet::new();
    while !seen.contains(&last) {
        assert!(started.elapsed() < 2 * PATIENCE, "{seen:?}, and never {last}");
        seen.insert(client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0).unsigned_abs());
        sleep(Duration::from_millis(30)).await;
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_20_a_reader_never_sees_half_of_a_huge_transaction_and_memory_stays_bounded() {
    const ROWS: u32 = 200_000;
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    pipe.work.configure_also("[apply]\nbatch_rows_max = 1000\n");
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    let before = worker.peak_mib();
    pipe.insert_at_once(0, ROWS, 400).await;
    assert_eq!(counts_seen(&pipe, ROWS.into()).await, BTreeSet::from([0, ROWS.into()]));
    // The rows alone are more than 80 MiB, and more than that as envelopes.
    let grown = worker.peak_mib() - before;
    assert!(grown < 60, "memory grew by {grown} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_20_beyond_the_bound_a_transaction_is_seen_in_parts_and_the_worker_says_so() {
    const ROWS: u32 = 30_000;
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also("[apply]\nbatch_rows_max = 1000\ntransaction_rows_max = 2000\n");
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.insert_at_once(0, ROWS, 10).await;
    let seen = counts_seen(&pipe, ROWS.into()).await;
    assert!(seen.len() > 2, "a bounded target transaction is shorter than the source's: {seen:?}");
    assert!(worker.stderr().contains("transaction_rows_max"), "{}", worker.stderr());
    pipe.in_step().await;
}

#[tokio::test]
async fn rule_23_a_dead_letter_keeps_older_facts_of_its_row_out_until_a_newer_one() {
    let source =
        table("legacy", &[("id", cutover::model::ColumnType::Integer), ("n", cutover::model::ColumnType::Integer)]);
    let ddl = "CREATE TABLE t (id integer PRIMARY KEY, n integer CHECK (n < 100))";
    let rig = Rig::new(ddl, std::slice::from_ref(&source), &[("t.sql", "SELECT id, n FROM legacy")]).await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let dead = "cutover.dead_letters WHERE state = 'open'";

    let bad = changes
        .apply(vec![insert(&source, 6, &json!({"id": 1, "n": 500})), insert(&source, 6, &json!({"id": 2, "n": 2}))])
        .await;
    assert_eq!((bad.dead_letters, rig.count(dead).await), (1, 1));
    // The copy read this row before it was changed, and is late.
    snapshot
        .apply(vec![read(&source, 5, &json!({"id": 1, "n": 1})), read(&source, 5, &json!({"id": 3, "n": 3}))])
        .await;
    assert_eq!(rig.rows("id, n", "t").await, ["(2,2)", "(3,3)"], "an older state must not look like the present one");
    assert_eq!(rig.count(dead).await, 1);

    changes.apply(vec![update(&source, 7, &json!({"id": 1, "n": 500}), &json!({"id": 1, "n": 7}))]).await;
    assert_eq!(rig.rows("id, n", "t").await, ["(1,7)", "(2,2)", "(3,3)"]);
    assert_eq!(rig.count(dead).await, 0, "a newer fact clears the dead letter");
}

/// Rows whose writing fails with the SQLSTATE that `mood` holds, even where ordinary triggers rest.
const MOODY: &str = "
    CREATE TABLE mood (code text);
    CREATE FUNCTION moody() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE code text;
    BEGIN
      SELECT m.code INTO code FROM public.mood m;
      IF FOUND THEN RAISE EXCEPTION 'not now' USING ERRCODE = code; END IF;
      RETURN NEW;
    END $$;
    CREATE TRIGGER moody BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION moody();
    ALTER TABLE t ENABLE ALWAYS TRIGGER moody";

#[tokio::test(flavor = "multi_thread")]
async fn rule_24_an_outage_is_retried_whole_and_never_bisected_into_bad_rows() {
    let (pipe, worker) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..10).await;
    pipe.target.exec(MOODY).await;
    let errors = async || metric(&worker, "cutover_sync_errors_total", &[("stage", "apply")]).await.unwrap();
    for code in ["40001", "40P01", "55P03", "57014", "53100", "08006"] {
        let before = errors().await;
        pipe.target.exec(&format!("DELETE FROM mood; INSERT INTO mood VALUES ('{code}')")).await;
        pipe.source.exec("UPDATE t SET n = n + 1").await;
        eventually(&format!("{code} is met"), PATIENCE, async || errors().await > before).await;
    }
    assert!(ready(&worker, 503).await.contains("not now"), "/readyz tells what is being retried");
    pipe.target.exec("DELETE FROM mood").await;
    pipe.in_step().await;
    ready(&worker, 200).await;
    assert_eq!(pipe.target.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_24_a_deferred_constraint_blames_its_own_row_alone() {
    let (pipe, worker) = Follow::running(Mysql::v80().await, Postgres::v15().await, 0..10).await;
    pipe.target
        .exec(
            "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.n = 13 THEN RAISE EXCEPTION 'no thirteen' USING ERRCODE = '23514'; END IF; RETURN NULL; END $$;
             CREATE CONSTRAINT TRIGGER judge AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION judge();
             ALTER TABLE t ENABLE ALWAYS TRIGGER judge",
        )
        .await;
    pipe.source
        .exec("BEGIN; UPDATE t SET n = id + 7; INSERT INTO t VALUES (50, 1, 'good'), (51, 13, 'bad'); COMMIT")
        .await;
    pipe.eventually_at_target("SELECT count(*) FROM cutover.dead_letters", "2").await;
    let dead = "SELECT string_agg(key_text || ' ' || sqlstate, ', ' ORDER BY key_text) FROM cutover.dead_letters";
    assert_eq!(pipe.at_target(dead).await.as_deref(), Some("{\"id\":51} 23514, {\"id\":6} 23514"));
    let good = "SELECT count(*) FROM t WHERE n = id + 7 OR id = 50";
    assert_eq!(pipe.at_target(good).await.as_deref(), Some("10"));
    assert_eq!(metric(&worker, "cutover_dead_letters_total", &[]).await, Some(2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_26_a_hot_table_is_copied_and_its_changes_do_not_wait_for_the_copy() {
    const ROWS: u32 = 8000;
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 200\n");
    pipe.insert(0..ROWS).await;
    let load = Load::start(&pipe.source, 2, Duration::from_millis(2), |writer, round| {
        format!(
            "UPDATE t SET n = n + 1 WHERE id BETWEEN {0} AND {0} + 2",
            (round * 37 + writer * 4001) % u64::from(ROWS)
        )
    });
    let load = load.await;
    let worker = pipe.work.start(&[]);
    let mut lags = Vec::new();
    eventually("the hot table is copied", PATIENCE, async || {
        lags.extend(lag(&worker).await);
        status(&worker).await.is_some_and(|status| status["phase"] == "following")
    })
    .await;
    load.stop().await;
    pipe.in_step().await;
    lags.sort_by(f64::total_cmp);
    let median = lags[lags.len() / 2];
    assert!(median < 3.0, "the lag while the table was copied had a median of {median} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_26_the_copy_keeps_its_minimum_share_while_the_stream_lags() {
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    // Every lag is above this limit.
    pipe.work.configure_also("[snapshot]\nchunk_rows = 500\nlag_max_seconds = 0.000001\n");
    pipe.insert(0..1500).await;
    let started = Instant::now();
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    assert!(started.elapsed() > Duration::from_secs(2), "it was throttled");
    pipe.in_step().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_26_a_row_that_waits_is_kept_in_the_target_through_a_kill() {
    let (pipe, mut worker) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..3).await;
    pipe.target.exec("CREATE UNIQUE INDEX notes ON t (note); INSERT INTO t VALUES (999, 0, 'taken')").await;
    pipe.source.exec("INSERT INTO t VALUES (10, 0, 'taken'), (11, 0, 'free')").await;
    pipe.eventually_at_target("SELECT count(*) FROM cutover.waiting", "1").await;
    worker.kill9().await;
    worker = pipe.work.start(&[]);
    following(&worker).await;
    let waits = status(&worker).await.unwrap();
    assert_eq!((&waits["waiting"], &waits["dead_letters"], &waits["synced"]), (&json!(1), &json!(0), &json!(false)));
    assert!(waits["waiting_oldest_seconds"].as_f64().unwrap() > 0.0, "its age is shown: {waits}");
    pipe.target.exec("DELETE FROM t WHERE id = 999").await;
    pipe.in_step().await;
    pipe.eventually_at_target("SELECT count(*) FROM cutover.waiting", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_27_lag_is_that_of_the_partition_that_is_furthest_behind() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also("[log]\npartitions = 3\n");
    pipe.insert(0..50).await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    // The source is idle: its heartbeats alone keep the lag low, in every partition.
    sleep(Duration::from_secs(3)).await;
    let idle = lag(&worker).await.unwrap();
    assert!(idle < 3.0, "idle, and {idle} s behind");
    let mut blocker = pipe.target.connect().await;
    let blocking = blocker.transaction().await.unwrap();
    blocking
        .batch_execute("SELECT FROM cutover.offsets WHERE topic = 'changes' AND part = 2 FOR UPDATE")
        .await
        .unwrap();
    sleep(Duration::from_secs(4)).await;
    let behind = lag(&worker).await.unwrap();
    assert!(behind > 3.5, "partition 2 stands still, and the lag is {behind} s");
    blocking.rollback().await.unwrap();
    eventually("the partition catches up", PATIENCE, async || lag(&worker).await.unwrap() < 3.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_27_a_half_open_connection_shows_as_lag_and_is_replaced() {
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    let proxy = Proxy::new(&pipe.source.url(), Network::Open).await;
    let config = pipe.work.configuration().replace(&pipe.source.url(), &proxy.url(&pipe.source.url()));
    pipe.work.configure(&config);
    pipe.insert(0..10).await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    ready(&worker, 200).await;
    // The connection stays, and nothing comes: our own clock must not look like the source's heartbeat.
    proxy.set(Network::Frozen);
    pipe.source.exec("UPDATE t SET n = 1").await;
    sleep(Duration::from_secs(4)).await;
    let first = lag(&worker).await.unwrap();
    assert!(first > 3.0, "silent for 4 s, and the lag is {first} s");
    assert!(ready(&worker, 503).await.contains("capture is retrying"), "silence is noticed");
    assert!(lag(&worker).await.unwrap() > first);
    proxy.set(Network::Open);
    pipe.in_step().await;
    ready(&worker, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_28_neither_the_search_path_nor_the_databases_settings_change_what_a_transform_means() {
    let (source, target) = (Mysql::v57().await, Postgres::v15().await);
    source
        .exec("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, note varchar(20), at datetime(3), price double)")
        .await;
    source.exec("INSERT INTO t VALUES (1, 1, 'abc', '2024-02-03 04:05:06.789', 0.1)").await;
    let database = target.database();
    target
        .exec(&format!(
            "CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL, note text, at text, price text);
             CREATE FUNCTION public.upper(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT 'hostile' $$;
             CREATE FUNCTION public.sum_of(integer, integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1 + $2';
             CREATE OPERATOR public.+ (LEFTARG = integer, RIGHTARG = integer, FUNCTION = public.sum_of);
             ALTER DATABASE {database} SET DateStyle = 'German, DMY'; ALTER DATABASE {database} SET TimeZone = 'Asia/Tokyo';
             ALTER DATABASE {database} SET extra_float_digits = -10; ALTER DATABASE {database} SET search_path = public, pg_catalog"
        ))
        .await;
    let work = crate::support::Workspace::new(source.database(), &source.url(), &target.url(), &["t"]);
    work.transform("t", "SELECT id, n + 1 AS n, upper(note) AS note, at::text AS at, price::text AS price FROM t");
    let worker = work.start(&[]);
    following(&worker).await;
    source.exec("INSERT INTO t SELECT 2, n, note, at, price FROM t").await;
    let wanted = ["2", "ABC", "2024-02-03 04:05:06.789", "0.1"].map(|text| Some(text.to_owned())).to_vec();
    eventually("copied and streamed rows are as the transform says", PATIENCE, async || {
        target.query("SELECT n, note, at, price FROM t ORDER BY id").await == [wanted.clone(), wanted.clone()]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_28_the_clock_and_other_relations_are_refused_before_anything_is_written() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.target.exec("CREATE TABLE secrets (id integer)").await;
    pipe.insert(0..3).await;
    for (sql, word) in [
        ("SELECT id, n, now()::text AS note FROM t", "now"),
        ("SELECT id, n, random()::text AS note FROM t", "random"),
        ("SELECT id, n, (SELECT max(id)::text FROM secrets) AS note FROM t", "secrets"),
    ] {
        pipe.work.transform("t", sql);
        let mut worker = pipe.work.start(&[]);
        let ended = worker.wait_exit(PATIENCE).await;
        assert_eq!(ended.code(), Some(3), "{sql}");
        let said = worker.stderr();
        assert!(said.contains(word) && said.contains("t.sql:1"), "{said}");
    }
    assert_eq!(pipe.target.value("SELECT count(*) FROM t").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_28_rows_that_a_policy_hides_are_an_error_and_not_absent() {
    let (pipe, mut worker) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..5).await;
    stop(&mut worker).await;
    let user = format!("u{}", pipe.name().trim_start_matches("it_"));
    pipe.target
        .exec(&format!(
            "CREATE USER {user} PASSWORD 'secret'; GRANT USAGE ON SCHEMA cutover, public TO {user};
             GRANT ALL ON ALL TABLES IN SCHEMA cutover, public TO {user}; GRANT ALL ON ALL SEQUENCES IN SCHEMA cutover TO {user};
             ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON t USING (id < 2)"
        ))
        .await;
    let config = pipe.work.configuration().replace(&pipe.target.url(), &pipe.target.url_as(&user, "secret"));
    pipe.work.configure(&config);
    pipe.source.exec("UPDATE t SET n = 1").await;
    let mut worker = pipe.work.start(&["--until-synced"]);
    let ended = worker.wait_exit(PATIENCE).await;
    let said = worker.stderr();
    pipe.target.exec(&format!("DROP OWNED BY {user}; DROP USER {user}")).await;
    assert_eq!(ended.code(), Some(3), "{said}");
    assert!(said.contains("row-level security"), "{said}");
}

/// Rule 18. What was appended of the transaction before stays, and the rest follows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_full_in_the_middle_of_a_transaction_loses_nothing_of_it() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also("[log]\nbytes_max = 16777216\n");
    pipe.insert(0..10).await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.target.exec("BEGIN; LOCK TABLE t").await;
    pipe.insert_at_once(1_000, 1_000, 10_000).await;
    pipe.insert_at_once(5_000, 1_000, 10_000).await;
    let full = async || ready(&worker, 503).await.contains("the log is full");
    eventually("the log is full", PATIENCE, full).await;
    sleep(Duration::from_secs(2)).await;
    pipe.target.exec("COMMIT").await;
    pipe.in_step().await;
    assert_eq!(pipe.at_target("SELECT count(*) FROM t").await.as_deref(), Some("2010"));
}
