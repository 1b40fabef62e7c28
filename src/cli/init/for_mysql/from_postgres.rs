//! From a PostgreSQL: each type as a column that holds it, texts told apart by all but blanks at their end.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::{
    BY_CHARACTERS, CHARACTER_BYTES, KEY_BYTES_MAX, Table, after_header,
    columns::{Fitted, Use, default, fitted},
    quoted_list, rules, schema_header,
};
use crate::{
    cli::init::{
        after::section,
        names::{Names, identifier, one_line},
        postgres::Files,
    },
    database::{
        mysql::connect::quoted,
        postgres::{PgError, tables::SourceTable},
    },
};

/// The characters, or bytes, of a long column that an index takes: as many as each row format has room for.
const PREFIX: u32 = 191;
/// Bytes in a key of what is no text: as many as the longest number.
const OTHER_BYTES: u32 = 30;
/// The characters of a row's short texts, which has 65,535 bytes.
const ROW_CHARS_MAX: u32 = 15_000;

/// Columns, with a domain's base type in its place.
const COLUMNS: &str = "
SELECT a.attname::text, format_type(b.oid, b.typmod),
  (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = b.oid),
  a.attnotnull OR b.typnotnull,
  CASE WHEN a.attgenerated = '' AND a.attidentity = '' THEN pg_get_expr(d.adbin, d.adrelid, true) END,
  a.attidentity <> '' OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false),
  CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid, true) END
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
CROSS JOIN LATERAL (
  WITH RECURSIVE b AS (
    SELECT t.oid, a.atttypmod AS typmod, t.typtype, t.typbasetype, t.typtypmod, t.typnotnull
    UNION ALL SELECT n.oid, b.typtypmod, n.typtype, n.typbasetype, n.typtypmod, b.typnotnull OR n.typnotnull
    FROM b JOIN pg_type n ON n.oid = b.typbasetype WHERE b.typtype = 'd')
  SELECT b.oid, b.typmod, b.typnotnull FROM b WHERE b.typtype <> 'd') b
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// All valid indexes; one on an expression has a null among its columns.
const INDEXES: &str = "
SELECT c.relname::text, i.indisunique, m.amname::text, i.indpred IS NOT NULL,
  coalesce((to_jsonb(i)->>'indnullsnotdistinct')::boolean, false),
  ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(number, place)
    LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
    WHERE k.place <= i.indnkeyatts ORDER BY k.place),
  ARRAY(SELECT o.bits & 1 = 1 FROM unnest(i.indoption::int2[]) WITH ORDINALITY o(bits, place) ORDER BY o.place)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
WHERE i.indrelid = $1 AND i.indisvalid ORDER BY c.relname";

const FOREIGN_KEYS: &str = "
SELECT k.conname::text, k.confrelid, k.confrelid::regclass::text,
  CASE k.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE '' END,
  CASE k.confupdtype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE '' END,
  ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY c(number, place)
    JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.number ORDER BY c.place),
  ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY c(number, place)
    JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = c.number ORDER BY c.place)
FROM pg_constraint k WHERE k.conrelid = $1 AND k.contype = 'f' AND k.conparentid = 0 ORDER BY k.conname";

const OTHER_CONSTRAINTS: &str = "
SELECT k.conname::text, pg_get_constraintdef(k.oid, true) FROM pg_constraint k
WHERE k.conrelid = $1 AND k.contype IN ('c', 'x') ORDER BY k.conname";

/// What is read of one table.
struct Read<'a> {
    source: &'a SourceTable,
    columns: Vec<Column>,
    indexes: Vec<Index>,
    foreign_keys: Vec<ForeignKey>,
    /// By name, as PostgreSQL spells them.
    other_constraints: Vec<(String, String)>,
}

struct Column {
    name: String,
    /// As `format_type` spells it.
    type_name: String,
    labels: Option<Vec<String>>,
    not_null: bool,
    default: Option<String>,
    counted: bool,
    generated: Option<String>,
}

