//! What the target needs beside its own tables: version columns, and a tombstone table for each.
//!
//! A tombstone is a deleted key with the version of its delete. The tables are typed, and shared by all pipelines that
//! write the target table.

use sha2::{Digest, Sha256};

use crate::{
    database::postgres::{PgError, Session, catalog::VERSION_COLUMN, sql},
    model::{TableName, TargetTable, Version},
};

/// PostgreSQL cuts names after this many bytes.
const NAME_BYTES_MAX: usize = 63;

/// The tombstone table of a target table.
pub fn table(target: &TableName) -> TableName {
    let name = format!("tombstones_{}_{}", target.schema, target.table);
    // `a_b.c` and `a.b_c` must not share one, nor may two long names.
    let plain = name.len() <= NAME_BYTES_MAX && !target.schema.contains('_');
    if plain {
        return TableName::new("cutover", name);
    }
    let digest = Sha256::digest(target.to_string().as_bytes());
    let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let mut end = name.len().min(NAME_BYTES_MAX - digest.len() - 1);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    TableName::new("cutover", format!("{}_{digest}", name.get(..end).unwrap_or_default()))
}

/// Adds the version column and the tombstone table where they are missing.
pub async fn prepare(session: &Session, target: &TargetTable) -> Result<(), PgError> {
    let columns: Vec<String> = target
        .key
        .iter()
        .filter_map(|key| target.column(key))
        .map(|column| {
            let collation = column.collation.as_ref().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
            format!("{} {}{collation} NOT NULL", sql::ident(&column.name), column.type_sql)
        })
        .collect();
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {} ({}, {VERSION_COLUMN} bigint NOT NULL, PRIMARY KEY ({}))",
        sql::table(&table(&target.name)),
        columns.join(", "),
        sql::list("", target.key.iter().map(String::as_str))
    );
    session.client.batch_execute(&create).await?;
    let there = session
        .client
        .query_opt(
            "SELECT FROM pg_catalog.pg_attribute WHERE attrelid = $1::text::regclass AND attname = $2 AND NOT attisdropped",
            &[&sql::table(&target.name), &VERSION_COLUMN],
        )
        .await?;
    if there.is_none() {
        // Only the owner may alter the table; asking first lets a lesser role run once the column is there.
        let add = format!(
            "ALTER TABLE {} ADD COLUMN IF NOT EXISTS {VERSION_COLUMN} bigint NOT NULL DEFAULT 0",
            sql::table(&target.name)
        );
        session.client.batch_execute(&add).await?;
    }
    Ok(())
}

/// The highest version of a target table's rows and tombstones. Reads the whole table.
pub async fn highest_version(session: &Session, target: &TableName) -> Result<Version, PgError> {
    let highest = format!(
        "SELECT greatest((SELECT max({VERSION_COLUMN}) FROM {}), (SELECT max({VERSION_COLUMN}) FROM {}), 0)",
        sql::table(target),
        sql::table(&table(target))
    );
    Ok(session.client.query_one(&highest, &[]).await?.try_get(0)?)
}

/// Forgets the tombstones older than `version`; how many they were. The caller knows that nothing older can come.
pub async fn collect(session: &Session, target: &TableName, version: Version) -> Result<u64, PgError> {
    let delete = format!("DELETE FROM {} WHERE {VERSION_COLUMN} < $1", sql::table(&table(target)));
    Ok(session.client.execute(&delete, &[&version]).await?)
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
