//! The tables of what is known of merged rows that are not shown (rule 8), and what their targets get
//! beside.
//!
//! A pending table has the target's columns that transforms fill, with the target's defaults, and without NOT NULL
//! where only the owner can fill a column. Made and kept up at every start, since the target's columns may have
//! changed.

use std::collections::HashMap;

use super::{merged::OWNED, tombstones};
use crate::{
    database::postgres::{PgError, Session, catalog::VERSION_COLUMN, sql},
    model::{Share, TableName, TargetTable, Version},
};

/// The pending table of a target table.
pub(super) fn table(target: &TableName) -> TableName {
    tombstones::beside("pending", target)
}

/// A column as the catalog has it.
#[derive(Debug, PartialEq, Eq)]
struct Described {
    type_sql: String,
    default: Option<String>,
}

const DESCRIBED: &str = "
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), pg_catalog.pg_get_expr(d.adbin, d.adrelid)
FROM pg_catalog.pg_attribute a
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated = ''
WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped";

async fn described(session: &Session, table: &TableName) -> Result<HashMap<String, Described>, PgError> {
    let mut columns = HashMap::new();
    for row in session.client.query(DESCRIBED, &[&sql::table(table)]).await? {
        columns.insert(row.try_get(0)?, Described { type_sql: row.try_get(1)?, default: row.try_get(2)? });
    }
    Ok(columns)
}

/// Makes the pending table, or brings it up to the target's columns and to who contributes.
pub(super) async fn prepare(session: &Session, target: &TargetTable, share: &Share) -> Result<(), PgError> {
    let pending = table(&target.name);
    let name = sql::table(&pending);
    let keys = target.key.iter().filter_map(|key| target.column(key)).map(tombstones::key_column);
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {name} ({}, {VERSION_COLUMN} bigint NOT NULL DEFAULT 0, \
         {OWNED} boolean NOT NULL DEFAULT false, PRIMARY KEY ({}))",
        keys.collect::<Vec<_>>().join(", "),
        sql::list("", target.key.iter().map(String::as_str))
    );
    session.client.batch_execute(&create).await?;
    let (wanted, found) = (described(session, &target.name).await?, described(session, &pending).await?);
    let mut changes = Vec::new();
    for contributor in share.all() {
        for column in contributor.columns.iter().filter_map(|column| target.column(column)) {
            let Some(like) = wanted.get(&column.name) else { continue };
            let own = sql::ident(&column.name);
            let default = like.default.as_ref().map(|default| format!(" DEFAULT {default}")).unwrap_or_default();
            match found.get(&column.name) {
                None => {
                    let collation =
                        column.collation.as_ref().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
                    // A value that the target refuses is its contributor's fault, not that of the owner which comes
                    // later.
                    let given = if column.not_null && !contributor.owns { " NOT NULL" } else { "" };
                    changes
                        .push(format!("ADD COLUMN IF NOT EXISTS {own} {}{collation}{default}{given}", like.type_sql));
                }
                Some(there) => {
                    if there.type_sql != like.type_sql {
                        changes.push(format!("ALTER COLUMN {own} DROP DEFAULT"));
                        changes.push(format!("ALTER COLUMN {own} TYPE {t} USING {own}::{t}", t = like.type_sql));
                    }
                    if *there != *like {
                        let default = default.trim_start();
                        changes.push(if default.is_empty() {
                            format!("ALTER COLUMN {own} DROP DEFAULT")
                        } else {
                            format!("ALTER COLUMN {own} SET {default}")
                        });
                    }
                }
            }
        }
        if !contributor.owns && !found.contains_key(&contributor.version) {
            let version = sql::ident(&contributor.version);
            changes.push(format!("ADD COLUMN IF NOT EXISTS {version} bigint NOT NULL DEFAULT 0"));
        }
        if contributor.removes() && !found.contains_key(&contributor.gone()) {
            let gone = sql::ident(&contributor.gone());
            changes.push(format!("ADD COLUMN IF NOT EXISTS {gone} boolean NOT NULL DEFAULT false"));
        }
    }
    for change in changes {
        session.client.batch_execute(&format!("ALTER TABLE {name} {change}")).await?;
    }
    index(session, target, share).await
}

/// Rows to be shown are looked for after each batch, and there are hardly ever any.
async fn index(session: &Session, target: &TargetTable, share: &Share) -> Result<(), PgError> {
    let gone: Vec<String> = share.removers().map(|remover| sql::ident(&remover.gone())).collect();
    if gone.is_empty() {
        return Ok(());
    }
    let (pending, shown) = (table(&target.name), format!("{OWNED} AND NOT ({})", gone.join(" OR ")));
    let name = sql::digested(&format!("{}_shown", pending.table), &format!("{pending} {shown}"));
    let create = format!(
        "CREATE INDEX IF NOT EXISTS {} ON {} ({}) WHERE {shown}",
        sql::ident(&name),
        sql::table(&pending),
        sql::list("", target.key.iter().map(String::as_str)),
    );
    session.client.batch_execute(&create).await?;
    Ok(())
}

/// Forgets keys of which nothing is known but deletes from before `version`.
pub(super) async fn collect(
    session: &Session,
    target: &TableName,
    share: &Share,
    version: Version,
) -> Result<u64, PgError> {
    let over = share.all().filter(|contributor| !contributor.owns).map(|contributor| {
        let own = sql::ident(&contributor.version);
        format!(" AND {own} <= 0 AND -{own} < $1")
    });
    let delete = format!("DELETE FROM {} WHERE NOT {OWNED}{}", sql::table(&table(target)), over.collect::<String>());
    Ok(session.client.execute(&delete, &[&version]).await?)
}
