//! The `cutover` schema of the target: what has been applied, and what is set aside.
//!
//! Every table is keyed by `pipeline`, so that several pipelines share a target. The layout has a format
//! number: a newer binary brings an older layout up, an older binary refuses a newer one.

use tokio_postgres::Client;

use super::{StateError, Store};
use crate::{
    database::postgres::{PgError, privileges},
    model::Problem,
};

/// The layout that this release writes.
pub const FORMAT: i32 = 6;

/// Serialises workers that create the schema at the same time; any number that nothing else uses.
const CREATION_LOCK: i64 = 0x6375_746f_7665_7200;

/// The layout of format 1, from which the others follow.
///
/// A waiting row is unique by its key's digest, since a source's key may be longer than an index entry.
/// `record` and `key` are `json`, not `jsonb`: a dead letter may hold `\u0000`, which `jsonb` refuses.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS cutover.format (
  single boolean PRIMARY KEY DEFAULT true CHECK (single), version integer NOT NULL);
CREATE TABLE IF NOT EXISTS cutover.lease (
  pipeline text, role text, epoch bigint NOT NULL DEFAULT 0, holder text, transforms_hash text,
  expires_at timestamptz, backend_pid integer, backend_start timestamptz, PRIMARY KEY (pipeline, role));
CREATE TABLE IF NOT EXISTS cutover.offsets (
  pipeline text, topic text, part integer, log_epoch text NOT NULL, next_offset bigint NOT NULL DEFAULT 0,
  lease_epoch bigint NOT NULL DEFAULT 0, position jsonb, clock bigint NOT NULL DEFAULT 0,
  newest_commit_us bigint NOT NULL DEFAULT 0, updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pipeline, topic, part)) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS cutover.schemas (
  pipeline text, id bigint, source_table text NOT NULL DEFAULT '', clock bigint NOT NULL DEFAULT 0,
  seq bigserial, definition jsonb NOT NULL, PRIMARY KEY (pipeline, id));
CREATE TABLE IF NOT EXISTS cutover.fences (
  pipeline text, source_table text, version bigint NOT NULL, PRIMARY KEY (pipeline, source_table));
CREATE TABLE IF NOT EXISTS cutover.dead_letters (
  id bigserial PRIMARY KEY, pipeline text NOT NULL, source_table text NOT NULL, key json NOT NULL,
  key_text text NOT NULL, version bigint NOT NULL, schema_id bigint NOT NULL, topic text NOT NULL, part integer NOT NULL,
  log_offset bigint NOT NULL, sqlstate text NOT NULL, error text NOT NULL, record json NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(), state text NOT NULL DEFAULT 'open');
CREATE INDEX IF NOT EXISTS dead_letters_open ON cutover.dead_letters (pipeline, id) WHERE state = 'open';
CREATE UNIQUE INDEX IF NOT EXISTS dead_letters_open_rows
  ON cutover.dead_letters (pipeline, source_table, md5(key_text), version) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS cutover.waiting (
  pipeline text, source_table text, key_text text, version bigint, part integer NOT NULL, schema_id bigint NOT NULL, value bytea NOT NULL,
  reason text NOT NULL, since timestamptz NOT NULL DEFAULT now(), attempts integer NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX IF NOT EXISTS waiting_rows ON cutover.waiting (pipeline, source_table, md5(key_text), version);
CREATE TABLE IF NOT EXISTS cutover.chunks (
  pipeline text, source_table text, generation bigint, chunk bigint, lower text, upper text,
  rows bigint NOT NULL DEFAULT 0, state text NOT NULL, parts_done integer[] NOT NULL DEFAULT '{}', updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pipeline, source_table, generation, chunk));
CREATE TABLE IF NOT EXISTS cutover.tables (
  pipeline text, source_table text, generation bigint NOT NULL DEFAULT 1, state text NOT NULL,
  rows_estimate bigint NOT NULL DEFAULT 0, rows_copied bigint NOT NULL DEFAULT 0,
  bounds_done boolean NOT NULL DEFAULT false, not_before bigint NOT NULL DEFAULT 0, position bigint NOT NULL DEFAULT 0, requested_at timestamptz,
  started_at timestamptz, finished_at timestamptz, updated_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, source_table));
