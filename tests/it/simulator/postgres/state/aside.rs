//! What the statements mean that read what is set aside, and write rows that wait.

use std::collections::BTreeSet;

use super::{Params, given, has, letters::mark, picked};
use crate::simulator::postgres::{
    exec::{Exec, OnConflict, Stop},
    own::{dead_letters, waiting},
    session::Answer,
    store::RowLock,
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aside {
    Mark,
    HeldDead,
    HeldWaiting,
    Records,
    Waiting,
    Waits,
    WaitingParts,
    Wait,
    Needed,
    Free,
    FenceWaiting,
    ClearWaiting,
}

pub async fn run(aside: Aside, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match aside {
        Aside::Mark => {
            let newest = open(exec, params).iter().map(mark).max();
            Ok(Answer::row(vec![Value::Int(newest.unwrap_or(0))]))
        }
        Aside::HeldDead => Ok(held_dead(exec, params)),
        Aside::HeldWaiting => {
            let rows = exec.rows(waiting::ID, has(&given(params, &[(waiting::pipeline, 0)])));
            Ok(picked(rows, &[waiting::source_table, waiting::key_text, waiting::version]))
        }
        Aside::Records => Ok(records(exec, params)),
        Aside::Waiting => {
            let (pipeline, parts) = (given(params, &[(waiting::pipeline, 0)]), params[1].ints());
            let ours = has(&pipeline);
            let wanted = |row: &[Value]| ours(row) && parts.contains(&row[waiting::part].int());
            let mut rows = exec.rows(waiting::ID, wanted);
            rows.sort_by_key(|row| (row[waiting::attempts].int(), row[waiting::version].int()));
            rows.truncate(usize::try_from(params[2].int()).unwrap_or(usize::MAX));
            Ok(waiting_records(rows))
        }
        Aside::Waits => {
            let wanted = given(params, &[(waiting::pipeline, 0), (waiting::part, 1)]);
            Ok(Answer::row(vec![Value::Bool(!exec.rows(waiting::ID, has(&wanted)).is_empty())]))
        }
        Aside::WaitingParts => {
            let rows = exec.rows(waiting::ID, has(&given(params, &[(waiting::pipeline, 0)])));
            let parts: BTreeSet<i64> = rows.iter().map(|row| row[waiting::part].int()).collect();
            Ok(Answer::rows(parts.into_iter().map(|part| vec![Value::Int(part)]).collect()))
        }
        Aside::Wait => store_waiting(exec, params).await,
        Aside::Needed => {
            let rows = exec.rows(waiting::ID, has(&given(params, &[(waiting::pipeline, 0)])));
            Ok(Answer::row(vec![Value::Bool(rows.iter().any(|row| row[waiting::needs].int() != 0))]))
        }
        Aside::Free => free(exec, params).await,
        Aside::FenceWaiting => {
            let wanted = given(params, &[(waiting::pipeline, 0), (waiting::source_table, 1)]);
            let (same, version) = (has(&wanted), params[2].int());
            let older = |row: &[Value]| same(row) && row[waiting::version].int() < version;
            Ok(Answer::affected(exec.delete_where(waiting::ID, older).await?.len()))
        }
        Aside::ClearWaiting => {
            let (sources, keys, versions) = (params[1].text_values(), params[2].text_values(), params[3].ints());
            let cleared = |row: &[Value]| {
                row[waiting::pipeline] == params[0].value()
                    && (0..keys.len()).any(|at| {
                        row[waiting::source_table] == sources[at]
                            && row[waiting::key_text] == keys[at]
                            && row[waiting::version].int() <= versions[at]
                    })
            };
            Ok(Answer::affected(exec.delete_where(waiting::ID, cleared).await?.len()))
        }
    }
}

/// The open dead letters of the pipeline.
fn open(exec: &Exec<'_>, params: Params<'_>) -> Vec<Row> {
    let mut open = given(params, &[(dead_letters::pipeline, 0)]);
    open.push((dead_letters::state, Value::text("open")));
    exec.rows(dead_letters::ID, has(&open))
}

fn held_dead(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let mut dead = open(exec, params);
    dead.sort_by_key(mark);
    if exec.pg.weakness().no_dead_letter_fence {
        let unfenced = |row: &Row| {
            let mut row = row.to_vec();
            row[dead_letters::version] = Value::Int(0);
            Row::from(row)
        };
        dead = dead.iter().map(unfenced).collect();
    }
    let marked = dead.into_iter().map(|row| {
        let mut shown = vec![Value::Int(mark(&row))];
        let columns = [dead_letters::source_table, dead_letters::key_text, dead_letters::version];
        shown.extend(columns.map(|column| row[column].clone()));
        shown
    });
    Answer::rows(marked.collect())
}

fn records(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let keys = params[1].text_values();
    let fenced = !exec.pg.weakness().no_dead_letter_fence;
    let mut dead = open(exec, params);
    dead.retain(|row| fenced && keys.contains(&row[dead_letters::key_text]));
    let mut rows = exec.rows(waiting::ID, has(&given(params, &[(waiting::pipeline, 0)])));
    rows.retain(|row| keys.contains(&row[waiting::key_text]));
    let mut found = picked(
        dead,
        &[
            dead_letters::source_table,
            dead_letters::key_text,
            dead_letters::version,
            dead_letters::schema_id,
            dead_letters::record,
        ],
    );
    found.rows.extend(waiting_records(rows).rows);
    found.rows.sort_by_key(|row| row[2].int());
    Answer::rows(found.rows)
}

fn waiting_records(rows: Vec<Row>) -> Answer {
    picked(rows, &[waiting::source_table, waiting::key_text, waiting::version, waiting::schema_id, waiting::value])
}

async fn store_waiting(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let [sources, keys, values, reasons] = [2, 3, 6, 7].map(|at: usize| params[at].text_values());
    let [versions, schemas, needs] = [4, 5, 8].map(|at: usize| params[at].ints());
    for at in 0..sources.len() {
        let row = vec![
            params[0].value(),
            sources[at].clone(),
            keys[at].clone(),
            Value::Int(versions[at]),
            params[1].value(),
            Value::Int(schemas[at]),
            values[at].clone(),
            reasons[at].clone(),
            Value::Int(exec.pg.started_us(exec.tx)),
            Value::Int(0),
            Value::Int(needs[at]),
        ];
        let set = |old: &[Value]| {
            let mut new = old.to_vec();
            new[waiting::attempts] = Value::Int(old[waiting::attempts].int() + 1);
            new[waiting::reason] = reasons[at].clone();
            new[waiting::needs] = Value::Int(needs[at]);
            Some(new)
        };
        let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
        exec.insert(waiting::ID, row, conflict).await?;
    }
    Ok(Answer::affected(sources.len()))
}

/// The rows that wait for one of these keys are tried first.
async fn free(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let (pipeline, keys) = (params[0].value(), params[1].ints());
    let freed = |row: &[Value]| {
        row[waiting::pipeline] == pipeline
            && row[waiting::attempts].int() >= 0
            && keys.contains(&row[waiting::needs].int())
    };
    let freed = exec.update_unlocked(waiting::ID, freed, |row| row[waiting::attempts] = Value::Int(-1)).await?;
    Ok(Answer::row(vec![Value::Int(freed.len() as i64)]))
}
