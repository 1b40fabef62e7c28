//! Foreign keys of the model source that act below its log: parents, children, and children of those.
//!
//! What enters is what a transaction does to a row; what leaves is what that does to the rows that refer to it, which
//! is in the tables with the transaction and not in the binlog, as with InnoDB. `users` have `orders`, which have
//! `parts`, which may belong to a user besides; `items` are children of users too, which the target knows.

use cutover::model::{CascadeLink, TableName, Value};

use super::source::{DATABASE, Key, Row, Step, Tables, integer};

/// A foreign key, which refers to the first column of its parent.
struct ForeignKey {
    child: &'static str,
    column: usize,
    name: &'static str,
    parent: &'static str,
    /// A parent that goes leaves its children without one, and does not take them along.
    sets_null: bool,
    /// Children are given their parent's new key; else it is refused one.
    on_update: bool,
}

const fn key(child: &'static str, column: usize, name: &'static str, parent: &'static str) -> ForeignKey {
    ForeignKey { child, column, name, parent, sets_null: false, on_update: true }
}

const KEYS: [ForeignKey; 4] = [
    ForeignKey { on_update: false, ..key("items", 1, "user_id", "users") },
    key("orders", 1, "user_id", "users"),
    key("parts", 1, "order_id", "orders"),
    ForeignKey { sets_null: true, ..key("parts", 2, "user_id", "users") },
];

/// The keys as the catalog tells them, in their order.
pub fn links() -> Vec<CascadeLink> {
    let link = |key: &ForeignKey| CascadeLink {
        child: TableName::new(DATABASE, key.child),
        columns: vec![key.name.to_owned()],
        parent: TableName::new(DATABASE, key.parent),
        parent_columns: vec!["id".to_owned()],
        on_delete: true,
        on_update: key.on_update,
        carries_key: key.on_update,
    };
    let mut links: Vec<CascadeLink> = KEYS.iter().map(link).collect();
    links.sort();
    links
}

/// Does a step to the tables, and to the children of its row; all of it, step by step.
pub fn carried_out(tables: &mut Tables, step: Step) -> Vec<Step> {
    tables.apply(&step);
    let mut steps = vec![step];
    let mut at = 0;
    while let Some(step) = steps.get(at) {
        let follow = match step {
            Step::Delete { table, before } => Some((*table, before.clone(), None)),
            Step::Update { table, before, after } => Some((*table, before.clone(), Some(after.clone()))),
            Step::Cascaded { table, before, after } => Some((*table, before.clone(), after.clone())),
            Step::Insert { .. } | Step::Truncate { .. } | Step::Alter { .. } => None,
        };
        if let Some((table, before, after)) = follow {
            steps.extend(followed(tables, table, &before, after.as_ref()));
        }
        at += 1;
    }
    steps
}

fn followed(tables: &mut Tables, table: &str, before: &Row, after: Option<&Row>) -> Vec<Step> {
    if after.is_some_and(|after| after[0] == before[0]) {
        return Vec::new();
    }
    let mut steps = Vec::new();
    for key in KEYS.iter().filter(|key| key.parent == table) {
        let children = tables.of(key.child).into_values().filter(|row| row[key.column] == before[0]);
        for child in children {
            let given = |value: &Value| {
                let mut row = child.clone();
                row[key.column] = value.clone();
                row
            };
            let becomes = match after {
                Some(after) => Some(given(&after[0])),
                None if key.sets_null => Some(given(&Value::Null)),
                None => None,
            };
            let step = Step::Cascaded { table: key.child, before: child, after: becomes };
            tables.apply(&step);
            steps.push(step);
        }
    }
    steps
}

/// The parents to which a row refers.
fn referred<'a>(table: &'a str, row: &'a Row) -> impl Iterator<Item = (&'static str, Key)> + 'a {
    let keys = KEYS.iter().filter(move |key| key.child == table && row[key.column] != Value::Null);
    keys.map(|key| (key.parent, vec![integer(&row[key.column])]))
}

/// The parents that must be there for a step.
pub fn parents(step: &Step) -> Vec<(&'static str, Key)> {
    match step {
        Step::Insert { table, after } | Step::Update { table, after, .. } => referred(table, after).collect(),
        Step::Delete { .. } | Step::Truncate { .. } | Step::Alter { .. } | Step::Cascaded { .. } => Vec::new(),
    }
}

/// The parents that a step holds in place: those of its row, and, as who looks for children meets that row too until
/// its change is over, those that it had.
pub fn held(step: &Step) -> Vec<(&'static str, Key)> {
    let mut held = parents(step);
    match step {
        Step::Update { table, before, .. } | Step::Delete { table, before } if *table != "items" => {
            held.extend(referred(table, before));
        }
        Step::Insert { .. }
        | Step::Update { .. }
        | Step::Delete { .. }
        | Step::Truncate { .. }
        | Step::Alter { .. }
        | Step::Cascaded { .. } => {}
    }
    held
}
