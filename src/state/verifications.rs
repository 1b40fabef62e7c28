//! Comparisons under way, and what they need to know: who compares, what is parked, how far the target is.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{StateError, Store};
use crate::model::{Position, Version};

/// Takes the advisory lock of a comparison. The first half of its number is any that nothing else uses.
const LOCK: &str = "SELECT pg_catalog.pg_try_advisory_lock(1668641894, pg_catalog.hashtext($1))";
/// Whether any session holds it.
const IS_LOCKED: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database \
                         WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.objsubid = 2 \
                         AND l.classid = 1668641894 AND l.objid::bigint = (pg_catalog.hashtext($1)::bigint & 4294967295))";

/// Whether this session holds it.
const HAS_LOCK: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = pg_catalog.pg_backend_pid() \
                        AND l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = 1668641894 \
                        AND l.objid::bigint = (pg_catalog.hashtext($1)::bigint & 4294967295))";
/// Which rows are parked, of those of a pipeline's source table whose records have these keys. A target asks it in the
/// snapshot in which it looks at its rows.
pub const PARKED: &str = "SELECT key_text, state FROM cutover.dead_letters \
                          WHERE pipeline = $1 AND source_table = $2 \
                          AND md5(key_text) = ANY(SELECT md5(k) FROM unnest($3::text[]) k) AND state IN ('open', 'discarded') \
                          UNION ALL SELECT key_text, 'waits' FROM cutover.waiting \
                          WHERE pipeline = $1 AND source_table = $2 \
                          AND md5(key_text) = ANY(SELECT md5(k) FROM unnest($3::text[]) k)";

/// How far the target is, over all partitions.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The least of the partitions' positions, and the clock there: everything up to it is in the target.
    pub position: Position,
    pub clock: Version,
    /// Each partition's.
    all: Vec<Position>,
}

impl Reached {
    /// Whether the target has everything that the source's log held at `end`.
    pub fn covers(&self, end: &Position) -> bool {
        self.all.iter().all(|position| position.covers(end))
    }

    /// Whether that can be told at all: both are of the same server's log.
    pub fn is_of(&self, end: &Position) -> bool {
        self.position.same_server(end)
    }
}

/// Why a row of the source is not at the target as it should be, where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parked {
    /// It waits for another row.
    Waits,
    /// It is an open dead letter.
    Dead,
    /// It is a dead letter that somebody has closed: nothing is to come of it.
    Discarded,
}

/// What the answer to [`PARKED`] says, by the records' keys.
pub fn parked(rows: &[tokio_postgres::Row]) -> Result<HashMap<String, Parked>, tokio_postgres::Error> {
    let mut parked = HashMap::new();
    for row in rows {
        let why = match row.try_get::<_, &str>(1)? {
            "waits" => Parked::Waits,
            "open" => Parked::Dead,
            _ => Parked::Discarded,
        };
        // What is still to come says more than what was closed.
        let known = parked.entry(row.try_get::<_, String>(0)?).or_insert(why);
        if *known == Parked::Discarded {
            *known = why;
        }
    }
    Ok(parked)
}

/// What the last whole comparison of a source table found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedTable {
    pub table: String,
    /// Rows of the source.
    pub rows: u64,
    pub missing: u64,
    pub extra: u64,
    pub different: u64,
    /// Compared as a whole, and equal.
    pub is_clean: bool,
    /// When it ended, µs since the Unix epoch.
    pub at_us: i64,
}

impl VerifiedTable {
    /// Rows that drifted.
    pub fn drifted(&self) -> u64 {
        self.missing + self.extra + self.different
    }
}

/// What the last comparison of whole tables said, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotedVerdict {
    /// When it ended, µs since the Unix epoch.
    pub at_us: i64,
    pub gates: Vec<Gate>,
}

/// One thing that a switch asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// `unproven` (rows and tables that could not be compared or called equal), `match_rate`, `count_difference`, or
    /// `foreign_key NAME of TABLE`.
    pub name: String,
    pub passed: bool,
    pub found: f64,
    /// The least that the match rate may be; the most of the others.
    pub wanted: f64,
}

