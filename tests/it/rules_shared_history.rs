//! Random histories of several source tables that fill one target, and of sets, against the plain SQL over the final
//! source: whatever comes in which order, how often, and in which batches, the target ends as the join.

use std::{collections::BTreeMap, sync::Arc};

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema, Version},
    target::{BatchEvent, postgres::collect_tombstones},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};

use crate::apply_rig::{Rig, delete, insert, read, table, update};

const DDL: &str = "
CREATE TABLE merged (k bigint PRIMARY KEY, name text NOT NULL, token text, tier text NOT NULL DEFAULT 'free', note text);
CREATE TABLE tags (owner bigint, tag text, n int, PRIMARY KEY (owner, tag));
CREATE SCHEMA legacy;
CREATE TABLE legacy.a (id bigint, name text, tags jsonb);
CREATE TABLE legacy.b (id bigint, value text);
CREATE TABLE legacy.c (id bigint, value text);
CREATE TABLE legacy.hidden (id bigint);";

const TAGS: &str = "
-- cutover: parent_key = owner
SELECT a.id AS owner, t.tag, t.n::int AS n FROM a, LATERAL jsonb_array_elements_text(a.tags) WITH ORDINALITY t(tag, n)
WHERE a.name <> 'x'";

/// What the targets must hold, of the source as it is at the end; `hidden` is what followers' deletes have taken away.
const MERGED: &str = "SELECT (ROW(a.id, a.name, b.value, coalesce(c.value, 'free'), c.value))::text
FROM legacy.a LEFT JOIN legacy.b ON b.id = a.id AND b.value <> 'x' LEFT JOIN legacy.c ON c.id = a.id
WHERE a.name <> 'x' AND a.id NOT IN (SELECT id FROM legacy.hidden) ORDER BY 1";

const SETS: &str = "SELECT (ROW(a.id, t.tag, t.n))::text FROM legacy.a,
LATERAL jsonb_array_elements_text(a.tags) WITH ORDINALITY t(tag, n) WHERE a.name <> 'x' ORDER BY 1";

const KEYS: i64 = 6;

/// What becomes of the row when one of `b` or `c` goes.
#[derive(Clone, Copy, PartialEq)]
enum Follower {
    Clears,
    Removes,
}

fn transform(b: Follower, c: Follower) -> String {
    let directive = |follower: Follower| match follower {
        Follower::Clears => "clear",
        Follower::Removes => "delete",
    };
    format!(
        "SELECT id AS k, name FROM a WHERE name <> 'x';\n-- cutover: on_delete = {}\n\
         SELECT id AS k, value AS token FROM b WHERE value <> 'x';\n-- cutover: on_delete = {}\n\
         SELECT id AS k, value AS tier, value AS note FROM c",
        directive(b),
        directive(c)
    )
}

/// A source table, its rows, and when each key's row last stopped being one that the transform takes.
struct Source {
    schema: Arc<TableSchema>,
    rows: BTreeMap<i64, Value>,
    gone: BTreeMap<i64, Version>,
    /// The column whose value `x` is filtered out.
    filtered: Option<&'static str>,
}

impl Source {
    fn new(name: &str, columns: &[(&str, ColumnType)], filtered: Option<&'static str>) -> Self {
        Source { schema: table(name, columns), rows: BTreeMap::new(), gone: BTreeMap::new(), filtered }
    }

    fn row(&self, random: &mut StdRng, id: i64) -> Value {
        let value = ["x", "p", "q", "r"][random.random_range(0..4)];
        if self.schema.table.table == "a" {
            let mut tags = vec!["s", "t", "u", "v"];
            tags.shuffle(random);
            tags.truncate(random.random_range(0..4));
            json!({ "id": id, "name": value, "tags": json!(tags).to_string() })
        } else {
            json!({ "id": id, "value": value })
        }
    }

    fn takes(&self, row: &Value) -> bool {
        self.filtered.is_none_or(|column| row[column] != "x")
    }

    /// A random change of a row.
    fn step(&mut self, random: &mut StdRng, version: Version) -> BatchEvent {
        let id = random.random_range(0..KEYS);
        let row = self.row(random, id);
        let before = self.rows.get(&id).cloned();
        let after = if before.is_some() && random.random_bool(0.35) { None } else { Some(row) };
        let taken = |row: &Option<Value>| row.as_ref().is_some_and(|row| self.takes(row));
        if taken(&before) && !taken(&after) {
            self.gone.insert(id, version);
        }
        match (before, after) {
            (None, Some(after)) => {
                let event = insert(&self.schema, version, &after);
                self.rows.insert(id, after);
                event
            }
            (Some(before), Some(after)) => {
                let event = update(&self.schema, version, &before, &after);
                self.rows.insert(id, after);
                event
            }
            (Some(before), None) => {
                self.rows.remove(&id);
                delete(&self.schema, version, &before)
            }
            (None, None) => unreachable!("a row that is not there is not deleted"),
        }
    }

    /// Empties the table.
    fn truncate(&mut self, version: Version) -> BatchEvent {
        self.rows.clear();
        self.gone.extend((0..KEYS).map(|id| (id, version)));
        BatchEvent::Truncate { schema: self.schema.clone(), version }
    }

    fn shows(&self, id: i64) -> bool {
        self.rows.get(&id).is_some_and(|row| self.takes(row))
    }
}

