//! A PostgreSQL source: the target's tables are the source's own, types and all, if it is a PostgreSQL too.
//!
//! The server spells its types, defaults, indexes and constraints itself, under a search path in which the tables' own
//! schema comes last, so that what is in it is named without it. Partitioned tables become plain ones. Absent on
//! purpose: views, triggers, functions, rules and policies.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::{
    Draft, InitArgs, InitError, LeftOut, for_mysql,
    names::{identifier, identifiers, one_line},
};
use crate::{
    cli::eligible::{obstacle, unfit_column},
    database::postgres::{
        Address, Options, PgError, Session,
        tables::{self, SourceTable},
    },
    model::TableSchema,
    target::TargetKind,
};

/// The schema whose tables are read where none is named.
const SCHEMA: &str = "public";

const SCHEMAS: &str = "
SELECT DISTINCT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 1";

/// Types of the user's that the tables use, the ones that others are made of first.
const TYPES: &str = "
WITH RECURSIVE used AS (
  SELECT a.atttypid AS oid FROM pg_attribute a WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
  UNION
  SELECT part.oid FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (
    SELECT t.typelem AS oid WHERE t.typcategory = 'A' AND t.typtype <> 'd'
    UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
    UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid
    UNION ALL SELECT a.atttypid FROM pg_attribute a
      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) part)
