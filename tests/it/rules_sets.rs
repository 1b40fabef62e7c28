//! One row into many, and none, on a real server (rule 9).

use std::sync::Arc;

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema},
    target::{
        BatchEvent,
        postgres::{collect_tombstones, sweep},
    },
};
use serde_json::{Value, json};

use crate::apply_rig::{PIPELINE, Rig, delete, insert, read, table, update};

const DDL: &str = "CREATE TABLE orders (id bigint PRIMARY KEY);
CREATE TABLE order_items (order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE, sku text, qty int CHECK (qty > 0),
  note text DEFAULT 'n', PRIMARY KEY (order_id, sku))";

const ITEMS: &str = "
-- cutover: parent_key = order_id
SELECT o.id AS order_id, item ->> 'sku' AS sku, (item ->> 'qty')::int AS qty
FROM legacy_orders o CROSS JOIN LATERAL jsonb_array_elements(o.items) item WHERE o.state <> 'void'";

const ROW: &str = "ROW(order_id, sku, qty)";

fn orders() -> Arc<TableSchema> {
    table("legacy_orders", &[("id", ColumnType::BigInt), ("state", ColumnType::Text), ("items", ColumnType::Json)])
}

/// An order of these articles, one of each unless the name ends in a number.
fn order(id: i64, state: &str, items: &[&str]) -> Value {
    let item = |sku: &&str| {
        let qty = sku.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or(1);
        json!({ "sku": sku, "qty": qty })
    };
    let items: Vec<Value> = items.iter().map(item).collect();
    json!({ "id": id, "state": state, "items": Value::from(items).to_string() })
}

async fn items_rig() -> Rig {
    let transforms = [("orders.sql", "SELECT id FROM legacy_orders"), ("order_items.sql", ITEMS)];
    Rig::new(DDL, &[orders()], &transforms).await
}

#[tokio::test]
async fn rule_9_an_update_replaces_the_set_exactly_and_a_delete_takes_it() {
    let rig = items_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let (first, second) = (order(1, "new", &["a", "b2", "c"]), order(1, "new", &["b5", "c", "d"]));
    let applied = lane.apply(vec![insert(&orders(), 1, &first), insert(&orders(), 2, &order(2, "new", &["a"]))]).await;
    assert_eq!(applied.tables["order_items"].inserted, 4);
    rig.pg.exec("UPDATE order_items SET note = 'mine' WHERE sku = 'c'").await;
    let applied = lane.apply(vec![update(&orders(), 3, &first, &second)]).await;
    let counts = applied.tables["order_items"];
    assert_eq!((counts.inserted, counts.updated, counts.deleted), (2, 1, 2));
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,b5,5)", "(1,c,1)", "(1,d,1)", "(2,a,1)"]);
    assert_eq!(rig.count("order_items WHERE note = 'mine'").await, 1, "a row that stays is the same row");
    lane.apply(vec![delete(&orders(), 4, &second)]).await;
    assert_eq!(rig.rows(ROW, "order_items").await, ["(2,a,1)"]);
    assert_eq!(rig.rows("ROW(id)", "orders").await, ["(2)"]);
}

#[tokio::test]
async fn rule_9_an_empty_set_has_a_version_too() {
    let rig = items_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let (full, none) = (order(1, "new", &["a", "b"]), order(1, "new", &[]));
    changes.apply(vec![update(&orders(), 5, &full, &none)]).await;
    let late = snapshot.apply(vec![read(&orders(), 4, &full)]).await;
    assert_eq!(late.tables["order_items"].inserted, 0);
    assert_eq!(rig.count("order_items").await, 0);
    changes.apply(vec![update(&orders(), 6, &none, &full)]).await;
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,a,1)", "(1,b,1)"]);
    // A copied row shows an empty set without an image before.
    snapshot.apply(vec![read(&orders(), 7, &none)]).await;
    assert_eq!(rig.count("order_items").await, 0);
}

#[tokio::test]
async fn rule_9_an_older_set_never_adds_to_a_newer_one() {
    let rig = items_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    let (old, new) = (order(1, "new", &["a", "b"]), order(1, "new", &["b", "c"]));
    changes.apply(vec![update(&orders(), 5, &old, &new)]).await;
    snapshot.apply(vec![read(&orders(), 4, &old)]).await;
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,b,1)", "(1,c,1)"]);
    // Deleted as well: the parent's version stays.
    changes.apply(vec![delete(&orders(), 6, &new)]).await;
    snapshot.apply(vec![read(&orders(), 5, &new)]).await;
    assert_eq!(rig.count("order_items").await, 0);
    // In one batch, whatever the order of a redelivery, the newest counts.
    let events = vec![insert(&orders(), 7, &old), update(&orders(), 8, &old, &new), insert(&orders(), 7, &old)];
    changes.apply(events).await;
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,b,1)", "(1,c,1)"]);
}

