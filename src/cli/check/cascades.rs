//! Foreign keys whose cascades the binlog does not show (CORRECTNESS rule 11).
//!
//! InnoDB runs them below the level at which rows are logged. A captured child then changes without an event, unless
//! the server logs cascades (MySQL 9.6 and later), the children are read again, or the target does the same by itself.

use super::{Part, Report, source::Source, target::Target};
use crate::{capture::mysql::Cascades, config::Config, database::mysql::details::ForeignKey, model::TableName};

/// Judges every foreign key of a captured table.
pub(super) fn judge(config: &Config, source: &Source, target: Option<&Target>, report: &mut Report) {
    if source.facts.logs_cascades() {
        return;
    }
    for details in &source.details {
        for key in &details.foreign_keys {
            let captured = source.tables.iter().any(|schema| schema.table == key.parent);
            for rule in rules(key) {
                let same = target.is_some_and(|target| target.has_rule(&details.table, &key.parent, rule));
                if let Some((what, fix)) = verdict(config.source.cascades, &details.table, key, rule, captured, same) {
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
fn verdict(
    cascades: Cascades,
    child: &TableName,
    key: &ForeignKey,
    rule: Rule<'_>,
    parent_captured: bool,
    same_at_target: bool,
) -> Option<(String, String)> {
    let what = format!(
        "`{}` changes `{}` ON {} {} of `{}`, and this server does not log such changes",
        key.name, child.table, rule.event, rule.action, key.parent.table
    );
    match cascades {
        _ if same_at_target => None,
        Cascades::Refetch if parent_captured => None,
        Cascades::Refetch => Some((
            what,
            format!("add `{}` to [source] tables: cascades = \"refetch\" works from the parent's changes", key.parent.table),
        )),
        Cascades::Block => Some((
            what,
            "set [source] cascades = \"refetch\", so that the children are read again; or make the same foreign key at the \
             target and connect there as a user that may not set session_replication_role; or let the application \
             change the children"
                .into(),
        )),
    }
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
        let of = |cascades, captured, same| verdict(cascades, &child, &key, rule, captured, same);
        let (what, fix) = of(Cascades::Block, true, false).expect("blocks");
        assert!(what.contains("`orders`") && what.contains("`users`") && fix.contains("refetch"));
        assert_eq!(of(Cascades::Block, true, true), None);
        assert_eq!(of(Cascades::Refetch, true, false), None);
        assert!(of(Cascades::Refetch, false, false).expect("blocks").1.contains("`users`"));
    }
}
