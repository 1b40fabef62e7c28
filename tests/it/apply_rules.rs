//! The rules of docs/rules.md that the sink keeps, one by one, on a real server.

use std::{sync::Arc, time::Duration};

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema},
    target::{ApplyError, BatchEvent, Sink},
};
use serde_json::{Value, json};

use crate::apply_rig::{Rig, delete, insert, keyed, read, table, update};

fn users() -> Arc<TableSchema> {
    table(
        "users",
        &[
            ("id", ColumnType::BigInt),
            ("email", ColumnType::Text),
            ("age", ColumnType::Text),
            ("boss", ColumnType::BigInt),
        ],
    )
}

fn user(id: i64, email: &str) -> Value {
    json!({ "id": id, "email": email, "age": "30", "boss": null })
}

const USERS: &str =
    "CREATE TABLE users (id bigint PRIMARY KEY, email text UNIQUE, age int CHECK (age < 200), seen int DEFAULT 7)";
const USERS_SQL: (&str, &str) = ("users.sql", "SELECT id, email, age::int AS age FROM users");

async fn users_rig() -> Rig {
    Rig::new(USERS, &[users()], &[USERS_SQL]).await
}

const EMAILS: &str = "ROW(id, email)";

#[tokio::test]
async fn rule_1_a_late_snapshot_row_never_brings_a_deleted_row_back() {
    let rig = users_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let row = user(1, "a");
    changes.apply(vec![delete(&users(), 6, &row)]).await;
    let late = snapshot.apply(vec![read(&users(), 5, &row)]).await;
    assert_eq!(late.tables["users"].stale, 1);
    assert_eq!(rig.count("users").await, 0);
    // At the same version the live fact wins: the row was deleted and inserted before it was read.
    snapshot.apply(vec![read(&users(), 6, &row)]).await;
    assert_eq!(rig.count("users").await, 1);
}

#[tokio::test]
async fn rule_1_two_racing_lanes_leave_what_one_would() {
    let rig = users_rig().await;
    for round in 0..10i64 {
        let base = round * 100;
        let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
        let rows: Vec<Value> = (0..40).map(|id| user(base + id, &format!("r{round}-{id}"))).collect();
        let deletes: Vec<BatchEvent> = rows.iter().map(|row| delete(&users(), base + 60, row)).collect();
        let copies: Vec<BatchEvent> = rows.iter().rev().map(|row| read(&users(), base + 50, row)).collect();
        tokio::join!(changes.apply(deletes), snapshot.apply(copies));
    }
    assert_eq!(rig.count("users").await, 0);
}

#[tokio::test]
async fn rule_4_rows_that_were_there_before_give_way() {
    let rig = users_rig().await;
    rig.pg.exec("INSERT INTO users (id, email, age, seen) VALUES (1, 'old', 3, 9)").await;
    let mut lane = rig.lane(Topic::Snapshot).await;
    let applied = lane.apply(vec![read(&users(), 5, &user(1, "new"))]).await;
    assert_eq!(applied.tables["users"].updated, 1);
    assert_eq!(rig.rows("ROW(id, email, seen)", "users").await, ["(1,new,9)"]);
}

#[tokio::test]
async fn rule_5_unique_values_swap_inside_one_batch_and_other_columns_stay() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a")), insert(&users(), 2, &user(2, "b"))]).await;
    rig.pg.exec("UPDATE users SET seen = 42 WHERE id = 1").await;
    let applied = lane
        .apply(vec![
            update(&users(), 3, &user(1, "a"), &user(1, "b")),
            update(&users(), 4, &user(2, "b"), &user(2, "a")),
        ])
        .await;
    assert_eq!((applied.waiting, applied.dead_letters), (0, 0));
    assert_eq!(rig.rows("ROW(id, email, seen)", "users").await, ["(1,b,42)", "(2,a,7)"]);
}

#[tokio::test]
async fn rule_5_a_unique_value_moves_from_a_deleted_row_of_the_batch() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a"))]).await;
    lane.apply(vec![delete(&users(), 2, &user(1, "a")), insert(&users(), 3, &user(2, "a"))]).await;
    assert_eq!(rig.rows(EMAILS, "users").await, ["(2,a)"]);
}

#[tokio::test]
async fn rule_5_a_row_blocked_by_a_row_outside_waits_and_comes_in_when_that_goes() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a"))]).await;
    let applied = lane.apply(vec![insert(&users(), 3, &user(2, "a")), insert(&users(), 4, &user(3, "c"))]).await;
    assert_eq!((applied.waiting, applied.dead_letters), (1, 0));
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,a)", "(3,c)"]);
    assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 1);
    // Another worker takes over: what waits is durable.
    let mut lane = rig.lane_at(Topic::Changes, 2).await;
    lane.apply(vec![update(&users(), 2, &user(1, "a"), &user(1, "z"))]).await;
    let retried = lane.sink.retry_waiting().await.unwrap();
    assert_eq!((retried.waiting, retried.tables["users"].inserted), (0, 1));
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,z)", "(2,a)", "(3,c)"]);
}

