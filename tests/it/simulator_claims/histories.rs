//! Random histories through the product's own sink, on a real server and on the model.

use cutover::{
    log::Topic,
    target::{
        Applied, ApplyError, Batch, BatchEvent, Sink,
        postgres::{ApplyConfig, PostgresSink, SinkOptions},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::{
    rig::{Rig, options, rigs},
    tables::{children, parents, users},
};
use crate::{
    apply_rig::{EPOCH, PIPELINE, delete, insert, read, update},
    simulator::postgres::Deferral,
};

const HISTORIES: u64 = 50;
const BATCHES: usize = 12;

/// One topic's sink, and where it is.
struct Lane {
    sink: PostgresSink,
    topic: Topic,
    next: u64,
}

impl Lane {
    async fn open(rig: &Rig, topic: Topic) -> Self {
        let options = SinkOptions {
            target: rig.target(),
            session: options("history", false),
            pipeline: PIPELINE.into(),
            topic,
            partition: 0,
            lease_epoch: 1,
            check_offset: true,
            config: ApplyConfig::default(),
        };
        let mut sink = PostgresSink::open(options, rig.plans.clone()).await.unwrap();
        let next = sink.claim(EPOCH).await.unwrap().next_offset;
        Lane { sink, topic, next }
    }

    async fn apply(&mut self, events: Vec<BatchEvent>, complete: bool) -> Result<Applied, ApplyError> {
        let batch = Batch {
            topic: self.topic,
            partition: 0,
            log_epoch: EPOCH.into(),
            from: self.next,
            to: self.next + 1,
            events,
            complete,
            control: None,
            chunks: Vec::new(),
            newest_commit_us: None,
        };
        let applied = self.sink.apply(batch).await?;
        self.next += 1;
        Ok(applied)
    }
}

/// A source of three tables whose rows are any of a few.
struct Source {
    random: StdRng,
    version: i64,
    /// Copied rows so far: no two events have one version, since the product leaves open which of them is tried first.
    copied: i64,
    /// Per table and key the row, if there is one.
    rows: [Vec<Option<Value>>; 3],
}

const KEYS: usize = 6;

impl Source {
    fn new(seed: u64) -> Self {
        Source {
            random: StdRng::seed_from_u64(seed),
            version: 1_000_000,
            copied: 0,
            rows: [const { Vec::new() }; 3].map(|_: Vec<()>| vec![None; KEYS]),
        }
    }

    fn row(&mut self, table: usize, id: usize) -> Value {
        let random = &mut self.random;
        let ages = ["30", "31", "32", "x", "250", "99999999999"];
        match table {
            0 => {
                // Mostly good values; few e-mail addresses, so that they clash.
                let age = if random.random_bool(0.85) { "30" } else { ages.choose(random).unwrap() };
                let email: Value = match random.random_range(0..10) {
                    0 => Value::Null,
                    _ => json!(format!("e{}", random.random_range(0..8))),
                };
                let state = ["open", "closed"].choose(random).unwrap();
                let tags = ["", "a", "a,b", "b,c", "a,a"].choose(random).unwrap();
                json!({ "id": id, "email": email, "age": age, "state": state, "tags": tags })
            }
            1 => json!({ "id": id, "name": format!("p{}", random.random_range(0..3)) }),
            _ => json!({ "id": id, "parent": random.random_range(0..KEYS) }),
        }
    }

    fn schema(table: usize) -> std::sync::Arc<cutover::model::TableSchema> {
        [users(), parents(), children()][table].clone()
    }

    /// One change of the source.
    fn change(&mut self) -> Vec<BatchEvent> {
        self.version += 10_000;
        let (table, id) = (*[0, 0, 1, 2].choose(&mut self.random).unwrap(), self.random.random_range(0..KEYS));
        let schema = Self::schema(table);
        if self.random.random_bool(0.02) {
            self.rows[table].fill(None);
            return vec![BatchEvent::Truncate { schema, version: self.version }];
        }
        let before = self.rows[table][id].clone();
        match before {
            None => {
                let row = self.row(table, id);
                self.rows[table][id] = Some(row.clone());
                vec![insert(&schema, self.version, &row)]
            }
            Some(before) if self.random.random_bool(0.3) => {
                self.rows[table][id] = None;
                vec![delete(&schema, self.version, &before)]
            }
            Some(before) => self.swap(table, id, &before),
        }
    }

    /// An update; now and then of two rows that change places in a unique column.
    fn swap(&mut self, table: usize, id: usize, before: &Value) -> Vec<BatchEvent> {
        let schema = Self::schema(table);
        let other = self.random.random_range(0..KEYS);
        if let (0, true, Some(second)) = (table, other != id, self.rows[0][other].clone())
            && self.random.random_bool(0.3)
        {
            let (mut one, mut two) = (before.clone(), second.clone());
            (one["email"], two["email"]) = (second["email"].clone(), before["email"].clone());
            self.rows[0][id] = Some(one.clone());
            self.rows[0][other] = Some(two.clone());
            self.version += 10_000;
            return vec![
                update(&schema, self.version - 10_000, before, &one),
                update(&schema, self.version, &second, &two),
            ];
        }
        let after = self.row(table, id);
        self.rows[table][id] = Some(after.clone());
        vec![update(&schema, self.version, before, &after)]
    }

    /// Rows as a copy reads them, now or a while ago.
    fn copied(&mut self) -> Vec<BatchEvent> {
        let table = self.random.random_range(0..3);
        let schema = Self::schema(table);
        let seen = self.version - 10_000 * self.random.random_range(0..20);
        let rows: Vec<Value> = self.rows[table].iter().flatten().cloned().collect();
        let version = || {
            self.copied += 1;
            seen + self.copied
        };
        rows.iter().zip(std::iter::repeat_with(version)).map(|(row, version)| read(&schema, version, row)).collect()
    }
}

/// Every batch of a history, for which lane, and whether its transaction ends there.
fn batches(seed: u64) -> Vec<(Topic, Vec<BatchEvent>, bool)> {
    let mut source = Source::new(seed);
    let mut seen: Vec<BatchEvent> = Vec::new();
    let mut batches: Vec<(Topic, Vec<BatchEvent>, bool)> = Vec::new();
    for _ in 0..BATCHES {
        if source.random.random_bool(0.25) {
            let events = source.copied();
            batches.push((Topic::Snapshot, events, true));
            continue;
        }
        let mut events = Vec::new();
        for _ in 0..source.random.random_range(1..8) {
            events.extend(source.change());
        }
        // Some come again, late and out of order.
        if source.random.random_bool(0.2) {
            events.extend(seen.choose_multiple(&mut source.random, 3).cloned());
        }
        seen.extend(events.iter().cloned());
        let complete = source.random.random_bool(0.85);
        batches.push((Topic::Changes, events, complete));
    }
    // What is open at a change of lanes would hold its locks: it ends there.
    for place in 0..batches.len() {
        let follows = batches.get(place + 1).is_some_and(|next| next.0 == Topic::Changes);
        batches[place].2 |= !follows;
    }
    batches
}

async fn history(rig: &Rig, seed: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut lanes = [Lane::open(rig, Topic::Changes).await, Lane::open(rig, Topic::Snapshot).await];
    for (topic, events, complete) in batches(seed) {
        let lane = lanes.iter_mut().find(|lane| lane.topic == topic).unwrap();
        lines.push(format!("{topic:?}: {:?}", lane.apply(events, complete).await));
        if complete && topic == Topic::Changes {
            lines.push(format!("again: {:?}", lane.sink.retry_waiting().await));
        }
    }
    lines.extend(rig.tables().await);
    lines
}

#[tokio::test]
async fn random_histories_through_the_sink_end_alike() {
    let mut all = rigs(Deferral::NotDeferrable).await;
    let (mut model, mut real) = (all.pop().unwrap(), all.swap_remove(0));
    let mut waited = 0;
    let only: Option<u64> = std::env::var("CUTOVER_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..HISTORIES, |seed| seed..seed + 1) {
        real.clean().await;
        model.clean().await;
        let (found, expected) = (history(&model, seed).await, history(&real, seed).await);
        assert_eq!(found, expected, "seed {seed}: the model (left) and the server (right) differ");
        waited += expected.iter().filter(|line| line.starts_with("cutover.waiting")).count();
    }
    assert!(waited > 0, "no history left a row waiting: they try too little");
}
