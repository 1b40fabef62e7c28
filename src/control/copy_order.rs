//! What the target's foreign keys say of the order of tables: parents are copied first, and of those in a ring none is.
//!
//! A child that comes before its parent waits for it, which costs more than to come in its turn. Tables of one depth
//! keep the order that they have.

use std::collections::{BTreeMap, BTreeSet};

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

/// By source table, those whose rows its rows refer to at the target.
pub(super) fn parents(plans: &[Plan]) -> BTreeMap<String, BTreeSet<String>> {
    let mut parents: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for child in plans {
        let refers = |parent: &&Plan| child.target.foreign_keys.iter().any(|key| key.parent == parent.target.name);
        let found = plans.iter().filter(refers).map(|parent| parent.source.table.table.clone());
        parents.entry(child.source.table.table.clone()).or_default().extend(found);
    }
    parents
}

/// The target tables that refer to each other, ring by ring: between any two of one, keys lead both ways.
pub(crate) fn rings(plans: &[Plan]) -> Vec<BTreeSet<&TableName>> {
    let mut parents: BTreeMap<&TableName, BTreeSet<&TableName>> = BTreeMap::new();
    for plan in plans {
        let keys = plan.target.foreign_keys.iter().map(|key| &key.parent);
        parents.entry(&plan.target.name).or_default().extend(keys);
    }
    let above: BTreeMap<&TableName, BTreeSet<&TableName>> =
        parents.keys().map(|table| (*table, above(table, &parents))).collect();
    let reaches = |child: &TableName, parent: &TableName| above.get(child).is_some_and(|above| above.contains(parent));
    let ring = |table: &&TableName| -> BTreeSet<&TableName> {
        above.keys().filter(|other| reaches(table, other) && reaches(other, table)).copied().collect()
    };
    // Each is met as often as it has tables; a table that refers to itself alone is none.
    let found: BTreeSet<BTreeSet<&TableName>> = above.keys().map(ring).filter(|ring| ring.len() > 1).collect();
    found.into_iter().collect()
}

/// All tables that this one refers to, and those to which they do.
fn above<'p>(
    table: &'p TableName,
    parents: &BTreeMap<&'p TableName, BTreeSet<&'p TableName>>,
) -> BTreeSet<&'p TableName> {
    let (mut met, mut next) = (BTreeSet::new(), vec![table]);
    while let Some(table) = next.pop() {
        next.extend(parents.get(table).into_iter().flatten().filter(|parent| met.insert(**parent)));
    }
    met
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
            has_owners: false,
            elsewhere: false,
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
    fn the_parents_of_a_table_are_known_by_the_names_that_they_have_at_the_source() {
        let plans = [plan("lines", &["orders", "goods", "elsewhere"]), plan("orders", &[]), plan("goods", &["goods"])];
        let of = |table: &str| parents(&plans)[table].iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!([of("lines"), of("orders"), of("goods")], ["goods orders", "", "goods"]);
    }

    #[test]
    fn a_ring_goes_after_what_it_refers_to() {
        let plans = [plan("store", &["staff", "address"]), plan("staff", &["store"]), plan("address", &[])];
        assert_eq!(ordered(&plans, &["staff", "store", "address"]), "address staff store");
    }

    #[test]
    fn tables_are_in_one_ring_if_keys_lead_both_ways() {
        let plans = [
            plan("a", &["b"]),
            plan("b", &["a", "between"]),
            plan("between", &["c"]),
            plan("c", &["d"]),
            plan("d", &["e"]),
            plan("e", &["c", "other"]),
            plan("alone", &["alone", "a"]),
        ];
        let found: Vec<Vec<&str>> = rings(&plans)
            .into_iter()
            .map(|ring| ring.into_iter().map(|table| table.table.as_str()).collect())
            .collect();
        assert_eq!(found, [vec!["a", "b"], vec!["c", "d", "e"]]);
    }
}
