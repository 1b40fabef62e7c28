//! The tables of the claims: as SQL for the real server, and as the model is told of them.

use std::sync::Arc;

use cutover::model::{ColumnType, Coverage, Plan, TableSchema};

use crate::{
    apply_rig::{keyed, table},
    simulator::postgres::{Cell, Deferral, ModelTable, SourceRow, SqlError, Transform, Unique, Value, integer},
};

const USERS: &str = "SELECT id, email, age::int AS age FROM users";
const OPEN: &str = "SELECT id, email FROM users WHERE state = 'open'";
const TAGS: &str = "
SELECT id, t.tag AS tag FROM users, LATERAL unnest(string_to_array(tags, ',')) AS t(tag)";

/// A source row per user; each of its three targets has another coverage.
pub const TRANSFORMS: [(&str, &str); 3] = [("users.sql", USERS), ("open_users.sql", OPEN), ("user_tags.sql", TAGS)];

/// The target's tables, with foreign keys checked as `deferral` says.
pub fn ddl(deferral: Deferral) -> String {
    let when = match deferral {
        Deferral::NotDeferrable => "",
        Deferral::InitiallyImmediate => "DEFERRABLE",
        Deferral::InitiallyDeferred => "DEFERRABLE INITIALLY DEFERRED",
    };
    format!(
        "CREATE TABLE users (id bigint PRIMARY KEY, email text UNIQUE, age int CHECK (age < 200), seen int DEFAULT 7);
         CREATE TABLE open_users (id bigint PRIMARY KEY, email text NOT NULL);
         CREATE TABLE user_tags (id bigint, tag text, PRIMARY KEY (id, tag));
         CREATE TABLE parents (id bigint PRIMARY KEY, name text);
         CREATE TABLE children (id bigint PRIMARY KEY, parent bigint REFERENCES parents {when});"
    )
}

pub fn users() -> Arc<TableSchema> {
    let columns = [
        ("id", ColumnType::BigInt),
        ("email", ColumnType::Text),
        ("age", ColumnType::Text),
        ("state", ColumnType::Text),
        ("tags", ColumnType::Text),
    ];
    table("users", &columns)
}

pub fn parents() -> Arc<TableSchema> {
    table("parents", &[("id", ColumnType::BigInt), ("name", ColumnType::Text)])
}

pub fn children() -> Arc<TableSchema> {
    keyed("children", &[("id", ColumnType::BigInt), ("parent", ColumnType::BigInt)], 1)
}

/// The model's tables for the plans that the real server's catalog gave.
pub fn model(plans: &[Plan], deferral: Deferral) -> Vec<ModelTable> {
    let coverages: Vec<_> = plans.iter().map(|plan| (plan.target.name.table.as_str(), plan.coverage)).collect();
    for expected in [
        ("users", Coverage::Total),
        ("open_users", Coverage::Filter),
        ("user_tags", Coverage::Partial),
        ("parents", Coverage::Total),
        ("children", Coverage::Total),
    ] {
        assert!(coverages.contains(&expected), "{expected:?} is not among {coverages:?}");
    }
    plans.iter().map(|plan| model_table(plan, deferral)).collect()
}

fn model_table(plan: &Plan, deferral: Deferral) -> ModelTable {
    let target = plan.target.name.table.as_str();
    let mut made = ModelTable::new(plan.clone(), transform(target, plan));
    made.deferral = deferral;
    if target == "users" {
        made.uniques = vec![Unique { name: "users_email_key".into(), columns: vec!["email".into()] }];
        made.defaults = vec![("seen".into(), Value::Int(7))];
        made.check = Some(Arc::new(|row| {
            let old = matches!(row[2], Value::Int(age) if age >= 200);
            let message = "new row for relation \"users\" violates check constraint \"users_age_check\"";
            old.then(|| SqlError::of("23514", "users_age_check", message))
        }));
    }
    made
}

fn transform(target: &str, plan: &Plan) -> Transform {
    match target {
        "users" => Arc::new(|row| Ok(vec![vec![row.get("id"), row.get("email"), age(row)]])),
        "open_users" => Arc::new(|row| {
            let open = row.get("state")? == Value::text("open");
            Ok(open.then(|| vec![row.get("id"), row.get("email")]).into_iter().collect())
        }),
        "user_tags" => Arc::new(|row| {
            let tags = match row.get("tags")? {
                Value::Text(tags) if !tags.is_empty() => tags.split(',').map(str::to_owned).collect(),
                _ => Vec::new(),
            };
            Ok(tags.into_iter().map(|tag| vec![row.get("id"), Ok(Value::text(tag))]).collect())
        }),
        _ => {
            let names: Vec<String> = plan.columns.iter().map(|column| column.name.clone()).collect();
            Arc::new(move |row| Ok(vec![names.iter().map(|name| row.get(name)).collect()]))
        }
    }
}

fn age(row: &SourceRow<'_>) -> Cell {
    match row.get("age")? {
        Value::Text(text) => integer(&text, "integer", i64::from(i32::MIN), i64::from(i32::MAX)),
        other => Ok(other),
    }
}