CREATE TABLE IF NOT EXISTS cutover.notes (
  pipeline text, key text, value text NOT NULL, updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pipeline, key));
CREATE TABLE IF NOT EXISTS cutover.checkpoints (
  pipeline text, name text, details jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pipeline, name));
CREATE TABLE IF NOT EXISTS cutover.requests (
  id bigserial PRIMARY KEY, pipeline text NOT NULL, command text NOT NULL, arguments jsonb NOT NULL DEFAULT '{}',
  state text NOT NULL DEFAULT 'new', answer jsonb, created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now());
INSERT INTO cutover.format (version) VALUES (1) ON CONFLICT DO NOTHING;
";

/// What brings the layout of the format before up: the first to format 2, and so on.
const UPGRADES: [&str; FORMAT as usize - 1] = [TO_2, TO_3, TO_4, TO_5, TO_6];

/// Format 2: dead letters that are tried again or closed, the transforms that were in force, replays, events.
///
/// `mark` is set when a dead letter is renewed, from the numbers of new ones: by the highest of both a sink knows
/// whether it has seen them all. `dead_letter_copies` has what other systems were told of each.
const TO_2: &str = "
ALTER TABLE cutover.dead_letters
  ADD COLUMN attempts integer NOT NULL DEFAULT 1, ADD COLUMN renewed_at timestamptz, ADD COLUMN closed_at timestamptz,
  ADD COLUMN mark bigint;
CREATE INDEX dead_letters_marks ON cutover.dead_letters (pipeline, greatest(id, mark)) WHERE state = 'open';
CREATE INDEX dead_letters_rows ON cutover.dead_letters (pipeline, state, md5(key_text));
CREATE TABLE cutover.dead_letter_copies (
  pipeline text, id bigint, state text NOT NULL, mark bigint NOT NULL, source_table text NOT NULL, key json NOT NULL,
  PRIMARY KEY (pipeline, id));
CREATE TABLE cutover.transforms (
  pipeline text, seq bigserial, hash text NOT NULL, log_epoch text NOT NULL, offsets jsonb NOT NULL,
  plans jsonb NOT NULL, since timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (pipeline, seq));
CREATE TABLE cutover.replays (
  pipeline text, id bigint, state text NOT NULL, details jsonb NOT NULL, outcome text NOT NULL DEFAULT '',
  started_at timestamptz NOT NULL DEFAULT now(), resumed_at timestamptz NOT NULL DEFAULT now(),
  resumed_done bigint NOT NULL DEFAULT 0, finished_at timestamptz, PRIMARY KEY (pipeline, id));
CREATE UNIQUE INDEX replays_running ON cutover.replays (pipeline) WHERE state = 'running';
CREATE TABLE cutover.events (
  pipeline text, sequence bigint, id uuid NOT NULL DEFAULT gen_random_uuid(), body json NOT NULL,
  carried boolean NOT NULL DEFAULT false, PRIMARY KEY (pipeline, sequence));
CREATE INDEX events_to_carry ON cutover.events (pipeline, sequence) WHERE NOT carried;
";

/// Format 3: rows of children that may have changed unseen.
///
/// `held` are those that have been read again while tables were copied, and are to be once more afterwards. `depth` is
/// how many keys lead to it from the change that the source logged. `hides` are those that were followed while the
/// target lacked rows of the child.
const TO_3: &str = "
CREATE TABLE cutover.cascades (
  pipeline text, child text, kind text, key_text text, version bigint NOT NULL, depth integer NOT NULL DEFAULT 0,
  held boolean NOT NULL DEFAULT false, hides boolean NOT NULL DEFAULT false, since timestamptz NOT NULL DEFAULT now());
CREATE UNIQUE INDEX cascades_keys ON cutover.cascades (pipeline, child, kind, md5(key_text));
CREATE INDEX cascades_order ON cutover.cascades (pipeline, held, version);
";

/// Format 4: what a waiting row needs, so that its parent frees it; 0 where that is not known.
const TO_4: &str = "
ALTER TABLE cutover.waiting ADD COLUMN needs bigint NOT NULL DEFAULT 0;
CREATE INDEX waiting_needs ON cutover.waiting (pipeline, needs) WHERE needs <> 0;
";

