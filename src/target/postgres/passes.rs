//! Passes over tables: each part of the source's rows in its turn, and then what none of them has made.

use std::sync::Arc;

use tokio_postgres::Row;

use super::{
    comparer::{Counts, EXTRAS_MAX, NUL, PostgresComparer, Summed, refused, summed},
    comparison::seen_table,
    failure::{Failure, of_comparison, stop},
    input::{Binding, WriteInput},
    items::Item,
    origin::{numbers, span},
    statement::Part,
    steps::Param,
    stretches::There,
};
use crate::{
    model::Version,
    target::{ApplyError, Doubt, RowEvent, Walk},
};

/// How comparing some rows ended.
enum Ended {
    Done(Counts),
    Unordered,
    /// One of them cannot be transformed.
    Halve,
}

/// What a statement says of all rows.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    counts: Counts,
    there: There,
}

/// A pass over the rows of one plan.
#[derive(Debug)]
pub(super) struct Pass {
    pub plan: usize,
    pub walk: Walk,
    /// The key up to which extra rows have been looked for.
    pub lower: Option<Vec<Option<String>>>,
    /// What is there, of the stretch that it is in.
    pub there: There,
    /// Everything was handed in and noted.
    pub analyzed: bool,
    pub ended: bool,
}

impl PostgresComparer {
    /// Compares rows for one pass; none if they are out of order. Where one cannot be transformed they are halved.
    pub(super) async fn pass(
        &mut self,
        pass: usize,
        rows: &[RowEvent],
        doubts: &mut Vec<Doubt>,
    ) -> Result<Option<Counts>, ApplyError> {
        let mut counts = Counts::default();
        let mut parts = vec![(0, rows.len())];
        while let Some((first, end)) = parts.pop() {
            let Some(part) = rows.get(first..end).filter(|part| !part.is_empty()) else { continue };
            match self.part(pass, (part, first), doubts).await? {
                Ended::Done(part) => {
                    counts.rows += part.rows;
                    counts.keys_shared += part.keys_shared;
                }
                Ended::Unordered => return Ok(None),
                Ended::Halve => {
                    let middle = first + part.len() / 2;
                    parts.push((middle, end));
                    parts.push((first, middle));
                }
            }
        }
        Ok(Some(counts))
    }

    async fn part(
        &mut self,
        pass: usize,
        (rows, first): (&[RowEvent], usize),
        doubts: &mut Vec<Doubt>,
    ) -> Result<Ended, ApplyError> {
        let plans = Arc::clone(&self.plans);
        let items: Vec<Item<'_>> = rows.iter().map(Item::new).collect();
        let input = WriteInput::new(&plans, &mut self.bindings, &items)?;
        let Some((index, walk)) = self.passes.get(pass).map(|pass| (pass.plan, pass.walk)) else {
            return Ok(Ended::Done(Counts::default()));
        };
        let Some(plan) = plans.get(index) else { return Ok(Ended::Done(Counts::default())) };
        let Some((binding, images)) = self.images(index, &input) else {
            doubts.extend(input.unsendable.iter().map(|row| refused(index, first + row, NUL)));
            return Ok(Ended::Done(Counts::default()));
        };
        let mut params = input.params(plan, &binding, Part::Live, images);
        let (mut upper, mut rows_max, mut told) = (None, usize::MAX, Told::default());
        let text = match walk {
            Walk::Seen => self.text(&binding, |c| c.seen())?,
            Walk::Ranged => {
                let Some((least, most)) = span(plan, &binding, &input, images) else { return Ok(Ended::Unordered) };
                let lower = self.passes.get(pass).and_then(|pass| pass.lower.clone());
                if lower.as_ref().is_some_and(|lower| numbers(lower).is_none_or(|lower| lower >= least)) {
                    return Ok(Ended::Unordered);
                }
                let most: Vec<Option<String>> = most.iter().map(|number| Some(number.to_string())).collect();
                let has_lower = lower.is_some();
                for bound in lower.into_iter().flatten().chain(most.clone()) {
                    params.push(Box::new(bound));
                }
                (upper, rows_max) = (Some(most), images.versions.len() + EXTRAS_MAX + 2);
                // One more is told, so that too many are known without reading them all.
                params.push(Box::new(i64::try_from(rows_max + 1).unwrap_or(i64::MAX)));
                self.text(&binding, |c| c.ranged(has_lower))?
            }
        };
        match self.query(&text, &params).await.map_err(of_comparison) {
            Ok(found) if found.len() > rows_max => return Ok(Ended::Unordered),
            Ok(found) => told = self.told(&binding, &found, |image| Some(first + images.items.get(image)?), doubts)?,
            Err(Failure::Stop(error)) => return Err(error),
            Err(Failure::Rows(_)) if rows.len() > 1 => return Ok(Ended::Halve),
            Err(Failure::Rows(refusal)) => {
                doubts.push(refused(index, first, &self.said(&refusal)));
                // Nothing was compared: the keys up to this one are left to the next part.
                upper = None;
            }
            Err(Failure::Clash | Failure::Unsendable | Failure::Reload) => return Err(ApplyError::Contended),
        }
        doubts.extend(input.unsendable.iter().map(|row| refused(index, first + row, NUL)));
        if let (Some(pass), Some(upper)) = (self.passes.get_mut(pass), upper) {
            pass.lower = Some(upper);
            pass.there.add(told.there);
        }
        Ok(Ended::Done(told.counts))
    }

