//! Replay: a part of the log again, through corrected transforms, beside the stream.

use std::time::Duration;

use serde_json::Value;

use crate::{
    follow::{Follow, Load, PATIENCE, following, stop},
    rules_rig::Rig,
    support::{Kafka, Mysql, Postgres, Worker, eventually},
};

/// Takes note of every row that moves back, or that comes in again after it was deleted for good (ids from 900,000 on).
const WATCH: &str = "
    CREATE TABLE moved_back (id integer, what text);
    CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF TG_OP = 'INSERT' AND NEW.id >= 900000 THEN
        INSERT INTO public.moved_back VALUES (NEW.id, 'came back');
      ELSIF TG_OP = 'UPDATE' AND NEW.cutover_version < OLD.cutover_version THEN
        INSERT INTO public.moved_back VALUES (NEW.id, 'moved back');
      END IF;
      RETURN NULL;
    END $$;
    CREATE TRIGGER watch AFTER INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION watch();
    ALTER TABLE t ENABLE ALWAYS TRIGGER watch";

/// What a pipeline of a few rows needs to have its transform and its worker changed.
struct Corrected {
    pipe: Follow,
    worker: Worker,
}

impl Corrected {
    /// Rows that a transform gets wrong: `n` is off by a thousand.
    async fn wrong(source: Mysql, rows: u32, batch_rows_max: u32) -> Self {
        let pipe = Follow::new(source, Postgres::v15().await).await;
        Self::over(pipe, rows, batch_rows_max).await
    }

    async fn over(pipe: Follow, rows: u32, batch_rows_max: u32) -> Self {
        pipe.work.configure_also(&format!("[apply]\nbatch_rows_max = {batch_rows_max}\n"));
        pipe.work.transform("t", "SELECT id, n + 1000 AS n, note FROM t");
        pipe.insert(0..rows).await;
        let worker = pipe.work.start(&[]);
        following(&worker).await;
        Corrected { pipe, worker }
    }

    /// A worker with this transform.
    async fn restart(&mut self, transform: &str) {
        stop(&mut self.worker).await;
        self.pipe.work.transform("t", transform);
        self.worker = self.pipe.work.start(&[]);
        eventually("the next worker runs", PATIENCE, async || self.status().await["worker_running"] == true).await;
    }

    async fn said(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let out = self.pipe.work.run(arguments).await;
        let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (out.status.code(), text)
    }

    async fn replay(&self, from: &str) -> String {
        let (code, text) = self.said(&["replay", "--from", from]).await;
        assert_eq!(code, Some(0), "{text}");
        text
    }

    /// Waits until the target has had every change of the source.
    async fn caught_up(&self) {
        self.pipe.source.exec("REPLACE INTO t VALUES (899999, 0, md5(rand()))").await;
        let wanted = self.pipe.source.value("SELECT note FROM t WHERE id = 899999").await;
        eventually("the last change is applied", PATIENCE, async || {
            self.pipe.at_target("SELECT note FROM t WHERE id = 899999").await == wanted
        })
        .await;
    }

    async fn is(&self, sql: &str, wanted: &str) {
        assert_eq!(self.pipe.target.value(sql).await.as_deref(), Some(wanted), "{sql}");
    }

    /// Everything of the target that is not as the source's, where it should be.
    async fn in_step(&self) {
        self.pipe.in_step().await;
        self.is("SELECT (SELECT count(*) FROM cutover.dead_letters) + (SELECT count(*) FROM cutover.waiting)", "0")
            .await;
    }

    async fn status(&self) -> Value {
        serde_json::from_slice(&self.pipe.work.run(&["status", "--json"]).await.stdout).unwrap_or_default()
    }
}

