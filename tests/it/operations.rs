//! What an operator and what watches the worker rely on: endpoints, metrics, status, exit codes, signals, outages.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use crate::{
    follow::{Follow, Load, Network, PATIENCE, Proxy, following, lag, metric, ready, status, stop},
    support::{Mysql, Postgres, Workspace, eventually},
};

const DRAINED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_within_ten_seconds_while_changes_stream() {
    let (pipe, mut worker) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..100).await;
    let load = Load::start(&pipe.source, 2, Duration::from_millis(1), |writer, round| {
        format!("UPDATE t SET n = n + 1 WHERE id = {}", (round * 2 + writer) % 100)
    });
    let load = load.await;
    sleep(Duration::from_secs(1)).await;
    worker.terminate().await;
    assert_eq!(worker.wait_exit(DRAINED_WITHIN).await.code(), Some(0), "{}", worker.stderr());
    load.stop().await;
    let lease = "SELECT expires_at < now() FROM cutover.lease";
    assert_eq!(pipe.at_target(lease).await.as_deref(), Some("t"), "the next worker need not wait");
    let _next = pipe.work.start(&[]);
    pipe.in_step().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_worker_in_time_whose_target_is_locked_and_nothing_is_lost() {
    let (pipe, mut worker) = Follow::running(Mysql::v80().await, Postgres::v15().await, 0..10).await;
    let mut blocker = pipe.target.connect().await;
    let blocking = blocker.transaction().await.unwrap();
    blocking.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pipe.source.exec("UPDATE t SET n = 1").await;
    sleep(Duration::from_secs(1)).await;
    worker.terminate().await;
    assert_eq!(worker.wait_exit(DRAINED_WITHIN).await.code(), Some(0), "{}", worker.stderr());
    blocking.rollback().await.unwrap();
    let _next = pipe.work.start(&[]);
    pipe.in_step().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_small_when_idle_grows_while_the_target_stands_still_and_outlives_a_restart() {
    let (pipe, mut worker) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..10).await;
    stop(&mut worker).await;
    pipe.work.configure_also("[http]\nready_lag_max_seconds = 2.5\n");
    worker = pipe.work.start(&[]);
    ready(&worker, 200).await;
    sleep(Duration::from_secs(2)).await;
    // A server with a long binlog file reads through it before it sends anything.
    eventually("the source sends", PATIENCE, async || {
        metric(&worker, "cutover_capture_lag_seconds", &[]).await.is_some_and(|lag| lag < 1.0)
    })
    .await;
    let idle = lag(&worker).await.unwrap();
    assert!(idle < 2.5, "idle, and {idle} s behind");

    let mut blocker = pipe.target.connect().await;
    let blocking = blocker.transaction().await.unwrap();
    blocking.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pipe.source.exec("UPDATE t SET n = 1").await;
    eventually("lag grows", PATIENCE, async || lag(&worker).await.is_some_and(|lag| lag > 3.0)).await;
    let first = lag(&worker).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let second = lag(&worker).await.unwrap();
    assert!(second > first + 0.9, "{first} s, then {second} s: it is computed when it is asked for");
    assert!(ready(&worker, 503).await.contains("ready_lag_max_seconds"));
    let capture = metric(&worker, "cutover_capture_lag_seconds", &[]).await.unwrap();
    assert!(capture < 2.5, "capture goes on meanwhile: {capture} s");

    // A restart must not make a stalled pipeline look as if it had no lag.
    worker.terminate().await;
    worker.wait_exit(DRAINED_WITHIN).await;
    worker = pipe.work.start(&[]);
    eventually("lag is known after the restart", PATIENCE, async || lag(&worker).await.is_some_and(|lag| lag > second))
        .await;
    blocking.rollback().await.unwrap();
    pipe.in_step().await;
    ready(&worker, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_and_the_values_of_the_contract() {
    let (pipe, worker) = Follow::running(Mysql::v80().await, Postgres::v15().await, 0..30).await;
    pipe.source.exec("INSERT INTO t VALUES (100, 1, 'a'), (101, 1, 'b'); UPDATE t SET n = 2 WHERE id < 7; DELETE FROM t WHERE id IN (8, 9, 10)").await;
    pipe.in_step().await;
    let applied =
        async |op: &str| metric(&worker, "cutover_changes_applied_total", &[("table", "t"), ("op", op)]).await;
    eventually("changes are counted", PATIENCE, async || applied("delete").await == Some(3.0)).await;
    assert_eq!(
        (applied("insert").await, applied("update").await),
        (Some(32.0), Some(7.0)),
        "copied rows are inserts too"
    );
    assert_eq!(metric(&worker, "cutover_snapshot_rows_total", &[("table", "t")]).await, Some(30.0));
    eventually("the progress is complete", PATIENCE, async || {
        metric(&worker, "cutover_snapshot_progress_ratio", &[]).await == Some(1.0)
    })
    .await;
    for name in
        ["cutover_conflicts_total", "cutover_dead_letters_total", "cutover_drift_rows", "cutover_traffic_percent"]
    {
        assert_eq!(metric(&worker, name, &[]).await, Some(0.0), "{name} is there before anything has happened");
    }
    for stage in ["capture", "apply", "snapshot", "log"] {
        assert_eq!(metric(&worker, "cutover_sync_errors_total", &[("stage", stage)]).await, Some(0.0), "{stage}");
    }
    // 2 inserts, 7 updates, 3 deletes: from their commit until they were visible.
    assert_eq!(metric(&worker, "cutover_end_to_end_seconds_count", &[]).await, Some(12.0));
    let slowest = metric(&worker, "cutover_end_to_end_seconds_sum", &[]).await.unwrap();
    assert!(slowest > 0.0 && slowest < 120.0, "{slowest}");
    assert!(metric(&worker, "cutover_apply_batch_seconds_bucket", &[("le", "+Inf")]).await.unwrap() >= 2.0);
    for name in ["cutover_sync_lag_seconds", "cutover_capture_lag_seconds"] {
        let seconds = metric(&worker, name, &[]).await.unwrap();
        assert!((0.0..5.0).contains(&seconds), "{name} is {seconds}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_has_the_fields_of_the_contract_with_and_without_a_worker() {
    let (pipe, mut worker) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..30).await;
    pipe.source.exec("UPDATE t SET n = 1 WHERE id < 5").await;
    pipe.in_step().await;
    let json = async || -> Value {
        let out = pipe.work.run(&["status", "--json"]).await;
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    eventually("it is synced", PATIENCE, async || {
        let status = json().await;
        status["synced"] == true && status["tables"][0]["applied"] == 5
    })
    .await;
    let status = json().await;
    assert_eq!(status["phase"], "following");
    assert!((0.0..5.0).contains(&status["lag_seconds"].as_f64().unwrap()), "{status}");
    let table = &status["tables"][0];
    assert_eq!((&table["table"], &table["rows"], &table["copied"]), (&"t".into(), &30.into(), &30.into()));
    for zero in ["waiting", "dead_letters", "drift_rows"] {
        assert_eq!(status[zero], 0, "{zero}");
    }
    assert!(status["halted"].is_null() && status.as_object().unwrap().contains_key("halted"));

    stop(&mut worker).await;
    sleep(Duration::from_secs(1)).await;
    let first = json().await["lag_seconds"].as_f64().unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(json().await["lag_seconds"].as_f64().unwrap() > first + 0.9, "nobody follows: the lag grows");
    let text = pipe.work.run(&["status"]).await;
    assert!(String::from_utf8_lossy(&text.stdout).contains("following"));
}

#[tokio::test(flavor = "multi_thread")]
async fn until_synced_exits_0_in_step_1_with_dead_letters_and_3_on_a_halt() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.target.exec("ALTER TABLE t ADD CHECK (n < 100)").await;
    pipe.insert(0..500).await;
    let until_synced = async || {
        let mut worker = pipe.work.start(&["--until-synced"]);
        let ended = worker.wait_exit(PATIENCE).await;
        (ended.code(), worker.stderr())
    };
    let (code, said) = until_synced().await;
    assert_eq!(code, Some(0), "{said}");
    let (source, target) = pipe.contents().await;
    assert_eq!(source, target, "synced means that everything from before the start is there");

    pipe.source.exec("UPDATE t SET n = n + 1; UPDATE t SET n = 100 WHERE id = 3").await;
    let (code, said) = until_synced().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("1 dead letter(s) are open"), "{said}");
    let others = "SELECT count(*) FROM t WHERE n = 1";
    assert_eq!(
        pipe.at_target(others).await.as_deref(),
        Some("500"),
        "the bad row keeps its old state, all others are there"
    );

    pipe.work.configure_also("[apply]\ndead_letters_max = 1\n");
    pipe.source.exec("UPDATE t SET n = 200 WHERE id IN (4, 5)").await;
    let (code, said) = until_synced().await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("dead_letters_max"), "{said}");

    pipe.source.exec("UPDATE t SET n = 7 WHERE id IN (3, 4, 5)").await;
    pipe.work.configure(&pipe.work.configuration().replace("dead_letters_max = 1", "dead_letters_max = 10"));
    let (code, said) = until_synced().await;
    assert_eq!(code, Some(0), "corrected rows clear their dead letters: {said}");
    let (source, target) = pipe.contents().await;
    assert_eq!(source, target);
}

#[tokio::test]
async fn half_a_worker_needs_a_log_that_the_other_half_reaches() {
    let work = Workspace::new("split", "mysql://u:p@127.0.0.1:1/d", "postgresql://u:p@127.0.0.1:1/d", &["t"]);
    for role in ["capture", "apply"] {
        let ended = work.run(&["run", "--role", role]).await;
        assert_eq!(ended.status.code(), Some(2), "{role}");
        assert!(String::from_utf8_lossy(&ended.stderr).contains("[log] url"), "the message names the setting");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_live_side_by_side_on_one_target() {
    let (one, two, target) = (Mysql::v57().await, Mysql::v57().await, Postgres::v15().await);
    target
        .exec("CREATE TABLE a (id integer PRIMARY KEY, n integer); CREATE TABLE b (id integer PRIMARY KEY, n integer)")
        .await;
    for (source, table) in [(&one, "a"), (&two, "b")] {
        source
            .exec(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1), (2, 2)"
            ))
            .await;
    }
    // In one folder, with two configuration files.
    let work = Workspace::new(one.database(), &one.url(), &target.url(), &["a"]);
    let other = Workspace::new(two.database(), &two.url(), &target.url(), &["b"]);
    std::fs::copy(other.path().join("cutover.toml"), work.path().join("two.toml")).unwrap();
    // Both make the schema `cutover` at the same time.
    let mut workers = [work.start(&[]), work.start(&["-c", "two.toml"])];
    for worker in &workers {
        following(worker).await;
    }
    one.exec("UPDATE a SET n = 10").await;
    two.exec("DELETE FROM b WHERE id = 1").await;
    let seen = "SELECT (SELECT sum(n) FROM a), (SELECT sum(n) FROM b)";
    let row = |a: &str, b: &str| vec![vec![Some(a.to_owned()), Some(b.to_owned())]];
    eventually("both follow", PATIENCE, async || target.query(seen).await == row("20", "2")).await;

    // What is done to one is not done to the other.
    workers[1].kill9().await;
    let copied = work.run(&["resnapshot", "a"]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    one.exec("INSERT INTO a VALUES (3, 5)").await;
    two.exec("INSERT INTO b VALUES (3, 5)").await;
    eventually("one goes on alone", PATIENCE, async || target.query(seen).await == row("25", "2")).await;
    let generations = "SELECT source_table, generation FROM cutover.tables ORDER BY 1";
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(target.query(generations).await, [[text("a"), text("2")], [text("b"), text("1")]]);
    let status = status(&workers[0]).await.unwrap();
    assert_eq!(status["tables"].as_array().unwrap().len(), 1, "{status}");
    workers[1] = work.start(&["-c", "two.toml"]);
    eventually("the other catches up", PATIENCE, async || target.query(seen).await == row("25", "7")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_more_than_16_megabytes_are_copied_and_followed() {
    const BYTES: u32 = 18_000_000;
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    pipe.source.exec(&format!("INSERT INTO t VALUES (1, 1, REPEAT('a', {BYTES})), (2, 1, 'small')")).await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.source
        .exec(&format!("INSERT INTO t VALUES (3, 1, REPEAT('b', {BYTES})); UPDATE t SET n = 2 WHERE id = 1"))
        .await;
    let digest = "SELECT id, n, md5(note) FROM t ORDER BY id";
    let wanted = pipe.source.query(digest).await;
    eventually("the large rows are there", PATIENCE, async || pipe.target.query(digest).await == wanted).await;
    assert_eq!(pipe.target.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_cannot_be_reached_are_tried_until_they_can_and_nothing_is_skipped() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    let (source_url, target_url) = (pipe.source.url(), pipe.target.url());
    let (source, target) = (Proxy::new(&source_url, Network::Cut).await, Proxy::new(&target_url, Network::Cut).await);
    let config = pipe.work.configuration();
    pipe.work.configure(
        &config.replace(&source_url, &source.url(&source_url)).replace(&target_url, &target.url(&target_url)),
    );
    pipe.insert(0..50).await;
    let worker = pipe.work.start(&[]);
    eventually("the target is missed first", PATIENCE, async || {
        ready(&worker, 503).await.contains("target is retrying")
    })
    .await;
    target.set(Network::Open);
    eventually("the source is missed next", PATIENCE, async || {
        ready(&worker, 503).await.contains("source is retrying")
    })
    .await;
    source.set(Network::Open);
    following(&worker).await;
    ready(&worker, 200).await;

    let load = Load::start(&pipe.source, 1, Duration::from_millis(5), |_, round| {
        format!("UPDATE t SET n = n + 1 WHERE id = {}", round % 50)
    });
    let load = load.await;
    for network in [&source, &target] {
        network.set(Network::Cut);
        ready(&worker, 503).await;
        sleep(Duration::from_millis(500)).await;
        network.set(Network::Open);
        ready(&worker, 200).await;
    }
    load.stop().await;
    let caught_up = Instant::now();
    pipe.in_step().await;
    assert!(caught_up.elapsed() < Duration::from_secs(15), "retries are not minutes apart");
}
