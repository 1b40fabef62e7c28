//! The target's tables: what the transforms of the simulated pipeline say, in SQL and once more here.

use std::{collections::BTreeMap, sync::Arc};

use cutover::model::{Coverage, ForeignKey, Plan, PlanColumn, Role, TableName, TargetColumn, TargetTable, Value};

use super::{
    postgres::{ModelTable, SourceRow, SqlError, Unique, Value as Stored},
    source::{self, BAD, Key, Row, Tables, integer},
};

fn column(name: &str, type_sql: &str) -> TargetColumn {
    TargetColumn {
        name: name.into(),
        type_sql: type_sql.into(),
        cast_sql: type_sql.into(),
        collation: None,
        not_null: true,
        has_default: false,
        identity: None,
        generated: false,
    }
}

fn table(name: &str, columns: &[(&str, &str)], keys: usize) -> TargetTable {
    TargetTable {
        name: TableName::new("public", name),
        columns: columns.iter().map(|(name, type_sql)| column(name, type_sql)).collect(),
        key: columns.iter().take(keys).map(|(name, _)| (*name).to_owned()).collect(),
        uniques: Vec::new(),
        foreign_keys: Vec::new(),
        replaceable: true,
        partitioned: false,
    }
}

fn plan(target: TargetTable, coverage: Coverage, filter: &str) -> Plan {
    let source = source::schema(&target.name.table);
    let names: Vec<String> = source.columns.iter().map(|column| column.name.clone()).collect();
    Plan {
        select: format!("SELECT {} FROM {}{filter}", names.join(", "), target.name.table),
        columns: names.iter().map(|name| PlanColumn { name: name.clone(), cast: None }).collect(),
        role: Role::Whole,
        key_reads: Some((0..target.key.len()).collect()),
        reads: names,
        file: None,
        coverage,
        identity: String::new(),
        source,
        target: Arc::new(target),
    }
}

/// Every column as it is.
fn all(row: &SourceRow<'_>) -> Vec<Result<Stored, SqlError>> {
    row.names.iter().map(|name| row.get(name)).collect()
}

/// The tables, with the meaning of their transforms.
pub fn tables() -> Vec<ModelTable> {
    let mut users = table("users", &[("id", "bigint"), ("email", "text"), ("state", "bigint")], 1);
    users.uniques = vec!["users_email_key".into()];
    let mut items = table("items", &[("id", "bigint"), ("user_id", "bigint"), ("qty", "bigint")], 1);
    items.foreign_keys = vec![ForeignKey {
        name: "items_user_id_fkey".into(),
        columns: vec!["user_id".into()],
        parent: users.name.clone(),
        parent_columns: vec!["id".into()],
    }];
    let notes = table("notes", &[("a", "bigint"), ("b", "bigint"), ("body", "text")], 2);
    let users = ModelTable {
        uniques: vec![Unique { name: "users_email_key".into(), columns: vec!["email".into()] }],
        ..ModelTable::new(plan(users, Coverage::Total, ""), Arc::new(|row| Ok(vec![all(row)])))
    };
    let items = ModelTable::new(
        plan(items, Coverage::Filter, " WHERE qty >= 0"),
        Arc::new(|row| Ok(if row.get("qty")?.int() >= 0 { vec![all(row)] } else { Vec::new() })),
    );
    let notes = ModelTable {
        check: Some(Arc::new(|row| {
            let bad = row[2] == Stored::text(BAD);
            bad.then(|| SqlError::of("23514", "notes_body_check", "the note is bad"))
        })),
        ..ModelTable::new(plan(notes, Coverage::Total, ""), Arc::new(|row| Ok(vec![all(row)])))
    };
    vec![users, items, notes]
}

/// What the target must show when the source has these rows: the transforms, said again.
pub fn expected(source: &Tables) -> BTreeMap<&'static str, BTreeMap<Key, Row>> {
    let mut expected = BTreeMap::new();
    for table in source::WATCHED {
        let mut rows = source.of(table);
        rows.retain(|_, row| table != "items" || integer(&row[2]) >= 0);
        expected.insert(table, rows);
    }
    expected
}

/// The keys of the rows that the target refuses.
pub fn refused(source: &Tables) -> Vec<Key> {
    let bad = |row: &Row| row[2] == Value::Text(BAD.into());
    source.of("notes").into_iter().filter(|(_, row)| bad(row)).map(|(key, _)| key).collect()
}
