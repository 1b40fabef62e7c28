//! A replication slot: the server's memory of how far its log has been read.

use tokio_postgres::Client;

use super::PgError;
use crate::model::Lsn;

/// The plugin whose messages are read.
pub const PLUGIN: &str = "pgoutput";

/// A slot, as the server shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub active: bool,
    /// Up to where the server need not keep what the slot has been sent; none for a slot that was invalidated.
    pub confirmed: Option<Lsn>,
    /// Why the server has given it up, in the server's words; none for a slot that can be read.
    pub invalidated: Option<String>,
}

/// The slot of a pipeline, and its publication too: what a name has that theirs may not is replaced, and told apart by
/// a digest.
pub fn name_of(pipeline: &str) -> String {
    let plain = pipeline.replace('-', "_");
    if plain == pipeline {
        format!("cutover_{plain}")
    } else {
        format!("cutover_{plain}_{:08x}", crc32fast::hash(pipeline.as_bytes()))
    }
}

/// The slot of this name.
pub async fn load(client: &Client, name: &str) -> Result<Option<Slot>, PgError> {
    // Columns that later releases have are read by name from the row as JSON.
    let sql = "SELECT plugin::text, database::text, active, confirmed_flush_lsn::text, \
               coalesce(nullif(to_jsonb(s) ->> 'invalidation_reason', ''), CASE WHEN wal_status = 'lost' THEN 'wal_removed' END) \
               FROM pg_replication_slots s WHERE slot_name = $1::text";
    let Some(row) = client.query_opt(sql, &[&name]).await? else { return Ok(None) };
    let confirmed: Option<String> = row.try_get(3)?;
    Ok(Some(Slot {
        name: name.to_owned(),
        plugin: row.try_get(0)?,
        database: row.try_get(1)?,
        active: row.try_get(2)?,
        confirmed: confirmed.and_then(|text| text.parse().ok()),
        invalidated: row.try_get(4)?,
    }))
}

/// Makes the slot, which begins at the first transaction that begins after those that run now have ended; from where
/// on.
pub async fn create(client: &Client, name: &str) -> Result<Lsn, PgError> {
    let sql = "SELECT lsn::text FROM pg_create_logical_replication_slot($1::text, $2::text)";
    let row = client.query_one(sql, &[&name, &PLUGIN]).await?;
    let text: String = row.try_get(0)?;
    text.parse().map_err(|_| PgError::Protocol("the new slot's place cannot be read".into()))
}

/// Gives a slot up.
pub async fn drop(client: &Client, name: &str) -> Result<(), PgError> {
    client.execute("SELECT pg_drop_replication_slot($1::text)", &[&name]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelines_of_different_names_have_different_slots() {
        assert_eq!(name_of("cart"), "cutover_cart");
        assert_ne!(name_of("a-b"), name_of("a_b"));
        let longest = name_of(&"-".repeat(40));
        assert!(longest.len() < 64 && longest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
    }
}
