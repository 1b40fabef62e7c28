//! What the statements mean that take, keep and give up the lease, draw numbers, and tell who applies.

use super::{Params, given, has, picked};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    faults::SessionInfo,
    own::{lease, notes},
    session::Answer,
    store::RowLock,
    value::{Row, Value},
};

/// `'-infinity'`.
const NEVER: i64 = i64::MIN;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    Row,
    Take,
    Holder,
    EndPredecessor,
    Renew,
    Release,
    Draw,
    Raise,
    BlocksLeader,
    MarkLeader,
    MarkApplies,
    Members,
    State,
}

pub async fn run(kind: Lease, exec: &mut Exec<'_>, info: &SessionInfo, params: Params<'_>) -> Result<Answer, Stop> {
    let own = || given(params, &[(lease::pipeline, 0), (lease::role, 1)]);
    let leased = || given(params, &[(lease::pipeline, 0), (lease::role, 1), (lease::epoch, 2)]);
    let (pg, now) = (exec.pg, exec.pg.now_us());
    match kind {
        Lease::Row => {
            let row = new_row(&params[0].value(), &params[1].value(), 0);
            let outcome = exec.insert(lease::ID, row, OnConflict::Nothing).await?;
            Ok(Answer::affected(usize::from(outcome != Inserted::Skipped)))
        }
        Lease::Holder => {
            let left = |row: &Row| match row[lease::expires_at].int() {
                NEVER => 0,
                expires => expires - now,
            };
            let rows = exec.rows(lease::ID, has(&own())).into_iter();
            Ok(Answer::rows(rows.map(|row| vec![row[lease::holder].clone(), Value::Int(left(&row))]).collect()))
        }
        Lease::Take => {
            let (own, sessions) = (own(), pg.sessions());
            let same = has(&own);
            let free = |row: &[Value]| {
                same(row) && (row[lease::expires_at].int() < pg.now_us() || !has_session(row, &sessions))
            };
            let set = |row: &mut Vec<Value>| {
                row[lease::holder] = params[2].value();
                row[lease::epoch] = Value::Int(row[lease::epoch].int() + 1);
                hold(row, pg.now_us() + params[3].int(), info);
            };
            Ok(picked(exec.update_where(lease::ID, free, set).await?, &[lease::epoch]))
        }
        Lease::EndPredecessor => {
            let names = params[0].text_values();
            let ended = exec.pg.terminate(|other| {
                other.database == info.database
                    && other.user == info.user
                    && names.contains(&Value::text(&other.application_name))
            });
            Ok(Answer::rows(vec![vec![Value::Bool(true)]; ended]))
        }
        // Whoever lost it goes on.
        Lease::Renew if exec.pg.weakness().offset_unchecked => Ok(Answer::affected(1)),
        Lease::Renew => {
            let set = |row: &mut Vec<Value>| hold(row, pg.now_us() + params[3].int(), info);
            Ok(Answer::affected(exec.update_where(lease::ID, has(&leased()), set).await?.len()))
        }
        Lease::Release => {
            let set = |row: &mut Vec<Value>| row[lease::expires_at] = Value::Int(NEVER);
            Ok(Answer::affected(exec.update_where(lease::ID, has(&leased()), set).await?.len()))
        }
        Lease::Draw => draw(exec, params).await,
        Lease::Raise => {
            let set = |row: &mut Vec<Value>| row[lease::epoch] = params[3].value();
            Ok(Answer::affected(exec.update_where(lease::ID, has(&leased()), set).await?.len()))
        }
        Lease::BlocksLeader => Ok(blocks_leader(exec, params)),
        Lease::MarkLeader => {
            let mut wanted = given(params, &[(lease::pipeline, 0), (lease::epoch, 1)]);
            wanted.push((lease::role, Value::text("worker")));
            let set = |row: &mut Vec<Value>| row[lease::transforms_hash] = params[2].value();
            Ok(Answer::affected(exec.update_where(lease::ID, has(&wanted), set).await?.len()))
        }
        Lease::MarkApplies => {
            let row = new_row(&params[0].value(), &Value::text("apply"), params[1].int());
            let set = |old: &[Value]| {
                let mut new = old.to_vec();
                new[lease::epoch] = row[lease::epoch].clone();
                Some(new)
            };
            let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
            exec.insert(lease::ID, row.clone(), conflict).await?;
            Ok(Answer::affected(1))
        }
        Lease::Members => Ok(members(exec, params)),
        Lease::State => Ok(state(exec, params)),
    }
}