#[tokio::test]
async fn rule_5_waiting_rows_come_in_on_a_busy_lane_too() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a")), insert(&users(), 2, &user(2, "a"))]).await;
    lane.apply(vec![delete(&users(), 3, &user(1, "a"))]).await;
    for id in 10..26 {
        lane.apply(vec![insert(&users(), id, &user(id, &format!("u{id}")))]).await;
    }
    assert_eq!(rig.count("users WHERE id = 2").await, 1);
}

#[tokio::test]
async fn rule_5_what_a_copy_has_set_aside_comes_in_on_an_idle_stream() {
    let rig = users_rig().await;
    let (mut lane, mut copy) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    lane.apply(vec![insert(&users(), 1, &user(1, "a"))]).await;
    assert_eq!(copy.apply(vec![read(&users(), 2, &user(2, "a"))]).await.waiting, 1);
    rig.pg.exec("DELETE FROM users WHERE id = 1").await;
    assert_eq!(lane.sink.retry_waiting().await.unwrap().tables["users"].inserted, 1);
}

#[tokio::test]
async fn rule_5_rows_of_several_partitions_that_wait_for_each_other_come_in_together() {
    let rig = users_rig().await;
    let mut lanes = Vec::new();
    for (partition, (id, email)) in (0..).zip([(1, "a"), (2, "b"), (3, "c"), (4, "d")]) {
        let mut lane = rig.lane_in(Topic::Changes, partition).await;
        lane.apply(vec![insert(&users(), 1, &user(id, email))]).await;
        lanes.push(lane);
    }
    // As a copy reads them once they have changed hands: nobody can be first.
    for (lane, (id, email)) in lanes.iter_mut().zip([(1, "b"), (2, "c"), (3, "a"), (4, "d")]) {
        lane.apply(vec![read(&users(), 2, &user(id, email))]).await;
    }
    assert_eq!(rig.count("cutover.waiting").await, 3);
    let applied = lanes[1].sink.retry_waiting().await.unwrap();
    assert_eq!((applied.waiting, applied.tables["users"].updated), (0, 3));
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,b)", "(2,c)", "(3,a)", "(4,d)"]);
}

#[tokio::test]
async fn rule_5_what_waits_after_the_last_round_still_waits() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let rows: Vec<BatchEvent> =
        ["a", "b", "c", "d", "e"].iter().zip(1..).map(|(email, id)| insert(&users(), id, &user(id, email))).collect();
    lane.apply(rows).await;
    lane.apply(vec![insert(&users(), 9, &user(9, "z"))]).await;
    // Each round lets some of them in; the last is blocked by a row outside.
    let change = |version, id, from: &str, to: &str| update(&users(), version, &user(id, from), &user(id, to));
    let changes = vec![
        change(14, 4, "d", "c"),
        change(12, 2, "b", "a"),
        change(13, 3, "c", "b"),
        change(11, 1, "a", "n"),
        change(15, 5, "e", "z"),
    ];
    let applied = lane.apply(changes).await;
    assert_eq!((applied.waiting, applied.dead_letters), (1, 0));
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,n)", "(2,a)", "(3,b)", "(4,c)", "(5,e)", "(9,z)"]);
    lane.apply(vec![delete(&users(), 16, &user(9, "z"))]).await;
    lane.sink.retry_waiting().await.unwrap();
    assert_eq!(rig.count("users WHERE email = 'z' AND id = 5").await, 1);
}

#[tokio::test]
async fn rule_23_a_bad_row_that_comes_late_is_no_dead_letter() {
    let rig = users_rig().await;
    let (mut lane, mut copy) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let bad = |id: i64| json!({ "id": id, "email": format!("bad{id}"), "age": "old", "boss": null });
    lane.apply(vec![insert(&users(), 5, &user(1, "a")), insert(&users(), 6, &user(2, "b"))]).await;
    lane.apply(vec![delete(&users(), 7, &user(2, "b"))]).await;
    let late = copy.apply(vec![read(&users(), 4, &bad(1)), read(&users(), 4, &bad(2))]).await;
    assert_eq!(late.dead_letters, 0);
    let in_time = copy.apply(vec![read(&users(), 8, &bad(1)), read(&users(), 4, &bad(3))]).await;
    assert_eq!(in_time.dead_letters, 2);
}

#[tokio::test]
async fn a_record_that_is_in_the_log_twice_waits_once() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let twice = || insert(&users(), 2, &user(2, "a"));
    let applied = lane.apply(vec![insert(&users(), 1, &user(1, "a")), twice(), twice()]).await;
    assert_eq!((applied.waiting, applied.dead_letters), (1, 0));
}