struct Index {
    name: String,
    unique: bool,
    method: String,
    partial: bool,
    nulls_are_equal: bool,
    columns: Vec<Option<String>>,
    descending: Vec<bool>,
}

struct ForeignKey {
    name: String,
    parent: u32,
    parent_name: String,
    on_delete: String,
    on_update: String,
    columns: Vec<String>,
    parent_columns: Vec<String>,
}

/// Reads the tables' columns, indexes and constraints, and writes what the target is to have of them.
pub(in crate::cli::init) async fn render(
    client: &Client,
    database: &str,
    found: &[SourceTable],
) -> Result<Files, PgError> {
    let mut tables = Vec::new();
    for source in found {
        tables.push(read(client, source).await?);
    }
    let (mut schema, mut after) = (schema_header(database), after_header(database));
    let (mut selects, mut foreign) = (Vec::new(), Vec::new());
    let (fitted, mut names) = (fit(&tables), Names::default());
    for (table, columns) in tables.iter().zip(&fitted) {
        schema.push_str(&create_table(table, columns).render());
        computed(table).for_each(|line| schema.extend([line.as_str(), "\n"]));
        let lines = indexes(table, columns).chain(other_constraints(table)).collect::<Vec<_>>();
        section(&mut after, lines);
        let foreign_key = |key: &ForeignKey| foreign_key((table, columns), key, &tables, &mut names);
        foreign.extend(table.foreign_keys.iter().map(foreign_key));
        let select = |(name, fitted): (&&str, &Fitted)| {
            Some(((*name).to_owned(), fitted.select?.replace("{}", &identifier(name))))
        };
        selects.push(columns.iter().filter_map(select).collect());
    }
    section(&mut after, foreign);
    Ok(Files { schema, after, selects })
}

async fn read<'a>(client: &Client, source: &'a SourceTable) -> Result<Read<'a>, PgError> {
    let rows = async |query: &str| client.query(query, &[&source.oid]).await.map_err(PgError::from);
    let columns = rows(COLUMNS).await?.iter().map(column).collect::<Result<_, _>>()?;
    let indexes = rows(INDEXES).await?.iter().map(index).collect::<Result<_, _>>()?;
    let foreign_keys = rows(FOREIGN_KEYS).await?.iter().map(key).collect::<Result<_, _>>()?;
    let named = |row: &Row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?));
    let other_constraints = rows(OTHER_CONSTRAINTS).await?.iter().map(named).collect::<Result<_, _>>()?;
    Ok(Read { source, columns, indexes, foreign_keys, other_constraints })
}

fn column(row: &Row) -> Result<Column, tokio_postgres::Error> {
    Ok(Column {
        name: row.try_get(0)?,
        type_name: row.try_get(1)?,
        labels: row.try_get(2)?,
        not_null: row.try_get(3)?,
        default: row.try_get(4)?,
        counted: row.try_get(5)?,
        generated: row.try_get(6)?,
    })
}

fn index(row: &Row) -> Result<Index, tokio_postgres::Error> {
    Ok(Index {
        name: row.try_get(0)?,
        unique: row.try_get(1)?,
        method: row.try_get(2)?,
        partial: row.try_get(3)?,
        nulls_are_equal: row.try_get(4)?,
        columns: row.try_get(5)?,
        descending: row.try_get(6)?,
    })
}

fn key(row: &Row) -> Result<ForeignKey, tokio_postgres::Error> {
    Ok(ForeignKey {
        name: row.try_get(0)?,
        parent: row.try_get(1)?,
        parent_name: row.try_get(2)?,
        on_delete: row.try_get(3)?,
        on_update: row.try_get(4)?,
        columns: row.try_get(5)?,
        parent_columns: row.try_get(6)?,
    })
}

/// The target's columns, by name.
type Columns<'a> = BTreeMap<&'a str, Fitted>;

