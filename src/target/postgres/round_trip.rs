//! Rows of the source that go through a transform and come back through one of the way back: which of them are not
//! what they were.
//!
//! Both run in one statement, over the source's row as it was read; no table of either side is read. Between them a row
//! has the types of the target's columns, rounded as storing rounds it; what the transform does not fill is null there.
//! A row comes back equal if both sides could store what is made of it, and the way back makes a row with its key and
//! its values. Deliberately absent: sets, and keys that several rows of the source may make, since what becomes of
//! those is not known from one row.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio_postgres::Row;

use super::{
    comparer::{NUL, PostgresComparer},
    comparison::differ,
    failure::{Failure, of_comparison, stop},
    input::{Binding, Bindings, WriteInput},
    items::Item,
    statement::{Builder, Part, key_type},
};
use crate::{
    database::postgres::sql,
    model::{Column, ColumnType, Coverage, Plan, PlanColumn, PlanRole, TableName, TargetColumn},
    target::{ApplyError, RowEvent, Strayed},
};

/// Of a row that does not come back at all.
const NOTHING: &str =
    "it does not come back: a filter leaves it out, or a column that must have a value, or room, has none";

/// A transform, and the one of the way back that makes rows of the source of what it makes.
struct Trip<'a> {
    there: &'a Plan,
    back: &'a Plan,
    /// Columns of the source's table that no transform of the way back fills.
    lost: Vec<&'a Column>,
}

impl PostgresComparer {
    /// Whether rows of a source table go and come back one by one.
    pub(super) fn comes_back(&self, table: &TableName, back: &[Plan]) -> bool {
        let one_by_one = |plan: &Plan| goes_alone(plan);
        !pairs(&self.plans, back, table).is_empty()
            && self.plans.iter().filter(|plan| plan.source.table == *table).all(one_by_one)
            && back.iter().filter(|plan| plan.target.name == *table).all(one_by_one)
    }

    /// Those of the rows that do not come back equal, each once.
    pub(super) async fn stray(&mut self, rows: &[RowEvent], back: &[Plan]) -> Result<Vec<Strayed>, ApplyError> {
        let Some(schema) = rows.first().map(|row| Arc::clone(&row.schema)) else { return Ok(Vec::new()) };
        let plans = Arc::clone(&self.plans);
        let mut trips = pairs(&plans, back, &schema.table);
        let filled: BTreeSet<&str> =
            trips.iter().flat_map(|trip| &trip.back.columns).map(|column| column.name.as_str()).collect();
        if let Some(first) = trips.first_mut() {
            let target = &first.back.target;
            let is_lost = |column: &&Column| {
                let known = target.column(&column.name);
                !filled.contains(column.name.as_str()) && known.is_some_and(|known| !known.generated)
            };
            first.lost = schema.columns.iter().filter(is_lost).collect();
        }
        let mut strayed: Vec<Strayed> = Vec::new();
        for trip in &trips {
            self.stray_on(trip, rows, &mut strayed).await?;
        }
        // Several transforms of one table tell of the same row.
        let mut by_row: BTreeMap<usize, Strayed> = BTreeMap::new();
        for Strayed { row, columns, reason } in strayed {
            let known = by_row.entry(row).or_insert_with(|| Strayed { row, columns: Vec::new(), reason: None });
            for column in columns {
                if !known.columns.contains(&column) {
                    known.columns.push(column);
                }
            }
            known.reason = known.reason.take().or(reason);
        }
        Ok(by_row.into_values().collect())
    }