/// The sources' rows as they are at the end, where the oracle's SQL finds them.
async fn settle(rig: &Rig, sources: &[Source; 3], removes: [bool; 3]) {
    for source in sources {
        for row in source.rows.values() {
            let name = &source.schema.table.table;
            let tags = if name == "a" { ", (r ->> 'tags')::jsonb" } else { "" };
            let value = if name == "a" { "name" } else { "value" };
            rig.pg
                .exec(&format!(
                    "INSERT INTO legacy.{name} SELECT (r ->> 'id')::bigint, r ->> '{value}'{tags} FROM (SELECT '{row}'::jsonb) s(r)"
                ))
                .await;
        }
    }
    for id in 0..KEYS {
        let owner = sources[0].gone.get(&id).copied().unwrap_or_default();
        let hides = |place: &usize| {
            let follower = &sources[*place];
            removes[*place] && !follower.shows(id) && follower.gone.get(&id).is_some_and(|gone| *gone > owner)
        };
        if (1..3).any(|place| hides(&place)) {
            rig.pg.exec(&format!("INSERT INTO legacy.hidden VALUES ({id})")).await;
        }
    }
}

/// Hands out what there is of each lane in random batches, and checks what is there at the end.
async fn history(seed: u64, batch_rows: usize, shuffled: bool) {
    let mut random = StdRng::seed_from_u64(seed);
    let kinds = [Follower::Clears, Follower::Removes];
    let (b, c) = (kinds[random.random_range(0..2)], kinds[random.random_range(0..2)]);
    let mut sources = [
        Source::new(
            "a",
            &[("id", ColumnType::BigInt), ("name", ColumnType::Text), ("tags", ColumnType::Json)],
            Some("name"),
        ),
        Source::new("b", &[("id", ColumnType::BigInt), ("value", ColumnType::Text)], Some("value")),
        Source::new("c", &[("id", ColumnType::BigInt), ("value", ColumnType::Text)], None),
    ];
    let schemas: Vec<_> = sources.iter().map(|source| source.schema.clone()).collect();
    let merged = transform(b, c);
    let rig = Rig::new(DDL, &schemas, &[("merged.sql", &merged), ("tags.sql", TAGS)]).await;

    // As if the keys of the three tables went to partitions of their own: the order of one table's changes holds, no
    // other.
    let removes = [false, b == Follower::Removes, c == Follower::Removes];
    let (mut changes, mut copies): ([Vec<BatchEvent>; 3], Vec<BatchEvent>) = (Default::default(), Vec::new());
    for version in 1_000..1_150 {
        let which = random.random_range(0..3);
        // Of a follower whose deletes hide the row, what comes late from before a TRUNCATE hides nothing: no function
        // of the source.
        let event = if !removes[which] && random.random_bool(0.02) {
            sources[which].truncate(version)
        } else {
            sources[which].step(&mut random, version)
        };
        changes[which].push(event);
        if random.random_bool(0.1) {
            let source = &sources[random.random_range(0..3)];
            copies.extend(source.rows.values().map(|row| read(&source.schema, version, row)));
        }
    }
    copies.shuffle(&mut random);
    if shuffled {
        for changes in &mut changes {
            let again: Vec<BatchEvent> = changes.iter().filter(|_| random.random_bool(0.3)).cloned().collect();
            changes.extend(again);
            changes.shuffle(&mut random);
        }
    }
    let [first, second, third] = changes;
    let mut queues = [first, second, third, copies];
    let mut lanes = [
        rig.lane(Topic::Changes).await,
        rig.lane_in(Topic::Changes, 1).await,
        rig.lane_in(Topic::Changes, 2).await,
        rig.lane(Topic::Snapshot).await,
    ];
    while queues.iter().any(|queue| !queue.is_empty()) {
        let which = random.random_range(0..queues.len());
        let size = batch_rows.min(queues[which].len());
        let events: Vec<BatchEvent> = queues[which].drain(..size).collect();
        if !events.is_empty() {
            let applied = lanes[which].apply(events).await;
            assert_eq!((applied.dead_letters, applied.waiting), (0, 0), "seed {seed}");
        }
    }
    settle(&rig, &sources, removes).await;
    judge(&rig, &format!("seed {seed}, batches of {batch_rows}, shuffled {shuffled}\n{merged}")).await;
}

async fn judge(rig: &Rig, what: &str) {
    let (merged, sets) =
        (rig.rows("ROW(k, name, token, tier, note)", "merged").await, rig.rows("ROW(owner, tag, n)", "tags").await);
    let wanted = async |sql: &str| -> Vec<String> {
        rig.pg.query(sql).await.into_iter().map(|row| row[0].clone().unwrap_or_default()).collect()
    };
    assert_eq!(merged, wanted(MERGED).await, "{what}");
    assert_eq!(sets, wanted(SETS).await, "{what}");
    // What is forgotten with the tombstones changes nothing that is shown.
    let session = rig.session().await;
    for plan in rig.plans.iter() {
        collect_tombstones(&session, plan, 10_000).await.unwrap();
    }
    assert_eq!(rig.rows("ROW(k, name, token, tier, note)", "merged").await, merged, "{what}");
}

#[tokio::test]
async fn rule_8_and_9_any_history_ends_as_the_join_over_the_source() {
    for seed in 0..12 {
        for batch_rows in [1, 4, 40] {
            Box::pin(history(seed, batch_rows, seed % 2 == 1)).await;
        }
    }
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn rule_8_and_9_many_more_histories() {
    for seed in 12..120 {
        for batch_rows in [2, 40] {
            Box::pin(history(seed, batch_rows, seed % 2 == 1)).await;
        }
    }
}
