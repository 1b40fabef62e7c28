//! `cutover init` from DynamoDB, whose tables have no columns: what some items hold suggests them.

mod sample;

use std::collections::BTreeSet;

use self::sample::Sample;
use super::{
    Draft, InitArgs, InitError, LeftOut, alike,
    for_mysql::{
        BY_CHARACTERS, Table,
        columns::{Use, fitted},
        quoted_list, schema_header,
    },
    names::{identifier, literal, one_line, shortened},
};
use crate::{
    cli::eligible::unfit_column,
    database::{
        dynamodb::{
            Connector, Item, Service,
            catalog::{self, TableFacts},
            scan::{self, ScanPosition},
        },
        mysql::connect::quoted,
    },
    model::TableSchema,
    target::TargetKind,
};

/// Items that are looked at in each table; the service ends at 1 MB.
const SAMPLE_ITEMS: u64 = 1_000;

/// A table with its suggested target.
struct Planned {
    schema: TableSchema,
    name: String,
    columns: Vec<Column>,
    sampled: usize,
    left_out: usize,
}

/// A column of the target.
struct Column {
    name: String,
    column_type: String,
    is_key: bool,
    select: String,
    note: String,
}

/// Reads the tables' keys and some items, and drafts the files.
pub(super) async fn draft(args: &InitArgs, target: TargetKind) -> Result<Draft, InitError> {
    let connector = Connector::new(&args.source)?;
    let service = connector.connect().await?;
    let only = (!args.tables.is_empty()).then_some(args.tables.as_slice());
    let tables = catalog::load_tables(&service, only).await?;
    let schemas: Vec<TableSchema> = tables.iter().map(|facts| facts.schema.clone()).collect();
    super::check_names(connector.region(), &args.tables, &schemas)?;
    let (mut planned, mut left_out, mut names): (Vec<Planned>, LeftOut, _) = (Vec::new(), Vec::new(), BTreeSet::new());
    for facts in tables {
        let table = facts.schema.table.table.clone();
        match alike(&facts.schema, planned.iter().map(|table| &table.schema)) {
            None => planned.push(plan(&service, facts, &mut names).await?),
            Some(reason) if args.tables.is_empty() => left_out.push((table, reason)),
            Some(reason) => return Err(InitError::Unusable { table, reason }),
        }
    }
    if planned.is_empty() {
        return Err(InitError::NothingToMove { database: connector.region().to_owned(), left_out });
    }
    let schema = match target {
        TargetKind::Postgres => schema_sql(connector.region(), &planned),
        TargetKind::Mysql => schema_for_mysql(connector.region(), &planned),
    };
    Ok(Draft {
        database: connector.region().to_owned(),
        tables: planned.iter().map(|table| table.schema.table.table.clone()).collect(),
        left_out,
        schema,
        after: AFTER.to_owned(),
        transforms: planned.iter().map(|table| (table.name.clone(), transform_sql(table))).collect(),
    })
}

async fn plan(service: &Service, facts: TableFacts, names: &mut BTreeSet<String>) -> Result<Planned, InitError> {
    let schema = facts.schema;
    let table = &schema.table.table;
    let items: Vec<Item> = scan::page(service, table, &ScanPosition::start_of(0, 1), SAMPLE_ITEMS).await?.items;
    let sample = Sample::of(&items, |name| schema.key_columns().any(|column| column.name == name));
    let mut taken = BTreeSet::new();
    let mut columns: Vec<Column> = Vec::new();
    for column in schema.key_columns() {
        columns.push(Column {
            name: fresh(&column.name, &mut taken),
            column_type: column.column_type.sql(),
            is_key: true,
            select: identifier(&column.name),
            note: format!("{}, of the key", column.source_type),
        });
    }
    for (name, seen) in &sample.attributes {
        let suggestion = seen.suggest(sample.items);
        columns.push(Column {
            name: fresh(name, &mut taken),
            column_type: suggestion.column_type.to_owned(),
            is_key: false,
            select: suggestion.select(&literal(name)),
            note: suggestion.note,
        });
    }
    let name = fresh(table, names);
    Ok(Planned { name, columns, sampled: sample.items, left_out: sample.left_out, schema })
}