    async fn stray_on(
        &mut self,
        trip: &Trip<'_>,
        rows: &[RowEvent],
        strayed: &mut Vec<Strayed>,
    ) -> Result<(), ApplyError> {
        let plan = trip.wide();
        let (plans, mut bindings) = (std::slice::from_ref(&plan), Bindings::default());
        let mut parts = vec![(0, rows.len())];
        while let Some((first, end)) = parts.pop() {
            let Some(part) = rows.get(first..end).filter(|part| !part.is_empty()) else { continue };
            let items: Vec<Item<'_>> = part.iter().map(Item::new).collect();
            let input = WriteInput::new(plans, &mut bindings, &items)?;
            let told = |row: usize, columns: Vec<String>, reason: Option<String>| Strayed {
                row: first + row,
                columns,
                reason,
            };
            if let Some((place, group)) = input.groups.iter().next()
                && let Some(binding) = bindings.all.get(*place)
            {
                let text = trip.statement(&plan, binding, &self.pipeline);
                let params = input.params(&plan, binding, Part::Live, &group.live);
                match self.query(&text, &params).await.map_err(of_comparison) {
                    Ok(found) => {
                        for row in &found {
                            let (image, columns) = read(row).map_err(|error| stop(error.into()))?;
                            let item = image.and_then(|image| group.live.items.get(image));
                            let reason = columns.is_none().then(|| NOTHING.to_owned());
                            strayed.extend(item.map(|item| told(*item, columns.unwrap_or_default(), reason)));
                        }
                    }
                    Err(Failure::Stop(error)) => return Err(error),
                    Err(Failure::Rows(_)) if part.len() > 1 => {
                        let middle = first + part.len() / 2;
                        parts.extend([(middle, end), (first, middle)]);
                        continue;
                    }
                    Err(Failure::Rows(refusal)) => strayed.push(told(0, Vec::new(), Some(self.said(&refusal)))),
                    Err(Failure::Clash | Failure::Unsendable | Failure::Reload) => return Err(ApplyError::Contended),
                }
            }
            strayed.extend(input.unsendable.iter().map(|row| told(*row, Vec::new(), Some(NUL.to_owned()))));
        }
        Ok(())
    }
}

/// The transforms of a source table that make one row of one, each with those of the way back which do the same with
/// what it makes.
fn pairs<'a>(plans: &'a [Plan], back: &'a [Plan], table: &TableName) -> Vec<Trip<'a>> {
    let mut trips = Vec::new();
    for there in plans.iter().filter(|plan| plan.source.table == *table && goes_alone(plan)) {
        let brings =
            |back: &&Plan| back.source.table == there.target.name && back.target.name == *table && goes_alone(back);
        trips.extend(back.iter().filter(brings).map(|back| Trip { there, back, lost: Vec::new() }));
    }
    trips
}

/// Whether what becomes of a row is known without any other row.
fn goes_alone(plan: &Plan) -> bool {
    plan.coverage != Coverage::Partial && !plan.is_owned() && !matches!(plan.role, PlanRole::Set { .. })
}

