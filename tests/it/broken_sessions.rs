//! Sessions that end where nobody expects it, and tables that change under a session that reads them.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    follow::{Follow, Network, PATIENCE, Proxy, following, ready},
    rules_rig::Rig,
    support::{Mysql, Postgres, eventually},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_sessions_are_ended_while_it_starts_goes_on_starting() {
    let pipe = Follow::new(Mysql::v57().await, Postgres::v15().await).await;
    pipe.insert(0..50).await;
    let mut worker = pipe.work.start(&[]);
    following(&worker).await;
    for _ in 0..5 {
        worker.kill9().await;
        worker = pipe.work.start(&[]);
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND application_name LIKE 'cutover %'";
            pipe.target.query(ended).await;
            sleep(Duration::from_millis(7)).await;
        }
        assert!(worker.is_running(), "{}", worker.stderr());
    }
    pipe.source.exec("UPDATE t SET n = n + 1").await;
    pipe.in_step().await;
    ready(&worker, 200).await;
}

/// What a load balancer or a tunnel makes of a server that goes: TCP has nothing to tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_gone_behind_connections_that_stand_is_noticed() {
    let pipe = Follow::new(Mysql::v80().await, Postgres::v15().await).await;
    let proxy = Proxy::new(&pipe.target.url(), Network::Open).await;
    let config = pipe.work.configuration().replace(&pipe.target.url(), &proxy.url(&pipe.target.url()));
    pipe.work.configure(&config);
    pipe.insert(0..10).await;
    let worker = pipe.work.start(&[]);
    following(&worker).await;
    proxy.desert();
    pipe.source.exec("UPDATE t SET n = 1").await;
    eventually("the update arrives", Duration::from_secs(120), async || {
        pipe.at_target("SELECT count(*) FROM t WHERE n = 1").await.as_deref() == Some("10")
    })
    .await;
    ready(&worker, 200).await;
    assert!(worker.stderr().contains("no longer has this session"), "{}", worker.stderr());
}

/// Rule 12. The chunks that are left are read with the columns that the table has by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_while_its_table_is_copied_does_not_stop_the_copy() {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20), unused int DEFAULT 5)";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, a text)";
    let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["t"], at_source, at_target).await;
    rig.work.transform("t", "SELECT id, a FROM t");
    rig.work.configure_also("[snapshot]\nchunk_rows = 100\n");
    let rows: Vec<String> = (0..2_000).map(|id| format!("({id}, 'row {id}', {id})")).collect();
    rig.source.exec(&format!("INSERT INTO t VALUES {}", rows.join(", "))).await;
    let worker = rig.following().await;
    let held = rig.hold_copied_rows().await;
    rig.copy_again_into_the_log("t").await;
    rig.source.exec("ALTER TABLE t DROP COLUMN unused; UPDATE t SET a = 'new' WHERE id % 7 = 0").await;
    drop(held);
    rig.eventually("copied again", async |status| status["synced"] == true).await;
    assert!(worker.stderr().contains("Unknown column"), "the copy met the change: {}", worker.stderr());
    rig.same("SELECT id, a FROM t ORDER BY id").await;
    rig.target_has("SELECT generation, state FROM cutover.tables", "2 copied").await;
    eventually("no halt", PATIENCE, async || rig.status().await["halted"].is_null()).await;
}