/// The note with what the last comparison of whole tables said.
const VERDICT: &str = "last verdict";
/// What the notes about comparisons begin with.
const VERIFIED: &str = "verified ";

impl Store {
    /// Notes what a whole comparison of a table has found.
    pub async fn note_verified(&self, verified: &VerifiedTable) -> Result<(), StateError> {
        self.set_note(&format!("{VERIFIED}{}", verified.table), &serde_json::to_string(verified)?).await
    }

    /// What the last whole comparison of each table found.
    pub async fn verified(&self) -> Result<Vec<VerifiedTable>, StateError> {
        let session = self.session().await?;
        let sql = "SELECT n.value FROM cutover.notes n WHERE n.pipeline = $1 AND starts_with(n.key, $2) \
                   AND EXISTS (SELECT FROM cutover.tables t WHERE t.pipeline = n.pipeline AND n.key = $2 || t.source_table) \
                   ORDER BY n.key";
        let rows = session.client()?.query(sql, &[&self.pipeline, &VERIFIED]).await?;
        // What another release noted is about a moment, and not worth an error.
        Ok(rows.iter().filter_map(|row| serde_json::from_str(row.get(0)).ok()).collect())
    }

    /// Notes what a comparison of whole tables has said.
    pub async fn note_verdict(&self, verdict: &NotedVerdict) -> Result<(), StateError> {
        self.set_note(VERDICT, &serde_json::to_string(verdict)?).await
    }

    /// What the last comparison of whole tables said.
    pub async fn last_verdict(&self) -> Result<Option<NotedVerdict>, StateError> {
        let noted = self.note(VERDICT).await?;
        Ok(noted.and_then(|noted| serde_json::from_str(&noted).ok()))
    }

    /// Takes the lock of who compares, for as long as this store's session lasts; false if somebody else has it.
    pub async fn lock_verify(&self) -> Result<bool, StateError> {
        let session = self.session().await?;
        Ok(session.client()?.query_one(LOCK, &[&self.pipeline]).await?.get(0))
    }

    /// Whether somebody compares, so that tombstones have to stay.
    pub async fn is_verified(&self) -> Result<bool, StateError> {
        let session = self.session().await?;
        Ok(session.client()?.query_one(IS_LOCKED, &[&self.pipeline]).await?.get(0))
    }

    /// How far the target is; none while some partition has nothing yet.
    pub async fn reached(&self, partitions: u32) -> Result<Option<Reached>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT position::text, clock FROM cutover.offsets \
                 WHERE pipeline = $1 AND topic = 'changes' AND position IS NOT NULL ORDER BY clock, part",
                &[&self.pipeline],
            )
            .await?;
        let mut all: Vec<Position> = Vec::new();
        for row in &rows {
            let position = serde_json::from_str(row.get(0));
            all.push(position.map_err(|error| StateError::unreadable("a stored position", &error))?);
        }
        let Some(first) = rows.first().filter(|_| all.len() >= partitions as usize) else { return Ok(None) };
        let Some(position) = all.first().cloned() else { return Ok(None) };
        Ok(Some(Reached { position, clock: first.get(1), all }))
    }

    /// Whether the session that took the lock of who compares is still there, and has it.
    pub async fn has_verify_lock(&self) -> Result<bool, StateError> {
        let session = self.session().await?;
        Ok(session.client()?.query_one(HAS_LOCK, &[&self.pipeline]).await?.get(0))
    }

    /// The hash of the transforms that were in force last; none before the first.
    pub async fn transforms_in_force(&self) -> Result<Option<String>, StateError> {
        let session = self.session().await?;
        let sql = "SELECT hash FROM cutover.transforms WHERE pipeline = $1 ORDER BY seq DESC LIMIT 1";
        let row = session.client()?.query_opt(sql, &[&self.pipeline]).await?;
        Ok(row.map(|row| row.get(0)))
    }
}
