//! The merge of snapshot and stream, end to end: rules 1, 2, 4 to 7 and 10 of docs/rules.md through the real binary.
//!
//! What the sink alone proves is in `apply_rules`; here stand the same promises with capture, log and copier in the
//! path.

use std::time::Duration;

use crate::{
    rules_rig::Rig,
    support::{Mysql, Postgres},
};

const ROWS: &str = "SELECT id, a FROM t ORDER BY id";

/// A table `t` of an id and a text, the same on both sides.
async fn plain(source: Mysql, target: Postgres) -> Rig {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20))";
    Rig::new(source, target, &["t"], at_source, "CREATE TABLE t (id int PRIMARY KEY, a text)").await
}

/// Rule 1. At the sink: `rule_1_a_late_snapshot_row_never_brings_a_deleted_row_back`.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_read_before_its_delete_and_arrives_after_it_stays_deleted() {
    let rig = plain(Mysql::v80().await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four')").await;
    let _worker = rig.following().await;
    let held = rig.hold_copied_rows().await;
    rig.copy_again_into_the_log("t").await;
    rig.source
        .exec("DELETE FROM t WHERE id = 1; UPDATE t SET a = 'new' WHERE id = 2; UPDATE t SET id = 9 WHERE id = 3")
        .await;
    rig.target_has(ROWS, "2 new, 4 four, 9 three").await;

    drop(held);
    rig.eventually("copied again", async |status| status["synced"] == true).await;
    rig.target_has(ROWS, "2 new, 4 four, 9 three").await;
    let copies = "SELECT state, generation, rows_copied FROM cutover.tables";
    rig.target_has(copies, "copied 2 4").await;
}

/// Rule 1. At the sink: `rule_1_two_racing_lanes_leave_what_one_would`.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_waits_for_the_copied_row_whose_transaction_is_still_open() {
    let rig = plain(Mysql::v57().await, Postgres::v18().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'one'), (2, 'two')").await;
    // A transaction that has written row 1 and cannot end yet; the role of replicas rests ordinary triggers.
    rig.target
        .exec(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF new.id = 1 THEN PERFORM pg_advisory_xact_lock(77); END IF; RETURN NULL; END $$;
             CREATE TRIGGER wait AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION wait();
             ALTER TABLE t ENABLE ALWAYS TRIGGER wait",
        )
        .await;
    let held = rig.target.connect().await;
    held.batch_execute("SELECT pg_advisory_lock(77)").await.unwrap();
    let _worker = rig.work.start(&[]);
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted";
    rig.target_has(waits, "1").await;
    rig.source.exec("DELETE FROM t WHERE id = 1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.target_has("SELECT count(*) FROM cutover.tombstones_public_t", "0").await;

    drop(held);
    rig.eventually("synced", async |status| status["synced"] == true).await;
    rig.target_has(ROWS, "2 two").await;
}

/// Rule 2.
async fn the_last_event_of_a_key_counts(source: Mysql, target: Postgres) {
    let rig = plain(source, target).await;
    rig.source.exec("CREATE TABLE u (id int PRIMARY KEY, a varchar(20), n int UNIQUE)").await;
    rig.source.exec("INSERT INTO t VALUES (1, 'old'), (2, 'old'), (3, 'old')").await;
    let _worker = rig.following().await;
    rig.source
        .exec(
            "BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1, 'again'), (5, 'short'); DELETE FROM t WHERE id = 5;
             INSERT INTO t VALUES (6, 'x'); DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (6, 'last'); COMMIT;
             REPLACE INTO t VALUES (2, 'first'), (2, 'second'), (7, 'first'), (7, 'second');
             INSERT INTO t VALUES (3, 'p'), (8, 'p'), (8, 'q') ON DUPLICATE KEY UPDATE a = CONCAT(a, '+', VALUES(a))",
        )
        .await;
    rig.target_has(ROWS, "1 again, 2 second, 3 old+p, 6 last, 7 second, 8 p+q").await;
    // One commit time, and still a version for each row.
    rig.source.exec("INSERT INTO t VALUES (11, 'a'), (12, 'b'), (13, 'c')").await;
    let versions =
        "SELECT count(DISTINCT cutover_version), max(cutover_version) - min(cutover_version) FROM t WHERE id > 10";
    rig.target_has(versions, "3 2").await;
}

