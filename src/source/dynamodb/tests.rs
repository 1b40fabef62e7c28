//! The reader over a model of the service's streams: shards that split, close and are trimmed, iterators that expire,
//! requests that are throttled.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, a panic with its message is the report")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use super::{walk::Listed, *};
use crate::{
    database::dynamodb::{Attribute, Item, attribute::KeyType},
    model::Value,
    observe::Environment,
};

const SECOND: i64 = 1_000_000;
/// When a test begins.
const START: i64 = 1_000_000 * SECOND;

#[derive(Default)]
struct Shard {
    parent: Option<String>,
    records: Vec<StreamRecord>,
    is_closed: bool,
    /// So many records are gone.
    trimmed: usize,
}

struct State {
    shards: BTreeMap<String, Shard>,
    is_enabled: bool,
    date_us: i64,
    /// So many requests for records will be throttled.
    throttled: usize,
    /// Iterators up to this number have expired.
    expired: usize,
    iterators: usize,
}

/// A stream of one table.
struct Model(Mutex<State>);

impl Model {
    fn new(shards: &[(&str, Option<&str>)]) -> Arc<Self> {
        let shard = |(id, parent): &(&str, Option<&str>)| {
            ((*id).to_owned(), Shard { parent: parent.map(str::to_owned), ..Shard::default() })
        };
        Arc::new(Model(Mutex::new(State {
            shards: shards.iter().map(shard).collect(),
            is_enabled: true,
            date_us: START,
            throttled: 0,
            expired: 0,
            iterators: 0,
        })))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }

    /// A change of the item `key`, seconds after the start.
    fn record(&self, shard: &str, key: &str, second: i64) {
        self.change(|state| {
            let records = &mut state.shards.get_mut(shard).unwrap().records;
            let item = || Some(Item::from([("id".to_owned(), Attribute::Text(key.into()))]));
            records.push(StreamRecord {
                sequence: format!("{shard}-{:03}", records.len() + 1),
                created_us: START + second * SECOND,
                change: ItemChange::Modify,
                before: item(),
                after: item(),
                is_ttl: false,
            });
        });
    }

    fn close(&self, shard: &str) {
        self.change(|state| state.shards.get_mut(shard).unwrap().is_closed = true);
    }
}

#[async_trait]
impl Streams for Model {
    async fn shards(&self, _stream: &str) -> Result<Listing, DynamoError> {
        let state = self.0.lock().unwrap();
        let listed = |(id, shard): (&String, &Shard)| Listed { id: id.clone(), parent: shard.parent.clone() };
        Ok(Listing { shards: state.shards.iter().map(listed).collect(), is_enabled: state.is_enabled })
    }

    async fn iterator(&self, _stream: &str, shard: &str, after: Option<&str>) -> Result<String, DynamoError> {
        let mut state = self.0.lock().unwrap();
        state.iterators += 1;
        let number = state.iterators;
        let found = state.shards.get(shard).ok_or_else(|| DynamoError::Missing("no such shard".into()))?;
        let place = match after {
            None => found.trimmed,
            Some(sequence) => {
                let place = found.records.iter().position(|record| record.sequence == sequence).unwrap() + 1;
                if place <= found.trimmed {
                    return Err(DynamoError::Trimmed("trimmed".into()));
                }
                place
            }
        };
        Ok(format!("{shard}|{place}|{number}"))
    }

    async fn records(&self, iterator: &str) -> Result<RecordPage, DynamoError> {
        let mut state = self.0.lock().unwrap();
        if state.throttled > 0 {
            state.throttled -= 1;
            return Err(DynamoError::Throttled("too often".into()));
        }
        let mut parts = iterator.split('|');
        let (shard, place) = (parts.next().unwrap(), parts.next().unwrap().parse::<usize>().unwrap());
        let number = parts.next().unwrap().parse::<usize>().unwrap();
        if number <= state.expired {
            return Err(DynamoError::IteratorExpired("expired".into()));
        }
        let found = &state.shards[shard];
        if place < found.trimmed {
            return Err(DynamoError::Trimmed("trimmed".into()));
        }
        let records: Vec<StreamRecord> = found.records.iter().skip(place).take(2).cloned().collect();
        let end = place + records.len();
        let is_over = found.is_closed && end == found.records.len();
        let next = (!is_over).then(|| format!("{shard}|{end}|{number}"));
        Ok(RecordPage { records, next, date_us: Some(state.date_us) })
    }
}

struct Still;

impl Environment for Still {
    fn now_us(&self) -> i64 {
        START + 60 * SECOND
    }

    fn fraction(&self) -> f64 {
        0.5
    }
}

