//! What keeps a source table from being moved at all, whatever the transforms: `init` leaves such a table out, and
//! `check` refuses it.

use crate::{
    database::postgres::catalog::VERSION_COLUMN,
    model::{Problem, TableSchema},
};

/// PostgreSQL cuts identifiers off at this many bytes.
pub(super) const IDENTIFIER_BYTES_MAX: usize = 63;

/// Columns that every PostgreSQL table has already: a transform could not tell the source's from them.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// Why the table cannot be moved and what to do, as the rest of a sentence that begins with its name.
pub(super) fn obstacle(schema: &TableSchema) -> Option<Problem> {
    let rename = |what| Problem::new(what, "rename it at the source");
    if schema.key.is_empty() {
        return Some(Problem::new(
            "has no primary key and no unique key without nulls, so its rows cannot be told apart",
            "add one at the source",
        ));
    }
    if schema.table.table.len() > IDENTIFIER_BYTES_MAX {
        return Some(rename(format!("has a name longer than {IDENTIFIER_BYTES_MAX} bytes, PostgreSQL's limit")));
    }
    schema.columns.iter().find_map(|column| {
        let name = &column.name;
        if name.eq_ignore_ascii_case(VERSION_COLUMN) {
            return Some(rename(format!("has a column `{name}`, the name of cutover's own")));
        }
        if SYSTEM_COLUMNS.contains(&name.as_str()) {
            return Some(rename(format!("has a column `{name}`, a name that PostgreSQL keeps for itself")));
        }
        (name.len() > IDENTIFIER_BYTES_MAX)
            .then(|| rename(format!("has a column `{name}`, longer than PostgreSQL's {IDENTIFIER_BYTES_MAX} bytes")))
    })
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
    fn only_what_postgresql_cannot_hold_is_an_obstacle() {
        let long = "é".repeat(32);
        for (schema, word) in [
            (table("t", "id", &[0]), None),
            (table("t", "order", &[0]), None),
            (table("t", "id", &[]), Some("primary key")),
            (table("t", "xmin", &[0]), Some("`xmin`")),
            (table("t", "Cutover_version", &[0]), Some("cutover's own")),
            (table("t", &long, &[0]), Some("63 bytes")),
            (table(&long, "id", &[0]), Some("63 bytes")),
        ] {
            let found = obstacle(&schema);
            assert_eq!(found.is_some(), word.is_some(), "{found:?}");
            assert!(found.zip(word).is_none_or(|(problem, word)| problem.what.contains(word)));
        }
    }
}
