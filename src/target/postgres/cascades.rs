//! Cascades: stored with the batch that says of them, and which rows of the target refer to a parent.
//!
//! A parent's key is compared with the target's column that the child's column is. Where that would need the source's
//! own rules of comparison (a collation under which 'a' is 'A'), or where no column is it, more rows are answered than
//! refer to the parent: every one of them is read again at the source, so that too many do no harm, and one too few
//! would be a row that stays. **Invariant:** no row at the target that is older than the cascade and refers to its
//! parent is left out. Deliberately absent: rows that are not at the target; those that wait are asked of the state.

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio_postgres::Row;

use super::{
    PostgresSink,
    answers::Mark,
    statement::{cast, key_type},
    steps::{Param, Steps},
};
use crate::{
    database::postgres::{PgError, Session, catalog::VERSION_COLUMN, sql},
    model::{CascadeKind, Column, ColumnType, Plan, PlanRole, TargetColumn, Value, Version},
    target::{Batch, BatchEvent, Child, ChildCursor, Children, ChildrenOf},
};

/// What the version before which a row is meant is called.
const BEFORE: &str = "cutover_before";
/// Rows answered at a time.
const CHILDREN_MAX: usize = 500;

/// Of what happened to one key again and again the newest is enough: it is about all rows before it.
const STORE: &str = "
INSERT INTO cutover.cascades AS c (pipeline, child, kind, key_text, version)
SELECT $1, x.child, x.kind, x.key, max(x.version)
FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) x(child, kind, key, version)
GROUP BY x.child, x.kind, x.key ORDER BY x.child, x.kind, x.key
ON CONFLICT (pipeline, child, kind, md5(key_text))
DO UPDATE SET version = excluded.version, depth = 0, held = false WHERE c.version < excluded.version";

impl PostgresSink {
    /// Queues what this batch says of cascades.
    pub(super) async fn queue_cascades(&mut self, steps: &mut Steps<'_, Mark>, batch: &Batch) -> Result<(), PgError> {
        let (mut children, mut kinds, mut keys, mut versions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for event in &batch.events {
            let BatchEvent::Cascade { cascade, version } = event else { continue };
            children.push(cascade.child.clone());
            kinds.push(kind_name(cascade.kind).to_owned());
            keys.push(cascade.key.clone());
            versions.push(*version);
        }
        if children.is_empty() || self.replay.is_some() {
            return Ok(());
        }
        let params: Vec<Param<'_>> = vec![
            Box::new(self.options.pipeline.clone()),
            Box::new(children),
            Box::new(kinds),
            Box::new(keys),
            Box::new(versions),
        ];
        let statement = self.statement(STORE).await?;
        steps.query(Mark::Done, statement, params);
        Ok(())
    }
}

/// How a kind is stored.
fn kind_name(kind: CascadeKind) -> &'static str {
    match kind {
        CascadeKind::Gone => "gone",
        CascadeKind::Came => "came",
    }
}

/// The rows at the target that these parents may have changed, some at a time.
pub(super) async fn children(
    session: &Session,
    plans: &[Plan],
    of: &ChildrenOf<'_>,
    from: Option<ChildCursor>,
) -> Result<Children, PgError> {
    let mut cursor = from.unwrap_or_default();
    while let Some(plan) = plans.get(cursor.plan) {
        if plan.source.table.to_string() == of.child
            && let Some(query) = Query::new(plan, of)
        {
            let (rows, next) = query.run(session, of, &cursor.after).await?;
            if !rows.is_empty() {
                let next = ChildCursor { after: next, plan: cursor.plan };
                return Ok(Children { rows, next: Some(next) });
            }
        }
        cursor = ChildCursor { plan: cursor.plan + 1, after: Vec::new() };
    }
    Ok(Children { rows: Vec::new(), next: None })
}

/// Whether rows that a plan makes can be led back to those of the source.
pub fn leads_back(plan: &Plan) -> bool {
    let of = ChildrenOf { child: "", columns: &[], keys: &[], any: true, extra: &[] };
    match plan.role {
        PlanRole::Whole | PlanRole::Set { .. } => Query::new(plan, &of).is_some(),
        // They are copied again.
        PlanRole::Share(_) => plan.key_reads.is_some(),
    }
}

/// What asks the table of a plan for children, the first or those that follow; none for a plan whose rows cannot be led
/// back.
pub fn children_statement(plan: &Plan, of: &ChildrenOf<'_>, goes_on: bool) -> Option<String> {
    Query::new(plan, of).map(|query| query.sql(goes_on))
}