#[tokio::test]
async fn two_changes_of_a_row_that_waits_do_not_claim_each_others_key() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(9, "z"))]).await;
    let mut events: Vec<BatchEvent> =
        (3..7).map(|id| insert(&users(), 10 + id, &user(id, &format!("u{id}")))).collect();
    events.push(insert(&users(), 20, &user(2, "z")));
    events.push(update(&users(), 21, &user(2, "z"), &json!({ "id": 2, "email": "z", "age": 7, "boss": null })));
    let applied = lane.apply(events).await;
    assert_eq!((applied.waiting, applied.dead_letters), (1, 0));
    lane.apply(vec![delete(&users(), 30, &user(9, "z"))]).await;
    lane.sink.retry_waiting().await.unwrap();
    assert_eq!(rig.count("users WHERE id = 2 AND age = 7").await, 1);
    assert_eq!(rig.count("cutover.waiting").await, 0);
}

#[tokio::test]
async fn rule_23_a_waiting_row_that_comes_in_clears_its_older_dead_letter() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let bad = json!({ "id": 2, "email": "b", "age": "old", "boss": null });
    let applied = lane.apply(vec![insert(&users(), 1, &user(1, "a")), insert(&users(), 2, &bad)]).await;
    assert_eq!(applied.dead_letters, 1);
    assert_eq!(lane.apply(vec![update(&users(), 3, &bad, &user(2, "a"))]).await.waiting, 1);
    assert_eq!(rig.count("cutover.dead_letters").await, 1);
    rig.pg.exec("DELETE FROM users WHERE id = 1").await;
    lane.sink.retry_waiting().await.unwrap();
    assert_eq!(rig.count("users WHERE id = 2").await, 1);
    assert_eq!(rig.count("cutover.dead_letters WHERE state = 'open'").await, 0);
}

#[tokio::test]
async fn rule_5_a_newer_change_of_a_waiting_row_replaces_it() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a")), insert(&users(), 2, &user(2, "a"))]).await;
    assert_eq!(rig.count("cutover.waiting").await, 1);
    let applied = lane.apply(vec![update(&users(), 3, &user(2, "a"), &user(2, "b"))]).await;
    assert_eq!(applied.waiting, 0);
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,a)", "(2,b)"]);
}

#[tokio::test]
async fn rule_7_two_rows_that_claim_one_key_are_told() {
    let ddl = "CREATE TABLE codes (code text PRIMARY KEY, note text)";
    let codes = table("codes", &[("code", ColumnType::Text), ("note", ColumnType::Text)]);
    let select = "SELECT lower(code) AS code, note FROM codes";
    for rest in ["", " WHERE true", ", generate_series(1, 1) one"] {
        let sql = format!("{select}{rest}");
        let rig = Rig::new(ddl, std::slice::from_ref(&codes), &[("codes.sql", &sql)]).await;
        let mut lane = rig.lane(Topic::Changes).await;
        let row = |code: &str| json!({ "code": code, "note": code });
        let applied = lane
            .apply(vec![insert(&codes, 1, &row("A")), insert(&codes, 2, &row("a")), insert(&codes, 3, &row("b"))])
            .await;
        assert_eq!((applied.waiting, applied.dead_letters), (1, 0), "{sql}");
        assert_eq!(rig.rows("ROW(code, note)", "codes").await, ["(a,A)", "(b,b)"], "{sql}");
        let reason = rig.pg.value("SELECT reason FROM cutover.waiting").await.unwrap();
        assert!(reason.contains("two source rows map to one target key"), "{reason}");
    }
}

#[tokio::test]
async fn rule_10_a_truncate_removes_what_is_older_for_good() {
    let rig = users_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    changes.apply(vec![insert(&users(), 1, &user(1, "a")), insert(&users(), 5, &user(2, "b"))]).await;
    changes
        .apply(vec![
            insert(&users(), 2, &user(3, "c")),
            BatchEvent::Truncate { schema: users(), version: 4 },
            insert(&users(), 6, &user(4, "d")),
        ])
        .await;
    let late = snapshot.apply(vec![read(&users(), 3, &user(1, "a")), read(&users(), 7, &user(5, "e"))]).await;
    assert_eq!(late.tables["users"].stale, 1);
    assert_eq!(rig.rows(EMAILS, "users").await, ["(2,b)", "(4,d)", "(5,e)"]);
}

#[tokio::test]
async fn rule_19_only_one_of_two_sinks_moves_the_lane() {
    let rig = users_rig().await;
    let (mut first, mut second) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Changes).await);
    first.apply(vec![insert(&users(), 1, &user(1, "a"))]).await;
    let error = second.try_apply(vec![insert(&users(), 1, &user(1, "x"))]).await.unwrap_err();
    assert!(matches!(error, ApplyError::Fenced { .. }), "{error}");
    // A newer lease takes the lane from its owner, even at the right offset.
    let mut third = rig.lane_at(Topic::Changes, 2).await;
    let error = first.try_apply(vec![insert(&users(), 2, &user(2, "b"))]).await.unwrap_err();
    assert!(matches!(error, ApplyError::Fenced { .. }), "{error}");
    third.apply(vec![insert(&users(), 2, &user(2, "b"))]).await;
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,a)", "(2,b)"]);
    let mut stale = rig.sink(Topic::Changes, 1, true).await;
    assert!(matches!(stale.claim(crate::apply_rig::EPOCH).await, Err(ApplyError::Fenced { .. })));
}