const ROWS: u32 = 20_000;
const RIGHT: &str = "SELECT id, n, note FROM t";

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_corrected_transform_corrects_every_row_under_load_and_through_a_kill() {
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    corrects_every_row(Corrected::over(pipe, ROWS, 50).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_corrected_transform_corrects_every_row_over_partitions_of_kafka_too() {
    let shared = Kafka::shared().await;
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    pipe.work.configure_also(&format!("[log]\nurl = {:?}\npartitions = 3\n", shared.url));
    let _topics = Kafka::of(&shared.url, pipe.name());
    corrects_every_row(Corrected::over(pipe, ROWS, 50).await).await;
}

async fn corrects_every_row(mut it: Corrected) {
    // Rows that were and are no more: their tombstones are forgotten by the time of the replay.
    it.pipe.insert(900_000..900_500).await;
    it.pipe.source.exec("UPDATE t SET n = n + 1 WHERE id >= 899000; DELETE FROM t WHERE id >= 900000").await;
    it.caught_up().await;
    it.restart(RIGHT).await;
    it.is("SELECT count(*) > 19000 FROM t WHERE n >= 1000", "t").await;
    it.pipe.target.exec(WATCH).await;
    it.pipe.target.exec("DELETE FROM cutover.tombstones_public_t").await;
    let load = Load::start(&it.pipe.source, 2, Duration::from_millis(2), |writer, round| {
        let id = (round * 2 + writer) * 7 % 20_000;
        match round % 5 {
            0 => format!("DELETE FROM t WHERE id = {id}"),
            1 => format!("INSERT IGNORE INTO t VALUES ({}, 1, 'new')", 100_000 + round * 2 + writer),
            _ => format!("UPDATE t SET n = n + 1 WHERE id = {id}"),
        }
    });
    let load = load.await;
    let (replayed, ()) = tokio::join!(it.pipe.work.run(&["replay", "--from", "beginning"]), async {
        let mut worker = it.pipe.work.start(&[]);
        eventually("it is on its way", PATIENCE, async || {
            let status = it.status().await;
            let replay = &status["replay"];
            let percent = replay["percent"].as_f64().unwrap_or_default();
            assert!(percent < 90.0, "the replay was too fast to be killed: {replay}");
            percent > 20.0 && replay["rows_total"].as_u64() > Some(20_000)
        })
        .await;
        // The worker that replays is the first one; the second waits for its lease.
        kill9(&it.worker).await;
        eventually("another goes on", PATIENCE, async || it.status().await["worker_running"] == true).await;
        eventually("it has ended", PATIENCE, async || {
            it.pipe.at_target("SELECT state FROM cutover.replays").await.as_deref() == Some("done")
        })
        .await;
        stop(&mut worker).await;
    });
    let text = [replayed.stdout, replayed.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert_eq!(replayed.status.code(), Some(0), "{text}");
    load.stop().await;
    it.worker = it.pipe.work.start(&[]);
    it.in_step().await;
    it.is("SELECT coalesce(string_agg(what || ' ' || id, ', '), 'none') FROM moved_back", "none").await;
    it.is("SELECT count(*) FROM cutover.offsets WHERE topic LIKE 'replay.%'", "0").await;
}

async fn kill9(worker: &Worker) {
    worker.signal("KILL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_21_a_transform_with_another_where_or_key_is_refused_until_the_table_is_copied_again() {
    let mut it = Corrected::wrong(Mysql::v57().await, 100, 5_000).await;
    it.pipe.source.exec("UPDATE t SET n = 5 WHERE id < 50").await;
    it.caught_up().await;
    for other in ["SELECT id, n, note FROM t WHERE n < 1000", "SELECT id + 1 AS id, n, note FROM t"] {
        it.restart(other).await;
        for dry_run in [&["--dry-run"][..], &[]] {
            let (code, text) = it.said(&[&["replay", "--from", "beginning"][..], dry_run].concat()).await;
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("another key or WHERE") && text.contains("`cutover resnapshot t`"), "{text}");
        }
    }
    it.is("SELECT count(*) FROM cutover.replays", "0").await;
    it.restart(RIGHT).await;
    let (code, text) = it.said(&["resnapshot", "t"]).await;
    assert_eq!(code, Some(0), "{text}");
    it.in_step().await;
    // What the copy swept does not come back, and what is older than the copy is not replayed.
    it.pipe.source.exec("INSERT INTO t VALUES (1000, 1, 'later')").await;
    it.caught_up().await;
    it.replay("beginning").await;
    it.in_step().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_what_a_new_copy_swept_stays_away() {
    let mut it = Corrected::wrong(Mysql::v80().await, 100, 5_000).await;
    it.pipe.source.exec("UPDATE t SET n = 5 WHERE id < 50").await;
    it.caught_up().await;
    // As in a gap of the binlog: no event says that these rows went.
    it.pipe.source.exec("SET sql_log_bin = 0; DELETE FROM t WHERE id < 10; SET sql_log_bin = 1").await;
    it.restart(RIGHT).await;
    let (code, text) = it.said(&["resnapshot", "t"]).await;
    assert_eq!(code, Some(0), "{text}");
    it.in_step().await;
    it.pipe.target.exec("DELETE FROM cutover.tombstones_public_t").await;
    it.replay("beginning").await;
    it.in_step().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_new_copy_of_a_source_that_stands_still_removes_and_corrects_all_the_same() {
    for source in [Mysql::v57().await, Mysql::mariadb().await] {
        let it = Corrected::over(Follow::new(source, Postgres::v15().await).await, 20, 5_000).await;
        it.pipe
            .source
            .exec("SET sql_log_bin = 0; DELETE FROM t WHERE id < 10; UPDATE t SET n = 7; SET sql_log_bin = 1")
            .await;
        let (code, text) = it.said(&["resnapshot", "t"]).await;
        assert_eq!(code, Some(0), "{text}");
        let wanted = "SELECT count(*) || ' ' || min(n) || ' ' || max(n) FROM t";
        it.is(wanted, "10 1007 1007").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_what_a_truncate_removed_stays_gone() {
    let mut it = Corrected::wrong(Mysql::v80().await, 300, 50).await;
    it.pipe.insert(900_000..900_100).await;
    it.caught_up().await;
    it.pipe.source.exec("TRUNCATE t; INSERT INTO t VALUES (1, 1, 'after'), (2, 2, 'after')").await;
    it.caught_up().await;
    it.restart(RIGHT).await;
    it.pipe.target.exec(WATCH).await;
    it.pipe.target.exec("DELETE FROM cutover.tombstones_public_t").await;
    it.replay("beginning").await;
    it.in_step().await;
    it.is("SELECT count(*) FROM moved_back", "0").await;
    it.pipe.target.exec("INSERT INTO t VALUES (900000, 1, 'by hand')").await;
    it.is("SELECT count(*) FROM moved_back", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_log_that_no_longer_reaches_back_is_refused() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also("[log]\nbytes_max = 16777216\n");
    pipe.insert(0..100).await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    let mut it = Corrected { pipe, worker };
    let (code, text) = it.said(&["checkpoint", "create", "early"]).await;
    assert_eq!(code, Some(0), "{text}");
    for round in 0..30 {
        it.pipe.insert_at_once(1_000 + round * 1_000, 1_000, 1_000).await;
        it.caught_up().await;
    }
    for from in ["beginning", "early", "0", "2020-01-01"] {
        let (code, text) = it.said(&["replay", "--from", from]).await;
        assert_eq!(code, Some(1), "{from}: {text}");
        assert!(text.contains("no longer reaches back") && text.contains("cutover resnapshot"), "{from}: {text}");
    }
    // A log that is gone takes its checkpoints with it.
    stop(&mut it.worker).await;
    it.pipe.lose_log();
    it.worker = it.pipe.work.start(&[]);
    following(&it.worker).await;
    it.caught_up().await;
    let (code, text) = it.said(&["replay", "--from", "early"]).await;
    assert_eq!((code, text.contains("of a log that is gone")), (Some(1), true), "{text}");
    it.replay("beginning").await;
    it.in_step().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_topic_that_somebody_has_cut_is_refused() {
    let shared = Kafka::shared().await;
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also(&format!("[log]\nurl = {:?}\n", shared.url));
    let kafka = Kafka::of(&shared.url, pipe.name());
    let it = Corrected::over(pipe, 100, 5_000).await;
    it.pipe.source.exec("DELETE FROM t WHERE id < 50").await;
    it.caught_up().await;
    kafka.delete_before("changes", 0, kafka.bounds("changes", 0).1 - 1).await;
    let (code, text) = it.said(&["replay", "--from", "beginning"]).await;
    assert_eq!((code, text.contains("records between are gone")), (Some(1), true), "{text}");
    assert!(text.contains("cutover resnapshot"), "{text}");
    it.is("SELECT count(*) FROM cutover.replays", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_an_old_image_that_todays_transform_refuses_is_no_dead_letter_if_the_row_has_changed_since() {
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    pipe.work.transform("t", "SELECT id, n, 'x' AS note FROM t");
    pipe.source.exec("INSERT INTO t VALUES (1, 1, 'old'), (2, 2, '22'), (3, 3, '33'), (4, 4, 'old')").await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    let mut it = Corrected { pipe, worker };
    it.pipe.source.exec("UPDATE t SET note = 'wrong' WHERE id = 2").await;
    it.pipe
        .source
        .exec(
            "UPDATE t SET note = '11' WHERE id = 1; UPDATE t SET note = '222' WHERE id = 2; DELETE FROM t WHERE id = 4",
        )
        .await;
    it.pipe.source.exec("UPDATE t SET note = 'still wrong' WHERE id = 3").await;
    it.pipe.source.exec("INSERT INTO t VALUES (5, 5, '55')").await;
    eventually("applied", PATIENCE, async || it.pipe.at_target("SELECT count(*) FROM t").await.as_deref() == Some("4"))
        .await;
    it.restart("SELECT id, n, note::int::text AS note FROM t").await;
    it.replay("beginning").await;
    let rows = "SELECT string_agg(id || '=' || note, ' ' ORDER BY id) FROM t";
    it.is(rows, "1=11 2=222 3=x 5=55").await;
    // Row 3 fails as it is now: that is a dead letter like any other.
    it.is(
        "SELECT string_agg((key->>'id') || ' ' || state || ' ' || sqlstate, ', ') FROM cutover.dead_letters",
        "3 open 22P02",
    )
    .await;
    it.pipe.source.exec("UPDATE t SET note = '333' WHERE id = 3").await;
    eventually("cleared", PATIENCE, async || it.pipe.at_target(rows).await.as_deref() == Some("1=11 2=222 3=333 5=55"))
        .await;
    it.is("SELECT count(*) FROM cutover.dead_letters", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_tables_that_are_named_are_replayed() {
    let tables = "CREATE TABLE t (id integer PRIMARY KEY, v varchar(40)); CREATE TABLE u (id integer PRIMARY KEY, v varchar(40))";
    let rig = Rig::new(Mysql::v57().await, Postgres::v15().await, &["t", "u"], tables, tables).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'one'); INSERT INTO u VALUES (1, 'one')").await;
    let _worker = rig.following().await;
    rig.source.exec("INSERT INTO t VALUES (2, 'two'); INSERT INTO u VALUES (2, 'two')").await;
    let same = async || {
        rig.same("SELECT id, v FROM t ORDER BY id").await;
        rig.same("SELECT id, v FROM u ORDER BY id").await;
    };
    same().await;
    rig.target.exec("UPDATE t SET v = 'damaged'; UPDATE u SET v = 'damaged'").await;
    let replayed = rig.work.run(&["replay", "--from", "beginning", "--table", "u"]).await;
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    rig.same("SELECT id, v FROM u ORDER BY id").await;
    rig.target_has("SELECT count(*) FROM t WHERE v = 'damaged'", "2").await;
    let replayed = rig.work.run(&["replay", "--from", "beginning"]).await;
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    same().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_begins_at_a_checkpoint_a_time_or_an_offset_and_says_before_what_it_would_touch() {
    let it = Corrected::wrong(Mysql::v80().await, 50, 5_000).await;
    it.pipe.source.exec("UPDATE t SET note = 'before' WHERE id < 10").await;
    it.caught_up().await;
    let (code, text) = it.said(&["checkpoint", "create", "noon"]).await;
    assert_eq!(code, Some(0), "{text}");
    let (_, listed) = it.said(&["checkpoint", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["name"], "noon");
    assert!(listed[0]["position"].is_object() && listed[0]["clock"].as_i64() > Some(1_000_000), "{listed}");
    assert_eq!(listed[0]["transforms"].as_str().map(str::len), Some(32));
    let offset = listed[0]["offsets"]["changes"][0].to_string();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let time = it.pipe.source.value("SELECT DATE_FORMAT(UTC_TIMESTAMP(6), '%Y-%m-%dT%H:%i:%s.%fZ')").await.unwrap();
    it.pipe.source.exec("UPDATE t SET note = 'after' WHERE id BETWEEN 5 AND 14").await;
    it.caught_up().await;

    let wrong =
        async || it.pipe.at_target("SELECT string_agg(id::text, ' ' ORDER BY id) FROM t WHERE note = 'damaged'").await;
    let rest: Vec<String> = (0..5).chain(15..50).map(|id| id.to_string()).collect();
    for from in ["noon", time.as_str(), offset.as_str()] {
        it.pipe.target.exec("UPDATE t SET note = 'damaged' WHERE id < 50").await;
        let (code, text) = it.said(&["replay", "--from", from, "--dry-run"]).await;
        assert_eq!(code, Some(0), "{from}: {text}");
        assert!(
            text.contains("would replay 1") && text.contains("\n  t: 1") && text.contains("committed from 20"),
            "{text}"
        );
        assert_eq!(wrong().await.map(|ids| ids.split(' ').count()), Some(50), "a dry run changes nothing");
        it.replay(from).await;
        assert_eq!(wrong().await, Some(rest.join(" ")), "{from}: only what came after is written again");
    }
    let (code, text) = it.said(&["replay", "--from", "beginning", "--table", "t"]).await;
    assert_eq!((code, wrong().await), (Some(0), None), "{text}");

    for (arguments, code, word) in [
        (&["checkpoint", "create", "noon"][..], 1, "already"),
        (&["checkpoint", "create", "17"], 2, "cannot be a checkpoint's name"),
        (&["replay", "--from", "midnight"], 1, "no checkpoint `midnight`"),
        (&["replay", "--from", "2026-13-01"], 2, "is no time"),
        (&["replay", "--from", "99999999"], 1, "is not applied yet"),
        (&["replay", "--from", "noon", "--table", "u"], 2, "no source table `u`"),
    ] {
        let (found, text) = it.said(arguments).await;
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
    let mut it = it;
    stop(&mut it.worker).await;
    let (code, text) = it.said(&["replay", "--from", "noon"]).await;
    assert_eq!((code, text.contains("no worker runs")), (Some(1), true), "{text}");
    assert_eq!(it.said(&["checkpoint", "create", "asleep"]).await.0, Some(0), "a checkpoint needs no worker");
}