/// What asks one target table for the children of parents.
struct Query<'a> {
    plan: &'a Plan,
    /// The key's columns at the source, with the target's columns that they are, in the order of the source's key.
    key: Vec<(&'a Column, &'a TargetColumn)>,
    extra: Vec<Option<(&'a Column, &'a TargetColumn)>>,
    /// How each column that refers to the parent is compared; none if every row is to be answered.
    compared: Option<Vec<(&'a str, Compared<'a>)>>,
}

/// How a value of the source is compared with a column of the target.
enum Compared<'a> {
    /// As numbers.
    Number(&'a Column, &'a TargetColumn),
    /// As the same value of the column's type.
    Same(&'a Column, &'a TargetColumn),
    /// Without regard to case and to spaces at the end; what is not plain ASCII may be equal to anything.
    Text(&'a TargetColumn),
}

impl<'a> Query<'a> {
    /// None for a plan whose rows cannot be led back to those of the source.
    fn new(plan: &'a Plan, of: &ChildrenOf<'a>) -> Option<Self> {
        let keys = match &plan.role {
            PlanRole::Whole => &plan.target.key,
            PlanRole::Set { parent } => parent,
            PlanRole::Share(_) => return None,
        };
        let places = plan.key_reads.as_ref()?;
        let key = plan.source.key_columns().map(|column| {
            let at = places.iter().position(|place| plan.reads.get(*place) == Some(&column.name))?;
            let target = plan.target.column(keys.get(at)?)?;
            spelled(column, "x").map(|_| (column, target))
        });
        let key = key.collect::<Option<Vec<_>>>()?;
        let extra = of.extra.iter().map(|name| mapped(plan, name).filter(|(column, _)| spelled(column, "x").is_some()));
        let extra = extra.collect();
        let compared = of.columns.iter().map(|name| Some((name.as_str(), compared(mapped(plan, name)?)?)));
        let compared = if of.any { None } else { compared.collect::<Option<Vec<_>>>() };
        let compared = compared.filter(|compared| {
            of.keys.iter().all(|(key, _)| compared.iter().all(|(name, how)| tellable(key, name, how)))
        });
        Some(Query { plan, key, extra, compared })
    }

    /// Rows, and where to go on.
    async fn run(
        &self,
        session: &Session,
        of: &ChildrenOf<'_>,
        after: &[String],
    ) -> Result<(Vec<Child>, Vec<String>), PgError> {
        let keys: Vec<&str> = of.keys.iter().map(|(key, _)| key.as_str()).collect();
        let versions: Vec<Version> = of.keys.iter().map(|(_, version)| *version).collect();
        let statement = self.sql(!after.is_empty());
        let rows = session.client.query(&statement, &[&keys, &versions, &after]).await?;
        let mut next = Vec::new();
        if let Some(last) = rows.last() {
            for place in 0..self.key.len() {
                next.push(last.try_get(1 + self.key.len() + self.extra.len() + place)?);
            }
        }
        let rows = rows.iter().map(|row| self.child(row)).collect::<Result<_, _>>()?;
        Ok((rows, next))
    }

    fn child(&self, row: &Row) -> Result<Child, PgError> {
        let value = |place: usize, column: &Column| -> Result<Value, PgError> {
            let text: Option<String> = row.try_get(place)?;
            let Some(text) = text else { return Ok(Value::Null) };
            read(column, &text)
                .ok_or_else(|| PgError::Protocol(format!("a key of {} cannot be read back", self.plan.source.table)))
        };
        let mut key = Vec::new();
        for (place, (column, _)) in self.key.iter().enumerate() {
            key.push(value(1 + place, column)?);
        }
        let mut extra = Vec::new();
        for (place, known) in self.extra.iter().enumerate() {
            extra.push(match known {
                Some((column, _)) => Some(value(1 + self.key.len() + place, column)?),
                None => None,
            });
        }
        Ok(Child { key, extra, version: row.try_get(0)? })
    }

