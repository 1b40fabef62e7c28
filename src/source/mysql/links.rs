//! Which foreign keys change captured rows unseen, and whose changes have to be read for that.

use std::collections::{BTreeMap, BTreeSet};

use mysql_async::Conn;

use super::tables::Tables;
use crate::{
    database::mysql::{
        cascades::load_cascades,
        catalog::{CatalogError, load_tables},
        connect::QueryError,
    },
    model::{CascadeLink, TableName, TableSchema},
};

/// How many schemas foreign keys are followed through.
const SCHEMAS_MAX: usize = 100;

/// The keys that lead to captured tables, from their parents or through any number of tables, and those that are known
/// already; and the parents of those that are there now.
///
/// # Errors
/// When the catalog cannot be asked.
pub(super) async fn reaching(
    conn: &mut Conn,
    tables: &Tables,
    known: Vec<CascadeLink>,
) -> Result<(Vec<CascadeLink>, BTreeSet<TableName>), QueryError> {
    let mut reached: BTreeSet<TableName> = tables.watched().map(|table| tables.compared(table)).collect();
    let (mut links, mut found, mut present) = (known.clone(), known, BTreeSet::new());
    let mut asked: BTreeSet<String> = BTreeSet::new();
    loop {
        for schema in reached.iter().map(|table| &table.schema) {
            if asked.len() < SCHEMAS_MAX && asked.insert(schema.clone()) {
                let there = load_cascades(conn, schema).await?;
                present.extend(there.iter().map(|link| link.parent.clone()));
                found.extend(there);
            }
        }
        let leads = |link: &&CascadeLink| reached.contains(&tables.compared(&link.child)) && !links.contains(link);
        let more: Vec<CascadeLink> = found.iter().filter(leads).cloned().collect();
        let parents: Vec<TableName> = links
            .iter()
            .chain(&more)
            .map(|link| tables.compared(&link.parent))
            .filter(|p| !reached.contains(p))
            .collect();
        if more.is_empty() && parents.is_empty() {
            links.sort();
            links.dedup();
            return Ok((links, present));
        }
        reached.extend(parents);
        links.extend(more);
    }
}

/// The schemas of the parents that are not captured, as far as the source user may see them.
///
/// # Errors
/// When the catalog cannot be asked.
pub(super) async fn parents_beside(
    conn: &mut Conn,
    tables: &Tables,
    links: &[CascadeLink],
) -> Result<Vec<TableSchema>, CatalogError> {
    let mut beside: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for parent in links.iter().map(|link| &link.parent).filter(|parent| !tables.reads(parent)) {
        beside.entry(&parent.schema).or_default().insert(&parent.table);
    }
    let mut schemas = Vec::new();
    for (schema, names) in beside {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        schemas.extend(load_tables(conn, schema, Some(&names)).await?);
    }
    Ok(schemas)
}
