//! The fingerprint of what is captured: what the catalog says of it that the log does not.
//!
//! What enters: the names of tables, the numbers that they had, and a publication. What leaves: their fingerprint as of
//! one moment, unless it is the one that was seen last, and a place in the log behind everything that it shows. One
//! query, bounded by tables, partitions and columns. It takes no lock on any of them, so that an `ALTER TABLE` that
//! waits or runs does not hold it up: no `regclass`, no size, no `pg_get_expr`, no `pg_partition_tree`.
//!
//! `version` is the transaction that wrote a row of the catalog: what was changed and changed back shows by it. Vacuum
//! leaves it as it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::PgError;
use crate::model::{Lsn, TableName};

/// What the catalog says of what is captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// None if there is no publication.
    pub publication: Option<PublicationMark>,
    pub tables: Vec<TableMark>,
}

/// The publication itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationMark {
    pub oid: u32,
    pub version: String,
    pub everything: bool,
    pub by_root: bool,
}

/// A table, with its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableMark {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub is_partition: bool,
    pub partitioned: bool,
    /// `pg_class.relreplident`.
    pub identity: String,
    /// The numbers of the columns of the replica identity's index, or else of the primary key.
    pub key: Option<String>,
    pub columns: Vec<ColumnMark>,
    /// The table's own file and those of its partitions.
    pub files: Vec<FileMark>,
    /// How the publication sends it; none if it does not.
    pub sent: Option<SentMark>,
    /// The stream spoke of it by another name, or of another table by its name. The catalog never says this.
    #[serde(default)]
    pub disturbed: bool,
    /// Partitions that the stream spoke of and no look has shown. The catalog never says this.
    #[serde(default)]
    pub strangers: BTreeSet<u32>,
}

/// A column by its number, which is never given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnMark {
    pub number: i16,
    pub name: String,
    #[serde(rename = "type")]
    pub type_oid: u32,
    pub modifier: i32,
    /// Dropped or computed: the stream does not have it.
    pub absent: bool,
    /// Rows that are older than the column have the value that it was added with.
    pub missing: bool,
    pub version: String,
    /// What its type is made of: labels of enums by their number, members of composites (`type.number`) by their type.
    pub meanings: BTreeMap<String, String>,
}

/// A table or a partition as something that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub file: u32,
    /// The transaction that made it a partition.
    pub since: Option<String>,
    /// It was made as a partition and had no rows before.
    pub born: bool,
    /// What is changed in it is in no log.
    #[serde(default)]
    pub unlogged: bool,
}

/// A table's place in a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentMark {
    /// As one of all tables, or of a schema, or by an entry of its own, with its number.
    pub by: String,
    pub columns: Option<String>,
    pub filter: Option<String>,
}

/// A look at the catalog.
#[derive(Debug, Clone)]
pub struct Look {
    /// None if it is the one whose digest was given.
    pub found: Option<Fingerprint>,
    pub digest: String,
    /// Everything that the look shows was committed before this place.
    pub lsn: Lsn,
    /// Every transaction below this number has ended.
    pub ended_below: u64,
}

impl TableMark {
    /// The name it goes by.
    pub fn table(&self) -> TableName {
        TableName::new(&self.schema, &self.name)
    }

    /// Whether this is one of its partitions.
    pub fn has_partition(&self, oid: u32) -> bool {
        self.files.iter().any(|file| file.oid == oid)
    }
}

impl Fingerprint {
    /// The table of this name.
    pub fn named(&self, table: &TableName) -> Option<&TableMark> {
        self.tables.iter().find(|mark| mark.schema == table.schema && mark.name == table.table)
    }

    /// The table of this number.
    pub fn numbered(&self, oid: u32) -> Option<&TableMark> {
        self.tables.iter().find(|mark| mark.oid == oid)
    }
}

/// Schemas as members of a publication came with PostgreSQL 15.
const IN_SCHEMA: &str =
    "EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = pub.oid AND s.pnnspid = r.relnamespace)";

