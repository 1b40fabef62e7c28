//! What the statements on stored cascades mean.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Params, given, has, picked};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    own::{cascades, dead_letters, waiting},
    session::Answer,
    store::RowLock,
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cascades {
    Store,
    Next,
    Count,
    Add,
    End,
    Hold,
    Parked,
}

pub async fn run(kind: Cascades, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match kind {
        Cascades::Store => {
            let newer = |old: &[Value], new: &[Value]| {
                let newer = old[cascades::version] < new[cascades::version];
                newer.then(|| (new[cascades::version].clone(), Value::Int(0)))
            };
            store(exec, params, &vec![0; params[1].texts().len()], newer).await
        }
        Cascades::Add if exec.pg.weakness().cascades_end_at_children => Ok(Answer::affected(0)),
        Cascades::Add => {
            let greatest = |old: &[Value], new: &[Value]| {
                let of = |column: usize| old[column].clone().max(new[column].clone());
                Some((of(cascades::version), of(cascades::depth)))
            };
            store(exec, params, params[5].ints(), greatest).await
        }
        Cascades::Next => Ok(next(exec, params)),
        Cascades::Count => {
            let rows = exec.rows(cascades::ID, has(&given(params, &[(cascades::pipeline, 0)])));
            Ok(Answer::row(vec![Value::Int(rows.len() as i64)]))
        }
        Cascades::End => Ok(Answer::affected(exec.delete_where(cascades::ID, these(params)).await?.len())),
        Cascades::Hold if exec.pg.weakness().no_second_look => {
            Ok(Answer::affected(exec.delete_where(cascades::ID, these(params)).await?.len()))
        }
        Cascades::Hold => {
            let (hides, now) = (params[5].value(), Value::Int(exec.pg.now_us()));
            let set = |row: &mut Vec<Value>| {
                row[cascades::held] = Value::Bool(true);
                row[cascades::hides] = row[cascades::hides].clone().max(hides.clone());
                row[cascades::since] = now.clone();
            };
            Ok(Answer::affected(exec.update_where(cascades::ID, these(params), set).await?.len()))
        }
        Cascades::Parked => Ok(parked(exec, params)),
    }
}

/// Of what is given the newest of each key; where there is one already, its version and depth are what `set` says.
async fn store(
    exec: &mut Exec<'_>,
    params: Params<'_>,
    depths: &[i64],
    set: impl Fn(&[Value], &[Value]) -> Option<(Value, Value)> + Sync,
) -> Result<Answer, Stop> {
    let [children, kinds, keys] = [1, 2, 3].map(|at: usize| params[at].text_values());
    let mut newest: BTreeMap<[Value; 3], (i64, i64)> = BTreeMap::new();
    for (at, version) in params[4].ints().iter().enumerate() {
        let key = [children[at].clone(), kinds[at].clone(), keys[at].clone()];
        let known = newest.entry(key).or_insert((*version, depths[at]));
        *known = (known.0.max(*version), known.1.max(depths[at]));
    }
    let mut stored = 0;
    for ([child, kind, key], (version, depth)) in newest {
        let since = Value::Int(exec.pg.started_us(exec.tx));
        let not = Value::Bool(false);
        let (version, depth) = (Value::Int(version), Value::Int(depth));
        let row = vec![params[0].value(), child, kind, key, version, depth, not.clone(), not.clone(), since];
        let update = |old: &[Value]| {
            set(old, &row).map(|(version, depth)| {
                let mut new = old.to_vec();
                new[cascades::version] = version;
                new[cascades::depth] = depth;
                new[cascades::held] = not.clone();
                new
            })
        };
        let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &update };
        stored += usize::from(exec.insert(cascades::ID, row.clone(), conflict).await? != Inserted::Skipped);
    }
    Ok(Answer::affected(stored))
}

/// Those of one child, one kind, and about one key or about every row, that come first. Where PostgreSQL leaves the
/// order to chance it is that of keys.
fn next(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let (own, up_to) = (given(params, &[(cascades::pipeline, 0)]), params[1].int());
    let (open, again) = (params[2].text_values(), params[3].value() == Value::Bool(true));
    let (same, early) = (has(&own), exec.pg.weakness().cascades_followed_early);
    let is_due = |row: &[Value]| {
        let turn = row[cascades::held] == Value::Bool(false) || again || !open.contains(&row[cascades::child]);
        same(row) && turn && (early || row[cascades::version].int() <= up_to)
    };
    let mut due = exec.rows(cascades::ID, is_due);
    let order =
        [cascades::held, cascades::since, cascades::version, cascades::child, cascades::kind, cascades::key_text];
    due.sort_by_key(|row| order.map(|column| row[column].clone()));
    let group = |row: &Row| {
        let every = row[cascades::key_text] == Value::text("{}");
        (row[cascades::child].clone(), row[cascades::kind].clone(), every)
    };
    if let Some(first) = due.first().map(group) {
        due.retain(|row| group(row) == first);
    }
    due.truncate(usize::try_from(params[4].int()).unwrap_or(usize::MAX));
    let shown =
        [cascades::child, cascades::kind, cascades::key_text, cascades::version, cascades::depth, cascades::hides];
    picked(due, &shown)
}

/// Cascades with their versions, as they were read.
fn these(params: Params<'_>) -> impl Fn(&[Value]) -> bool + Sync + use<> {
    let pipeline = params[0].value();
    let [children, kinds, keys] = [1, 2, 3].map(|at: usize| params[at].text_values());
    let versions = params[4].ints().to_vec();
    move |row| {
        row[cascades::pipeline] == pipeline
            && (0..keys.len()).any(|at| {
                row[cascades::child] == children[at]
                    && row[cascades::kind] == kinds[at]
                    && row[cascades::key_text] == keys[at]
                    && row[cascades::version].int() == versions[at]
            })
    }
}

/// The newest of each row of a table that is set aside, after a key and older than a version.
fn parked(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let waits = given(params, &[(waiting::pipeline, 0), (waiting::source_table, 1)]);
    let mut dead = given(params, &[(dead_letters::pipeline, 0), (dead_letters::source_table, 1)]);
    dead.push((dead_letters::state, Value::text("open")));
    let mut found =
        picked(exec.rows(waiting::ID, has(&waits)), &[waiting::key_text, waiting::value, waiting::version]).rows;
    let letters = exec.rows(dead_letters::ID, has(&dead));
    found.extend(picked(letters, &[dead_letters::key_text, dead_letters::record, dead_letters::version]).rows);
    let (before, after) = (params[2].int(), params[3].value());
    found.retain(|row| row[2].int() < before && row[0] > after);
    found.sort_by_key(|row| (row[0].clone(), Reverse(row[2].int())));
    found.dedup_by_key(|row| row[0].clone());
    found.truncate(usize::try_from(params[4].int()).unwrap_or(usize::MAX));
    Answer::rows(found)
}
