//! Drifted rows that are to be reviewed by hand: which, how they differ, since when, and whether somebody accepts that.
//!
//! What enters is what a comparison has confirmed; what leaves is a list for people, and, for the next comparison,
//! which rows are accepted. No value of a row is here but its keys: how it differs is a digest. **Invariant**: an ID is
//! of a row and of the way in which it differs. When that changes the row is open again, and has another ID, so that
//! nobody accepts what he has not seen.

use std::collections::HashMap;

use serde::Serialize;

use super::{StateError, Store, spelled::spelled};

/// Drifted rows of a source table that are kept, the first that were found. Of more, the verdict says how many.
pub const DRIFT_ROWS_MAX: usize = 10_000;
/// Rows that are written with one statement.
const GROUP_ROWS_MAX: usize = 500;

const COLUMNS: &str = "id, source_table, target, kind, key, columns, digest, reason, state, \
    to_char(found_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), source_key";

/// What was accepted stays so while it differs in the same way.
const NOTE: &str = "INSERT INTO cutover.drift AS d \
     (pipeline, source_table, target, key, source_key, kind, columns, digest, reason) \
     SELECT DISTINCT ON (f.target, f.key) $1, $2, f.target, f.key, f.source_key, f.kind, f.columns, f.digest, f.reason \
     FROM json_to_recordset($3::text::json) AS f(target text, key text, source_key text, kind text, columns text[], \
       digest bigint, reason text) \
     ORDER BY f.target, f.key \
     ON CONFLICT (pipeline, source_table, target, md5(key)) DO UPDATE SET \
     id = CASE WHEN d.digest = excluded.digest THEN d.id ELSE excluded.id END, \
     state = CASE WHEN d.digest = excluded.digest THEN d.state ELSE excluded.state END, \
     found_at = CASE WHEN d.digest = excluded.digest THEN d.found_at ELSE excluded.found_at END, \
     updated_at = clock_timestamp(), source_key = excluded.source_key, kind = excluded.kind, columns = excluded.columns, \
     digest = excluded.digest, reason = excluded.reason";

/// Rows that do not differ any more.
const FORGET: &str = "DELETE FROM cutover.drift WHERE pipeline = $1 AND source_table = $2 \
     AND (target, md5(key)) IN (SELECT e.target, md5(e.key) FROM unnest($3::text[], $4::text[]) e(target, key))";

spelled! {
    /// How a row of the target differs.
    pub enum DriftKind: "kind of drift" {
        Missing = "missing",
        Extra = "extra",
        Different = "different",
    }
}

spelled! {
    /// What people say of a drifted row.
    pub enum DriftState: "state of a drifted row" {
        /// It is still to be reviewed.
        Open = "open",
        /// It may differ in this way.
        Accepted = "accepted",
    }
}

/// A row of the target, whether it is there or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriftKey {
    /// The target table.
    pub target: String,
    /// The target's key as a JSON array of texts.
    pub key: String,
}

impl DriftKey {
    pub fn new(target: &str, key: &[Option<String>]) -> Self {
        // Texts and nulls are always JSON.
        DriftKey { target: target.to_owned(), key: serde_json::to_string(key).unwrap_or_default() }
    }
}

/// A drifted row, as a comparison has confirmed it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FoundDrift {
    pub target: String,
    /// As [`DriftKey`] has it.
    pub key: String,
    /// The key of the source row that makes it, or would, as records have it; none where that is not known.
    pub source_key: Option<String>,
    pub kind: DriftKind,
    pub columns: Vec<String>,
    /// Of what is there and what should be: another way to differ is another digest.
    pub digest: i64,
    pub reason: Option<String>,
}

/// What a comparison has to know of a row that drifted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDrift {
    pub digest: i64,
    pub state: DriftState,
}

/// A drifted row, as people see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DriftRow {
    pub id: i64,
    /// The source table, as the configuration names it.
    pub table: String,
    pub target: String,
    pub kind: DriftKind,
    /// The target's key, by column. Of a row that cannot be made, the key of the source's as records have it.
    pub key: Vec<Option<String>>,
    pub columns: Vec<String>,
    pub digest: String,
    pub reason: Option<String>,
    pub state: DriftState,
    /// When it was found to differ in this way first.
    pub since: String,
    #[serde(skip)]
    pub source_key: Option<String>,
}

