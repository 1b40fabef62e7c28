//! Foreign keys whose cascades the binlog does not show (rule 11).
//!
//! InnoDB runs them below the level at which rows are logged. A captured child then changes without an event, unless
//! the server logs cascades (MySQL 9.6 and later), or the target does the same by itself.

use super::{Part, Report, source::ExaminedSource, target::ExaminedTarget};
use crate::{database::mysql::details::ForeignKey, model::TableName};

/// Judges every foreign key of a captured table.
pub(super) fn judge(source: &ExaminedSource, target: Option<&ExaminedTarget>, report: &mut Report) {
    if source.facts.logs_cascades() {
        return;
    }
    for details in &source.details {
        for key in &details.foreign_keys {
            for rule in rules(key) {
                let same = target.is_some_and(|target| target.has_rule(&details.table, &key.parent, rule));
                if let Some((what, fix)) = verdict(&details.table, key, rule, same) {
                    report.blocks_on(Part::Source, what, fix);
                }
            }
        }
    }
}

/// A rule of a foreign key that changes children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    /// `DELETE` or `UPDATE` of the parent.
    pub event: &'static str,
    /// `CASCADE` or `SET NULL`.
    pub action: &'a str,
}

fn rules(key: &ForeignKey) -> Vec<Rule<'_>> {
    [("DELETE", key.on_delete.as_str()), ("UPDATE", key.on_update.as_str())]
        .into_iter()
        .filter(|(_, action)| matches!(*action, "CASCADE" | "SET NULL"))
        .map(|(event, action)| Rule { event, action })
        .collect()
}

/// What is wrong with a rule and what to do about it; none if it is taken care of.
fn verdict(child: &TableName, key: &ForeignKey, rule: Rule<'_>, same_at_target: bool) -> Option<(String, String)> {
    let what = format!(
        "`{}` changes `{}` ON {} {} of `{}`, and this server does not log such changes",
        key.name, child.table, rule.event, rule.action, key.parent.table
    );
    let fix = "make the same foreign key at the target before the copy and connect there as a user that may not set \
               session_replication_role; or let the application change the children";
    (!same_at_target).then(|| (what, fix.into()))
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
    fn a_cascade_blocks_until_it_is_taken_care_of() {
        let child = TableName::new("shop", "orders");
        let key = key("CASCADE", "RESTRICT");
        let rule = Rule { event: "DELETE", action: "CASCADE" };
        let (what, fix) = verdict(&child, &key, rule, false).expect("blocks");
        assert!(what.contains("`orders`") && what.contains("`users`") && fix.contains("at the target"));
        assert_eq!(verdict(&child, &key, rule, true), None);
    }
}
