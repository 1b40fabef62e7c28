//! Foreign keys whose actions the binlog does not show (rules 11 and 38).
//!
//! InnoDB carries them out below the level at which rows are logged (MySQL 9.6 and later log them). The worker follows
//! them by itself: what is judged here is whether it can, what it costs, and what at the target would get in its way.

use std::collections::BTreeSet;

use super::{Part, Report, source::ExaminedSource, target::ExaminedTarget};
use crate::{
    database::mysql::details::ForeignKey,
    model::{Plan, PlanRole, Problem, TableName},
    source::Cascades,
    target::postgres::leads_back,
};

/// Judges every foreign key of a captured table.
pub(super) fn judge(source: &ExaminedSource, target: Option<&ExaminedTarget>, cascades: Cascades, report: &mut Report) {
    if source.facts.logs_cascades() {
        return;
    }
    let keys: Vec<(&TableName, &ForeignKey)> = source
        .details
        .iter()
        .flat_map(|details| details.foreign_keys.iter().map(move |key| (&details.table, key)))
        .filter(|(_, key)| !rules(key).is_empty())
        .collect();
    match cascades {
        Cascades::Refetch => {
            let captured: BTreeSet<&TableName> = source.tables.iter().map(|schema| &schema.table).collect();
            judge_parents(&keys, &captured, report);
            if let Some(target) = target {
                judge_children(&keys, target, report);
                judge_target(&keys, target, report);
            }
        }
        Cascades::None => {
            let told = |(child, key): &(&TableName, &ForeignKey)| -> Vec<String> {
                rules(key).into_iter().map(|rule| told(child, key, rule)).collect()
            };
            if let Some(problem) = verdict(&keys.iter().flat_map(told).collect::<Vec<_>>()) {
                report.warns_of(Part::Source, problem.what, problem.fix);
            }
        }
        // Refused with the configuration.
        Cascades::Target => {}
    }
}

/// A parent that is not captured changes captured rows all the same.
fn judge_parents(keys: &[(&TableName, &ForeignKey)], captured: &BTreeSet<&TableName>, report: &mut Report) {
    let outside = keys.iter().filter(|(_, key)| !captured.contains(&key.parent));
    let outside: Vec<String> = outside.map(|(child, key)| changes(child, key)).collect();
    if !outside.is_empty() {
        report.warns_of(
            Part::Source,
            format!("{}: the parents are not captured, and their changes are read for that alone", outside.join("; ")),
            "nothing needs to be done as long as the source user may SELECT from them; where rows of a parent go unseen \
             themselves, every row of the child is read again each time, unless the parent is captured too",
        );
    }
}

/// Rows of a child have to be found at the target, and led back to those of the source.
fn judge_children(keys: &[(&TableName, &ForeignKey)], target: &ExaminedTarget, report: &mut Report) {
    let (mut lost, mut dear) = (BTreeSet::new(), BTreeSet::new());
    for (child, key) in keys {
        for plan in target.plans_of(child) {
            if plan.needs_full_row_images() || !leads_back(plan) {
                lost.insert(format!("`{}` ({})", child.table, plan.name()));
            } else if !shows(plan, key) {
                dear.insert(format!("`{}` ({})", child.table, key.columns.join(", ")));
            }
        }
    }
    if !lost.is_empty() {
        let lost: Vec<String> = lost.into_iter().collect();
        report.blocks_on(
            Part::Transforms,
            format!(
                "rows of {} go unseen with their parents, and which row of the target one was cannot be told",
                lost.join(", ")
            ),
            "let the target's key be the source's key, column by column; or say [source] cascades = \"none\" if such rows may stay",
        );
    }
    if !dear.is_empty() {
        let dear: Vec<String> = dear.into_iter().collect();
        report.warns_of(
            Part::Transforms,
            format!(
                "the transforms of {} do not show which parent a row has: whenever a parent goes, every row is read again",
                dear.join(", ")
            ),
            "let the transforms have these columns as they are, if parents go often",
        );
    }
}

