//! What the model can do that no claim of a real server shows: faults on demand, weaknesses, the same run for the same
//! seed.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use cutover::{
    database::postgres::{Address, Session},
    log::Topic,
    model::{Coverage, Op, Plan, PlanColumn, PlanRole, TableName, TargetColumn, TargetTable, Version},
    state::lease,
    target::{
        ApplyError, Batch, BatchEvent, Pass, RowEvent, Sink,
        postgres::{ApplyConfig, PostgresSink, SinkOptions},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::{rig::options, tables::parents};
use crate::{
    apply_rig::{EPOCH, PIPELINE},
    simulator::postgres::{
        Change, Fault, Faults, ModelTable, Moment, Point, Postgres, SessionInfo, Settings, SqlError, Value, Watch,
        Weakness,
    },
};

const PARENTS: &str = "public.parents";

/// `parents`, copied column by column.
fn parents_table() -> ModelTable {
    let column = |name: &str, kind: &str| TargetColumn {
        name: name.into(),
        type_sql: kind.into(),
        cast_sql: kind.into(),
        collation: None,
        folds: false,
        not_null: name == "id",
        has_default: false,
        identity: None,
        generated: false,
    };
    let target = TargetTable {
        name: TableName::new("public", "parents"),
        columns: vec![column("id", "bigint"), column("name", "text")],
        key: vec!["id".into()],
        uniques: Vec::new(),
        foreign_keys: Vec::new(),
        replaceable: true,
        has_owners: false,
        elsewhere: false,
        partitioned: false,
    };
    let columns = ["id", "name"].map(|name| PlanColumn { name: name.into(), cast: None, source: Some(name.into()) });
    let plan = Plan {
        source: parents(),
        target: Arc::new(target),
        file: None,
        select: "SELECT id, name FROM parents".into(),
        reads: vec!["id".into(), "name".into()],
        columns: columns.into(),
        identity: String::new(),
        coverage: Coverage::Total,
        role: PlanRole::Whole,
        key_reads: Some(vec![0]),
        one_to_one: true,
    };
    let refused = |row: &[Value]| {
        let bad = row[1] == Value::text("bad");
        bad.then(|| SqlError::of("23514", "parents_name_check", "the name is bad"))
    };
    ModelTable {
        check: Some(Arc::new(refused)),
        ..ModelTable::new(plan, Arc::new(|row| Ok(vec![vec![row.get("id"), row.get("name")]])))
    }
}

/// Faults as a function of the moment.
struct At<F>(F);

impl<F: Fn(&Moment<'_>) -> Fault + Send + Sync> Faults for At<F> {
    fn at(&self, moment: &Moment<'_>) -> Fault {
        (self.0)(moment)
    }
}

fn model(weakness: Weakness, faults: impl Fn(&Moment<'_>) -> Fault + Send + Sync + 'static) -> Arc<Postgres> {
    let settings = Settings { weakness, ..Settings::default() };
    Postgres::with(vec![parents_table()], Arc::new(At(faults)), settings)
}

fn sound() -> Arc<Postgres> {
    model(Weakness::default(), |_| Fault::Continue)
}

fn target(pg: &Arc<Postgres>) -> Address {
    Address::parse("postgresql://cutover@localhost/model").unwrap().through(pg.clone())
}

async fn session(pg: &Arc<Postgres>, name: &str) -> Session {
    Session::open(&target(pg), &options(name, false)).await.unwrap()
}

/// A sink of a topic's first partition, and where it goes on.
struct Lane {
    sink: PostgresSink,
    topic: Topic,
    next: u64,
}

impl Lane {
    async fn open(pg: &Arc<Postgres>, topic: Topic) -> Result<Self, ApplyError> {
        let mut sink = Self::sink(pg, topic).await?;
        let next = sink.claim(EPOCH).await?.next_offset;
        Ok(Lane { sink, topic, next })
    }

    /// As [`Self::open`], for a pass of a replay.
    async fn replaying(pg: &Arc<Postgres>, pass: Pass) -> Result<Self, ApplyError> {
        let mut sink = Self::sink(pg, pass.topic()).await?.replaying(pass);
        let next = sink.claim(EPOCH).await?.next_offset;
        Ok(Lane { sink, topic: pass.topic(), next })
    }

    async fn sink(pg: &Arc<Postgres>, topic: Topic) -> Result<PostgresSink, ApplyError> {
        let options = SinkOptions {
            target: target(pg),
            session: options(&lease::sink_name(PIPELINE, topic, 0), false),
            pipeline: PIPELINE.into(),
            topic,
            partition: 0,
            lease_epoch: 1,
            check_offset: true,
            config: ApplyConfig::default(),
        };
        PostgresSink::open(options, Arc::from([parents_table().plan])).await
    }

    async fn apply(&mut self, events: Vec<BatchEvent>) -> Result<(), ApplyError> {
        let batch = Batch {
            topic: self.topic,
            partition: 0,
            log_epoch: EPOCH.into(),
            from: self.next,
            to: self.next + 1,
            events,
            complete: true,
            control: None,
            chunks: Vec::new(),
            newest_commit_us: None,
        };
        self.sink.apply(batch).await?;
        self.next += 1;
        Ok(())
    }
}

fn event(op: Op, id: i64, name: &str, version: Version) -> BatchEvent {
    let row = json!({ "id": id, "name": name });
    let (before, after) = if op == Op::Delete { (Some(&row), None) } else { (None, Some(&row)) };
    let value = json!({ "before": before, "after": after, "source": {}, "op": op.letter().to_string(), "ts_ms": 0 });
    BatchEvent::Row(RowEvent {
        schema: parents(),
        key: Bytes::from(json!({ "id": id }).to_string()),
        value: Bytes::from(value.to_string()),
        version,
        commit_us: version,
        offset: 0,
    })
}

fn row(id: i64, name: &str, version: Version) -> (Vec<Value>, (Vec<Value>, i64)) {
    (vec![Value::Int(id)], (vec![Value::text(name)], version))
}

/// Writes down every commit with its time.
struct Record {
    pg: Mutex<Option<Arc<Postgres>>>,
    lines: Mutex<Vec<String>>,
}

impl Watch for Record {
    fn committed(&self, session: &SessionInfo, changes: &[Change]) {
        let now = self.pg.lock().unwrap().as_ref().unwrap().now_us();
        let tables: Vec<String> = changes
            .iter()
            .map(|change| format!("{} {:?} -> {:?}", change.table, change.before, change.after))
            .collect();
        self.lines.lock().unwrap().push(format!("{now} {}: {tables:?}", session.application_name));
    }
}

/// Two lanes at work on the same rows, with delays everywhere and a connection lost now and then.
async fn busy(seed: u64) -> Vec<String> {
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    let pg = model(Weakness::default(), move |moment| {
        let mut random = random.lock().unwrap();
        match random.random_range(0..40) {
            0 => Fault::DropConnectionBefore,
            1 if moment.point == Point::Commit => Fault::DropConnectionAfter,
            2 if moment.point == Point::Statement => Fault::Error("40001".into()),
            _ => Fault::Delay(Duration::from_micros(random.random_range(1..5_000))),
        }
    });
    let record = Arc::new(Record { pg: Mutex::new(Some(pg.clone())), lines: Mutex::new(Vec::new()) });
    pg.watch(record.clone());
    let work = |topic: Topic| {
        let pg = pg.clone();
        async move {
            let (mut lane, mut left): (Option<Lane>, i64) = (None, 30);
            while left > 0 {
                match &mut lane {
                    None => lane = Lane::open(&pg, topic).await.ok(),
                    Some(open) => {
                        let op = if topic == Topic::Snapshot { Op::Read } else { Op::Insert };
                        let op = if left % 4 == 0 && topic == Topic::Changes { Op::Delete } else { op };
                        let events = (0..3).map(|id| event(op, id, &format!("{left}"), 100 - left)).collect();
                        match open.apply(events).await {
                            Ok(()) => left -= 1,
                            Err(_) => lane = None,
                        }
                    }
                }
            }
        }
    };
    tokio::join!(work(Topic::Changes), work(Topic::Snapshot));
    pg.check();
    *record.pg.lock().unwrap() = None;
    let lines = std::mem::take(&mut *record.lines.lock().unwrap());
    lines.into_iter().chain([format!("{:?} {:?}", pg.rows(PARENTS), pg.tombstones(PARENTS))]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_seed_gives_one_run() {
    let first = Box::pin(busy(7)).await;
    assert!(first.len() > 60, "{first:#?}");
    assert_eq!(first, Box::pin(busy(7)).await);
    assert_ne!(first, Box::pin(busy(8)).await);
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_is_lost_is_durable_and_one_that_was_cut_off_is_not() {
    for (fault, rows) in
        [(Fault::DropConnectionAfter, 1), (Fault::DropConnectionBefore, 0), (Fault::Error("40001".into()), 0)]
    {
        let armed = Arc::new(Mutex::new(None));
        let pg = model(Weakness::default(), {
            let armed = armed.clone();
            move |moment| match moment.point {
                Point::Commit => armed.lock().unwrap().take().unwrap_or(Fault::Continue),
                Point::Connect | Point::Prepare | Point::Statement | Point::Snapshot => Fault::Continue,
            }
        });
        let mut lane = Lane::open(&pg, Topic::Changes).await.unwrap();
        *armed.lock().unwrap() = Some(fault.clone());
        lane.apply(vec![event(Op::Insert, 1, "a", 5)]).await.unwrap_err();
        assert_eq!(pg.rows(PARENTS).len(), rows, "{fault:?}");
        let lane = Lane::open(&pg, Topic::Changes).await.unwrap();
        assert_eq!(lane.next, rows as u64, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_keeps_what_was_committed_and_an_unreachable_server_takes_nobody_in() {
    let pg = sound();
    let mut lane = Lane::open(&pg, Topic::Changes).await.unwrap();
    lane.apply(vec![event(Op::Insert, 1, "a", 5)]).await.unwrap();
    let open = session(&pg, "open").await;
    open.client.batch_execute("BEGIN").await.unwrap();
    let lock = Postgres::text_of("lock");
    open.client.query(lock, &[&vec![1i64]]).await.unwrap();
    pg.crash();
    assert!(open.client.batch_execute("COMMIT").await.is_err());
    session(&pg, "next").await.client.query(lock, &[&vec![1i64]]).await.unwrap();
    pg.set_reachable(false);
    assert!(matches!(lane.apply(vec![event(Op::Insert, 2, "b", 6)]).await, Err(ApplyError::Unreachable(_))));
    pg.set_reachable(true);
    lane.apply(vec![event(Op::Insert, 2, "b", 6)]).await.unwrap();
    assert_eq!(pg.rows(PARENTS), [row(1, "a", 5), row(2, "b", 6)].into());
}

#[tokio::test(start_paused = true)]
async fn a_stranded_session_keeps_its_locks_until_it_is_ended() {
    let pg = sound();
    let name = lease::sink_name(PIPELINE, Topic::Changes, 0);
    let (old, new) = (session(&pg, &name).await, session(&pg, "new").await);
    let lock = Postgres::text_of("lock");
    old.client.batch_execute("BEGIN").await.unwrap();
    old.client.query(lock, &[&vec![1i64]]).await.unwrap();
    assert_eq!(pg.strand_sessions(|session| session.application_name == name), 1);
    assert!(old.client.batch_execute("COMMIT").await.is_err());
    let waits = tokio::time::timeout(Duration::from_secs(100), new.client.query(lock, &[&vec![1i64]])).await;
    assert!(waits.is_err());
    pg.kill_sessions(|session| session.application_name == "new");
    let new = session(&pg, "new").await;
    lease::end_predecessor(&new.client, PIPELINE).await.unwrap();
    new.client.query(lock, &[&vec![1i64]]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replay_has_offsets_of_its_own_and_notes_what_it_cannot_apply() {
    let pg = sound();
    let mut live = Lane::open(&pg, Topic::Changes).await.unwrap();
    live.apply(vec![event(Op::Insert, 1, "a", 5), event(Op::Insert, 2, "b", 6)]).await.unwrap();
    live.apply(vec![event(Op::Delete, 3, "c", 9)]).await.unwrap();
    let control = session(&pg, "control").await;
    let client = &control.client;
    let topics = ["replay.deletes", "replay.snapshot", "replay.changes"].map(str::to_owned).to_vec();
    let (parts, nexts) = (vec![0i32; 3], vec![0i64, 0, 4]);
    let begin = Postgres::text_of("begin replay");
    client.execute(begin, &[&PIPELINE, &1i64, &"{}", &EPOCH, &topics, &parts, &nexts]).await.unwrap();
    let mut deletes = Lane::replaying(&pg, Pass::Deletes).await.unwrap();
    deletes.apply(vec![event(Op::Delete, 4, "d", 7), event(Op::Insert, 5, "e", 8)]).await.unwrap();
    assert_eq!(pg.rows(PARENTS), [row(1, "a", 5), row(2, "b", 6)].into());
    assert_eq!(pg.tombstones(PARENTS), [(vec![Value::Int(3)], 9), (vec![Value::Int(4)], 7)].into());
    let mut changes = Lane::replaying(&pg, Pass::Changes).await.unwrap();
    assert_eq!((deletes.next, changes.next), (1, 4));
    let bad = |version| vec![event(Op::Insert, 1, "x", version), event(Op::Update, 2, "bad", version)];
    changes.apply(bad(6)).await.unwrap();
    let noted = || {
        let letters = pg.cutover_rows("dead_letters");
        letters.iter().map(|row| (row["version"].int(), row["state"].str().to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(noted(), [(6, "replay".to_owned())]);
    assert_eq!(pg.rows(PARENTS), [row(1, "x", 6), row(2, "b", 6)].into());
    changes.apply(bad(7)).await.unwrap();
    assert_eq!(noted(), [(7, "replay".to_owned())]);
    changes.apply(vec![event(Op::Update, 2, "good", 8)]).await.unwrap();
    assert!(noted().is_empty());
    assert_eq!(pg.rows(PARENTS), [row(1, "x", 7), row(2, "good", 8)].into());
    let end = Postgres::text_of("end replay");
    client.execute(end, &[&PIPELINE, &1i64, &"done", &""]).await.unwrap();
    let lanes = pg.cutover_rows("offsets").iter().map(|row| row["topic"].str().to_owned()).collect::<Vec<_>>();
    assert_eq!(lanes, ["changes"]);
    pg.check();
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "does not know this statement")]
async fn a_statement_that_is_not_known_breaks_the_model() {
    let pg = sound();
    assert!(session(&pg, "a").await.client.query("SELECT 1", &[]).await.is_err());
    pg.check();
}

/// What a weak server ends with where a sound one ends with `sound`.
async fn weak(weakness: Weakness, events: &[(Topic, BatchEvent)]) -> [usize; 2] {
    let mut ends = [0; 2];
    for (end, weakness) in ends.iter_mut().zip([Weakness::default(), weakness]) {
        let pg = model(weakness, |_| Fault::Continue);
        let mut lanes =
            [Lane::open(&pg, Topic::Changes).await.unwrap(), Lane::open(&pg, Topic::Snapshot).await.unwrap()];
        for (topic, event) in events {
            lanes.iter_mut().find(|lane| lane.topic == *topic).unwrap().apply(vec![event.clone()]).await.unwrap();
        }
        *end = pg.rows(PARENTS).values().filter(|(columns, _)| columns[0] == Value::text("right")).count();
    }
    ends
}

#[tokio::test(start_paused = true)]
async fn each_weakness_of_a_statement_shows() {
    let (changes, snapshot) = (Topic::Changes, Topic::Snapshot);
    let buried = [(changes, event(Op::Delete, 1, "x", 6)), (snapshot, event(Op::Read, 1, "right", 5))];
    let newer = [(changes, event(Op::Insert, 1, "right", 6)), (snapshot, event(Op::Read, 1, "wrong", 5))];
    let kept = [(changes, event(Op::Insert, 1, "right", 6)), (changes, event(Op::Delete, 1, "x", 5))];
    let truncate = BatchEvent::Truncate { schema: parents(), version: 6 };
    let fenced = [(changes, truncate), (snapshot, event(Op::Read, 1, "right", 5))];
    let off = Weakness::default();
    for (weakness, events, ends) in [
        (Weakness { no_tombstone_check: true, ..off }, &buried, [0, 1]),
        (Weakness { no_tombstones: true, ..off }, &buried, [0, 1]),
        (Weakness { live_ignores_version: true, ..off }, &newer, [1, 0]),
        (Weakness { dead_ignores_version: true, ..off }, &kept, [1, 0]),
        (Weakness { no_truncate_fence: true, ..off }, &fenced, [0, 1]),
    ] {
        assert_eq!(weak(weakness, events).await, ends, "{weakness:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_weakness_of_the_lane_shows() {
    let off = Weakness::default();
    // Without the check, a second worker moves the offset from where it no longer is.
    for (weakness, moves) in [(off, false), (Weakness { offset_unchecked: true, ..off }, true)] {
        let pg = model(weakness, |_| Fault::Continue);
        let mut first = Lane::open(&pg, Topic::Changes).await.unwrap();
        let mut second = Lane::open(&pg, Topic::Changes).await.unwrap();
        first.apply(vec![event(Op::Insert, 1, "a", 5)]).await.unwrap();
        assert_eq!(second.apply(vec![event(Op::Insert, 1, "a", 5)]).await.is_ok(), moves, "{weakness:?}");
    }
    // Outside the transaction, it moves although the rows do not.
    for (weakness, next) in [(off, 0), (Weakness { offset_outside_transaction: true, ..off }, 1)] {
        let cut = Arc::new(Mutex::new(false));
        let armed = cut.clone();
        let pg = model(weakness, move |moment| {
            let strikes = moment.point == Point::Commit && std::mem::take(&mut *armed.lock().unwrap());
            if strikes { Fault::DropConnectionBefore } else { Fault::Continue }
        });
        let mut lane = Lane::open(&pg, Topic::Changes).await.unwrap();
        *cut.lock().unwrap() = true;
        lane.apply(vec![event(Op::Insert, 1, "a", 5)]).await.unwrap_err();
        assert_eq!(Lane::open(&pg, Topic::Changes).await.unwrap().next, next, "{weakness:?}");
    }
    // Without the lock, nobody waits.
    for (weakness, waits) in [(off, true), (Weakness { no_lane_lock: true, ..off }, false)] {
        let pg = model(weakness, |_| Fault::Continue);
        let (a, b) = (session(&pg, "a").await, session(&pg, "b").await);
        let lock = Postgres::text_of("lock");
        a.client.batch_execute("BEGIN").await.unwrap();
        a.client.query(lock, &[&vec![1i64]]).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(100), b.client.query(lock, &[&vec![1i64]])).await;
        assert_eq!(answer.is_err(), waits, "{weakness:?}");
    }
}

#[tokio::test]
#[ignore = "prints a figure; run it in a release build"]
async fn how_many_statements_the_model_runs_in_a_second() {
    let pg = sound();
    let mut lane = Lane::open(&pg, Topic::Changes).await.unwrap();
    let start = std::time::Instant::now();
    let batches = 5_000;
    for batch in 0..batches {
        let events = (0..4).map(|id| event(Op::Insert, (batch + id) % 50, "x", 10 * batch + id)).collect();
        lane.apply(events).await.unwrap();
    }
    let seconds = start.elapsed().as_secs_f64();
    // BEGIN, lock, offset, mark, live, COMMIT.
    println!(
        "{:.0} statements a second, {:.0} batches of four rows",
        6.0 * batches as f64 / seconds,
        batches as f64 / seconds
    );
}
