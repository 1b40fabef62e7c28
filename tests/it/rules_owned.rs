//! Rule 37: two source rows, one target key, in different batches. At the sink, by histories in any order, and with
//! real sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cutover::{
    log::Topic,
    model::{ColumnType, TableSchema, Version},
    target::{BatchEvent, postgres::prepare_target},
};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use serde_json::{Value, json};

use crate::{
    apply_rig::{Rig, delete, insert, read, table, update},
    dlq::said,
    follow::PATIENCE,
    rules_rig,
    support::{Mysql, Postgres, Workspace, eventually},
};

const DDL: &str = "CREATE TABLE codes (code text PRIMARY KEY, note text)";
const SELECT: &str = "SELECT lower(code) AS code, note FROM codes";
/// One row of each, a filter, and what may be many.
const SHAPES: [&str; 3] = ["", " WHERE note <> 'hidden'", ", generate_series(1, 1) one"];
const SHOWN: &str = "ROW(code, note)";
const OPEN: &str = "cutover.dead_letters WHERE state = 'open'";

fn codes() -> Arc<TableSchema> {
    table("codes", &[("code", ColumnType::Text), ("note", ColumnType::Text)])
}

fn row(code: &str, note: &str) -> Value {
    json!({ "code": code, "note": note })
}

async fn rig(shape: &str) -> Rig {
    let sql = format!("{SELECT}{shape}");
    let rig = Rig::new(DDL, &[codes()], &[("codes.sql", &sql)]).await;
    assert!(rig.plans[0].is_owned(), "{sql}");
    rig
}

async fn letters(rig: &Rig) -> Vec<String> {
    rig.rows("key_text", OPEN).await
}

#[tokio::test]
async fn rule_37_the_first_source_row_keeps_the_key_and_the_other_is_told_until_it_is_gone() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![insert(&codes, 1, &row("A", "first"))]).await;
        let applied = lane.apply(vec![insert(&codes, 2, &row("a", "second")), insert(&codes, 3, &row("b", "b"))]).await;
        assert_eq!(applied.dead_letters, 1, "{shape}");
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,first)", "(b,b)"], "{shape}");
        let error = rig.pg.value("SELECT error FROM cutover.dead_letters").await.unwrap();
        assert!(error.contains("two source rows map to one target key"), "{error}");
        // The row is still its owner's, whose changes go on.
        lane.apply(vec![update(&codes, 4, &row("A", "first"), &row("A", "changed"))]).await;
        let applied = lane.apply(vec![update(&codes, 5, &row("a", "second"), &row("a", "third"))]).await;
        assert_eq!(applied.dead_letters, 1, "{shape}");
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,changed)", "(b,b)"], "{shape}");
        lane.apply(vec![delete(&codes, 6, &row("A", "changed"))]).await;
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(b,b)"], "{shape}");
        // Nobody has the key any more: the next fact of the other takes it.
        let applied = lane.apply(vec![update(&codes, 7, &row("a", "third"), &row("a", "fourth"))]).await;
        assert_eq!(applied.dead_letters, 0, "{shape}");
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,fourth)", "(b,b)"], "{shape}");
        assert_eq!(letters(&rig).await, [""; 0], "{shape}");
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
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,first)"], "{shape}");
        assert_eq!(letters(&rig).await, [""; 0], "{shape}");
    }
}

#[tokio::test]
async fn rule_37_a_key_that_its_owner_leaves_in_the_same_batch_is_free() {
    for shape in SHAPES {
        let (rig, codes) = (rig(shape).await, codes());
        let mut lane = rig.lane(Topic::Changes).await;
        lane.apply(vec![insert(&codes, 1, &row("A", "first")), insert(&codes, 2, &row("C", "c"))]).await;
        // A source key that changes its spelling is a delete and an insert; another row of the batch is refused.
        let batch = vec![
            insert(&codes, 3, &row("c", "refused")),
            delete(&codes, 4, &row("A", "first")),
            insert(&codes, 5, &row("a", "renamed")),
        ];
        assert_eq!(lane.apply(batch).await.dead_letters, 1, "{shape}");
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,renamed)", "(c,c)"], "{shape}");
        assert_eq!(letters(&rig).await, [r#"{"code":"c"}"#], "{shape}");
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
        assert_eq!(applied.dead_letters, 0, "{shape}");
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,copied)"], "{shape}");
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
    let (ours, theirs) = tokio::join!(first.apply(ours), second.apply(theirs));
    assert_eq!(ours.dead_letters + theirs.dead_letters, 300);
    assert_eq!(rig.count("codes").await, 300);
}

#[tokio::test]
async fn rule_37_rows_from_before_have_no_owner_until_one_comes() {
    let (rig, codes) = (rig("").await, codes());
    rig.pg.exec("INSERT INTO codes VALUES ('a', 'before'), ('b', 'before')").await;
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&codes, 1, &row("A", "first")), delete(&codes, 2, &row("B", "x"))]).await;
    assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,first)"]);
    assert_eq!(lane.apply(vec![insert(&codes, 3, &row("a", "second"))]).await.dead_letters, 1);
}

