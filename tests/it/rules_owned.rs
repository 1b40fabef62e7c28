//! Rule 37, at the sink: two source rows, one target key, in different batches. Any order: `rules_owned_history`; with
//! real sources: `rules_owned_pipeline`.

use std::sync::Arc;

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema, Version},
    target::{
        BatchEvent, Pass, Sink,
        postgres::{Builder, collect_tombstones, prepare_target, sweep},
    },
};
use serde_json::{Value, json};

use crate::apply_rig::{PIPELINE, Rig, checked, delete, insert, keyed, read, table, update};

const DDL: &str = "CREATE TABLE codes (code text PRIMARY KEY, note text)";
pub const SELECT: &str = "SELECT lower(code) AS code, note FROM codes";
/// One row of each, a filter, and what may be many.
pub const SHAPES: [&str; 3] = ["", " WHERE note <> 'hidden'", ", generate_series(1, 1) one"];
const SHOWN: &str = "ROW(code, note)";
const WAITING: &str = "cutover.waiting";

pub fn codes() -> Arc<TableSchema> {
    table("codes", &[("code", ColumnType::Text), ("note", ColumnType::Text)])
}

pub fn row(code: &str, note: &str) -> Value {
    json!({ "code": code, "note": note })
}

pub async fn rig(shape: &str) -> Rig {
    let sql = format!("{SELECT}{shape}");
    let rig = Rig::new(DDL, &[codes()], &[("codes.sql", &sql)]).await;
    assert!(rig.plans[0].is_owned(), "{sql}");
    rig
}

async fn shown(rig: &Rig) -> Vec<String> {
    rig.rows(SHOWN, "codes").await
}

#[tokio::test]
async fn rule_37_the_first_source_row_keeps_the_key_and_the_other_waits_until_it_is_free() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![insert(&codes, 1, &row("A", "first"))]).await;
        let applied = lane.apply(vec![insert(&codes, 2, &row("a", "second")), insert(&codes, 3, &row("b", "b"))]).await;
        assert_eq!((applied.waiting, applied.dead_letters, applied.tables["codes"].stale), (1, 0, 0), "{shape}");
        assert_eq!(shown(&rig).await, ["(a,first)", "(b,b)"], "{shape}");
        let reason = rig.pg.value("SELECT reason FROM cutover.waiting").await.unwrap();
        assert!(reason.contains("two source rows map to one target key"), "{reason}");
        // The row is still its owner's, whose changes go on; the other waits with its newest state.
        lane.apply(vec![update(&codes, 4, &row("A", "first"), &row("A", "changed"))]).await;
        let applied = lane.apply(vec![update(&codes, 5, &row("a", "second"), &row("a", "third"))]).await;
        assert_eq!((applied.waiting, rig.count(WAITING).await), (1, 1), "{shape}");
        assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 1, "{shape}");
        assert_eq!(shown(&rig).await, ["(a,changed)", "(b,b)"], "{shape}");
        let applied = lane.apply(vec![delete(&codes, 6, &row("A", "changed"))]).await;
        assert_eq!((applied.freed, shown(&rig).await), (1, vec!["(b,b)".to_owned()]), "{shape}");
        assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 0, "{shape}");
        assert_eq!(shown(&rig).await, ["(a,third)", "(b,b)"], "{shape}");
        // It is the owner now.
        lane.apply(vec![delete(&codes, 7, &row("a", "third"))]).await;
        assert_eq!((shown(&rig).await, rig.count(WAITING).await), (vec!["(b,b)".to_owned()], 0), "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_delete_of_the_other_source_row_removes_nothing() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![insert(&codes, 1, &row("A", "first"))]).await;
        lane.apply(vec![insert(&codes, 2, &row("a", "second"))]).await;
        let applied = lane.apply(vec![delete(&codes, 3, &row("a", "second"))]).await;
        assert_eq!(applied.tables.get("codes").map_or(0, |counts| counts.deleted), 0, "{shape}");
        assert_eq!((shown(&rig).await, applied.waiting), (vec!["(a,first)".to_owned()], 0), "{shape}");
    }
}