/// Format 5: drifted rows that are to be reviewed by hand, and what was compared.
///
/// A row is unique by its key's digest, as a waiting one is. `digest` is of the way in which it differs: what was
/// accepted is so no longer when that changes. A chunk of the source's keys is told by its `lower` bound; `pass` is the
/// comparison that met it last.
const TO_5: &str = "
CREATE TABLE cutover.drift (
  id bigserial PRIMARY KEY, pipeline text NOT NULL, source_table text NOT NULL, target text NOT NULL, key text NOT NULL,
  source_key text, kind text NOT NULL, columns text[] NOT NULL, digest bigint NOT NULL, reason text,
  state text NOT NULL DEFAULT 'open', found_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now());
CREATE UNIQUE INDEX drift_rows ON cutover.drift (pipeline, source_table, target, md5(key));
CREATE TABLE cutover.migration_log (
  pipeline text, source_table text, lower text, upper text, state text NOT NULL, rows bigint NOT NULL,
  source_checksum text NOT NULL, target_checksum text, pass bigint NOT NULL,
  compared_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE UNIQUE INDEX migration_log_chunks ON cutover.migration_log (pipeline, source_table, md5(coalesce(lower, '')));
";

/// Format 6: what was compared, row by row, for whoever asks for that.
///
/// A row is unique by its key's digest, as a drifted one is; `pass` is the comparison that looked at it last.
const TO_6: &str = "
CREATE TABLE cutover.migration_rows (
  pipeline text NOT NULL, source_table text NOT NULL, target text NOT NULL, key text NOT NULL, state text NOT NULL,
  source_checksum bigint, target_checksum bigint, pass bigint NOT NULL,
  compared_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE UNIQUE INDEX migration_rows_keys ON cutover.migration_rows (pipeline, source_table, target, md5(key));
";

impl Store {
    /// Makes the layout what this release writes ([`ensure`]), unless the user may not do what a pipeline needs, with
    /// its target tables in `schema`: then what is missing.
    pub async fn prepare(&self, schema: &str) -> Result<Vec<Problem>, StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        let missing = privileges::on_database(client, schema).await?;
        if missing.is_empty() {
            ensure(client).await?;
        }
        Ok(missing)
    }

    /// The layout's format, or none where there is no schema yet.
    pub async fn format(&self) -> Result<Option<i32>, StateError> {
        let session = self.session().await?;
        Ok(format(session.client()?).await?)
    }
}

/// Creates what is missing of the schema, brings an older layout up, or refuses a newer layout. Safe to call from
/// several workers at once, and when everything is there already.
pub async fn ensure(client: &Client) -> Result<(), StateError> {
    let begin = format!("BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({CREATION_LOCK})");
    client.batch_execute(&begin).await?;
    let result = create(client).await;
    let end = if result.is_ok() { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await?;
    result
}

async fn create(client: &Client) -> Result<(), StateError> {
    let found = match format(client).await? {
        Some(found) if found > FORMAT => return Err(StateError::NewerFormat { found }),
        Some(found) => found,
        None => {
            let exists: bool = client
                .query_one("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'cutover')", &[])
                .await
                .and_then(|row| row.try_get(0))?;
            if !exists {
                client.batch_execute("CREATE SCHEMA cutover").await?;
            }
            client.batch_execute(TABLES).await?;
            1
        }
    };
    for upgrade in UPGRADES.iter().skip(usize::try_from(found).unwrap_or_default().saturating_sub(1)) {
        client.batch_execute(upgrade).await?;
    }
    if found < FORMAT {
        client.execute("UPDATE cutover.format SET version = $1", &[&FORMAT]).await?;
    }
    Ok(())
}

/// The layout's format, or none where there is no schema yet.
pub async fn format(client: &Client) -> Result<Option<i32>, PgError> {
    let there = client.query_one("SELECT pg_catalog.to_regclass('cutover.format') IS NOT NULL", &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let row = client.query_opt("SELECT version FROM cutover.format", &[]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}
