//! What the target needs beside its own tables: version columns, and a tombstone table for each (merged rows and sets:
//! more).
//!
//! A tombstone is a deleted key with the version of its delete. The tables are typed, and shared by all pipelines that
//! write the target table.

use super::{owned, pending, sets};
use crate::{
    database::postgres::{PgError, Session, catalog::VERSION_COLUMN, sql},
    model::{Plan, PlanRole, TableName, TargetColumn, Version},
};

/// The tombstone table of a target table.
pub fn table(target: &TableName) -> TableName {
    beside("tombstones", target)
}

/// A table of ours for a target table.
pub(super) fn beside(kind: &str, target: &TableName) -> TableName {
    let name = format!("{kind}_{}_{}", target.schema, target.table);
    // `a_b.c` and `a.b_c` must not share one, nor may two long names.
    let name = if target.schema.contains('_') {
        sql::digested(&name, &target.to_string())
    } else {
        sql::short(&name, &target.to_string())
    };
    TableName::new("cutover", name)
}

/// A column of a target's key, in a table of ours.
pub(super) fn key_column(column: &TargetColumn) -> String {
    let collation = column.collation.as_ref().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
    format!("{} {}{collation} NOT NULL", sql::ident(&column.name), column.type_sql)
}

/// Adds the version column and the tables beside the plan's target where they are missing.
pub async fn prepare(session: &Session, plan: &Plan) -> Result<(), PgError> {
    let target = &plan.target;
    let columns: Vec<String> = target.key.iter().filter_map(|key| target.column(key)).map(key_column).collect();
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {} ({}, {VERSION_COLUMN} bigint NOT NULL, PRIMARY KEY ({}))",
        sql::table(&table(&target.name)),
        columns.join(", "),
        sql::list("", target.key.iter().map(String::as_str))
    );
    session.client.batch_execute(&create).await?;
    add_version(session, &target.name, VERSION_COLUMN).await?;
    owned::prepare(session, plan).await?;
    match &plan.role {
        PlanRole::Whole => Ok(()),
        PlanRole::Share(share) => {
            for contributor in share.all() {
                add_version(session, &target.name, &contributor.version).await?;
            }
            pending::prepare(session, target, share).await
        }
        PlanRole::Set { parent } => sets::prepare(session, target, parent).await,
    }
}

/// Adds a column of ours where it is missing.
pub(super) async fn add_version(session: &Session, target: &TableName, version: &str) -> Result<(), PgError> {
    let there = session
        .client
        .query_opt(
            "SELECT FROM pg_catalog.pg_attribute WHERE attrelid = $1::text::regclass AND attname = $2 AND NOT attisdropped",
            &[&sql::table(target), &version],
        )
        .await?;
    if there.is_none() {
        // Only the owner may alter the table; asking first lets a lesser role run once the column is there.
        // Behind an ALTER that waits for somebody who reads the table everybody else waits: not for long, but again.
        let add = format!(
            "SET LOCAL lock_timeout = '500ms'; ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} bigint NOT NULL DEFAULT 0",
            sql::table(target),
            sql::ident(version)
        );
        session.client.batch_execute(&add).await?;
    }
    Ok(())
}

/// The highest version of what a plan has written to its target, tombstones included. Reads the whole table.
pub async fn highest_version(session: &Session, plan: &Plan) -> Result<Version, PgError> {
    let target = &plan.target.name;
    let (version, beside) = match &plan.role {
        PlanRole::Whole => (VERSION_COLUMN.to_owned(), table(target)),
        PlanRole::Share(share) if share.own.owns => (VERSION_COLUMN.to_owned(), table(target)),
        PlanRole::Share(share) => (format!("abs({})", sql::ident(&share.own.version)), pending::table(target)),
        PlanRole::Set { .. } => (VERSION_COLUMN.to_owned(), sets::table(target)),
    };
    let owned = match plan.is_owned() {
        true => format!("(SELECT max({version}) FROM {}), ", sql::table(&owned::table(target))),
        false => String::new(),
    };
    let highest = format!(
        "SELECT greatest((SELECT max({version}) FROM {}), (SELECT max({version}) FROM {}), {owned}0)",
        sql::table(target),
        sql::table(&beside)
    );
    Ok(session.client.query_one(&highest, &[]).await?.try_get(0)?)
}

/// Forgets the deletes older than `version`; how many they were. The caller knows that nothing older can come.
pub async fn collect(session: &Session, plan: &Plan, version: Version) -> Result<u64, PgError> {
    let target = &plan.target.name;
    // First what is judged by tombstones, then these.
    let beside = match &plan.role {
        PlanRole::Share(share) => pending::collect(session, target, share, version).await?,
        PlanRole::Set { parent } => sets::collect(session, target, parent, version).await?,
        PlanRole::Whole => owned::collect(session, plan, version).await?,
    };
    let delete = format!("DELETE FROM {} WHERE {VERSION_COLUMN} < $1", sql::table(&table(target)));
    Ok(beside + session.client.execute(&delete, &[&version]).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstone_tables_of_different_targets_never_share_a_name() {
        let name = |schema: &str, name: &str| table(&TableName::new(schema, name)).table;
        assert_eq!(name("public", "orders"), "tombstones_public_orders");
        assert_ne!(name("a_b", "c"), name("a", "b_c"));
        let (long, other) = ("x".repeat(63), format!("{}y", "x".repeat(62)));
        assert_ne!(name("public", &long), name("public", &other));
        assert!(name("public", &"é".repeat(40)).len() <= 63);
    }
}