/// The columns of all tables.
fn fit<'a>(tables: &'a [Read<'_>]) -> Vec<Columns<'a>> {
    let mut fitted: Vec<Columns<'a>> = tables.iter().map(|table| fit_one(table, tables)).collect();
    // PostgreSQL lets an integer refer to a bigint; here a column that refers to another one has its type. One that is
    // referred to may refer to a third.
    for _ in tables {
        for (place, table) in tables.iter().enumerate() {
            for key in &table.foreign_keys {
                let Some(parent) = tables.iter().position(|parent| parent.source.oid == key.parent) else { continue };
                for (child, of) in key.columns.iter().zip(&key.parent_columns) {
                    let wanted = fitted
                        .get(parent)
                        .and_then(|columns| columns.get(of.as_str()))
                        .map(|column| column.sql.clone());
                    let child = fitted.get_mut(place).and_then(|columns| columns.get_mut(child.as_str()));
                    if let (Some(wanted), Some(child)) = (wanted, child) {
                        child.sql = wanted;
                    }
                }
            }
        }
    }
    fitted.iter_mut().for_each(fit_in_a_row);
    fitted
}

fn fit_one<'a>(table: &'a Read<'_>, tables: &[Read<'_>]) -> Columns<'a> {
    let whole = compared_whole(table, tables);
    let used = |name: &str| {
        let of_key = |key: &Vec<String>| {
            let columns = table.columns.iter().filter(|column| key.contains(&column.name));
            Use::of_key(columns.map(|column| (column.type_name.as_str(), column.labels.as_deref())))
        };
        whole.iter().filter(|key| key.iter().any(|column| column == name)).map(of_key).fold(Use::Held, Use::and)
    };
    let taken = table.columns.iter().filter(|column| column.generated.is_none());
    let fit = |column: &'a Column| fitted(&column.type_name, column.labels.as_deref(), used(&column.name));
    taken.map(|column| (column.name.as_str(), fit(column))).collect()
}

/// A row has room for so many characters besides those of long columns; one with more has its short texts there too.
fn fit_in_a_row(columns: &mut Columns<'_>) {
    if columns.values().filter_map(Fitted::chars).sum::<u32>() > ROW_CHARS_MAX {
        columns.values_mut().filter(|column| !column.in_key && column.chars().is_some()).for_each(|column| {
            column.sql = "longtext".into();
        });
    }
}

/// The columns of each key, unique index and foreign key of the table, and of those that refer to it.
fn compared_whole(table: &Read<'_>, tables: &[Read<'_>]) -> Vec<Vec<String>> {
    let mut whole = vec![key_of(table)];
    let uniques = table.indexes.iter().filter(|index| index.unique && unsupported(index).is_none());
    whole.extend(uniques.map(|index| index.columns.iter().flatten().cloned().collect()));
    let is_there = |oid: u32| tables.iter().any(|table| table.source.oid == oid);
    let own = table.foreign_keys.iter().filter(|key| is_there(key.parent));
    whole.extend(own.map(|key| key.columns.clone()));
    let to_it = tables.iter().flat_map(|other| &other.foreign_keys).filter(|key| key.parent == table.source.oid);
    whole.extend(to_it.map(|key| key.parent_columns.clone()));
    whole
}

fn key_of(table: &Read<'_>) -> Vec<String> {
    table.source.schema.key_columns().map(|column| column.name.clone()).collect()
}