#[tokio::test]
async fn rule_37_of_several_that_claim_a_key_in_one_batch_one_has_it_and_the_others_wait() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        let claims = ["aa", "aA", "Aa", "AA"].into_iter().zip(1..);
        let applied = lane.apply(claims.clone().map(|(code, v)| insert(&codes, v, &row(code, code))).collect()).await;
        assert_eq!((applied.waiting, applied.dead_letters), (3, 0), "{shape}");
        for (left, (code, version)) in (0..4).rev().zip(claims) {
            assert_eq!(shown(&rig).await, [format!("(aa,{code})")], "{shape}");
            lane.apply(vec![delete(&codes, 10 + version, &row(code, code))]).await;
            assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, (left as u64).saturating_sub(1), "{shape}");
        }
        assert_eq!(rig.count("codes").await, 0, "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_key_that_its_owner_leaves_in_the_same_batch_is_free() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![insert(&codes, 1, &row("A", "first")), insert(&codes, 2, &row("C", "c"))]).await;
        // A source key that changes its spelling is a delete and an insert; another row of the batch waits.
        let batch = vec![
            insert(&codes, 3, &row("c", "waits")),
            delete(&codes, 4, &row("A", "first")),
            insert(&codes, 5, &row("a", "renamed")),
        ];
        assert_eq!(lane.apply(batch).await.waiting, 1, "{shape}");
        assert_eq!(shown(&rig).await, ["(a,renamed)", "(c,c)"], "{shape}");
        assert_eq!(rig.rows("key_text", WAITING).await, [r#"{"code":"c"}"#], "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_delete_keeps_nothing_of_another_source_row_out() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let (mut changes, mut copy) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
        changes.apply(vec![insert(&codes, 5, &row("A", "first"))]).await;
        changes.apply(vec![delete(&codes, 6, &row("A", "first"))]).await;
        // Read long before, and not changed since.
        let applied = copy.apply(vec![read(&codes, 2, &row("A", "late")), read(&codes, 2, &row("a", "copied"))]).await;
        assert_eq!((applied.dead_letters, applied.waiting), (0, 0), "{shape}");
        assert_eq!(shown(&rig).await, ["(a,copied)"], "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_row_that_was_copied_before_its_key_was_left_is_shown_once_the_stream_has_come_so_far() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let (mut changes, mut copy) = (rig.lane_in(Topic::Changes, 0).await, rig.lane_in(Topic::Snapshot, 1).await);
        changes.apply(vec![insert(&codes, 1, &row("A", "first"))]).await;
        // At the source A is gone and a is there; the stream is behind.
        assert_eq!(copy.apply(vec![read(&codes, 9, &row("a", "read"))]).await.waiting, 1, "{shape}");
        let behind = vec![delete(&codes, 2, &row("A", "first")), insert(&codes, 3, &row("a", "read"))];
        for event in behind {
            changes.apply(vec![event]).await;
        }
        let mut other = rig.lane_in(Topic::Changes, 1).await;
        assert_eq!(other.sink.retry_waiting().await.unwrap().waiting, 0, "{shape}");
        assert_eq!(shown(&rig).await, ["(a,read)"], "{shape}");
        changes.apply(vec![delete(&codes, 10, &row("a", "read"))]).await;
        assert_eq!(rig.count("codes").await, 0, "{shape}");
    }
}

#[tokio::test]
async fn rule_37_lanes_of_different_partitions_see_each_others_owners() {
    let (rig, codes) = (rig("").await, codes());
    let (mut first, mut second) = (rig.lane_in(Topic::Snapshot, 0).await, rig.lane_in(Topic::Snapshot, 1).await);
    let rows = |letter: char| -> Vec<BatchEvent> {
        (0..300).map(|number| read(&codes, 5, &row(&format!("{letter}{number}"), &letter.to_string()))).collect()
    };
    let (ours, theirs) = (rows('x'), rows('X'));
    tokio::join!(first.apply(ours), second.apply(theirs));
    assert_eq!((rig.count("codes").await, rig.count(WAITING).await), (300, 300));
}

#[tokio::test]
async fn rule_37_rows_from_before_have_no_owner_until_one_comes() {
    let (rig, codes) = (rig("").await, codes());
    rig.pg.exec("INSERT INTO codes VALUES ('a', 'before'), ('b', 'before')").await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&codes, 1, &row("A", "first")), delete(&codes, 2, &row("B", "x"))]).await;
    assert_eq!(shown(&rig).await, ["(a,first)"]);
    assert_eq!(lane.apply(vec![insert(&codes, 3, &row("a", "second"))]).await.waiting, 1);
}

