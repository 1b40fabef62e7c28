//! What the statements mean that read and write notes, schemas, fences and where lanes are.

use super::{Params, given, has, next_id, picked};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    own::{chunks, fences, lease, notes, offsets, schemas},
    session::Answer,
    store::RowLock,
    value::{Param, Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Note,
    SetNote,
    ScriptRan,
    Schema,
    AddSchema,
    Schemas,
    Definition,
    Fence,
    RaiseFence,
    Fences,
    NewestCommits,
    NextOffsets,
    Position,
    Positions,
    Lanes,
    LaneSeen,
    LanesAreFresh,
    BeginLog,
    LanesBegin,
}

pub async fn run(kept: Kept, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match kept {
        Kept::Note => {
            let wanted = given(params, &[(notes::pipeline, 0), (notes::key, 1)]);
            Ok(picked(exec.rows(notes::ID, has(&wanted)), &[notes::value]))
        }
        Kept::SetNote
            if exec.pg.weakness().beyond_forgotten && params[1].value() == Value::text("beyond the position") =>
        {
            Ok(Answer::affected(1))
        }
        Kept::SetNote => {
            let mut row: Vec<Value> = params.iter().map(Param::value).collect();
            row.push(Value::Int(exec.pg.now_us()));
            let set = |_: &[Value]| Some(row.clone());
            let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
            exec.insert(notes::ID, row.clone(), conflict).await?;
            Ok(Answer::affected(1))
        }
        Kept::ScriptRan => {
            let mut wanted = given(params, &[(notes::pipeline, 0)]);
            wanted.push((notes::key, Value::text("after_copy")));
            let set = |row: &mut Vec<Value>| row[notes::value] = Value::text("done");
            Ok(Answer::affected(exec.update_where(notes::ID, has(&wanted), set).await?.len()))
        }
        Kept::Schema | Kept::AddSchema => schema(kept, exec, params).await,
        Kept::Schemas => {
            let mut rows = exec.rows(schemas::ID, has(&given(params, &[(schemas::pipeline, 0)])));
            rows.sort_by_key(|row| (row[schemas::clock].int(), row[schemas::seq].int()));
            Ok(picked(rows, &[schemas::clock, schemas::definition]))
        }
        Kept::Definition => {
            let wanted = given(params, &[(schemas::pipeline, 0), (schemas::id, 1)]);
            Ok(picked(exec.rows(schemas::ID, has(&wanted)), &[schemas::definition]))
        }
        Kept::Fence => set_fence(exec, params).await,
        Kept::RaiseFence => {
            let mut wanted = given(params, &[(lease::pipeline, 0), (lease::epoch, 3)]);
            wanted.push((lease::role, Value::text("worker")));
            let held = !exec.rows(lease::ID, has(&wanted)).is_empty();
            if held { set_fence(exec, &params[..3]).await } else { Ok(Answer::affected(0)) }
        }
        Kept::Fences => {
            let rows = exec.rows(fences::ID, has(&given(params, &[(fences::pipeline, 0)])));
            Ok(picked(rows, &[fences::source_table, fences::version]))
        }
        Kept::NewestCommits => Ok(picked(changes(exec, params), &[offsets::part, offsets::newest_commit_us])),
        Kept::NextOffsets if exec.pg.weakness().no_tail_check => Ok(Answer::rows(Vec::new())),
        Kept::NextOffsets => {
            let mut rows = lanes(exec, params);
            rows.retain(|row| row[offsets::log_epoch] == params[1].value());
            let shown =
                |row: Row| vec![is_changes(&row), row[offsets::part].clone(), row[offsets::next_offset].clone()];
            Ok(Answer::rows(rows.into_iter().map(shown).collect()))
        }
        Kept::Position => Ok(picked(least(exec, params).into_iter().collect(), &[offsets::position, offsets::clock])),
        Kept::Positions => {
            let mut rows = changes(exec, params);
            rows.retain(|row| row[offsets::log_epoch] == params[1].value() && !row[offsets::position].is_null());
            Ok(picked(rows, &[offsets::position]))
        }
        Kept::Lanes => {
            let shown = |row: Row| {
                let current = Value::Bool(row[offsets::log_epoch] == params[1].value());
                let mut answer = vec![row[offsets::topic].clone(), row[offsets::part].clone(), current];
                let rest = [offsets::next_offset, offsets::clock, offsets::newest_commit_us];
                answer.extend(rest.map(|column| row[column].clone()));
                answer
            };
            Ok(Answer::rows(lanes(exec, params).into_iter().map(shown).collect()))
        }
        Kept::LaneSeen => {
            let mut rows = changes(exec, params);
            rows.retain(|row| has(&given(params, &[(offsets::part, 1), (offsets::log_epoch, 2)]))(row));
            Ok(picked(rows, &[offsets::next_offset, offsets::position, offsets::clock]))
        }
        Kept::LanesAreFresh => {
            let parts = params[1].ints();
            let wanted = |row: &[Value]| {
                row[offsets::pipeline] == params[0].value()
                    && row[offsets::topic] == Value::text("changes")
                    && parts.contains(&row[offsets::part].int())
            };
            let set = |row: &mut Vec<Value>| {
                let newest = row[offsets::newest_commit_us].int().max(params[2].int());
                row[offsets::newest_commit_us] = Value::Int(newest);
            };
            Ok(Answer::affected(exec.update_where(offsets::ID, wanted, set).await?.len()))
        }
        Kept::BeginLog => begin_log(exec, params).await,
        Kept::LanesBegin => lanes_begin(exec, params).await,
    }
}