fn create_table(table: &Read<'_>, columns: &Columns<'_>) -> Table {
    let key = key_of(table);
    // MySQL counts one column of a table, which a key begins with.
    let can_count = |column: &&Column| {
        column.counted && column.not_null && columns.get(column.name.as_str()).is_some_and(Fitted::is_whole_number)
    };
    let counted = table.columns.iter().find(can_count).map(|column| &column.name);
    let mut lines = Vec::new();
    for column in &table.columns {
        if let Some(fitted) = columns.get(column.name.as_str()) {
            lines.push(definition(column, fitted, &key, counted == Some(&column.name)));
        }
    }
    lines.push((format!("PRIMARY KEY ({})", quoted_list(key.iter().map(String::as_str))), String::new()));
    if let Some(counted) = counted.filter(|counted| key.first() != Some(*counted)) {
        lines.push((format!("KEY ({})", quoted(counted)), "AUTO_INCREMENT needs it".into()));
    }
    Table { name: table.source.schema.table.table.clone(), lines, options: BY_CHARACTERS.to_owned() }
}

fn definition(column: &Column, fitted: &Fitted, key: &[String], counted: bool) -> (String, String) {
    let mut text = format!("{} {}", quoted(&column.name), fitted.sql);
    let mut notes = vec![column.type_name.clone()];
    notes.extend(fitted.note.map(str::to_owned));
    text.push_str(if column.not_null || key.contains(&column.name) { " NOT NULL" } else { " NULL" });
    if counted {
        text.push_str(" AUTO_INCREMENT");
    } else if column.counted {
        notes.push("a sequence at the source: give it a default".into());
    } else if let Some(expression) = &column.default {
        match default(expression, fitted) {
            Some(default) => {
                if column.type_name.contains("with time zone") {
                    notes.push("the default is in the session's time zone".into());
                }
                text.push_str(&format!(" DEFAULT {default}"));
            }
            None => notes.push(format!("the default {expression} is not carried over")),
        }
    }
    (text, notes.join("; "))
}

fn unsupported(index: &Index) -> Option<&'static str> {
    if !matches!(index.method.as_str(), "btree" | "hash") {
        return Some("of a kind that MySQL has not");
    }
    if index.partial {
        return Some("of a part of the rows, which MySQL has not");
    }
    if index.columns.iter().any(Option::is_none) {
        return Some("on an expression in PostgreSQL's SQL");
    }
    (index.unique && index.nulls_are_equal).then_some("takes nulls for equal, which MySQL does not")
}

fn indexes<'a>(table: &'a Read<'_>, columns: &'a Columns<'_>) -> impl Iterator<Item = String> + 'a {
    let key = key_of(table);
    let is_key = move |index: &Index| {
        let own: Vec<&String> = index.columns.iter().flatten().collect();
        index.unique && unsupported(index).is_none() && own == key.iter().collect::<Vec<_>>()
    };
    table.indexes.iter().filter(move |index| !is_key(index)).map(|index| index_sql(table, columns, index))
}

fn index_sql(table: &Read<'_>, columns: &Columns<'_>, index: &Index) -> String {
    let name = &table.source.schema.table.table;
    let skipped =
        |reason: &str| format!("-- Left out: index {} on {}: {reason}", one_line(&index.name), one_line(name));
    if let Some(reason) = unsupported(index) {
        return skipped(reason);
    }
    let mut taken = Vec::new();
    for column in index.columns.iter().flatten() {
        let Some(fitted) = columns.get(column.as_str()) else {
            return skipped(&format!("`{}` is generated, and not in the target", one_line(column)));
        };
        if fitted.is_json() {
            return skipped(&format!("`{}` is JSON, which no index of MySQL takes", one_line(column)));
        }
        taken.push((column, fitted));
    }
    // All texts together are no longer than a key; those that are compared whole fit already.
    let texts = taken.iter().filter(|(_, fitted)| fitted.is_long() || fitted.chars().is_some()).count();
    let others = u32::try_from(taken.len() - texts).unwrap_or_default() * OTHER_BYTES;
    let room = KEY_BYTES_MAX.saturating_sub(others) / CHARACTER_BYTES / u32::try_from(texts.max(1)).unwrap_or(1);
    let prefix = |fitted: &Fitted| match fitted.chars() {
        Some(chars) if !index.unique && chars > room => format!("({room})"),
        None if fitted.is_long() => format!("({})", PREFIX.min(room)),
        Some(_) | None => String::new(),
    };
    let part = |((column, fitted), descending): (&(&String, &Fitted), &bool)| {
        format!("{}{}{}", quoted(column), prefix(fitted), if *descending { " DESC" } else { "" })
    };
    let parts: Vec<String> = taken.iter().zip(&index.descending).map(part).collect();
    let unique = if index.unique { "UNIQUE " } else { "" };
    format!("CREATE {unique}INDEX {} ON {} ({});", quoted(&index.name), quoted(name), parts.join(", "))
}