/// A row that nobody holds.
fn new_row(pipeline: &Value, role: &Value, epoch: i64) -> Vec<Value> {
    let mut row = vec![Value::Null; lease::NAMES.len()];
    row[lease::pipeline] = pipeline.clone();
    row[lease::role] = role.clone();
    row[lease::holder] = Value::text("");
    row[lease::epoch] = Value::Int(epoch);
    row[lease::expires_at] = Value::Int(NEVER);
    row
}

fn has_session(row: &[Value], sessions: &[SessionInfo]) -> bool {
    sessions.iter().any(|session| {
        Value::Int(i64::from(session.pid)) == row[lease::backend_pid]
            && Value::Int(session.started_us) == row[lease::backend_start]
    })
}

fn hold(row: &mut [Value], until_us: i64, info: &SessionInfo) {
    row[lease::expires_at] = Value::Int(until_us);
    row[lease::backend_pid] = Value::Int(i64::from(info.pid));
    row[lease::backend_start] = Value::Int(info.started_us);
}

async fn draw(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let all = exec.rows(lease::ID, has(&given(params, &[(lease::pipeline, 0)])));
    let highest = all.iter().map(|row| row[lease::epoch].int()).max().unwrap_or(0);
    let row = new_row(&params[0].value(), &Value::text("numbers"), highest + 1);
    let set = |old: &[Value]| {
        let mut new = old.to_vec();
        new[lease::epoch] = Value::Int((old[lease::epoch].int() + 1).max(highest + 1));
        Some(new)
    };
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
    match exec.insert(lease::ID, row, conflict).await? {
        Inserted::Fresh(row) | Inserted::Updated(row) => Ok(picked(vec![row], &[lease::epoch])),
        Inserted::Skipped => Ok(Answer::default()),
    }
}

/// The processes of role `apply` that are alive.
fn appliers(exec: &Exec<'_>, params: Params<'_>) -> Vec<Row> {
    let (sessions, now) = (exec.pg.sessions(), exec.pg.now_us());
    let mut rows = exec.rows(lease::ID, has(&given(params, &[(lease::pipeline, 0)])));
    rows.retain(|row| {
        let lasts = !row[lease::expires_at].is_null() && row[lease::expires_at].int() >= now;
        row[lease::role].str().starts_with("apply ") && lasts && has_session(row, &sessions)
    });
    rows
}

fn blocks_leader(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let (transforms, applies) = (params[1].value(), params[2].value() == Value::Bool(true));
    let differs = |row: &Row| row[lease::transforms_hash] != transforms;
    let blocking = appliers(exec, params).into_iter().find(|row| applies || differs(row));
    Answer::rows(blocking.iter().map(|row| vec![row[lease::holder].clone(), Value::Bool(differs(row))]).collect())
}

fn members(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let mut rows = appliers(exec, params);
    rows.sort_by_key(|row| (row[lease::holder].clone(), row[lease::role].clone()));
    let said = |row: &Row| {
        let key = Value::text(format!("report {}", row[lease::role].str()));
        let note = exec.lookup(notes::ID, &[row[lease::pipeline].clone(), key]);
        let said = note.map_or(Value::text("{}"), |(_, note)| note[notes::value].clone());
        vec![row[lease::holder].clone(), said]
    };
    Answer::rows(rows.iter().map(said).collect())
}

/// The worker's lease: its epoch, whether it holds, and whether its holder leaves the applying to others.
fn state(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let row = |role: &str| exec.lookup(lease::ID, &[params[0].value(), Value::text(role)]).map(|(_, row)| row);
    let (now, applies) = (exec.pg.now_us(), row("apply"));
    let told = row("worker").map(|worker| {
        let held = match &worker[lease::expires_at] {
            Value::Null => Value::Null,
            expires => Value::Bool(expires.int() > now),
        };
        let shares = applies.is_none_or(|applies| applies[lease::epoch] != worker[lease::epoch]);
        vec![worker[lease::epoch].clone(), held, Value::Bool(shares)]
    });
    Answer::rows(told.into_iter().collect())
}