/// Rule 2.
#[tokio::test(flavor = "multi_thread")]
async fn inserts_and_deletes_of_a_key_in_one_transaction_or_statement_end_with_the_last_on_mysql_57() {
    the_last_event_of_a_key_counts(Mysql::v57().await, Postgres::v15().await).await;
}

/// Rule 2.
#[tokio::test(flavor = "multi_thread")]
async fn inserts_and_deletes_of_a_key_in_one_transaction_or_statement_end_with_the_last_on_mysql_97() {
    the_last_event_of_a_key_counts(Mysql::v97().await, Postgres::v18().await).await;
}

/// Rule 2.
#[tokio::test(flavor = "multi_thread")]
async fn inserts_and_deletes_of_a_key_in_one_transaction_or_statement_end_with_the_last_on_mariadb() {
    the_last_event_of_a_key_counts(Mysql::mariadb().await, Postgres::v15().await).await;
}

/// Rule 2.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_list_does_not_move_versions() {
    let at_source =
        "CREATE TABLE t (id int PRIMARY KEY, a varchar(20)); CREATE TABLE other (id int PRIMARY KEY, n int)";
    let at_target = "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE other (id int PRIMARY KEY, n int)";
    let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["t"], at_source, at_target).await;
    let (both, work) = rig.beside(Postgres::v18().await, &["t", "other"], at_target).await;
    let _first = rig.following().await;
    let _second = work.start(&[]);
    rig.source.exec("INSERT INTO t VALUES (1, 'a')").await;
    let there =
        async || both.query("SELECT to_regclass('cutover.offsets') IS NOT NULL").await[0][0].as_deref() == Some("t");
    crate::support::eventually("the other pipeline has begun", Duration::from_secs(20), there).await;
    let row = async || both.query("SELECT id FROM t").await.len() == 1;
    crate::support::eventually("the other pipeline follows", Duration::from_secs(20), row).await;
    rig.source
        .exec(
            "BEGIN; INSERT INTO other VALUES (1, 1), (2, 2), (3, 3); INSERT INTO t VALUES (2, 'b'); UPDATE other SET n = n + 1;
             UPDATE t SET a = 'c' WHERE id = 2; DELETE FROM other; INSERT INTO t VALUES (3, 'd'); TRUNCATE other;
             BEGIN; INSERT INTO other VALUES (4, 4); UPDATE other SET id = 5; INSERT INTO t VALUES (4, 'e'); COMMIT",
        )
        .await;
    let versions = "SELECT id, cutover_version FROM t WHERE id > 1 ORDER BY id";
    rig.target_has("SELECT max(id) FROM t", "4").await;
    let last = async || both.query("SELECT id FROM t").await.len() == 4;
    crate::support::eventually("the other pipeline has followed", Duration::from_secs(20), last).await;
    assert_eq!(rig.target.query(versions).await, both.query(versions).await);
}

/// Rule 2.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_pipeline_counts_on_from_the_versions_that_the_target_has() {
    let rig = plain(Mysql::v80().await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'new'), (2, 'new')").await;
    // What an earlier pipeline left, whose clock was fifty seconds ahead.
    rig.target
        .exec(
            "ALTER TABLE t ADD COLUMN cutover_version bigint NOT NULL DEFAULT 0;
             INSERT INTO t SELECT 1, 'old', (extract(epoch FROM now() + interval '50 s') * 1000000)::bigint",
        )
        .await;
    let _worker = rig.following().await;
    rig.target_has(ROWS, "1 new, 2 new").await;
    rig.source.exec("UPDATE t SET a = 'newer' WHERE id = 1").await;
    rig.target_has(ROWS, "1 newer, 2 new").await;
}