impl Trip<'_> {
    /// The transform, with all columns of the source's row that it is compared by.
    fn wide(&self) -> Plan {
        let mut plan = self.there.clone();
        let own = self.back.columns.iter().map(|column| &column.name).chain(&self.back.target.key);
        for name in own.chain(self.lost.iter().map(|column| &column.name)) {
            let is_source = plan.source.columns.iter().any(|column| column.name == *name);
            if is_source && !plan.reads.contains(name) {
                plan.reads.push(name.clone());
            }
        }
        plan
    }

    /// Rows that stray: (place of the image, the columns that differ; null where nothing comes back).
    fn statement(&self, plan: &Plan, binding: &Binding, pipeline: &str) -> String {
        let builder = Builder { plan, types: &binding.types, pipeline, replays: false };
        let place = |name: &str| plan.reads.iter().position(|read| read == name);
        let (mut meets, mut differing, mut absent) = (self.stored(&builder), Vec::new(), Vec::new());
        for mapped in &self.back.columns {
            let (Some(column), Some(place)) = (self.back.target.column(&mapped.name), place(&mapped.name)) else {
                continue;
            };
            let is_text = binding.types.get(place) == Some(&ColumnType::Text);
            let (made, own) = (self.as_stored(mapped, column, is_text), format!("i.c{place}"));
            let own = typed(&own, column, self.back.target.elsewhere, is_text);
            let name = sql::literal(&mapped.name);
            if self.back.target.key.contains(&mapped.name) {
                meets.push(format!("{made} = {own}"));
                continue;
            }
            if column.not_null {
                meets.push(format!("{made} IS NOT NULL"));
            }
            let kind = if is_text { "text" } else { &column.cast_sql };
            differing.push(format!("CASE WHEN {} THEN {name} END", differ(&made, &own, kind)));
            absent.push(format!("CASE WHEN {own} IS NOT NULL THEN {name} END"));
        }
        let lost = self.lost.iter().filter_map(|column| Some((place(&column.name)?, sql::literal(&column.name))));
        differing.extend(lost.map(|(place, name)| format!("CASE WHEN i.c{place} IS NOT NULL THEN {name} END")));
        // Without a row of a contributor that does not own the rows its columns are null, and the row is there.
        let follows = matches!(&self.back.role, PlanRole::Share(share) if !share.own.owns);
        let columns = if follows { format!("coalesce(x.columns, {})", named(&absent)) } else { "x.columns".into() };
        format!(
            "SELECT c.n, c.columns FROM (SELECT i.n, {columns} AS columns FROM {images}\nLEFT JOIN LATERAL (\n\
             SELECT {differing} AS columns FROM {there},\n{back}\nWHERE {meets}) x ON true) c\n\
             WHERE c.columns IS NULL OR c.columns <> '{{}}'",
            images = builder.images(Part::Live),
            differing = named(&differing),
            there = builder.made(),
            back = self.back_again(&builder),
            meets = if meets.is_empty() { "true".to_owned() } else { meets.join(" AND ") },
        )
    }

    /// A column that the way back makes, as the source's column would have it.
    fn as_stored(&self, mapped: &PlanColumn, column: &TargetColumn, is_text: bool) -> String {
        let made = format!("b.{}", sql::ident(&mapped.name));
        // A type of the source's own, which this server need not have.
        let cast = mapped.cast.as_ref().filter(|_| !is_text);
        let made = cast.map_or(made.clone(), |cast| format!("({made})::{cast}"));
        typed(&made, column, self.back.target.elsewhere, is_text)
    }

    /// That the target can store what the transform makes.
    fn stored(&self, builder: &Builder<'_>) -> Vec<String> {
        let mut meets = Vec::new();
        for mapped in &self.there.columns {
            let Some(column) = self.there.target.column(&mapped.name) else { continue };
            let value = builder.value(&mapped.name, mapped.cast.as_ref());
            if column.not_null {
                meets.push(format!("{value} IS NOT NULL"));
            }
            if column.type_sql.starts_with("character") && column.type_sql.contains('(') {
                // Spaces at the end may be cut.
                meets.push(format!(
                    "pg_catalog.rtrim(({value})::{}::text) IS NOT DISTINCT FROM pg_catalog.rtrim(({value})::text)",
                    column.type_sql
                ));
            }
        }
        meets
    }

    /// What the way back makes of a row `o` of the target, as `b`.
    fn back_again(&self, builder: &Builder<'_>) -> String {
        let stored = |name: &String| {
            let source = self.back.source.columns.iter().find(|column| column.name == *name);
            let seen = source.map_or_else(|| "text".into(), |column| column.column_type.sql());
            let made = self.there.columns.iter().find(|column| column.name == *name);
            match (made, self.there.target.column(name)) {
                (Some(made), Some(column)) => {
                    format!("(({})::{})::{seen}", builder.value(name, made.cast.as_ref()), key_type(column))
                }
                (Some(_), None) | (None, _) => format!("NULL::{seen}"),
            }
        };
        let (names, values) = if self.back.reads.is_empty() {
            ("cutover_row".to_owned(), "true".to_owned())
        } else {
            let values: Vec<String> = self.back.reads.iter().map(stored).collect();
            (sql::list("", self.back.reads.iter().map(String::as_str)), values.join(", "))
        };
        format!(
            "LATERAL (WITH {table} ({names}) AS (SELECT {values}) SELECT * FROM (\n{select}\n) q) b",
            table = sql::ident(&self.back.source.table.table),
            select = self.back.select,
        )
    }
}

/// A value in a type in which both sides can be compared: that of the source's column, if this server knows it.
fn typed(value: &str, column: &TargetColumn, elsewhere: bool, is_text: bool) -> String {
    let kind = match (elsewhere, is_text) {
        // A MySQL refuses what it would have to round, a PostgreSQL rounds it.
        (true, _) => &column.cast_sql,
        (false, true) if matches!(column.cast_sql.as_str(), "character" | "bpchar") => "bpchar",
        (false, true) => "text",
        (false, false) => key_type(column),
    };
    format!("({value})::{kind}")
}

/// An array of those names that are not null.
fn named(names: &[String]) -> String {
    format!("pg_catalog.array_remove(ARRAY[{}]::text[], NULL)", names.join(", "))
}

fn read(row: &Row) -> Result<(Option<usize>, Option<Vec<String>>), tokio_postgres::Error> {
    let image: i64 = row.try_get(0)?;
    Ok((usize::try_from(image - 1).ok(), row.try_get(1)?))
}
