//! Servers that crash, lose their log, fail over or have no GTIDs: on servers of this process alone.

use std::time::Duration;

use crate::{
    follow::{Follow, PATIENCE, following, halted, ready, stop},
    rules_positions::chunks_are_labelled_with_what_they_saw,
    support::{Mysql, Own, Postgres, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_crashes_is_followed_again_and_nothing_is_lost() {
    let own = Own::Mysql80.take().await;
    let (mut pipe, worker) = Follow::running(Mysql::at(own.url).await, Postgres::v15().await, 0..500).await;
    pipe.source.exec("UPDATE t SET n = n + 1").await;
    own.crash();
    assert!(ready(&worker, 503).await.contains("capture is retrying"));
    assert_eq!(worker.get("/healthz").await.unwrap().0, 200);
    own.start();
    pipe.source.reconnect().await;
    pipe.source.exec("UPDATE t SET n = n + 1 WHERE id < 100; DELETE FROM t WHERE id > 400").await;
    pipe.in_step().await;
    ready(&worker, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_crashes_in_the_middle_of_a_copy_is_written_again_and_nothing_is_lost() {
    let own = Own::Pg15.take().await;
    let mut pipe = Follow::new(Mysql::v57().await, Postgres::at(own.url).await).await;
    pipe.work.configure_also("[snapshot]\nchunk_rows = 100\n");
    pipe.insert(0..5000).await;
    let worker = pipe.work.start(&[]);
    eventually("a part is copied", PATIENCE, async || {
        pipe.at_target("SELECT count(*) > 300 FROM t").await.as_deref() == Some("t")
    })
    .await;
    own.crash();
    pipe.source.exec("UPDATE t SET n = n + 1 WHERE id < 200; DELETE FROM t WHERE id > 4900").await;
    ready(&worker, 503).await;
    own.start();
    pipe.target.reconnect().await;
    following(&worker).await;
    pipe.in_step().await;

    own.crash();
    pipe.source.exec("UPDATE t SET n = n + 1 WHERE id < 300").await;
    ready(&worker, 503).await;
    own.start();
    pipe.target.reconnect().await;
    pipe.in_step().await;
    ready(&worker, 200).await;
    assert_eq!(pipe.target.value("SELECT count(*) FROM cutover.dead_letters").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_16_a_failover_goes_on_where_everything_captured_is_and_is_refused_where_it_is_not() {
    let own = Own::Mysql80.take().await;
    let (pipe, mut worker) = Follow::running(Mysql::at(own.url).await, Postgres::v15().await, 0..50).await;
    let captured = pipe.source.value("SELECT @@gtid_executed").await.unwrap();
    stop(&mut worker).await;
    // A replica that never got what was captured, with binlogs of its own.
    pipe.source.exec("RESET MASTER").await;
    worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    assert!(reason.contains("never executed") && reason.contains(&captured), "{reason} should list {captured}");
    assert!(remedy.contains("connect to the server that has them"), "{remedy}");
    stop(&mut worker).await;
    // A replica that has all of it, in binlogs that it has thrown away; files and offsets start again.
    pipe.source
        .exec(&format!("SET GLOBAL gtid_purged = '{captured}'; UPDATE t SET n = 5; DELETE FROM t WHERE id = 7"))
        .await;
    worker = pipe.work.start(&[]);
    pipe.in_step().await;
    ready(&worker, 200).await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_17_purged_binlogs_halt_and_the_command_that_is_named_repairs_it() {
    let own = Own::Mysql80.take().await;
    let (pipe, mut worker) = Follow::running(Mysql::at(own.url).await, Postgres::v15().await, 0..50).await;
    pipe.source.exec("INSERT INTO t VALUES (50, 0, 'only one')").await;
    pipe.in_step().await;
    stop(&mut worker).await;
    // The row that is deleted unseen holds a value that one of the new rows waits for.
    pipe.target.exec("CREATE UNIQUE INDEX ON t (note) WHERE note = 'only one'").await;
    pipe.source
        .exec(
            "UPDATE t SET n = 1; DELETE FROM t WHERE id < 10 OR id = 50; INSERT INTO t VALUES (60, 1, 'in the gap'), \
             (3, 1, 'only one')",
        )
        .await;
    let gap = pipe.source.value("SELECT @@gtid_executed").await.unwrap();
    pipe.source.exec("FLUSH BINARY LOGS").await;
    let newest = pipe.source.query("SHOW BINARY LOGS").await.pop().unwrap()[0].clone().unwrap();
    pipe.source.exec(&format!("PURGE BINARY LOGS TO '{newest}'; INSERT INTO t VALUES (61, 1, 'after the gap')")).await;

    worker = pipe.work.start(&[]);
    let (reason, remedy) = halted(&worker).await;
    let last = gap.rsplit_once(['-', ':']).unwrap().1;
    assert!(reason.contains("purged") && reason.contains(last), "{reason} should end with {gap}");
    assert!(remedy.contains("cutover resnapshot"), "{remedy}");
    assert_eq!(pipe.target.value("SELECT sum(n) FROM t").await.as_deref(), Some("0"), "nothing past the gap");

    let copied = pipe.work.run(&["resnapshot", "t"]).await;
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    pipe.source.exec("UPDATE t SET n = 2 WHERE id < 20").await;
    pipe.in_step().await;
    ready(&worker, 200).await;
    stop(&mut worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_gtids_is_followed_by_file_and_position() {
    let own = Own::Mysql57.take().await;
    let server = Mysql::at(own.url).await;
    server
        .exec(
            "SET GLOBAL gtid_mode = ON_PERMISSIVE; SET GLOBAL gtid_mode = OFF_PERMISSIVE; SET GLOBAL gtid_mode = OFF;
             SET GLOBAL enforce_gtid_consistency = OFF; SET GLOBAL binlog_order_commits = OFF",
        )
        .await;
    // Rule 13 where it is hardest: no GTIDs to wait for, and commits that become visible out of order.
    chunks_are_labelled_with_what_they_saw(server, Postgres::v15().await).await;

    let (mut pipe, mut worker) = Follow::running(Mysql::at(own.url).await, Postgres::v18().await, 0..200).await;
    assert_eq!(
        pipe.at_target("SELECT position ? 'gtids' FROM cutover.offsets WHERE topic = 'changes'").await.as_deref(),
        Some("f")
    );
    pipe.source.exec("UPDATE t SET n = n + 1; FLUSH BINARY LOGS; UPDATE t SET n = n + 1 WHERE id < 50").await;
    worker.kill9().await;
    pipe.source.exec("DELETE FROM t WHERE id BETWEEN 50 AND 60").await;
    worker = pipe.work.start(&[]);
    pipe.in_step().await;
    // It comes back with GTIDs on, as its command line says; the stored position is still one of files.
    own.crash();
    ready(&worker, 503).await;
    own.start();
    pipe.source.reconnect().await;
    pipe.source.exec("UPDATE t SET n = n + 1 WHERE id > 100").await;
    pipe.in_step().await;
    ready(&worker, 200).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    worker.kill9().await;
    pipe.source.exec("UPDATE t SET n = n + 1 WHERE id > 150").await;
    let _worker = pipe.work.start(&[]);
    pipe.in_step().await;
}
