//! What the statements on requests mean.

use super::{Params, given, has, json, jsonb, next_id};
use crate::simulator::postgres::{
    exec::{Exec, OnConflict, Stop},
    own::requests,
    session::Answer,
    value::{Row, Value},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    Ask,
    Open,
    Answer,
    StateOf,
}

pub async fn run(kind: Requests, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    match kind {
        Requests::Ask => {
            let now = Value::Int(exec.pg.started_us(exec.tx));
            let row = vec![
                next_id(exec, requests::ID),
                params[0].value(),
                params[1].value(),
                jsonb(&params[2].value()),
                Value::text("new"),
                Value::Null,
                now.clone(),
                now,
            ];
            let id = row[requests::id].clone();
            exec.insert(requests::ID, row, OnConflict::Fail).await?;
            Ok(Answer::row(vec![id]))
        }
        Requests::Open => {
            let mut wanted = given(params, &[(requests::pipeline, 0)]);
            wanted.push((requests::state, Value::text("new")));
            let mut rows = exec.rows(requests::ID, has(&wanted));
            rows.sort_by_key(|row| row[requests::id].int());
            if exec.pg.weakness().request_passed_over {
                rows.retain(|row| row[requests::id].int() % 2 == 0);
            }
            let shown = |row: &Row| {
                let [id, command, arguments] =
                    [requests::id, requests::command, requests::arguments].map(|column| row[column].clone());
                vec![id, command, Value::text(text_of(&json(&arguments)["subject"])), arguments]
            };
            Ok(Answer::rows(rows.iter().map(shown).collect()))
        }
        Requests::Answer => {
            let now = Value::Int(exec.pg.started_us(exec.tx));
            let wanted = given(params, &[(requests::pipeline, 0), (requests::id, 1)]);
            let text = params[3].value();
            let answer = match &text {
                Value::Null => Value::Null,
                text => Value::text(serde_json::Value::from(text.str()).to_string()),
            };
            let set = |row: &mut Vec<Value>| {
                row[requests::state] = params[2].value();
                row[requests::answer] = answer.clone();
                row[requests::updated_at] = now.clone();
            };
            Ok(Answer::affected(exec.update_where(requests::ID, has(&wanted), set).await?.len()))
        }
        Requests::StateOf => {
            let rows = exec.rows(requests::ID, has(&given(params, &[(requests::pipeline, 0), (requests::id, 1)])));
            let text = |answer: &Value| match answer {
                Value::Null => Value::text(""),
                answer => Value::text(text_of(&json(answer))),
            };
            let told = |row: &Row| vec![row[requests::state].clone(), text(&row[requests::answer])];
            Ok(Answer::rows(rows.iter().map(told).collect()))
        }
    }
}

/// A JSON value as `->>` has it; a null and what is not there are empty here.
fn text_of(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
