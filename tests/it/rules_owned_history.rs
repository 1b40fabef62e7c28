//! Rule 37: histories of rows that claim each other's keys, in any order of their facts and with batches of any size.
//! Whatever came first: in the end each key that is claimed has a row, that of one claimant as it is now; all others
//! wait; nothing else is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema, Version},
    target::{BatchEvent, Sink},
};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use serde_json::{Value, json};

use crate::apply_rig::{Lane, Rig, delete, insert, keyed, read, update};

/// How rows of a source claim keys.
#[derive(Clone, Copy)]
struct Shape {
    /// How many of the columns (id, email, note) are the source's key.
    keys: usize,
    select: &'static str,
    target: &'static str,
    filters: bool,
}

/// One row of each; a filter; what may be many, whose key moves with an update; and a key of several columns.
const SHAPES: [Shape; 4] = [
    Shape { keys: 2, select: "SELECT lower(email) AS k, note FROM users WHERE id > 0", target: "k", filters: false },
    Shape {
        keys: 2,
        select: "SELECT lower(email) AS k, note FROM users WHERE id > 0 AND note <> 'hidden'",
        target: "k",
        filters: true,
    },
    Shape {
        keys: 1,
        select: "SELECT lower(users.email) AS k, users.note FROM users, generate_series(1, 1) one",
        target: "k",
        filters: false,
    },
    Shape { keys: 2, select: "SELECT id % 3 AS i, lower(email) AS k, note FROM users", target: "i, k", filters: false },
];
const EMAILS: [&str; 6] = ["a", "A", "bb", "bB", "BB", "c"];

type Id = (i64, String);

/// A source whose rows claim each other's keys at the target.
struct Source {
    shape: Shape,
    schema: Arc<TableSchema>,
    /// By the source's key: the id, and the email if that is in it.
    rows: BTreeMap<Id, (Version, String, String)>,
    clock: Version,
}

fn row(id: i64, email: &str, note: &str) -> Value {
    json!({ "id": id, "email": email, "note": note })
}

impl Source {
    fn new(shape: Shape) -> Self {
        let columns = [("id", ColumnType::BigInt), ("email", ColumnType::Text), ("note", ColumnType::Text)];
        Source { shape, schema: keyed("users", &columns, shape.keys), rows: BTreeMap::new(), clock: 1_000 }
    }

    fn key(&self, id: i64, email: &str) -> Id {
        (id, if self.shape.keys == 2 { email.to_owned() } else { String::new() })
    }

    /// A change of a random row, as the log has it.
    fn change(&mut self, random: &mut StdRng) -> Vec<BatchEvent> {
        let (id, email) = (random.random_range(1..=4), (*EMAILS.choose(random).unwrap()).to_owned());
        let note = if random.random_bool(0.2) { "hidden".to_owned() } else { format!("v{}", self.clock + 1) };
        let any: Vec<Id> = self.rows.keys().filter(|(other, _)| *other == id).cloned().collect();
        let Some(key) = any.choose(random).cloned() else {
            self.clock += 1;
            let event = insert(&self.schema, self.clock, &row(id, &email, &note));
            self.rows.insert(self.key(id, &email), (self.clock, email, note));
            return vec![event];
        };
        let (_, was, before) = self.rows[&key].clone();
        let before = row(id, &was, &before);
        self.clock += 1;
        if random.random_bool(0.25) {
            self.rows.remove(&key);
            return vec![delete(&self.schema, self.clock, &before)];
        }
        let new = self.key(id, &email);
        if new == key {
            self.rows.insert(key, (self.clock, email.clone(), note.clone()));
            return vec![update(&self.schema, self.clock, &before, &row(id, &email, &note))];
        }
        if self.rows.contains_key(&new) {
            self.clock -= 1;
            return Vec::new();
        }
        // A key that changes is a delete and an insert.
        self.rows.remove(&key);
        self.clock += 1;
        self.rows.insert(new, (self.clock, email.clone(), note.clone()));
        vec![delete(&self.schema, self.clock - 1, &before), insert(&self.schema, self.clock, &row(id, &email, &note))]
    }

    fn copy(&self) -> Vec<BatchEvent> {
        let rows = self.rows.iter();
        rows.map(|((id, _), (_, email, note))| read(&self.schema, self.clock, &row(*id, email, note))).collect()
    }

    /// Who claims each key of the target: by the source's key as records have it.
    fn claims(&self) -> BTreeMap<String, BTreeMap<String, (Version, String)>> {
        let mut claims: BTreeMap<String, BTreeMap<String, (Version, String)>> = BTreeMap::new();
        for ((id, _), (version, email, note)) in &self.rows {
            if self.shape.filters && note == "hidden" {
                continue;
            }
            let lower = email.to_lowercase();
            let target = if self.shape.target == "k" { lower } else { format!("{},{lower}", id % 3) };
            let key = if self.shape.keys == 2 { format!("{id} {email}") } else { id.to_string() };
            claims.entry(target).or_default().insert(key, (*version, note.clone()));
        }
        claims
    }
}

async fn rig(source: &Source) -> Rig {
    let ddl = format!("CREATE TABLE users (i bigint, k text, note text, PRIMARY KEY ({}))", source.shape.target);
    let schemas = std::slice::from_ref(&source.schema);
    let rig = Rig::new(&ddl, schemas, &[("users.sql", source.shape.select)]).await;
    assert!(rig.plans[0].is_owned(), "{}", source.shape.select);
    rig
}

