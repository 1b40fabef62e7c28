//! What the statements on replays mean.

use super::{Params, given, has, jsonb};
use crate::simulator::postgres::{
    exec::{Exec, OnConflict, Stop},
    own::{dead_letters, offsets, replays},
    session::Answer,
    store::RowLock,
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replays {
    Running,
    OfRequest,
    Any,
    Begin,
    Resume,
    End,
}

pub async fn run(kind: Replays, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match kind {
        Replays::Running => {
            let mut wanted = given(params, &[(replays::pipeline, 0)]);
            wanted.push((replays::state, Value::text("running")));
            Ok(shown(exec, &wanted))
        }
        Replays::OfRequest => Ok(shown(exec, &given(params, &[(replays::pipeline, 0), (replays::id, 1)]))),
        Replays::Any => {
            let running = exec.rows(replays::ID, |row| row[replays::state] == Value::text("running"));
            Ok(Answer::row(vec![Value::Bool(!running.is_empty())]))
        }
        Replays::Begin => begin(exec, params).await,
        Replays::Resume => {
            let now = Value::Int(exec.pg.now_us());
            let wanted = given(params, &[(replays::pipeline, 0), (replays::id, 1)]);
            let set = |row: &mut Vec<Value>| {
                row[replays::resumed_at] = now.clone();
                row[replays::resumed_done] = params[2].value();
            };
            Ok(Answer::affected(exec.update_where(replays::ID, has(&wanted), set).await?.len()))
        }
        Replays::End => end(exec, params).await,
    }
}

fn is_pass(row: &[Value]) -> bool {
    row[offsets::topic].str().starts_with("replay.")
}

/// Replays with the offsets of their passes.
fn shown(exec: &Exec<'_>, wanted: &[(usize, Value)]) -> Answer {
    let now = exec.pg.now_us();
    let told = |row: &Row| {
        let passes = exec.rows(offsets::ID, |lane| lane[offsets::pipeline] == row[replays::pipeline] && is_pass(lane));
        let pass = |lane: &Row| {
            let (topic, part, next) = (&lane[offsets::topic], &lane[offsets::part], &lane[offsets::next_offset]);
            format!("[\"{}\", {}, {}]", topic.str(), part.int(), next.int())
        };
        let passes: Vec<String> = passes.iter().map(pass).collect();
        let passes = if passes.is_empty() { Value::Null } else { Value::text(format!("[{}]", passes.join(", "))) };
        let resumed = Value::Int(now - row[replays::resumed_at].int());
        let [id, state, details, outcome, done] =
            [replays::id, replays::state, replays::details, replays::outcome, replays::resumed_done]
                .map(|column| row[column].clone());
        vec![id, state, details, outcome, resumed, done, passes]
    };
    Answer::rows(exec.rows(replays::ID, has(wanted)).iter().map(told).collect())
}

/// The replay first, which the statement itself stores, then what its `WITH` changes, the last first.
async fn begin(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let pipeline = params[0].value();
    let mut row = vec![Value::Null; replays::NAMES.len()];
    row[replays::pipeline] = pipeline.clone();
    row[replays::id] = params[1].value();
    row[replays::state] = Value::text("running");
    row[replays::details] = jsonb(&params[2].value());
    row[replays::outcome] = Value::text("");
    row[replays::started_at] = now.clone();
    row[replays::resumed_at] = now.clone();
    row[replays::resumed_done] = Value::Int(0);
    let set = |old: &[Value]| {
        let mut new = old.to_vec();
        for column in [replays::details, replays::resumed_at, replays::resumed_done] {
            new[column] = row[column].clone();
        }
        Some(new)
    };
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
    exec.insert(replays::ID, row.clone(), conflict).await?;
    let (topics, parts, nexts) = (params[4].text_values(), params[5].ints(), params[6].ints());
    for at in 0..topics.len() {
        let mut lane = vec![Value::Int(0); offsets::NAMES.len()];
        lane[offsets::pipeline] = pipeline.clone();
        lane[offsets::topic] = topics[at].clone();
        lane[offsets::part] = Value::Int(parts[at]);
        lane[offsets::log_epoch] = params[3].value();
        lane[offsets::next_offset] = Value::Int(nexts[at]);
        lane[offsets::position] = Value::Null;
        lane[offsets::updated_at] = now.clone();
        let set = |old: &[Value]| {
            let mut new = old.to_vec();
            for column in [offsets::log_epoch, offsets::next_offset] {
                new[column] = lane[column].clone();
            }
            Some(new)
        };
        let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
        exec.insert(offsets::ID, lane.clone(), conflict).await?;
    }
    forget_noted(exec, &pipeline).await?;
    Ok(Answer::affected(1))
}

async fn end(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.now_us());
    let wanted = given(params, &[(replays::pipeline, 0), (replays::id, 1)]);
    let set = |row: &mut Vec<Value>| {
        row[replays::state] = params[2].value();
        row[replays::outcome] = params[3].value();
        row[replays::finished_at] = now.clone();
    };
    let ended = exec.update_where(replays::ID, has(&wanted), set).await?.len();
    let pipeline = params[0].value();
    exec.delete_where(offsets::ID, |row| row[offsets::pipeline] == pipeline && is_pass(row)).await?;
    forget_noted(exec, &pipeline).await?;
    Ok(Answer::affected(ended))
}

async fn forget_noted(exec: &mut Exec<'_>, pipeline: &Value) -> Result<(), Stop> {
    let noted = [(dead_letters::pipeline, pipeline.clone()), (dead_letters::state, Value::text("replay"))];
    exec.delete_where(dead_letters::ID, has(&noted)).await?;
    Ok(())
}
