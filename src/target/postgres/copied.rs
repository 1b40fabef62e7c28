//! Rows that are copied as they are: where both servers are PostgreSQL, each makes the same digest of the same rows.
//!
//! What enters is a key of the source, what leaves is what is there up to it, as the source's scan would put it
//! (`database::postgres::scan`) and as a stretch, both of one moment. Equal digests are 64 bits for each row, summed,
//! and a number of rows. **Invariant**: a digest is only made where each column of the source is a column of the target
//! with the same type, and nothing else decides what is there: then rows with one text are equal. Rows whose texts
//! differ may still be equal, and are compared.

use super::{
    comparer::PostgresComparer, comparison::Comparison, failure::stop, passes::Pass, steps::Param, stretches::There,
};
use crate::{
    database::postgres::sql,
    model::{Column, Coverage, Plan, PlanRole},
    snapshot::Digest,
    target::{ApplyError, Stretch, StretchEnd},
};

/// The target's columns that hold the source's, in the source's order; none if rows are not copied as they are.
pub(super) fn columns(plan: &Plan) -> Option<Vec<&str>> {
    let is_whole = plan.role == PlanRole::Whole && plan.coverage == Coverage::Total && !plan.is_owned();
    let held_by = |column: &Column| {
        let held = plan.columns.iter().find(|held| held.source.as_ref() == Some(&column.name))?;
        let target = plan.target.column(&held.name)?;
        (target.cast_sql == without_modifiers(&column.source_type)).then_some(held.name.as_str())
    };
    if is_whole { plan.source.columns.iter().map(held_by).collect() } else { None }
}

/// A type's name without its modifiers: `numeric(10,2)` is `numeric`.
fn without_modifiers(name: &str) -> String {
    let mut depth = 0u32;
    let mut outside = |letter: &char| {
        depth += u32::from(*letter == '(');
        let is_outside = depth == 0;
        depth = depth.saturating_sub(u32::from(*letter == ')'));
        is_outside
    };
    name.chars().filter(|letter| outside(letter)).collect()
}

impl PostgresComparer {
    /// What is there, of every pass, up to a key of the source.
    pub(super) async fn copied_up_to(&mut self, upper: &[String]) -> Result<Option<(Digest, Stretch)>, ApplyError> {
        let (mut ends, mut digest) = (Vec::new(), None);
        for place in 0..self.passes.len() {
            let Some(Pass { plan, lower, .. }) = self.passes.get(place) else { return Ok(None) };
            let (lower, binding) = (lower.clone(), self.own_binding(*plan)?);
            let own = self.plan(*plan)?;
            let (Some(columns), Some(upper)) = (columns(own), key_at_target(own, upper)) else { return Ok(None) };
            let columns: Vec<String> = columns.into_iter().map(str::to_owned).collect();
            let text = self.text(&binding, |c| c.copied(&columns, lower.is_some()))?;
            let bounds = lower.into_iter().flatten().chain(upper.iter().cloned());
            let params: Vec<Param<'_>> = bounds.map(|bound| Box::new(bound) as Param<'_>).collect();
            let answer = self.query(&text, &params).await.map_err(stop)?;
            let Some(row) = answer.first() else { return Ok(None) };
            let read = |place| row.try_get::<_, String>(place).map_err(|error| stop(error.into()));
            let rows: i64 = row.try_get(0).map_err(|error| stop(error.into()))?;
            let (alike, there) = (read(1)?, There::of(rows, &read(2)?));
            let alike = Digest { rows: rows.unsigned_abs(), sum: alike };
            // Plans that copy into several tables have the same rows in each, or there is a difference.
            if digest.get_or_insert_with(|| alike.clone()) != &alike {
                return Ok(None);
            }
            let Some(there) = there else { return Ok(None) };
            ends.push(StretchEnd { upper, there: there.digest() });
        }
        Ok(digest.map(|digest| (digest, Stretch { made_by: self.made_by.clone(), ends })))
    }
}

/// A key of the source in the order of the target's key.
fn key_at_target(plan: &Plan, key: &[String]) -> Option<Vec<Option<String>>> {
    let places = plan.key_reads.as_ref()?;
    let value = |place: &usize| {
        let name = plan.reads.get(*place)?;
        let at = plan.source.key_columns().position(|column| column.name == *name)?;
        key.get(at).cloned().map(Some)
    };
    places.iter().map(value).collect()
}

impl Comparison<'_> {
    /// How many rows are there above the first bound, if there is one, up to the second; the sum of the hashes of these
    /// columns, as a scan of the source makes it; and the sum of a stretch.
    fn copied(&self, columns: &[String], has_lower: bool) -> String {
        let row = sql::list("g.", columns.iter().map(String::as_str));
        format!(
            "SELECT count(*), coalesce(sum(pg_catalog.hashtextextended(ROW({row})::text, 0)), 0)::text, \
             coalesce(sum({hash}), 0)::text FROM ({shown}) g",
            hash = self.row_hash(),
            shown = self.shown(&self.between(has_lower, 1)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_named_without_its_modifiers() {
        for (name, plain) in [
            ("numeric(10,2)", "numeric"),
            ("timestamp(6) without time zone", "timestamp without time zone"),
            ("character varying(40)[]", "character varying[]"),
            ("integer", "integer"),
        ] {
            assert_eq!(without_modifiers(name), plain);
        }
    }
}