pub fn is_changes(row: &[Value]) -> Value {
    Value::Bool(row[offsets::topic] == Value::text("changes"))
}

/// The lanes of the live stream.
pub fn lanes(exec: &Exec<'_>, params: Params<'_>) -> Vec<Row> {
    let mut rows = exec.rows(offsets::ID, has(&given(params, &[(offsets::pipeline, 0)])));
    let live = ["changes", "snapshot"].map(Value::text);
    rows.retain(|row| live.contains(&row[offsets::topic]));
    rows
}

/// Those of the changes topic.
pub fn changes(exec: &Exec<'_>, params: Params<'_>) -> Vec<Row> {
    let mut rows = lanes(exec, params);
    rows.retain(|row| row[offsets::topic] == Value::text("changes"));
    rows
}

/// The lane of the changes topic with a position that is behind the others.
fn least(exec: &Exec<'_>, params: Params<'_>) -> Option<Row> {
    let rows = changes(exec, params).into_iter().filter(|row| !row[offsets::position].is_null());
    rows.min_by_key(|row| row[offsets::clock].int())
}

/// The chunks first, which the statement itself updates, then what its `WITH` changes, the last first.
async fn begin_log(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let (pipeline, epoch, partitions) = (params[0].value(), params[1].value(), params[2].int());
    let (lanes, least) = (lanes(exec, params), least(exec, params));
    let none = Value::Ints(Vec::new());
    let mut reset = 0;
    if lanes.iter().any(|row| row[offsets::log_epoch] != epoch) {
        let in_part = |row: &[Value]| {
            row[chunks::pipeline] == pipeline
                && row[chunks::state] != Value::text("done")
                && row[chunks::parts_done] != none
        };
        let set = |row: &mut Vec<Value>| row[chunks::parts_done] = none.clone();
        reset = exec.update_where(chunks::ID, in_part, set).await?.len();
    }
    let live = ["changes", "snapshot"].map(Value::text);
    let gone = |row: &[Value]| {
        row[offsets::pipeline] == pipeline
            && live.contains(&row[offsets::topic])
            && row[offsets::part].int() >= partitions
    };
    exec.delete_where(offsets::ID, gone).await?;
    if let Some(least) = least {
        let ahead = |row: &[Value]| {
            row[offsets::pipeline] == pipeline
                && row[offsets::topic] == Value::text("changes")
                && row[offsets::part].int() < partitions
                && row[offsets::log_epoch] != epoch
                && row[offsets::clock] > least[offsets::clock]
        };
        let set = |row: &mut Vec<Value>| {
            for column in [offsets::position, offsets::clock, offsets::newest_commit_us] {
                row[column] = least[column].clone();
            }
        };
        exec.update_where(offsets::ID, ahead, set).await?;
    }
    Ok(Answer::affected(reset))
}

async fn lanes_begin(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let mut begun = 0;
    for part in 0..params[2].int() {
        let mut row = vec![Value::Int(0); offsets::NAMES.len()];
        row[offsets::pipeline] = params[0].value();
        row[offsets::topic] = Value::text("changes");
        row[offsets::part] = Value::Int(part);
        row[offsets::log_epoch] = params[1].value();
        row[offsets::position] = params[3].value();
        row[offsets::clock] = params[4].value();
        row[offsets::updated_at] = Value::Int(exec.pg.now_us());
        let set = |old: &[Value]| {
            old[offsets::position].is_null().then(|| {
                let mut new = old.to_vec();
                new[offsets::position] = row[offsets::position].clone();
                new[offsets::clock] = row[offsets::clock].clone();
                new
            })
        };
        let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
        begun += usize::from(exec.insert(offsets::ID, row.clone(), conflict).await? != Inserted::Skipped);
    }
    Ok(Answer::affected(begun))
}

/// The version before which the rows of a source table are gone.
pub fn fence(exec: &Exec<'_>, pipeline: &str, source: &str) -> Option<i64> {
    let (_, row) = exec.lookup(fences::ID, &[Value::text(pipeline), Value::text(source)])?;
    Some(row[fences::version].int())
}

async fn set_fence(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let row: Vec<Value> = params.iter().map(Param::value).collect();
    let set = |old: &[Value]| {
        let mut new = old.to_vec();
        new[fences::version] = row[fences::version].clone().max(old[fences::version].clone());
        Some(new)
    };
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
    exec.insert(fences::ID, row.clone(), conflict).await?;
    Ok(Answer::affected(1))
}

async fn schema(kept: Kept, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let seq = next_id(exec, schemas::ID);
    let value = |at: usize| params[at].value();
    let row = match kept {
        Kept::AddSchema => vec![value(0), value(1), value(2), value(3), seq, value(4)],
        _ => vec![value(0), value(1), Value::text(""), Value::Int(0), seq, value(2)],
    };
    let set = |old: &[Value]| {
        let mut new = old.to_vec();
        if old[schemas::clock] < row[schemas::clock] {
            new[schemas::clock] = row[schemas::clock].clone();
            new[schemas::seq] = row[schemas::seq].clone();
        }
        Some(new)
    };
    let conflict = match kept {
        Kept::AddSchema => OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set },
        _ => OnConflict::Nothing,
    };
    let outcome = exec.insert(schemas::ID, row.clone(), conflict).await?;
    Ok(Answer::affected(usize::from(outcome != Inserted::Skipped)))
}
