//! What a sink sends.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Delete, Insert, Select, Update},
    state::{State as S, aside::Aside, lane::Lane, letters::Letters},
    value::Type::{Bool, Int4, Int4s, Int8, Int8s, Text, Texts, Void},
};

pub const TEXTS: &[Statement] = &[
    of(
        S::Lane(Lane::Lock { shared: false }),
        "lock",
        Select,
        &[Int8s],
        Some(&[Void]),
        "SELECT pg_catalog.pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) k",
    ),
    of(
        S::Lane(Lane::Lock { shared: true }),
        "lock shared",
        Select,
        &[Int8s],
        Some(&[Void]),
        "SELECT pg_catalog.pg_advisory_xact_lock_shared(k) FROM unnest($1::bigint[]) k",
    ),
    of(
        S::Lane(Lane::Advance),
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
        S::Lane(Lane::Holds),
        "holds",
        Select,
        &[Text, Text, Int4, Text, Int8],
        Some(&[Int4]),
        "SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND log_epoch = $4 AND lease_epoch = $5",
    ),
    of(
        S::Lane(Lane::HasLease),
        "has lease",
        Select,
        &[Text, Text, Int4, Int8],
        Some(&[Int4]),
        "SELECT 1 FROM cutover.offsets WHERE pipeline = $1 AND topic = $2 AND part = $3 AND lease_epoch = $4",
    ),
    of(
        S::Lane(Lane::Claim),
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
    of(
        S::Aside(Aside::Mark),
        "mark",
        Select,
        &[Text],
        Some(&[Int8]),
        "SELECT coalesce(max(greatest(id, mark)), 0) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'",
    ),
    of(
        S::Aside(Aside::HeldDead),
        "held dead letters",
        Select,
        &[Text],
        Some(&[Int8, Text, Text, Int8]),
        "SELECT greatest(id, mark), source_table, key_text, version FROM cutover.dead_letters
         WHERE pipeline = $1 AND state = 'open' ORDER BY 1",
    ),
    of(
        S::Aside(Aside::HeldWaiting),
        "held waiting rows",
        Select,
        &[Text],
        Some(&[Text, Text, Int8]),
        "SELECT source_table, key_text, version FROM cutover.waiting WHERE pipeline = $1",
    ),
    of(
        S::Aside(Aside::Records),
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
        S::Aside(Aside::Waiting),
        "waiting rows",
        Select,
        &[Text, Int4s, Int8, Int8],
        Some(&[Text, Text, Int8, Int8, Text]),
        "SELECT w.source_table, w.key_text, w.version, w.schema_id, pg_catalog.convert_from(w.value, 'UTF8') FROM (
           SELECT *, pg_catalog.sum(pg_catalog.octet_length(value)) OVER (ORDER BY attempts, version, source_table, key_text)
             - pg_catalog.octet_length(value) AS before FROM (
               SELECT source_table, key_text, version, schema_id, value, attempts FROM cutover.waiting
               WHERE pipeline = $1 AND part = ANY($2) ORDER BY attempts, version, source_table, key_text LIMIT $3) first) w
         WHERE w.before = 0 OR w.before + pg_catalog.octet_length(w.value) <= $4 ORDER BY w.attempts, w.version",
    ),
    of(
        S::Letters(Letters::Fence),
        "fence dead letters",
        Delete,
        &[Text, Text, Int8],
        None,
        "DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND source_table = $2 AND version < $3 AND state = 'open'",
    ),
    of(
        S::Aside(Aside::FenceWaiting),
        "fence waiting rows",
        Delete,
        &[Text, Text, Int8],
        None,
        "DELETE FROM cutover.waiting WHERE pipeline = $1 AND source_table = $2 AND version < $3",
    ),
    of(
        S::Letters(Letters::Clear),
        "clear dead letters",
        Delete,
        &[Text, Texts, Texts, Int8s],
        None,
        "DELETE FROM cutover.dead_letters d USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
         WHERE d.pipeline = $1 AND d.state = 'open' AND d.source_table = x.source AND d.key_text = x.key
           AND d.version <= x.version",
    ),
    of(
        S::Aside(Aside::ClearWaiting),
        "clear waiting rows",
        Delete,
        &[Text, Texts, Texts, Int8s],
        None,
        "DELETE FROM cutover.waiting w USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
         WHERE w.pipeline = $1 AND w.source_table = x.source AND pg_catalog.md5(w.key_text) = pg_catalog.md5(x.key)
           AND w.key_text = x.key AND w.version <= x.version",
    ),
    of(
        S::Letters(Letters::Store),
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
        S::Letters(Letters::Count),
        "count dead letters",
        Select,
        &[Text],
        Some(&[Int8]),
        "SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'open'",
    ),
    of(
        S::Letters(Letters::OpenOf),
        "open dead letters of rows",
        Select,
        &[Text, Texts],
        Some(&[Int8, Text, Text, Int8, Int8, Text]),
        "SELECT id, source_table, key_text, version, schema_id, record::text FROM cutover.dead_letters
         WHERE pipeline = $1 AND state = 'open' AND key_text = ANY($2) ORDER BY version",
    ),
    of(
        S::Letters(Letters::Supersede),
        "superseded dead letters",
        Delete,
        &[Text, Int8s],
        None,
        "DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND id = ANY($2)",
    ),
    of(
        S::Letters(Letters::Renew),
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
        S::Aside(Aside::Wait),
        "wait",
        Insert,
        &[Text, Int4, Texts, Texts, Int8s, Int8s, Texts, Texts, Int8s],
        None,
        "INSERT INTO cutover.waiting AS w (pipeline, source_table, key_text, version, part, schema_id, value, reason, needs)
         SELECT $1, x.source, x.key, x.version, $2, x.schema_id, pg_catalog.convert_to(x.value, 'UTF8'), x.reason, x.needs
         FROM unnest($3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::bigint[])
           x(source, key, version, schema_id, value, reason, needs)
         ON CONFLICT (pipeline, source_table, md5(key_text), version)
         DO UPDATE SET attempts = w.attempts + 1, reason = excluded.reason, needs = excluded.needs",
    ),
    of(
        S::Aside(Aside::Needed),
        "needed parents",
        Select,
        &[Text],
        Some(&[Bool]),
        "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND needs <> 0)",
    ),
    of(
        S::Aside(Aside::Free),
        "free waiting rows",
        Select,
        &[Text, Int8s],
        Some(&[Int8]),
        "WITH f AS (UPDATE cutover.waiting SET attempts = -1 WHERE ctid = ANY(ARRAY(
           SELECT ctid FROM cutover.waiting WHERE pipeline = $1 AND needs = ANY($2) AND attempts >= 0 FOR UPDATE SKIP LOCKED)) RETURNING 1)
         SELECT count(*) FROM f",
    ),
    of(
        S::Aside(Aside::Waits),
        "waits",
        Select,
        &[Text, Int4],
        Some(&[Bool]),
        "SELECT EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND part = $2)",
    ),
    of(
        S::Aside(Aside::WaitingParts),
        "waiting parts",
        Select,
        &[Text],
        Some(&[Int4]),
        "SELECT DISTINCT part FROM cutover.waiting WHERE pipeline = $1 ORDER BY part",
    ),
    // Rows of a replay that failed.
    of(
        S::Letters(Letters::ForgetNoted),
        "forget noted rows",
        Delete,
        &[Text, Texts, Texts, Int8s],
        None,
        "DELETE FROM cutover.dead_letters d USING unnest($2::text[], $3::text[], $4::bigint[]) x(source, key, version)
         WHERE d.pipeline = $1 AND d.state = 'replay' AND d.source_table = x.source AND md5(d.key_text) = md5(x.key)
           AND d.key_text = x.key AND d.version < x.version",
    ),
    of(
        S::Letters(Letters::Note),
        "note rows",
        Insert,
        &[Text, Text, Int4, Texts, Texts, Int8s, Int8s, Int8s, Texts, Texts, Texts],
        None,
        "INSERT INTO cutover.dead_letters
           (pipeline, source_table, key, key_text, version, schema_id, topic, part, log_offset, sqlstate, error, record, state)
         SELECT DISTINCT ON (x.source, x.key)
           $1, x.source, x.key::json, x.key, x.version, x.schema_id, $2, $3, x.log_offset, x.sqlstate, x.error, x.record::json, 'replay'
         FROM unnest($4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::text[],
           $11::text[]) x(source, key, version, schema_id, log_offset, sqlstate, error, record)
         WHERE NOT EXISTS (SELECT FROM cutover.dead_letters d WHERE d.pipeline = $1 AND d.state = 'replay'
           AND d.source_table = x.source AND md5(d.key_text) = md5(x.key) AND d.key_text = x.key AND d.version >= x.version)
         ORDER BY x.source, x.key, x.version DESC",
    ),
    of(
        S::Letters(Letters::CountNoted),
        "count noted rows",
        Select,
        &[Text],
        Some(&[Int8]),
        "SELECT count(*) FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'replay'",
    ),
];
