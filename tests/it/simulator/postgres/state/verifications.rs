//! What the statements mean that comparisons ask besides comparing.

use super::{Params, checkpoints, given, has, kept, picked};
use crate::simulator::postgres::{
    exec::{Exec, OnConflict, Stop},
    faults::SessionInfo,
    own::{dead_letters, migration_log, offsets, transforms, waiting},
    session::Answer,
    store::RowLock,
    value::{Param, Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verifications {
    Lock,
    IsLocked,
    HasLock,
    Reached,
    Parked,
    InForce,
    Functions,
    KnownDrift,
    NoteDrift,
    ForgetDrift,
    ComparedChunk,
    NoteChunk,
    MetChunks,
    ForgetChunks,
}

pub async fn run(
    kind: Verifications,
    exec: &mut Exec<'_>,
    info: &SessionInfo,
    params: Params<'_>,
) -> Result<Answer, Stop> {
    match kind {
        Verifications::NoteChunk => note_chunk(exec, params).await,
        Verifications::MetChunks => {
            let (table, lowers) = (given(params, &TABLE), params[2].text_values());
            let (same, pass) = (has(&table), params[3].value());
            let met = |row: &[Value]| same(row) && lowers.contains(&row[migration_log::lower]);
            let set = |row: &mut Vec<Value>| row[migration_log::pass] = pass.clone();
            Ok(Answer::affected(exec.update_where(migration_log::ID, met, set).await?.len()))
        }
        Verifications::ForgetChunks => {
            let (table, pass) = (given(params, &TABLE), params[2].value());
            let same = has(&table);
            let gone = |row: &[Value]| same(row) && row[migration_log::pass] != pass;
            Ok(Answer::affected(exec.delete_where(migration_log::ID, gone).await?.len()))
        }
        asked => Ok(ask(asked, exec, info, params)),
    }
}

fn ask(kind: Verifications, exec: &Exec<'_>, info: &SessionInfo, params: Params<'_>) -> Answer {
    let pipeline = params.first().map_or(Value::Null, Param::value);
    let told = |held| Answer::row(vec![Value::Bool(held)]);
    match kind {
        Verifications::Lock => told(exec.pg.store().lock_session(&pipeline, info.pid)),
        Verifications::IsLocked => told(exec.pg.store().session_lock(&pipeline).is_some()),
        Verifications::HasLock => told(exec.pg.store().session_lock(&pipeline) == Some(info.pid)),
        Verifications::Reached => {
            let mut rows = kept::changes(exec, params);
            rows.retain(|row| !row[offsets::position].is_null());
            rows.sort_by_key(|row| (row[offsets::clock].int(), row[offsets::part].int()));
            picked(rows, &[offsets::position, offsets::clock])
        }
        Verifications::Parked => parked(exec, params),
        Verifications::InForce => {
            picked(checkpoints::in_force(exec, params).pop().into_iter().collect(), &[transforms::hash])
        }
        // Nobody makes a function here, and the model hashes records by their text.
        Verifications::Functions => Answer::row(vec![Value::text("0"), Value::Bool(false)]),
        // Nobody reviews here: what is noted for that is not kept.
        Verifications::KnownDrift => Answer::default(),
        Verifications::NoteDrift => Answer::affected(1),
        Verifications::ForgetDrift => Answer::affected(0),
        Verifications::ComparedChunk => compared_chunk(exec, params),
        Verifications::NoteChunk | Verifications::MetChunks | Verifications::ForgetChunks => {
            panic!("{kind:?} writes")
        }
    }
}

/// Where the columns of a chunk's table are, and its parameters.
const TABLE: [(usize, usize); 2] = [(migration_log::pipeline, 0), (migration_log::source_table, 1)];

/// A bound as it is kept: no bound is an empty text.
fn kept(bound: Value) -> Value {
    if bound.is_null() { Value::text("") } else { bound }
}

fn compared_chunk(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let key = [params[0].value(), params[1].value(), kept(params[2].value())];
    let Some((_, row)) = exec.lookup(migration_log::ID, &key) else { return Answer::default() };
    let mut row = row.to_vec();
    if row[migration_log::lower] == Value::text("") {
        row[migration_log::lower] = Value::Null;
    }
    let shown = [
        migration_log::lower,
        migration_log::upper,
        migration_log::state,
        migration_log::rows,
        migration_log::source_checksum,
        migration_log::target_checksum,
    ];
    picked(vec![row.into()], &shown)
}

async fn note_chunk(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let mut row: Vec<Value> = params.iter().map(Param::value).collect();
    row[migration_log::lower] = kept(row[migration_log::lower].clone());
    let update = |_: &[Value]| Some(row.clone());
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &update };
    exec.insert(migration_log::ID, row.clone(), conflict).await?;
    Ok(Answer::affected(1))
}

fn parked(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    if exec.pg.weakness().verify_passes_over_parked {
        return Answer::default();
    }
    let wanted = params[2].text_values();
    let letters = given(params, &[(dead_letters::pipeline, 0), (dead_letters::source_table, 1)]);
    let waits = given(params, &[(waiting::pipeline, 0), (waiting::source_table, 1)]);
    let is_kept = |row: &&Row| ["open", "discarded"].contains(&row[dead_letters::state].str());
    let letters = exec.rows(dead_letters::ID, has(&letters));
    let letters = letters.iter().filter(is_kept);
    let letters = letters.map(|row| vec![row[dead_letters::key_text].clone(), row[dead_letters::state].clone()]);
    let waits = exec.rows(waiting::ID, has(&waits));
    let waits = waits.iter().map(|row| vec![row[waiting::key_text].clone(), Value::text("waits")]);
    Answer::rows(letters.chain(waits).filter(|row| wanted.contains(&row[0])).collect())
}
