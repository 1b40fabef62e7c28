//! Whether a replay may be: nothing that it would leave behind or bring back.

use std::collections::HashMap;

use super::{Replayer, Stopped, survey::Survey};
use crate::{
    model::{Plan, TableName, TableSchema, Version},
    state::{
        lanes::Offsets,
        transforms::{InForce, PlanNote, plan_notes},
    },
};

/// What brings the tables up instead.
pub(super) fn instead(tables: &[String]) -> String {
    let table = match tables {
        [table] => table.as_str(),
        _ => "TABLE",
    };
    format!("`cutover resnapshot {table}` copies a table again instead, and sweeps what the copy does not write")
}

impl Replayer {
    /// Why a replay is refused, if it is.
    pub(super) async fn judge(
        &self,
        starts: &Offsets,
        survey: &Survey,
        fences: &HashMap<String, Version>,
        tables: &[String],
    ) -> Result<Option<String>, Stopped> {
        let plans = self.apply.target.plans();
        let history = self.store.transforms(self.apply.log.epoch()).await?;
        if let Some(lowest) = survey.watermark_min.filter(|lowest| *lowest < survey.changes_reach) {
            return Ok(Some(format!(
                "the changes topic no longer reaches back to the oldest of the copied rows (version {lowest}), so that what was \
                 deleted since could come back: begin later, after the copy, or {}",
                instead(tables)
            )));
        }
        if let Some(table) = other_rows(&history, starts, &plan_notes(&plans), fences, tables) {
            return Ok(Some(table));
        }
        Ok(survey.schemas.iter().find_map(|schema| unreadable(&plans, schema)))
    }
}

/// A transform that, somewhere in the range, made other rows of a table than today's would (rule 21): what it
/// wrote and today's does not would stay.
fn other_rows(
    history: &[InForce],
    starts: &Offsets,
    today: &[PlanNote],
    fences: &HashMap<String, Version>,
    tables: &[String],
) -> Option<String> {
    let chosen = |source: &TableName| tables.is_empty() || tables.contains(&source.table);
    let reaches = |offsets: &Offsets| {
        let after = |from: &[u64], end: &[u64]| from.iter().zip(end).any(|(from, end)| end > from);
        after(&starts.changes, &offsets.changes) || after(&starts.snapshot, &offsets.snapshot)
    };
    let Some(first) = history.first() else {
        return Some(format!("it is not known which transforms were in force; {}", instead(tables)));
    };
    if reaches(&first.offsets) {
        return Some(format!(
            "an older release, which did not note its transforms, applied a part of this range: begin later, or {}",
            instead(tables)
        ));
    }
    for (index, in_force) in history.iter().enumerate() {
        let next = history.get(index + 1);
        if next.is_some_and(|next| !reaches(&next.offsets)) {
            continue;
        }
        for old in in_force.plans.iter().filter(|old| chosen(&old.source)) {
            // A copy since then has swept what it left.
            let fence = fences.get(&old.source.to_string()).copied().unwrap_or_default();
            if next.is_some_and(|next| next.clock <= fence) {
                continue;
            }
            // A source table may fill several columns of one target by several plans.
            let same = |plan: &&PlanNote| plan.source == old.source && plan.target == old.target;
            let mut own = today.iter().filter(same).peekable();
            if own.peek().is_some() && own.all(|plan| plan.identity != old.identity) {
                return Some(format!(
                    "the transform of {} into {} has another key or WHERE now than it had in this range, so that rows \
                     which it made then would be left behind; {}",
                    old.source,
                    old.target,
                    instead(std::slice::from_ref(&old.source.table))
                ));
            }
        }
    }
    None
}

/// Rows from before a column was there, which today's transform reads.
fn unreadable(plans: &[Plan], schema: &TableSchema) -> Option<String> {
    let plan_reads = plans.iter().filter(|plan| plan.source.table == schema.table);
    plan_reads.into_iter().find_map(|plan| {
        let missing = plan.reads.iter().find(|name| schema.column(name).is_none())?;
        Some(format!(
            "{} reads column `{missing}`, which rows of {} in this range do not have: begin later, or {}",
            plan.name(),
            schema.table,
            instead(std::slice::from_ref(&schema.table.table))
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(table: &str, identity: &str) -> PlanNote {
        let (source, target) = (TableName::new("shop", table), TableName::new("public", table));
        PlanNote { source, target, identity: identity.into() }
    }

    fn at(changes: u64, clock: Version, plans: Vec<PlanNote>) -> InForce {
        InForce { offsets: from(changes), clock, plans }
    }

    fn from(changes: u64) -> Offsets {
        Offsets { changes: vec![changes], snapshot: vec![0] }
    }

    fn refused(history: &[InForce], start: u64, fence: Version, tables: &[&str]) -> Option<String> {
        let today = [note("a", "1"), note("b", "2")];
        let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
        other_rows(history, &from(start), &today, &HashMap::from([("shop.a".into(), fence)]), &tables)
    }

    #[test]
    fn rule_21_a_transform_of_the_range_with_another_key_or_where_refuses() {
        let history =
            [at(0, 0, vec![note("a", "0"), note("b", "2")]), at(10, 100, vec![note("a", "1"), note("b", "2")])];
        let reason = refused(&history, 5, 0, &[]).expect("the old transform applied 5 to 9");
        assert!(reason.contains("shop.a") && reason.contains("cutover resnapshot a"), "{reason}");
        assert_eq!(refused(&history, 10, 0, &[]), None, "it was over by then");
        assert_eq!(refused(&history, 5, 0, &["b"]), None, "the other table is as it was");
        assert_eq!(refused(&history, 5, 100, &[]), None, "a copy since then has swept what it left");
        assert!(refused(&history, 5, 99, &[]).is_some());
    }

    #[test]
    fn rule_21_a_table_that_fills_a_target_twice_is_judged_by_both_plans() {
        let history = |identities: [&str; 2]| vec![at(0, 0, identities.map(|identity| note("a", identity)).to_vec())];
        let today = |identities: [&str; 2]| identities.map(|identity| note("a", identity));
        let refused = |then: [&str; 2], now: [&str; 2]| {
            other_rows(&history(then), &from(0), &today(now), &HashMap::new(), &[]).is_some()
        };
        assert!(!refused(["1", "2"], ["1", "2"]) && !refused(["1", "2"], ["2", "1"]));
        assert!(refused(["1", "2"], ["1", "3"]));
    }

    #[test]
    fn rule_21_what_nobody_noted_refuses() {
        let history = [at(7, 70, vec![note("a", "1")])];
        assert!(refused(&history, 5, 0, &[]).is_some_and(|reason| reason.contains("older release")));
        assert_eq!(refused(&history, 7, 0, &[]), None);
        assert!(refused(&[], 0, 0, &[]).is_some());
    }
}