    /// `$1` the parents' keys as JSON, `$2` their versions, `$3` the last key that was answered.
    fn sql(&self, goes_on: bool) -> String {
        let text = |(column, target): (&Column, &TargetColumn)| spelled(column, &own(target)).unwrap_or_default();
        let mut columns: Vec<String> = vec![format!("t.{BEFORE}")];
        columns.extend(self.key.iter().map(|pair| text(*pair)));
        columns.extend(self.extra.iter().map(|pair| pair.map_or_else(|| "NULL::text".to_owned(), text)));
        columns.extend(self.key.iter().map(|(_, target)| format!("{}::text", own(target))));
        let order: Vec<String> = self.key.iter().map(|(_, target)| own(target)).collect();
        let order = order.join(", ");
        let after: Vec<String> = (1..)
            .zip(&self.key)
            .map(|(place, (_, target))| format!("($3::text[])[{place}]::{}", target.cast_sql))
            .collect();
        let after = if goes_on { format!("AND ({order}) > ({})", after.join(", ")) } else { String::new() };
        let (wanted, rows) = self.wanted();
        // The last parameter needs a type where it is not used, too.
        format!(
            "WITH w AS MATERIALIZED ({wanted}), g AS (SELECT $3::text[])\n\
             SELECT DISTINCT ON ({order}) {columns}\nFROM ({rows}) t\n\
             WHERE t.{VERSION_COLUMN} > 0 {after} ORDER BY {order}, t.{BEFORE} DESC LIMIT {CHILDREN_MAX}",
            columns = columns.join(", "),
        )
    }

    /// The parents as rows `w`, and the rows that refer to them, each with the version before which it is meant.
    fn wanted(&self) -> (String, String) {
        let parents = "FROM unnest($1::text[], $2::bigint[]) x(key, version)";
        let table = sql::table(&self.plan.target.name);
        let older = format!("t.{VERSION_COLUMN} < w.version");
        let rows = |condition: &str| {
            format!("SELECT t.*, w.version AS {BEFORE} FROM {table} t JOIN w ON {condition} AND {older}")
        };
        let Some(compared) = &self.compared else {
            return (format!("SELECT max(x.version) AS version {parents}"), rows("true"));
        };
        let (mut values, mut same, mut strange) = (Vec::new(), Vec::new(), Vec::new());
        for (place, (name, how)) in compared.iter().enumerate() {
            let (value, column) = how.sides(&format!("(x.key::json ->> {})", sql::literal(name)));
            values.push(format!("{value} AS c{place}"));
            same.push(format!("{column} = w.c{place}"));
            strange.extend(how.strange());
        }
        let mut referring = rows(&same.join(" AND "));
        if !strange.is_empty() {
            let any = format!(
                "SELECT t.*, w.version FROM {table} t JOIN (SELECT max(version) AS version FROM w) w ON {older} WHERE {}",
                strange.join(" OR ")
            );
            referring = format!("{referring}\nUNION ALL {any}");
        }
        (format!("SELECT {}, x.version {parents}", values.join(", ")), referring)
    }
}

/// A column of the target in a query.
fn own(target: &TargetColumn) -> String {
    format!("t.{}", sql::ident(&target.name))
}

impl Compared<'_> {
    /// What a parent's value and the target's column are compared as. The column stays as it is where it can: it may
    /// have an index.
    fn sides(&self, key: &str) -> (String, String) {
        match self {
            Compared::Number(column, target) => {
                let is_small = !matches!(column.column_type, ColumnType::Numeric { .. });
                match (is_small, target.cast_sql.starts_with("numeric")) {
                    (true, false) => (format!("{key}::bigint"), own(target)),
                    (true | false, true) => (format!("{key}::numeric"), own(target)),
                    (false, false) => (format!("{key}::numeric"), format!("{}::numeric", own(target))),
                }
            }
            Compared::Same(column, target) => {
                (format!("{}::{}", cast(key, &column.column_type), key_type(target)), own(target))
            }
            Compared::Text(target) => (folded(key), folded(&format!("{}::text", own(target)))),
        }
    }

    /// Which rows may refer to any parent.
    fn strange(&self) -> Option<String> {
        match self {
            Compared::Number(..) | Compared::Same(..) => None,
            Compared::Text(target) => Some(format!("({}::text COLLATE \"C\") ~ '[^ -~]'", own(target))),
        }
    }
}

/// A text as it is compared: MySQL's collations take case and spaces at the end for nothing, or they do not.
fn folded(text: &str) -> String {
    format!("pg_catalog.lower(pg_catalog.rtrim({text}) COLLATE \"C\")")
}

/// The target's column that a column of the source is, cast or not.
fn mapped<'a>(plan: &'a Plan, name: &str) -> Option<(&'a Column, &'a TargetColumn)> {
    let column = plan.source.columns.iter().find(|column| column.name.to_lowercase() == name.to_lowercase())?;
    let result = plan.columns.iter().find(|result| result.source.as_ref() == Some(&column.name))?;
    Some((column, plan.target.column(&result.name)?))
}

