//! In which order tables are copied: parents first, where the target's foreign keys say so.
//!
//! A child that comes before its parent waits for it, which costs more than to come in its turn. Tables of one depth
//! keep the order that they have; of tables that refer to each other in a ring none is first.

use std::collections::BTreeMap;

use crate::model::{Plan, TableName};

/// These source tables with those first whose rows others refer to at the target.
pub(super) fn parents_first(plans: &[Plan], tables: &[String]) -> Vec<String> {
    let mut depths: BTreeMap<&TableName, usize> = plans.iter().map(|plan| (&plan.target.name, 0)).collect();
    // No chain is longer than there are tables; in a ring this is where it ends.
    for _ in 0..depths.len() {
        for plan in plans {
            let parents = plan.target.foreign_keys.iter().map(|key| &key.parent);
            let parents = parents.filter(|parent| **parent != plan.target.name);
            let above = parents.filter_map(|parent| depths.get(parent)).max().map_or(0, |depth| depth + 1);
            depths.insert(&plan.target.name, above.min(plans.len()));
        }
    }
    let depth = |table: &String| {
        let own = plans.iter().filter(|plan| plan.source.table.table == *table);
        own.filter_map(|plan| depths.get(&plan.target.name)).min().copied().unwrap_or_default()
    };
    let mut order = tables.to_vec();
    order.sort_by_key(depth);
    order
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Coverage, ForeignKey, PlanRole, TableSchema, TargetTable};

    fn plan(table: &str, parents: &[&str]) -> Plan {
        let key = |parent: &&str| ForeignKey {
            name: format!("{table}_{parent}"),
            columns: Vec::new(),
            parent: TableName::new("public", *parent),
            parent_columns: Vec::new(),
        };
        let target = TargetTable {
            name: TableName::new("public", table),
            columns: Vec::new(),
            key: Vec::new(),
            uniques: Vec::new(),
            foreign_keys: parents.iter().map(key).collect(),
            replaceable: true,
            partitioned: false,
        };
        Plan {
            source: Arc::new(TableSchema {
                table: TableName::new("shop", table),
                columns: Vec::new(),
                key: Vec::new(),
            }),
            target: Arc::new(target),
            file: None,
            select: String::new(),
            reads: Vec::new(),
            columns: Vec::new(),
            coverage: Coverage::Total,
            role: PlanRole::Whole,
            key_reads: None,
            one_to_one: true,
            identity: String::new(),
        }
    }

    fn ordered(plans: &[Plan], tables: &[&str]) -> String {
        let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
        parents_first(plans, &tables).join(" ")
    }

    #[test]
    fn parents_come_before_their_children_and_all_else_stays() {
        let plans = [
            plan("lines", &["orders", "goods"]),
            plan("orders", &["users"]),
            plan("goods", &[]),
            plan("users", &["users"]),
        ];
        assert_eq!(ordered(&plans, &["lines", "goods", "orders", "users", "other"]), "goods users other orders lines");
        assert_eq!(ordered(&[], &["b", "a"]), "b a");
    }

    #[test]
    fn a_ring_goes_after_what_it_refers_to() {
        let plans = [plan("store", &["staff", "address"]), plan("staff", &["store"]), plan("address", &[])];
        assert_eq!(ordered(&plans, &["staff", "store", "address"]), "address staff store");
    }
}
