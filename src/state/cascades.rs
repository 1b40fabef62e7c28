//! Cascades of the source that are still to be followed: parents whose children may have changed without an event.
//!
//! The target stores them with the change of the parent that it applies; here they are read, added to where children
//! are parents themselves, and ended.

use super::{StateError, Store, spelled::spelled};
use crate::model::Version;

spelled! {
    /// What became of a parent's key.
    pub enum StoredKind: "kind of a cascade" {
        Gone = "gone",
        Came = "came",
    }
}

/// A parent whose children are to be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredCascade {
    /// The child table, with its database.
    pub child: String,
    pub kind: StoredKind,
    /// The parent's key by the child's columns, as JSON; without any column every row is meant.
    pub key: String,
    /// Rows before this version are meant.
    pub version: Version,
    /// How many keys lead to it from the change that the source logged.
    pub depth: i32,
    /// It was followed while the target lacked rows of the child.
    pub hides: bool,
}

/// A row of a child table that is set aside.
#[derive(Debug)]
pub(crate) struct ParkedChild {
    pub key: String,
    pub record: String,
    pub version: Version,
}

/// Those to be followed now, of one child table and kind.
const NEXT: &str = "
WITH due AS (SELECT child, kind, key_text, version, depth, hides, held, since FROM cutover.cascades
             WHERE pipeline = $1 AND version <= $2 AND (NOT held OR $4 OR child <> ALL($3::text[]))),
     first AS (SELECT child, kind, key_text = '{}' AS every FROM due ORDER BY held, since, version, child, kind LIMIT 1)
SELECT d.child, d.kind, d.key_text, d.version, d.depth, d.hides FROM due d JOIN first f
  ON d.child = f.child AND d.kind = f.kind AND (d.key_text = '{}') = f.every
ORDER BY d.held, d.since, d.version LIMIT $5";

const ADD: &str = "
INSERT INTO cutover.cascades AS c (pipeline, child, kind, key_text, version, depth)
SELECT $1, x.child, x.kind, x.key, max(x.version), max(x.depth)
FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::int[]) x(child, kind, key, version, depth)
GROUP BY x.child, x.kind, x.key ORDER BY x.child, x.kind, x.key
ON CONFLICT (pipeline, child, kind, md5(key_text)) DO UPDATE
SET version = greatest(c.version, excluded.version), depth = greatest(c.depth, excluded.depth), held = false";

/// What came of a key meanwhile stays to be followed.
const END: &str = "
DELETE FROM cutover.cascades c USING unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) x(child, kind, key, version)
WHERE c.pipeline = $1 AND c.child = x.child AND c.kind = x.kind AND c.key_text = x.key AND c.version = x.version";

const HOLD: &str = "
UPDATE cutover.cascades c SET held = true, hides = c.hides OR $6, since = clock_timestamp()
FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[]) x(child, kind, key, version)
WHERE c.pipeline = $1 AND c.child = x.child AND c.kind = x.kind AND c.key_text = x.key AND c.version = x.version";

/// Rows that are set aside, with the newest record of each.
const PARKED: &str = "
SELECT DISTINCT ON (p.key_text) p.key_text, p.record, p.version FROM (
  SELECT key_text, version, pg_catalog.convert_from(value, 'UTF8') AS record FROM cutover.waiting
  WHERE pipeline = $1 AND source_table = $2
  UNION ALL SELECT key_text, version, record::text FROM cutover.dead_letters
  WHERE pipeline = $1 AND source_table = $2 AND state = 'open') p
WHERE p.version < $3 AND p.key_text > $4 ORDER BY p.key_text, p.version DESC LIMIT $5";

/// The columns of cascades, one list each.
struct Lists {
    children: Vec<String>,
    kinds: Vec<&'static str>,
    keys: Vec<String>,
    versions: Vec<Version>,
    depths: Vec<i32>,
}

impl Lists {
    fn of(cascades: &[StoredCascade]) -> Self {
        Lists {
            children: cascades.iter().map(|cascade| cascade.child.clone()).collect(),
            kinds: cascades.iter().map(|cascade| cascade.kind.name()).collect(),
            keys: cascades.iter().map(|cascade| cascade.key.clone()).collect(),
            versions: cascades.iter().map(|cascade| cascade.version).collect(),
            depths: cascades.iter().map(|cascade| cascade.depth).collect(),
        }
    }
}

impl Store {
    /// The oldest cascades up to a version, of one child table. Those that are held wait for tables that are not among
    /// `open`, or for their next turn.
    pub(crate) async fn next_cascades(
        &self,
        up_to: Version,
        open: &[String],
        held: bool,
        limit: i64,
    ) -> Result<Vec<StoredCascade>, StateError> {
        let session = self.session().await?;
        let rows = session.client()?.query(NEXT, &[&self.pipeline, &up_to, &open, &held, &limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredCascade {
                    child: row.get(0),
                    kind: StoredKind::read(row.get(1))?,
                    key: row.get(2),
                    version: row.get(3),
                    depth: row.get(4),
                    hides: row.get(5),
                })
            })
            .collect()
    }

    /// How many cascades are still to be followed. Nobody asks where the source has no such key.
    pub(crate) async fn count_cascades(&self) -> Result<u64, StateError> {
        if self.cascade_links().await?.is_empty() {
            return Ok(0);
        }
        let session = self.session().await?;
        let sql = "SELECT count(*) FROM cutover.cascades WHERE pipeline = $1";
        Ok(session.client()?.query_one(sql, &[&self.pipeline]).await?.get::<_, i64>(0).cast_unsigned())
    }

    /// Stores cascades that follow from others.
    pub(crate) async fn add_cascades(&self, cascades: &[StoredCascade]) -> Result<(), StateError> {
        if cascades.is_empty() {
            return Ok(());
        }
        let Lists { children, kinds, keys, versions, depths } = Lists::of(cascades);
        let session = self.session().await?;
        session.client()?.execute(ADD, &[&self.pipeline, &children, &kinds, &keys, &versions, &depths]).await?;
        Ok(())
    }

    /// These are over.
    pub(crate) async fn end_cascades(&self, cascades: &[StoredCascade]) -> Result<(), StateError> {
        let Lists { children, kinds, keys, versions, .. } = Lists::of(cascades);
        let session = self.session().await?;
        session.client()?.execute(END, &[&self.pipeline, &children, &kinds, &keys, &versions]).await?;
        Ok(())
    }

    /// These are to be followed once more; `hides` if the target lacks rows of the child.
    pub(crate) async fn hold_cascades(&self, cascades: &[StoredCascade], hides: bool) -> Result<(), StateError> {
        let Lists { children, kinds, keys, versions, .. } = Lists::of(cascades);
        let session = self.session().await?;
        session.client()?.execute(HOLD, &[&self.pipeline, &children, &kinds, &keys, &versions, &hides]).await?;
        Ok(())
    }

    /// Rows of a child table that wait or are dead letters and are older than a version, by their keys, from after one.
    pub(crate) async fn parked_children(
        &self,
        child: &str,
        before: Version,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ParkedChild>, StateError> {
        let session = self.session().await?;
        let rows = session.client()?.query(PARKED, &[&self.pipeline, &child, &before, &after, &limit]).await?;
        Ok(rows.iter().map(|row| ParkedChild { key: row.get(0), record: row.get(1), version: row.get(2) }).collect())
    }
}