/// A further copy of the table begins at this version.
async fn copy_begins(rig: &Rig, version: Version) {
    let copy = format!(
        "INSERT INTO cutover.tables (pipeline, source_table, generation, state) VALUES ('{PIPELINE}', 'codes', 2, 'copying');
         INSERT INTO cutover.notes (pipeline, key, value) VALUES ('{PIPELINE}', 'copy 2 of codes began', '{version}')"
    );
    rig.pg.exec(&copy).await;
}

#[tokio::test]
async fn rule_37_a_row_that_a_new_copy_has_not_met_is_nobodys() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        let were = [("A", 1), ("B", 2)].map(|(code, v)| insert(&codes, v, &row(code, "was")));
        lane.apply(were.to_vec()).await;
        copy_begins(&rig, 5).await;
        // A is gone unseen; B is still there, though the copy meets b first.
        let mut copy = rig.lane(Topic::Snapshot).await;
        let met = [("a", 6), ("b", 6)].map(|(code, v)| read(&codes, v, &row(code, "met")));
        assert_eq!(copy.apply(met.to_vec()).await.waiting, 0, "{shape}");
        assert_eq!(copy.apply(vec![read(&codes, 7, &row("B", "met"))]).await.waiting, 1, "{shape}");
        assert_eq!(shown(&rig).await, ["(a,met)", "(b,met)"], "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_sweep_takes_what_a_copy_has_not_met_but_for_rows_with_dead_letters_and_frees_their_keys() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        let were = ["A", "B", "C"].map(|code| insert(&codes, 1, &row(code, "was")));
        lane.apply(were.to_vec()).await;
        // The newest state of B cannot be stored; c waits for C, which is gone unseen.
        assert_eq!(lane.apply(vec![insert(&codes, 8, &row("B", "a\0b"))]).await.dead_letters, 1, "{shape}");
        assert_eq!(lane.apply(vec![insert(&codes, 9, &row("c", "waits"))]).await.waiting, 1, "{shape}");
        let session = rig.leased_session().await;
        let swept = sweep(&session, (PIPELINE, ""), (&rig.plans[0], &rig.plans), 5, 1).await.unwrap();
        assert_eq!((swept.rows, swept.complete), (2, true), "{shape}");
        assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 0, "{shape}");
        assert_eq!(shown(&rig).await, ["(b,was)", "(c,waits)"], "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_truncate_frees_what_waits_for_a_row_that_it_takes() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let (mut lane, mut copy) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
        lane.apply(vec![insert(&codes, 1, &row("A", "first"))]).await;
        assert_eq!(copy.apply(vec![read(&codes, 7, &row("a", "after"))]).await.waiting, 1, "{shape}");
        let applied = lane.apply(vec![BatchEvent::Truncate { schema: codes.clone(), version: 5 }]).await;
        assert_eq!(applied.freed, 1, "{shape}");
        assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 0, "{shape}");
        assert_eq!(shown(&rig).await, ["(a,after)"], "{shape}");
    }
}

