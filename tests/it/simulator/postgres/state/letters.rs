//! What the statements on dead letters mean: of the sink that stores and renews them, and of operators.

use super::{Params, given, has, next_id, picked, times::spelled};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    own::{dead_letters, schemas, waiting},
    session::Answer,
    value::{Param, Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letters {
    Store,
    Clear,
    Fence,
    Count,
    OpenOf,
    Supersede,
    Renew,
    ForgetNoted,
    Note,
    CountNoted,
    List,
    Show,
    Discard,
    Wanted,
    Waiting,
    Retried,
}

/// `greatest(id, mark)`, which leaves nulls out.
pub fn mark(row: &Row) -> i64 {
    let id = row[dead_letters::id].int();
    if row[dead_letters::mark].is_null() { id } else { id.max(row[dead_letters::mark].int()) }
}

pub async fn run(letters: Letters, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match letters {
        Letters::Store => store(exec, params).await,
        Letters::Clear => clear(exec, params, "open", true).await,
        Letters::ForgetNoted => clear(exec, params, "replay", false).await,
        Letters::Fence => {
            let mut wanted = in_state(params, "open");
            wanted.extend(given(params, &[(dead_letters::source_table, 1)]));
            let (same, version) = (has(&wanted), params[2].int());
            let older = |row: &[Value]| same(row) && row[dead_letters::version].int() < version;
            Ok(Answer::affected(exec.delete_where(dead_letters::ID, older).await?.len()))
        }
        Letters::Count => Ok(count(exec, params, "open")),
        Letters::CountNoted => Ok(count(exec, params, "replay")),
        Letters::OpenOf => Ok(open_of(exec, params)),
        Letters::Supersede => {
            let (own, ids) = (given(params, &[(dead_letters::pipeline, 0)]), params[1].ints());
            let same = has(&own);
            let wanted = |row: &[Value]| same(row) && ids.contains(&row[dead_letters::id].int());
            Ok(Answer::affected(exec.delete_where(dead_letters::ID, wanted).await?.len()))
        }
        Letters::Renew => renew(exec, params).await,
        Letters::Note => note(exec, params).await,
        Letters::List => Ok(list(exec, params)),
        Letters::Show => {
            let found =
                exec.rows(dead_letters::ID, has(&given(params, &[(dead_letters::pipeline, 0), (dead_letters::id, 1)])));
            let whole = |row: &Row| {
                let mut answer = shown(row);
                answer.push(row[dead_letters::record].clone());
                answer
            };
            Ok(Answer::rows(found.iter().map(whole).collect()))
        }
        Letters::Discard => {
            let (wanted, ids) = (in_state(params, "open"), params[1].ints());
            let (same, now) = (has(&wanted), Value::Int(exec.pg.now_us()));
            let chosen = |row: &[Value]| same(row) && ids.contains(&row[dead_letters::id].int());
            let set = |row: &mut Vec<Value>| {
                row[dead_letters::state] = Value::text("discarded");
                row[dead_letters::closed_at] = now.clone();
            };
            Ok(Answer::affected(exec.update_where(dead_letters::ID, chosen, set).await?.len()))
        }
        Letters::Wanted => Ok(wanted(exec, params)),
        Letters::Waiting => Ok(waited(exec, params)),
        Letters::Retried => Ok(retried(exec, params)),
    }
}

/// Of the pipeline, in this state.
fn in_state(params: Params<'_>, state: &str) -> Vec<(usize, Value)> {
    let mut wanted = given(params, &[(dead_letters::pipeline, 0)]);
    wanted.push((dead_letters::state, Value::text(state)));
    wanted
}

fn count(exec: &Exec<'_>, params: Params<'_>, state: &str) -> Answer {
    let count = exec.rows(dead_letters::ID, has(&in_state(params, state))).len();
    Answer::row(vec![Value::Int(i64::try_from(count).unwrap())])
}

/// Deletes letters in this state of rows, up to a version of each or below it.
async fn clear(exec: &mut Exec<'_>, params: Params<'_>, state: &str, inclusive: bool) -> Result<Answer, Stop> {
    let (sources, keys, versions) = (params[1].text_values(), params[2].text_values(), params[3].ints());
    let wanted = in_state(params, state);
    let same = has(&wanted);
    let cleared = |row: &[Value]| {
        let version = row[dead_letters::version].int();
        same(row)
            && (0..keys.len()).any(|at| {
                row[dead_letters::source_table] == sources[at]
                    && row[dead_letters::key_text] == keys[at]
                    && (version < versions[at] || inclusive && version == versions[at])
            })
    };
    Ok(Answer::affected(exec.delete_where(dead_letters::ID, cleared).await?.len()))
}

/// New letters from arrays of parameters, in a state; the places in the arrays say which.
async fn add(exec: &mut Exec<'_>, params: Params<'_>, places: &[usize], state: &str) -> Result<Answer, Stop> {
    let [sources, keys, states, errors, records] = [3, 4, 8, 9, 10].map(|at: usize| params[at].text_values());
    let [versions, schemas, log_offsets] = [5, 6, 7].map(|at: usize| params[at].ints());
    let mut stored = 0;
    for at in places.iter().copied() {
        let row = vec![
            next_id(exec, dead_letters::ID),
            params[0].value(),
            sources[at].clone(),
            keys[at].clone(),
            Value::Int(versions[at]),
            Value::Int(schemas[at]),
            params[1].value(),
            params[2].value(),
            Value::Int(log_offsets[at]),
            states[at].clone(),
            errors[at].clone(),
            records[at].clone(),
            Value::Int(exec.pg.started_us(exec.tx)),
            Value::text(state),
            Value::Int(1),
            Value::Null,
            Value::Null,
            Value::Null,
        ];
        let outcome = exec.insert(dead_letters::ID, row, OnConflict::Nothing).await?;
        stored += usize::from(outcome != Inserted::Skipped);
    }
    Ok(Answer::affected(stored))
}

async fn store(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let all: Vec<usize> = (0..params[3].texts().len()).collect();
    add(exec, params, &all, "open").await
}

/// The newest of each row, unless one as new is noted.
async fn note(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let (sources, keys, versions) = (params[3].text_values(), params[4].text_values(), params[5].ints());
    let noted = exec.rows(dead_letters::ID, has(&in_state(params, "replay")));
    let is_noted = |at: usize| {
        noted.iter().any(|row| {
            row[dead_letters::source_table] == sources[at]
                && row[dead_letters::key_text] == keys[at]
                && row[dead_letters::version].int() >= versions[at]
        })
    };
    let mut places: Vec<usize> = (0..sources.len()).filter(|at| !is_noted(*at)).collect();
    places.sort_by_key(|at| (sources[*at].clone(), keys[*at].clone(), std::cmp::Reverse(versions[*at])));
    places.dedup_by_key(|at| (sources[*at].clone(), keys[*at].clone()));
    add(exec, params, &places, "replay").await
}

fn open_of(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let keys = params[1].text_values();
    let mut rows = exec.rows(dead_letters::ID, has(&in_state(params, "open")));
    rows.retain(|row| keys.contains(&row[dead_letters::key_text]));
    rows.sort_by_key(|row| row[dead_letters::version].int());
    picked(
        rows,
        &[
            dead_letters::id,
            dead_letters::source_table,
            dead_letters::key_text,
            dead_letters::version,
            dead_letters::schema_id,
            dead_letters::record,
        ],
    )
}

async fn renew(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let own = given(params, &[(dead_letters::pipeline, 0)]);
    let [ids, versions, schemas, log_offsets] = [3, 4, 5, 6].map(|at: usize| params[at].ints());
    let [states, errors, records] = [7, 8, 9].map(|at: usize| params[at].text_values());
    let mut renewed = 0;
    for at in 0..ids.len() {
        let next = next_id(exec, dead_letters::ID);
        let now = Value::Int(exec.pg.now_us());
        let same = has(&own);
        let wanted = |row: &[Value]| same(row) && row[dead_letters::id].int() == ids[at];
        let set = |row: &mut Vec<Value>| {
            row[dead_letters::version] = Value::Int(versions[at]);
            row[dead_letters::schema_id] = Value::Int(schemas[at]);
            row[dead_letters::topic] = params[1].value();
            row[dead_letters::part] = params[2].value();
            row[dead_letters::log_offset] = Value::Int(log_offsets[at]);
            row[dead_letters::sqlstate] = states[at].clone();
            row[dead_letters::error] = errors[at].clone();
            row[dead_letters::record] = records[at].clone();
            row[dead_letters::attempts] = Value::Int(row[dead_letters::attempts].int() + 1);
            row[dead_letters::renewed_at] = now.clone();
            row[dead_letters::mark] = next.clone();
        };
        renewed += exec.update_where(dead_letters::ID, wanted, set).await?.len();
    }
    Ok(Answer::affected(renewed))
}

/// A letter as operators see it; its key is stored as it came.
fn shown(row: &Row) -> Vec<Value> {
    let time = |column: usize| spelled(&row[column], "T", "Z");
    vec![
        row[dead_letters::id].clone(),
        row[dead_letters::source_table].clone(),
        row[dead_letters::key_text].clone(),
        row[dead_letters::sqlstate].clone(),
        row[dead_letters::error].clone(),
        time(dead_letters::created_at),
        time(dead_letters::renewed_at),
        row[dead_letters::attempts].clone(),
        row[dead_letters::version].clone(),
        row[dead_letters::topic].clone(),
        row[dead_letters::part].clone(),
        row[dead_letters::log_offset].clone(),
        row[dead_letters::state].clone(),
    ]
}

/// Whether a letter is among the numbers that may be given.
fn is_among(ids: &Param, row: &Row) -> bool {
    match ids {
        Param::Null => true,
        Param::Value(_) | Param::Bools(_) | Param::Ints(_) | Param::Texts(_) => {
            ids.ints().contains(&row[dead_letters::id].int())
        }
    }
}

fn list(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let wanted = given(params, &[(dead_letters::pipeline, 0), (dead_letters::state, 1)]);
    let mut rows = exec.rows(dead_letters::ID, has(&wanted));
    let table = params[3].value();
    rows.retain(|row| is_among(&params[2], row) && (table.is_null() || row[dead_letters::source_table] == table));
    rows.sort_by_key(|row| row[dead_letters::id].int());
    Answer::rows(rows.iter().map(shown).collect())
}

/// The rows of letters with their schemas.
fn wanted(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let own = given(params, &[(dead_letters::pipeline, 0), (dead_letters::state, 1)]);
    let mut rows = exec.rows(dead_letters::ID, has(&own));
    rows.retain(|row| is_among(&params[2], row));
    rows.sort_by_key(|row| row[dead_letters::version].int());
    let joined = rows.iter().filter_map(|row| {
        let schema = [row[dead_letters::pipeline].clone(), row[dead_letters::schema_id].clone()];
        let (_, schema) = exec.lookup(schemas::ID, &schema)?;
        let key = row[dead_letters::key_text].clone();
        let record = row[dead_letters::record].clone();
        Some(vec![schema[schemas::definition].clone(), key, row[dead_letters::version].clone(), record])
    });
    Answer::rows(joined.collect())
}

/// The letters that are open still: how often each has failed, and whether its row waits.
fn retried(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let mut rows = exec.rows(dead_letters::ID, has(&in_state(params, "open")));
    rows.retain(|row| is_among(&params[1], row));
    let waits = |row: &Row| {
        let same = [
            (waiting::pipeline, row[dead_letters::pipeline].clone()),
            (waiting::source_table, row[dead_letters::source_table].clone()),
            (waiting::key_text, row[dead_letters::key_text].clone()),
        ];
        Value::Bool(!exec.rows(waiting::ID, has(&same)).is_empty())
    };
    let told = |row: &Row| vec![row[dead_letters::id].clone(), row[dead_letters::attempts].clone(), waits(row)];
    Answer::rows(rows.iter().map(told).collect())
}

/// Rows that have waited for three seconds, with their schemas, behind a table, key and version, bounded in number and
/// weight. The order of keys is another one than that of their digests, and as good.
fn waited(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let until = exec.pg.now_us() - 3_000_000;
    let after = (params[1].value(), params[2].value(), params[3].int());
    let mut rows = exec.rows(waiting::ID, has(&[(waiting::pipeline, params[0].value())]));
    let place =
        |row: &Row| (row[waiting::source_table].clone(), row[waiting::key_text].clone(), row[waiting::version].int());
    rows.retain(|row| row[waiting::since].int() < until && place(row) > after);
    rows.sort_by_key(place);
    rows.truncate(usize::try_from(params[4].int()).unwrap_or(usize::MAX));
    let mut before = 0;
    rows.retain(|row| {
        let bytes = row[waiting::value].str().len() as i64;
        let first = before == 0;
        before += bytes;
        first || before <= params[5].int()
    });
    let joined = rows.iter().filter_map(|row| {
        let (_, schema) =
            exec.lookup(schemas::ID, &[row[waiting::pipeline].clone(), row[waiting::schema_id].clone()])?;
        Some(vec![
            row[waiting::source_table].clone(),
            schema[schemas::definition].clone(),
            row[waiting::key_text].clone(),
            row[waiting::version].clone(),
            row[waiting::value].clone(),
        ])
    });
    Answer::rows(joined.collect())
}
