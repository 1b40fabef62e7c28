//! What a plan makes of rows, for a target on another server, which compares it with what it has.
//!
//! Rows that cannot be transformed are found by halving, and are doubts. Deliberately absent: any look at where rows
//! end.

use std::sync::Arc;

use tokio_postgres::Row;

use super::{
    PostgresTarget,
    comparer::{NUL, PostgresComparer, refused},
    failure::{Failure, of_comparison, stop},
    input::WriteInput,
    items::Item,
    needs::digest_of,
    origin,
    statement::Part,
    steps::Param,
};
use crate::{
    database::postgres::Refusal,
    model::{Plan, TableName, Value, Version},
    target::{ApplyError, Doubt, Looks, RowEvent},
};

/// Up to which version a source table's rows are gone.
const FENCE: &str =
    "SELECT coalesce(max(version), 0)::bigint FROM cutover.fences WHERE pipeline = $1 AND source_table = $2";

/// A row that a plan makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::target) struct Made {
    /// The place of the source's row.
    pub row: usize,
    /// The text of each of the plan's columns, as [`Fact`](crate::target::rows::Fact) has them.
    pub values: Vec<Option<String>>,
}

impl PostgresTarget {
    /// What compares here, and says what these plans make.
    pub(in crate::target) async fn maker(
        &self,
        plans: Arc<[Plan]>,
        looks: Looks,
    ) -> Result<PostgresComparer, ApplyError> {
        let options = self.options("verify", false);
        PostgresComparer::open((&self.address, &options), &self.settings.pipeline, plans, looks).await
    }
}

/// The least and the highest key of some rows.
pub(in crate::target) type Span = (Vec<i128>, Vec<i128>);

impl PostgresComparer {
    /// What a plan makes of rows. Those that it cannot transform are doubts.
    pub(in crate::target) async fn make(
        &mut self,
        index: usize,
        rows: &[RowEvent],
        doubts: &mut Vec<Doubt>,
    ) -> Result<Vec<Made>, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let plan = plans.get(index).ok_or(ApplyError::Contended)?;
        let (mut made, mut parts) = (Vec::new(), vec![(0, rows.len())]);
        while let Some((first, end)) = parts.pop() {
            let Some(part) = rows.get(first..end).filter(|part| !part.is_empty()) else { continue };
            let items: Vec<Item<'_>> = part.iter().map(Item::new).collect();
            let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
            if let Some((binding, images)) = self.images(index, &input) {
                let text = self.text(&binding, |c| c.builder.made_facts())?;
                let params = input.params(plan, &binding, Part::Live, images);
                match self.query(&text, &params).await.map_err(of_comparison) {
                    Ok(found) => {
                        for row in &found {
                            let (image, values) = read(row).map_err(|error| stop(error.into()))?;
                            let item = image.and_then(|image| images.items.get(image));
                            made.extend(item.map(|item| Made { row: first + item, values }));
                        }
                    }
                    Err(Failure::Stop(error)) => return Err(error),
                    Err(Failure::Rows(_)) if part.len() > 1 => {
                        let middle = first + part.len() / 2;
                        parts.extend([(middle, end), (first, middle)]);
                        continue;
                    }
                    Err(Failure::Rows(refusal)) => {
                        doubts.extend(part.first().map(|event| self.refuse(index, (first, event), &refusal)));
                    }
                    Err(Failure::Clash | Failure::Unsendable | Failure::Reload) => return Err(ApplyError::Contended),
                }
            }
            let unsendable = input.unsendable.iter().filter_map(|row| Some((row, part.get(*row)?)));
            doubts.extend(unsendable.map(|(row, event)| doubt(index, first + row, event, NUL)));
        }
        Ok(made)
    }

    /// A row that is refused, here or where rows end.
    pub(in crate::target) fn refuse(&self, index: usize, (row, event): (usize, &RowEvent), refusal: &Refusal) -> Doubt {
        doubt(index, row, event, &self.said(refusal))
    }

    /// The keys that a plan's rows span, which are whole numbers; none if these are not.
    pub(in crate::target) fn span(&mut self, index: usize, rows: &[RowEvent]) -> Result<Option<Span>, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let items: Vec<Item<'_>> = rows.iter().map(Item::new).collect();
        let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
        let (Some(plan), Some((binding, images))) = (plans.get(index), self.images(index, &input)) else {
            return Ok(None);
        };
        Ok(origin::span(plan, &binding, &input, images))
    }

    /// Whether a plan's keys are whole numbers on both sides, whose order is the same everywhere.
    pub(in crate::target) fn has_numbers(&self, index: usize) -> Result<bool, ApplyError> {
        let binding = self.own_binding(index)?;
        Ok(origin::has_numbers(self.plan(index)?, &binding.types))
    }

    /// The key of the source row that a key of the target leads back to; none where it does not.
    pub(in crate::target) fn source_key(
        &self,
        index: usize,
        key: &[Option<String>],
    ) -> Result<Option<Vec<Value>>, ApplyError> {
        let binding = self.own_binding(index)?;
        Ok(origin::source_key(self.plan(index)?, &binding.types, key))
    }

    /// Up to which version a source table was emptied.
    pub(in crate::target) async fn fence(&mut self, table: &TableName) -> Result<Version, ApplyError> {
        let params: [Param<'_>; 2] = [Box::new(self.pipeline.clone()), Box::new(table.to_string())];
        let found = self.query(FENCE, &params).await.map_err(stop)?;
        let version = found.first().map_or(Ok(0), |row| row.try_get(0));
        version.map_err(|error| stop(error.into()))
    }
}

/// A row that cannot be made. It differs in the same way for as long as the source's is the same.
fn doubt(index: usize, row: usize, event: &RowEvent, reason: &str) -> Doubt {
    Doubt { digest: digest_of(&event.value), ..refused(index, row, reason) }
}

/// The place of an image, and what it makes.
fn read(row: &Row) -> Result<(Option<usize>, Vec<Option<String>>), tokio_postgres::Error> {
    let image: i64 = row.try_get(0)?;
    let values = (1..row.len()).map(|column| row.try_get(column)).collect::<Result<_, _>>()?;
    Ok((usize::try_from(image - 1).ok(), values))
}