/// Tries what waits, until nothing comes in any more.
async fn settle(lanes: &mut [Lane]) {
    let mut last = None;
    loop {
        let mut waiting = 0;
        for lane in lanes.iter_mut() {
            waiting = lane.sink.retry_waiting().await.unwrap().waiting;
        }
        if last.replace(waiting) == Some(waiting) {
            return;
        }
    }
}

/// Holds what is there against the source.
async fn right(rig: &Rig, source: &Source, what: &str) {
    let key = if source.shape.target == "k" { "k" } else { "i || ',' || k" };
    let shown = rig.pg.query(&format!("SELECT {key}, note FROM users")).await;
    let shown: BTreeMap<String, String> =
        shown.into_iter().map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap())).collect();
    let waits = "SELECT concat_ws(' ', key_text::json ->> 'id', key_text::json ->> 'email'), max(version)
                 FROM cutover.waiting GROUP BY 1";
    let mut waits: BTreeMap<String, Version> = (rig.pg.query(waits).await.into_iter())
        .map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap().parse().unwrap()))
        .collect();
    let claims = source.claims();
    let keys = |of: Vec<&String>| of.into_iter().cloned().collect::<BTreeSet<String>>();
    assert_eq!(keys(shown.keys().collect()), keys(claims.keys().collect()), "{what}: keys with rows and with claims");
    for (key, claimants) in claims {
        let waiting: Vec<&String> = claimants.keys().filter(|claimant| waits.contains_key(*claimant)).collect();
        assert_eq!(waiting.len(), claimants.len() - 1, "{what}: {key} is claimed by {claimants:?}, {waiting:?} wait");
        for (claimant, (version, note)) in &claimants {
            match waits.remove(claimant) {
                Some(newest) => assert!(newest >= *version, "{what}: {claimant} waits at {newest}, not at {version}"),
                None => assert_eq!(&shown[&key], note, "{what}: {key} is not as {claimant} is now"),
            }
        }
    }
    assert!(waits.is_empty(), "{what}: {waits:?} wait and claim nothing");
    assert_eq!(rig.count("cutover.dead_letters").await, 0, "{what}");
}

async fn any_order(seed: u64, batch_rows: usize, shape: Shape) {
    let what = format!("seed {seed}, batches of {batch_rows}, {}", shape.select);
    let (mut random, mut source) = (StdRng::seed_from_u64(seed), Source::new(shape));
    let rig = rig(&source).await;
    let mut queues: [Vec<BatchEvent>; 2] = Default::default();
    for _ in 0..70 {
        queues[0].extend(source.change(&mut random));
        if random.random_bool(0.08) {
            queues[1].extend(source.copy());
        }
    }
    let again: Vec<BatchEvent> = queues[0].iter().filter(|_| random.random_bool(0.33)).cloned().collect();
    queues[0].extend(again);
    queues.iter_mut().for_each(|queue| queue.shuffle(&mut random));
    let mut lanes = [rig.lane_in(Topic::Changes, 0).await, rig.lane_in(Topic::Snapshot, 0).await];
    while queues.iter().any(|queue| !queue.is_empty()) {
        let which = random.random_range(0..2);
        let size = batch_rows.min(queues[which].len());
        let events: Vec<BatchEvent> = queues[which].drain(..size).collect();
        if !events.is_empty() {
            lanes[which].apply(events).await;
        }
        if random.random_bool(0.1) {
            lanes[0].sink.retry_waiting().await.unwrap();
        }
    }
    settle(&mut lanes[..1]).await;
    right(&rig, &source, &what).await;
}

#[tokio::test]
async fn rule_37_any_order_and_any_batch_size_show_each_key_and_let_the_others_wait() {
    for seed in 0..4 {
        for batch_rows in [1, 3, 20] {
            for shape in SHAPES {
                Box::pin(any_order(seed, batch_rows, shape)).await;
            }
        }
    }
}

/// The stream as it comes, over two partitions by the id: what a batch says of one row are often several events, whose
/// keys move.
async fn in_order(seed: u64, batch_rows: usize, shape: Shape) {
    let what = format!("seed {seed}, batches of {batch_rows}, {}", shape.select);
    let (mut random, mut source) = (StdRng::seed_from_u64(seed), Source::new(shape));
    let rig = rig(&source).await;
    let mut lanes = [rig.lane_in(Topic::Changes, 0).await, rig.lane_in(Topic::Changes, 1).await];
    for _ in 0..4 {
        let mut queues: [Vec<BatchEvent>; 2] = Default::default();
        for _ in 0..20 {
            for event in source.change(&mut random) {
                let BatchEvent::Row(row) = &event else { continue };
                let key: Value = serde_json::from_slice(&row.key).unwrap();
                queues[usize::from(key["id"].as_i64().unwrap() % 2 == 1)].push(event);
            }
        }
        while queues.iter().any(|queue| !queue.is_empty()) {
            let which = random.random_range(0..2);
            let size = batch_rows.min(queues[which].len());
            let events: Vec<BatchEvent> = queues[which].drain(..size).collect();
            if !events.is_empty() {
                lanes[which].apply(events).await;
            }
        }
        settle(&mut lanes).await;
        right(&rig, &source, &what).await;
    }
}

#[tokio::test]
async fn rule_37_several_events_of_a_row_whose_key_moves_end_as_if_each_had_come_alone() {
    for seed in 0..4 {
        for batch_rows in [1, 3, 20] {
            for shape in SHAPES {
                Box::pin(in_order(seed, batch_rows, shape)).await;
            }
        }
    }
}
