//! Rows that several source tables share, on a real server (rule 8).

use std::sync::Arc;

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema},
    target::{
        BatchEvent, Pass, Sink,
        postgres::{collect_tombstones, sweep},
    },
};
use serde_json::{Value, json};

use crate::apply_rig::{PIPELINE, Rig, delete, insert, read, table, update};

const DDL: &str = "CREATE TABLE accounts (
    id bigint PRIMARY KEY, name text NOT NULL, token text, plan text NOT NULL DEFAULT 'free', seen int DEFAULT 7)";

const ACCOUNTS: &str = "
SELECT id, name FROM admins;
SELECT admin_id AS id, token FROM oauth WHERE token <> 'hidden';
SELECT owner AS id, plan FROM plans;";

const ROW: &str = "ROW(id, name, token, plan)";

fn admins() -> Arc<TableSchema> {
    table("admins", &[("id", ColumnType::BigInt), ("name", ColumnType::Text)])
}

fn oauth() -> Arc<TableSchema> {
    table("oauth", &[("admin_id", ColumnType::BigInt), ("token", ColumnType::Text)])
}

fn plans() -> Arc<TableSchema> {
    table("plans", &[("owner", ColumnType::BigInt), ("plan", ColumnType::Text)])
}

fn admin(id: i64, name: &str) -> Value {
    json!({ "id": id, "name": name })
}

fn token(id: i64, token: &str) -> Value {
    json!({ "admin_id": id, "token": token })
}

fn plan(id: i64, plan: &str) -> Value {
    json!({ "owner": id, "plan": plan })
}

async fn rig_of(transform: &str) -> Rig {
    Rig::new(DDL, &[admins(), oauth(), plans()], &[("accounts.sql", transform)]).await
}

/// A transform whose followers' deletes do this.
fn deleting(on_delete: &str) -> String {
    ACCOUNTS.replace(";\nSELECT", &format!(";\n-- cutover: on_delete = {on_delete}\nSELECT"))
}

#[tokio::test]
async fn rule_8_a_contributor_that_comes_before_the_row_waits_for_it() {
    let rig = rig_of(ACCOUNTS).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let applied = lane.apply(vec![insert(&oauth(), 1, &token(1, "t")), insert(&plans(), 2, &plan(1, "pro"))]).await;
    assert_eq!((applied.dead_letters, applied.waiting), (0, 0));
    assert_eq!(rig.count("accounts").await, 0);
    // Another worker takes over: what waits is durable, and was stored with the offset.
    let mut lane = rig.lane_at(Topic::Changes, 2).await;
    assert_eq!(lane.next, 2);
    let applied = lane.apply(vec![insert(&admins(), 3, &admin(1, "a")), insert(&admins(), 4, &admin(2, "b"))]).await;
    assert_eq!(applied.tables["accounts"].inserted, 2);
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,t,pro)", "(2,b,,free)"]);
    assert_eq!(rig.count("cutover.pending_public_accounts").await, 0);
}

#[tokio::test]
async fn rule_8_each_contributor_writes_its_own_columns_at_its_own_version() {
    let rig = rig_of(ACCOUNTS).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&admins(), 10, &admin(1, "a")), insert(&oauth(), 11, &token(1, "t"))]).await;
    rig.pg.exec("UPDATE accounts SET seen = 42").await;
    // Each is judged by its own version alone.
    let applied = lane
        .apply(vec![
            read(&oauth(), 9, &token(1, "old")),
            read(&admins(), 9, &admin(1, "old")),
            insert(&plans(), 3, &plan(1, "pro")),
        ])
        .await;
    assert_eq!((applied.tables["accounts"].stale, applied.tables["accounts"].updated), (2, 1));
    let versions = "cutover_version, cutover_version_oauth, cutover_version_plans";
    let row = rig.rows(&format!("ROW(id, name, token, plan, seen, {versions})"), "accounts").await;
    assert_eq!(row, ["(1,a,t,pro,42,10,11,3)"]);
}