#[tokio::test]
async fn rule_20_a_huge_transaction_is_seen_whole_or_not_at_all() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply_open(vec![insert(&users(), 1, &user(1, "a"))]).await;
    // A bad row in a later part takes nothing else with it.
    let mut bad = user(2, "b");
    bad["age"] = json!("x");
    lane.apply_open(vec![insert(&users(), 2, &bad), insert(&users(), 3, &user(3, "c"))]).await;
    assert_eq!(rig.count("users").await, 0);
    lane.sink.abandon().await.unwrap();
    assert_eq!(rig.count("users").await, 0);
    let mut lane = rig.lane(Topic::Changes).await;
    assert_eq!(lane.next, 0);
    lane.apply_open(vec![insert(&users(), 1, &user(1, "a"))]).await;
    lane.apply_open(vec![insert(&users(), 2, &bad), insert(&users(), 3, &user(3, "c"))]).await;
    lane.apply_open(vec![insert(&users(), 4, &user(4, "d"))]).await;
    lane.apply(vec![insert(&users(), 5, &user(5, "e"))]).await;
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,a)", "(3,c)", "(4,d)", "(5,e)"]);
    assert_eq!(rig.count("cutover.dead_letters").await, 1);
    assert_eq!(rig.lane(Topic::Changes).await.next, lane.next);
}

#[tokio::test]
async fn rule_20_a_connection_that_is_lost_between_two_parts_loses_no_part() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply_open(vec![insert(&users(), 1, &user(1, "a"))]).await;
    let open = "FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    rig.pg.query(&format!("SELECT pg_terminate_backend(pid) {open}")).await;
    // The connection's end is noticed before the next part comes, or with it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let error = lane.try_apply(vec![insert(&users(), 2, &user(2, "b"))]).await.unwrap_err();
    assert!(matches!(error, ApplyError::Unreachable(_)), "{error}");
    assert_eq!(rig.count("users").await, 0);
    let mut lane = rig.lane(Topic::Changes).await;
    assert_eq!(lane.next, 0);
    lane.apply_open(vec![insert(&users(), 1, &user(1, "a"))]).await;
    lane.apply(vec![insert(&users(), 2, &user(2, "b"))]).await;
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,a)", "(2,b)"]);
}

#[tokio::test]
async fn rule_20_beyond_the_bound_a_transaction_is_written_in_parts() {
    let mut rig = users_rig().await;
    rig.config.transaction_rows_max = 2;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply_open(vec![insert(&users(), 1, &user(1, "a"))]).await;
    assert_eq!(rig.count("users").await, 0);
    lane.apply_open(vec![insert(&users(), 2, &user(2, "b"))]).await;
    assert_eq!(rig.count("users").await, 2);
    lane.apply(vec![insert(&users(), 3, &user(3, "c"))]).await;
    assert_eq!(rig.count("users").await, 3);
}

#[tokio::test]
async fn rule_23_a_dead_letter_keeps_older_events_out_and_a_newer_one_clears_it() {
    let rig = users_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let mut bad = user(1, "a");
    bad["age"] = json!("not a number");
    let applied = changes.apply(vec![insert(&users(), 6, &bad), insert(&users(), 7, &user(2, "b"))]).await;
    assert_eq!((applied.dead_letters, applied.tables["users"].inserted), (1, 1));
    // The other lane's sink was opened before: it finds out inside its transaction.
    snapshot.apply(vec![read(&users(), 5, &user(1, "old")), read(&users(), 5, &user(3, "c"))]).await;
    assert_eq!(rig.rows(EMAILS, "users").await, ["(2,b)", "(3,c)"]);
    let dead = rig.pg.query("SELECT key_text, version, sqlstate, state, record->>'op' FROM cutover.dead_letters").await;
    let text: Vec<&str> = dead[0].iter().map(|cell| cell.as_deref().unwrap()).collect();
    assert_eq!(text, ["{\"id\":1}", "6", "22P02", "open", "c"]);
    // Delivered again it is not written twice; a newer one clears it.
    let mut again = rig.lane_at(Topic::Changes, 2).await;
    again.apply(vec![insert(&users(), 6, &bad)]).await;
    assert_eq!(rig.count("cutover.dead_letters").await, 1);
    again.apply(vec![update(&users(), 8, &bad, &user(1, "good"))]).await;
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,good)", "(2,b)", "(3,c)"]);
}