#[tokio::test]
async fn rule_9_a_parent_that_leaves_the_filter_has_an_empty_set() {
    let rig = items_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let (open, void) = (order(1, "new", &["a"]), order(1, "void", &["a"]));
    lane.apply(vec![insert(&orders(), 1, &open), insert(&orders(), 2, &order(2, "void", &["z"]))]).await;
    lane.apply(vec![update(&orders(), 3, &open, &void)]).await;
    assert_eq!((rig.count("order_items").await, rig.count("orders").await), (0, 2));
    lane.apply(vec![update(&orders(), 4, &void, &open)]).await;
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,a,1)"]);
}

#[tokio::test]
async fn rule_9_a_removal_by_time_to_live_that_the_select_passes_over_leaves_the_set() {
    let columns = [
        ("id", ColumnType::BigInt),
        ("state", ColumnType::Text),
        ("items", ColumnType::Json),
        ("cutover_ttl_delete", ColumnType::Named("boolean".into())),
    ];
    let orders = table("legacy_orders", &columns);
    let order = |id, items: &[&str], expired: bool| {
        let mut order = order(id, "new", items);
        order["cutover_ttl_delete"] = json!(if expired { "t" } else { "f" });
        order
    };
    let keeping = format!("{ITEMS} AND NOT o.cutover_ttl_delete");
    for (select, kept) in [(keeping.as_str(), true), (ITEMS, false)] {
        let transforms =
            [("orders.sql", "SELECT id FROM legacy_orders WHERE NOT cutover_ttl_delete"), ("order_items.sql", select)];
        let rig = Rig::new(DDL, std::slice::from_ref(&orders), &transforms).await;
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![
            insert(&orders, 1, &order(1, &["a", "b"], false)),
            insert(&orders, 2, &order(2, &["z"], false)),
        ])
        .await;
        lane.apply(vec![
            delete(&orders, 3, &order(1, &["a", "b"], true)),
            delete(&orders, 4, &order(2, &["z"], false)),
        ])
        .await;
        // It comes, changes and goes within one batch.
        lane.apply(vec![
            insert(&orders, 5, &order(3, &["c", "d"], false)),
            update(&orders, 6, &order(3, &["c", "d"], false), &order(3, &["d", "e"], false)),
            delete(&orders, 7, &order(3, &["d", "e"], true)),
        ])
        .await;
        let wanted: &[&str] = if kept { &["(1,a,1)", "(1,b,1)", "(3,d,1)", "(3,e,1)"] } else { &[] };
        assert_eq!(rig.rows(ROW, "order_items").await, wanted, "{select}");
        assert_eq!(rig.rows("ROW(id)", "orders").await, ["(1)", "(3)"]);
    }
}

#[tokio::test]
async fn rule_9_truncate_and_sweep_take_whole_sets() {
    let rig = items_rig().await;
    let (mut changes, mut snapshot) = (rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await);
    for id in 1..=3 {
        changes.apply(vec![insert(&orders(), id, &order(id, "new", &["a", "b"]))]).await;
    }
    snapshot
        .apply(vec![read(&orders(), 50, &order(1, "new", &["a"])), read(&orders(), 50, &order(2, "new", &[]))])
        .await;
    let (session, plans) = (rig.leased_session().await, rig.plans.clone());
    // Children first: the sweep of their parents leaves those that still have some.
    for table in ["order_items", "orders"] {
        let plan = plans.iter().find(|plan| plan.target.name.table == table).unwrap();
        let swept = sweep(&session, (PIPELINE, ""), (plan, &plans), 50, 1).await.unwrap();
        assert!(swept.complete, "{table}: {swept:?}");
    }
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,a,1)"]);
    assert_eq!(rig.rows("ROW(id)", "orders").await, ["(1)", "(2)"]);
    changes.apply(vec![BatchEvent::Truncate { schema: orders(), version: 60 }]).await;
    snapshot.apply(vec![read(&orders(), 55, &order(1, "new", &["a"]))]).await;
    assert_eq!((rig.count("order_items").await, rig.count("orders").await), (0, 0));
    changes.apply(vec![insert(&orders(), 61, &order(1, "new", &["z"]))]).await;
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,z,1)"]);
}

