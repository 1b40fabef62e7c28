//! Random histories against an oracle: whatever is shuffled, redelivered or copied again, the target ends as the
//! source.

use std::collections::{BTreeMap, BTreeSet};

use cutover::{
    log::Topic,
    model::{ColumnType, Coverage, Version},
    target::BatchEvent,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};

use crate::apply_rig::{Rig, delete, insert, read, table, update};

const DDL: &str = "
CREATE TABLE carts (id bigint PRIMARY KEY, owner text NOT NULL, total_cents bigint);
CREATE TABLE open_carts (cart bigint PRIMARY KEY, owner text NOT NULL);
CREATE TABLE cart_tags (cart bigint, tag text, PRIMARY KEY (cart, tag));";

const CARTS: &str = "SELECT id, upper(owner) AS owner, (total * 100)::bigint AS total_cents FROM legacy_carts";
const OPEN: &str = "SELECT id AS cart, owner FROM legacy_carts WHERE status = 'open'";
const TAGS: &str = "
-- cutover: parent_key = cart
SELECT id AS cart, tag.value AS tag FROM legacy_carts, LATERAL jsonb_array_elements_text(tags) AS tag(value)";

/// A source table, its log, and what a snapshot would have read at every point.
struct Source {
    rows: BTreeMap<i64, Value>,
    clock: Version,
}

impl Source {
    fn row(random: &mut StdRng, id: i64) -> Value {
        let tags: BTreeSet<&str> = ["a", "b", "c", "d"].into_iter().filter(|_| random.random_bool(0.4)).collect();
        json!({
            "id": id,
            "owner": format!("o{}", random.random_range(0..3)),
            "total": format!("{}.{:02}", random.random_range(0..50), random.random_range(0..100)),
            "status": if random.random_bool(0.5) { "open" } else { "closed" },
            "tags": serde_json::to_string(&tags).unwrap(),
        })
    }
}

/// What the three tables must hold.
fn expected(rows: &BTreeMap<i64, Value>) -> [Vec<String>; 3] {
    let (mut carts, mut open, mut tags) = (Vec::new(), Vec::new(), Vec::new());
    for (id, row) in rows {
        let owner = row["owner"].as_str().unwrap();
        let cents: i64 = row["total"].as_str().unwrap().replace('.', "").parse().unwrap();
        carts.push(format!("({id},{},{cents})", owner.to_uppercase()));
        if row["status"] == "open" {
            open.push(format!("({id},{owner})"));
        }
        let list: Vec<String> = serde_json::from_str(row["tags"].as_str().unwrap()).unwrap();
        tags.extend(list.iter().map(|tag| format!("({id},{tag})")));
    }
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    [sorted(carts), sorted(open), sorted(tags)]
}

async fn history(seed: u64, batch_rows: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let schema = table(
        "legacy_carts",
        &[
            ("id", ColumnType::BigInt),
            ("owner", ColumnType::Text),
            ("total", ColumnType::Numeric { precision: 10, scale: 2 }),
            ("status", ColumnType::Text),
            ("tags", ColumnType::Json),
        ],
    );
    let transforms = [("carts.sql", CARTS), ("open_carts.sql", OPEN), ("cart_tags.sql", TAGS)];
    let rig = Rig::new(DDL, std::slice::from_ref(&schema), &transforms).await;
    let coverage: Vec<Coverage> = rig.plans.iter().map(|plan| plan.coverage).collect();
    assert_eq!(coverage, [Coverage::Total, Coverage::Filter, Coverage::Partial]);

    let mut source = Source { rows: BTreeMap::new(), clock: 1_000 };
    let (mut changes, mut copies): (Vec<BatchEvent>, Vec<BatchEvent>) = (Vec::new(), Vec::new());
    for _ in 0..120 {
        source.clock += 1;
        let version = source.clock;
        let id = random.random_range(0..12);
        match source.rows.get(&id).cloned() {
            None => {
                let row = Source::row(&mut random, id);
                changes.push(insert(&schema, version, &row));
                source.rows.insert(id, row);
            }
            Some(before) if random.random_bool(0.25) => {
                changes.push(delete(&schema, version, &before));
                source.rows.remove(&id);
            }
            Some(before) if random.random_bool(0.15) => {
                // The key changes: a delete of the old and an insert of the new one.
                let to = random.random_range(20..30);
                if !source.rows.contains_key(&to) {
                    let mut after = before.clone();
                    after["id"] = json!(to);
                    source.clock += 1;
                    changes.push(delete(&schema, version, &before));
                    changes.push(insert(&schema, source.clock, &after));
                    source.rows.remove(&id);
                    source.rows.insert(to, after);
                }
            }
            Some(before) => {
                let after = Source::row(&mut random, id);
                changes.push(update(&schema, version, &before, &after));
                source.rows.insert(id, after);
            }
        }
        if random.random_bool(0.1) {
            // A chunk of the snapshot, read now: labelled with the version that it has seen.
            copies.extend(source.rows.values().map(|row| read(&schema, source.clock, row)));
        }
    }
    let again: Vec<BatchEvent> = changes.iter().filter(|_| random.random_bool(0.33)).cloned().collect();
    changes.extend(again);
    changes.shuffle(&mut random);
    copies.shuffle(&mut random);

    let mut lanes = [rig.lane(Topic::Changes).await, rig.lane(Topic::Snapshot).await];
    let mut queues = [changes, copies];
    while queues.iter().any(|queue| !queue.is_empty()) {
        let which = random.random_range(0..2);
        let size = batch_rows.min(queues[which].len());
        let events: Vec<BatchEvent> = queues[which].drain(..size).collect();
        if !events.is_empty() {
            let applied = lanes[which].apply(events).await;
            assert_eq!((applied.dead_letters, applied.waiting), (0, 0), "seed {seed}");
        }
    }
    let found = [
        rig.rows("ROW(id, owner, total_cents)", "carts").await,
        rig.rows("ROW(cart, owner)", "open_carts").await,
        rig.rows("ROW(cart, tag)", "cart_tags").await,
    ];
    assert_eq!(found, expected(&source.rows), "seed {seed}, batches of {batch_rows}");
}

#[tokio::test]
async fn any_order_and_any_batch_size_end_as_the_source() {
    for seed in 0..4 {
        for batch_rows in [1, 3, 20] {
            Box::pin(history(seed, batch_rows)).await;
        }
    }
}