/// A name as PostgreSQL likes them, `orderItems` as `order_items`; as it is where that is taken. No two names differ in
/// the case of their letters alone, which MySQL takes for one.
fn fresh(name: &str, taken: &mut BTreeSet<String>) -> String {
    let mut snake = String::new();
    let mut previous = '_';
    for c in name.chars() {
        if c.is_ascii_uppercase() && (previous.is_ascii_lowercase() || previous.is_ascii_digit()) {
            snake.push('_');
        }
        previous = c;
        snake.push(if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    }
    let mut name = shortened(if taken.contains(&snake) { name } else { &snake });
    if unfit_column(&name).is_some() {
        name = shortened(&format!("source_{name}"));
    }
    while !taken.insert(name.to_lowercase()) {
        name = shortened(&format!("{name}_"));
    }
    name
}

const AFTER: &str = "-- What the target gets when the copy is complete, run once by cutover: secondary indexes, unique constraints,\n\
     -- foreign keys. DynamoDB has no such things to take over; for example:\n\
     -- CREATE INDEX orders_customer ON orders (customer_id);\n";

fn schema_sql(region: &str, tables: &[Planned]) -> String {
    let mut text = format!(
        "-- The tables of {} for PostgreSQL, written by `cutover init`.\n\
         -- Read it, change it, and run it in the target database before `cutover run`. DynamoDB's items have no columns: these\n\
         -- are what some items suggest. Behind each stands in how many of them the attribute was, and with which types.\n\
         -- What may be missing or of another type needs a column that takes it (defaults: coalesce in the transform).\n",
        one_line(region)
    );
    for table in tables {
        text.push_str(&format!("\nCREATE TABLE {} (\n", identifier(&table.name)));
        for column in &table.columns {
            let null = if column.is_key { " NOT NULL" } else { "" };
            let definition = format!("{} {}{null},", identifier(&column.name), column.column_type);
            text.push_str(&format!("    {definition:40}  -- {}\n", one_line(&column.note)));
        }
        let key = table.columns.iter().filter(|column| column.is_key).map(|column| identifier(&column.name));
        text.push_str(&format!("    PRIMARY KEY ({})\n);\n", key.collect::<Vec<_>>().join(", ")));
    }
    text
}

fn schema_for_mysql(region: &str, tables: &[Planned]) -> String {
    let mut text = schema_header(region);
    text.push_str(
        "-- DynamoDB's items have no columns: these are what some items suggest. Behind each stands in how many of them the\n\
         -- attribute was, and with which types. What may be missing or of another type needs a column that takes it.\n",
    );
    for table in tables {
        let key = || table.columns.iter().filter(|column| column.is_key);
        let of_key = Use::of_key(key().map(|column| (column.column_type.as_str(), None)));
        let line = |column: &Column| {
            let fitted = fitted(&column.column_type, None, if column.is_key { of_key } else { Use::Held });
            let null = if column.is_key { "NOT NULL" } else { "NULL" };
            let notes: Vec<&str> = [Some(column.note.as_str()), fitted.note].into_iter().flatten().collect();
            (format!("{} {} {null}", quoted(&column.name), fitted.sql), notes.join("; "))
        };
        let mut lines: Vec<(String, String)> = table.columns.iter().map(line).collect();
        lines.push((format!("PRIMARY KEY ({})", quoted_list(key().map(|column| column.name.as_str()))), String::new()));
        text.push_str(&Table { name: table.name.clone(), lines, options: BY_CHARACTERS.to_owned() }.render());
    }
    text
}

fn transform_sql(table: &Planned) -> String {
    let source = &table.schema.table.table;
    let mut text = format!(
        "-- {} from DynamoDB's {}, attribute by attribute, as {} items suggest. Written by `cutover init`: rename, cast,\n\
         -- filter with WHERE. Every item goes through this SELECT, as its key's attributes and `item` (jsonb, all of it).\n\
         -- `WHERE NOT cutover_ttl_delete` keeps what Time to Live removes at the source.\n",
        one_line(&table.name),
        one_line(source),
        table.sampled,
    );
    if table.left_out > 0 {
        text.push_str(&format!("-- {} rarer attributes have no column; they are in `item`.\n", table.left_out));
    }
    text.push_str("SELECT\n");
    let last = table.columns.len().saturating_sub(1);
    for (index, column) in table.columns.iter().enumerate() {
        let comma = if index == last { "" } else { "," };
        let select = if column.select == identifier(&column.name) {
            format!("{}{comma}", column.select)
        } else {
            format!("{} AS {}{comma}", column.select, identifier(&column.name))
        };
        text.push_str(&format!("    {select:60}  -- {}\n", one_line(&column.note).replace(';', ",")));
    }
    text.push_str(&format!("FROM {};\n", identifier(source)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_what_needs_no_quotes_and_stay_apart() {
        let mut taken = BTreeSet::new();
        let names = ["orderItems", "Books", "ISBN", "order_items", "a-b", "a_b", "a.b", "books"];
        let made: Vec<String> = names.iter().map(|name| fresh(name, &mut taken)).collect();
        assert_eq!(made, ["order_items", "books", "isbn", "order_items_", "a_b", "a_b_", "a.b", "books_"]);
    }
}