#[tokio::test]
async fn rule_23_a_cleared_dead_letter_still_removes_what_it_would_have_removed() {
    let ddl = "CREATE TABLE open_users (id bigint PRIMARY KEY, age int)";
    let sql = "SELECT id, age::int AS age FROM users WHERE email = 'open'";
    let rig = Rig::new(ddl, &[users()], &[("open_users.sql", sql)]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let (good, mut bad, closed) = (user(1, "open"), user(1, "open"), user(1, "closed"));
    bad["age"] = json!("x");
    lane.apply(vec![insert(&users(), 1, &good)]).await;
    assert_eq!(lane.apply(vec![update(&users(), 2, &good, &bad)]).await.dead_letters, 1);
    assert_eq!(rig.count("open_users").await, 1);
    // Its own image before cannot be transformed; the image before that can, and goes.
    lane.apply(vec![update(&users(), 3, &bad, &closed)]).await;
    assert_eq!(rig.count("open_users").await, 0);
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
}

#[tokio::test]
async fn rule_23_a_row_that_fails_again_renews_its_letter_and_fences_from_there() {
    let rig = users_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let (good, mut bad) = (user(1, "a"), user(1, "b"));
    bad["age"] = json!("x");
    changes.apply(vec![insert(&users(), 1, &good)]).await;
    changes.apply(vec![update(&users(), 2, &good, &bad), update(&users(), 3, &bad, &bad)]).await;
    assert_eq!(rig.count("cutover.dead_letters").await, 2, "each event has one");
    // The row is read again: one letter is left, the oldest, with what the target shows and what the source has.
    snapshot.apply(vec![read(&users(), 9, &bad)]).await;
    let columns = "ROW(version, attempts, record->'before'->>'email', record->'after'->>'email')";
    assert_eq!(rig.rows(columns, "cutover.dead_letters").await, ["(9,2,a,b)"]);
    // The other lane's sink was opened before.
    changes.apply(vec![update(&users(), 8, &bad, &user(1, "late"))]).await;
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,a)"]);
    snapshot.apply(vec![read(&users(), 10, &user(1, "c"))]).await;
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,c)"]);
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
}

/// A row of the copy that is refused, and then changes of the stream that are older or newer; a filter takes the row
/// out in one of them.
async fn late_changes(late: &[Vec<BatchEvent>], letters: u64) {
    let ddl = "CREATE TABLE open_users (id bigint PRIMARY KEY, email text, age int)";
    let sql = "SELECT id, email, age::int AS age FROM users WHERE email <> 'closed'";
    let rig = Rig::new(ddl, &[users()], &[("open_users.sql", sql)]).await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    changes.apply(vec![insert(&users(), 1, &user(1, "a"))]).await;
    assert_eq!(snapshot.apply(vec![read(&users(), 6, &bad_user("d"))]).await.dead_letters, 1);
    for batch in late {
        changes.apply(batch.clone()).await;
        assert_eq!(rig.rows(EMAILS, "open_users").await, ["(1,a)"], "what was shown before the letter");
    }
    assert_eq!(rig.count("cutover.dead_letters").await, letters);
    // What they would have removed goes with the next good change.
    changes.apply(vec![update(&users(), 9, &bad_user("e"), &user(1, "closed"))]).await;
    assert_eq!(rig.count("open_users").await, 0);
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
}

fn bad_user(email: &str) -> Value {
    json!({ "id": 1, "email": email, "age": "x", "boss": null })
}

#[tokio::test]
async fn rule_23_older_changes_are_kept_out_and_what_they_would_have_removed_is_known() {
    let (first, second, closed) = (user(1, "a"), user(1, "b"), user(1, "closed"));
    let older = || vec![update(&users(), 4, &first, &second), update(&users(), 5, &second, &closed)];
    let refused = || update(&users(), 7, &closed, &bad_user("e"));
    let one_by_one = vec![older()[..1].to_vec(), [&older()[1..], &[refused()]].concat()];
    for late in [vec![older(), vec![refused()]], one_by_one, vec![[older(), vec![refused()]].concat()]] {
        // The copy's letter, the older change that tells what is shown, and the newer one.
        Box::pin(late_changes(&late, 3)).await;
    }
}

#[tokio::test]
async fn rule_23_a_row_read_again_at_the_letters_own_version_removes_what_the_letter_would_have() {
    let ddl = "CREATE TABLE open_users (id bigint PRIMARY KEY, email text, age int)";
    let sql = "SELECT id, email, unnest(ARRAY[age::int]) AS age FROM users WHERE email = 'open'";
    let rig = Rig::new(ddl, &[users()], &[("open_users.sql", sql)]).await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let (good, mut bad) = (user(1, "open"), user(1, "open"));
    bad["age"] = json!("x");
    changes.apply(vec![insert(&users(), 1, &good)]).await;
    changes.apply(vec![update(&users(), 2, &good, &bad)]).await;
    assert_eq!((rig.count("open_users").await, rig.count("cutover.dead_letters").await), (1, 1));
    // No change came after the one that was set aside: the watermark is its version.
    snapshot.apply(vec![read(&users(), 2, &user(1, "closed"))]).await;
    assert_eq!((rig.count("open_users").await, rig.count("cutover.dead_letters").await), (0, 0));
}