/// How values of this column are compared with those of the target's; none if that is not known to find all.
fn compared<'a>((column, target): (&'a Column, &'a TargetColumn)) -> Option<Compared<'a>> {
    let is = |names: &[&str]| names.iter().any(|name| target.cast_sql.starts_with(name));
    match &column.column_type {
        ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt | ColumnType::Numeric { scale: 0, .. } => {
            is(&["smallint", "integer", "bigint", "numeric"]).then_some(Compared::Number(column, target))
        }
        ColumnType::Text => is(&["text", "character", "uuid", "citext"])
            .then_some(Compared::Text(target))
            .filter(|_| folds_plainly(column)),
        ColumnType::Bytes
        | ColumnType::Numeric { .. }
        | ColumnType::Date
        | ColumnType::Timestamp
        | ColumnType::TimestampTz => {
            let base = column.column_type.sql();
            let base = base.split('(').next().unwrap_or_default();
            let base = if base == "timestamptz" { "timestamp with time zone" } else { base };
            let base = if base == "timestamp" { "timestamp without time zone" } else { base };
            is(&[base]).then_some(Compared::Same(column, target))
        }
        ColumnType::Real | ColumnType::Double | ColumnType::Json | ColumnType::Interval | ColumnType::Named(_) => None,
    }
}

/// Whether two texts of plain ASCII that this column's collation takes for equal differ in nothing but case and spaces
/// at the end. Some languages take letters for each other (Lithuanian: i and y).
fn folds_plainly(column: &Column) -> bool {
    let Some(collation) = &column.collation else { return true };
    let collation = collation.to_lowercase();
    let plain = ["_bin", "_general_", "_unicode_", "_0900_", "uca1400_"];
    let of_a_language = |rest: &str| {
        // utf8mb4_de_pb_0900_ai_ci, uca1400_lithuanian_ai_ci: a language's name stands between.
        !["utf8mb4_0900_", "_uca1400_ai_", "_uca1400_as_", "_uca1400_nopad_"].iter().any(|known| rest.contains(known))
    };
    match plain.iter().find(|known| collation.contains(**known)) {
        Some(&"_0900_" | &"uca1400_") => !of_a_language(&collation),
        Some(_) => true,
        None => ["binary", "latin1_swedish_ci", "ascii_general_ci", "uca1400_ai_ci"].contains(&collation.as_str()),
    }
}

/// Whether a parent's value is one of those that can be compared so.
fn tellable(key: &str, name: &str, how: &Compared<'_>) -> bool {
    let Ok(key) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(key) else { return false };
    match (key.get(name), how) {
        (None | Some(serde_json::Value::Null), _) => false,
        (Some(serde_json::Value::String(text)), Compared::Text(_)) => {
            text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        }
        (Some(_), Compared::Text(_)) => false,
        (Some(_), Compared::Number(..) | Compared::Same(..)) => true,
    }
}

/// SQL that spells a value of the target as capture spells the source's; none for types that are not led back.
fn spelled(column: &Column, value: &str) -> Option<String> {
    let stamp = |value: &str| format!("pg_catalog.to_char({value}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    Some(match &column.column_type {
        ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt => format!("{value}::bigint::text"),
        ColumnType::Numeric { .. } => format!("{value}::{}::text", column.column_type.sql()),
        ColumnType::Text => format!("{value}::text"),
        ColumnType::Bytes => format!("pg_catalog.replace(pg_catalog.encode({value}, 'base64'), E'\\n', '')"),
        ColumnType::Date => format!("pg_catalog.to_char({value}::date, 'YYYY-MM-DD\"Z\"')"),
        ColumnType::Timestamp => stamp(&format!("{value}::timestamp")),
        ColumnType::TimestampTz => stamp(&format!("({value}::timestamptz AT TIME ZONE 'UTC')")),
        ColumnType::Real | ColumnType::Double | ColumnType::Json | ColumnType::Interval | ColumnType::Named(_) => {
            return None;
        }
    })
}

/// A value that [`spelled`] has spelled.
fn read(column: &Column, text: &str) -> Option<Value> {
    let number = || text.parse().map(Value::Int).or_else(|_| text.parse().map(Value::UInt)).ok();
    match &column.column_type {
        ColumnType::SmallInt | ColumnType::Integer | ColumnType::BigInt => number(),
        ColumnType::Numeric { scale: 0, .. } if column.source_type.contains("int") => number(),
        ColumnType::Bytes => Some(Value::Bytes(STANDARD.decode(text).ok()?)),
        ColumnType::Numeric { .. }
        | ColumnType::Text
        | ColumnType::Date
        | ColumnType::Timestamp
        | ColumnType::TimestampTz => Some(Value::Text(text.to_owned())),
        ColumnType::Real | ColumnType::Double | ColumnType::Json | ColumnType::Interval | ColumnType::Named(_) => None,
    }
}
