//! Running the same script on real servers and on the model, and writing down what happened in the same words.
//!
//! A script is a list of statements, each on a session. The next one is sent when the one before has answered or waits
//! for a lock. What is written down: answers, SQLSTATEs, who waited and after which statement it went on, and the
//! tables at the end.

use std::{sync::Arc, time::Duration};

use cutover::{
    database::postgres::{Address, Options, Session},
    model::Plan,
    state::format,
    target::postgres::{Builder, prepare_target},
};
use tokio::task::JoinHandle;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::tables::{self, TRANSFORMS};
use crate::{
    apply_rig::{PIPELINE, checked},
    simulator::postgres::{self as model, Deferral, NoFaults, Settings},
    support,
};

const POLL_EVERY: Duration = Duration::from_millis(2);
/// Long enough for all who are to be in a deadlock to get there, on a busy machine too: the first looks first.
const DEADLOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than a busy machine is late.
const PAUSE: Duration = Duration::from_secs(1);
const STEP_LIMIT: Duration = Duration::from_secs(20);

/// A server: a real one, or the model.
pub enum Server {
    Real(Box<support::Postgres>),
    Model(Arc<model::Postgres>),
}

/// A server with the tables of the claims, and their plans.
pub struct Rig {
    pub name: &'static str,
    pub server: Server,
    pub plans: Arc<[Plan]>,
    deferral: Deferral,
}

/// Two real servers and the model, with foreign keys that are checked so.
pub async fn rigs(deferral: Deferral) -> Vec<Rig> {
    let mut rigs = Vec::new();
    for (name, pg) in [("15", support::Postgres::v15().await), ("18", support::Postgres::v18().await)] {
        rigs.push(real(name, pg, deferral).await);
    }
    let plans = rigs[0].plans.clone();
    let server = Server::Model(fresh(&plans, deferral));
    rigs.push(Rig { name: "model", server, plans, deferral });
    rigs
}

/// An empty model.
fn fresh(plans: &[Plan], deferral: Deferral) -> Arc<model::Postgres> {
    let settings = Settings { replica_allowed: true, ..Settings::default() };
    let pg = model::Postgres::with(tables::model(plans, deferral), Arc::new(NoFaults), settings);
    pg.set_deadlock_timeout(DEADLOCK_TIMEOUT);
    pg
}

async fn real(name: &'static str, pg: support::Postgres, deferral: Deferral) -> Rig {
    pg.exec(&tables::ddl(deferral)).await;
    let sources = [tables::users(), tables::parents(), tables::children()];
    let checked = checked(&pg, &sources, &TRANSFORMS).await;
    assert!(checked.passed(), "{:#?}", checked.problems);
    let session = Session::open(&Address::parse(&pg.url()).unwrap(), &options("prepare", false)).await.unwrap();
    format::ensure(&session.client).await.unwrap();
    for plan in &checked.plans {
        prepare_target(&session, plan).await.unwrap();
    }
    // What survives a crash of the server is not what is claimed here.
    for setting in
        ["synchronous_commit = off".to_owned(), format!("deadlock_timeout = {}", DEADLOCK_TIMEOUT.as_millis())]
    {
        pg.exec(&format!("ALTER DATABASE {} SET {setting}", pg.database())).await;
    }
    let pg = Server::Real(Box::new(pg));
    Rig { name, server: pg, plans: checked.plans.into(), deferral }
}

pub fn options(name: &str, replica: bool) -> Options {
    Options { application_name: name.into(), schemas: vec!["public".into()], ca_file: None, replica }
}

impl Rig {
    pub fn target(&self) -> Address {
        match &self.server {
            Server::Real(pg) => Address::parse(&pg.url()).unwrap(),
            Server::Model(pg) => {
                Address::parse("postgresql://cutover_admin@localhost/model").unwrap().through(pg.clone())
            }
        }
    }

    pub async fn session(&self, name: &str, replica: bool) -> Session {
        Session::open(&self.target(), &options(name, replica)).await.unwrap()
    }

