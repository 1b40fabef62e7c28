//! What foreign keys may have done to children, which the log does not show (rule 11).
//!
//! InnoDB carries a change of a parent over to its children below the level at which rows are logged. What enters here
//! is a change of a row; what leaves says which children may have changed: those that refer to a key that a row has
//! had, and those that were given one. **Invariant:** a key that was ever known is never forgotten: one that is gone by
//! now was there at an earlier place of the log, and costs a look too many at the most. Deliberately absent: which rows
//! those children are. Whoever knows what the target has finds out.

use std::collections::HashMap;

use crate::{
    model::{Cascade, CascadeKind, CascadeLink, Images, TableName, TableSchema, Value, Version},
    source::CaptureEvent,
};

/// The foreign keys of a reader, by their parents as the server compares names.
#[derive(Debug, Default)]
pub struct Links {
    by_parent: HashMap<TableName, Vec<Link>>,
}

#[derive(Debug, Clone)]
struct Link {
    key: CascadeLink,
    /// The parent's rows come and go unseen themselves: a row that appears may have taken the place of one that went.
    parent_is_child: bool,
}

impl Links {
    /// These keys, with names compared so.
    pub fn new(keys: &[CascadeLink], compared: impl Fn(&TableName) -> TableName) -> Self {
        let mut by_parent: HashMap<TableName, Vec<Link>> = HashMap::new();
        for key in keys {
            let parent = compared(&key.parent);
            let parent_is_child = keys.iter().any(|other| compared(&other.child) == parent);
            by_parent.entry(parent).or_default().push(Link { key: key.clone(), parent_is_child });
        }
        Links { by_parent }
    }

    pub(super) fn is_parent(&self, table: &TableName) -> bool {
        self.by_parent.contains_key(table)
    }

    /// What a change of a row of this table, called so where names are compared, may have done to children.
    fn of(&self, table: &TableName, schema: &TableSchema, images: &Images) -> Vec<Cascade> {
        let Some(links) = self.by_parent.get(table) else { return Vec::new() };
        links.iter().flat_map(|link| link.after(schema, images)).collect()
    }

    /// What is told after the change of a row of this table, called so where names are compared: `version` is the
    /// change's first, and one that updates has two.
    pub fn told(
        &self,
        table: &TableName,
        schema: &TableSchema,
        images: &Images,
        (version, commit_us): (Version, i64),
    ) -> impl Iterator<Item = CaptureEvent> + use<> {
        // Children that were changed with it are older than its last version, and those changed later are not.
        let updates = images.before.is_some() && images.after.is_some();
        let version = version.saturating_add(i64::from(updates));
        let cascades = self.of(table, schema, images).into_iter();
        cascades.map(move |cascade| CaptureEvent::Cascade { cascade, version, commit_us })
    }
}

impl Link {
    fn after(&self, schema: &TableSchema, images: &Images) -> Vec<Cascade> {
        if !self.key.parent_columns.iter().all(|name| place_of(schema, name).is_some()) {
            // Renamed since, or not yet: every child may be meant.
            let (child, kind) = (self.key.child.clone(), CascadeKind::Gone);
            return vec![Cascade { child, columns: Vec::new(), values: Vec::new(), kind }];
        }
        let of = |row: Option<&Vec<Value>>| row.and_then(|row| self.values(schema, row));
        let (before, after) = (of(images.before.as_ref()), of(images.after.as_ref()));
        if before == after {
            return Vec::new();
        }
        let (was_there, is_there) = (images.before.is_some(), images.after.is_some());
        let acts = if is_there { self.key.on_update } else { self.key.on_delete };
        let mut told = Vec::new();
        if let Some(before) = before.filter(|_| was_there && acts) {
            told.push(self.cascade(before, CascadeKind::Gone));
        }
        if let Some(after) = after {
            if was_there && self.key.carries_key {
                told.push(self.cascade(after.clone(), CascadeKind::Came));
            }
            if self.parent_is_child {
                told.push(self.cascade(after, CascadeKind::Gone));
            }
        }
        told
    }

    /// The parent's key in a row; none if a part of it is null, which nothing refers to.
    fn values(&self, schema: &TableSchema, row: &[Value]) -> Option<Vec<Value>> {
        let value = |name: &String| row.get(place_of(schema, name)?).filter(|value| **value != Value::Null).cloned();
        self.key.parent_columns.iter().map(value).collect()
    }

