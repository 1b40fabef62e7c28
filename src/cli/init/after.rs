//! `schema_after.sql`: secondary indexes, unique constraints and foreign keys, for when the copy is complete.

use super::{
    names::{Names, identifier, identifiers, literal, one_line},
    plan::PlannedTable,
    schema::folding_collation,
};
use crate::{
    database::mysql::{
        catalog::members,
        details::{ForeignKey, Index, IndexKey, IndexPart},
    },
    model::ColumnType,
};

/// The text of `schema_after.sql`.
pub(super) fn render(database: &str, tables: &[PlannedTable]) -> String {
    let mut names = Names::default();
    for table in tables {
        names.take(&table.name);
        names.take(&format!("{}_pkey", table.name));
        for column in table.columns.iter().filter(|column| column.identity) {
            names.take(&format!("{}_{}_seq", table.name, column.name));
        }
    }
    let mut text = format!(
        "-- Indexes, unique constraints and foreign keys of {} for PostgreSQL, written by `cutover init`.\n\
         -- cutover runs this file once, when the copy is complete ([target] after_copy); do not run it before.\n",
        one_line(database)
    );
    for table in tables {
        section(&mut text, indexes(table, &mut names));
    }
    for table in tables {
        section(&mut text, foreign_keys(table, tables, &mut names));
    }
    let checks: Vec<String> = tables.iter().flat_map(|table| label_checks(table, &mut names)).collect();
    if !checks.is_empty() {
        text.push_str(
            "\n-- The labels of ENUM columns, for after the switch. As long as the source is written to, a label that is\n\
             -- added there would fail here, and so would '', MySQL's mark of an invalid value.\n",
        );
        section(&mut text, checks);
    }
    text
}

/// Writes lines behind an empty one, if there are any.
pub(super) fn section(text: &mut String, lines: Vec<String>) {
    if !lines.is_empty() {
        text.push('\n');
        lines.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
    }
}

fn indexes(table: &PlannedTable, names: &mut Names) -> Vec<String> {
    let mut lines = Vec::new();
    for index in table.details.indexes.iter().filter(|index| !is_the_key(table, index)) {
        let skipped =
            |reason: &str| format!("-- Left out: index {} on {}: {reason}", one_line(&index.name), table.name);
        if let Some(reason) = unsupported(index) {
            lines.push(skipped(reason));
            continue;
        }
        let parts: Option<Vec<String>> = index.parts.iter().map(|part| part_sql(table, part)).collect();
        let Some(parts) = parts else {
            lines.push(skipped("one of its columns cannot be indexed as it is"));
            continue;
        };
        if let Some(note) = folding_note(table, index) {
            lines.push(note);
        }
        let name = identifier(&names.give(&index_name(table, index)));
        let (on, parts) = (identifier(&table.name), parts.join(", "));
        let plain = index.whole_columns().is_some() && index.parts.iter().all(|part| !part.descending);
        lines.push(match (index.unique, plain) {
            (true, true) => format!("ALTER TABLE {on} ADD CONSTRAINT {name} UNIQUE ({parts});"),
            (true, false) => format!("CREATE UNIQUE INDEX {name} ON {on} ({parts});"),
            (false, true | false) => format!("CREATE INDEX {name} ON {on} ({parts});"),
        });
    }
    lines
}

/// Whether the index is what `schema.sql` made the primary key of.
pub(super) fn is_the_key(table: &PlannedTable, index: &Index) -> bool {
    let key: Vec<&str> = table.schema.key_columns().map(|column| column.name.as_str()).collect();
    index.name == "PRIMARY" || (!table.primary && index.unique && index.whole_columns().is_some_and(|own| own == key))
}

fn unsupported(index: &Index) -> Option<&'static str> {
    match index.kind.as_str() {
        "FULLTEXT" => return Some("full text; PostgreSQL has GIN indexes on to_tsvector(…)"),
        "SPATIAL" => return Some("spatial; PostGIS has GiST indexes on geometry"),
        "VECTOR" => return Some("a vector index; the extension pgvector has its own"),
        _ => {}
    }
    if !index.visible {
        return Some("the source does not use it (invisible or ignored)");
    }
    let expression = index.parts.iter().any(|part| match part.key {
        IndexKey::Expression(_) => true,
        IndexKey::Column(_) | IndexKey::Prefix(..) => false,
    });
    expression.then_some("on an expression in MySQL's SQL")
}

fn part_sql(table: &PlannedTable, part: &IndexPart) -> Option<String> {
    let key = match &part.key {
        IndexKey::Column(name) => identifier(&table.column(name)?.name),
        IndexKey::Prefix(name, length) => {
            let column = table.column(name)?;
            let name = identifier(&column.name);
            match column.column_type {
                ColumnType::Text => format!("left({name}, {length})"),
                ColumnType::Bytes => format!("substring({name}, 1, {length})"),
                ColumnType::SmallInt
                | ColumnType::Integer
                | ColumnType::BigInt
                | ColumnType::Numeric { .. }
                | ColumnType::Real
                | ColumnType::Double
                | ColumnType::Json
                | ColumnType::Date
                | ColumnType::Timestamp
                | ColumnType::TimestampTz
                | ColumnType::Interval
                | ColumnType::Named(_) => return None,
            }
        }
        IndexKey::Expression(_) => return None,
    };
    Some(if part.descending { format!("{key} DESC") } else { key })
}

