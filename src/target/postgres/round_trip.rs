//! Where rows of the source lead that go there and back: through a transform, and through one of the way back.
//!
//! Both run in one statement, over the source's row as it was read, so that neither side's present state plays a part.
//! Between them a row has the types of the target's columns, as if it had been stored; what the transform does not
//! fill is null there. A row comes back equal if the way back makes one with its key, and with its values in every
//! column that the source's table has.

use std::{collections::BTreeSet, sync::Arc};

use tokio_postgres::Row;

use super::{
    comparer::{NUL, PostgresComparer},
    comparison::by_text,
    failure::{Failure, of_comparison, stop},
    input::{Binding, Bindings, WriteInput},
    items::Item,
    statement::{Builder, Part},
};
use crate::{
    database::postgres::sql,
    model::{Column, Plan, PlanRole, TargetColumn},
    target::{ApplyError, RowEvent, Strayed},
};

/// A transform, and the one of the way back that makes rows of the source of what it makes.
struct Trip<'a> {
    there: &'a Plan,
    back: &'a Plan,
    /// Columns of the source's table that no transform of the way back fills.
    lost: Vec<&'a Column>,
}

impl PostgresComparer {
    /// Those of the rows that do not come back equal; none if no transform brings any of them back.
    pub(super) async fn stray(&mut self, rows: &[RowEvent], back: &[Plan]) -> Result<Option<Vec<Strayed>>, ApplyError> {
        let Some(schema) = rows.first().map(|row| Arc::clone(&row.schema)) else { return Ok(Some(Vec::new())) };
        let plans = Arc::clone(&self.plans);
        let mut trips = Vec::new();
        for there in plans.iter().filter(|plan| plan.source.table == schema.table) {
            let brings = |back: &&Plan| {
                let makes_one = |plan: &Plan| !matches!(plan.role, PlanRole::Set { .. });
                back.source.table == there.target.name
                    && back.target.name == schema.table
                    && makes_one(there)
                    && makes_one(back)
            };
            trips.extend(back.iter().filter(brings).map(|back| Trip { there, back, lost: Vec::new() }));
        }
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
        if trips.is_empty() {
            return Ok(None);
        }
        let mut strayed = Vec::new();
        for trip in &trips {
            self.stray_on(trip, rows, &mut strayed).await?;
        }
        Ok(Some(strayed))
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
                            let reason = columns.is_none().then(|| "the way back makes no row of it".to_owned());
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
        let image = |name: &str| plan.reads.iter().position(|read| read == name).map(|place| format!("i.c{place}"));
        let typed = |value: &str, column: &TargetColumn| {
            let cast = format!("({value})::{}", column.cast_sql);
            if by_text(&column.cast_sql) { format!("({cast})::text") } else { cast }
        };
        let (mut same, mut differing) = (Vec::new(), Vec::new());
        for mapped in &self.back.columns {
            let (Some(column), Some(own)) = (self.back.target.column(&mapped.name), image(&mapped.name)) else {
                continue;
            };
            let made = format!("b.{}", sql::ident(&mapped.name));
            let made = mapped.cast.as_ref().map_or(made.clone(), |cast| format!("({made})::{cast}"));
            let (made, own) = (typed(&made, column), typed(&own, column));
            if self.back.target.key.contains(&mapped.name) {
                same.push(format!("{made} = {own}"));
            } else {
                let name = sql::literal(&mapped.name);
                differing.push(format!("CASE WHEN {made} IS DISTINCT FROM {own} THEN {name} END"));
            }
        }
        let lost = self.lost.iter().filter_map(|column| Some((image(&column.name)?, sql::literal(&column.name))));
        differing.extend(lost.map(|(own, name)| format!("CASE WHEN {own} IS NOT NULL THEN {name} END")));
        if same.is_empty() {
            same.push("false".into());
        }
        format!(
            "SELECT i.n, x.columns FROM {images}\nLEFT JOIN LATERAL (\n\
             SELECT pg_catalog.array_remove(ARRAY[{differing}]::text[], NULL) AS columns FROM {there},\n{back}\nWHERE {same}) x ON true\n\
             WHERE x.columns IS NULL OR x.columns <> '{{}}'",
            images = builder.images(Part::Live),
            differing = differing.join(", "),
            there = builder.made(),
            back = self.back_again(&builder),
            same = same.join(" AND "),
        )
    }

    /// What the way back makes of a row `o` of the target, as `b`.
    fn back_again(&self, builder: &Builder<'_>) -> String {
        let stored = |name: &String| {
            let source = self.back.source.columns.iter().find(|column| column.name == *name);
            let seen = source.map_or_else(|| "text".into(), |column| column.column_type.sql());
            let made = self.there.columns.iter().find(|column| column.name == *name);
            match (made, self.there.target.column(name)) {
                (Some(made), Some(column)) => {
                    format!("(({})::{})::{seen}", builder.value(name, made.cast.as_ref()), column.type_sql)
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

fn read(row: &Row) -> Result<(Option<usize>, Option<Vec<String>>), tokio_postgres::Error> {
    let image: i64 = row.try_get(0)?;
    Ok((usize::try_from(image - 1).ok(), row.try_get(1)?))
}