/// A partition was born as one if no command has touched its columns between its making and its becoming a partition:
/// `ATTACH` counts every column's parents anew.
const BEFORE: &str = "
WITH RECURSIVE pub AS (
  SELECT p.*, p.xmin::text AS version FROM pg_publication p WHERE p.pubname = $1),
roots AS (
  SELECT c.oid, c.relnamespace, n.nspname, c.relname, c.relkind, c.relreplident, c.relispartition
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND ((n.nspname = $2 AND c.relname = ANY($3)) OR c.oid = ANY($4))),
tree AS (
  SELECT r.oid AS root, r.oid AS relid, NULL::text AS since, false AS born FROM roots r
  UNION ALL
  SELECT tree.root, i.inhrelid, i.xmin::text, EXISTS (
    SELECT FROM pg_attribute s JOIN pg_attribute a ON a.attrelid = s.attrelid AND a.attnum > 0
      AND a.xmin = s.xmin AND a.cmin = s.cmin
    WHERE s.attrelid = i.inhrelid AND s.attnum = -1 AND s.xmin = i.xmin)
  FROM tree JOIN pg_inherits i ON i.inhparent = tree.relid JOIN pg_class c ON c.oid = i.inhrelid
  WHERE c.relispartition AND coalesce(to_jsonb(i) ->> 'inhdetachpending', 'false') = 'false'),
types AS (
  SELECT a.attrelid, a.attnum, a.atttypid AS oid FROM roots r JOIN pg_attribute a ON a.attrelid = r.oid
  WHERE a.attnum > 0 AND NOT a.attisdropped
  UNION
  SELECT types.attrelid, types.attnum, part.oid FROM types JOIN pg_type t ON t.oid = types.oid
  CROSS JOIN LATERAL (
    SELECT t.typelem UNION ALL SELECT t.typbasetype
    UNION ALL SELECT s.rngsubtype FROM pg_range s WHERE s.rngtypid = t.oid
    UNION ALL SELECT m.atttypid FROM pg_attribute m
      WHERE t.typtype = 'c' AND m.attrelid = t.typrelid AND m.attnum > 0 AND NOT m.attisdropped) part(oid)
  WHERE part.oid <> 0),
meanings AS (
  SELECT types.attrelid, types.attnum, jsonb_object_agg(said.what, said.meant) AS said FROM types
  CROSS JOIN LATERAL (
    SELECT e.oid::text, e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = types.oid
    UNION ALL SELECT t.oid || '.' || m.attnum, m.atttypid || '.' || m.atttypmod
    FROM pg_type t JOIN pg_attribute m ON m.attrelid = t.typrelid AND m.attnum > 0 AND NOT m.attisdropped
    WHERE t.oid = types.oid AND t.typtype = 'c') said(what, meant)
  GROUP BY types.attrelid, types.attnum),
columns AS (
  SELECT a.attrelid, jsonb_agg(jsonb_build_object('number', a.attnum, 'name', a.attname, 'type', a.atttypid::int8,
    'modifier', a.atttypmod, 'absent', a.attisdropped OR a.attgenerated <> '', 'missing', a.atthasmissing,
    'version', a.xmin::text, 'meanings', coalesce(m.said, '{}')) ORDER BY a.attnum) AS list
  FROM roots r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
  LEFT JOIN meanings m ON m.attrelid = a.attrelid AND m.attnum = a.attnum GROUP BY a.attrelid),
files AS (
  SELECT tree.root, jsonb_agg(jsonb_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname,
    'file', c.relfilenode::int8, 'since', tree.since, 'born', tree.born,
    'unlogged', c.relkind <> 'p' AND c.relpersistence <> 'p') ORDER BY c.oid) AS list
  FROM tree JOIN pg_class c ON c.oid = tree.relid JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY tree.root),
keys AS (
  SELECT i.indrelid, min(i.indkey::text) AS list FROM roots r JOIN pg_index i ON i.indrelid = r.oid
  WHERE CASE r.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END GROUP BY i.indrelid),
