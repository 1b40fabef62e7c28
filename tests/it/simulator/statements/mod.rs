//! What the product asks of its state in the target besides moving rows, as scripts that tell what was answered.
//!
//! Here they run on the model alone, and what it must say is written down; `simulator_claims` runs them on real servers
//! too. Times are left out: the model's clock stands still, that of a server does not.

mod cascades;
mod said;
mod set_aside;
mod verifications;

use std::fmt::Debug;

use cutover::{
    database::postgres::{Address, Options, PgError, Session},
    model::{Position, PostgresPosition},
    observe::Event,
    state::{
        Store, lease,
        notes::AfterCopy,
        requests::{Command, RequestState},
        status::Report,
    },
};
use serde_json::json;
use tokio_postgres::types::{ToSql, Type};

pub use cascades::cascades;
pub use set_aside::{letters, replays};
pub use verifications::verifications;

use super::postgres::Postgres;

const PIPELINE: &str = "sim";
const LOG: &str = "log 1";

/// One client at work, with what it was told.
struct Script {
    target: Address,
    store: Store,
    session: Session,
    lines: Vec<String>,
}

type Params<'p> = &'p [&'p (dyn ToSql + Sync)];

impl Script {
    async fn new(target: Address) -> Self {
        let options = |name: &str| Options {
            application_name: name.into(),
            schemas: vec!["public".into()],
            ca_file: None,
            replica: false,
        };
        let session = Session::open(&target, &options("script")).await.unwrap();
        let store = Store::new(PIPELINE, target.clone(), options("store"));
        Script { target, store, session, lines: Vec::new() }
    }

    fn say(&mut self, what: impl Debug) {
        self.lines.push(format!("{what:?}"));
    }

    /// Runs a statement by the model's name for it; tells its rows, or how many it changed.
    async fn run(&mut self, name: &str, params: Params<'_>) {
        let statement = self.session.client.prepare(Postgres::text_of(name)).await.unwrap();
        let answer = if statement.columns().is_empty() {
            let changed = self.session.client.execute(&statement, params).await;
            changed.map(|changed| changed.to_string())
        } else {
            let rows = self.session.client.query(&statement, params).await;
            rows.map(|rows| {
                let mut rows: Vec<String> = rows.iter().map(printed).collect();
                if !Postgres::text_of(name).contains("ORDER BY") {
                    rows.sort();
                }
                rows.join(" ")
            })
        };
        let told = answer.unwrap_or_else(|error| PgError::from(error).sqlstate().to_owned());
        self.lines.push(format!("{name}: {told}"));
    }

    async fn claim(&mut self, topic: &str, part: i32, log: &str) {
        self.run("claim", &[&PIPELINE, &topic, &part, &log, &1i64]).await;
    }

    async fn advance(&mut self, topic: &str, part: i32, to: i64, clock: i64) {
        let position = serde_json::to_string(&position(clock.unsigned_abs())).unwrap();
        let params: Params<'_> =
            &[&PIPELINE, &topic, &part, &LOG, &1i64, &0i64, &to, &Some(position), &clock, &(clock * 10)];
        self.run("advance", params).await;
    }
}

fn position(lsn: u64) -> Position {
    let lsn = format!("0/{lsn:X}").parse().unwrap();
    Position::Postgres(PostgresPosition { lsn, system: "1".into(), timeline: 1, slot: "s".into() })
}

/// A text without what differs from run to run; of JSON the value counts, and not how it is written.
fn plain_text(text: String) -> String {
    let is_id = text.len() == 36 && text.bytes().filter(|byte| *byte == b'-').count() == 4;
    match serde_json::from_str::<serde_json::Value>(&text) {
        _ if is_id => "id".into(),
        Ok(json) => json.to_string(),
        Err(_) => text,
    }
}

/// A row without what differs from run to run.
fn printed(row: &tokio_postgres::Row) -> String {
    let cell = |place: usize| match *row.columns()[place].type_() {
        Type::INT8 => row.get::<_, Option<i64>>(place).map(|value| value.to_string()),
        Type::INT4 => row.get::<_, Option<i32>>(place).map(|value| value.to_string()),
        Type::BOOL => row.get::<_, Option<bool>>(place).map(|value| value.to_string()),
        Type::FLOAT8 => row.get::<_, Option<f64>>(place).map(|_| "time".to_owned()),
        _ => row.get::<_, Option<String>>(place).map(plain_text),
    };
    let cells = (0..row.len()).map(|place| cell(place).unwrap_or_else(|| "null".into()));
    format!("({})", cells.collect::<Vec<_>>().join(" "))
}

/// Requests, from being asked to being answered.
pub async fn requests(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    let first = script.store.ask(Command::Resnapshot, "users").await.unwrap();
    let second = script
        .store
        .ask_with(Command::RetryDeadLetters, &json!({ "ids": [2, 1], "b": null, "aa": "é" }))
        .await
        .unwrap();
    script.say((first, second));
    script.run("open requests", &[&PIPELINE]).await;
    let open = script.store.open_requests().await.unwrap();
    script.say(open);
    script.store.answer(first, RequestState::Done, "queued; \"soon\"").await.unwrap();
    let states = [script.store.request_state(first).await.unwrap(), script.store.request_state(second).await.unwrap()];
    script.say(states);
    let open: Vec<i64> = script.store.open_requests().await.unwrap().iter().map(|request| request.id).collect();
    script.say(open);
    script.run("answer request", &[&"other", &second, &"done", &"x"]).await;
    let times = ["2024-02-29T12:34:56Z", "2024-02-29 12:34:56.25+01:30", "1969-12-31 23:59:59Z", "no time"];
    for text in times {
        let read = script.store.time_us(text).await.unwrap();
        let spelled = script.store.spelled_time(read.unwrap_or_default()).await.unwrap();
        script.say((read, spelled));
    }
    script.lines
}

/// Checkpoints, the transforms in force, and lanes that begin in another log.
pub async fn checkpoints(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    let created = script.store.create_checkpoint("early").await.unwrap();
    script.say(created);
    script.claim("changes", 0, LOG).await;
    script.claim("changes", 1, LOG).await;
    script.claim("snapshot", 0, LOG).await;
    script.advance("changes", 0, 5, 50).await;
    script.advance("changes", 1, 7, 40).await;
    for (hash, log, plans) in
        [("h", LOG, "[]"), ("h", LOG, "[ ]"), ("i", LOG, "[]"), ("i", "log 2", "[1]"), ("i", "log 2", "[2]")]
    {
        script
            .run("note transforms", &[&PIPELINE, &hash, &log, &"[{\"changes\": [], \"snapshot\": []}, 3]", &plans])
            .await;
    }
    script.run("transforms in force", &[&PIPELINE, &"log 2"]).await;
    script.store.note_transforms(LOG, 2, "none", &[]).await.unwrap();
    script.store.note_transforms(LOG, 2, "none", &[]).await.unwrap();
    let in_force = script.store.transforms(LOG).await.unwrap();
    let clocks: Vec<i64> = in_force.iter().map(|one| one.clock).collect();
    script.say(clocks);
    for name in ["b", "a", "b"] {
        let created = script.store.create_checkpoint(name).await.unwrap().map(|point| (point.offsets, point.clock));
        script.say(created);
    }
    // Which of them was made first, only a clock that goes tells.
    let mut known = script.store.checkpoints().await.unwrap();
    known.sort_by(|a, b| a.name.cmp(&b.name));
    let known: Vec<_> =
        known.into_iter().map(|known| (known.name, known.created.len(), known.point.position)).collect();
    script.say(known);
    script.run("positions", &[&PIPELINE, &LOG]).await;
    script.run("lane seen", &[&PIPELINE, &1i32, &LOG]).await;
    script.run("lanes are fresh", &[&PIPELINE, &vec![1i32, 9], &450i64]).await;
    script.run("fence", &[&PIPELINE, &"shop.users", &3i64]).await;
    let fences = script.store.fences().await.unwrap();
    script.say(fences);
    begin_logs(&mut script).await;
    script.lines
}

/// A chunk that one of two partitions has passed is copied through the next log by both.
async fn begin_logs(script: &mut Script) {
    let names = vec!["users".to_owned()];
    script.run("register tables", &[&PIPELINE, &names]).await;
    script.run("add chunk", &[&PIPELINE, &"users", &1i64, &1i64, &None::<&str>, &None::<&str>, &true]).await;
    script.claim("snapshot", 1, LOG).await;
    for (log, parts) in [(LOG, [0i32, 1]), ("log 2", [1, 1]), ("log 2", [1, 0])] {
        script.run("begin log", &[&PIPELINE, &log, &2i32]).await;
        for part in parts.into_iter().take(if log == LOG { 1 } else { 2 }) {
            script.claim("snapshot", part, log).await;
            script.store.advance_snapshot(part.cast_unsigned(), 2, 1, log, 9, &[chunk_end()]).await.unwrap();
        }
        script.run("chunks", &[&PIPELINE, &"users", &1i64]).await;
    }
    script.run("begin log", &[&PIPELINE, &"log 3", &1i32]).await;
    let beginning = serde_json::to_string(&position(60)).unwrap();
    script.run("lanes begin", &[&PIPELINE, &"log 3", &3i32, &beginning, &60i64]).await;
    script.run("lanes begin", &[&PIPELINE, &"log 3", &3i32, &beginning, &70i64]).await;
    let mut lanes = script.session.client.query(Postgres::text_of("lanes"), &[&PIPELINE, &LOG]).await.unwrap();
    lanes.sort_by_key(|row| (row.get::<_, String>(0), row.get::<_, i32>(1)));
    script.lines.extend(lanes.iter().map(printed));
}

fn chunk_end() -> cutover::log::record::ChunkEnd {
    cutover::log::record::ChunkEnd { table: "users".into(), generation: 1, chunk: 1, rows: 3 }
}

/// The lease with the numbers beside it, those who apply, and what `status` says of it all.
pub async fn status(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    script.run("draw number", &[&PIPELINE]).await;
    let holder = Script::new(script.target.clone()).await;
    let taken = lease::acquire(&holder.session.client, PIPELINE, "worker", "host:1").await.unwrap().unwrap();
    let raised = lease::raise(&holder.session.client, PIPELINE, "worker", taken).await.unwrap().unwrap();
    let late = lease::raise(&holder.session.client, PIPELINE, "worker", taken).await.unwrap();
    script.say((taken, raised, late, lease::draw(&holder.session.client, PIPELINE).await.unwrap()));
    script.run("lease state", &[&PIPELINE]).await;
    script.run("mark leader", &[&PIPELINE, &raised.epoch, &"t"]).await;
    script.run("mark leader as applying", &[&PIPELINE, &raised.epoch]).await;
    script.run("mark leader as applying", &[&PIPELINE, &raised.epoch]).await;
    script.run("lease state", &[&PIPELINE]).await;
    script.run("blocks leader", &[&PIPELINE, &"t", &true]).await;
    let _other = lease::acquire(&holder.session.client, PIPELINE, "apply 1", "host:2").await.unwrap().unwrap();
    script.run("blocks leader", &[&PIPELINE, &"t", &true]).await;
    script.run("members", &[&PIPELINE]).await;
    script.store.set_note("report apply 1", "{\"partitions\":[1],\"halted\":null,\"retrying\":{}}").await.unwrap();
    script.store.set_note("applied users", "5").await.unwrap();
    script.store.set_note("after_copy", AfterCopy::Pending.name()).await.unwrap();
    script.run("register tables", &[&PIPELINE, &vec!["users".to_owned(), "items".into()]]).await;
    script.run("copying", &[&PIPELINE, &"users", &1i64, &10i64]).await;
    let report = Report { lease_epoch: raised.epoch, ..Default::default() };
    script.store.report(&report).await.unwrap();
    script.show().await;
    script.claim("changes", 0, LOG).await;
    script.advance("changes", 0, 5, 50).await;
    script.dead_letter("{\"id\":1}", 5).await;
    script.run("follow only", &[&PIPELINE]).await;
    script.run("script ran", &[&PIPELINE]).await;
    script.show().await;
    lease::release(&holder.session.client, PIPELINE, "worker", raised).await.unwrap();
    script.show().await;
    script.lines
}

impl Script {
    async fn show(&mut self) {
        let status = self.store.status().await.unwrap();
        let said = (status.phase, status.worker_running, status.tables, status.waiting, status.dead_letters);
        let times = (status.lag_seconds.is_some(), status.dead_letters_oldest_seconds.is_some());
        let (appliers, replay) = (status.appliers, status.replay.is_some());
        self.say((said, times, appliers, replay));
    }

    async fn dead_letter(&mut self, key: &str, version: i64) {
        let texts = |text: &str| vec![text.to_owned()];
        let (source, key, state) = (texts("shop.users"), texts(key), texts("22P02"));
        let (error, record) = (texts("bad"), texts("{\"a\": 1}"));
        let (schema, offset) = (vec![1i64], vec![2i64]);
        let params: Params<'_> =
            &[&PIPELINE, &"changes", &0i32, &source, &key, &vec![version], &schema, &offset, &state, &error, &record];
        self.run("dead letters", params).await;
    }
}

/// Events, told, carried and forgotten.
pub async fn events(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    let moved = |to: &str| Event::PhaseChanged { from: None, to: to.into(), halted: None };
    let queued = [moved("a"), moved("b")].map(|event| event.body(PIPELINE, 1_709_210_096_000).unwrap()).to_vec();
    script.run("queue events", &[&PIPELINE, &queued]).await;
    let bodies = vec!["{\"ts_ms\": 0}".to_owned()];
    script.run("tell events", &[&PIPELINE, &bodies, &1i64, &"told", &10i64]).await;
    let _lease = lease::acquire(&script.session.client, PIPELINE, "worker", "host:1").await.unwrap().unwrap();
    script.run("tell events", &[&PIPELINE, &bodies, &2i64, &"told", &10i64]).await;
    script.run("tell events", &[&PIPELINE, &bodies, &1i64, &"told", &2i64]).await;
    script.run("tell events", &[&PIPELINE, &bodies, &1i64, &"told", &3i64]).await;
    let told = (script.store.note("events told").await.unwrap(), script.store.note("events").await.unwrap());
    script.say(told);
    script.run("events to carry", &[&PIPELINE, &2i64]).await;
    script.run("events carried", &[&PIPELINE, &2i64, &0i64]).await;
    script.run("events to carry", &[&PIPELINE, &2i64]).await;
    let shown = script.store.events_after(1).await.unwrap().into_iter();
    let shown: Vec<_> = shown.map(|shown| (shown.event.sequence, shown.event.body, shown.at)).collect();
    script.say(shown);
    script.run("events carried", &[&PIPELINE, &3i64, &2i64]).await;
    script.run("events after", &[&PIPELINE, &0i64]).await;
    script.run("register tables", &[&PIPELINE, &vec!["users".to_owned()]]).await;
    script.run("seen tables", &[&PIPELINE]).await;
    script.run("copying", &[&PIPELINE, &"users", &1i64, &10i64]).await;
    script.run("finish copy", &[&PIPELINE, &"users", &1i64]).await;
    script.run("seen tables", &[&PIPELINE]).await;
    script.lines
}
