//! What the statements mean that tell how far copies are.

use super::{Params, given, has, picked};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    own::{chunks, offsets, tables},
    session::Answer,
    store::{RowLock, TableId},
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    Register,
    ForgetTables,
    ForgetChunks,
    Queue,
    QueueBegun,
    NotAgain,
    Left,
    Advance,
    Unfinished,
    Copying,
    Chunks,
    AddChunk,
    ChunkApplied,
    Finish,
    DropChunks,
    Alone,
    FollowOnly,
}

pub async fn run(copies: Copies, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match copies {
        Copies::Register => register(exec, params).await,
        Copies::ForgetTables => forget(exec, tables::ID, params).await,
        Copies::ForgetChunks => forget(exec, chunks::ID, params).await,
        Copies::Queue => queue(exec, params).await,
        Copies::QueueBegun => queue_begun(exec, params).await,
        Copies::NotAgain | Copies::Left | Copies::Unfinished => Ok(read(copies, exec, params)),
        Copies::Chunks => Ok(read_chunks(exec, params)),
        Copies::Advance => advance_snapshot(exec, params).await,
        Copies::Copying => copying(exec, params).await,
        Copies::AddChunk => add_chunk(exec, params).await,
        Copies::ChunkApplied => {
            let columns =
                [(chunks::pipeline, 0), (chunks::source_table, 1), (chunks::generation, 2), (chunks::chunk, 3)];
            let set = |row: &mut Vec<Value>| {
                row[chunks::state] = Value::text("applied");
                row[chunks::rows] = params[4].value();
            };
            Ok(Answer::affected(exec.update_where(chunks::ID, has(&given(params, &columns)), set).await?.len()))
        }
        Copies::Finish => finish(exec, params).await,
        Copies::DropChunks => {
            let wanted = given(params, &[(chunks::pipeline, 0), (chunks::source_table, 1)]);
            Ok(Answer::affected(exec.delete_where(chunks::ID, has(&wanted)).await?.len()))
        }
        Copies::Alone => {
            let others = exec.rows(tables::ID, |row| row[tables::pipeline] != params[0].value());
            Ok(Answer::row(vec![Value::Bool(others.is_empty())]))
        }
        Copies::FollowOnly => {
            let pipeline = params[0].value();
            let left = |row: &[Value]| row[tables::pipeline] == pipeline && row[tables::state] != Value::text("copied");
            let set = |row: &mut Vec<Value>| row[tables::state] = Value::text("copied");
            Ok(Answer::affected(exec.update_where(tables::ID, left, set).await?.len()))
        }
    }
}

/// The pipeline's tables in their order.
pub fn ordered(exec: &Exec<'_>, params: Params<'_>) -> Vec<Row> {
    let mut rows = exec.rows(tables::ID, has(&given(params, &[(tables::pipeline, 0)])));
    rows.sort_by_key(|row| (row[tables::position].int(), row[tables::source_table].clone()));
    rows
}

fn read(copies: Copies, exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let mut rows = ordered(exec, params);
    let is = |row: &Row, state: &str| row[tables::state] == Value::text(state);
    match copies {
        Copies::NotAgain => {
            rows.retain(|row| !(is(row, "pending") && row[tables::generation].int() > 1));
            picked(rows, &[tables::source_table])
        }
        Copies::Left => {
            let unfinished = rows.iter().filter(|row| !is(row, "copied")).count() as i64;
            Answer::row(vec![Value::Int(rows.len() as i64), Value::Int(unfinished)])
        }
        _ => {
            rows.retain(|row| !is(row, "copied"));
            picked(rows, &[tables::source_table, tables::generation, tables::bounds_done, tables::not_before])
        }
    }
}