#[tokio::test]
async fn rule_37_unique_values_swap_between_rows_that_have_owners() {
    let ddl = "CREATE TABLE codes (code text PRIMARY KEY, note text UNIQUE)";
    let rig = Rig::new(ddl, &[codes()], &[("codes.sql", SELECT)]).await;
    let (codes, mut lane) = (codes(), rig.lane(Topic::Changes).await);
    lane.apply(vec![insert(&codes, 1, &row("A", "one")), insert(&codes, 2, &row("B", "two"))]).await;
    let swap = vec![
        update(&codes, 3, &row("A", "one"), &row("A", "two")),
        update(&codes, 4, &row("B", "two"), &row("B", "one")),
        insert(&codes, 5, &row("a", "one")),
    ];
    assert_eq!(lane.apply(swap).await.waiting, 1);
    assert_eq!(shown(&rig).await, ["(a,two)", "(b,one)"]);
    lane.apply(vec![delete(&codes, 6, &row("A", "two"))]).await;
    // Its key is free, its unique value is not.
    assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 1);
    lane.apply(vec![delete(&codes, 7, &row("B", "one"))]).await;
    assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 0);
    assert_eq!(shown(&rig).await, ["(a,one)"]);
}

#[tokio::test]
async fn keys_that_are_proven_to_be_one_to_one_cost_no_owner() {
    let rig = Rig::new(DDL, &[codes()], &[("codes.sql", "SELECT code, note FROM codes")]).await;
    assert!(rig.plans[0].one_to_one);
    let columns = "SELECT count(*) FROM pg_attribute WHERE attname = 'cutover_owner'";
    assert_eq!(rig.pg.value(columns).await.as_deref(), Some("0"));
    let types = [ColumnType::Text, ColumnType::Text];
    let builder = Builder { plan: &rig.plans[0], types: &types, pipeline: PIPELINE, replays: false };
    for text in [builder.live(), builder.dead(), builder.replace(), builder.late(), builder.clashes()] {
        assert!(!text.contains("owner") && !text.contains("cutover_w") && !text.contains("owned"), "{text}");
    }
}

#[tokio::test]
async fn rule_37_a_collation_of_the_target_that_folds_keys_gives_rows_owners_and_no_other_does() {
    let folding = "CREATE COLLATION folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";
    for (collation, owned) in [("\"C\"", false), ("\"de-x-icu\"", false), ("folding", true)] {
        let ddl = format!("{folding} CREATE TABLE codes (code text COLLATE {collation} PRIMARY KEY, note text)");
        let rig = Rig::new(&ddl, &[codes()], &[("codes.sql", "SELECT code, note FROM codes")]).await;
        assert_eq!(rig.plans[0].is_owned(), owned, "{collation}");
        let (codes, mut lane) = (codes(), rig.lane(Topic::Changes).await);
        let waiting = u64::from(owned);
        let both = vec![insert(&codes, 1, &row("A", "x")), insert(&codes, 2, &row("a", "y"))];
        assert_eq!(lane.apply(both).await.waiting, waiting, "{collation}");
        assert_eq!(lane.apply(vec![insert(&codes, 3, &row("a", "z"))]).await.waiting, waiting, "{collation}");
        lane.apply(vec![delete(&codes, 4, &row("A", "x"))]).await;
        assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 0, "{collation}");
        assert_eq!(shown(&rig).await, ["(a,z)"], "{collation}");
    }
}