sent AS (
  SELECT r.oid, CASE WHEN m.prpubid IS NOT NULL THEN 'table ' || m.oid WHEN pub.puballtables THEN 'all'
    WHEN ";

const AFTER: &str = " THEN 'schema' END AS by, to_jsonb(m) ->> 'prattrs' AS columns, to_jsonb(m) ->> 'prqual' AS filter
  FROM roots r CROSS JOIN pub LEFT JOIN pg_publication_rel m ON m.prpubid = pub.oid AND m.prrelid = r.oid),
found AS (SELECT jsonb_build_object(
  'publication', (SELECT jsonb_build_object('oid', oid::int8, 'version', version, 'everything',
    pubinsert AND pubupdate AND pubdelete AND pubtruncate, 'by_root', pubviaroot) FROM pub),
  'tables', (SELECT coalesce(jsonb_agg(jsonb_build_object('oid', r.oid::int8, 'schema', r.nspname, 'name', r.relname,
    'is_partition', r.relispartition,
    'partitioned', r.relkind = 'p', 'identity', r.relreplident, 'key', k.list, 'columns', c.list, 'files', f.list,
    'sent', CASE WHEN s.by IS NOT NULL THEN jsonb_build_object('by', s.by, 'columns', s.columns, 'filter', s.filter) END) ORDER BY r.oid), '[]')
    FROM roots r LEFT JOIN columns c ON c.attrelid = r.oid LEFT JOIN files f ON f.root = r.oid
    LEFT JOIN keys k ON k.indrelid = r.oid LEFT JOIN sent s ON s.oid = r.oid))::text AS fingerprint),
digested AS (SELECT fingerprint, encode(sha256(convert_to(fingerprint, 'UTF8')), 'hex') AS digest FROM found)
SELECT CASE WHEN digest <> $5 THEN fingerprint END, digest, pg_current_wal_insert_lsn()::text,
  pg_snapshot_xmin(pg_current_snapshot())::text FROM digested";

/// Looks at these tables, by their names and by the numbers that they had.
///
/// # Errors
/// What the server answers, or that it answers something else than asked.
pub async fn look(
    client: &Client,
    version: i32,
    publication: &str,
    (schema, names, oids): (&str, &[String], &[u32]),
    digest: &str,
) -> Result<Look, PgError> {
    let sql = [BEFORE, if version >= 150_000 { IN_SCHEMA } else { "false" }, AFTER].concat();
    let row = client.query_one(&sql, &[&publication, &schema, &names, &oids, &digest]).await?;
    let unreadable = |what: &str| PgError::Protocol(format!("{what} of the catalog's fingerprint cannot be read"));
    let found: Option<String> = row.try_get(0)?;
    let found = found.map(|text| serde_json::from_str(&text).map_err(|error| unreadable(&error.to_string())));
    Ok(Look {
        found: found.transpose()?,
        digest: row.try_get(1)?,
        lsn: row.try_get::<_, String>(2)?.parse().map_err(|_| unreadable("the place"))?,
        ended_below: row.try_get::<_, String>(3)?.parse().map_err(|_| unreadable("the oldest transaction"))?,
    })
}

/// Which of these tables hold nothing at all. One that somebody has locked counts as filled: to ask its size would
/// wait.
///
/// # Errors
/// What the server answers.
pub async fn empty(client: &Client, oids: &[u32]) -> Result<BTreeSet<u32>, PgError> {
    let sql = "SELECT c.oid FROM pg_class c WHERE c.oid = ANY($1) AND CASE \
               WHEN EXISTS (SELECT FROM pg_locks l WHERE l.relation = c.oid AND l.mode = 'AccessExclusiveLock') THEN false \
               ELSE pg_relation_size(c.oid) = 0 END";
    let rows = client.query(sql, &[&oids]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

/// Ends a transaction of our own behind everything so far, which has the server write its log out up to there: its
/// number.
///
/// # Errors
/// What the server answers.
pub async fn push(client: &Client) -> Result<u64, PgError> {
    let row = client.query_one("SELECT pg_current_xact_id()::text", &[]).await?;
    let xid: String = row.try_get(0)?;
    xid.parse().map_err(|_| PgError::Protocol("the number of a transaction cannot be read".into()))
}