/// Columns that the source computes: its log does not have them.
fn computed<'a>(table: &'a Read<'_>) -> impl Iterator<Item = String> + 'a {
    table.columns.iter().filter_map(|column| {
        let expression = one_line(column.generated.as_ref()?);
        Some(format!("-- Left out: column {}, which the source computes as {expression}", one_line(&column.name)))
    })
}

/// Constraints in PostgreSQL's SQL.
fn other_constraints<'a>(table: &'a Read<'_>) -> impl Iterator<Item = String> + 'a {
    let name = one_line(&table.source.schema.table.table);
    table.other_constraints.iter().map(move |(constraint, definition)| {
        format!("-- Left out: {} of {name}: {}", one_line(constraint), one_line(definition))
    })
}

fn foreign_key(
    (table, columns): (&Read<'_>, &Columns<'_>),
    key: &ForeignKey,
    tables: &[Read<'_>],
    names: &mut Names,
) -> String {
    let name = &table.source.schema.table.table;
    let skipped =
        |reason: &str| format!("-- Left out: foreign key {} of {}: {reason}", one_line(&key.name), one_line(name));
    let Some(parent) = tables.iter().find(|parent| parent.source.oid == key.parent) else {
        return skipped(&format!("its parent {} is not among the tables", one_line(&key.parent_name)));
    };
    if let Some(generated) = key.columns.iter().find(|column| !columns.contains_key(column.as_str())) {
        return skipped(&format!("`{}` is generated, and not in the target", one_line(generated)));
    }
    let Some(pairs) = in_order(key, parent) else {
        return skipped("the columns that it refers to have no unique index that MySQL can have");
    };
    let strict = |column: &&Column| {
        key.columns.contains(&column.name) && (column.not_null || key_of(table).contains(&column.name))
    };
    // PostgreSQL has such a rule, which fails when it acts.
    let acts = |rule: &str| rule != "SET NULL" || !table.columns.iter().any(|column| strict(&column));
    let rule = |rule: &str| if acts(rule) { rule.to_owned() } else { String::new() };
    format!(
        "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}){};",
        quoted(name),
        // MySQL's names of constraints are those of a database.
        quoted(&names.give(&key.name.to_lowercase())),
        quoted_list(pairs.iter().map(|(own, _)| own.as_str())),
        quoted(&parent.source.schema.table.table),
        quoted_list(pairs.iter().map(|(_, of)| of.as_str())),
        rules(&rule(&key.on_delete), &rule(&key.on_update)),
    )
}

/// The columns of a foreign key beside those that they refer to, in the order of an index of the parent.
fn in_order<'a>(key: &'a ForeignKey, parent: &Read<'_>) -> Option<Vec<(&'a String, &'a String)>> {
    let uniques = parent.indexes.iter().filter(|index| index.unique && unsupported(index).is_none());
    let uniques = uniques.map(|index| index.columns.iter().flatten().cloned().collect::<Vec<String>>());
    let mut indexes = [key_of(parent)].into_iter().chain(uniques);
    let pair = |column: &String| key.columns.iter().zip(&key.parent_columns).find(|(_, of)| *of == column);
    indexes.find_map(|columns| {
        let is_whole = columns.len() == key.columns.len();
        columns.iter().map(pair).collect::<Option<Vec<_>>>().filter(|_| is_whole)
    })
}