/// A unique index that is stricter at the source than here.
fn folding_note(table: &PlannedTable, index: &Index) -> Option<String> {
    if !index.unique {
        return None;
    }
    let columns: Vec<usize> = index
        .parts
        .iter()
        .filter_map(|part| match &part.key {
            IndexKey::Column(name) | IndexKey::Prefix(name, _) => {
                table.schema.columns.iter().position(|column| column.name == *name)
            }
            IndexKey::Expression(_) => None,
        })
        .collect();
    let collation = folding_collation(table, &columns)?;
    Some(format!(
        "-- At the source ({collation}) this also refuses what differs only in case, accents or trailing spaces;\n\
         -- here it does not: a unique index on lower(…) does for case."
    ))
}

/// MySQL's index names are unique per table, PostgreSQL's per schema.
fn index_name(table: &PlannedTable, index: &Index) -> String {
    let (own, name) = (&table.name, &index.name);
    if name.starts_with(own.as_str()) { name.clone() } else { format!("{own}_{name}") }
}

fn foreign_keys(table: &PlannedTable, tables: &[PlannedTable], names: &mut Names) -> Vec<String> {
    let statement = |key: &ForeignKey| {
        let skipped =
            |reason: &str| format!("-- Left out: foreign key {} of {}: {reason}", one_line(&key.name), table.name);
        let Some(parent) = tables.iter().find(|parent| parent.schema.table == key.parent) else {
            return Err(skipped(&format!("its parent {} is not among the tables", one_line(&key.parent.to_string()))));
        };
        if !is_unique(parent, &key.parent_columns) {
            return Err(skipped("the columns that it refers to are not unique, which PostgreSQL requires"));
        }
        let column = |table: &PlannedTable, name: &String| table.column(name).map(|column| column.name.clone());
        let columns: Option<Vec<String>> = key.columns.iter().map(|name| column(table, name)).collect();
        let parents: Option<Vec<String>> = key.parent_columns.iter().map(|name| column(parent, name)).collect();
        let (Some(columns), Some(parents)) = (columns, parents) else {
            return Err(skipped("one of its columns is not among the tables' columns"));
        };
        Ok((parent, columns, parents))
    };
    let lines = table.details.foreign_keys.iter().map(|key| match statement(key) {
        Err(skipped) => skipped,
        Ok((parent, columns, parents)) => format!(
            "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}){}{} DEFERRABLE INITIALLY DEFERRED;",
            identifier(&table.name),
            identifier(&names.give(&key.name)),
            identifiers(columns.iter().map(String::as_str)),
            identifier(&parent.name),
            identifiers(parents.iter().map(String::as_str)),
            rule("DELETE", &key.on_delete),
            rule("UPDATE", &key.on_update),
        ),
    });
    lines.collect()
}

/// Whether the target will have a key or unique constraint of exactly these columns.
pub(super) fn is_unique(table: &PlannedTable, columns: &[String]) -> bool {
    let same = |mut own: Vec<&str>| {
        let mut wanted: Vec<&str> = columns.iter().map(String::as_str).collect();
        own.sort_unstable();
        wanted.sort_unstable();
        own == wanted
    };
    let unique =
        |index: &Index| index.unique && unsupported(index).is_none() && index.whole_columns().is_some_and(same);
    same(table.schema.key_columns().map(|column| column.name.as_str()).collect())
        || table.details.indexes.iter().any(unique)
}

/// `RESTRICT` and `NO ACTION` are one in InnoDB, and the default in PostgreSQL.
fn rule(event: &str, action: &str) -> String {
    match action {
        "CASCADE" | "SET NULL" | "SET DEFAULT" => format!(" ON {event} {action}"),
        _ => String::new(),
    }
}

fn label_checks(table: &PlannedTable, names: &mut Names) -> Vec<String> {
    let mut lines = Vec::new();
    for (column, target) in table.schema.columns.iter().zip(&table.columns) {
        if !column.source_type.starts_with("enum(") {
            continue;
        }
        let Some(labels) = members(&column.source_type) else { continue };
        let labels = labels.iter().map(|label| literal(label)).collect::<Vec<_>>().join(", ");
        let check = format!(
            "ALTER TABLE {} ADD CONSTRAINT {} CHECK ({} IN ({labels}));",
            identifier(&table.name),
            identifier(&names.give(&format!("{}_{}_check", table.name, target.name))),
            identifier(&target.name)
        );
        lines.push(format!("-- {}", one_line(&check)));
    }
    lines
}