#[tokio::test]
async fn rule_37_a_row_that_a_new_copy_has_not_met_is_nobodys() {
    let (rig, codes) = (rig("").await, codes());
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&codes, 1, &row("A", "gone unseen"))]).await;
    rig.pg.exec("INSERT INTO cutover.fences VALUES ('test', 'shop.codes', 5)").await;
    let mut copy = rig.lane(Topic::Snapshot).await;
    assert_eq!(copy.apply(vec![read(&codes, 6, &row("a", "copied"))]).await.dead_letters, 0);
    assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,copied)"]);
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
    ];
    assert_eq!(lane.apply(swap).await.waiting, 0);
    assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,two)", "(b,one)"]);
    assert_eq!(lane.apply(vec![insert(&codes, 5, &row("a", "three"))]).await.dead_letters, 1);
}

#[tokio::test]
async fn keys_that_are_proven_to_be_one_to_one_cost_no_owner() {
    let plain = "SELECT code, note FROM codes";
    let rig = Rig::new(DDL, &[codes()], &[("codes.sql", plain)]).await;
    assert!(rig.plans[0].one_to_one);
    let columns = "SELECT count(*) FROM pg_attribute WHERE attname = 'cutover_owner'";
    assert_eq!(rig.pg.value(columns).await.as_deref(), Some("0"));
}

#[tokio::test]
async fn rule_37_a_target_gets_owners_and_loses_them_with_its_transform_and_keeps_its_tombstones() {
    let plain = "SELECT code, note FROM codes";
    let mut rig = Rig::new(DDL, &[codes()], &[("codes.sql", plain)]).await;
    let codes = codes();
    let mut lane = rig.lane(Topic::Changes).await;
    lane.apply(vec![insert(&codes, 5, &row("a", "kept")), delete(&codes, 6, &row("b", "gone"))]).await;
    let owned = crate::apply_rig::checked(&rig.pg, std::slice::from_ref(&codes), &[("codes.sql", SELECT)]).await.plans;
    for plans in [owned.clone(), rig.plans.to_vec(), owned] {
        rig.plans = plans.clone().into();
        for plan in &plans {
            prepare_target(&rig.session().await, plan).await.unwrap();
        }
        let mut lane = rig.lane(Topic::Changes).await;
        // Whoever deleted it: what is older stays away.
        let late = lane.apply(vec![insert(&codes, 3, &row("b", "late"))]).await;
        assert_eq!((late.dead_letters, late.tables["codes"].stale), (0, 1));
        assert_eq!(rig.rows(SHOWN, "codes").await, ["(a,kept)"]);
    }
}

/// A source whose rows claim each other's keys at the target.
#[derive(Default)]
struct Source {
    rows: BTreeMap<String, (Version, String)>,
    clock: Version,
}

const CODES: [&str; 8] = ["a", "A", "bb", "bB", "BB", "c", "C", "d"];

impl Source {
    /// A change of a random row, as the log has it.
    fn change(&mut self, random: &mut StdRng) -> BatchEvent {
        self.clock += 1;
        let code = (*CODES.choose(random).unwrap()).to_owned();
        let note = if random.random_bool(0.2) { "hidden".to_owned() } else { format!("v{}", self.clock) };
        match self.rows.get(&code).cloned() {
            Some((_, before)) if random.random_bool(0.4) => {
                self.rows.remove(&code);
                delete(&codes(), self.clock, &row(&code, &before))
            }
            Some((_, before)) => {
                self.rows.insert(code.clone(), (self.clock, note.clone()));
                update(&codes(), self.clock, &row(&code, &before), &row(&code, &note))
            }
            None => {
                self.rows.insert(code.clone(), (self.clock, note.clone()));
                insert(&codes(), self.clock, &row(&code, &note))
            }
        }
    }
}

