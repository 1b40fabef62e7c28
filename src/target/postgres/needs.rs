//! What a row waits for: the key of its parent, or that another source row has at its target ([`super::owned`]), as a
//! digest.
//!
//! A child that waits is stored with the digest of the parent's key that it refers to. A row that is written frees the
//! children that wait for its key, whichever lane writes it: they are the first to be tried again. The digest is of the
//! key's texts, which child and parent spell alike for numbers, texts and the like; for other types, and for parents
//! whose key the transform computes, children are tried again by the clock alone.

use sha2::{Digest, Sha256};

use super::{
    PostgresSink,
    answers::Mark,
    items::Item,
    steps::{Param, Steps},
};
use crate::{
    database::postgres::{PgError, sql},
    log::envelope,
    model::{ForeignKey, Plan, TableName},
    target::ApplyError,
};

/// Between the values of a key.
const BETWEEN: char = '\u{1f}';

/// A freed row is tried before all others; its next failure counts as its first. One that another lane has locked is
/// being tried, or freed: waiting for it could be a deadlock, and the clock has it tried again in any case.
const FREE: &str = "
WITH f AS (UPDATE cutover.waiting SET attempts = -1 WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM cutover.waiting WHERE pipeline = $1 AND needs = ANY($2) AND attempts >= 0 FOR UPDATE SKIP LOCKED)) RETURNING 1)
SELECT count(*) FROM f";

/// As [`FREE`], of all rows of a source table: where whole tables are emptied or swept.
pub(super) const FREE_TABLE: &str = "
WITH f AS (UPDATE cutover.waiting SET attempts = -1 WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM cutover.waiting WHERE pipeline = $1 AND source_table = $2 AND needs <> 0 AND attempts >= 0
  FOR UPDATE SKIP LOCKED)) RETURNING 1)
SELECT count(*) FROM f";

/// Whether a row of any partition waits for a parent.
const NEEDED: &str = "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND needs <> 0)";

/// The values that a child has of a foreign key, as SQL of one text, in an order that is the key's own.
pub(super) fn values(key: &ForeignKey, row: &str) -> String {
    let mut pairs: Vec<(&String, &String)> = key.parent_columns.iter().zip(&key.columns).collect();
    pairs.sort();
    let values: Vec<String> = pairs.iter().map(|(_, column)| format!("{row}.{}::text", sql::ident(column))).collect();
    format!("pg_catalog.concat_ws(pg_catalog.chr({}), {})", u32::from(BETWEEN), values.join(", "))
}

/// The digest of what a child needs, from the text that [`values`] gives.
pub(super) fn of_child(key: &ForeignKey, values: &str) -> i64 {
    digest(&key.parent, values)
}

fn digest(parent: &TableName, values: &str) -> i64 {
    digest_of(format!("{parent}{BETWEEN}{values}").as_bytes())
}

/// Eight bytes of a digest, the same in every release.
pub(super) fn digest_of(bytes: &[u8]) -> i64 {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).fold(0i64, |number, byte| number << 8 | i64::from(*byte))
}

/// Whether children may wait for the rows of this plan by its target's key.
pub(super) fn is_parent(plan: &Plan, plans: &[Plan]) -> bool {
    let mut keys = plans.iter().flat_map(|child| &child.target.foreign_keys);
    plan.key_reads.is_some()
        && keys.any(|key| key.parent == plan.target.name && sorted(&key.parent_columns) == sorted(&plan.target.key))
}

fn sorted(names: &[String]) -> Vec<&String> {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort();
    names
}

impl PostgresSink {
    /// Has the rows tried again first that wait for these keys of targets; how many they are.
    pub(super) async fn free(&mut self, keys: Vec<i64>) -> Result<u64, PgError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let free = self.statement(FREE).await?;
        let freed: i64 = self.session.client.query_one(&free, &[&self.options.pipeline, &keys]).await?.try_get(0)?;
        Ok(freed.unsigned_abs())
    }

    /// Queues that children which wait for rows of this batch are tried again first.
    pub(super) async fn queue_freed(&mut self, steps: &mut Steps<'_, Mark>, items: &[Item<'_>]) -> Result<(), PgError> {
        // Where foreign keys rest no row waits for a parent. Other sinks park rows too, so that only the target knows.
        if self.session.replica || !self.parents.iter().any(|parent| *parent) {
            return Ok(());
        }
        let needed = self.statement(NEEDED).await?;
        if !self.session.client.query_one(&needed, &[&self.options.pipeline]).await?.try_get::<_, bool>(0)? {
            return Ok(());
        }
        let keys = self.keys_of_parents(items);
        if !keys.is_empty() {
            let params: Vec<Param<'_>> = vec![Box::new(self.options.pipeline.clone()), Box::new(keys)];
            steps.query(Mark::Freed, self.statement(FREE).await?, params);
        }
        Ok(())
    }

    /// The digests of the keys that these items give to targets that are parents. What cannot be told is left to the
    /// clock.
    fn keys_of_parents(&mut self, items: &[Item<'_>]) -> Vec<i64> {
        let plans = self.plans.clone();
        let mut keys = Vec::new();
        for event in items.iter().filter_map(Item::newest) {
            let bound: Result<_, ApplyError> = self.bindings.of(&plans, event);
            let (Ok(places), Ok((_, Some(row), _))) = (bound, envelope::cells(&event.value, &event.schema)) else {
                continue;
            };
            for binding in places.iter().filter_map(|place| self.bindings.all.get(*place)) {
                let Some(plan) = plans.get(binding.plan).filter(|_| self.parents.get(binding.plan) == Some(&true))
                else {
                    continue;
                };
                let cell = |place: &usize| row.get((*binding.columns.get(*place)?)?)?.as_deref();
                let reads = plan.key_reads.iter().flatten();
                let mut pairs: Vec<(&String, Option<&str>)> = plan.target.key.iter().zip(reads.map(cell)).collect();
                pairs.sort();
                let values: Option<Vec<&str>> = pairs.into_iter().map(|(_, cell)| cell).collect();
                let text = |values: Vec<&str>| values.join(&BETWEEN.to_string());
                keys.extend(values.map(|values| digest(&plan.target.name, &text(values))));
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(columns: &[&str], parents: &[&str]) -> ForeignKey {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ForeignKey {
            name: "k".into(),
            columns: names(columns),
            parent: TableName::new("public", "p"),
            parent_columns: names(parents),
        }
    }

    #[test]
    fn the_order_in_which_a_key_names_its_columns_does_not_matter() {
        let one = values(&key(&["x", "y"], &["a", "b"]), "c");
        assert_eq!(one, values(&key(&["y", "x"], &["b", "a"]), "c"));
        assert_eq!(one, "pg_catalog.concat_ws(pg_catalog.chr(31), c.\"x\"::text, c.\"y\"::text)");
    }

    #[test]
    fn what_is_needed_is_of_a_table_and_its_values() {
        let other = ForeignKey { parent: TableName::new("public", "q"), ..key(&["x"], &["a"]) };
        assert_eq!(of_child(&key(&["x"], &["a"]), "5"), digest(&TableName::new("public", "p"), "5"));
        assert_ne!(of_child(&key(&["x"], &["a"]), "5"), of_child(&key(&["x"], &["a"]), "6"));
        assert_ne!(of_child(&key(&["x"], &["a"]), "5"), of_child(&other, "5"));
    }
}
