//! What keeps a source table from being moved at all, whatever the transforms: `init` leaves such a table out, and
//! `check` refuses it.

use std::collections::BTreeMap;

use crate::{
    database::postgres::{
        catalog::{OWNER_COLUMN, VERSION_COLUMN, VERSION_PREFIX},
        sql,
    },
    model::{Problem, TableSchema},
};

/// PostgreSQL cuts identifiers off at this many bytes.
pub(super) const IDENTIFIER_BYTES_MAX: usize = 63;

/// Columns that every PostgreSQL table has already. A transform reads the source's by their names.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// Why the table cannot be moved and what to do, as the rest of a sentence that begins with its name.
pub(super) fn obstacle(schema: &TableSchema) -> Option<Problem> {
    if schema.key.is_empty() {
        return Some(Problem::new(
            "has no primary key and no unique key without nulls, so its rows cannot be told apart",
            "add one at the source",
        ));
    }
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    schema.columns.iter().find_map(|column| {
        let other = names.insert(sql::cut(&column.name), &column.name)?;
        let what = format!(
            "has two columns, `{other}` and `{}`, that are alike in their first {IDENTIFIER_BYTES_MAX} bytes, where \
             PostgreSQL cuts names",
            column.name
        );
        Some(Problem::new(what, "rename one of them at the source"))
    })
}

/// Why no column of a target table can have this name; none if one can.
pub(super) fn unfit_column(name: &str) -> Option<String> {
    if name == VERSION_COLUMN || name == OWNER_COLUMN || name.starts_with(VERSION_PREFIX) {
        return Some("a name of cutover's own columns".into());
    }
    if SYSTEM_COLUMNS.contains(&name) {
        return Some("a name that PostgreSQL keeps for itself".into());
    }
    (name.len() > IDENTIFIER_BYTES_MAX).then(|| format!("longer than PostgreSQL's {IDENTIFIER_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, ColumnType, TableName};

    fn table(name: &str, column: &str, key: &[usize]) -> TableSchema {
        let column = Column {
            name: column.into(),
            column_type: ColumnType::Integer,
            source_type: "int".into(),
            nullable: false,
            charset: None,
            collation: None,
            generated: false,
        };
        TableSchema { table: TableName::new("shop", name), columns: vec![column], key: key.to_vec() }
    }

    #[test]
    fn only_what_a_transform_cannot_read_is_an_obstacle() {
        let long = "é".repeat(32);
        let mut alike = table("t", &format!("{long}a"), &[0]);
        alike.columns.push(Column { name: format!("{long}b"), ..alike.columns[0].clone() });
        for (schema, word) in [
            (table("t", "id", &[0]), None),
            (table("t", "order", &[0]), None),
            (table("t", "xmin", &[0]), None),
            (table("t", "cutover_version", &[0]), None),
            (table(&long, &long, &[0]), None),
            (table("t", "id", &[]), Some("primary key")),
            (alike, Some("63 bytes")),
        ] {
            let found = obstacle(&schema);
            assert_eq!(found.is_some(), word.is_some(), "{found:?}");
            assert!(found.zip(word).is_none_or(|(problem, word)| problem.what.contains(word)));
        }
    }

    #[test]
    fn columns_that_no_target_table_can_have_are_told() {
        let long = "é".repeat(32);
        let unfit: Vec<&str> = ["id", "xmin", "Xmin", "cutover_version", "cutover_version_2", &long]
            .into_iter()
            .filter(|name| unfit_column(name).is_some())
            .collect();
        assert_eq!(unfit, ["xmin", "cutover_version", "cutover_version_2", &long]);
    }
}
