//! One process captures, others share the applying: over a real broker, with processes that are killed, paused, added
//! and taken away under load.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;
use tokio::time::sleep;

use crate::{
    follow::{Follow, Load, PATIENCE, following, lag, metric, status, stop},
    support::{Kafka, Mysql, Own, Postgres, Worker, eventually},
};

const CAPTURE: &[&str] = &["--role", "capture"];
const APPLY: &[&str] = &["--role", "apply"];
const ROWS: u64 = 400;
/// Longer than the group waits for a process that is silent, and than a lease lasts.
const PAUSE: Duration = Duration::from_secs(13);

struct Roles {
    pipe: Follow,
    kafka: Kafka,
    partitions: u32,
}

impl Roles {
    /// A pipeline over the shared broker, not started.
    async fn new(partitions: u32) -> Self {
        Self::over(&Kafka::shared().await.url, partitions).await
    }

    async fn over(url: &str, partitions: u32) -> Self {
        let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
        pipe.work.configure_also(&format!(
            "[log]\nurl = {:?}\npartitions = {partitions}\n\n[snapshot]\nchunk_rows = 500\n",
            url
        ));
        let kafka = Kafka::of(url, pipe.name());
        Roles { pipe, kafka, partitions }
    }

    fn start(&self, role: &[&str]) -> Worker {
        self.pipe.work.start(role)
    }

    /// How many partitions each process has, once every partition has a process and all of them have some.
    async fn shared_by(&self, worker: &Worker, processes: usize) -> Vec<usize> {
        let mut shares = Vec::new();
        eventually(&format!("{processes} processes share all partitions"), PATIENCE, async || {
            let Some(status) = status(worker).await else { return false };
            let shared = shares_of(&status);
            let all: BTreeSet<u64> = shared.iter().flatten().copied().collect();
            let sum: usize = shared.iter().map(Vec::len).sum();
            shares = shared.iter().map(Vec::len).collect();
            shared.len() == processes
                && all.len() == self.partitions as usize
                && sum == all.len()
                && !shares.contains(&0)
        })
        .await;
        shares.sort_unstable();
        shares
    }

    /// Every row is equal, nothing is set aside, and the offsets are those of the log's end, which nobody's doubled
    /// batch is past.
    async fn sound(&self, workers: &[&Worker]) {
        self.pipe.in_step().await;
        for zero in [
            "SELECT count(*) FROM cutover.dead_letters",
            "SELECT count(*) FROM cutover.waiting",
            "SELECT count(*) FROM cutover.offsets WHERE topic = 'changes' AND newest_commit_us = 0",
        ] {
            self.pipe.eventually_at_target(zero, "0").await;
        }
        for worker in workers {
            assert_eq!(
                metric(worker, "cutover_invariant_violations_total", &[]).await,
                Some(0.0),
                "{}",
                worker.stderr()
            );
        }
        for partition in 0..self.partitions {
            let next =
                format!("SELECT next_offset FROM cutover.offsets WHERE topic = 'changes' AND part = {partition}");
            let next: i64 = self.pipe.at_target(&next).await.unwrap().parse().unwrap();
            let (_, end) = self.kafka.bounds("changes", partition.cast_signed());
            assert!(next <= end, "{next} of {end} in partition {partition}");
        }
    }
}

