//! Stretches of a pass: what was there when it was compared, and whether it still is.
//!
//! What enters is where a pass is, what leaves is digests of the target's rows up to a key. A digest is made by the
//! statement that compares, so that both are of one moment: what somebody writes past cutover a moment later is not in
//! it. Versions are part of it, so that a row that was changed and changed back is another one. Deliberately absent:
//! chunks of the source, and what was found of them (`verify`).

use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;

use super::{
    comparer::PostgresComparer, comparison::Comparison, failure::stop, origin::numbers, passes::Pass, steps::Param,
};
use crate::{
    database::postgres::sql,
    snapshot::Digest,
    target::{ApplyError, Looks, Stretch, StretchEnd, Walk},
};

/// Types whose values have a hash of their own, equal where the values are.
const HASHED: [&str; 17] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "text",
    "character varying",
    "bpchar",
    "boolean",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
    "interval",
    "uuid",
    "bytea",
    "jsonb",
];
/// Every function that is not the server's own, and its last change, in short; and whether the server hashes records,
/// as PostgreSQL does from 14 on.
pub const FUNCTIONS: &str = "SELECT coalesce(sum(pg_catalog.hashtextextended(p.oid || ' ' || p.xmin, 0)), 0)::text, \
                         to_regprocedure('pg_catalog.hash_record_extended(record, bigint)') IS NOT NULL \
                         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                         WHERE n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'";

/// Digests of the parts of a stretch, put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct There {
    pub rows: u64,
    pub sum: i128,
}

impl There {
    /// From the answer of a statement.
    pub fn of(rows: i64, sum: &str) -> Option<Self> {
        Some(There { rows: rows.unsigned_abs(), sum: sum.parse().ok()? })
    }

    pub fn add(&mut self, other: There) {
        self.rows += other.rows;
        self.sum = self.sum.wrapping_add(other.sum);
    }

    pub fn digest(self) -> Digest {
        Digest { rows: self.rows, sum: self.sum.to_string() }
    }
}

impl PostgresComparer {
    /// Whether all passes of the table go by ranges of keys, so that they have stretches.
    pub(super) fn is_ranged(&self) -> bool {
        !self.passes.is_empty() && self.passes.iter().all(|pass| pass.walk == Walk::Ranged)
    }

    /// Notes what compares, in short: the statements of the passes, and the functions that they may call, since one
    /// that is replaced makes other rows.
    pub(super) async fn note_maker(&mut self) -> Result<(), ApplyError> {
        let answer = self.query(FUNCTIONS, &[]).await.map_err(stop)?;
        let read = answer.first().map(|row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?)));
        let read: Option<(String, bool)> = read.transpose().map_err(|error| stop(error.into()))?;
        let (functions, hashes_records) = read.unwrap_or_default();
        self.hashes_records = hashes_records;
        let mut hash = Sha256::new();
        hash.update(functions);
        for pass in &self.passes {
            let binding = self.own_binding(pass.plan)?;
            // Noting rows is no part of comparing them.
            let ranged =
                |c: &Comparison<'_>| Comparison { looks: Looks { notes_rows: None, ..c.looks }, ..*c }.ranged(true);
            hash.update(self.text(&binding, ranged)?);
        }
        self.made_by = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Ok(())
    }

    /// Ends the stretch that the passes are in.
    pub(super) fn stretch(&mut self) -> Option<Stretch> {
        let is_ranged = self.is_ranged();
        let taken = self.passes.iter_mut().map(|pass| (pass.lower.clone(), std::mem::take(&mut pass.there)));
        let ends: Vec<_> = taken.collect();
        if !is_ranged {
            return None;
        }
        let ends = ends.into_iter().map(|(upper, there)| Some(StretchEnd { upper: upper?, there: there.digest() }));
        Some(Stretch { made_by: self.made_by.clone(), ends: ends.collect::<Option<_>>()? })
    }

    /// Whether what is there is what a stretch had.
    pub(super) async fn stretch_is(&mut self, stretch: &Stretch) -> Result<bool, ApplyError> {
        let fits = self.is_ranged() && stretch.ends.len() == self.passes.len();
        if !fits || self.made_by != stretch.made_by {
            return Ok(false);
        }
        for (place, end) in stretch.ends.iter().enumerate() {
            let Some(Pass { plan, lower, .. }) = self.passes.get(place) else { return Ok(false) };
            let (lower, binding) = (lower.clone(), self.own_binding(*plan)?);
            let text = self.text(&binding, |c| c.there(lower.is_some()))?;
            let answer = self.within(&text, lower, &end.upper).await?;
            let read = answer.map(|row| Ok::<_, tokio_postgres::Error>((row.try_get(0)?, row.try_get(1)?)));
            let read: Option<(i64, String)> = read.transpose().map_err(|error| stop(error.into()))?;
            let there = read.and_then(|(rows, sum)| There::of(rows, &sum));
            if there.is_none_or(|there| there.digest() != end.there) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a statement answers of the keys above a bound, if there is one, up to another.
    pub(super) async fn within(
        &mut self,
        text: &str,
        lower: Option<Vec<Option<String>>>,
        upper: &[Option<String>],
    ) -> Result<Option<Row>, ApplyError> {
        let bounds = lower.into_iter().flatten().chain(upper.iter().cloned());
        let params: Vec<Param<'_>> = bounds.map(|bound| Box::new(bound) as Param<'_>).collect();
        Ok(self.query(text, &params).await.map_err(stop)?.into_iter().next())
    }

    /// Goes on behind a stretch.
    pub(super) fn go_behind(&mut self, stretch: &Stretch) {
        for (pass, end) in self.passes.iter_mut().zip(&stretch.ends) {
            // A chunk without rows ends where the one before it did.
            let is_behind = pass.lower.as_deref().and_then(numbers) < numbers(&end.upper);
            if is_behind {
                pass.lower = Some(end.upper.clone());
            }
        }
    }
}

impl Comparison<'_> {
    /// The hash of a row that is there, with its version. Values that are equal, as a comparison has it, may have one
    /// hash.
    pub(super) fn row_hash(&self) -> String {
        if !self.hashes_records {
            return "pg_catalog.hashtextextended(g::text, 0)".to_owned();
        }
        let value = |name: &&str| {
            let is_hashed = self.target_column(name).is_some_and(|column| HASHED.contains(&column.cast_sql.as_str()));
            format!("g.{}{}", sql::ident(name), if is_hashed { "" } else { "::text" })
        };
        let values: Vec<String> = self.columns().iter().map(value).collect();
        // The hash of a record is a sum over its values: two rows that trade one would have the same sum. Hashed once
        // more, they have not.
        format!(
            "pg_catalog.hashint8extended(pg_catalog.hash_record_extended(ROW({}, g.cutover_v), 0), 0)",
            values.join(", ")
        )
    }

    /// How many rows are there within a scope, and the sum of their hashes.
    pub fn there_within(&self, scope: &str) -> String {
        format!("SELECT count(*), coalesce(sum({}), 0)::text FROM ({}) g", self.row_hash(), self.shown(scope))
    }

    /// The same above the first bound, if there is one, up to the second.
    pub fn there(&self, has_lower: bool) -> String {
        self.there_within(&self.between(has_lower, 1))
    }
}