    /// Empties every table.
    pub async fn clean(&mut self) {
        match &mut self.server {
            Server::Real(pg) => {
                let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
                    WHERE schemaname IN ('public', 'cutover') AND tablename <> 'format' ORDER BY tablename <> 'children'";
                let mut sql = String::new();
                for table in pg.query(tables).await {
                    sql += &format!("DELETE FROM {};", table[0].as_ref().unwrap());
                }
                pg.exec(&sql).await;
                pg.exec("ALTER SEQUENCE cutover.dead_letters_id_seq RESTART").await;
            }
            Server::Model(pg) => *pg = fresh(&self.plans, self.deferral),
        }
    }

    /// Whether the session of this name waits for a lock.
    async fn waits(&self, name: &str) -> bool {
        match &self.server {
            Server::Real(pg) => {
                let waits = "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = current_database()";
                let count = pg.value(&format!("SELECT count(*) {waits} AND application_name = '{name}'")).await;
                count.unwrap() != "0"
            }
            Server::Model(pg) => pg.waiting_sessions().iter().any(|session| session.application_name == name),
        }
    }

    /// A table's rows as text, in the order of that text; columns of cutover's tables by name.
    pub async fn dump(&self, table: &str, columns: &[&str]) -> Vec<String> {
        let text = |cells: Vec<Option<String>>| -> String {
            cells.into_iter().map(|cell| cell.unwrap_or_else(|| "null".into())).collect::<Vec<_>>().join(" ")
        };
        let mut rows: Vec<String> = match &self.server {
            Server::Real(pg) => {
                let rows = pg.query(&format!("SELECT {} FROM {table}", columns.join(", "))).await;
                rows.into_iter().map(text).collect()
            }
            Server::Model(pg) => {
                let rows = pg.all_rows(table);
                let pick = |row: &std::collections::BTreeMap<String, model::Value>| {
                    text(columns.iter().map(|column| row[*column].print()).collect())
                };
                rows.iter().map(pick).collect()
            }
        };
        rows.sort();
        rows
    }

    /// Every table that a sink writes.
    pub async fn tables(&self) -> Vec<String> {
        let mut all = Vec::new();
        for plan in self.plans.iter() {
            let name = &plan.target.name;
            let mut columns: Vec<&str> = plan.target.columns.iter().map(|column| column.name.as_str()).collect();
            columns.push("cutover_version");
            all.push((name.to_string(), columns.clone()));
            columns = plan.target.key.iter().map(String::as_str).chain(["cutover_version"]).collect();
            all.push((cutover::target::postgres::tombstone_table(name).to_string(), columns));
        }
        for (table, columns) in [
            ("offsets", &["topic", "part", "log_epoch", "next_offset", "lease_epoch", "clock", "newest_commit_us"][..]),
            ("dead_letters", &["source_table", "key_text", "version", "topic", "sqlstate", "record", "state"]),
            ("waiting", &["source_table", "key_text", "version", "attempts"]),
            ("fences", &["source_table", "version"]),
            ("cascades", &["child", "kind", "key_text", "version", "depth", "held", "hides"]),
            ("schemas", &["id", "source_table", "clock"]),
        ] {
            all.push((format!("cutover.{table}"), columns.to_vec()));
        }
        let mut lines = Vec::new();
        for (table, columns) in all {
            lines.extend(self.dump(&table, &columns).await.into_iter().map(|row| format!("{table}: {row}")));
        }
        lines
    }
}

pub type Param = Arc<dyn ToSql + Sync + Send>;

/// A statement's text.
pub type Text = Arc<dyn Fn(&[Plan]) -> String + Send + Sync>;