#[tokio::test]
async fn rule_9_one_bad_child_keeps_the_whole_event_out_until_the_next() {
    let rig = items_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    let (good, bad, better) = (order(1, "new", &["a"]), order(1, "new", &["b", "c0"]), order(1, "new", &["c"]));
    let applied = lane.apply(vec![insert(&orders(), 1, &good), insert(&orders(), 2, &order(2, "new", &["x"]))]).await;
    assert_eq!(applied.dead_letters, 0);
    let applied =
        lane.apply(vec![update(&orders(), 3, &good, &bad), insert(&orders(), 4, &order(3, "new", &["y"]))]).await;
    assert_eq!(applied.dead_letters, 1);
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,a,1)", "(2,x,1)", "(3,y,1)"]);
    lane.apply(vec![update(&orders(), 5, &bad, &better)]).await;
    assert_eq!(rig.rows(ROW, "order_items").await, ["(1,c,1)", "(2,x,1)", "(3,y,1)"]);
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
    // A set that names a row twice is no set.
    let twice = order(1, "new", &["d", "d"]);
    assert_eq!(lane.apply(vec![update(&orders(), 6, &better, &twice)]).await.dead_letters, 1);
    assert_eq!(rig.count("order_items WHERE order_id = 1 AND sku = 'c'").await, 1);
}

#[tokio::test]
async fn rule_9_set_versions_of_parents_without_rows_are_forgotten_with_the_tombstones() {
    let rig = items_rig().await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&orders(), 1, &order(1, "new", &["a"])), insert(&orders(), 2, &order(2, "new", &[]))]).await;
    assert_eq!(rig.count("cutover.sets_public_order_items").await, 2);
    let session = rig.leased_session().await;
    for plan in rig.plans.iter() {
        collect_tombstones(&session, plan, 100).await.unwrap();
    }
    assert_eq!(rig.rows("ROW(order_id)", "cutover.sets_public_order_items").await, ["(1)"]);
}

#[tokio::test]
async fn rule_9_a_child_may_have_a_key_of_its_own_and_move_between_parents() {
    let ddl = "CREATE TABLE tickets (id bigint PRIMARY KEY, order_id bigint NOT NULL)";
    let source =
        table("legacy_orders", &[("id", ColumnType::BigInt), ("tickets", ColumnType::Named("bigint[]".into()))]);
    let sql = "-- cutover: parent_key = order_id\nSELECT id AS order_id, unnest(tickets) AS id FROM legacy_orders";
    let rig = Rig::new(ddl, std::slice::from_ref(&source), &[("tickets.sql", sql)]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let order = |id: i64, tickets: &str| json!({ "id": id, "tickets": tickets });
    lane.apply(vec![insert(&source, 1, &order(1, "{7,8}")), insert(&source, 2, &order(2, "{9}"))]).await;
    lane.apply(vec![
        update(&source, 3, &order(1, "{7,8}"), &order(1, "{8}")),
        update(&source, 4, &order(2, "{9}"), &order(2, "{9,7}")),
    ])
    .await;
    assert_eq!(rig.rows("ROW(id, order_id)", "tickets").await, ["(7,2)", "(8,1)", "(9,2)"]);
    // Given first and taken away after, in batches of their own.
    lane.apply(vec![update(&source, 5, &order(1, "{8}"), &order(1, "{8,9}"))]).await;
    lane.apply(vec![update(&source, 6, &order(2, "{9,7}"), &order(2, "{7}"))]).await;
    assert_eq!(rig.rows("ROW(id, order_id)", "tickets").await, ["(7,2)", "(8,1)", "(9,1)"]);
}

#[tokio::test]
async fn rule_9_what_a_set_was_before_it_claims_anothers_child_is_written() {
    let ddl = "CREATE TABLE tickets (id bigint PRIMARY KEY, order_id bigint NOT NULL)";
    let source =
        table("legacy_orders", &[("id", ColumnType::BigInt), ("tickets", ColumnType::Named("bigint[]".into()))]);
    let sql = "-- cutover: parent_key = order_id\nSELECT id AS order_id, unnest(tickets) AS id FROM legacy_orders";
    let rig = Rig::new(ddl, std::slice::from_ref(&source), &[("tickets.sql", sql)]).await;
    let mut lane = rig.lane(Topic::Changes).await;
    let order = |id: i64, tickets: &str| json!({ "id": id, "tickets": tickets });
    lane.apply(vec![insert(&source, 1, &order(1, "{7}"))]).await;
    let applied = lane
        .apply(vec![
            update(&source, 2, &order(1, "{7}"), &order(1, "{8}")),
            update(&source, 3, &order(1, "{8}"), &order(1, "{9}")),
            insert(&source, 4, &order(2, "{9}")),
        ])
        .await;
    assert_eq!(applied.dead_letters, 1);
    assert_eq!(rig.rows("ROW(id, order_id)", "tickets").await, ["(8,1)", "(9,2)"], "7 is nobody's any more");
    // The next set clears the letter, and takes what there was.
    lane.apply(vec![update(&source, 5, &order(1, "{9}"), &order(1, "{6}"))]).await;
    assert_eq!(rig.rows("ROW(id, order_id)", "tickets").await, ["(6,1)", "(9,2)"]);
    assert_eq!(rig.count("cutover.dead_letters").await, 0);
}