#[tokio::test]
async fn a_copied_row_that_waits_is_tried_again_by_the_lane_of_the_changes() {
    let rig = users_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    changes.apply(vec![insert(&users(), 1, &user(1, "a"))]).await;
    assert_eq!(snapshot.apply(vec![read(&users(), 2, &user(2, "a"))]).await.waiting, 1);
    changes.apply(vec![delete(&users(), 3, &user(1, "a"))]).await;
    assert_eq!(changes.sink.retry_waiting().await.unwrap().waiting, 0);
    assert_eq!(rig.rows(EMAILS, "users").await, ["(2,a)"]);
}

#[tokio::test]
async fn rule_24_every_bad_row_is_found_and_all_others_are_in() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let rows = (1..=300i64).map(|id| {
        let mut row = user(id, &format!("u{id}"));
        match id {
            17 => row["age"] = json!("seventeen"),
            99 => row["age"] = json!("99999999999"),
            100 => row["age"] = json!("201"),
            250 => row["email"] = json!("nul\u{0}byte"),
            _ => {}
        }
        insert(&users(), id, &row)
    });
    let applied = lane.apply(rows.collect()).await;
    assert_eq!((applied.dead_letters, applied.tables["users"].inserted), (4, 296));
    let found = rig.rows("ROW(key->>'id', sqlstate)", "cutover.dead_letters").await;
    assert_eq!(found, ["(100,23514)", "(17,22P02)", "(250,22021)", "(99,22003)"]);
}

