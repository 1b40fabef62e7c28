//! From a MySQL or MariaDB to another: types, defaults, indexes and foreign keys as they are.

use std::collections::BTreeSet;

use super::{Table, after_header, quoted_list, rules, schema_header};
use crate::{
    cli::init::{
        after::{is_the_key, is_unique},
        defaults::is_zero_date,
        names::one_line,
        plan::{PlannedColumn, PlannedTable},
    },
    database::mysql::{
        connect::quoted,
        details::{ColumnDetails, DefaultValue, ForeignKey, Index, IndexKey, IndexPart},
        literal::{is_number, quoted_literal},
    },
    model::{Column, ColumnType},
};

/// `schema.sql` and `schema_after.sql`.
pub(in crate::cli::init) fn render(database: &str, tables: &[PlannedTable]) -> (String, String) {
    let mut schema = schema_header(database);
    let own: BTreeSet<&str> = tables
        .iter()
        .flat_map(|table| &table.schema.columns)
        .filter_map(|column| column.collation.as_deref().filter(|collation| is_of_one_family(collation)))
        .collect();
    if !own.is_empty() {
        let own: Vec<&str> = own.into_iter().collect();
        schema.push_str(&format!(
            "-- Not every server has {}: where the target lacks it, utf8mb4_unicode_520_ci is what all of them have.\n",
            own.join(", ")
        ));
    }
    tables.iter().for_each(|table| schema.push_str(&create_table(table).render()));
    let mut after = after_header(database);
    for lines in tables.iter().map(indexes).chain(tables.iter().map(|table| foreign_keys(table, tables))) {
        if !lines.is_empty() {
            after.push('\n');
            lines.iter().for_each(|line| after.extend([line.as_str(), "\n"]));
        }
    }
    (schema, after)
}

/// Collations that MySQL has and MariaDB has not, or the other way round, or that came late.
fn is_of_one_family(collation: &str) -> bool {
    collation.contains("_0900_") || collation.contains("uca1400") || collation.contains("nopad")
}

fn create_table(table: &PlannedTable) -> Table {
    let mut lines = Vec::new();
    for ((column, details), planned) in table.schema.columns.iter().zip(&table.details.columns).zip(&table.columns) {
        let mut notes = planned.notes.clone();
        let definition = definition(column, details, planned, &mut notes);
        lines.push((definition, notes.join("; ")));
    }
    lines.push(primary_key(table));
    if let Some(index) = counted_by(table) {
        lines.push((format!("KEY {} ({})", quoted(&index.name), parts(table, index)), String::new()));
    }
    let comment = &table.details.comment;
    let options = if comment.is_empty() { String::new() } else { format!(" COMMENT={}", quoted_literal(comment)) };
    Table { name: table.name.clone(), lines, options }
}

fn primary_key(table: &PlannedTable) -> (String, String) {
    match table.details.indexes.iter().find(|index| index.name == "PRIMARY") {
        Some(index) => (format!("PRIMARY KEY ({})", parts(table, index)), String::new()),
        None => (
            format!("PRIMARY KEY ({})", quoted_list(table.key())),
            "the source has no primary key; this is its unique key without nulls".into(),
        ),
    }
}

/// The index that an AUTO_INCREMENT column needs, where it does not begin the primary key.
fn counted_by(table: &PlannedTable) -> Option<&Index> {
    let counted = table.details.columns.iter().find(|column| column.auto_increment)?;
    let begins = |index: &&Index| match index.parts.first().map(|part| &part.key) {
        Some(IndexKey::Column(name)) => *name == counted.name,
        Some(IndexKey::Prefix(..) | IndexKey::Expression(_)) | None => false,
    };
    let mut indexes = table.details.indexes.iter().filter(begins);
    let first = indexes.next()?;
    let is_key = |index: &Index| index.name == "PRIMARY" || (!table.primary && is_the_key(table, index));
    if is_key(first) || indexes.any(is_key) { None } else { Some(first) }
}

fn definition(column: &Column, details: &ColumnDetails, planned: &PlannedColumn, notes: &mut Vec<String>) -> String {
    let mut text = format!("{} {}", quoted(&planned.name), type_sql(column, notes));
    text.push_str(if planned.not_null { " NOT NULL" } else { " NULL" });
    if let Some(default) = details.default.as_ref().filter(|_| details.generation.is_none()) {
        match default_sql(column, default) {
            Some(default) => text.push_str(&format!(" DEFAULT {default}")),
            None => {
                let (DefaultValue::Literal(spelled) | DefaultValue::Expression(spelled)) = default;
                notes.push(format!("the default {spelled} is not carried over"));
            }
        }
    }
    if details.auto_increment {
        text.push_str(" AUTO_INCREMENT");
    }
    if details.on_update_now {
        let digits = column.type_length().map(|digits| format!("({digits})")).unwrap_or_default();
        text.push_str(&format!(" ON UPDATE CURRENT_TIMESTAMP{digits}"));
    }
    if !details.comment.is_empty() {
        text.push_str(&format!(" COMMENT {}", quoted_literal(&details.comment)));
    }
    text
}

