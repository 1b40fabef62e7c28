//! What the statements on events mean.

use super::{Params, copies, given, has, json, next_id, times::spelled};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    own::{events, lease, notes, tables},
    session::Answer,
    store::RowLock,
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    Queue,
    Tell,
    TellOf,
    SeenTables,
    ToCarry,
    Carried,
    After,
}

pub async fn run(kind: Events, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match kind {
        Events::Queue => queue(exec, params).await,
        Events::Tell => tell(exec, params).await,
        Events::TellOf => {
            let waiting = in_order(exec, params, |row| row[events::carried] == Value::Bool(false)).len();
            if params[2].int() <= waiting as i64 { Ok(Answer::affected(0)) } else { queue(exec, params).await }
        }
        Events::SeenTables => Ok(seen_tables(exec, params)),
        Events::ToCarry => {
            let mut rows = in_order(exec, params, |row| row[events::carried] == Value::Bool(false));
            rows.truncate(usize::try_from(params[1].int()).unwrap_or(usize::MAX));
            Ok(Answer::rows(rows.iter().map(shown).collect()))
        }
        Events::Carried => carried(exec, params).await,
        Events::After => {
            let rows = in_order(exec, params, |row| row[events::sequence].int() > params[1].int());
            let told = |row: &Row| {
                let ts_ms = json(&row[events::body])["ts_ms"].as_f64();
                let at = ts_ms.map_or(Value::Null, |ms| spelled(&Value::Int((ms * 1000.0) as i64), " ", ""));
                let mut answer = shown(row);
                answer.push(at);
                answer
            };
            Ok(Answer::rows(rows.iter().map(told).collect()))
        }
    }
}

fn shown(row: &Row) -> Vec<Value> {
    [events::id, events::sequence, events::body].map(|column| row[column].clone()).to_vec()
}

/// Events of the pipeline, by their numbers.
fn in_order(exec: &Exec<'_>, params: Params<'_>, wanted: impl Fn(&[Value]) -> bool) -> Vec<Row> {
    let mut rows = exec.rows(events::ID, has(&given(params, &[(events::pipeline, 0)])));
    rows.retain(|row| wanted(row));
    rows.sort_by_key(|row| row[events::sequence].int());
    rows
}

/// Counts the events up, which locks the counter, and stores them under the numbers before the count.
async fn queue(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let bodies = params[1].text_values();
    let count = i64::try_from(bodies.len()).unwrap();
    let key = Value::text("events");
    let row = vec![params[0].value(), key, Value::text(count.to_string()), Value::Int(exec.pg.started_us(exec.tx))];
    let set = |old: &[Value]| {
        let mut new = old.to_vec();
        new[notes::value] = Value::text((number(&old[notes::value]) + count).to_string());
        Some(new)
    };
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
    let last = match exec.insert(notes::ID, row, conflict).await? {
        Inserted::Fresh(row) | Inserted::Updated(row) => number(&row[notes::value]),
        Inserted::Skipped => return Ok(Answer::affected(0)),
    };
    for (place, body) in (1..).zip(&bodies) {
        // Different ones are all that is asked of random ones.
        let id = next_id(exec, events::ID).int();
        let id = Value::text(format!("00000000-0000-4000-8000-{id:012x}"));
        let row = vec![params[0].value(), Value::Int(last - count + place), id, body.clone(), Value::Bool(false)];
        exec.insert(events::ID, row, OnConflict::Fail).await?;
    }
    Ok(Answer::affected(bodies.len()))
}

fn number(value: &Value) -> i64 {
    value.str().parse().unwrap_or_else(|error| panic!("{value:?} is no number: {error}"))
}

async fn tell(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let mut leased = given(params, &[(lease::pipeline, 0), (lease::epoch, 2)]);
    leased.push((lease::role, Value::text("worker")));
    let is_leased = !exec.rows(lease::ID, has(&leased)).is_empty();
    let waiting = in_order(exec, params, |row| row[events::carried] == Value::Bool(false)).len();
    if !is_leased || params[4].int() <= i64::try_from(waiting).unwrap() {
        return Ok(Answer::affected(0));
    }
    let stored = queue(exec, params).await?;
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let row = vec![params[0].value(), Value::text("events told"), params[3].value(), now];
    let set = |_: &[Value]| Some(row.clone());
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
    exec.insert(notes::ID, row.clone(), conflict).await?;
    Ok(stored)
}

fn seen_tables(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let seen = |row: &Row| {
        let (started, finished) = (&row[tables::started_at], &row[tables::finished_at]);
        let took = if started.is_null() || finished.is_null() { 0 } else { finished.int() - started.int() };
        let columns =
            [tables::source_table, tables::generation, tables::state, tables::rows_estimate, tables::rows_copied];
        let mut answer = columns.map(|column| row[column].clone()).to_vec();
        answer.push(Value::Int(took));
        answer
    };
    Answer::rows(copies::ordered(exec, params).iter().map(seen).collect())
}

/// The statement itself marks events, then its `WITH` forgets those that its snapshot shows as carried.
async fn carried(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let (pipeline, sequence, kept) = (params[0].value(), params[1].int(), params[2].int());
    let waits = |row: &[Value]| {
        row[events::pipeline] == pipeline
            && row[events::carried] == Value::Bool(false)
            && row[events::sequence].int() <= sequence
    };
    let set = |row: &mut Vec<Value>| row[events::carried] = Value::Bool(true);
    let marked = exec.update_where(events::ID, waits, set).await?.len();
    let old = |row: &[Value]| {
        row[events::pipeline] == pipeline
            && row[events::carried] == Value::Bool(true)
            && row[events::sequence].int() <= sequence - kept
    };
    exec.delete_where(events::ID, old).await?;
    Ok(Answer::affected(marked))
}
