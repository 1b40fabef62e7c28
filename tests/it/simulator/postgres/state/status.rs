//! What the statements mean that `status` asks.

use std::collections::BTreeMap;

use super::{Params, copies, given, has, kept};
use crate::simulator::postgres::{
    exec::Exec,
    own::{dead_letters, notes, offsets, tables, waiting},
    session::Answer,
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    LastReport,
    Tables,
    Counts,
    WaitingFor,
    AppliedByMembers,
}

const APPLIED: &str = "applied ";

pub fn run(status: Status, exec: &Exec<'_>, params: Params<'_>) -> Answer {
    match status {
        Status::LastReport => {
            let mut wanted = given(params, &[(notes::pipeline, 0)]);
            wanted.push((notes::key, Value::text("report")));
            let now = exec.pg.now_us();
            let told = |row: &Row| vec![row[notes::value].clone(), Value::Int(now - row[notes::updated_at].int())];
            Answer::rows(exec.rows(notes::ID, has(&wanted)).iter().map(told).collect())
        }
        Status::Tables => {
            let shown = |row: &Row| {
                let (estimate, copied) = (row[tables::rows_estimate].int(), row[tables::rows_copied].int());
                let is_copied = row[tables::state] == Value::text("copied");
                let rows = if is_copied { copied } else { estimate.max(copied) };
                vec![
                    row[tables::source_table].clone(),
                    Value::Int(rows),
                    Value::Int(copied),
                    row[tables::state].clone(),
                ]
            };
            Answer::rows(copies::ordered(exec, params).iter().map(shown).collect())
        }
        Status::Counts => counts(exec, params),
        Status::WaitingFor => waiting_for(exec, params),
        Status::AppliedByMembers => {
            let mut rows = exec.rows(notes::ID, has(&given(params, &[(notes::pipeline, 0)])));
            rows.retain(|row| row[notes::key].str().starts_with(APPLIED));
            let applied = |row: &Row| {
                let changes = row[notes::value].str().parse().expect("what was applied is counted in numbers");
                vec![Value::text(&row[notes::key].str()[APPLIED.len()..]), Value::Int(changes)]
            };
            Answer::rows(rows.iter().map(applied).collect())
        }
    }
}

fn counts(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let now = exec.pg.now_us();
    let count = |rows: &[Row]| Value::Int(i64::try_from(rows.len()).unwrap());
    let waits = exec.rows(waiting::ID, has(&given(params, &[(waiting::pipeline, 0)])));
    let letters = |state: &str| {
        let mut wanted = given(params, &[(dead_letters::pipeline, 0)]);
        wanted.push((dead_letters::state, Value::text(state)));
        exec.rows(dead_letters::ID, has(&wanted))
    };
    let open = letters("open");
    // Since the least time of a column; null without rows.
    let since = |rows: &[Row], column: usize| {
        let least = rows.iter().map(|row| row[column].int()).min();
        least.map_or(Value::Null, |least| Value::Int(now - least))
    };
    let mut lanes = kept::changes(exec, params);
    lanes.retain(|row| row[offsets::newest_commit_us].int() > 0);
    Answer::row(vec![
        count(&waits),
        count(&open),
        since(&lanes, offsets::newest_commit_us),
        since(&waits, waiting::since),
        since(&open, dead_letters::created_at),
        count(&letters("discarded")),
        waits.iter().map(|row| row[waiting::since].int()).max().map_or(Value::Null, |newest| Value::Int(now - newest)),
        waits.iter().map(|row| row[waiting::attempts].int()).min().map_or(Value::Null, Value::Int),
    ])
}

/// Table, reason, count and age of rows that wait, the oldest first.
fn waiting_for(exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let now = exec.pg.now_us();
    let mut groups: BTreeMap<(Value, Value), (i64, i64)> = BTreeMap::new();
    for row in exec.rows(waiting::ID, has(&given(params, &[(waiting::pipeline, 0)]))) {
        let reason = (row[waiting::source_table].clone(), row[waiting::reason].clone());
        let (count, since) = groups.entry(reason).or_insert((0, i64::MAX));
        *count += 1;
        *since = row[waiting::since].int().min(*since);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, (_, since))| *since);
    groups.truncate(10);
    let shown = |((table, reason), (count, since)): ((Value, Value), (i64, i64))| {
        vec![table, reason, Value::Int(count), Value::Int(now - since)]
    };
    Answer::rows(groups.into_iter().map(shown).collect())
}
