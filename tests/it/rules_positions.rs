//! Rules 13 and 16 to 19, for one source, one worker and the embedded log: what a chunk is labelled
//! with, where capture goes on, and who may write.

use std::time::{Duration, Instant};

use cutover::{
    log::{EmbeddedLog, Kind, Log as _, LogConfig, Record, Topic},
    model::Position,
};

use crate::{
    follow::{Follow, Load, PATIENCE, following, halted, ready, status, stop},
    support::{Mysql, Postgres, Rows, Worker, Workspace, eventually},
};

/// A worker takes over within this (the contract), with what a busy machine adds.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(15);

/// Updates each row a few times, in order, while the table is copied again and again: a row that is labelled newer than
/// what the chunk saw keeps its old value, and no later change heals it.
pub async fn chunks_are_labelled_with_what_they_saw(source: Mysql, target: Postgres) {
    const ROWS: u64 = 600;
    const WRITERS: u64 = 4;
    let pipe = Follow::new(source, target).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 20\nparallel = 3\n");
    pipe.insert(0..ROWS as u32).await;
    let load = Load::start(&pipe.source, WRITERS, Duration::ZERO, |writer, round| {
        format!("UPDATE t SET n = n + 1 WHERE id = {}", (round * WRITERS + writer) % ROWS)
    });
    let load = load.await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    for _ in 0..3 {
        let copied = pipe.work.run(&["resnapshot", "t"]).await;
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
    let updates = load.stop().await;
    pipe.in_step().await;
    let sum = pipe.target.value("SELECT sum(n) FROM t").await;
    assert_eq!(sum, Some(updates.to_string()), "every update is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_13_a_chunk_is_labelled_with_what_it_saw_on_mysql_57() {
    chunks_are_labelled_with_what_they_saw(Mysql::v57().await, Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_13_a_chunk_is_labelled_with_what_it_saw_on_mysql_80() {
    chunks_are_labelled_with_what_they_saw(Mysql::v80().await, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_13_a_chunk_is_labelled_with_what_it_saw_on_mysql_97() {
    chunks_are_labelled_with_what_they_saw(Mysql::v97().await, Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_13_a_chunk_is_labelled_with_what_it_saw_on_mariadb() {
    chunks_are_labelled_with_what_they_saw(Mysql::mariadb().await, Postgres::v18().await).await;
}

/// A pipeline in step whose worker is stopped and whose log is lost: the position in the target is all there is.
async fn without_a_log(source: Mysql, target: Postgres) -> Follow {
    let (pipe, mut worker) = Follow::running(source, target, 0..20).await;
    stop(&mut worker).await;
    pipe.lose_log();
    pipe
}

/// As after a failover: the position that was captured says what this server does not have.
async fn move_position(pipe: &Follow, change: &str) {
    pipe.target
        .exec(&format!(
            "UPDATE cutover.offsets SET position = {change} WHERE pipeline = '{}' AND topic = 'changes'",
            pipe.name()
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_16_a_server_that_lacks_captured_transactions_is_refused_and_they_are_listed() {
    const ERRANT: &str = "11111111-2222-3333-4444-555555555555:1-7";
    let pipe = without_a_log(Mysql::v57().await, Postgres::v15().await).await;
    let gtids = format!("jsonb_set(position, '{{gtids}}', to_jsonb((position ->> 'gtids') || ',{ERRANT}'))");
    move_position(&pipe, &gtids).await;
    pipe.insert(20..30).await;

    let mut worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("never executed") && reason.contains(ERRANT), "{reason}");
    assert!(remedy.contains("cutover resnapshot"), "{remedy}");
    assert!(ready(&worker, 503).await.contains(ERRANT));
    assert_eq!(worker.get("/healthz").await.unwrap().0, 200, "a halted worker lives");
    assert_eq!(pipe.target.value("SELECT count(*) FROM t").await.as_deref(), Some("20"), "nothing was skipped over");
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_16_a_mariadb_server_that_is_behind_what_was_captured_is_refused() {
    let pipe = without_a_log(Mysql::mariadb().await, Postgres::v18().await).await;
    let gtids =
        pipe.at_target("SELECT position ->> 'gtids' FROM cutover.offsets WHERE topic = 'changes'").await.unwrap();
    let (domain_and_server, _) = gtids.split(',').next().unwrap().rsplit_once('-').unwrap();
    let ahead = format!("{domain_and_server}-99999999999");
    move_position(&pipe, &format!("jsonb_set(position, '{{gtids}}', to_jsonb('{ahead}'::text))")).await;

    let mut worker = pipe.work.start(&["--until-synced"]);
    let ended = worker.wait_exit(PATIENCE).await;
    assert_eq!(ended.code(), Some(3), "a halt ends --until-synced with 3");
    assert!(worker.stderr().contains(&ahead), "{}", worker.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_16_a_file_position_belongs_to_one_server() {
    let pipe = without_a_log(Mysql::v80().await, Postgres::v15().await).await;
    move_position(&pipe, "jsonb_set(position - 'gtids', '{server}', '\"another\"')").await;
    let worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("is of server another"), "{reason}");
    assert!(remedy.contains("old server") && remedy.contains("cutover resnapshot"), "{remedy}");
}

/// Ends the log of a stopped worker as one does that died inside an append: behind the last control record, of this
/// server, is a row that is of no whole transaction.
async fn tear_the_log(pipe: &Follow, server: Option<&str>) {
    let settings = LogConfig { partitions: 1, ..LogConfig::default() };
    let log = EmbeddedLog::open(&pipe.log_folder().join(pipe.name()), (&settings).into()).await.unwrap();
    let (offset, mut control) = log.last_control(Topic::Changes, 0).await.unwrap().unwrap();
    let mut row = None;
    let mut look = |_, record: &Record| {
        row = (record.headers.kind == Kind::Row).then(|| record.clone()).or(row.take());
        row.is_some()
    };
    log.look_back(Topic::Changes, 0, &mut look).await.unwrap();
    let mut torn = row.expect("a change that was captured");
    let renamed = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace("\"id\":25", "\"id\":999");
    (torn.key, torn.value) = (renamed(&torn.key).into(), renamed(&torn.value).into());
    torn.headers.version = control.clock + 5;
    let read = log.read(Topic::Changes, 0, offset, 1, Duration::ZERO).await.unwrap();
    let commit_us = read[0].record.headers.commit_us;
    if let (Some(Position::Mysql(position)), Some(server)) = (&mut control.position, server) {
        position.server = server.to_owned();
    }
    log.append(Topic::Changes, vec![(0, Record::control(&control, commit_us)), (0, torn)]).await.unwrap();
}

/// A pipeline whose worker has captured a change of the row 25, and is stopped.
async fn stopped_after_a_change(source: Mysql) -> Follow {
    let pipe = Follow::new(source, Postgres::v15().await).await;
    pipe.work.configure_also("[log]\npartitions = 1\n");
    pipe.insert(0..20).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.insert(25..26).await;
    pipe.in_step().await;
    stop(&mut worker).await;
    pipe
}

const TORN: &str = "SELECT count(*) FROM t WHERE id = 999";

#[tokio::test(flavor = "multi_thread")]
async fn rule_16_a_transaction_that_the_log_has_in_part_must_come_from_the_server_after_a_failover() {
    let pipe = stopped_after_a_change(Mysql::v57().await).await;
    tear_the_log(&pipe, Some("11111111-2222-3333-4444-555555555555")).await;
    let mut worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("another server now, which never had them"), "{reason}");
    assert!(remedy.contains("cutover resnapshot"), "{remedy}");
    eventually("the row is there", PATIENCE, async || pipe.at_target(TORN).await.as_deref() == Some("1")).await;
    let copied = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(copied.status.success(), "{copied:?}");
    following(&worker).await;
    pipe.insert(30..40).await;
    pipe.in_step().await;
    assert_eq!(pipe.at_target(TORN).await.as_deref(), Some("0"), "what the new server never had is gone");
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_16_the_server_that_had_a_transaction_in_part_goes_on_without_a_halt() {
    let pipe = stopped_after_a_change(Mysql::v80().await).await;
    tear_the_log(&pipe, None).await;
    pipe.source.exec("DELETE FROM t WHERE id = 3").await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.insert(30..40).await;
    let rows = "SELECT count(*) FROM t WHERE id BETWEEN 30 AND 39 OR id = 3";
    eventually("capture goes on", PATIENCE, async || pipe.at_target(rows).await.as_deref() == Some("10")).await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_lost_log_starts_anew_at_the_position_in_the_target() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 100\nparallel = 1\napply_parallel = 1\n");
    pipe.insert(0..6000).await;
    let mut worker = pipe.work.start(&[]);
    eventually("a part is copied", PATIENCE, async || {
        pipe.at_target("SELECT count(*) >= 500 FROM t").await.as_deref() == Some("t")
    })
    .await;
    // Changes that are captured and perhaps not applied, then the loss, then changes that nobody has captured.
    pipe.source.exec("UPDATE t SET n = 1 WHERE id < 300; DELETE FROM t WHERE id BETWEEN 300 AND 320").await;
    worker.kill9().await;
    let epoch = "SELECT log_epoch FROM cutover.offsets WHERE topic = 'changes'";
    let before = pipe.at_target(epoch).await;
    pipe.lose_log();
    pipe.source.exec("UPDATE t SET n = 2 WHERE id < 200; DELETE FROM t WHERE id BETWEEN 5000 AND 5100").await;

    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.in_step().await;
    assert_ne!(pipe.at_target(epoch).await, before, "a new log has a new epoch");
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_log_that_ends_before_what_is_applied_halts() {
    let (pipe, mut worker) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..10).await;
    stop(&mut worker).await;
    let (log, older) = (pipe.log_folder(), pipe.work.path().join("older"));
    copy_folder(&log, &older);
    let mut worker = pipe.work.start(&[]);
    pipe.insert(10..40).await;
    pipe.in_step().await;
    stop(&mut worker).await;
    // A backup of the log is put back. Capture would write other records where the target has been already.
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(&older, &log).unwrap();
    pipe.insert(40..90).await;

    let mut worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("its tail is lost"), "{reason}");
    assert!(format!("{reason}; {remedy}").contains("to start a new epoch"), "{reason}; {remedy}");
    stop(&mut worker).await;

    // The repair that the message names.
    pipe.lose_log();
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.in_step().await;
}

/// The log is lost while the target has a row from beyond its position, and the source fails over to a server that
/// never had that row: nothing would ever take it back.
async fn rows_beyond_the_position_outlive_no_failover(source: Mysql, target: Postgres) {
    let pipe = without_a_log(source, target).await;
    pipe.target
        .exec("INSERT INTO t SELECT 99, 0, 'lost', clock + 1 FROM cutover.offsets WHERE topic = 'changes'")
        .await;
    move_position(&pipe, "jsonb_set(position, '{server}', '\"another\"')").await;

    let mut worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("beyond its stored position"), "{reason}");
    assert!(remedy.contains("cutover resnapshot"), "{remedy}");
    // A worker that begins again knows it still, though the log has a place to go on from.
    stop(&mut worker).await;
    let worker = pipe.work.start(&[]);
    let (again, _) = halted(&worker).await;
    assert_eq!(again, reason);

    let copied = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    following(&worker).await;
    pipe.insert(20..30).await;
    pipe.in_step().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_lost_log_and_a_failover_leave_no_row_that_only_the_old_server_had_on_mysql() {
    rows_beyond_the_position_outlive_no_failover(Mysql::v80().await, Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_a_lost_log_and_a_failover_leave_no_row_that_only_the_old_server_had_on_mariadb() {
    rows_beyond_the_position_outlive_no_failover(Mysql::mariadb().await, Postgres::v15().await).await;
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_18_capture_resumes_at_a_control_record_and_gives_the_same_versions_again() {
    let (pipe, mut worker) = Follow::running(Mysql::v80().await, Postgres::v15().await, 0..1500).await;
    let saved = pipe.target.query("SELECT position::text, clock FROM cutover.offsets WHERE topic = 'changes'").await;
    let (position, clock) = (saved[0][0].clone().unwrap(), saved[0][1].clone().unwrap());
    for round in 0..4 {
        // Killed inside of large transactions and between small ones.
        pipe.source.exec("UPDATE t SET n = n + 1").await;
        for id in 0..20 {
            pipe.source.exec(&format!("UPDATE t SET n = n + 1, note = 'round {round}' WHERE id = {id}")).await;
        }
        pipe.source.exec("UPDATE t SET n = n + 1").await;
        tokio::time::sleep(Duration::from_millis(60 * round)).await;
        worker.kill9().await;
        worker = pipe.work.start(&[]);
    }
    pipe.in_step().await;
    let versions = async || -> Rows { pipe.target.query("SELECT id, cutover_version FROM t ORDER BY id").await };
    let first = versions().await;
    let reached = pipe.at_target("SELECT clock FROM cutover.offsets WHERE topic = 'changes'").await.unwrap();
    stop(&mut worker).await;

    pipe.lose_log();
    move_position(&pipe, &format!("'{}', clock = {clock}", position.replace('\'', "''"))).await;
    let worker = pipe.work.start(&[]);
    pipe.eventually_at_target(&format!("SELECT clock >= {reached} FROM cutover.offsets WHERE topic = 'changes'"), "t")
        .await;
    pipe.in_step().await;
    assert_eq!(versions().await, first, "versions depend on the source's log alone");
    drop(worker);
}

/// What the target has of one partition says nothing of another, of which it has nothing yet.
#[tokio::test(flavor = "multi_thread")]
async fn rule_18_a_partition_that_has_nothing_yet_goes_on_where_the_lost_log_began() {
    let pipe = Follow::new(Mysql::v80().await, Postgres::v18().await).await;
    pipe.work.configure_also("[log]\npartitions = 2\n");
    // Another pipeline, over the table that is still empty, makes the schema that the trigger needs.
    let own = pipe.work.configuration();
    let named = |name: &str| format!("name = {name:?}");
    pipe.work.configure(&own.replace(&named(pipe.name()), &named(&format!("{}_first", pipe.name()))));
    let made = pipe.work.run(&["run", "--until-synced", "--listen", "127.0.0.1:0"]).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    pipe.lose_log();
    pipe.work.configure(&own);
    let of_lane = format!("pipeline = '{}' AND topic = 'changes' AND part =", pipe.name());
    pipe.target
        .exec(&format!(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
               $$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$; \
             CREATE TRIGGER full_disk BEFORE UPDATE ON cutover.offsets FOR EACH ROW \
               WHEN (NEW.pipeline = '{}' AND NEW.topic = 'changes' AND NEW.part = 1 AND NEW.next_offset > 0) \
               EXECUTE FUNCTION full_disk(); \
             ALTER TABLE cutover.offsets ENABLE ALWAYS TRIGGER full_disk",
            pipe.name()
        ))
        .await;
    pipe.insert(0..20).await;
    let mut worker = pipe.work.start(&[]);
    pipe.eventually_at_target("SELECT count(*) FROM t", "20").await;
    pipe.source.exec("UPDATE t SET n = 1").await;
    pipe.eventually_at_target("SELECT count(*) BETWEEN 1 AND 19 FROM t WHERE n = 1", "t").await;
    pipe.eventually_at_target(&format!("SELECT next_offset > 0 FROM cutover.offsets WHERE {of_lane} 0"), "t").await;
    worker.kill9().await;
    assert_eq!(
        pipe.target.value(&format!("SELECT next_offset FROM cutover.offsets WHERE {of_lane} 1")).await.unwrap(),
        "0"
    );
    pipe.lose_log();
    pipe.target.exec("DROP TRIGGER full_disk ON cutover.offsets").await;

    let worker = pipe.work.start(&[]);
    following(&worker).await;
    pipe.in_step().await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_19_a_second_worker_waits_for_the_lease_and_takes_over_from_a_killed_one() {
    let (pipe, mut first) = Follow::running(Mysql::v57().await, Postgres::v15().await, 0..10).await;
    let second = pipe.work.start(&[]);
    let why = ready(&second, 503).await;
    eventually("the second worker waits", PATIENCE, async || second.stderr().contains("waiting for the lease")).await;
    assert_eq!(second.get("/healthz").await.unwrap().0, 200, "{why}");
    assert_eq!(ready(&first, 200).await, "ready\n");

    pipe.insert(10..20).await;
    first.kill9().await;
    let killed = Instant::now();
    pipe.insert(20..30).await;
    pipe.in_step().await;
    assert!(killed.elapsed() < TAKEN_OVER_WITHIN, "taken over after {:?}", killed.elapsed());
    ready(&second, 200).await;
}

/// A folder of its own, as on another host, for the same pipeline.
fn elsewhere(pipe: &Follow) -> Workspace {
    let other = Workspace::new(pipe.name(), &pipe.source.url(), &pipe.target.url(), &["t"]);
    other.configure(&pipe.work.configuration());
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_19_a_paused_worker_that_lost_its_lease_cannot_write_and_waits_for_it_again() {
    let (pipe, first) = Follow::running(Mysql::v80().await, Postgres::v15().await, 0..10).await;
    // Paused in the middle of a transaction at the target, which holds its locks there.
    let mut blocker = pipe.target.connect().await;
    let blocking = blocker.transaction().await.unwrap();
    blocking.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pipe.source.exec("UPDATE t SET n = 1").await;
    eventually("the first worker waits inside its transaction", PATIENCE, async || {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        pipe.at_target(waiting).await.is_some_and(|count| count != "0")
    })
    .await;
    first.signal("STOP").await;
    blocking.rollback().await.unwrap();
    let paused = Instant::now();

    let other = elsewhere(&pipe);
    let mut second = other.start(&[]);
    pipe.source.exec("UPDATE t SET n = 2; INSERT INTO t VALUES (100, 1, 'new')").await;
    pipe.in_step().await;
    assert!(paused.elapsed() < TAKEN_OVER_WITHIN + Duration::from_secs(5), "taken over after {:?}", paused.elapsed());
    pipe.source.exec("UPDATE t SET n = 3").await;
    pipe.in_step().await;

    first.signal("CONT").await;
    eventually("the first worker waits again", PATIENCE, async || {
        let said = first.stderr();
        let lost = said.find("another worker has taken the lease");
        lost.is_some_and(|lost| said[lost..].contains("waiting for the lease, which"))
    })
    .await;
    assert!(ready(&first, 503).await.contains("waiting for the lease"));
    let (source, target) = pipe.contents().await;
    assert_eq!(source, target, "the first worker changed nothing any more");
    pipe.source.exec("UPDATE t SET n = 4").await;
    pipe.in_step().await;
    assert!(status(&second).await.is_some_and(|status| status["halted"].is_null()));

    // As a reserve it takes over in its turn, and nobody had to start it.
    second.kill9().await;
    let killed = Instant::now();
    pipe.source.exec("UPDATE t SET n = 5; INSERT INTO t VALUES (101, 1, 'newer')").await;
    pipe.in_step().await;
    assert!(killed.elapsed() < TAKEN_OVER_WITHIN + Duration::from_secs(5), "taken over after {:?}", killed.elapsed());
    ready(&first, 200).await;
    let copied = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    pipe.in_step().await;
    assert!(status(&first).await.is_some_and(|status| status["halted"].is_null()));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_19_a_worker_on_the_same_log_waits_until_the_paused_one_lets_go() {
    let (pipe, mut first) = Follow::running(Mysql::v57().await, Postgres::v18().await, 0..10).await;
    first.signal("STOP").await;
    let mut second = pipe.work.start(&[]);
    pipe.source.exec("UPDATE t SET n = 1").await;
    eventually("the second worker meets the open log", PATIENCE, async || {
        second.stderr().contains("already open in another process")
    })
    .await;
    first.signal("CONT").await;
    eventually("the first worker lets go", PATIENCE, async || {
        first.stderr().contains("another worker has taken the lease")
    })
    .await;
    pipe.in_step().await;
    assert!(first.is_running() && second.is_running(), "{}\n{}", first.stderr(), second.stderr());
    // Either may have it now; the other one takes over.
    let leads = async |worker: &Worker| worker.get("/readyz").await.is_ok_and(|(code, _)| code == 200);
    eventually("one of them leads", PATIENCE, async || leads(&first).await || leads(&second).await).await;
    let (mut leader, reserve) = if leads(&first).await { (first, second) } else { (second, first) };
    leader.kill9().await;
    pipe.source.exec("UPDATE t SET n = 2").await;
    pipe.in_step().await;
    ready(&reserve, 200).await;
}