    /// Takes what a statement has told: doubts, and what it says of all rows. `item` is a row's place by its image.
    fn told(
        &self,
        binding: &Binding,
        found: &[Row],
        item: impl Fn(usize) -> Option<usize>,
        doubts: &mut Vec<Doubt>,
    ) -> Result<Told, ApplyError> {
        let mut told = Told::default();
        for row in found {
            match summed(row).map_err(|error| stop(error.into()))? {
                Some(Summed::Rows(counts)) => told.counts = counts,
                Some(Summed::There(there)) => told.there = there,
                None => {
                    let mut doubt = self.doubt(binding, row)?;
                    doubt.row = doubt.row.and_then(&item);
                    doubts.push(doubt);
                }
            }
        }
        Ok(told)
    }

    /// The next rows that were not made, or, with a version, of which the target has heard above it.
    pub(super) async fn page(&mut self, since: Option<Version>) -> Result<Vec<Doubt>, ApplyError> {
        for index in 0..self.passes.len() {
            while let Some(pass) = self.passes.get(index).filter(|pass| !pass.ended) {
                let (plan, lower) = (pass.plan, pass.lower.clone());
                let noted = pass.walk == Walk::Seen && since.is_none();
                if noted && !pass.analyzed {
                    let analyze = format!("ANALYZE {}", seen_table(plan));
                    self.session.client.batch_execute(&analyze).await.map_err(|error| stop(error.into()))?;
                }
                let binding = self.own_binding(plan)?;
                let text = self.text(&binding, |c| match since {
                    Some(_) => c.changed(lower.is_some(), EXTRAS_MAX),
                    None => c.extras(noted, lower.is_some(), EXTRAS_MAX),
                })?;
                let since = since.map(|since| Box::new(since) as Param<'_>);
                let bounds = lower.into_iter().flatten().map(|bound| Box::new(bound) as Param<'_>);
                let params: Vec<Param<'_>> = since.into_iter().chain(bounds).collect();
                let found = self.query(&text, &params).await.map_err(stop)?;
                let doubts: Result<Vec<Doubt>, ApplyError> =
                    found.iter().map(|row| self.doubt(&binding, row)).collect();
                let doubts = doubts?;
                if let Some(pass) = self.passes.get_mut(index) {
                    pass.analyzed = true;
                    pass.ended = doubts.len() < EXTRAS_MAX;
                    pass.lower = doubts.last().map(|last| last.key.clone());
                }
                if !doubts.is_empty() {
                    return Ok(doubts);
                }
            }
        }
        Ok(Vec::new())
    }
}