SELECT format_type(t.oid, NULL),
  CASE t.typtype
    WHEN 'e' THEN 'AS ENUM (' || (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
      FROM pg_enum e WHERE e.enumtypid = t.oid) || ')'
    WHEN 'c' THEN 'AS (' || (SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
      FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) || ')'
    WHEN 'r' THEN 'AS RANGE (SUBTYPE = ' || (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid) || ')'
    WHEN 'd' THEN 'AS ' || format_type(t.typbasetype, t.typtypmod) || coalesce(' DEFAULT ' || t.typdefault, '') ||
      CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END ||
      coalesce((SELECT string_agg(' CONSTRAINT ' || quote_ident(c.conname) || ' ' || pg_get_constraintdef(c.oid), '' ORDER BY c.conname)
        FROM pg_constraint c WHERE c.contypid = t.oid AND c.contype = 'c'), '')
  END,
  t.typtype = 'd',
  (SELECT x.extname::text FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
    WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
FROM used JOIN pg_type t ON t.oid = used.oid
WHERE t.typnamespace <> 'pg_catalog'::regnamespace AND (t.typcategory <> 'A' OR t.typtype = 'd')
ORDER BY t.oid";

const COLUMNS: &str = "
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
  CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid, true) END,
  a.attidentity <> '' OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false),
  CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid, true) END,
  CASE WHEN a.attcollation <> t.typcollation AND a.attcollation <> 0 THEN quote_ident(co.collname) END
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_collation co ON co.oid = a.attcollation
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Indexes that no constraint has made.
const INDEXES: &str = "
SELECT pg_get_indexdef(i.indexrelid, 0, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1 AND i.indisvalid AND NOT i.indisprimary
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
ORDER BY c.relname";

/// A foreign key comes with the table that it refers to.
const CONSTRAINTS: &str = "
SELECT quote_ident(k.conname), pg_get_constraintdef(k.oid, true), k.contype = 'f', k.confrelid
FROM pg_constraint k WHERE k.conrelid = $1 AND k.contype IN ('u', 'x', 'c', 'f') AND k.conparentid = 0
ORDER BY k.contype = 'f', k.contype <> 'c', k.conname";

/// What is written of the tables.
pub(super) struct Files {
    pub schema: String,
    pub after: String,
    /// Of each table, in order, the columns that its transform does not take as they are, with what it makes of them.
    pub selects: Vec<BTreeMap<String, String>>,
}

/// Reads the source's tables and writes what moves them.
pub(super) async fn draft(args: &InitArgs, target: TargetKind) -> Result<Draft, InitError> {
    let address = Address::parse(&args.source).map_err(|error| InitError::SourceUrl(error.to_string()))?;
    let database = address.database().to_owned();
    let schema = args.schema.as_deref().unwrap_or(SCHEMA);
    let options = Options {
        application_name: "cutover init".into(),
        schemas: vec![schema.to_owned()],
        ca_file: None,
        replica: false,
    };
    let session = Session::open(&address, &options).await?;
    let only = (!args.tables.is_empty()).then_some(args.tables.as_slice());
    let found = tables::load(&session.client, schema, only).await?;
    if found.is_empty() {
        let schemas = session.client.query(SCHEMAS, &[]).await.map_err(PgError::from)?;
        let others = schemas.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>();
        let others = others.map_err(PgError::from)?;
        if !others.iter().any(|other| other == schema) {
            return Err(InitError::EmptySchema { schema: schema.to_owned(), others });
        }
    }
    let schemas: Vec<TableSchema> = found.iter().map(|table| table.schema.clone()).collect();
    super::check_names(&database, &args.tables, &schemas)?;
    let (found, left_out) = usable(found, &args.tables, target)?;
    if found.is_empty() {
        return Err(InitError::NothingToMove { database, left_out });
    }
    let Files { schema, after, selects } = match target {
        TargetKind::Mysql => for_mysql::from_postgres::render(&session.client, &database, &found).await?,
        TargetKind::Postgres => Files {
            schema: schema_sql(&session.client, &database, &found).await?,
            after: after(&session.client, &database, &found).await?,
            selects: vec![BTreeMap::new(); found.len()],
        },
    };
    let transforms = found.iter().zip(&selects);
    let transforms =
        transforms.map(|(table, selects)| (table.schema.table.table.clone(), transform(&table.schema, selects)));
    Ok(Draft {
        schema,
        after,
        transforms: transforms.collect(),
        tables: found.iter().map(|table| table.schema.table.table.clone()).collect(),
        database,
        left_out,
    })
}

/// Sets aside the tables that cannot be moved; one that was asked for by name is an error.
fn usable(
    found: Vec<SourceTable>,
    asked: &[String],
    target: TargetKind,
) -> Result<(Vec<SourceTable>, LeftOut), InitError> {
    let (mut usable, mut left_out) = (Vec::new(), Vec::new());
    for table in found {
        let nothing = (table.identity == 'n').then(|| {
            "logs nothing of a change (REPLICA IDENTITY NOTHING); ALTER TABLE … REPLICA IDENTITY DEFAULT".to_owned()
        });
        match nothing
            .or_else(|| obstacle(&table.schema).map(|problem| problem.to_string()))
            .or_else(|| unfit(&table.schema))
            .or_else(|| super::file_obstacle(&table.schema))
            .or_else(|| match target {
                TargetKind::Postgres => None,
                TargetKind::Mysql => of_one_name(&table.schema),
            }) {
            None => usable.push(table),
            Some(reason) if asked.is_empty() => left_out.push((table.schema.table.table, reason)),
            Some(reason) => return Err(InitError::Unusable { table: table.schema.table.table, reason }),
        }
    }
    Ok((usable, left_out))
}

/// MySQL takes names of columns that differ in case alone for one.
fn of_one_name(schema: &TableSchema) -> Option<String> {
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    schema.columns.iter().find_map(|column| {
        let other = names.insert(column.name.to_lowercase(), &column.name)?;
        Some(format!(
            "has two columns, `{other}` and `{}`, whose names are one to MySQL; make its table there by hand, with another name for \
             one of them, and a transform that reads it AS that",
            column.name
        ))
    })
}

/// The target's tables are the source's own, names and all.
fn unfit(schema: &TableSchema) -> Option<String> {
    let column = schema.columns.iter().find(|column| unfit_column(&column.name).is_some())?;
    let why = unfit_column(&column.name)?;
    Some(format!(
        "has a column `{}`, {why}; make its table at the target by hand, with another name for it, and a transform that reads \
         it AS that",
        column.name
    ))
}

/// `schema.sql`: types, then tables with their primary keys.
async fn schema_sql(client: &Client, database: &str, found: &[SourceTable]) -> Result<String, PgError> {
    let mut text = format!(
        "-- The tables of {}, written by `cutover init`.\n\
         -- Read it, change it, and run it in the target database before `cutover run`. Indexes, other constraints\n\
         -- and foreign keys are in schema_after.sql, which cutover runs itself when the copy is complete.\n",
        one_line(database)
    );
    let oids: Vec<u32> = found.iter().map(|table| table.oid).collect();
    let mut extensions = Vec::new();
    for row in client.query(TYPES, &[&oids]).await? {
        let (name, made_of, domain): (String, Option<String>, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match (row.try_get::<_, Option<String>>(3)?, made_of) {
            (Some(extension), _) if extensions.contains(&extension) => {}
            (Some(extension), _) => {
                text.push_str(&format!("\nCREATE EXTENSION IF NOT EXISTS {};\n", identifier(&extension)));
                extensions.push(extension);
            }
            (None, Some(made_of)) => {
                let kind = if domain { "DOMAIN" } else { "TYPE" };
                text.push_str(&format!("\nCREATE {kind} {name} {made_of};\n"));
            }
            (None, None) => {
                text.push_str(&format!("\n-- Left out: type {}, which is none that SQL can make\n", one_line(&name)))
            }
        }
    }
    for table in found {
        text.push_str(&create_table(client, table).await?);
    }
    Ok(text)
}

async fn create_table(client: &Client, table: &SourceTable) -> Result<String, PgError> {
    let name = identifier(&table.schema.table.table);
    let mut lines = Vec::new();
    for row in client.query(COLUMNS, &[&table.oid]).await? {
        let (definition, note) = column(&row)?;
        lines.push((format!("{definition},"), note));
    }
    let key = identifiers(table.schema.key_columns().map(|column| column.name.as_str()));
    lines.push((format!("PRIMARY KEY ({key})"), ""));
    let width = lines.iter().map(|(definition, _)| definition.chars().count()).max().unwrap_or_default().min(60);
    let partitioned = if table.partitioned { "  -- in partitions at the source" } else { "" };
    let mut text = format!("\nCREATE TABLE {name} ({partitioned}\n");
    for (definition, note) in lines {
        let line = if note.is_empty() { definition } else { format!("{definition:width$}  -- {note}") };
        text.push_str(&format!("    {line}\n"));
    }
    text.push_str(");\n");
    Ok(text)
}

fn column(row: &Row) -> Result<(String, &'static str), PgError> {
    let (name, type_sql): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let (default, counted): (Option<String>, bool) = (row.try_get(3)?, row.try_get(4)?);
    let (generated, collation): (Option<String>, Option<String>) = (row.try_get(5)?, row.try_get(6)?);
    let mut text = format!("{} {type_sql}", identifier(&name));
    if let Some(collation) = collation {
        text.push_str(&format!(" COLLATE {collation}"));
    }
    let mut note = "";
    if let Some(expression) = generated {
        text.push_str(&format!(" GENERATED ALWAYS AS ({expression}) STORED"));
    } else if counted {
        text.push_str(" GENERATED BY DEFAULT AS IDENTITY");
        note = "its sequence is set at the switch";
    } else if let Some(default) = default {
        text.push_str(&format!(" DEFAULT {default}"));
    }
    if row.try_get(2)? {
        text.push_str(" NOT NULL");
    }
    Ok((text, note))
}

/// `schema_after.sql`: indexes, constraints, then foreign keys.
async fn after(client: &Client, database: &str, found: &[SourceTable]) -> Result<String, PgError> {
    let mut text = format!(
        "-- Indexes, constraints and foreign keys of {}, written by `cutover init`.\n\
         -- cutover runs this file once, when the copy is complete ([target] after_copy); do not run it before.\n",
        one_line(database)
    );
    let mut foreign = String::new();
    for table in found {
        let name = identifier(&table.schema.table.table);
        let mut own = String::new();
        for row in client.query(INDEXES, &[&table.oid]).await? {
            own.push_str(&format!("{};\n", row.try_get::<_, String>(0)?.replacen(" ON ONLY ", " ON ", 1)));
        }
        for row in client.query(CONSTRAINTS, &[&table.oid]).await? {
            let (constraint, definition): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            let (refers, parent): (bool, u32) = (row.try_get(2)?, row.try_get(3)?);
            let statement = format!("ALTER TABLE {name} ADD CONSTRAINT {constraint} {definition};\n");
            if !refers {
                own.push_str(&statement);
            } else if found.iter().any(|table| table.oid == parent) {
                foreign.push_str(&statement);
            } else {
                let left_out = one_line(&statement);
                foreign.push_str(&format!("-- Left out, its parent is not among the tables: {left_out}\n"));
            }
        }
        if !own.is_empty() {
            text.push_str(&format!("\n{own}"));
        }
    }
    if !foreign.is_empty() {
        text.push_str(&format!("\n{foreign}"));
    }
    Ok(text)
}

/// `transforms/<table>.sql`: each column by name, ready to be edited; of some what is made of them instead.
fn transform(schema: &TableSchema, selects: &BTreeMap<String, String>) -> String {
    let name = &schema.table.table;
    let mut text = format!(
        "-- {name} from the source's {name}, column by column. Written by `cutover init`: rename, cast, filter with WHERE.\n\
         -- Every row of the source goes through this SELECT. The primary key must depend on the source's key only.\n\
         SELECT\n",
        name = one_line(name),
    );
    let select = |name: &String| match selects.get(name) {
        Some(made) => format!("{made} AS {}", identifier(name)),
        None => identifier(name),
    };
    let width = schema.columns.iter().map(|column| select(&column.name).chars().count() + 1).max();
    let width = width.unwrap_or_default().min(48);
    let last = schema.columns.len().saturating_sub(1);
    for (index, column) in schema.columns.iter().enumerate() {
        let comma = if index == last { "" } else { "," };
        let select = format!("{}{comma}", select(&column.name));
        let seen_as = column.column_type.sql();
        let own = one_line(&column.source_type).replace(';', ",");
        let note = if seen_as == "text" && own != "text" { format!("{own}, as text") } else { own };
        text.push_str(&format!("    {select:width$}  -- {note}\n"));
    }
    text.push_str(&format!("FROM {};\n", identifier(name)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, ColumnType, TableName};

    #[test]
    fn a_transform_names_every_column_and_says_what_is_text_in_it() {
        let column = |name: &str, source_type: &str, column_type| Column {
            name: name.into(),
            column_type,
            source_type: source_type.into(),
            nullable: true,
            charset: None,
            collation: None,
            generated: false,
        };
        let columns = vec![column("id", "bigint", ColumnType::BigInt), column("Mood", "mood", ColumnType::Text)];
        let schema = TableSchema { table: TableName::new("public", "people"), columns, key: vec![0] };
        let text = transform(&schema, &BTreeMap::new());
        assert!(
            text.ends_with("SELECT\n    id,      -- bigint\n    \"Mood\"   -- mood, as text\nFROM people;\n"),
            "{text}"
        );
        let text = transform(&schema, &BTreeMap::from([("Mood".into(), "upper(\"Mood\")".into())]));
        assert!(text.contains("    upper(\"Mood\") AS \"Mood\"   -- mood"), "{text}");
    }
}