impl DriftRow {
    /// The row of the target.
    pub fn drift_key(&self) -> DriftKey {
        DriftKey::new(&self.target, &self.key)
    }
}

/// Which rows a command is about.
#[derive(Debug, Clone, Default)]
pub struct DriftSelection {
    /// Those with these numbers; all if none are given.
    pub ids: Option<Vec<i64>>,
    /// Those of these source tables; of all if none are given.
    pub tables: Option<Vec<String>>,
}

impl Store {
    /// What is known of the rows of a source table that drifted before.
    pub async fn known_drift(&self, table: &str) -> Result<HashMap<DriftKey, KnownDrift>, StateError> {
        let session = self.session().await?;
        let sql = "SELECT target, key, digest, state FROM cutover.drift WHERE pipeline = $1 AND source_table = $2";
        let rows = session.client()?.query(sql, &[&self.pipeline, &table]).await?;
        let mut known = HashMap::new();
        for row in &rows {
            let key = DriftKey { target: row.try_get(0)?, key: row.try_get(1)? };
            known.insert(key, KnownDrift { digest: row.try_get(2)?, state: DriftState::read(row.try_get(3)?)? });
        }
        Ok(known)
    }

    /// Notes what a comparison of a source table has found: rows that differ, and rows that do not any more.
    pub async fn note_drift(&self, table: &str, found: &[FoundDrift], equal: &[DriftKey]) -> Result<(), StateError> {
        let session = self.session().await?;
        for group in found.chunks(GROUP_ROWS_MAX) {
            let rows = serde_json::to_string(group)?;
            session.client()?.execute(NOTE, &[&self.pipeline, &table, &rows]).await?;
        }
        for group in equal.chunks(GROUP_ROWS_MAX) {
            let (targets, keys): (Vec<&str>, Vec<&str>) =
                group.iter().map(|row| (row.target.as_str(), row.key.as_str())).unzip();
            session.client()?.execute(FORGET, &[&self.pipeline, &table, &targets, &keys]).await?;
        }
        Ok(())
    }

    /// Drifted rows, open and accepted, by table and number.
    pub async fn drift_rows(&self, selection: &DriftSelection) -> Result<Vec<DriftRow>, StateError> {
        let session = self.session().await?;
        let sql = format!(
            "SELECT {COLUMNS} FROM cutover.drift WHERE pipeline = $1 AND ($2::bigint[] IS NULL OR id = ANY($2)) \
             AND ($3::text[] IS NULL OR source_table = ANY($3)) ORDER BY source_table, id"
        );
        let rows = session.client()?.query(&sql, &[&self.pipeline, &selection.ids, &selection.tables]).await?;
        rows.iter().map(drift_row).collect()
    }

    /// Accepts that these open rows differ as they do; how many those are.
    pub async fn accept_drift(&self, ids: &[i64]) -> Result<u64, StateError> {
        let session = self.session().await?;
        let sql = "UPDATE cutover.drift SET state = 'accepted', updated_at = clock_timestamp() \
                   WHERE pipeline = $1 AND id = ANY($2) AND state = 'open'";
        Ok(session.client()?.execute(sql, &[&self.pipeline, &ids]).await?)
    }
}

fn drift_row(row: &tokio_postgres::Row) -> Result<DriftRow, StateError> {
    let key: &str = row.try_get(4)?;
    let key = serde_json::from_str(key).map_err(|error| StateError::unreadable("the key of a drifted row", &error))?;
    Ok(DriftRow {
        id: row.try_get(0)?,
        table: row.try_get(1)?,
        target: row.try_get(2)?,
        kind: DriftKind::read(row.try_get(3)?)?,
        key,
        columns: row.try_get(5)?,
        digest: format!("{:016x}", row.try_get::<_, i64>(6)?),
        reason: row.try_get(7)?,
        state: DriftState::read(row.try_get(8)?)?,
        since: row.try_get(9)?,
        source_key: row.try_get(10)?,
    })
}