fn read_chunks(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let columns = [(chunks::pipeline, 0), (chunks::source_table, 1), (chunks::generation, 2)];
    let mut found = exec.rows(chunks::ID, has(&given(params, &columns)));
    found.sort_by_key(|row| row[chunks::chunk].int());
    let answer = |row: Row| {
        let done = Value::Bool(row[chunks::state] == Value::text("done"));
        vec![row[chunks::chunk].clone(), row[chunks::lower].clone(), row[chunks::upper].clone(), done]
    };
    Answer::rows(found.into_iter().map(answer).collect())
}

/// Sets a table's copy back to its beginning, as a new one.
fn begin_anew(row: &mut [Value], now: &Value) {
    row[tables::generation] = Value::Int(row[tables::generation].int() + 1);
    row[tables::state] = Value::text("pending");
    row[tables::bounds_done] = Value::Bool(false);
    row[tables::rows_copied] = Value::Int(0);
    row[tables::requested_at] = now.clone();
    row[tables::started_at] = Value::Null;
    row[tables::finished_at] = Value::Null;
}

async fn queue(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let wanted = given(params, &[(tables::pipeline, 0), (tables::source_table, 1)]);
    let set = |row: &mut Vec<Value>| {
        begin_anew(row, &now);
        row[tables::not_before] = Value::Int(row[tables::not_before].int().max(params[2].int()));
    };
    Ok(Answer::affected(exec.update_where(tables::ID, has(&wanted), set).await?.len()))
}

async fn queue_begun(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let (pipeline, now) = (params[0].value(), Value::Int(exec.pg.started_us(exec.tx)));
    let all = params[1].value() == Value::Bool(true);
    let begun = |row: &[Value]| {
        let first = row[tables::generation].int() == 1;
        row[tables::pipeline] == pipeline && (row[tables::state] != Value::text("pending") || all && first)
    };
    let set = |row: &mut Vec<Value>| begin_anew(row, &now);
    Ok(Answer::affected(exec.update_where(tables::ID, begun, set).await?.len()))
}

async fn copying(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let wanted = given(params, &[(tables::pipeline, 0), (tables::source_table, 1), (tables::generation, 2)]);
    let set = |row: &mut Vec<Value>| {
        row[tables::state] = Value::text("copying");
        row[tables::rows_estimate] = params[3].value();
        if row[tables::started_at].is_null() {
            row[tables::started_at] = now.clone();
        }
    };
    Ok(Answer::affected(exec.update_where(tables::ID, has(&wanted), set).await?.len()))
}

async fn finish(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let same = given(params, &[(chunks::pipeline, 0), (chunks::source_table, 1), (chunks::generation, 2)]);
    let same = has(&same);
    let left = exec.rows(chunks::ID, |row| same(row) && row[chunks::state] != Value::text("done"));
    if !left.is_empty() {
        return Ok(Answer::affected(0));
    }
    let wanted = given(params, &[(tables::pipeline, 0), (tables::source_table, 1), (tables::generation, 2)]);
    let set = |row: &mut Vec<Value>| {
        row[tables::state] = Value::text("copied");
        row[tables::finished_at] = now.clone();
    };
    Ok(Answer::affected(exec.update_where(tables::ID, has(&wanted), set).await?.len()))
}

async fn register(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let names = params[1].text_values();
    for (place, name) in names.iter().enumerate() {
        let place = Value::Int(place as i64 + 1);
        let mut row = vec![Value::Null; tables::NAMES.len()];
        for column in [tables::rows_estimate, tables::rows_copied, tables::not_before] {
            row[column] = Value::Int(0);
        }
        row[tables::pipeline] = params[0].value();
        row[tables::source_table] = name.clone();
        row[tables::generation] = Value::Int(1);
        row[tables::state] = Value::text("pending");
        row[tables::bounds_done] = Value::Bool(false);
        row[tables::position] = place.clone();
        row[tables::updated_at] = now.clone();
        let set = |old: &[Value]| {
            let mut new = old.to_vec();
            new[tables::position] = place.clone();
            Some(new)
        };
        let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
        exec.insert(tables::ID, row, conflict).await?;
    }
    Ok(Answer::affected(names.len()))
}