/// What a session is told to do.
#[derive(Clone)]
pub enum What {
    /// A simple query.
    Simple(&'static str),
    /// Nothing, for a while.
    Pause,
    /// A statement by its text, which may depend on the plans.
    Run(Text, Vec<Param>),
}

/// One step: on which session, what.
pub type Step = (&'static str, What);

pub fn simple(session: &'static str, sql: &'static str) -> Step {
    (session, What::Simple(sql))
}

pub fn pause(session: &'static str) -> Step {
    (session, What::Pause)
}

/// A statement of the product, by the model's name for it.
pub fn run(session: &'static str, name: &'static str, params: Vec<Param>) -> Step {
    (session, What::Run(Arc::new(move |_| model::Postgres::text_of(name).to_owned()), params))
}

pub fn param(value: impl ToSql + Sync + Send + 'static) -> Param {
    Arc::new(value)
}

/// Which statement of a plan.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    Dead,
    Gone,
    Live,
    Replace,
    Clashes,
    Orphans,
    Unmatched,
}

/// A statement of the plan for this target, with images `(version, dead, columns that the plan reads)`.
pub fn plan(session: &'static str, target: &'static str, part: Part, images: &[(i64, bool, &[Option<&str>])]) -> Step {
    let versions: Vec<i64> = images.iter().map(|image| image.0).collect();
    let dead: Vec<bool> = images.iter().map(|image| image.1).collect();
    let mut params = vec![param(versions)];
    let marked = match (target, part) {
        ("user_tags", _) | ("open_users", Part::Dead | Part::Gone) => true,
        (_, Part::Dead | Part::Gone | Part::Live | Part::Replace | Part::Clashes | Part::Orphans | Part::Unmatched) => {
            false
        }
    };
    if marked {
        params.push(param(dead));
    }
    for column in 0..images.first().map_or(0, |image| image.2.len()) {
        let texts: Vec<Option<String>> = images.iter().map(|image| image.2[column].map(str::to_owned)).collect();
        params.push(param(texts));
    }
    let text = move |plans: &[Plan]| {
        let plan = plans.iter().find(|plan| plan.target.name.table == target).unwrap();
        let types: Vec<_> =
            plan.reads.iter().map(|name| plan.source.column(name).unwrap().column_type.clone()).collect();
        let builder = Builder { plan, types: &types, pipeline: PIPELINE, replays: false };
        match part {
            Part::Dead => builder.dead(),
            Part::Gone => builder.gone().unwrap(),
            Part::Live => builder.live(),
            Part::Replace => builder.replace(),
            Part::Clashes => builder.clashes(),
            Part::Orphans => builder.orphans(&plan.target.foreign_keys[0]).unwrap(),
            Part::Unmatched => builder.unmatched().unwrap(),
        }
    };
    (session, What::Run(Arc::new(text), params))
}

fn printed(row: &Row) -> String {
    let cell = |place: usize| match *row.columns()[place].type_() {
        Type::INT8 => row.get::<_, Option<i64>>(place).map(|value| value.to_string()),
        Type::INT4 => row.get::<_, Option<i32>>(place).map(|value| value.to_string()),
        Type::BOOL => row.get::<_, Option<bool>>(place).map(|value| value.to_string()),
        Type::TEXT => row.get::<_, Option<String>>(place),
        Type::VOID => Some("void".into()),
        ref other => panic!("{other} is not printed"),
    };
    let cells = (0..row.len()).map(|place| cell(place).unwrap_or_else(|| "null".into()));
    format!("({})", cells.collect::<Vec<_>>().join(" "))
}

fn outcome(result: Result<Vec<Row>, tokio_postgres::Error>) -> String {
    match result {
        Ok(rows) if rows.is_empty() => "ok".into(),
        Ok(rows) => rows.iter().map(printed).collect::<Vec<_>>().join(" "),
        Err(error) => match error.code() {
            Some(code) => format!("error {}", code.code()),
            None => "closed".into(),
        },
    }
}

/// Runs a script; what happened, line by line, then the tables.
pub async fn play(rig: &Rig, steps: &[Step], replica: bool) -> Vec<String> {
    let mut names: Vec<&'static str> = steps.iter().map(|step| step.0).collect();
    names.sort_unstable();
    names.dedup();
    let mut sessions = Vec::new();
    for name in &names {
        sessions.push((*name, Arc::new(rig.session(name, replica).await)));
    }
    let mut lines = Vec::new();
    let mut pending: Vec<(usize, &'static str, JoinHandle<String>)> = Vec::new();
    for (number, (name, what)) in steps.iter().enumerate() {
        let session = sessions.iter().find(|(known, _)| known == name).unwrap().1.clone();
        let (what, plans) = (what.clone(), rig.plans.clone());
        let task = tokio::spawn(async move {
            match what {
                What::Simple(sql) => outcome(session.client.batch_execute(sql).await.map(|()| Vec::new())),
                What::Pause => {
                    tokio::time::sleep(PAUSE).await;
                    outcome(Ok(Vec::new()))
                }
                What::Run(text, params) => {
                    let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| param.as_ref() as _).collect();
                    outcome(session.client.query(&text(&plans), &params).await)
                }
            }
        });
        pending.push((number, name, task));
        settle(rig, number, &mut pending, &mut lines).await;
    }
    for (number, name, task) in pending {
        let answer = tokio::time::timeout(STEP_LIMIT, task).await.unwrap_or_else(|_| panic!("{name} never ends"));
        lines.push(format!("{name}{number}: {} at the end", answer.unwrap()));
    }
    drop(sessions);
    lines.extend(rig.tables().await);
    lines
}

/// Waits until every statement under way has answered or waits for a lock. What the step itself came to is told first:
/// whether its answer or that of a statement that it let go on is noticed first is left to chance.
async fn settle(
    rig: &Rig,
    now: usize,
    pending: &mut Vec<(usize, &'static str, JoinHandle<String>)>,
    lines: &mut Vec<String>,
) {
    let deadline = tokio::time::Instant::now() + STEP_LIMIT;
    let (mut place, mut told) = (0, Vec::new());
    while place < pending.len() {
        let (number, name, task) = &mut pending[place];
        if task.is_finished() {
            let answer = task.await.unwrap();
            let after = if *number == now { String::new() } else { format!(" after {now}") };
            told.push((*number != now, *number, format!("{name}{number}: {answer}{after}")));
            pending.remove(place);
            // Its end may have let another go on.
            place = 0;
            continue;
        }
        if rig.waits(name).await && !task.is_finished() {
            if *number == now {
                let line = (false, *number, format!("{name}{number}: waits"));
                if !told.contains(&line) {
                    told.push(line);
                }
            }
            place += 1;
            continue;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}: {name}{number} neither answers nor waits", rig.name);
        tokio::time::sleep(POLL_EVERY).await;
    }
    told.sort();
    lines.extend(told.into_iter().map(|(_, _, line)| line));
}

/// Plays the scripts, each on empty tables, on both real servers and on the model: all must tell the same. What they
/// told, without the tables.
pub async fn claims(deferral: Deferral, replica: bool, scripts: &[Vec<Step>]) -> Vec<Vec<String>> {
    let mut all = rigs(deferral).await;
    let mut told = Vec::new();
    for (number, steps) in scripts.iter().enumerate() {
        let mut expected: Option<Vec<String>> = None;
        for rig in &mut all {
            rig.clean().await;
            let lines = play(rig, steps, replica).await;
            match &expected {
                None => expected = Some(lines),
                Some(expected) => {
                    assert_eq!(lines, *expected, "script {number}: {} (left) and 15 (right) differ", rig.name)
                }
            }
        }
        let table = |line: &String| line.starts_with("public.") || line.starts_with("cutover.");
        told.push(expected.unwrap_or_default().into_iter().filter(|line| !table(line)).collect());
    }
    told
}

/// What the model alone tells of a script that needs no table of the user.
pub async fn told_by_model(steps: &[Step]) -> Vec<String> {
    let server = Server::Model(model::Postgres::new(Vec::new(), Arc::new(NoFaults)));
    let rig = Rig { name: "model", server, plans: Arc::from([]), deferral: Deferral::NotDeferrable };
    play(&rig, steps, false).await
}

/// As [`claims`], of one script without the replica role.
pub async fn claim(steps: Vec<Step>) -> Vec<String> {
    claims(Deferral::NotDeferrable, false, &[steps]).await.remove(0)
}