#[tokio::test]
async fn rule_8_a_contributors_delete_clears_its_columns_to_their_defaults_and_stays_deleted() {
    let rig = rig_of(ACCOUNTS).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![
        insert(&admins(), 1, &admin(1, "a")),
        insert(&oauth(), 2, &token(1, "t")),
        insert(&plans(), 3, &plan(1, "pro")),
    ])
    .await;
    let applied = lane.apply(vec![delete(&oauth(), 5, &token(1, "t")), delete(&plans(), 6, &plan(1, "pro"))]).await;
    assert_eq!(applied.tables["accounts"].deleted, 2);
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,,free)"]);
    // A late copied row brings nothing back, nor does it when the row itself was away meanwhile.
    let mut snapshot = rig.lane(Topic::Snapshot).await;
    snapshot.apply(vec![read(&oauth(), 4, &token(1, "t"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,,free)"]);
    lane.apply(vec![delete(&admins(), 7, &admin(1, "a"))]).await;
    snapshot.apply(vec![read(&plans(), 4, &plan(1, "pro"))]).await;
    lane.apply(vec![insert(&admins(), 8, &admin(1, "z"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,z,,free)"]);
}

#[tokio::test]
async fn rule_8_the_owners_delete_takes_the_row_and_its_return_finds_what_contributors_have() {
    let rig = rig_of(ACCOUNTS).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&admins(), 1, &admin(1, "a")), insert(&oauth(), 2, &token(1, "t"))]).await;
    let applied = lane.apply(vec![delete(&admins(), 3, &admin(1, "a"))]).await;
    assert_eq!((applied.tables["accounts"].deleted, rig.count("accounts").await), (1, 0));
    lane.apply(vec![update(&oauth(), 4, &token(1, "t"), &token(1, "u")), insert(&plans(), 5, &plan(1, "pro"))]).await;
    // A copied row of the owner from before its delete comes too late.
    rig.lane(Topic::Snapshot).await.apply(vec![read(&admins(), 2, &admin(1, "late"))]).await;
    assert_eq!(rig.count("accounts").await, 0);
    lane.apply(vec![insert(&admins(), 6, &admin(1, "b"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,b,u,pro)"]);
}

#[tokio::test]
async fn rule_8_a_contributors_row_that_leaves_its_filter_counts_as_deleted() {
    let rig = rig_of(ACCOUNTS).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&admins(), 1, &admin(1, "a")), insert(&oauth(), 2, &token(1, "t"))]).await;
    lane.apply(vec![update(&oauth(), 3, &token(1, "t"), &token(1, "hidden"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,,free)"]);
    lane.apply(vec![update(&oauth(), 4, &token(1, "hidden"), &token(1, "v"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,v,free)"]);
    // As copied, it has no image before.
    let mut snapshot = rig.lane(Topic::Snapshot).await;
    snapshot.apply(vec![read(&oauth(), 9, &token(1, "hidden")), read(&oauth(), 9, &token(2, "hidden"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,,free)"]);
    assert_eq!(rig.count("cutover.pending_public_accounts").await, 0, "nothing waits for a row that was left out");
}

#[tokio::test]
async fn rule_8_on_delete_delete_takes_the_row_until_the_contributor_is_back() {
    let rig = rig_of(&deleting("delete")).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![
        insert(&admins(), 1, &admin(1, "a")),
        insert(&oauth(), 2, &token(1, "t")),
        insert(&plans(), 3, &plan(1, "pro")),
        insert(&admins(), 4, &admin(2, "b")),
    ])
    .await;
    lane.apply(vec![delete(&oauth(), 5, &token(1, "t"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(2,b,,free)"], "what has no contributor yet is there");
    // What else happens to the row while it is away is not lost.
    lane.apply(vec![
        update(&admins(), 6, &admin(1, "a"), &admin(1, "aa")),
        update(&plans(), 7, &plan(1, "pro"), &plan(1, "max")),
    ])
    .await;
    assert_eq!(rig.count("accounts").await, 1);
    let applied = lane.apply(vec![insert(&oauth(), 8, &token(1, "u"))]).await;
    assert_eq!(applied.tables["accounts"].inserted, 1);
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,aa,u,max)", "(2,b,,free)"]);
}

#[tokio::test]
async fn rule_8_an_owner_that_is_made_anew_is_not_kept_out_by_an_older_delete_of_a_contributor() {
    let events = || {
        vec![
            insert(&admins(), 1, &admin(1, "a")),
            insert(&oauth(), 2, &token(1, "t")),
            delete(&oauth(), 3, &token(1, "t")),
            delete(&admins(), 4, &admin(1, "a")),
            insert(&admins(), 5, &admin(1, "b")),
        ]
    };
    for order in [[0, 1, 2, 3, 4], [4, 2, 3, 1, 0], [4, 3, 2, 0, 1], [2, 4, 3, 1, 0], [3, 4, 1, 2, 0]] {
        let rig = rig_of(&deleting("delete")).await;
        let mut lane = rig.lane(Topic::Changes).await;
        for place in order {
            lane.apply(vec![events().remove(place)]).await;
        }
        assert_eq!(rig.rows(ROW, "accounts").await, ["(1,b,,free)"], "{order:?}");
    }
}

#[tokio::test]
async fn rule_8_a_replay_hides_no_row_that_was_made_anew_since_and_brings_no_part_back() {
    let rig = rig_of(&deleting("delete")).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let follower = [insert(&oauth(), 2, &token(1, "t")), delete(&oauth(), 3, &token(1, "t"))];
    lane.apply(vec![insert(&admins(), 1, &admin(1, "a"))]).await;
    lane.apply(follower.to_vec()).await;
    lane.apply(vec![delete(&admins(), 4, &admin(1, "a"))]).await;
    let session = rig.leased_session().await;
    for plan in rig.plans.iter() {
        collect_tombstones(&session, plan, 100).await.unwrap();
    }
    assert_eq!(rig.count("cutover.pending_public_accounts").await, 0);
    lane.apply(vec![insert(&admins(), 101, &admin(1, "b"))]).await;
    for pass in [Pass::Deletes, Pass::Changes] {
        let mut replay = rig.replaying(pass).await;
        for event in follower.clone() {
            replay.apply(vec![event]).await;
            assert_eq!(rig.rows(ROW, "accounts").await, ["(1,b,,free)"], "{pass:?}");
        }
    }
}

#[tokio::test]
async fn rule_8_on_delete_keep_follows_no_deletes() {
    let rig = rig_of(&deleting("keep")).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&admins(), 1, &admin(1, "a")), insert(&oauth(), 2, &token(1, "t"))]).await;
    lane.apply(vec![delete(&oauth(), 3, &token(1, "t")), BatchEvent::Truncate { schema: plans(), version: 4 }]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,t,free)"]);
    // An older row that comes later is as good as one that came before.
    rig.lane(Topic::Snapshot).await.apply(vec![read(&plans(), 2, &plan(1, "pro"))]).await;
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,t,pro)"]);
}

#[tokio::test]
async fn rule_8_truncate_of_a_contributor_is_a_fence_for_it_alone() {
    for (on_delete, left) in [("clear", vec!["(1,a,,pro)", "(2,b,,free)"]), ("delete", vec!["(2,b,,free)"])] {
        let rig = rig_of(&deleting(on_delete)).await;
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![
            insert(&admins(), 1, &admin(1, "a")),
            insert(&admins(), 2, &admin(2, "b")),
            insert(&oauth(), 3, &token(1, "t")),
            insert(&oauth(), 4, &token(3, "w")),
            insert(&plans(), 5, &plan(1, "pro")),
        ])
        .await;
        lane.apply(vec![BatchEvent::Truncate { schema: oauth(), version: 10 }]).await;
        assert_eq!(rig.rows(ROW, "accounts").await, left, "{on_delete}");
        lane.apply(vec![read(&oauth(), 9, &token(2, "late")), insert(&admins(), 11, &admin(4, "d"))]).await;
        lane.apply(vec![insert(&oauth(), 12, &token(1, "new")), insert(&oauth(), 13, &token(4, "x"))]).await;
        assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,new,pro)", "(2,b,,free)", "(4,d,x,free)"], "{on_delete}");
        // The owner's takes every row; what contributors have waits.
        lane.apply(vec![BatchEvent::Truncate { schema: admins(), version: 20 }]).await;
        assert_eq!(rig.count("accounts").await, 0);
        lane.apply(vec![insert(&admins(), 21, &admin(1, "z"))]).await;
        assert_eq!(rig.rows(ROW, "accounts").await, ["(1,z,new,pro)"], "{on_delete}");
    }
}

#[tokio::test]
async fn rule_8_a_sweep_of_one_contributor_touches_its_columns_alone() {
    for (on_delete, left) in [("clear", vec!["(1,a,t,pro)", "(2,b,,max)"]), ("delete", vec!["(1,a,t,pro)"])] {
        let rig = rig_of(&deleting(on_delete)).await;
        let mut lane = rig.lane(Topic::Changes).await;
        let mut snapshot = rig.lane(Topic::Snapshot).await;
        for id in 1..=2 {
            lane.apply(vec![
                insert(&admins(), 1, &admin(id, if id == 1 { "a" } else { "b" })),
                insert(&oauth(), 2, &token(id, "t")),
                insert(&plans(), 3, &plan(id, if id == 1 { "pro" } else { "max" })),
            ])
            .await;
        }
        lane.apply(vec![insert(&oauth(), 4, &token(3, "waits"))]).await;
        // The copy meets only the first.
        snapshot.apply(vec![read(&oauth(), 50, &token(1, "t"))]).await;
        let (session, plans) = (rig.leased_session().await, rig.plans.clone());
        let of = |table: &str| plans.iter().find(|plan| plan.source.table.table == table).unwrap();
        let swept = sweep(&session, (PIPELINE, ""), (of("oauth"), &plans), 50, 1).await.unwrap();
        assert!(swept.complete && swept.rows == 1, "{swept:?}");
        assert_eq!(rig.rows(ROW, "accounts").await, left, "{on_delete}");
        lane.apply(vec![insert(&admins(), 60, &admin(3, "c"))]).await;
        let third = rig.rows(ROW, "accounts WHERE id = 3").await;
        assert_eq!(third.len(), usize::from(on_delete == "clear"), "{on_delete}: {third:?}");
        // And of the owner: its rows go, but for those that a copy has met.
        snapshot.apply(vec![read(&admins(), 70, &admin(1, "a"))]).await;
        let swept = sweep(&session, (PIPELINE, ""), (of("admins"), &plans), 70, 1).await.unwrap();
        assert!(swept.complete, "{swept:?}");
        assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,t,pro)"], "{on_delete}");
        lane.apply(vec![insert(&admins(), 80, &admin(2, "b"))]).await;
        // Made anew, it starts afresh, with what the others have.
        assert_eq!(rig.rows(ROW, "accounts WHERE id = 2").await, ["(2,b,,max)"], "{on_delete}");
    }
}

#[tokio::test]
async fn rule_8_one_contributors_bad_row_is_its_own_dead_letter() {
    let rig = rig_of(ACCOUNTS).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let applied = lane
        .apply(vec![
            insert(&plans(), 1, &json!({ "owner": 1, "plan": null })),
            insert(&oauth(), 2, &token(1, "t")),
            insert(&admins(), 3, &admin(1, "a")),
        ])
        .await;
    assert_eq!(applied.dead_letters, 1);
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,t,free)"]);
    let letter = rig.pg.value("SELECT source_table || ' ' || sqlstate FROM cutover.dead_letters").await;
    assert_eq!(letter.as_deref(), Some("shop.plans 23502"));
    // Its next change clears it, and what it held back is in.
    lane.apply(vec![update(&plans(), 4, &json!({ "owner": 1, "plan": null }), &plan(1, "pro"))]).await;
    assert_eq!((rig.count("cutover.dead_letters").await, rig.count("accounts WHERE plan = 'pro'").await), (0, 1));
}

#[tokio::test]
async fn rule_8_unique_values_of_a_contributor_swap_and_its_parents_are_waited_for() {
    let ddl = "CREATE TABLE tiers (name text PRIMARY KEY);
        CREATE TABLE accounts (id bigint PRIMARY KEY, name text NOT NULL, token text UNIQUE,
          plan text NOT NULL DEFAULT 'free' REFERENCES tiers, seen int DEFAULT 7);
        INSERT INTO tiers VALUES ('free')";
    let tiers = table("tiers", &[("name", ColumnType::Text)]);
    let sources = [admins(), oauth(), plans(), tiers.clone()];
    let rig = Rig::new(ddl, &sources, &[("accounts.sql", ACCOUNTS)]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![
        insert(&admins(), 1, &admin(1, "a")),
        insert(&admins(), 2, &admin(2, "b")),
        insert(&oauth(), 3, &token(1, "t")),
        insert(&oauth(), 4, &token(2, "u")),
    ])
    .await;
    let applied = lane
        .apply(vec![
            update(&oauth(), 5, &token(1, "t"), &token(1, "u")),
            update(&oauth(), 6, &token(2, "u"), &token(2, "t")),
            insert(&plans(), 7, &plan(1, "pro")),
        ])
        .await;
    assert_eq!((applied.waiting, applied.dead_letters), (1, 0));
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,u,free)", "(2,b,t,free)"]);
    lane.apply(vec![insert(&tiers, 8, &json!({ "name": "pro" }))]).await;
    assert_eq!(lane.sink.retry_waiting().await.unwrap().waiting, 0);
    assert_eq!(rig.rows(ROW, "accounts").await, ["(1,a,u,pro)", "(2,b,t,free)"]);
}

#[tokio::test]
async fn rule_8_racing_lanes_of_different_partitions_lose_no_part() {
    let rig = rig_of(ACCOUNTS).await;
    for round in 0..10i64 {
        let base = round * 100;
        let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
        let mut elsewhere = rig.lane_in(Topic::Snapshot, 1).await;
        let ids = || base..base + 40;
        let owners: Vec<BatchEvent> = ids().map(|id| read(&admins(), base + 1, &admin(id, "a"))).collect();
        let tokens: Vec<BatchEvent> = ids().rev().map(|id| read(&oauth(), base + 1, &token(id, "t"))).collect();
        let tiers: Vec<BatchEvent> = ids().map(|id| insert(&plans(), base + 2, &plan(id, "pro"))).collect();
        tokio::join!(snapshot.apply(owners), elsewhere.apply(tokens), changes.apply(tiers));
    }
    assert_eq!(rig.count("accounts WHERE token = 't' AND plan = 'pro'").await, 400);
    assert_eq!(rig.count("cutover.pending_public_accounts").await, 0);
}

#[tokio::test]
async fn rule_8_what_is_known_of_deletes_alone_is_forgotten_with_the_tombstones() {
    let rig = rig_of(&deleting("delete")).await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![
        insert(&admins(), 1, &admin(1, "a")),
        insert(&oauth(), 2, &token(1, "t")),
        insert(&oauth(), 3, &token(2, "w")),
    ])
    .await;
    lane.apply(vec![delete(&oauth(), 5, &token(1, "t")), delete(&oauth(), 6, &token(3, "x"))]).await;
    let session = rig.leased_session().await;
    let plans = rig.plans.clone();
    assert_eq!(rig.count("cutover.pending_public_accounts").await, 3);
    for plan in plans.iter() {
        collect_tombstones(&session, plan, 100).await.unwrap();
    }
    // The hidden row and the one that waits for its owner stay.
    assert_eq!(rig.rows("ROW(id, cutover_owned)", "cutover.pending_public_accounts").await, ["(1,t)", "(2,f)"]);
}

#[tokio::test]
async fn rule_8_a_source_table_may_feed_several_targets_and_one_of_them_twice() {
    let ddl = "CREATE TABLE people (id bigint PRIMARY KEY, name text NOT NULL);
        CREATE TABLE settings (id bigint PRIMARY KEY, name text NOT NULL, theme text, lang text);
        CREATE TABLE themes (id bigint, value text, PRIMARY KEY (id, value))";
    let choices = crate::apply_rig::keyed(
        "choices",
        &[("person", ColumnType::BigInt), ("what", ColumnType::Text), ("value", ColumnType::Text)],
        2,
    );
    let settings = "SELECT id, name FROM admins;
        SELECT person AS id, value AS theme FROM choices WHERE what = 'theme';
        SELECT person AS id, value AS lang FROM choices WHERE what = 'lang'";
    let transforms = [
        ("people.sql", "SELECT id, name FROM admins"),
        ("settings.sql", settings),
        ("themes.sql", "-- cutover: parent_key = id, value\nSELECT person AS id, what AS value FROM choices"),
    ];
    let rig = Rig::new(ddl, &[admins(), choices.clone()], &transforms).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let choice = |what: &str, value: &str| json!({ "person": 1, "what": what, "value": value });
    lane.apply(vec![
        insert(&choices, 1, &choice("theme", "dark")),
        insert(&choices, 2, &choice("lang", "eo")),
        insert(&admins(), 3, &admin(1, "a")),
    ])
    .await;
    assert_eq!(rig.rows("ROW(id, name, theme, lang)", "settings").await, ["(1,a,dark,eo)"]);
    lane.apply(vec![delete(&choices, 4, &choice("theme", "dark"))]).await;
    assert_eq!(rig.rows("ROW(id, name, theme, lang)", "settings").await, ["(1,a,,eo)"]);
    assert_eq!(rig.rows("ROW(id, name)", "people").await, ["(1,a)"]);
    assert_eq!(rig.rows("ROW(id, value)", "themes").await, ["(1,lang)"]);
}