/// Rule 4. At the sink: `rule_4_rows_that_were_there_before_give_way`.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_at_the_target_before_give_way_to_copy_and_stream() {
    let rig = plain(Mysql::mariadb().await, Postgres::v18().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'source'), (2, 'source')").await;
    rig.target.exec("INSERT INTO t VALUES (1, 'before'), (3, 'before'), (4, 'before')").await;
    let _worker = rig.following().await;
    rig.target_has(
        "SELECT id, a, cutover_version = 0 FROM t ORDER BY id",
        "1 source f, 2 source f, 3 before t, 4 before t",
    )
    .await;
    rig.source.exec("INSERT INTO t VALUES (3, 'source'), (4, 'source'); DELETE FROM t WHERE id = 4").await;
    rig.target_has(ROWS, "1 source, 2 source, 3 source").await;
    let column = "SELECT is_nullable, column_default FROM information_schema.columns
                  WHERE table_name = 't' AND column_name = 'cutover_version'";
    rig.target_has(column, "NO 0").await;
}

/// A table whose `a` is unique on both sides.
async fn unique(source: Mysql, target: Postgres) -> Rig {
    let at_source = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20), UNIQUE (a))";
    Rig::new(source, target, &["t"], at_source, "CREATE TABLE t (id int PRIMARY KEY, a text UNIQUE)").await
}

/// Rule 5. At the sink: `rule_5_unique_values_swap_inside_one_batch_and_other_columns_stay`.
#[tokio::test(flavor = "multi_thread")]
async fn unique_values_are_swapped_and_moved_inside_a_transaction() {
    let rig = unique(Mysql::v57().await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')").await;
    let _worker = rig.following().await;
    rig.source
        .exec(
            "BEGIN; UPDATE t SET a = NULL WHERE id = 1; UPDATE t SET a = 'a' WHERE id = 2; UPDATE t SET a = 'b' WHERE id = 1; COMMIT;
             BEGIN; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (5, 'c'); COMMIT;
             BEGIN; UPDATE t SET a = 'other' WHERE id = 4; UPDATE t SET id = 6, a = 'd' WHERE id = 5; COMMIT",
        )
        .await;
    rig.target_has(ROWS, "1 b, 2 a, 4 other, 6 d").await;
    let status = rig.status().await;
    assert_eq!((&status["waiting"], &status["dead_letters"]), (&0.into(), &0.into()), "{status}");
}

/// Rule 5. At the sink: `rule_5_a_row_blocked_by_a_row_outside_waits_and_comes_in_when_that_goes`.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_unique_value_another_row_still_has_waits_through_a_restart() {
    let rig = unique(Mysql::v80().await, Postgres::v18().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'taken'), (2, 'free')").await;
    rig.target.exec("INSERT INTO t VALUES (9, 'taken')").await;
    let mut worker = rig.work.start(&[]);
    rig.target_has(ROWS, "2 free, 9 taken").await;
    let waits = async |status: &serde_json::Value| status["waiting"] == 1;
    let status = rig.eventually("it waits", waits).await;
    assert_eq!((&status["dead_letters"], &status["synced"]), (&0.into(), &false.into()), "{status}");
    worker.kill9().await;

    let _worker = rig.work.start(&[]);
    rig.source.exec("INSERT INTO t VALUES (9, 'nine')").await;
    rig.target_has(ROWS, "1 taken, 2 free, 9 nine").await;
    let status = rig.eventually("synced", async |status| status["synced"] == true).await;
    assert_eq!((&status["waiting"], &status["dead_letters"]), (&0.into(), &0.into()), "{status}");
}

/// Rule 6.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_leaves_the_filter_is_deleted_at_the_target() {
    let rig = plain(Mysql::v57().await, Postgres::v18().await).await;
    rig.work.transform("t", "SELECT id, upper(a) AS a FROM t WHERE a <> 'hidden'");
    rig.source.exec("INSERT INTO t VALUES (1, 'seen'), (2, 'hidden'), (3, 'seen')").await;
    // A row that the copy reads and the filter leaves out is not left as it was.
    rig.target.exec("INSERT INTO t VALUES (2, 'before'), (3, 'before')").await;
    let _worker = rig.following().await;
    rig.target_has(ROWS, "1 SEEN, 3 SEEN").await;
    rig.source.exec("UPDATE t SET a = 'hidden' WHERE id IN (1, 3); UPDATE t SET a = 'back' WHERE id = 2").await;
    rig.target_has(ROWS, "2 BACK").await;
    rig.source.exec("BEGIN; UPDATE t SET a = 'x' WHERE id = 1; UPDATE t SET a = 'hidden' WHERE id = 1; UPDATE t SET a = 'y' WHERE id = 3; COMMIT").await;
    rig.target_has(ROWS, "2 BACK, 3 Y").await;
    rig.source
        .exec("DELETE FROM t WHERE id = 3; UPDATE t SET id = 4 WHERE id = 2; INSERT INTO t VALUES (5, 'hidden')")
        .await;
    rig.target_has(ROWS, "4 BACK").await;
}

