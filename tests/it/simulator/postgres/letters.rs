//! What the statements mean that renew dead letters.

use super::{
    exec::{Exec, Stop},
    own::dead_letters,
    session::Answer,
    state::{Params, State, given, has, next_id, picked},
    value::{Row, Value},
};

/// `greatest(id, mark)`, which leaves nulls out.
pub fn mark(row: &Row) -> i64 {
    let id = row[dead_letters::id].int();
    if row[dead_letters::mark].is_null() { id } else { id.max(row[dead_letters::mark].int()) }
}

pub async fn run(state: State, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let own = given(params, &[(dead_letters::pipeline, 0)]);
    let mut open = own.clone();
    open.push((dead_letters::state, Value::text("open")));
    match state {
        State::CountDead => {
            let count = exec.rows(dead_letters::ID, has(&open)).len();
            Ok(Answer::row(vec![Value::Int(i64::try_from(count).unwrap())]))
        }
        State::OpenLetters => {
            let keys = params[1].text_values();
            let mut rows = exec.rows(dead_letters::ID, has(&open));
            rows.retain(|row| keys.contains(&row[dead_letters::key_text]));
            rows.sort_by_key(|row| row[dead_letters::version].int());
            Ok(picked(
                rows,
                &[
                    dead_letters::id,
                    dead_letters::source_table,
                    dead_letters::key_text,
                    dead_letters::version,
                    dead_letters::schema_id,
                    dead_letters::record,
                ],
            ))
        }
        State::Supersede => {
            let (same, ids) = (has(&own), params[1].ints());
            let wanted = |row: &[Value]| same(row) && ids.contains(&row[dead_letters::id].int());
            Ok(Answer::affected(exec.delete_where(dead_letters::ID, wanted).await?.len()))
        }
        State::RenewLetters => renew(exec, &own, params).await,
        _ => unreachable!("{state:?} renews no dead letter"),
    }
}

async fn renew(exec: &mut Exec<'_>, own: &[(usize, Value)], params: Params<'_>) -> Result<Answer, Stop> {
    let [ids, versions, schemas, log_offsets] = [3, 4, 5, 6].map(|at: usize| params[at].ints());
    let [states, errors, records] = [7, 8, 9].map(|at: usize| params[at].text_values());
    let mut renewed = 0;
    for at in 0..ids.len() {
        let next = next_id(exec, dead_letters::ID);
        let now = Value::Int(exec.pg.now_us());
        let same = has(own);
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