#[tokio::test]
async fn rule_24_json_that_postgresql_refuses_is_a_dead_letter() {
    let docs = table("docs", &[("id", ColumnType::BigInt), ("doc", ColumnType::Json)]);
    let rig = Rig::new("CREATE TABLE docs (id int PRIMARY KEY, doc jsonb)", std::slice::from_ref(&docs), &[]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let row = |id: i64, doc: &str| insert(&docs, id, &json!({ "id": id, "doc": doc }));
    let applied = lane.apply(vec![row(1, r#"{"a": "\u0000"}"#), row(2, r#"{"a": 1.0}"#)]).await;
    assert_eq!(applied.dead_letters, 1);
    assert_eq!(rig.rows("doc", "docs").await, [r#"{"a": 1.0}"#]);
}

/// A key that no index entry can hold is its row's fault alone.
#[tokio::test]
async fn rule_24_a_row_over_a_limit_of_the_server_is_a_dead_letter() {
    let pages = table("pages", &[("url", ColumnType::Text), ("n", ColumnType::BigInt)]);
    let rig = Rig::new("CREATE TABLE pages (url text PRIMARY KEY, n int)", std::slice::from_ref(&pages), &[]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    // Letters that do not compress, so that the entry stays as long as it is.
    let mut state = 1u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + u8::try_from((state >> 33) % 90).unwrap())
    };
    let long: String = (0..6000).map(|_| letter()).filter(|c| *c != '"' && *c != '\\').collect();
    let row = |url: &str, n: i64| insert(&pages, n, &json!({ "url": url, "n": n }));
    let applied = lane.apply(vec![row("a", 1), row(&long, 2), row("c", 3)]).await;
    assert_eq!((applied.dead_letters, applied.tables["pages"].inserted), (1, 2));
    assert_eq!(rig.rows("sqlstate", "cutover.dead_letters").await, ["54000"]);
}

#[tokio::test]
async fn rule_24_too_many_dead_letters_stop_the_pipeline_with_nothing_lost() {
    let mut rig = users_rig().await;
    rig.config.dead_letters_max = 2;
    let mut lane = rig.lane(Topic::Changes).await;
    let rows: Vec<BatchEvent> =
        (1..=3).map(|id| insert(&users(), id, &json!({"id": id, "email": null, "age": "x", "boss": null}))).collect();
    let error = lane.try_apply(rows).await.unwrap_err();
    assert!(matches!(&error, ApplyError::Halt(problem) if problem.what.contains("dead_letters_max = 2")), "{error}");
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
    assert_eq!(rig.lane(Topic::Changes).await.next, 0);
}

#[tokio::test]
async fn rule_24_an_outage_is_no_bad_row() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a"))]).await;
    // Killed in the middle of a statement, which a lock holds up.
    let blocker = rig.pg.connect().await;
    blocker.batch_execute("BEGIN; LOCK TABLE users").await.unwrap();
    let kill = async {
        let waits = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'cutover test'
            AND wait_event_type = 'Lock'";
        while rig.count(&format!("(SELECT 1 {waits}) w")).await == 0 {}
        rig.pg.query(&format!("SELECT pg_terminate_backend(pid) {waits}")).await;
    };
    let (result, ()) = tokio::join!(lane.try_apply(vec![insert(&users(), 2, &user(2, "b"))]), kill);
    assert!(matches!(result, Err(ApplyError::Unreachable(_))), "{result:?}");
    blocker.batch_execute("ROLLBACK").await.unwrap();
    // The same sink connects again.
    lane.apply(vec![insert(&users(), 2, &user(2, "b"))]).await;
    assert_eq!(rig.count("users").await, 2);
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
}

const FAMILY: &str = "
CREATE TABLE parents (id bigint PRIMARY KEY, name text);
CREATE TABLE children (parent bigint REFERENCES parents DEFERRABLE INITIALLY DEFERRED, n int, note text, PRIMARY KEY (parent, n));";

fn family() -> [Arc<TableSchema>; 2] {
    let parents = table("parents", &[("id", ColumnType::BigInt), ("name", ColumnType::Text)]);
    let columns = [("parent", ColumnType::BigInt), ("n", ColumnType::Integer), ("note", ColumnType::Text)];
    [parents, keyed("children", &columns, 2)]
}

fn parent(id: i64) -> Value {
    json!({ "id": id, "name": format!("p{id}") })
}

fn child(parent: i64, n: i64) -> Value {
    json!({ "parent": parent, "n": n, "note": "x" })
}

#[tokio::test]
async fn a_child_waits_for_its_parent_however_many_there_are() {
    let [parents, children] = family();
    let rig = Rig::new(FAMILY, &[parents.clone(), children.clone()], &[]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let mut events: Vec<BatchEvent> = (0..400).map(|n| insert(&children, 10 + n, &child(n % 4, n))).collect();
    events.push(insert(&parents, 500, &parent(0)));
    let applied = lane.apply(events).await;
    assert_eq!((applied.waiting, applied.dead_letters), (300, 0));
    assert_eq!(rig.count("children").await, 100);
    lane.apply(vec![insert(&parents, 501, &parent(1)), insert(&parents, 502, &parent(2))]).await;
    let retried = lane.sink.retry_waiting().await.unwrap();
    assert_eq!((retried.waiting, retried.tables["children"].inserted), (100, 200));
    // A child that goes before its parent comes waits no more.
    lane.apply((0..400).filter(|n| n % 4 == 3).map(|n| delete(&children, 1000 + n, &child(3, n))).collect()).await;
    assert_eq!(rig.count("cutover.waiting").await, 0);
    assert_eq!(rig.count("children").await, 300);
    // Parent and children go together, the children first.
    let mut events: Vec<BatchEvent> = vec![delete(&parents, 2000, &parent(0))];
    events.extend((0..400).filter(|n| n % 4 == 0).map(|n| delete(&children, 2001 + n, &child(0, n))));
    let applied = lane.apply(events).await;
    assert_eq!((applied.waiting, applied.tables["children"].deleted), (0, 100));
}

#[tokio::test]
async fn with_the_replica_role_foreign_keys_rest() {
    let [parents, children] = family();
    let mut rig = Rig::new(FAMILY, &[parents, children.clone()], &[]).await;
    rig.replica = true;
    let mut lane = rig.lane(Topic::Changes).await;
    assert!(lane.sink.replica());
    assert_eq!(lane.apply(vec![insert(&children, 1, &child(1, 1))]).await.waiting, 0);
    assert_eq!(rig.count("children").await, 1);
}

#[tokio::test]
async fn a_row_that_refers_to_another_of_its_own_batch_does_not_wait() {
    let ddl = "CREATE TABLE users (id bigint PRIMARY KEY, email text, boss bigint REFERENCES users)";
    let rig = Rig::new(ddl, &[users()], &[("users.sql", "SELECT id, email, boss FROM users")]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let row = |id: i64, boss: i64| json!({ "id": id, "email": "x", "age": "1", "boss": boss });
    let events =
        vec![insert(&users(), 1, &row(1, 2)), insert(&users(), 2, &row(2, 2)), insert(&users(), 3, &row(3, 9))];
    assert_eq!(lane.apply(events).await.waiting, 1);
    assert_eq!(rig.count("users").await, 2);
}

#[tokio::test]
async fn identity_generated_enum_domain_array_and_mixed_case_columns_are_written() {
    let ddl = r#"
        CREATE TYPE "Mood" AS ENUM ('fine', 'sad');
        CREATE DOMAIN positive AS int CHECK (value > 0);
        CREATE TABLE "Odd Names" ("Id" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "select" "Mood", n positive,
          tags text[], body text, words tsvector GENERATED ALWAYS AS (to_tsvector('english', coalesce(body, ''))) STORED,
          serial int GENERATED ALWAYS AS IDENTITY);"#;
    let odd = table(
        "Odd \"Source\"",
        &[
            ("Id", ColumnType::BigInt),
            ("Mood", ColumnType::Text),
            ("n", ColumnType::Integer),
            ("body", ColumnType::Text),
        ],
    );
    let sql = r#"SELECT "Id", "Mood" AS "select", n, '{a,' || n || '}' AS tags, body FROM "Odd ""Source""" -- last"#;
    let rig = Rig::new(ddl, std::slice::from_ref(&odd), &[("Odd Names.sql", sql)]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let row = |n: i64, mood: &str| json!({ "Id": 5, "Mood": mood, "n": n, "body": "cats" });
    lane.apply(vec![insert(&odd, 1, &row(1, "fine"))]).await;
    let applied = lane.apply(vec![update(&odd, 2, &row(1, "fine"), &row(2, "sad"))]).await;
    assert_eq!(applied.tables["Odd Names"].updated, 1);
    let found = rig.rows(r#"ROW("Id", "select", n, tags, words)"#, r#""Odd Names""#).await;
    assert_eq!(found, [r#"(5,sad,2,"{a,2}",'cat':1)"#]);
    let applied =
        lane.apply(vec![update(&odd, 3, &row(2, "sad"), &row(-1, "sad")), delete(&odd, 4, &row(2, "sad"))]).await;
    assert_eq!((applied.dead_letters, rig.count(r#""Odd Names""#).await), (0, 0));
}

#[tokio::test]
async fn a_partitioned_target_is_written_and_counted() {
    let ddl = "CREATE TABLE users (id bigint PRIMARY KEY, email text) PARTITION BY RANGE (id);
        CREATE TABLE users_1 PARTITION OF users FOR VALUES FROM (0) TO (10);
        CREATE TABLE users_2 PARTITION OF users FOR VALUES FROM (10) TO (20);";
    let rig = Rig::new(ddl, &[users()], &[("users.sql", "SELECT id, email FROM users")]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a")), insert(&users(), 2, &user(11, "b"))]).await;
    let applied = lane
        .apply(vec![
            update(&users(), 3, &user(1, "a"), &user(1, "c")),
            insert(&users(), 4, &user(2, "d")),
            delete(&users(), 5, &user(11, "b")),
        ])
        .await;
    let counts = applied.tables["users"];
    assert_eq!((counts.inserted, counts.updated, counts.deleted, counts.stale), (1, 1, 1, 0));
    assert_eq!(rig.rows(EMAILS, "users").await, ["(1,c)", "(2,d)"]);
}

#[tokio::test]
async fn one_source_row_feeds_several_targets_or_none() {
    let ddl =
        "CREATE TABLE users (id bigint PRIMARY KEY, email text); CREATE TABLE ages (id bigint PRIMARY KEY, age int);";
    let sql = [("users.sql", "SELECT id, email FROM users"), ("ages.sql", "SELECT id, age::int AS age FROM users")];
    let rig = Rig::new(ddl, &[users()], &sql).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let mut bad = user(1, "a");
    bad["age"] = json!("x");
    let applied = lane.apply(vec![insert(&users(), 1, &bad), insert(&users(), 2, &user(2, "b"))]).await;
    assert_eq!(applied.dead_letters, 1);
    assert_eq!((rig.count("users").await, rig.count("ages").await), (1, 1));
}

#[tokio::test]
async fn rule_28_a_hostile_schema_shadows_nothing() {
    let ddl = "
        CREATE TABLE users (id bigint PRIMARY KEY, email text);
        CREATE FUNCTION public.upper(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT ''stolen''';
        CREATE FUNCTION public.count_all() RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT ''x''';";
    let rig = Rig::new(ddl, &[users()], &[("users.sql", "SELECT id, upper(email) AS email FROM users")]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&users(), 1, &user(1, "a'; DROP TABLE users; --"))]).await;
    assert_eq!(rig.rows("email", "users").await, ["A'; DROP TABLE USERS; --"]);
}

#[tokio::test]
async fn a_column_that_a_transform_reads_and_the_source_dropped_halts_with_its_name() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let fewer = table("users", &[("id", ColumnType::BigInt), ("email", ColumnType::Text)]);
    let error = lane.try_apply(vec![insert(&fewer, 1, &json!({ "id": 1, "email": "a" }))]).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ApplyError::Halt(_)) && text.contains("`age`") && text.contains("users.sql"), "{text}");
}

#[tokio::test]
async fn two_schemas_of_one_table_meet_in_one_batch() {
    let rig = users_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let wider = table(
        "users",
        &[
            ("extra", ColumnType::Text),
            ("id", ColumnType::BigInt),
            ("age", ColumnType::Text),
            ("email", ColumnType::Text),
        ],
    );
    let wider = Arc::new(TableSchema { key: vec![1], ..(*wider).clone() });
    let row = json!({ "extra": "e", "id": 1, "age": "31", "email": "z" });
    let mut events = vec![insert(&users(), 1, &user(1, "a")), BatchEvent::Schema(wider.clone())];
    events.push(insert(&wider, 2, &row));
    events.push(insert(&users(), 3, &user(2, "b")));
    lane.apply(events).await;
    assert_eq!(rig.rows("ROW(id, email, age)", "users").await, ["(1,z,31)", "(2,b,30)"]);
    assert_eq!(rig.count("cutover.schemas").await, 1);
}