/// Every row of the source that the transform lets through is at the target, as it is, or has an open letter of its
/// newest state; and nothing else is there. The codes of the letters.
async fn shown_or_told(rig: &Rig, source: &Source, shape: &str, what: &str) -> BTreeSet<String> {
    let filters = shape.contains("WHERE");
    let passes = |note: &String| !filters || note != "hidden";
    let shown = rig.pg.query("SELECT code, note FROM codes").await;
    let shown: BTreeMap<String, String> =
        shown.into_iter().map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap())).collect();
    let told = rig.pg.query(&format!("SELECT key ->> 'code', max(version) FROM {OPEN} GROUP BY 1")).await;
    let mut told: BTreeMap<String, Version> =
        told.into_iter().map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap().parse().unwrap())).collect();
    let mut explained = BTreeSet::new();
    for (code, (version, note)) in source.rows.iter().filter(|(_, (_, note))| passes(note)) {
        let key = code.to_lowercase();
        match told.remove(code) {
            Some(letter) => assert!(letter >= *version, "{what}: {code} is told of at {letter}, not at {version}"),
            None => {
                assert_eq!(shown.get(&key), Some(note), "{what}: {code} is neither shown nor told");
                assert!(explained.insert(key), "{what}: {code} and another are one row");
            }
        }
    }
    let letters: BTreeSet<String> = source.rows.keys().cloned().collect();
    assert!(told.is_empty(), "{what}: letters of rows that are not there: {told:?} of {letters:?}");
    assert_eq!(shown.keys().cloned().collect::<BTreeSet<_>>(), explained, "{what}: rows of nobody");
    rig.rows("key ->> 'code'", OPEN).await.into_iter().collect()
}

async fn history(seed: u64, batch_rows: usize, shape: &str) {
    let what = format!("seed {seed}, batches of {batch_rows}, {SELECT}{shape}");
    let mut random = StdRng::seed_from_u64(seed);
    let (rig, mut source) = (rig(shape).await, Source { clock: 1_000, ..Source::default() });
    let (mut changes, mut copies): (Vec<BatchEvent>, Vec<BatchEvent>) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        changes.push(source.change(&mut random));
        if random.random_bool(0.1) {
            let clock = source.clock;
            copies.extend(source.rows.iter().map(|(code, (_, note))| read(&codes(), clock, &row(code, note))));
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
            lanes[which].apply(events).await;
        }
    }
    let told = shown_or_told(&rig, &source, shape, &what).await;
    // A retry reads the source again; a key that is free then is taken.
    source.clock += 1;
    let clock = source.clock;
    let read = |code: &String| read(&codes(), clock, &row(code, &source.rows[code].1));
    lanes[1].apply(told.iter().map(read).collect()).await;
    let told = shown_or_told(&rig, &source, shape, &what).await;
    let passing = source.rows.iter().filter(|(_, (_, note))| !shape.contains("WHERE") || note != "hidden");
    let keys: BTreeSet<String> = passing.clone().map(|(code, _)| code.to_lowercase()).collect();
    assert_eq!(told.len(), passing.count() - keys.len(), "{what}: each key has a row, and all others are told");
}

#[tokio::test]
async fn rule_37_any_order_and_any_batch_size_show_each_row_or_tell_of_it() {
    for seed in 0..4 {
        for batch_rows in [1, 3, 20] {
            for shape in SHAPES {
                Box::pin(history(seed, batch_rows, shape)).await;
            }
        }
    }
}

const ROWS: &str = "SELECT code, n FROM t ORDER BY code";
const AT_TARGET: &str = "CREATE TABLE t (code text PRIMARY KEY, n int)";

