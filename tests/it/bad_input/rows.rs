//! Rows that PostgreSQL refuses: set aside and counted, while all others go on; and back once the cause is put right.

use std::time::Duration;

use super::{Pipeline, stop};

/// Copies one good and one bad row, then follows one of each: both bad ones are set aside with this error.
async fn set_aside(pipeline: &Pipeline, bad: &str, sqlstate: &str, error: &str) {
    pipeline.source.exec(&format!("INSERT INTO t VALUES (10, {bad})")).await;
    pipeline.check().await.expect(0, &["ready: "]);
    let said = pipeline.synced().await;
    said.expect(
        1,
        &[
            "synced, but 1 dead letter(s) are open",
            "cutover dlq list",
            "correct the rows at the source",
            "cutover dlq retry --all",
        ],
    );

    let worker = pipeline.work.start(&[]);
    pipeline.eventually_status(&["\"phase\":\"following\"", "\"worker_running\":true"]).await;
    pipeline
        .source
        .exec(&format!("INSERT INTO t VALUES (11, {bad}), (12, '12'); UPDATE t SET v = '4' WHERE id = 1"))
        .await;
    pipeline.eventually_status(&["\"dead_letters\":2"]).await;
    crate::support::eventually("the good rows of the same transaction", Duration::from_secs(10), async || {
        pipeline.target.value("SELECT count(*) FROM t WHERE (id, v::text) IN ((1, '4'), (12, '12'))").await.as_deref()
            == Some("2")
    })
    .await;
    assert_eq!(worker.metric("cutover_dead_letters_total").await, Some(1.0), "counted since this worker's start");
    pipeline
        .command(&["status"])
        .await
        .expect(0, &["dead letters  2, the oldest for", "; `cutover dlq list`", "cutover dlq retry --all"]);
    stop(worker).await.expect(0, &["set aside"]);

    let letters = "SELECT source_table, key_text, sqlstate, error FROM cutover.dead_letters WHERE state = 'open' ORDER BY key_text";
    let letters = pipeline.target.query(letters).await;
    assert_eq!(letters.len(), 2);
    for (letter, id) in letters.iter().zip(["10", "11"]) {
        let [table, key, state, text] = letter.as_slice() else { panic!("{letter:?}") };
        assert!(table.as_deref().unwrap().ends_with(".t") && key.as_deref().unwrap().contains(id), "{letter:?}");
        assert_eq!(state.as_deref(), Some(sqlstate));
        assert!(text.as_deref().unwrap().contains(error), "{letter:?}");
    }
    pipeline.synced().await.expect(1, &["2 dead letter(s)"]);
}

/// Copies the table again with a worker that knows the repair.
async fn copied_again(pipeline: &Pipeline) {
    let worker = pipeline.work.start(&[]);
    pipeline.eventually_status(&["\"worker_running\":true"]).await;
    pipeline.command(&["resnapshot", "t"]).await.expect(0, &["rows copied again"]);
    stop(worker).await.expect(0, &[]);
}

async fn numbers(target: &str) -> Pipeline {
    Pipeline::new("CREATE TABLE t (id int PRIMARY KEY, v varchar(40)); INSERT INTO t VALUES (1, '1'), (2, '2')", target)
        .await
}

#[tokio::test]
async fn a_nul_byte_in_a_text_and_its_repair_at_the_source() {
    let pipeline = numbers("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    set_aside(&pipeline, "'a\\0b'", "22021", "NUL byte").await;
    pipeline.source.exec("UPDATE t SET v = 'ab' WHERE id IN (10, 11)").await;
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_value_that_is_too_long_and_a_wider_column() {
    let pipeline = numbers("CREATE TABLE t (id int PRIMARY KEY, v varchar(5))").await;
    set_aside(&pipeline, "'longer than five'", "22001", "value too long for type character varying(5)").await;
    pipeline.at_target("ALTER TABLE t ALTER v TYPE varchar(40)").await;
    copied_again(&pipeline).await;
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_cast_that_fails_and_a_better_transform() {
    let pipeline = numbers("CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    pipeline.work.transform("t", "SELECT id, v::int AS v FROM t");
    set_aside(&pipeline, "'many'", "22P02", "invalid input syntax for type integer").await;
    pipeline.work.transform("t", "SELECT id, CASE WHEN v ~ '^[0-9]+$' THEN v::int ELSE 0 END AS v FROM t");
    copied_again(&pipeline).await;
    pipeline.synced().await.expect(0, &[]);
    let found = pipeline.target.value("SELECT string_agg(id || '=' || v, ' ' ORDER BY id) FROM t").await;
    assert_eq!(found.as_deref(), Some("1=4 2=2 10=0 11=0 12=12"));
}

#[tokio::test]
async fn a_check_constraint_and_the_delete_of_the_rows_at_the_source() {
    let pipeline = numbers("CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad'))").await;
    set_aside(&pipeline, "'bad'", "23514", "violates check constraint").await;
    pipeline.source.exec("DELETE FROM t WHERE v = 'bad'").await;
    pipeline.recovered().await;
}
