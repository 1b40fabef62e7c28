//! What the statements on cutover's own tables mean, one file for each thing that is kept there.

pub mod aside;
pub mod cascades;
pub mod checkpoints;
pub mod copies;
pub mod events;
pub mod kept;
pub mod lane;
pub mod lease;
pub mod letters;
pub mod replays;
pub mod requests;
pub mod status;
pub mod times;
pub mod verifications;

pub use kept::fence;

use super::{
    exec::{Exec, Stop},
    faults::SessionInfo,
    session::Answer,
    store::TableId,
    value::{Param, Row, Value},
};

/// A statement, by what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Lane(lane::Lane),
    Aside(aside::Aside),
    Letters(letters::Letters),
    Kept(kept::Kept),
    Copies(copies::Copies),
    Cascades(cascades::Cascades),
    Lease(lease::Lease),
    Requests(requests::Requests),
    Checkpoints(checkpoints::Checkpoints),
    Events(events::Events),
    Replays(replays::Replays),
    Status(status::Status),
    Times(times::Times),
    Verifications(verifications::Verifications),
}

pub async fn run(state: State, exec: &mut Exec<'_>, info: &SessionInfo, params: Params<'_>) -> Result<Answer, Stop> {
    match state {
        State::Lane(kind) => lane::run(kind, exec, params).await,
        State::Aside(kind) => aside::run(kind, exec, params).await,
        State::Letters(kind) => letters::run(kind, exec, params).await,
        State::Kept(kind) => kept::run(kind, exec, params).await,
        State::Copies(kind) => copies::run(kind, exec, params).await,
        State::Cascades(kind) => cascades::run(kind, exec, params).await,
        State::Lease(kind) => lease::run(kind, exec, info, params).await,
        State::Requests(kind) => requests::run(kind, exec, params).await,
        State::Checkpoints(kind) => checkpoints::run(kind, exec, params).await,
        State::Events(kind) => events::run(kind, exec, params).await,
        State::Replays(kind) => replays::run(kind, exec, params).await,
        State::Status(kind) => Ok(status::run(kind, exec, params)),
        State::Times(kind) => times::run(kind, params),
        State::Verifications(kind) => verifications::run(kind, exec, info, params).await,
    }
}

pub type Params<'p> = &'p [Param];

/// Whether the row has these values in these columns.
pub fn has<'p>(wanted: &'p [(usize, Value)]) -> impl Fn(&[Value]) -> bool + Send + Sync + 'p {
    move |row| wanted.iter().all(|(column, value)| row[*column] == *value)
}

/// Pairs of column and parameter, by place.
pub fn given(params: Params<'_>, columns: &[(usize, usize)]) -> Vec<(usize, Value)> {
    columns.iter().map(|(column, param)| (*column, params[*param].value())).collect()
}

pub fn picked(rows: Vec<Row>, columns: &[usize]) -> Answer {
    let pick = |row: Row| columns.iter().map(|column| row[*column].clone()).collect();
    Answer::rows(rows.into_iter().map(pick).collect())
}

pub fn ones(rows: usize) -> Answer {
    Answer::rows(vec![vec![Value::Int(1)]; rows])
}

pub fn next_id(exec: &Exec<'_>, table: TableId) -> Value {
    let mut store = exec.pg.store();
    store.tables[table].sequence += 1;
    Value::Int(store.tables[table].sequence)
}

/// Rows, or tombstones, older than a version; the version is the last column of both.
pub async fn delete_older(exec: &mut Exec<'_>, table: TableId, version: i64) -> Result<Answer, Stop> {
    let older = |row: &[Value]| row.last().is_some_and(|value| value.int() < version);
    Ok(Answer::affected(exec.delete_where(table, older).await?.len()))
}

/// The highest version of rows and tombstones.
pub fn highest(exec: &Exec<'_>, target: TableId, tombstones: TableId) -> Answer {
    let versions = [target, tombstones].into_iter().flat_map(|table| exec.rows(table, |_| true));
    let highest = versions.filter_map(|row| row.last().map(Value::int)).max();
    Answer::row(vec![Value::Int(highest.unwrap_or(0).max(0))])
}

/// JSON as it is stored; the product stores nothing else.
pub fn json(text: &Value) -> serde_json::Value {
    serde_json::from_str(text.str()).unwrap_or_else(|error| panic!("{text:?} is no JSON: {error}"))
}

/// JSON as `jsonb` prints it: with a blank after each comma and colon, and a name's value once, shorter names first.
pub fn jsonb(text: &Value) -> Value {
    if text.is_null() { Value::Null } else { Value::text(canonical(&json(text))) }
}

fn canonical(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Object(entries) => {
            let mut entries: Vec<(&String, &serde_json::Value)> = entries.iter().collect();
            entries.sort_by_key(|(name, _)| (name.len(), *name));
            let entry = |(name, value): (&String, &serde_json::Value)| {
                format!("{}: {}", serde_json::Value::from(name.as_str()), canonical(value))
            };
            format!("{{{}}}", entries.into_iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        serde_json::Value::Array(values) => {
            format!("[{}]", values.iter().map(canonical).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
