//! From a MySQL or MariaDB to another: types, defaults, indexes and foreign keys as they are.

use std::collections::BTreeSet;

use super::{Table, after_header, quoted_list, rules, schema_header};
use crate::{
    cli::init::{
        after::{is_the_key, is_unique, section},
        defaults::is_zero_date,
        names::one_line,
        plan::{PlannedColumn, PlannedTable, is_date},
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
    for collation in own {
        let tells_apart = ["_bin", "_cs"].iter().any(|end| collation.ends_with(end));
        let instead = if tells_apart { "utf8mb4_bin" } else { "utf8mb4_unicode_520_ci" };
        schema.push_str(&format!(
            "-- Not every server has {collation}: where the target lacks it, {instead} is what all of them have.\n"
        ));
    }
    tables.iter().for_each(|table| schema.push_str(&create_table(table).render()));
    let mut after = after_header(database);
    for lines in tables.iter().map(indexes).chain(tables.iter().map(|table| foreign_keys(table, tables))) {
        section(&mut after, lines);
    }
    (schema, after)
}

/// Collations that MySQL has and MariaDB has not, or the other way round, or that came late.
fn is_of_one_family(collation: &str) -> bool {
    collation.starts_with("utf8mb4_") && ["_0900_", "uca1400", "nopad"].iter().any(|part| collation.contains(part))
}

fn create_table(table: &PlannedTable) -> Table {
    let mut lines = Vec::new();
    for ((column, details), planned) in table.schema.columns.iter().zip(&table.details.columns).zip(&table.columns) {
        let mut notes = planned.notes.clone();
        let definition = definition(column, details, planned, &mut notes);
        lines.push((definition, notes.join("; ")));
    }
    lines.push(primary_key(table));
    match counted_by(table) {
        Counted::Nothing | Counted::Key => {}
        Counted::Index(index) => {
            let unique = if index.unique { "UNIQUE " } else { "" };
            lines.push((format!("{unique}KEY {} ({})", quoted(&index.name), parts(table, index)), String::new()));
        }
        Counted::Alone(name) => lines.push((format!("KEY ({})", quoted(name)), "AUTO_INCREMENT needs it".into())),
    }
    let mut options = String::new();
    if let Some(next) = table.details.auto_increment.filter(|next| *next > 1) {
        options.push_str(&format!(" AUTO_INCREMENT={next}"));
    }
    if !table.details.comment.is_empty() {
        options.push_str(&format!(" COMMENT={}", quoted_literal(&table.details.comment)));
    }
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

/// What the index begins with, which an AUTO_INCREMENT column needs.
enum Counted<'a> {
    /// There is no such column.
    Nothing,
    /// The primary key.
    Key,
    Index(&'a Index),
    /// No index of the source's: the target's column, by its name.
    Alone(&'a str),
}

fn counted_by(table: &PlannedTable) -> Counted<'_> {
    let Some(counted) = table.details.columns.iter().find(|column| column.auto_increment) else {
        return Counted::Nothing;
    };
    let begins = |index: &&Index| match index.parts.first().map(|part| &part.key) {
        Some(IndexKey::Column(name)) => *name == counted.name,
        Some(IndexKey::Prefix(..) | IndexKey::Expression(_)) | None => false,
    };
    let indexes: Vec<&Index> = table.details.indexes.iter().filter(begins).collect();
    if indexes.iter().any(|index| is_the_key(table, index)) {
        return Counted::Key;
    }
    match indexes.first() {
        Some(index) => Counted::Index(index),
        None => Counted::Alone(table.column(&counted.name).map_or(&counted.name, |column| &column.name)),
    }
}

fn definition(column: &Column, details: &ColumnDetails, planned: &PlannedColumn, notes: &mut Vec<String>) -> String {
    let mut text = format!("{} {}", quoted(&planned.name), type_sql(column, notes));
    text.push_str(if planned.not_null { " NOT NULL" } else { " NULL" });
    let digits = column.type_length().map(|digits| format!("({digits})")).unwrap_or_default();
    let default = details.default.as_ref().filter(|_| details.generation.is_none());
    if default.is_none() && planned.not_null && column.base_type() == "timestamp" {
        // Without one, MySQL 5.7 and MariaDB give it one of their own, which follows every update.
        notes.push("without a default at the source".into());
        text.push_str(&format!(" DEFAULT CURRENT_TIMESTAMP{digits}"));
    }
    if let Some(default) = default {
        match default_sql(column, default) {
            Some(default) => {
                notes.extend(default.starts_with('(').then(|| "the default needs MySQL 8.0.13 or MariaDB".to_owned()));
                notes.extend(is_moment(column, &default).then(|| "the default is in UTC".to_owned()));
                text.push_str(&format!(" DEFAULT {default}"));
            }
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
    if is_date(&column.column_type) && is_zero_date(default) {
        return None;
    }
    // A constant is none that these may have, an expression is (8.0.13).
    let is_long = ["text", "blob", "json"].iter().any(|end| column.base_type().ends_with(end));
    match default {
        // Spelled as text of some character set.
        DefaultValue::Literal(_) if column.column_type == ColumnType::Bytes => None,
        DefaultValue::Literal(text) if is_long => Some(format!("({})", quoted_literal(text))),
        DefaultValue::Literal(text) => Some(quoted_literal(text)),
        DefaultValue::Expression(text) => {
            let (text, lower) = (text.trim(), text.trim().to_ascii_lowercase());
            let plain = lower.starts_with("current_timestamp") || is_number(text) || is_bits(&lower);
            // MySQL's catalog shows quotes in an expression behind backslashes, which no statement takes.
            let quotes = text.contains("\\'");
            if plain && !is_long { Some(text.to_owned()) } else { (!quotes).then(|| format!("({text})")) }
        }
    }
}

/// Whether it is a constant that a server takes for one of the session's time zone.
fn is_moment(column: &Column, default: &str) -> bool {
    column.base_type() == "timestamp" && default.starts_with('\'')
}

fn is_bits(text: &str) -> bool {
    ["b'", "x'", "0x", "0b"].iter().any(|start| text.starts_with(start))
}

fn indexes(table: &PlannedTable) -> Vec<String> {
    let inline = match counted_by(table) {
        Counted::Index(index) => Some(&index.name),
        Counted::Nothing | Counted::Key | Counted::Alone(_) => None,
    };
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
    if let Some(reason) = index.parts.iter().find_map(|part| unfit(table, index, part)) {
        return skipped(reason);
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

/// What MariaDB has an index on, and MySQL cannot.
fn unfit(table: &PlannedTable, index: &Index, part: &IndexPart) -> Option<&'static str> {
    let (IndexKey::Column(name) | IndexKey::Prefix(name, _)) = &part.key else { return None };
    let column = table.schema.column(name)?;
    if column.column_type == ColumnType::Json {
        return Some("on JSON, which MySQL has no index on");
    }
    let is_long = ["text", "blob"].iter().any(|end| column.base_type().ends_with(end));
    let is_whole = matches!(part.key, IndexKey::Column(_)) && !matches!(index.kind.as_str(), "FULLTEXT" | "SPATIAL");
    (is_long && is_whole).then_some("on the whole of a long column, of which MySQL takes the first characters alone")
}

fn parts(table: &PlannedTable, index: &Index) -> String {
    let own = |name: &String| quoted(table.column(name).map_or(name, |column| &column.name));
    let part = |part: &IndexPart| {
        let key = match &part.key {
            IndexKey::Column(name) => own(name),
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
