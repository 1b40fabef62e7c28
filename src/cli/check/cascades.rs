//! Foreign keys whose cascades the binlog does not show (rule 11).
//!
//! InnoDB runs them below the level at which rows are logged. A captured child then changes without an event, unless
//! the server logs cascades (MySQL 9.6 and later), or the target does the same by itself.

use super::{Part, Report, source::ExaminedSource, target::ExaminedTarget};
use crate::{
    database::mysql::details::ForeignKey,
    model::{Problem, TableName},
};

/// Judges every foreign key of a captured table.
pub(super) fn judge(source: &ExaminedSource, target: Option<&ExaminedTarget>, report: &mut Report) {
    if source.facts.logs_cascades() {
        return;
    }
    let mut found = Vec::new();
    for details in &source.details {
        for key in &details.foreign_keys {
            let same =
                |rule: &Rule<'_>| target.is_some_and(|target| target.has_rule(&details.table, &key.parent, *rule));
            found.extend(rules(key).into_iter().filter(|rule| !same(rule)).map(|rule| told(&details.table, key, rule)));
        }
    }
    if let Some(problem) = verdict(&found) {
        report.blocked_by(Part::Source, problem);
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

fn told(child: &TableName, key: &ForeignKey, rule: Rule<'_>) -> String {
    format!("`{}` changes `{}` ON {} {} of `{}`", key.name, child.table, rule.event, rule.action, key.parent.table)
}

/// What is wrong and what to do about it, for all rules together that nothing takes care of; none without any.
fn verdict(found: &[String]) -> Option<Problem> {
    let what = match found {
        [] => return None,
        [only] => format!("{only}, and this server does not log such changes"),
        found => format!(
            "{} rules of foreign keys change rows, and this server does not log such changes: {}",
            found.len(),
            found.join("; ")
        ),
    };
    let fix = "make the same foreign keys at the target before the copy and connect there as a user that may not set \
               session_replication_role; or let the application change the children";
    Some(Problem::new(what, fix))
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
        let one = verdict(&found[..1]).expect("blocks");
        assert!(one.what.contains("`orders`") && one.what.contains("`users`") && one.fix.contains("at the target"));
        let two = verdict(&found).expect("blocks");
        assert!(
            two.what.starts_with("2 rules") && two.what.contains("ON DELETE CASCADE") && two.what.contains("SET NULL")
        );
    }
}