#[tokio::test]
async fn rule_37_a_target_gets_owners_and_loses_them_with_its_transform_and_keeps_its_tombstones() {
    let plain = "SELECT code, note FROM codes";
    let mut rig = Rig::new(DDL, &[codes()], &[("codes.sql", plain)]).await;
    let codes = codes();
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&codes, 5, &row("a", "kept")), delete(&codes, 6, &row("b", "gone"))]).await;
    let mut version = 10;
    for sql in [SELECT, plain, SELECT, plain] {
        rig.plans = checked(&rig.pg, std::slice::from_ref(&codes), &[("codes.sql", sql)]).await.plans.into();
        prepare_target(&rig.session().await, &rig.plans[0]).await.unwrap();
        let mut lane = rig.lane(Topic::Changes).await;
        // Whoever deleted it: what is older stays away.
        let late = lane.apply(vec![insert(&codes, 3, &row("b", "late"))]).await;
        assert_eq!((late.waiting, late.tables["codes"].stale), (0, 1), "{sql}");
        let known = format!("c{version}");
        lane.apply(vec![insert(&codes, version, &row(&known, "x"))]).await;
        lane.apply(vec![delete(&codes, version + 2, &row(&known, "x"))]).await;
        version += 10;
    }
    // The last transform knows no owners: what was deleted with them stays away, and its rows are nobody's.
    let mut lane = rig.lane(Topic::Changes).await;
    for deleted in [10, 20, 30] {
        let late = lane.apply(vec![insert(&codes, deleted + 1, &row(&format!("c{deleted}"), "late"))]).await;
        assert_eq!(late.tables["codes"].stale, 1, "{deleted}");
    }
    lane.apply(vec![update(&codes, 60, &row("a", "kept"), &row("a", "again"))]).await;
    assert_eq!(rig.rows("ROW(code, note, cutover_owner)", "codes").await, ["(a,again,0)"]);
    let session = rig.session().await;
    collect_tombstones(&session, &rig.plans[0], 100).await.unwrap();
    assert_eq!(rig.count("cutover.owned_public_codes").await, 0);
}

#[tokio::test]
async fn rule_37_a_renamed_column_of_the_key_changes_no_owner() {
    let rig = rig("").await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&codes(), 1, &row("A", "first"))]).await;
    lane.apply(vec![insert(&codes(), 2, &row("a", "second"))]).await;
    let renamed = table("codes", &[("mail", ColumnType::Text), ("note", ColumnType::Text)]);
    let select = "SELECT lower(mail) AS code, note FROM codes";
    let mut rig = rig;
    rig.plans = checked(&rig.pg, std::slice::from_ref(&renamed), &[("codes.sql", select)]).await.plans.into();
    prepare_target(&rig.session().await, &rig.plans[0]).await.unwrap();
    let mut lane = rig.lane(Topic::Changes).await;
    let row = |mail: &str, note: &str| json!({ "mail": mail, "note": note });
    lane.apply(vec![update(&renamed, 3, &row("A", "first"), &row("A", "changed"))]).await;
    assert_eq!(shown(&rig).await, ["(a,changed)"]);
    lane.apply(vec![delete(&renamed, 4, &row("a", "second"))]).await;
    assert_eq!(shown(&rig).await, ["(a,changed)"]);
    lane.apply(vec![delete(&renamed, 5, &row("A", "changed"))]).await;
    assert_eq!(rig.count("codes").await, 0);
}

#[tokio::test]
async fn rule_37_rows_that_trade_their_keys_do_not_wait_for_each_other() {
    let users = table("users", &[("id", ColumnType::BigInt), ("email", ColumnType::Text)]);
    let sql = "SELECT lower(email) AS email, users.id FROM users, generate_series(1, 1) one";
    let ddl = "CREATE TABLE users (email text PRIMARY KEY, id bigint)";
    let rig = Rig::new(ddl, std::slice::from_ref(&users), &[("users.sql", sql)]).await;
    assert!(rig.plans[0].is_owned());
    let user = |id: i64, email: &str| json!({ "id": id, "email": email });
    let (mut one, mut two) = (rig.lane_in(Topic::Changes, 0).await, rig.lane_in(Topic::Changes, 1).await);
    one.apply(vec![insert(&users, 1, &user(1, "A"))]).await;
    two.apply(vec![insert(&users, 2, &user(2, "B"))]).await;
    // Each in its own partition: the first has left its old key although it cannot have the new one yet.
    assert_eq!(one.apply(vec![update(&users, 3, &user(1, "A"), &user(1, "b"))]).await.waiting, 1);
    assert_eq!(rig.rows("ROW(email, id)", "users").await, ["(b,2)"]);
    assert_eq!(two.apply(vec![update(&users, 4, &user(2, "B"), &user(2, "a"))]).await.freed, 1);
    assert_eq!(one.sink.retry_waiting().await.unwrap().waiting, 0);
    assert_eq!(rig.rows("ROW(email, id)", "users").await, ["(a,2)", "(b,1)"]);
}

