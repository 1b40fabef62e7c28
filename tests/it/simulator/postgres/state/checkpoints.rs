//! What the statements on checkpoints mean, and those on the transforms that were in force.

use super::{Params, given, has, jsonb, kept, next_id, picked, times::spelled};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    own::{checkpoints, offsets, transforms},
    session::Answer,
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoints {
    NoteTransforms,
    Transforms,
    Create,
    Point,
    List,
}

pub async fn run(kind: Checkpoints, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match kind {
        Checkpoints::NoteTransforms => note_transforms(exec, params).await,
        Checkpoints::Transforms => {
            let mut rows = in_force(exec, params);
            rows.retain(|row| row[transforms::log_epoch] == params[1].value());
            Ok(picked(rows, &[transforms::offsets, transforms::plans]))
        }
        Checkpoints::Create => {
            let created = Value::Int(exec.pg.started_us(exec.tx));
            let row = vec![params[0].value(), params[1].value(), jsonb(&params[2].value()), created];
            let outcome = exec.insert(checkpoints::ID, row, OnConflict::Nothing).await?;
            Ok(Answer::affected(usize::from(outcome != Inserted::Skipped)))
        }
        Checkpoints::Point => Ok(point(exec, params)),
        Checkpoints::List => {
            let mut rows = exec.rows(checkpoints::ID, has(&given(params, &[(checkpoints::pipeline, 0)])));
            rows.sort_by_key(|row| (row[checkpoints::created_at].int(), row[checkpoints::name].clone()));
            let shown = |row: &Row| {
                let created = spelled(&row[checkpoints::created_at], "T", "Z");
                vec![row[checkpoints::name].clone(), created, row[checkpoints::details].clone()]
            };
            Ok(Answer::rows(rows.iter().map(shown).collect()))
        }
    }
}

/// The pipeline's transforms, the newest last.
pub fn in_force(exec: &Exec<'_>, params: Params<'_>) -> Vec<Row> {
    let mut rows = exec.rows(transforms::ID, has(&given(params, &[(transforms::pipeline, 0)])));
    rows.sort_by_key(|row| row[transforms::seq].int());
    rows
}

async fn note_transforms(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let [pipeline, hash, log_epoch, offsets, plans] = [0, 1, 2, 3, 4].map(|at: usize| params[at].value());
    let (offsets, plans) = (jsonb(&offsets), jsonb(&plans));
    let noted = in_force(exec, params).pop().is_some_and(|newest| {
        newest[transforms::hash] == hash
            && newest[transforms::log_epoch] == log_epoch
            && newest[transforms::plans] == plans
    });
    if noted {
        return Ok(Answer::affected(0));
    }
    let since = Value::Int(exec.pg.started_us(exec.tx));
    let row = vec![pipeline, next_id(exec, transforms::ID), hash, log_epoch, offsets, plans, since];
    exec.insert(transforms::ID, row, OnConflict::Fail).await?;
    Ok(Answer::affected(1))
}

/// The live lanes, with the transforms that are in force.
fn point(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let hash = in_force(exec, params).pop().map_or(Value::text(""), |newest| newest[transforms::hash].clone());
    let mut rows = kept::lanes(exec, params);
    rows.sort_by_key(|row| row[offsets::part].int());
    let columns = [offsets::part, offsets::next_offset, offsets::log_epoch, offsets::position, offsets::clock];
    let shown = |row: &Row| {
        let mut answer = vec![kept::is_changes(row)];
        answer.extend(columns.map(|column| row[column].clone()));
        answer.push(hash.clone());
        answer
    };
    Answer::rows(rows.iter().map(shown).collect())
}
