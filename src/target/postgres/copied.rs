//! Rows that are copied as they are: where both servers are PostgreSQL, each makes the same digest of the same rows.
//!
//! What enters is a key of the source, what leaves is what is there up to it, as the source's scan would put it
//! (`database::postgres::scan`) and as a stretch, both of one moment. Equal digests are 64 bits for each row, summed,
//! and a number of rows. **Invariant**: a digest is only made where no transform reads the table, and each column of
//! the target that a row fills has its type at the source: then rows with one text are equal. Rows whose texts differ
//! may still be equal, and are compared.

use super::{comparer::PostgresComparer, comparison::Comparison, failure::stop, passes::Pass, stretches::There};
use crate::{
    database::postgres::sql,
    model::{Column, Plan},
    snapshot::Digest,
    target::{ApplyError, Stretch, StretchEnd},
};

/// The target's columns that hold the source's, in the source's order; none if rows are not copied as they are.
pub(super) fn columns(plan: &Plan) -> Option<Vec<&str>> {
    let is_whole = plan.file.is_none() && plan.columns.len() == plan.source.columns.len() && !plan.is_owned();
    let held_by = |column: &Column| {
        let held = plan.columns.iter().find(|held| held.source.as_ref() == Some(&column.name))?;
        let target = plan.target.column(&held.name).filter(|_| held.cast.is_none())?;
        (target.cast_sql == plain_type(&column.source_type)).then_some(held.name.as_str())
    };
    if is_whole { plan.source.columns.iter().map(held_by).collect() } else { None }
}

/// A type's name without its modifiers, as a target's column has it: `numeric(10,2)` is `numeric`.
fn plain_type(name: &str) -> String {
    let mut depth = 0u32;
    let mut outside = |letter: &char| {
        depth += u32::from(*letter == '(');
        let is_outside = depth == 0;
        depth = depth.saturating_sub(u32::from(*letter == ')'));
        is_outside
    };
    let plain: String = name.chars().filter(|letter| outside(letter)).collect();
    // Its name where there is no length, which would be 1.
    if plain == "character" { "bpchar".into() } else { plain }
}

impl PostgresComparer {
    /// What is there up to a key of the source.
    pub(super) async fn copied_up_to(&mut self, upper: &[String]) -> Result<Option<(Digest, Stretch)>, ApplyError> {
        let [Pass { plan, lower, .. }] = self.passes.as_slice() else { return Ok(None) };
        let (lower, binding) = (lower.clone(), self.own_binding(*plan)?);
        let own = self.plan(*plan)?;
        let (Some(columns), Some(upper)) = (columns(own), key_at_target(own, upper)) else { return Ok(None) };
        let text = self.text(&binding, |c| c.copied(&columns, lower.is_some()))?;
        let answer = self.within(&text, lower, &upper).await?;
        let read = |row: &tokio_postgres::Row| {
            Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
        };
        let read: Option<(i64, String, String)> =
            answer.as_ref().map(read).transpose().map_err(|error| stop(error.into()))?;
        Ok(read.and_then(|(rows, alike, there)| {
            let ends = vec![StretchEnd { upper, there: There::of(rows, &there)?.digest() }];
            Some((Digest { rows: rows.unsigned_abs(), sum: alike }, Stretch { made_by: self.made_by.clone(), ends }))
        }))
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
    fn copied(&self, columns: &[&str], has_lower: bool) -> String {
        let row = sql::list("g.", columns.iter().copied());
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
            ("character(3)", "bpchar"),
            ("integer", "integer"),
        ] {
            assert_eq!(plain_type(name), plain);
        }
    }
}