#[tokio::test]
async fn rule_37_a_row_that_time_to_live_removes_while_it_waits_is_kept_where_the_filter_keeps_it() {
    let columns = [
        ("code", ColumnType::Text),
        ("note", ColumnType::Text),
        ("cutover_ttl_delete", ColumnType::Named("boolean".into())),
    ];
    let codes = table("codes", &columns);
    let row = |code: &str, expired: bool| {
        let expired = if expired { "t" } else { "f" };
        json!({ "code": code, "note": code, "cutover_ttl_delete": expired })
    };
    let keeping = format!("{SELECT} WHERE NOT cutover_ttl_delete");
    for together in [true, false] {
        let rig = Rig::new(DDL, std::slice::from_ref(&codes), &[("codes.sql", &keeping)]).await;
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![insert(&codes, 1, &row("A", false))]).await;
        let events = [insert(&codes, 2, &row("a", false)), delete(&codes, 3, &row("a", true))];
        for batch in events.chunks(if together { 2 } else { 1 }) {
            assert_eq!(lane.apply(batch.to_vec()).await.waiting, 1, "{together}");
        }
        assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 1, "{together}");
        lane.apply(vec![delete(&codes, 4, &row("A", false))]).await;
        assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 0, "{together}");
        assert_eq!((shown(&rig).await, rig.count(WAITING).await), (vec!["(a,a)".to_owned()], 0), "{together}");
    }
}

#[tokio::test]
async fn rule_37_a_replay_of_rows_that_claimed_one_key_changes_nothing() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        let events = vec![
            insert(&codes, 1, &row("A", "first")),
            insert(&codes, 2, &row("a", "second")),
            delete(&codes, 3, &row("A", "first")),
            update(&codes, 4, &row("a", "second"), &row("a", "third")),
            insert(&codes, 5, &row("A", "back")),
        ];
        for event in &events {
            lane.apply(vec![event.clone()]).await;
            lane.sink.retry_waiting().await.unwrap();
        }
        let waits = "ROW(key_text, version)";
        let before = (shown(&rig).await, rig.rows(waits, WAITING).await);
        assert_eq!(before.0, ["(a,third)"], "{shape}");
        rig.pg.exec("DELETE FROM cutover.owned_public_codes").await;
        for pass in [Pass::Deletes, Pass::Snapshot, Pass::Changes] {
            let mut replayed = rig.replaying(pass).await;
            for event in events.iter().filter(|_| pass != Pass::Snapshot) {
                replayed.apply(vec![event.clone()]).await;
            }
        }
        lane.sink.retry_waiting().await.unwrap();
        assert_eq!((shown(&rig).await, rig.rows(waits, WAITING).await), before, "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_row_that_makes_one_key_twice_is_its_own_dead_letter() {
    let pairs = keyed("pairs", &[("id", ColumnType::BigInt), ("n", ColumnType::BigInt)], 1);
    let sql = "SELECT pairs.n, pairs.id FROM pairs, generate_series(1, pairs.id) one";
    let ddl = "CREATE TABLE pairs (n bigint PRIMARY KEY, id bigint)";
    let rig = Rig::new(ddl, std::slice::from_ref(&pairs), &[("pairs.sql", sql)]).await;
    let pair = |id: i64, n: i64| json!({ "id": id, "n": n });
    let mut lane = rig.lane(Topic::Changes).await;
    let applied = lane.apply(vec![insert(&pairs, 1, &pair(1, 7)), insert(&pairs, 2, &pair(2, 8))]).await;
    assert_eq!((applied.dead_letters, applied.waiting), (1, 0));
    assert_eq!(rig.rows("ROW(n, id)", "pairs").await, ["(7,1)"]);
}