/// The column's type, where only one of the two families has it as one that both have.
fn type_sql(column: &Column, notes: &mut Vec<String>) -> String {
    let ascii = |text: &str| format!("{text} CHARACTER SET ascii");
    let stands_for = match column.base_type() {
        "uuid" => Some(ascii("char(36)")),
        "inet4" => Some(ascii("varchar(15)")),
        "inet6" => Some(ascii("varchar(45)")),
        "geomcollection" => Some("geometrycollection".to_owned()),
        // MariaDB's JSON is a text.
        "longtext" if column.column_type == ColumnType::Json => Some("json".to_owned()),
        _ => None,
    };
    if let Some(stands_for) = stands_for {
        notes.insert(0, format!("{} at the source", column.source_type));
        return stands_for;
    }
    match (&column.charset, &column.collation) {
        (Some(charset), Some(collation)) => format!(
            "{} CHARACTER SET {} COLLATE {}",
            column.source_type,
            known_everywhere(charset),
            known_everywhere(collation)
        ),
        (Some(_) | None, Some(_) | None) => column.source_type.clone(),
    }
}

/// Servers before 8.0.30 know no collations of `utf8mb3`, and all of them these by their older name.
fn known_everywhere(name: &str) -> String {
    match name.strip_prefix("utf8mb3") {
        Some(rest) => format!("utf8{rest}"),
        None => name.to_owned(),
    }
}

/// The default in SQL; none where the catalog does not say it faithfully, or the target refuses it.
fn default_sql(column: &Column, default: &DefaultValue) -> Option<String> {
    if is_zero_date(default) && !matches!(default, DefaultValue::Expression(_)) {
        return None;
    }
    match default {
        // Spelled as text of some character set.
        DefaultValue::Literal(_) if column.column_type == ColumnType::Bytes => None,
        // A constant is none that these may have, an expression is (8.0.13).
        DefaultValue::Literal(text)
            if matches!(column.base_type(), "tinytext" | "text" | "mediumtext" | "longtext" | "json") =>
        {
            Some(format!("({})", quoted_literal(text)))
        }
        DefaultValue::Literal(text) => Some(quoted_literal(text)),
        DefaultValue::Expression(text) => {
            let (text, lower) = (text.trim(), text.trim().to_ascii_lowercase());
            let plain = lower.starts_with("current_timestamp") || is_number(text) || is_bits(&lower);
            // MySQL's catalog shows quotes in an expression behind backslashes, which no statement takes.
            let quotes = text.contains("\\'");
            if plain { Some(text.to_owned()) } else { (!quotes).then(|| format!("({text})")) }
        }
    }
}

fn is_bits(text: &str) -> bool {
    ["b'", "x'", "0x", "0b"].iter().any(|start| text.starts_with(start))
}

fn indexes(table: &PlannedTable) -> Vec<String> {
    let inline = counted_by(table).map(|index| &index.name);
    let wanted = |index: &&Index| !is_the_key(table, index) && Some(&index.name) != inline;
    table.details.indexes.iter().filter(wanted).map(|index| index_sql(table, index)).collect()
}

fn index_sql(table: &PlannedTable, index: &Index) -> String {
    let skipped =
        |reason: &str| format!("-- Left out: index {} on {}: {reason}", one_line(&index.name), one_line(&table.name));
    if !index.visible {
        return skipped("the source does not use it (invisible or ignored)");
    }
    let is_expression = |part: &IndexPart| matches!(part.key, IndexKey::Expression(_));
    if index.parts.iter().any(is_expression) {
        return skipped("on an expression, which the catalog does not spell as a statement takes it");
    }
    let kind = match (index.kind.as_str(), index.unique) {
        ("FULLTEXT", _) => "FULLTEXT ",
        ("SPATIAL", _) => "SPATIAL ",
        ("VECTOR", _) => return skipped("a vector index, which each server makes in its own way"),
        (_, true) => "UNIQUE ",
        (_, false) => "",
    };
    format!("CREATE {kind}INDEX {} ON {} ({});", quoted(&index.name), quoted(&table.name), parts(table, index))
}

fn parts(table: &PlannedTable, index: &Index) -> String {
    let own = |name: &String| quoted(table.column(name).map_or(name, |column| &column.name));
    // The catalog counts a length for these that no statement takes.
    let whole = matches!(index.kind.as_str(), "FULLTEXT" | "SPATIAL");
    let part = |part: &IndexPart| {
        let key = match &part.key {
            IndexKey::Column(name) => own(name),
            IndexKey::Prefix(name, _) if whole => own(name),
            IndexKey::Prefix(name, length) => format!("{}({length})", own(name)),
            IndexKey::Expression(text) => format!("({text})"),
        };
        if part.descending { format!("{key} DESC") } else { key }
    };
    index.parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn foreign_keys(table: &PlannedTable, tables: &[PlannedTable]) -> Vec<String> {
    let statement = |key: &ForeignKey| {
        let skipped = |reason: &str| {
            format!("-- Left out: foreign key {} of {}: {reason}", one_line(&key.name), one_line(&table.name))
        };
        let Some(parent) = tables.iter().find(|parent| parent.schema.table == key.parent) else {
            return skipped(&format!("its parent {} is not among the tables", one_line(&key.parent.to_string())));
        };
        if !is_unique(parent, &key.parent_columns) {
            return skipped("the columns that it refers to are not unique, which MySQL refuses from 8.4 on");
        }
        let names = |table: &PlannedTable, columns: &[String]| {
            quoted_list(columns.iter().map(|name| table.column(name).map_or(name.as_str(), |column| &column.name)))
        };
        format!(
            "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}){};",
            quoted(&table.name),
            quoted(&key.name),
            names(table, &key.columns),
            quoted(&parent.name),
            names(parent, &key.parent_columns),
            rules(&key.on_delete, &key.on_update),
        )
    };
    table.details.foreign_keys.iter().map(statement).collect()
}