/// The life of two rows that claim one key, with a real source.
async fn contested(source: Mysql, collation: &str, target: Postgres) {
    let at_source = format!("CREATE TABLE t (code varchar(10) COLLATE {collation} PRIMARY KEY, n int)");
    let rig = rules_rig::Rig::new(source, target, &["t"], &at_source, AT_TARGET).await;
    rig.work.transform("t", "SELECT lower(code) AS code, n FROM t");
    rig.source.exec("INSERT INTO t VALUES ('A', 1), ('b', 2)").await;
    let mut worker = rig.following().await;
    rig.source.exec("INSERT INTO t VALUES ('a', 9), ('c', 3)").await;
    rig.eventually("told", async |status| status["dead_letters"] == 1).await;
    rig.target_has(ROWS, "a 1, b 2, c 3").await;
    rig.source.exec("DELETE FROM t WHERE code = 'a'; UPDATE t SET n = 4 WHERE code = 'A'").await;
    rig.target_has(ROWS, "a 4, b 2, c 3").await;
    rig.eventually("no letter of a row that is gone", async |status| status["dead_letters"] == 0).await;
    // What is refused stays refused until the first has gone, through a restart.
    rig.source.exec("INSERT INTO t VALUES ('a', 5)").await;
    rig.eventually("told again", async |status| status["dead_letters"] == 1).await;
    let (code, text) = said(&rig, &["dlq", "retry", "--all"]).await;
    assert_eq!(code, Some(1), "{text}");
    worker.kill9().await;
    rig.source.exec("DELETE FROM t WHERE code = 'A'").await;
    let _worker = rig.work.start(&[]);
    rig.target_has("SELECT count(*) FROM t WHERE n IN (4, 9)", "0").await;
    let (code, text) = said(&rig, &["dlq", "retry", "--all"]).await;
    assert_eq!(code, Some(0), "{text}");
    rig.target_has(ROWS, "a 5, b 2, c 3").await;
    // A new copy changes nothing of that.
    rig.source.exec("INSERT INTO t VALUES ('C', 6)").await;
    rig.eventually("told", async |status| status["dead_letters"] == 1).await;
    let (code, text) = said(&rig, &["resnapshot", "t"]).await;
    assert_eq!(code, Some(0), "{text}");
    rig.eventually("copied again", async |status| status["synced"] == true).await;
    rig.target_has("SELECT count(*), count(*) FILTER (WHERE code = 'c' AND n IN (3, 6)) FROM t", "3 1").await;
    rig.eventually("still told", async |status| status["dead_letters"] == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_rows_that_claim_one_key_take_turns_on_mysql_57() {
    contested(Mysql::v57().await, "utf8mb4_bin", Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_rows_that_claim_one_key_take_turns_on_mysql_97() {
    contested(Mysql::v97().await, "utf8mb4_bin", Postgres::v18().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_rows_that_claim_one_key_take_turns_on_mariadb() {
    contested(Mysql::mariadb().await, "utf8mb4_bin", Postgres::v15().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_rows_that_claim_one_key_take_turns_on_postgresql() {
    let (source, target) = (Postgres::v15().await, Postgres::v18().await);
    source.exec("CREATE TABLE t (code text PRIMARY KEY, n int); INSERT INTO t VALUES ('A', 1), ('b', 2)").await;
    target.exec(AT_TARGET).await;
    let work = Workspace::new(source.database(), &source.url(), &target.url(), &["t"]);
    work.transform("t", "SELECT lower(code) AS code, n FROM t");
    let _worker = work.start(&[]);
    let has = async |wanted: &str| {
        eventually(wanted, PATIENCE, async || rules_rig::joined(&target.query(ROWS).await) == wanted).await;
    };
    has("a 1, b 2").await;
    source.exec("INSERT INTO t VALUES ('a', 9), ('c', 3)").await;
    has("a 1, b 2, c 3").await;
    source.exec("DELETE FROM t WHERE code = 'a'").await;
    source.exec("UPDATE t SET n = 4 WHERE code = 'A'").await;
    has("a 4, b 2, c 3").await;
    // A key that changes its spelling is the same key at the target.
    source.exec("UPDATE t SET code = 'a' WHERE code = 'A'").await;
    source.exec("UPDATE t SET n = 5 WHERE code = 'a'").await;
    has("a 5, b 2, c 3").await;
    assert_eq!(target.query(&format!("SELECT key_text FROM {OPEN}")).await, Vec::<Vec<Option<String>>>::new());
}