/// A key of a parent that changes reaches the target as a delete and an insert: what acts on the delete there takes
/// children away that the source has still.
fn judge_target(keys: &[(&TableName, &ForeignKey)], target: &ExaminedTarget, report: &mut Report) {
    let acts = |(child, key): &&(&TableName, &ForeignKey)| {
        changes_children(&key.on_update) && target.acts_on_delete(child, &key.parent)
    };
    let acting: Vec<String> = keys.iter().filter(acts).map(|(child, key)| changes(child, key)).collect();
    if !acting.is_empty() {
        report.blocks_on(
            Part::Target,
            format!(
                "{}: foreign keys at the target act as well, and would take children away whose parent only got another key",
                acting.join("; ")
            ),
            "make these keys at the target without ON DELETE, or after the move; or let cutover's user rest them: \
             GRANT SET ON PARAMETER session_replication_role TO it (PostgreSQL 15)",
        );
    }
}

/// Whether the target shows, of each row that a plan makes, which parent it has.
fn shows(plan: &Plan, key: &ForeignKey) -> bool {
    let has = |name: &String| plan.columns.iter().any(|column| column.source.as_ref() == Some(name));
    match plan.role {
        PlanRole::Whole | PlanRole::Set { .. } => key.columns.iter().all(has),
        PlanRole::Share(_) => false,
    }
}

/// A rule of a foreign key that changes children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule<'a> {
    /// `DELETE` or `UPDATE` of the parent.
    event: &'static str,
    /// `CASCADE` or `SET NULL`.
    action: &'a str,
}

fn changes_children(action: &str) -> bool {
    matches!(action, "CASCADE" | "SET NULL")
}

fn rules(key: &ForeignKey) -> Vec<Rule<'_>> {
    [("DELETE", key.on_delete.as_str()), ("UPDATE", key.on_update.as_str())]
        .into_iter()
        .filter(|(_, action)| changes_children(action))
        .map(|(event, action)| Rule { event, action })
        .collect()
}

fn changes(child: &TableName, key: &ForeignKey) -> String {
    format!("`{}` changes `{}` when rows of `{}` change", key.name, child.table, key.parent.table)
}

fn told(child: &TableName, key: &ForeignKey, rule: Rule<'_>) -> String {
    format!("`{}` changes `{}` ON {} {} of `{}`", key.name, child.table, rule.event, rule.action, key.parent.table)
}

/// What is left undone, for all rules together; none without any.
fn verdict(found: &[String]) -> Option<Problem> {
    let what = match found {
        [] => return None,
        [only] => format!("{only}, this server does not log such changes, and [source] cascades leaves them"),
        found => format!(
            "{} rules of foreign keys change rows, this server does not log such changes, and [source] cascades leaves them: {}",
            found.len(),
            found.join("; ")
        ),
    };
    Some(Problem::new(what, "take [source] cascades out, and children are read again at the source"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(on_delete: &str, on_update: &str) -> ForeignKey {
        ForeignKey {
            name: "fk".into(),
            columns: vec!["a".into()],
            parent: TableName::new("shop", "users"),
            parent_columns: vec!["id".into()],
            on_delete: on_delete.into(),
            on_update: on_update.into(),
        }
    }

    #[test]
    fn only_rules_that_change_children_count() {
        assert_eq!(rules(&key("RESTRICT", "NO ACTION")), vec![]);
        let both = key("CASCADE", "SET NULL");
        let events: Vec<&str> = rules(&both).iter().map(|rule| rule.event).collect();
        assert_eq!(events, ["DELETE", "UPDATE"]);
    }

    #[test]
    fn many_cascades_are_one_finding_that_names_them_all() {
        let child = TableName::new("shop", "orders");
        let both = key("CASCADE", "SET NULL");
        let found: Vec<String> = rules(&both).into_iter().map(|rule| told(&child, &both, rule)).collect();
        assert_eq!(verdict(&[]), None);
        let one = verdict(&found[..1]).expect("told");
        assert!(one.what.contains("`orders`") && one.what.contains("`users`") && one.fix.contains("read again"));
        let two = verdict(&found).expect("told");
        assert!(
            two.what.starts_with("2 rules") && two.what.contains("ON DELETE CASCADE") && two.what.contains("SET NULL")
        );
    }
}