fn shares_of(status: &Value) -> Vec<Vec<u64>> {
    let appliers = status["appliers"].as_array().cloned().unwrap_or_default();
    let partitions =
        |applier: &Value| applier["partitions"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    appliers.iter().map(partitions).collect()
}

/// Rows are updated, taken away and put back, in transactions over several partitions.
fn statement(writer: u64, round: u64) -> String {
    // Each session has rows of its own: they must not meet in a deadlock.
    let id = writer * 1000 + round * 7 % ROWS;
    match round % 5 {
        0 => format!("REPLACE INTO t VALUES ({id}, {round}, 'put back')"),
        1 => format!("DELETE FROM t WHERE id = {id}"),
        2 => format!("UPDATE t SET n = n + 1 WHERE id BETWEEN {id} AND {id} + 20"),
        3 => format!("INSERT INTO t VALUES ({}, {round}, 'new')", (writer + 1) * 100_000 + round),
        _ => format!(
            "UPDATE t SET id = id + 1000000, n = n + 1 WHERE id = {}",
            (writer + 1) * 100_000 + round.saturating_sub(6)
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_the_partitions_and_each_tells_the_whole_truth() {
    let roles = Roles::new(4).await;
    let pipe = &roles.pipe;
    let after = pipe.work.path().join("after.sql");
    std::fs::write(&after, "ALTER TABLE t ADD CONSTRAINT t_note UNIQUE (note)").unwrap();
    let config = pipe.work.configuration().replace("[target]", "[target]\nafter_copy = 'after.sql'");
    pipe.work.configure(&config);
    pipe.insert(0..3000).await;
    // Those that apply wait for one that captures.
    let first = roles.start(APPLY);
    eventually("it says what it waits for", PATIENCE, async || {
        first.get("/readyz").await.is_ok_and(|(code, body)| code == 503 && body.contains("--role capture"))
    })
    .await;
    let mut capture = roles.start(CAPTURE);
    let mut second = roles.start(APPLY);
    following(&first).await;
    assert_eq!(roles.shared_by(&capture, 2).await, [2, 2]);
    assert_eq!(
        pipe.at_target("SELECT count(*) FROM pg_indexes WHERE indexname = 't_note'").await.as_deref(),
        Some("1")
    );

    // Notes that move from row to row, which the constraint made after the copy lets pass in one order only.
    let shift = "UPDATE t SET n = n + 1 WHERE id < 1000; UPDATE t SET note = CONCAT('row ', id + 1) WHERE id > 2994";
    pipe.source.exec(shift).await;
    roles.sound(&[&capture, &first, &second]).await;
    eventually("each of them says that it is synced", PATIENCE, async || {
        let mut synced = true;
        for worker in [&capture, &first, &second] {
            let status = status(worker).await.unwrap();
            synced &= status["synced"] == true && status["tables"][0]["applied"] == 1005;
        }
        synced
    })
    .await;
    for worker in [&capture, &first, &second] {
        let seconds = lag(worker).await.unwrap();
        assert!((0.0..5.0).contains(&seconds), "{seconds} s behind");
        assert_eq!(worker.get("/readyz").await.unwrap().0, 200);
    }
    let text = pipe.work.run(&["status"]).await;
    assert!(String::from_utf8_lossy(&text.stdout).contains("partitions "), "{}", String::from_utf8_lossy(&text.stdout));

    // One that goes leaves its part to the other, and the lag is known all the while.
    stop(&mut second).await;
    assert_eq!(roles.shared_by(&capture, 1).await, [4]);
    stop(&mut capture).await;
    sleep(Duration::from_secs(3)).await;
    assert!(lag(&first).await.unwrap() > 2.0, "nobody captures: the lag grows");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_are_killed_paused_added_and_taken_away_under_load_lose_and_double_nothing() {
    let roles = Roles::new(4).await;
    let pipe = &roles.pipe;
    pipe.insert(0..4000).await;
    let load = Load::start(&pipe.source, 3, Duration::from_millis(8), statement).await;
    let mut capture = roles.start(CAPTURE);
    let (mut first, second) = (roles.start(APPLY), roles.start(APPLY));
    roles.shared_by(&capture, 2).await;
    first.kill9().await;
    let mut third = roles.start(APPLY);
    following(&capture).await;
    roles.shared_by(&capture, 2).await;

    second.signal("STOP").await;
    let fourth = roles.start(APPLY);
    sleep(PAUSE).await;
    roles.shared_by(&capture, 2).await;
    second.signal("CONT").await;
    assert_eq!(roles.shared_by(&capture, 3).await, [1, 1, 2]);

    capture.kill9().await;
    sleep(Duration::from_secs(1)).await;
    let capture = roles.start(CAPTURE);
    stop(&mut third).await;
    assert_eq!(roles.shared_by(&second, 2).await, [2, 2]);

    eventually("the new one captures", PATIENCE, async || {
        metric(&capture, "cutover_capture_lag_seconds", &[]).await.is_some_and(|seconds| seconds < 3.0)
    })
    .await;
    capture.signal("STOP").await;
    let other = roles.start(CAPTURE);
    sleep(PAUSE).await;
    capture.signal("CONT").await;
    eventually("it has lost the lease", PATIENCE, async || {
        capture.stderr().contains("another worker has taken the lease")
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    load.stop().await;
    roles.sound(&[&other, &second, &fourth]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_19_a_process_that_was_paused_inside_a_batch_neither_writes_nor_keeps_others_from_it() {
    let roles = Roles::new(2).await;
    let pipe = &roles.pipe;
    pipe.insert(0..2000).await;
    let capture = roles.start(CAPTURE);
    let paused = roles.start(APPLY);
    following(&capture).await;
    // At a pace that leaves no more behind than a slow machine applies within the test's patience.
    let load = Load::start(&pipe.source, 2, Duration::from_millis(40), |writer, round| {
        format!("UPDATE t SET n = n + 1 WHERE id BETWEEN {0} AND {0} + 150", (round * 131 + writer * 977) % 1850)
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    // Not at a place of our choice: it is at work nearly all of the time.
    paused.signal("STOP").await;
    let epochs = "SELECT min(lease_epoch) FROM cutover.offsets";
    let before: i64 = pipe.at_target(epochs).await.unwrap().parse().unwrap();
    let other = roles.start(APPLY);
    sleep(PAUSE).await;
    eventually("the partitions are claimed under a higher number", PATIENCE, async || {
        pipe.at_target(epochs).await.is_some_and(|after| after.parse::<i64>().unwrap() > before)
    })
    .await;
    assert_eq!(roles.shared_by(&capture, 1).await, [2]);
    paused.signal("CONT").await;
    assert_eq!(roles.shared_by(&capture, 2).await, [1, 1]);
    load.stop().await;
    roles.sound(&[&capture, &paused, &other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_19_processes_with_other_transforms_wait_until_nobody_applies_with_the_old_ones() {
    let roles = Roles::new(2).await;
    let pipe = &roles.pipe;
    pipe.insert(0..10).await;
    let mut capture = roles.start(CAPTURE);
    let mut old = roles.start(APPLY);
    following(&capture).await;
    pipe.work.transform("t", "SELECT id, n, upper(note) AS note FROM t");
    let new = roles.start(APPLY);
    let waits = async |worker: &Worker, what: &str| {
        eventually(&format!("it waits: {what}"), PATIENCE, async || {
            worker.get("/readyz").await.is_ok_and(|(code, body)| code == 503 && body.contains(what))
        })
        .await;
    };
    waits(&new, "other transforms").await;
    pipe.source.exec("INSERT INTO t VALUES (100, 1, 'old')").await;
    pipe.eventually_at_target("SELECT note FROM t WHERE id = 100", "old").await;
    // One that captures belongs to them as well.
    stop(&mut old).await;
    waits(&new, "other transforms").await;
    stop(&mut capture).await;
    let mut capture = roles.start(CAPTURE);
    pipe.source.exec("INSERT INTO t VALUES (101, 1, 'new')").await;
    pipe.eventually_at_target("SELECT note FROM t WHERE id = 101", "NEW").await;

    // One worker for everything waits for those that share the work, and they for it.
    let mut all = roles.start(&[]);
    waits(&all, "process").await;
    let mut new = new;
    stop(&mut new).await;
    waits(&all, "lease").await;
    stop(&mut capture).await;
    pipe.source.exec("INSERT INTO t VALUES (102, 1, 'all')").await;
    pipe.eventually_at_target("SELECT note FROM t WHERE id = 102", "ALL").await;
    let new = roles.start(APPLY);
    waits(&new, "applies by itself").await;
    stop(&mut all).await;
    let _capture = roles.start(CAPTURE);
    pipe.source.exec("INSERT INTO t VALUES (103, 1, 'shared')").await;
    pipe.eventually_at_target("SELECT note FROM t WHERE id = 103", "SHARED").await;
    assert_eq!(pipe.at_target("SELECT count(*) FROM t").await.as_deref(), Some("14"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back_has_its_processes_share_again() {
    let broker = Own::Kafka.take().await;
    let roles = Roles::over(broker.url, 3).await;
    let pipe = &roles.pipe;
    pipe.insert(0..2000).await;
    let capture = roles.start(CAPTURE);
    let (first, second) = (roles.start(APPLY), roles.start(APPLY));
    following(&capture).await;
    assert_eq!(roles.shared_by(&capture, 2).await, [1, 2]);
    let load = Load::start(&pipe.source, 2, Duration::from_millis(10), statement).await;
    for away in [Duration::from_secs(1), PAUSE] {
        broker.crash();
        sleep(away).await;
        broker.start();
        eventually("all of them are ready again", PATIENCE, async || {
            let mut ready = true;
            for worker in [&capture, &first, &second] {
                ready &= worker.get("/readyz").await.is_ok_and(|(code, _)| code == 200);
                ready &= lag(worker).await.is_some_and(|seconds| seconds < 5.0);
            }
            ready
        })
        .await;
    }
    load.stop().await;
    roles.shared_by(&capture, 2).await;
    roles.sound(&[&capture, &first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_runs_until_synced() {
    let roles = Roles::new(2).await;
    let pipe = &roles.pipe;
    pipe.insert(0..2000).await;
    let (mut capture, mut apply) = (roles.start(CAPTURE), roles.start(&["--role", "apply", "--until-synced"]));
    let ended = apply.wait_exit(PATIENCE).await;
    assert_eq!(ended.code(), Some(0), "{}", apply.stderr());
    let (source, target) = pipe.contents().await;
    assert_eq!(source, target);
    stop(&mut capture).await;

    pipe.source.exec("UPDATE t SET n = 5").await;
    let mut capture = roles.start(&["--role", "capture", "--until-synced"]);
    eventually("it says that nobody applies", PATIENCE, async || {
        let status = status(&capture).await;
        status.is_some_and(|status| {
            status["retrying"]["apply"].as_str().is_some_and(|what| what.contains("--role apply"))
        })
    })
    .await;
    let _apply = roles.start(APPLY);
    let ended = capture.wait_exit(PATIENCE).await;
    assert_eq!(ended.code(), Some(0), "{}", capture.stderr());
    let (source, target) = pipe.contents().await;
    assert_eq!(source, target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_added_is_known_to_the_processes_that_apply() {
    let roles = Roles::new(2).await;
    let pipe = &roles.pipe;
    pipe.insert(0..100).await;
    let mut capture = roles.start(CAPTURE);
    let apply = roles.start(APPLY);
    following(&capture).await;
    pipe.source.exec("CREATE TABLE u (id int PRIMARY KEY, n int); INSERT INTO u VALUES (1, 1), (2, 2), (3, 3)").await;
    pipe.target.exec("CREATE TABLE u (id integer PRIMARY KEY, n integer)").await;
    stop(&mut capture).await;
    pipe.work.configure(&pipe.work.configuration().replace("[\"t\"]", "[\"t\", \"u\"]"));
    let _capture = roles.start(CAPTURE);
    pipe.source.exec("UPDATE u SET n = 10 WHERE id = 1; UPDATE t SET n = 10").await;
    pipe.eventually_at_target("SELECT string_agg(id || ':' || n, ' ' ORDER BY id) FROM u", "1:10 2:2 3:3").await;
    pipe.in_step().await;
    following(&apply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_partitions_changes_with_a_new_log() {
    let roles = Roles::new(4).await;
    let pipe = &roles.pipe;
    pipe.insert(0..1000).await;
    let (mut capture, mut apply) = (roles.start(CAPTURE), roles.start(APPLY));
    following(&capture).await;
    pipe.source.exec("UPDATE t SET n = 1").await;
    pipe.in_step().await;
    stop(&mut capture).await;
    stop(&mut apply).await;

    for (before, after) in [(4, 2), (2, 3)] {
        let set = |partitions: u32| format!("partitions = {partitions}");
        pipe.work.configure(&pipe.work.configuration().replace(&set(before), &set(after)));
        let checked = pipe.work.run(&["check"]).await;
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.code() == Some(1) && text.contains(&format!("partitions to {before}")), "{text}");
        let mut refused = roles.start(CAPTURE);
        assert_eq!(refused.wait_exit(PATIENCE).await.code(), Some(3), "{}", refused.stderr());
        roles.kafka.delete_topics().await;
        pipe.source.exec(&format!("UPDATE t SET n = {before}; DELETE FROM t WHERE id = {before}")).await;

        let (mut capture, mut apply) = (roles.start(CAPTURE), roles.start(APPLY));
        pipe.in_step().await;
        let parts = "SELECT count(DISTINCT part) FROM cutover.offsets";
        pipe.eventually_at_target(parts, &after.to_string()).await;
        eventually("the lag is that of the new log", PATIENCE, async || {
            status(&capture)
                .await
                .is_some_and(|status| status["synced"] == true && status["lag_seconds"].as_f64() < Some(5.0))
        })
        .await;
        stop(&mut capture).await;
        stop(&mut apply).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_the_pipeline_is_done_where_others_apply() {
    let roles = Roles::new(3).await;
    let pipe = &roles.pipe;
    pipe.work.transform("t", "SELECT id, n + 1000 AS n, note FROM t");
    pipe.target.exec("ALTER TABLE t ADD CONSTRAINT small CHECK (n < 50000)").await;
    pipe.insert(0..600).await;
    let (mut capture, mut first, mut second) = (roles.start(CAPTURE), roles.start(APPLY), roles.start(APPLY));
    following(&capture).await;
    roles.shared_by(&capture, 2).await;
    pipe.source.exec("UPDATE t SET n = id; UPDATE t SET n = 100000 + id WHERE id < 10").await;
    let open = "SELECT count(*) FROM cutover.dead_letters WHERE state = 'open'";
    pipe.eventually_at_target(open, "10").await;
    pipe.target.exec("ALTER TABLE t DROP CONSTRAINT small").await;
    let retried = pipe.work.run(&["dlq", "retry", "--all"]).await;
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    pipe.eventually_at_target(open, "0").await;
    pipe.eventually_at_target("SELECT count(*) FROM t WHERE n >= 101000", "10").await;

    for worker in [&mut capture, &mut first, &mut second] {
        stop(worker).await;
    }
    pipe.work.transform("t", "SELECT id, n, note FROM t");
    let (capture, _first, _second) = (roles.start(CAPTURE), roles.start(APPLY), roles.start(APPLY));
    roles.shared_by(&capture, 2).await;
    let replayed = pipe.work.run(&["replay", "--from", "beginning"]).await;
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    pipe.in_step().await;

    let unseen = "SET sql_log_bin = 0; DELETE FROM t WHERE id % 7 = 0; SET sql_log_bin = 1; UPDATE t SET n = n + 1";
    pipe.source.exec(unseen).await;
    pipe.eventually_at_target("SELECT n FROM t WHERE id = 1", "100002").await;
    let copied = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    roles.sound(&[&capture]).await;
}