/// The first two columns of `tables` and of `chunks` are pipeline and source table.
async fn forget(exec: &mut Exec<'_>, table: TableId, params: Params<'_>) -> Result<Answer, Stop> {
    let (pipeline, kept) = (params[0].value(), params[1].text_values());
    let gone = |row: &[Value]| row[0] == pipeline && !kept.contains(&row[1]);
    Ok(Answer::affected(exec.delete_where(table, gone).await?.len()))
}

async fn add_chunk(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let value = |at: usize| params[at].value();
    let row = vec![
        value(0),
        value(1),
        value(2),
        value(3),
        value(4),
        value(5),
        Value::Int(0),
        Value::text("reading"),
        Value::Ints(Vec::new()),
        Value::Int(exec.pg.started_us(exec.tx)),
    ];
    let outcome = exec.insert(chunks::ID, row, OnConflict::Nothing).await?;
    let wanted = given(params, &[(tables::pipeline, 0), (tables::source_table, 1), (tables::generation, 2)]);
    let set = |row: &mut Vec<Value>| row[tables::bounds_done] = params[6].value();
    exec.update_where(tables::ID, has(&wanted), set).await?;
    Ok(Answer::affected(usize::from(outcome != Inserted::Skipped)))
}

async fn advance_snapshot(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let columns = [(offsets::pipeline, 0), (offsets::log_epoch, 1), (offsets::part, 2), (offsets::lease_epoch, 9)];
    let mut wanted = given(params, &columns);
    wanted.push((offsets::topic, Value::text("snapshot")));
    let now = exec.pg.now_us();
    let set = |row: &mut Vec<Value>| {
        row[offsets::next_offset] = params[4].value();
        row[offsets::updated_at] = Value::Int(now);
    };
    let moved = exec.update_where(offsets::ID, has(&wanted), set).await?.len();
    if moved == 0 {
        return Ok(Answer::default());
    }
    let (part, partitions) = (params[2].int(), params[3].int());
    let sources = params[5].text_values();
    let (generations, numbers, counts) = (params[6].ints(), params[7].ints(), params[8].ints());
    let mut sums: Vec<(Value, i64, i64)> = Vec::new();
    for at in 0..sources.len() {
        let same = [
            (chunks::pipeline, params[0].value()),
            (chunks::source_table, sources[at].clone()),
            (chunks::generation, Value::Int(generations[at])),
            (chunks::chunk, Value::Int(numbers[at])),
        ];
        let same = has(&same);
        let done = |row: &[Value]| match &row[chunks::parts_done] {
            Value::Ints(parts) => parts.clone(),
            other => panic!("{other:?} is no list of partitions"),
        };
        let open = |row: &[Value]| same(row) && !done(row).contains(&part);
        let set = |row: &mut Vec<Value>| {
            let mut parts = done(row);
            parts.push(part);
            if parts.len() as i64 >= partitions {
                row[chunks::state] = Value::text("done");
            }
            row[chunks::parts_done] = Value::Ints(parts);
            row[chunks::rows] = Value::Int(row[chunks::rows].int() + counts[at]);
        };
        for _ in exec.update_where(chunks::ID, open, set).await? {
            let place = sums.iter().position(|(table, of, _)| *table == sources[at] && *of == generations[at]);
            match place {
                Some(place) => sums[place].2 += counts[at],
                None => sums.push((sources[at].clone(), generations[at], counts[at])),
            }
        }
    }
    for (table, generation, rows) in sums {
        let wanted = [
            (tables::pipeline, params[0].value()),
            (tables::source_table, table),
            (tables::generation, Value::Int(generation)),
        ];
        let set = |row: &mut Vec<Value>| row[tables::rows_copied] = Value::Int(row[tables::rows_copied].int() + rows);
        exec.update_where(tables::ID, has(&wanted), set).await?;
    }
    Ok(Answer::rows(vec![Vec::new(); moved]))
}