fn open(model: &Arc<Model>, from: Option<(DynamoPosition, Version)>) -> Result<DynamoStream, CaptureError> {
    let schema = attribute::table_schema("local", "books", &[("id".into(), KeyType::Text)]);
    let followed = Followed { schema: Arc::new(schema), arn: "arn".into() };
    let date_us = model.0.lock().unwrap().date_us;
    let settings =
        StreamSettings { date_us, clock_min: 0, clock_ahead_max_us: 60 * SECOND, environment: Arc::new(Still) };
    DynamoStream::open(Arc::clone(model) as _, from, &[followed], settings)
}

/// What was captured: changes by key with their versions, and the position after each; until a heartbeat that says that
/// nothing is missing.
async fn captured(source: &mut DynamoStream) -> (Vec<(String, Version)>, Vec<(DynamoPosition, Version)>) {
    let (mut changes, mut positions) = (Vec::new(), Vec::new());
    let mut heartbeats = 0;
    while heartbeats < 2 {
        match source.next().await.expect("captured") {
            CaptureEvent::Change(change) => {
                let Some(Value::Text(key)) = change.images.after.as_ref().map(|row| row[0].clone()) else { panic!() };
                changes.push((key, change.version));
            }
            CaptureEvent::Commit { position: Position::Dynamo(position), clock, .. } => {
                positions.push((position, clock))
            }
            CaptureEvent::Heartbeat { position: Position::Dynamo(position), clock, .. } => {
                heartbeats += 1;
                positions.push((position, clock));
            }
            CaptureEvent::Schema(_) => {}
            other => panic!("{other:?}"),
        }
    }
    (changes, positions)
}

async fn failure(source: Result<DynamoStream, CaptureError>) -> CaptureError {
    let mut source = match source {
        Ok(source) => source,
        Err(error) => return error,
    };
    loop {
        if let Err(error) = source.next().await {
            return error;
        }
    }
}

fn is_lost(error: &CaptureError) -> bool {
    matches!(error, CaptureError::Lost(problem) if problem.fix.contains("cutover resnapshot"))
}

/// A shard that split in two, one of which was closed and followed by another.
fn split() -> Arc<Model> {
    let model = Model::new(&[("a", None), ("b", Some("a")), ("c", Some("a")), ("d", Some("b"))]);
    for (shard, key, second) in
        [("a", "k1", 1), ("a", "k2", 9), ("a", "k1", 9), ("b", "k1", 3), ("b", "k1", 4), ("c", "k2", 5), ("d", "k1", 5)]
    {
        model.record(shard, key, second);
    }
    model.close("a");
    model.close("b");
    model
}

#[tokio::test(start_paused = true)]
async fn shards_are_read_parents_first_and_a_child_goes_on_from_its_parents_clock() {
    let model = split();
    let (changes, positions) = captured(&mut open(&model, None).unwrap()).await;
    let of = |wanted: &str| -> Vec<Version> {
        changes.iter().filter(|(key, _)| key == wanted).map(|(_, version)| *version).collect()
    };
    let at = |second: i64, tick: i64| START + second * SECOND + tick;
    assert_eq!(of("k1"), [at(1, 0), at(9, 1), at(9, 2), at(9, 3), at(9, 4)]);
    assert_eq!(of("k2"), [at(9, 0), at(9, 2)]);
    let (last, _) = positions.last().unwrap();
    let known: Vec<&str> = last.streams["books"].shards.keys().map(String::as_str).collect();
    assert_eq!(known, ["c", "d"], "what was read whole is forgotten");
    assert!(positions[1..=7].windows(2).all(|pair| pair[0].1 < pair[1].1), "each commit has a clock of its own");
}

