//! The statements on cutover's own tables, word by word as the product sends them.
//!
//! They are copies on purpose: SQL that changes in `src` is no longer known here, and what it means now must be said in
//! `state` before the simulator runs again.

use cutover::{database::postgres::sql, model::TableName};

use super::{
    recognise::Tag,
    state::State,
    value::Type::{self, Bool, Int4, Int8, Int8s, Seconds, Text, Texts, Void},
};

pub struct Statement {
    pub state: State,
    pub name: &'static str,
    pub tag: Tag,
    pub params: &'static [Type],
    pub columns: Option<&'static [Type]>,
    pub text: &'static str,
}

const fn of(
    state: State,
    name: &'static str,
    tag: Tag,
    params: &'static [Type],
    columns: Option<&'static [Type]>,
    text: &'static str,
) -> Statement {
    Statement { state, name, tag, params, columns, text }
}

use State as S;
use Tag::{Delete, Insert, Select, Update};

/// `highest_version` of a target table.
pub fn highest(target: &TableName, tombstones: &TableName) -> String {
    format!(
        "SELECT greatest((SELECT max(cutover_version) FROM {}), (SELECT max(cutover_version) FROM {}), 0)",
        sql::table(target),
        sql::table(tombstones)
    )
}

pub const TEXTS: &[Statement] = &[
    // The lane.
    of(
        S::Lock { shared: false },
        "lock",
        Select,
        &[Int8s],
        Some(&[Void]),
        "SELECT pg_catalog.pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) k",
    ),
    of(
        S::Lock { shared: true },
        "lock shared",
        Select,
        &[Int8s],
        Some(&[Void]),
        "SELECT pg_catalog.pg_advisory_xact_lock_shared(k) FROM unnest($1::bigint[]) k",
    ),
    of(
        S::Advance,
        "advance",
        Update,
        &[Text, Text, Int4, Text, Int8, Int8, Int8, Text, Int8, Int8],
        Some(&[Int4]),
        "UPDATE cutover.offsets SET next_offset = $7, position = coalesce($8::text::jsonb, position),
           clock = greatest(clock, $9), newest_commit_us = greatest(newest_commit_us, $10), updated_at = clock_timestamp()
         WHERE pipeline = $1 AND topic = $2 AND part = $3 AND log_epoch = $4 AND lease_epoch = $5 AND next_offset = $6
         RETURNING 1",
    ),
    of(
        S::Holds,
        "holds",
        Select,
        &[Text, Text, Int4, Text, Int8],
        Some(&[Int4]),
        "SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND log_epoch = $4 AND lease_epoch = $5",
    ),
    of(
        S::HasLease,
        "has lease",
        Select,
        &[Text, Text, Int4, Int8],
        Some(&[Int4]),
        "SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND lease_epoch = $4",
    ),
    of(
        S::Claim,
        "claim",
        Insert,
        &[Text, Text, Int4, Text, Int8],
        Some(&[Int8, Text, Int8]),
        "INSERT INTO cutover.offsets AS o (pipeline, topic, part, log_epoch, lease_epoch) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (pipeline, topic, part) DO UPDATE SET lease_epoch = excluded.lease_epoch,
           next_offset = CASE WHEN o.log_epoch = excluded.log_epoch THEN o.next_offset ELSE 0 END,
           log_epoch = excluded.log_epoch, updated_at = clock_timestamp()
         WHERE o.lease_epoch <= excluded.lease_epoch
         RETURNING next_offset, position::text, clock",
    ),
    // What is set aside.
    of(
        S::Mark,
        "mark",
        Select,
        &[Text],
        Some(&[Int8]),
        "SELECT coalesce(max(greatest(id, mark)), 0) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'",
    ),
    of(
        S::HeldDead,
        "held dead letters",
        Select,
        &[Text],
        Some(&[Int8, Text, Text, Int8]),
        "SELECT greatest(id, mark), source_table, key_text, version FROM cutover.dead_letters
         WHERE pipeline = $1 AND state = 'open' ORDER BY 1",
    ),
    of(
        S::HeldWaiting,
        "held waiting rows",
        Select,
        &[Text],
        Some(&[Text, Text, Int8]),
        "SELECT source_table, key_text, version FROM cutover.waiting WHERE pipeline = $1",
    ),
    of(
        S::Records,
        "records",
        Select,
        &[Text, Texts],
        Some(&[Text, Text, Int8, Int8, Text]),
        "SELECT h.source_table, h.key_text, h.version, h.schema_id, h.record FROM (
           SELECT source_table, key_text, version, schema_id, record::text FROM cutover.dead_letters
           WHERE pipeline = $1 AND state = 'open' AND key_text = ANY($2)
           UNION ALL SELECT source_table, key_text, version, schema_id, pg_catalog.convert_from(value, 'UTF8')
           FROM cutover.waiting WHERE pipeline = $1 AND key_text = ANY($2)) h ORDER BY h.version",
    ),
    of(
        S::Definition,
        "definition",
        Select,
        &[Text, Int8],
        Some(&[Text]),
        "SELECT definition::text FROM cutover.schemas WHERE pipeline = $1 AND id = $2",
    ),
    of(
        S::Waiting,
        "waiting rows",
        Select,
        &[Text, Int4, Int8],
        Some(&[Text, Text, Int8, Int8, Text]),
        "SELECT source_table, key_text, version, schema_id, pg_catalog.convert_from(value, 'UTF8') FROM cutover.waiting
         WHERE pipeline = $1 AND part = $2 ORDER BY attempts, version LIMIT $3",
    ),
    // What a batch writes besides rows.
    of(
        S::Schema,
        "schema",
        Insert,
        &[Text, Int8, Text],
        None,
        "INSERT INTO cutover.schemas (pipeline, id, definition) VALUES ($1, $2, $3::text::jsonb) ON CONFLICT DO NOTHING",
    ),
    of(
        S::Fence,
        "fence",
        Insert,
        &[Text, Text, Int8],
        None,
        "INSERT INTO cutover.fences AS f (pipeline, source_table, version) VALUES ($1, $2, $3)
         ON CONFLICT (pipeline, source_table) DO UPDATE SET version = greatest(f.version, excluded.version)",
    ),
    of(
        S::RaiseFence,
        "raise fence",
        Insert,
        &[Text, Text, Int8, Int8],
        None,
        "INSERT INTO cutover.fences AS f (pipeline, source_table, version)
         SELECT $1, $2, $3 WHERE EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $4)
         ON CONFLICT (pipeline, source_table) DO UPDATE SET version = greatest(f.version, excluded.version)",
    ),
    of(
        S::FenceDead,
        "fence dead letters",
        Delete,
        &[Text, Text, Int8],
        None,
        "DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND source_table = $2 AND version < $3 AND state = 'open'",
    ),
    of(
        S::FenceWaiting,
        "fence waiting rows",
        Delete,
        &[Text, Text, Int8],
        None,
        "DELETE FROM cutover.waiting WHERE pipeline = $1 AND source_table = $2 AND version < $3",
    ),
    of(
        S::Chunk,
        "chunk applied",
        Update,
        &[Text, Text, Int8, Int8, Int8],
        None,
        "UPDATE cutover.chunks SET state = 'applied', rows = $5, updated_at = clock_timestamp()
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND chunk = $4",
    ),
    of(
        S::ClearDead,
        "clear dead letters",
        Delete,
        &[Text, Texts, Texts, Int8s],
        None,
        "DELETE FROM cutover.dead_letters d USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
         WHERE d.pipeline = $1 AND d.state = 'open' AND d.source_table = x.source AND d.key_text = x.key
           AND d.version <= x.version",
    ),
    of(
        S::ClearWaiting,
        "clear waiting rows",
        Delete,
        &[Text, Texts, Texts, Int8s],
        None,
        "DELETE FROM cutover.waiting w USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
         WHERE w.pipeline = $1 AND w.source_table = x.source AND pg_catalog.md5(w.key_text) = pg_catalog.md5(x.key)
           AND w.key_text = x.key AND w.version <= x.version",
    ),
    of(
        S::Dead,
        "dead letters",
        Insert,
        &[Text, Text, Int4, Texts, Texts, Int8s, Int8s, Int8s, Texts, Texts, Texts],
        None,
        "INSERT INTO cutover.dead_letters
           (pipeline, source_table, key, key_text, version, schema_id, topic, part, log_offset, sqlstate, error, record)
         SELECT $1, x.source, x.key::json, x.key, x.version, x.schema_id, $2, $3, x.log_offset, x.sqlstate, x.error, x.record::json
         FROM unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::text[],
           $11::text[]) x(source, key, version, schema_id, log_offset, sqlstate, error, record)
         ON CONFLICT DO NOTHING",
    ),
    of(
        S::CountDead,
        "count dead letters",
        Select,
        &[Text],
        Some(&[Int8]),
        "SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'",
    ),
    of(
        S::OpenLetters,
        "open dead letters of rows",
        Select,
        &[Text, Texts],
        Some(&[Int8, Text, Text, Int8, Int8, Text]),
        "SELECT id, source_table, key_text, version, schema_id, record::text FROM cutover.dead_letters
         WHERE pipeline = $1 AND state = 'open' AND key_text = ANY($2) ORDER BY version",
    ),
    of(
        S::Supersede,
        "superseded dead letters",
        Delete,
        &[Text, Int8s],
        None,
        "DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND id = ANY($2)",
    ),
    of(
        S::RenewLetters,
        "renew dead letters",
        Update,
        &[Text, Text, Int4, Int8s, Int8s, Int8s, Int8s, Texts, Texts, Texts],
        None,
        "UPDATE cutover.dead_letters d SET version = x.version, schema_id = x.schema_id, topic = $2, part = $3,
           log_offset = x.log_offset, sqlstate = x.sqlstate, error = x.error, record = x.record::json,
           attempts = d.attempts + 1, renewed_at = clock_timestamp(), mark = nextval('cutover.dead_letters_id_seq')
         FROM unnest($4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[])
           x(id, version, schema_id, log_offset, sqlstate, error, record)
         WHERE d.pipeline = $1 AND d.id = x.id",
    ),
    of(
        S::Wait,
        "wait",
        Insert,
        &[Text, Int4, Texts, Texts, Int8s, Int8s, Texts, Texts],
        None,
        "INSERT INTO cutover.waiting AS w (pipeline, source_table, key_text, version, part, schema_id, value, reason)
         SELECT $1, x.source, x.key, x.version, $2, x.schema_id, pg_catalog.convert_to(x.value, 'UTF8'), x.reason
         FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[])
           x(source, key, version, schema_id, value, reason)
         ON CONFLICT (pipeline, source_table, md5(key_text), version)
         DO UPDATE SET attempts = w.attempts + 1, reason = excluded.reason",
    ),
    // The pipeline's state.
    of(
        S::Note,
        "note",
        Select,
        &[Text, Text],
        Some(&[Text]),
        "SELECT value FROM cutover.notes WHERE pipeline = $1 AND key = $2",
    ),
    of(
        S::SetNote,
        "set note",
        Insert,
        &[Text, Text, Text],
        None,
        "INSERT INTO cutover.notes (pipeline, key, value, updated_at) VALUES ($1, $2, $3, clock_timestamp())
         ON CONFLICT (pipeline, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
    ),
    of(
        S::AddSchema,
        "add schema",
        Insert,
        &[Text, Int8, Text, Int8, Text],
        None,
        "INSERT INTO cutover.schemas (pipeline, id, source_table, clock, definition) VALUES ($1, $2, $3, $4, $5::text::jsonb)
         ON CONFLICT (pipeline, id) DO UPDATE SET clock = greatest(cutover.schemas.clock, excluded.clock),
         seq = CASE WHEN cutover.schemas.clock < excluded.clock THEN excluded.seq ELSE cutover.schemas.seq END",
    ),
    of(
        S::Schemas,
        "schemas",
        Select,
        &[Text],
        Some(&[Int8, Text]),
        "SELECT clock, definition::text FROM cutover.schemas WHERE pipeline = $1 ORDER BY clock, seq",
    ),
    of(
        S::NewestCommits,
        "newest commits",
        Select,
        &[Text],
        Some(&[Int4, Int8]),
        "SELECT part, newest_commit_us FROM cutover.offsets WHERE pipeline = $1 AND topic = 'changes'",
    ),
    of(
        S::NextOffsets,
        "next offsets",
        Select,
        &[Text, Text],
        Some(&[Bool, Int4, Int8]),
        "SELECT topic = 'changes', part, next_offset FROM cutover.offsets
         WHERE pipeline = $1 AND log_epoch = $2 AND topic IN ('changes', 'snapshot')",
    ),
    of(
        S::Position,
        "position",
        Select,
        &[Text],
        Some(&[Text, Int8]),
        "SELECT position::text, clock FROM cutover.offsets
         WHERE pipeline = $1 AND topic = 'changes' AND position IS NOT NULL ORDER BY clock LIMIT 1",
    ),
    // Copies.
    of(
        S::RegisterTables,
        "register tables",
        Insert,
        &[Text, Texts],
        None,
        "INSERT INTO cutover.tables (pipeline, source_table, position, generation, state)
         SELECT $1, name, place, 1, 'pending' FROM unnest($2::text[]) WITH ORDINALITY t(name, place)
         ON CONFLICT (pipeline, source_table) DO UPDATE SET position = excluded.position",
    ),
    of(
        S::ForgetTables,
        "forget tables",
        Delete,
        &[Text, Texts],
        None,
        "DELETE FROM cutover.tables WHERE pipeline = $1 AND source_table <> ALL($2::text[])",
    ),
    of(
        S::ForgetChunks,
        "forget chunks",
        Delete,
        &[Text, Texts],
        None,
        "DELETE FROM cutover.chunks WHERE pipeline = $1 AND source_table <> ALL($2::text[])",
    ),
    of(
        S::QueueCopy,
        "queue copy",
        Update,
        &[Text, Text, Int8],
        None,
        "UPDATE cutover.tables SET generation = generation + 1, state = 'pending', bounds_done = false,
           rows_copied = 0, requested_at = now(), started_at = NULL, finished_at = NULL,
           not_before = greatest(not_before, $3)
         WHERE pipeline = $1 AND source_table = $2",
    ),
    of(
        S::QueueBegun,
        "queue begun copies",
        Update,
        &[Text, Bool],
        None,
        "UPDATE cutover.tables SET generation = generation + 1, state = 'pending', bounds_done = false,
           rows_copied = 0, requested_at = now(), started_at = NULL, finished_at = NULL
         WHERE pipeline = $1 AND (state <> 'pending' OR ($2 AND generation = 1))",
    ),
    of(
        S::NotAgain,
        "not to be copied again",
        Select,
        &[Text],
        Some(&[Text]),
        "SELECT source_table FROM cutover.tables
         WHERE pipeline = $1 AND NOT (state = 'pending' AND generation > 1) ORDER BY position, source_table",
    ),
    of(
        S::CopiesLeft,
        "copies left",
        Select,
        &[Text],
        Some(&[Int8, Int8]),
        "SELECT count(*), count(*) FILTER (WHERE state <> 'copied') FROM cutover.tables WHERE pipeline = $1",
    ),
    of(
        S::AdvanceSnapshot,
        "advance snapshot",
        Select,
        &[Text, Text, Int4, Int4, Int8, Texts, Int8s, Int8s, Int8s, Int8],
        Some(&[]),
        "WITH moved AS (UPDATE cutover.offsets SET next_offset = $5, updated_at = clock_timestamp()
                       WHERE pipeline = $1 AND topic = 'snapshot' AND part = $3 AND log_epoch = $2
                         AND lease_epoch = $10 RETURNING 1),
              ended AS (SELECT * FROM unnest($6::text[], $7::bigint[], $8::bigint[], $9::bigint[])
                          AS e(source_table, generation, chunk, rows) WHERE EXISTS (SELECT FROM moved)),
              counted AS (UPDATE cutover.chunks c SET parts_done = array_append(c.parts_done, $3::int),
                            rows = c.rows + e.rows,
                            state = CASE WHEN cardinality(c.parts_done) + 1 >= $4::int THEN 'done' ELSE c.state END
                          FROM ended e WHERE c.pipeline = $1 AND c.source_table = e.source_table
                           AND c.generation = e.generation AND c.chunk = e.chunk AND $3::int <> ALL(c.parts_done)
                          RETURNING c.source_table, c.generation, e.rows),
              summed AS (SELECT source_table, generation, sum(rows)::bigint AS rows FROM counted GROUP BY 1, 2),
              shown AS (UPDATE cutover.tables t SET rows_copied = t.rows_copied + s.rows FROM summed s
                        WHERE t.pipeline = $1 AND t.source_table = s.source_table AND t.generation = s.generation)
         SELECT FROM moved",
    ),
    of(
        S::Unfinished,
        "unfinished copies",
        Select,
        &[Text],
        Some(&[Text, Int8, Bool, Int8]),
        "SELECT source_table, generation, bounds_done, not_before FROM cutover.tables
         WHERE pipeline = $1 AND state <> 'copied' ORDER BY position, source_table",
    ),
    of(
        S::Copying,
        "copying",
        Update,
        &[Text, Text, Int8, Int8],
        None,
        "UPDATE cutover.tables SET state = 'copying', rows_estimate = $4, started_at = coalesce(started_at, now())
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3",
    ),
    of(
        S::Chunks,
        "chunks",
        Select,
        &[Text, Text, Int8],
        Some(&[Int8, Text, Text, Bool]),
        "SELECT chunk, lower, upper, state = 'done' FROM cutover.chunks
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3 ORDER BY chunk",
    ),
    of(
        S::AddChunk,
        "add chunk",
        Insert,
        &[Text, Text, Int8, Int8, Text, Text, Bool],
        None,
        "WITH t AS (UPDATE cutover.tables SET bounds_done = $7
                    WHERE pipeline = $1 AND source_table = $2 AND generation = $3)
         INSERT INTO cutover.chunks (pipeline, source_table, generation, chunk, lower, upper, rows, state)
         VALUES ($1, $2, $3, $4, $5, $6, 0, 'reading') ON CONFLICT DO NOTHING",
    ),
    of(
        S::Finish,
        "finish copy",
        Update,
        &[Text, Text, Int8],
        None,
        "UPDATE cutover.tables SET state = 'copied', finished_at = now()
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND NOT EXISTS (
             SELECT 1 FROM cutover.chunks WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND state <> 'done')",
    ),
    of(
        S::DropChunks,
        "drop chunks",
        Delete,
        &[Text, Text],
        None,
        "DELETE FROM cutover.chunks WHERE pipeline = $1 AND source_table = $2",
    ),
    of(
        S::Alone,
        "alone",
        Select,
        &[Text],
        Some(&[Bool]),
        "SELECT NOT EXISTS (SELECT FROM cutover.tables WHERE pipeline <> $1)",
    ),
    of(
        S::Waits,
        "waits",
        Select,
        &[Text, Int4],
        Some(&[Bool]),
        "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND part = $2)",
    ),
    // The lease.
    of(
        S::LeaseRow,
        "lease row",
        Insert,
        &[Text, Text],
        None,
        "INSERT INTO cutover.lease (pipeline, role, holder, epoch, expires_at)
         VALUES ($1, $2, '', 0, '-infinity') ON CONFLICT DO NOTHING",
    ),
    of(
        S::LeaseTake,
        "take lease",
        Update,
        &[Text, Text, Text, Seconds],
        Some(&[Int8]),
        "UPDATE cutover.lease l SET holder = $3, epoch = epoch + 1,
                expires_at = clock_timestamp() + make_interval(secs => $4::float8),
                backend_pid = pg_backend_pid(),
                backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
         WHERE pipeline = $1 AND role = $2 AND (expires_at < clock_timestamp() OR NOT EXISTS (
                SELECT 1 FROM pg_stat_activity a WHERE a.pid = l.backend_pid AND a.backend_start = l.backend_start))
         RETURNING epoch",
    ),
    of(
        S::LeaseHolder,
        "lease holder",
        Select,
        &[Text, Text],
        Some(&[Text, Seconds]),
        "SELECT holder, CASE WHEN isfinite(expires_at) THEN extract(epoch FROM expires_at - clock_timestamp())::float8
         ELSE 0 END FROM cutover.lease WHERE pipeline = $1 AND role = $2",
    ),
    of(
        S::EndPredecessor,
        "end predecessor",
        Select,
        &[Texts],
        Some(&[Bool]),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND usename = current_user AND application_name = ANY($1)",
    ),
    of(
        S::Renew,
        "renew lease",
        Update,
        &[Text, Text, Int8, Seconds],
        None,
        "UPDATE cutover.lease SET expires_at = clock_timestamp() + make_interval(secs => $4::float8),
                backend_pid = pg_backend_pid(),
                backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
         WHERE pipeline = $1 AND role = $2 AND epoch = $3",
    ),
    of(
        S::Release,
        "release lease",
        Update,
        &[Text, Text, Int8],
        None,
        "UPDATE cutover.lease SET expires_at = '-infinity' WHERE pipeline = $1 AND role = $2 AND epoch = $3",
    ),
];