    fn cascade(&self, values: Vec<Value>, kind: CascadeKind) -> Cascade {
        Cascade { child: self.key.child.clone(), columns: self.key.columns.clone(), values, kind }
    }
}

/// The place of a column, whose name means the same in any case.
fn place_of(schema: &TableSchema, name: &str) -> Option<usize> {
    let lower = name.to_lowercase();
    schema.columns.iter().position(|column| column.name.to_lowercase() == lower)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, ColumnType};

    fn link(child: &str, parent: &str, carries_key: bool) -> CascadeLink {
        CascadeLink {
            child: TableName::new("shop", child),
            columns: vec!["p".into()],
            parent: TableName::new("shop", parent),
            parent_columns: vec!["ID".into()],
            on_delete: true,
            on_update: carries_key,
            carries_key,
        }
    }

    fn told(
        keys: &[CascadeLink],
        table: &str,
        before: Option<i64>,
        after: Option<i64>,
    ) -> Vec<(String, CascadeKind, i64)> {
        let column = |name: &str| Column {
            name: name.into(),
            column_type: ColumnType::Integer,
            source_type: "int".into(),
            nullable: false,
            charset: None,
            collation: None,
            generated: false,
        };
        let table = TableName::new("shop", table);
        let schema = TableSchema { table: table.clone(), columns: vec![column("a"), column("id")], key: vec![1] };
        let row =
            |id: Option<i64>| id.map(|id| vec![Value::Int(0), if id == 0 { Value::Null } else { Value::Int(id) }]);
        let images = Images { before: row(before), after: row(after) };
        let links = Links::new(keys, Clone::clone);
        let value = |cascade: &Cascade| match cascade.values.as_slice() {
            [Value::Int(id)] => *id,
            // No key of these tests.
            _ => i64::MIN,
        };
        let told = links.of(&table, &schema, &images);
        told.iter().map(|cascade| (cascade.child.table.clone(), cascade.kind, value(cascade))).collect()
    }

    use CascadeKind::{Came, Gone};

    #[test]
    fn a_parent_that_goes_and_a_key_that_changes_are_told_and_nothing_else() {
        let keys = [link("c", "p", true), link("d", "p", false)];
        let deleted = told(&keys, "p", Some(5), None);
        assert_eq!(deleted, [("c".into(), Gone, 5), ("d".into(), Gone, 5)]);
        assert_eq!(told(&keys, "p", Some(5), Some(6)), [("c".into(), Gone, 5), ("c".into(), Came, 6)]);
        assert_eq!(told(&keys, "p", Some(5), Some(5)), []);
        assert_eq!(told(&keys, "p", None, Some(5)), [], "every row of `p` comes with an event");
        assert_eq!(told(&keys, "p", Some(0), None), [], "nothing refers to a null");
        assert_eq!(told(&keys, "other", Some(5), None), []);
    }

    #[test]
    fn a_key_whose_columns_have_other_names_by_now_is_about_every_child() {
        let renamed = CascadeLink { parent_columns: vec!["number".into()], ..link("c", "p", false) };
        let column = Column {
            name: "id".into(),
            column_type: ColumnType::Integer,
            source_type: "int".into(),
            nullable: false,
            charset: None,
            collation: None,
            generated: false,
        };
        let table = TableName::new("shop", "p");
        let schema = TableSchema { table: table.clone(), columns: vec![column], key: vec![0] };
        let images = Images { before: Some(vec![Value::Int(5)]), after: None };
        let told = Links::new(&[renamed], Clone::clone).of(&table, &schema, &images);
        let child = TableName::new("shop", "c");
        assert_eq!(told, [Cascade { child, columns: Vec::new(), values: Vec::new(), kind: Gone }]);
    }

    #[test]
    fn a_row_that_appears_in_a_table_whose_rows_go_unseen_may_have_replaced_one() {
        let keys = [link("c", "p", false), link("g", "c", false)];
        assert_eq!(told(&keys, "c", None, Some(5)), [("g".into(), Gone, 5)]);
        assert_eq!(told(&keys, "c", Some(5), None), [("g".into(), Gone, 5)]);
        assert_eq!(told(&keys, "c", Some(4), Some(5)), [("g".into(), Gone, 5)], "its key was restricted");
    }
}