/// Rule 7. At the sink: `rule_7_two_rows_that_claim_one_key_are_told`.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_source_rows_that_claim_one_target_key_one_waits_and_is_told() {
    let at_source = "CREATE TABLE t (code varchar(10) COLLATE utf8mb4_bin PRIMARY KEY, n int)";
    let at_target = "CREATE TABLE t (code text PRIMARY KEY, n int)";
    let rig = Rig::new(Mysql::v80().await, Postgres::v15().await, &["t"], at_source, at_target).await;
    rig.work.transform("t", "SELECT lower(code) AS code, n FROM t");
    rig.source.exec("INSERT INTO t VALUES ('A', 1), ('a', 2), ('b', 3)").await;
    let (code, said) = rig.until_synced().await;
    assert_eq!(code, Some(1), "{said}");
    rig.target_has("SELECT code, n FROM t WHERE code = 'b'", "b 3").await;
    rig.target_has("SELECT count(*) FROM t WHERE code = 'a' AND n IN (1, 2)", "1").await;
    let waits = "SELECT count(*), bool_and(reason LIKE '%one to one%') FROM cutover.waiting";
    rig.target_has(waits, "1 t").await;
    assert!(said.contains("two source rows map to one target key"), "{said}");
}

/// Rule 10.
async fn a_truncate_is_final(source: Mysql, target: Postgres) {
    let rig = plain(source, target).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three')").await;
    let mut worker = rig.following().await;
    let held = rig.hold_copied_rows().await;
    rig.copy_again_into_the_log("t").await;
    rig.source.exec("TRUNCATE TABLE t; INSERT INTO t VALUES (3, 'after'), (4, 'after')").await;
    rig.target_has(ROWS, "3 after, 4 after").await;
    drop(held);
    rig.eventually("copied again", async |status| status["synced"] == true).await;
    rig.target_has(ROWS, "3 after, 4 after").await;

    // The fence outlives the worker, and holds for a copy that begins after it.
    worker.kill9().await;
    rig.source.exec("TRUNCATE t").await;
    rig.sync().await;
    rig.target_has("SELECT count(*) FROM t", "0").await;
}

/// Rule 10. At the sink: `rule_10_a_truncate_removes_what_is_older_for_good`.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_truncate_removed_while_it_was_copied_stays_gone_on_mysql() {
    a_truncate_is_final(Mysql::v57().await, Postgres::v15().await).await;
}

/// Rule 10.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_truncate_removed_while_it_was_copied_stays_gone_on_mariadb() {
    a_truncate_is_final(Mysql::mariadb().await, Postgres::v18().await).await;
}

/// A changed key is a delete of the old and an insert of the new one.
#[tokio::test(flavor = "multi_thread")]
async fn keys_change_swap_and_chain_inside_a_transaction() {
    let rig = plain(Mysql::v80().await, Postgres::v15().await).await;
    rig.source.exec("INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four'), (5, 'five')").await;
    let _worker = rig.following().await;
    rig.source
        .exec(
            "BEGIN; UPDATE t SET id = 9 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = 9; COMMIT;
             UPDATE t SET id = id + 10 WHERE id > 2 ORDER BY id DESC; UPDATE t SET id = id - 9 WHERE id > 2 ORDER BY id",
        )
        .await;
    rig.target_has(ROWS, "1 two, 2 one, 4 three, 5 four, 6 five").await;
    rig.same(ROWS).await;
}