#[tokio::test(start_paused = true)]
async fn capturing_again_from_any_position_gives_the_same_versions() {
    let model = split();
    let (changes, positions) = captured(&mut open(&model, None).unwrap()).await;
    for (place, position) in positions.iter().enumerate() {
        let mut again = captured(&mut open(&model, Some(position.clone())).unwrap()).await.0;
        let mut wanted = changes.get(place..).unwrap_or_default().to_vec();
        again.sort();
        wanted.sort();
        assert_eq!(again, wanted, "after {place} positions");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_shards_floor_is_the_services_date_less_five_seconds_and_what_comes_later_is_above_it() {
    let model = Model::new(&[("a", None)]);
    model.change(|state| state.date_us = START + 30 * SECOND);
    let mut source = open(&model, None).unwrap();
    let (_, positions) = captured(&mut source).await;
    let (last, _) = positions.last().unwrap();
    assert_eq!(last.floor, START + 25 * SECOND);
    // The service's hosts do not agree on the time, or round it down.
    model.record("a", "late", 0);
    let (changes, _) = captured_until_change(&mut source).await;
    assert_eq!(changes, [("late".to_owned(), START + 25 * SECOND + 1)]);
}

async fn captured_until_change(source: &mut DynamoStream) -> (Vec<(String, Version)>, Vec<(DynamoPosition, Version)>) {
    loop {
        let (changes, positions) = captured(source).await;
        if !changes.is_empty() {
            return (changes, positions);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_appears_later_is_read_too() {
    let model = Model::new(&[("a", None)]);
    let mut source = open(&model, None).unwrap();
    captured(&mut source).await;
    model.change(|state| {
        state.shards.insert("b".into(), Shard { parent: Some("a".into()), ..Shard::default() });
    });
    model.record("b", "new", 1);
    model.close("a");
    let (changes, positions) = captured_until_change(&mut source).await;
    assert_eq!(changes[0].0, "new");
    assert!(positions.last().unwrap().0.streams["books"].shards.keys().eq(["b"]));
}

#[tokio::test(start_paused = true)]
async fn an_iterator_that_expired_is_renewed_and_throttling_is_waited_out() {
    let model = Model::new(&[("a", None)]);
    model.record("a", "one", 1);
    let mut source = open(&model, None).unwrap();
    assert_eq!(captured(&mut source).await.0.len(), 1);
    model.change(|state| (state.expired, state.throttled) = (state.iterators, 5));
    model.record("a", "two", 2);
    let (changes, _) = captured_until_change(&mut source).await;
    assert_eq!(changes.len(), 1, "neither lost nor read twice: {changes:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_trimmed_before_it_was_read_halts_with_the_repair() {
    let model = Model::new(&[("a", None)]);
    for second in 1..=4 {
        model.record("a", "k", second);
    }
    let (_, positions) = captured(&mut open(&model, None).unwrap()).await;
    let after_first = positions[1].clone();
    model.change(|state| state.shards.get_mut("a").unwrap().trimmed = 3);
    assert!(is_lost(&failure(open(&model, Some(after_first.clone()))).await));
    model.change(|state| drop(state.shards.remove("a")));
    assert!(is_lost(&failure(open(&model, Some(after_first))).await), "the shard is gone");
}

#[tokio::test(start_paused = true)]
async fn an_iterator_over_a_shard_that_had_no_records_is_made_anew_when_it_is_said_to_be_too_old() {
    let model = Model::new(&[("a", None)]);
    let mut source = open(&model, None).unwrap();
    captured(&mut source).await;
    model.record("a", "of another table", 1);
    model.record("a", "k", 2);
    model.change(|state| state.shards.get_mut("a").unwrap().trimmed = 1);
    let (changes, _) = captured_until_change(&mut source).await;
    assert_eq!(changes, [("k".to_owned(), START + 2 * SECOND)]);
}

#[tokio::test(start_paused = true)]
async fn a_position_older_than_a_day_halts_with_the_repair() {
    let model = Model::new(&[("a", None)]);
    let (_, positions) = captured(&mut open(&model, None).unwrap()).await;
    let last = positions.last().unwrap().clone();
    assert!(open(&model, Some(last.clone())).is_ok());
    model.change(|state| state.date_us += RETENTION_US + 10 * SECOND);
    let error = failure(open(&model, Some(last))).await;
    assert!(is_lost(&error) && error.to_string().contains("24 hours"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_turned_off_or_made_again_halts_with_the_repair() {
    let model = Model::new(&[("a", None)]);
    let (_, positions) = captured(&mut open(&model, None).unwrap()).await;
    let (mut position, clock) = positions.last().unwrap().clone();
    position.streams.get_mut("books").unwrap().arn = "another".into();
    assert!(is_lost(&failure(open(&model, Some((position, clock)))).await));
    model.change(|state| state.is_enabled = false);
    assert!(is_lost(&failure(open(&model, None)).await));
}

#[tokio::test(start_paused = true)]
async fn a_record_without_both_images_halts() {
    let model = Model::new(&[("a", None)]);
    model.record("a", "k", 1);
    model.change(|state| state.shards.get_mut("a").unwrap().records[0].before = None);
    let error = failure(open(&model, None)).await;
    assert!(is_lost(&error) && error.to_string().contains("NEW_AND_OLD_IMAGES"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_removal_by_time_to_live_is_a_delete_that_says_so() {
    let model = Model::new(&[("a", None)]);
    for is_ttl in [true, false] {
        model.record("a", "k", 1);
        model.change(|state| {
            let record = state.shards.get_mut("a").unwrap().records.last_mut().unwrap();
            (record.change, record.after, record.is_ttl) = (ItemChange::Remove, None, is_ttl);
        });
    }
    let mut source = open(&model, None).unwrap();
    let mut removed = Vec::new();
    while removed.len() < 2 {
        if let CaptureEvent::Change(change) = source.next().await.unwrap() {
            assert_eq!(change.op, Op::Delete);
            removed.push(change.images.before.unwrap().pop().unwrap());
        }
    }
    assert_eq!(removed, [Value::Bool(true), Value::Bool(false)]);
}

#[tokio::test(start_paused = true)]
async fn a_record_from_the_future_halts() {
    let model = Model::new(&[("a", None)]);
    model.record("a", "k", 3_600);
    let error = failure(open(&model, None)).await;
    assert!(matches!(error, CaptureError::Halt(_)), "{error}");
}
