//! Comparisons: who compares, how far the target is, what is parked, what was compared.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Delete, Insert, Select, Update},
    state::{State as S, verifications::Verifications},
    value::Type::{Bool, Int8, Text, Texts},
};

pub const TEXTS: &[Statement] = &[
    of(
        S::Verifications(Verifications::Lock),
        "lock verify",
        Select,
        &[Text],
        Some(&[Bool]),
        "SELECT pg_catalog.pg_try_advisory_lock(1668641894, pg_catalog.hashtext($1))",
    ),
    of(
        S::Verifications(Verifications::IsLocked),
        "anybody verifies",
        Select,
        &[Text],
        Some(&[Bool]),
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database
         WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.objsubid = 2
         AND l.classid = 1668641894 AND l.objid::bigint = (pg_catalog.hashtext($1)::bigint & 4294967295))",
    ),
    of(
        S::Verifications(Verifications::HasLock),
        "verifies still",
        Select,
        &[Text],
        Some(&[Bool]),
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = pg_catalog.pg_backend_pid()
         AND l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = 1668641894
         AND l.objid::bigint = (pg_catalog.hashtext($1)::bigint & 4294967295))",
    ),
    of(
        S::Verifications(Verifications::Reached),
        "reached",
        Select,
        &[Text],
        Some(&[Text, Int8]),
        "SELECT position::text, clock FROM cutover.offsets
         WHERE pipeline = $1 AND topic = 'changes' AND position IS NOT NULL ORDER BY clock, part",
    ),
    of(
        S::Verifications(Verifications::Parked),
        "parked rows",
        Select,
        &[Text, Text, Texts],
        Some(&[Text, Text]),
        "SELECT key_text, state FROM cutover.dead_letters
         WHERE pipeline = $1 AND source_table = $2
         AND md5(key_text) = ANY(SELECT md5(k) FROM unnest($3::text[]) k) AND state IN ('open', 'discarded')
         UNION ALL SELECT key_text, 'waits' FROM cutover.waiting
         WHERE pipeline = $1 AND source_table = $2
         AND md5(key_text) = ANY(SELECT md5(k) FROM unnest($3::text[]) k)",
    ),
    of(
        S::Verifications(Verifications::InForce),
        "hash in force",
        Select,
        &[Text],
        Some(&[Text]),
        "SELECT hash FROM cutover.transforms WHERE pipeline = $1 ORDER BY seq DESC LIMIT 1",
    ),
    of(
        S::Verifications(Verifications::Functions),
        "functions",
        Select,
        &[],
        Some(&[Text, Bool]),
        "SELECT coalesce(sum(pg_catalog.hashtextextended(p.oid || ' ' || p.xmin, 0)), 0)::text,
         to_regprocedure('pg_catalog.hash_record_extended(record, bigint)') IS NOT NULL
         FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'",
    ),
    of(
        S::Verifications(Verifications::KnownDrift),
        "known drift",
        Select,
        &[Text, Text],
        Some(&[Text, Text, Int8, Text]),
        "SELECT target, key, digest, state FROM cutover.drift WHERE pipeline = $1 AND source_table = $2",
    ),
    of(
        S::Verifications(Verifications::NoteDrift),
        "note drift",
        Insert,
        &[Text, Text, Text],
        None,
        "INSERT INTO cutover.drift AS d (pipeline, source_table, target, key, source_key, kind, columns, digest, reason)
         SELECT DISTINCT ON (f.target, f.key) $1, $2, f.target, f.key, f.source_key, f.kind, f.columns, f.digest, f.reason
         FROM json_to_recordset($3::text::json) AS f(target text, key text, source_key text, kind text, columns text[],
           digest bigint, reason text)
         ORDER BY f.target, f.key
         ON CONFLICT (pipeline, source_table, target, md5(key)) DO UPDATE SET
         id = CASE WHEN d.digest = excluded.digest THEN d.id ELSE excluded.id END,
         state = CASE WHEN d.digest = excluded.digest THEN d.state ELSE excluded.state END,
         found_at = CASE WHEN d.digest = excluded.digest THEN d.found_at ELSE excluded.found_at END,
         updated_at = clock_timestamp(), source_key = excluded.source_key, kind = excluded.kind, columns = excluded.columns,
         digest = excluded.digest, reason = excluded.reason",
    ),
    of(
        S::Verifications(Verifications::ForgetDrift),
        "forget drift",
        Delete,
        &[Text, Text, Texts, Texts],
        None,
        "DELETE FROM cutover.drift WHERE pipeline = $1 AND source_table = $2
         AND (target, md5(key)) IN (SELECT e.target, md5(e.key) FROM unnest($3::text[], $4::text[]) e(target, key))",
    ),
    of(
        S::Verifications(Verifications::ComparedChunk),
        "compared chunk",
        Select,
        &[Text, Text, Text],
        Some(&[Text, Text, Text, Int8, Text, Text]),
        "SELECT lower, upper, state, rows, source_checksum, target_checksum FROM cutover.migration_log
         WHERE pipeline = $1 AND source_table = $2 AND md5(coalesce(lower, '')) = md5(coalesce($3, ''))",
    ),
    of(
        S::Verifications(Verifications::NoteChunk),
        "note chunk",
        Insert,
        &[Text, Text, Text, Text, Text, Int8, Text, Text, Int8],
        None,
        "INSERT INTO cutover.migration_log
           (pipeline, source_table, lower, upper, state, rows, source_checksum, target_checksum, pass)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (pipeline, source_table, md5(coalesce(lower, ''))) DO UPDATE SET upper = excluded.upper,
           state = excluded.state, rows = excluded.rows, source_checksum = excluded.source_checksum,
           target_checksum = excluded.target_checksum, pass = excluded.pass, compared_at = clock_timestamp()",
    ),
    of(
        S::Verifications(Verifications::MetChunks),
        "met chunks",
        Update,
        &[Text, Text, Texts, Int8],
        None,
        "UPDATE cutover.migration_log SET pass = $4, compared_at = clock_timestamp()
         WHERE pipeline = $1 AND source_table = $2 AND coalesce(lower, '') = ANY($3)",
    ),
    of(
        S::Verifications(Verifications::ForgetChunks),
        "forget compared chunks",
        Delete,
        &[Text, Text, Int8],
        None,
        "DELETE FROM cutover.migration_log WHERE pipeline = $1 AND source_table = $2 AND pass <> $3",
    ),
];
