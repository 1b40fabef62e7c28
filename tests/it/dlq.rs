//! Dead letters from the command line: listed without values, tried again from the source, closed.

use std::time::Duration;

use serde_json::Value;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres, Worker, eventually},
};

const SOON: Duration = Duration::from_secs(60);

/// A source column that is wider than the target's.
pub async fn narrow(source: Mysql) -> Rig {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, v varchar(40)); INSERT INTO t VALUES (1, 'one')";
    let rig = Rig::new(
        source,
        Postgres::v15().await,
        &["t"],
        at_source,
        "CREATE TABLE t (id integer PRIMARY KEY, v varchar(5))",
    );
    rig.await
}

/// A worker that has set the rows of these statements aside, which become so many dead letters.
async fn too_long(source: Mysql, rows: &str, letters: u64) -> (Rig, Worker) {
    let rig = narrow(source).await;
    let worker = rig.following().await;
    rig.source.exec(rows).await;
    rig.eventually("set aside", async |status| status["dead_letters"] == letters).await;
    (rig, worker)
}

/// A command's exit code and all that it printed.
pub async fn said(rig: &Rig, arguments: &[&str]) -> (Option<i32>, String) {
    let out = rig.work.run(arguments).await;
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (out.status.code(), text)
}

pub async fn listed(rig: &Rig) -> Value {
    let (code, text) = said(rig, &["dlq", "list", "--json"]).await;
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_a_retry_reads_the_source_again_and_a_success_clears_the_letter() {
    let bad = "INSERT INTO t VALUES (2, 'longer than five'), (3, 'longer, too')";
    let (rig, _worker) = too_long(Mysql::v80().await, bad, 2).await;
    rig.target.exec("ALTER TABLE t ALTER v TYPE varchar(40)").await;
    // What the log has of the row is not what counts: the row may have changed without a trace.
    rig.source.exec("SET sql_log_bin = 0; UPDATE t SET v = 'changed unseen' WHERE id = 3; SET sql_log_bin = 1").await;
    let (code, text) = said(&rig, &["dlq", "retry", "--table", "t"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("2 tried again: 2 stored"), "{text}");
    rig.same("SELECT id, v FROM t ORDER BY id").await;
    assert_eq!(listed(&rig).await["open"], 0);
    let (code, text) = said(&rig, &["dlq", "retry", "--all"]).await;
    assert_eq!((code, text.contains("nothing to do")), (Some(0), true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_a_retry_that_fails_renews_the_letter_and_a_later_good_change_clears_it() {
    let (rig, _worker) = too_long(Mysql::v57().await, "UPDATE t SET v = 'longer than five' WHERE id = 1", 1).await;
    let before = &listed(&rig).await["letters"][0];
    let id = before["id"].to_string();
    for attempts in [2, 3] {
        let (code, text) = said(&rig, &["dlq", "retry", &id]).await;
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("1 failed again"), "{text}");
        let now = listed(&rig).await;
        let letter = &now["letters"][0];
        assert_eq!((&now["open"], &letter["id"], &letter["attempts"]), (&1.into(), &before["id"], &attempts.into()));
        assert_eq!((&letter["since"], letter["renewed"].is_string()), (&before["since"], true));
        assert!(letter["version"].as_i64() >= before["version"].as_i64(), "{letter}");
    }
    rig.source.exec("UPDATE t SET v = 'ok' WHERE id = 1").await;
    rig.same("SELECT id, v FROM t").await;
    rig.eventually("cleared", async |status| status["dead_letters"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_a_row_that_the_source_has_no_more_is_deleted_at_the_watermark() {
    let rows = "UPDATE t SET v = 'longer than five' WHERE id = 1; INSERT INTO t VALUES (2, 'never at the target')";
    let (rig, _worker) = too_long(Mysql::v80().await, rows, 2).await;
    rig.target_has("SELECT id, v FROM t", "1 one").await;
    rig.source.exec("SET sql_log_bin = 0; DELETE FROM t; SET sql_log_bin = 1").await;
    let (code, text) = said(&rig, &["dlq", "retry", "--all"]).await;
    assert_eq!(code, Some(0), "{text}");
    rig.target_has("SELECT count(*) FROM t", "0").await;
    assert_eq!(listed(&rig).await["open"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_23_rows_whose_keys_differ_in_case_or_accents_alone_are_all_read_again() {
    for source in [Mysql::v57().await, Mysql::v80().await, Mysql::v97().await, Mysql::mariadb().await] {
        let at_source = "CREATE TABLE words (no int, word varchar(9) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, n int,
                PRIMARY KEY (no, word));
            CREATE TABLE names (name varchar(9) CHARACTER SET latin1 COLLATE latin1_bin PRIMARY KEY, n int);
            INSERT INTO words VALUES (1, 'a', 1), (1, 'A', 2), (1, '\u{e4}', 3), (1, 'b', 4), (2, 'a', 5);
            INSERT INTO names VALUES ('e', 1), ('E', 2), ('\u{e9}', 3), ('f', 4)";
        let at_target = "CREATE TABLE words (no int, word text, n int CHECK (n < 100), PRIMARY KEY (no, word));
            CREATE TABLE names (name text PRIMARY KEY, n int CHECK (n < 100))";
        let rig = Rig::new(source, Postgres::v15().await, &["words", "names"], at_source, at_target).await;
        let _worker = rig.following().await;
        // No other key is read with them: then the server would look for each.
        let alike = "UPDATE words SET n = n + 100 WHERE n < 4; UPDATE names SET n = n + 100 WHERE n < 4";
        rig.source.exec(alike).await;
        rig.eventually("set aside", async |status| status["dead_letters"] == 6).await;
        rig.target
            .exec("ALTER TABLE words DROP CONSTRAINT words_n_check; ALTER TABLE names DROP CONSTRAINT names_n_check")
            .await;
        let (code, text) = said(&rig, &["dlq", "retry", "--all"]).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("6 tried again: 6 stored"), "{text}");
        rig.target_has("SELECT count(*), sum(n) FROM words", "5 315").await;
        rig.target_has("SELECT count(*), sum(n) FROM names", "4 310").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_survives_the_worker_that_took_it() {
    let (rig, mut worker) = too_long(Mysql::v80().await, "INSERT INTO t VALUES (2, 'longer than five')", 1).await;
    rig.target.exec("ALTER TABLE t ALTER v TYPE varchar(40)").await;
    let id = listed(&rig).await["letters"][0]["id"].to_string();
    worker.kill9().await;
    let ask = format!(
        "INSERT INTO cutover.requests (pipeline, command, arguments) VALUES ('{}', 'dlq retry', '{{\"ids\": [{id}]}}')",
        rig.source.database()
    );
    rig.target.exec(&ask).await;
    let _next = rig.work.start(&[]);
    rig.same("SELECT id, v FROM t ORDER BY id").await;
    eventually("the request is answered", SOON, async || {
        rig.target.value("SELECT state FROM cutover.requests").await.as_deref() == Some("done")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_letter_is_closed_and_counted_and_its_row_stays_as_it_is() {
    let (rig, mut worker) = too_long(Mysql::v57().await, "UPDATE t SET v = 'longer than five' WHERE id = 1", 1).await;
    let id = listed(&rig).await["letters"][0]["id"].to_string();
    let (code, text) = said(&rig, &["dlq", "discard", &id]).await;
    assert_eq!((code, text.contains("1 discarded") && text.contains("drift")), (Some(0), true), "{text}");
    let status = rig.eventually("closed", async |status| status["dead_letters"] == 0).await;
    assert_eq!(status["dead_letters_discarded"], 1);
    rig.target_has("SELECT id, v FROM t", "1 one").await;
    let (_, text) = said(&rig, &["dlq", "show", &id]).await;
    assert!(text.contains("discarded"), "{text}");
    // It fences nothing: the row's next change is as any other.
    rig.source.exec("UPDATE t SET v = 'next' WHERE id = 1").await;
    rig.same("SELECT id, v FROM t").await;
    worker.terminate().await;
    worker.wait_exit(SOON).await;
    let synced = rig.until_synced().await;
    assert_eq!(synced.0, Some(0), "{}", synced.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_shown_on_request_only_and_what_cannot_be_done_is_said() {
    let (rig, mut worker) = too_long(Mysql::v80().await, "INSERT INTO t VALUES (7, 'longer than five')", 1).await;
    let listed = listed(&rig).await;
    let letter = &listed["letters"][0];
    let table = format!("{}.t", rig.source.database());
    assert_eq!((&letter["table"], &letter["key"]["id"]), (&table.clone().into(), &7.into()));
    assert_eq!((&letter["sqlstate"], &listed["tables"][0]["open"]), (&"22001".into(), &1.into()));
    let id = letter["id"].to_string();
    let (code, text) = said(&rig, &["dlq", "show", &id]).await;
    assert_eq!(code, Some(0));
    assert!(text.contains("22001") && text.contains("--values") && !text.contains("longer than five"), "{text}");
    let (_, text) = said(&rig, &["dlq", "show", &id, "--values"]).await;
    assert!(text.contains("longer than five"), "{text}");
    let (_, text) = said(&rig, &["dlq", "list"]).await;
    assert!(text.contains(&table) && text.contains("1 open") && !text.contains("longer than five"), "{text}");

    for (arguments, code, word) in [
        (&["dlq", "retry", "999999"][..], 1, "no dead letter 999999 is open"),
        (&["dlq", "show", "999999"], 1, "cutover dlq list"),
        (&["dlq", "discard", "999999"], 1, "cutover dlq list"),
        (&["dlq", "retry"], 2, "--all"),
        (&["dlq", "retry", "1", "--all"], 2, "--all"),
        (&["dlq", "list", "--table", "u"], 2, "no source table `u`; it has t"),
    ] {
        let (found, text) = said(&rig, arguments).await;
        assert_eq!(found, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?}: {text}");
    }
    worker.terminate().await;
    worker.wait_exit(SOON).await;
    for arguments in [["dlq", "retry", id.as_str()], ["dlq", "discard", id.as_str()]] {
        let (code, text) = said(&rig, &arguments).await;
        assert_eq!((code, text.contains("no worker runs, and nothing was done")), (Some(1), true), "{text}");
    }
    assert_eq!(rig.target.value("SELECT count(*) FROM cutover.requests").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn state_of_format_1_is_brought_up_with_its_dead_letters() {
    let (rig, mut worker) = too_long(Mysql::v57().await, "INSERT INTO t VALUES (2, 'longer than five')", 1).await;
    worker.terminate().await;
    worker.wait_exit(SOON).await;
    rig.target
        .exec(
            "ALTER TABLE cutover.dead_letters DROP COLUMN attempts, DROP COLUMN renewed_at, DROP COLUMN closed_at, DROP COLUMN mark;
             ALTER TABLE cutover.waiting DROP COLUMN needs;
             DROP INDEX cutover.dead_letters_rows; DROP TABLE cutover.transforms, cutover.replays, cutover.dead_letter_copies,
               cutover.events, cutover.cascades, cutover.drift, cutover.migration_log,
               cutover.migration_rows;
             UPDATE cutover.format SET version = 1",
        )
        .await;
    let (code, text) = said(&rig, &["dlq", "list"]).await;
    assert_eq!((code, text.contains("older release; restart the worker")), (Some(3), true), "{text}");
    rig.target.exec("ALTER TABLE t ALTER v TYPE varchar(40)").await;
    let _worker = rig.work.start(&[]);
    rig.eventually("brought up", async |status| status["worker_running"] == true).await;
    assert_eq!(listed(&rig).await["letters"][0]["attempts"], 1);
    let (code, text) = said(&rig, &["dlq", "retry", "--all"]).await;
    assert_eq!(code, Some(0), "{text}");
    rig.same("SELECT id, v FROM t ORDER BY id").await;

    rig.target.exec("UPDATE cutover.format SET version = 99").await;
    let (code, text) = said(&rig, &["dlq", "list"]).await;
    assert_eq!((code, text.contains("use the newer binary")), (Some(3), true), "{text}");
}
