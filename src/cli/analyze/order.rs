//! The order in which rows can be stored where foreign keys hold: parents first.

use super::Table;

/// The tables, each after those that it refers to, and the rings of those for which there is no such order. A table
/// that refers to itself is no ring here: its own rows come in the order of its key, or wait for each other.
pub(super) fn by_parents(tables: &[Table]) -> (Vec<String>, Vec<Vec<String>>) {
    let (mut order, mut rings): (Vec<String>, Vec<Vec<String>>) = (Vec::new(), Vec::new());
    let mut left: Vec<&Table> = tables.iter().collect();
    left.sort_by(|a, b| a.table.cmp(&b.table));
    while !left.is_empty() {
        let waits = |table: &&Table| {
            table.parents.iter().any(|parent| *parent != table.table && left.iter().any(|other| other.table == *parent))
        };
        let (waiting, free): (Vec<&Table>, Vec<&Table>) = left.iter().copied().partition(waits);
        if free.is_empty() {
            let ring = ring(&waiting);
            order.extend(ring.iter().cloned());
            left.retain(|table| !ring.contains(&table.table));
            rings.push(ring);
            continue;
        }
        order.extend(free.iter().map(|table| table.table.clone()));
        left = waiting;
    }
    (order, rings)
}

/// A ring among tables each of which refers to another one of them, from the first of its names on.
fn ring(waiting: &[&Table]) -> Vec<String> {
    let mut path: Vec<&Table> = waiting.first().copied().into_iter().collect();
    while let Some(last) = path.last().copied() {
        let parent = waiting.iter().find(|table| table.table != last.table && last.parents.contains(&table.table));
        let Some(parent) = parent else { break };
        if let Some(begin) = path.iter().position(|table| table.table == parent.table) {
            let mut ring: Vec<String> = path.iter().skip(begin).map(|table| table.table.clone()).collect();
            let first = ring.iter().enumerate().min_by_key(|(_, table)| *table).map_or(0, |(place, _)| place);
            ring.rotate_left(first);
            return ring;
        }
        path.push(parent);
    }
    waiting.iter().map(|table| table.table.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, parents: &[&str]) -> Table {
        let parents = parents.iter().map(|parent| (*parent).to_owned()).collect();
        Table { table: name.into(), parents, ..Table::default() }
    }

    #[test]
    fn parents_come_first() {
        let tables = [
            table("items", &["carts", "goods"]),
            table("carts", &["users"]),
            table("users", &["users"]),
            table("goods", &[]),
        ];
        let (order, rings) = by_parents(&tables);
        assert_eq!(order, ["goods", "users", "carts", "items"]);
        assert!(rings.is_empty());
    }

    #[test]
    fn a_ring_is_named_and_what_hangs_on_it_follows() {
        let tables = [
            table("staff", &["store"]),
            table("store", &["staff"]),
            table("rental", &["store"]),
            table("elsewhere", &["gone"]),
        ];
        let (order, rings) = by_parents(&tables);
        assert_eq!(rings, [["staff", "store"]]);
        assert_eq!(order, ["elsewhere", "staff", "store", "rental"]);
    }
}
