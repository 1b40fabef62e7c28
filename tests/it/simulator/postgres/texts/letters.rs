//! What operators ask of dead letters.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Select, Update},
    state::{State as S, letters::Letters},
    value::Type::{self, Bool, Int4, Int8, Int8s, Text},
};

/// A letter without its record.
const LETTER: &[Type] = &[Int8, Text, Text, Text, Text, Text, Text, Int4, Int8, Text, Int4, Int8, Text];
/// A letter with it.
const WHOLE: &[Type] = &[Int8, Text, Text, Text, Text, Text, Text, Int4, Int8, Text, Int4, Int8, Text, Text];

macro_rules! columns {
    () => {
        "id, source_table, key::text, sqlstate, error,
         to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
         to_char(renewed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
         attempts, version, topic, part, log_offset, state"
    };
}

pub const TEXTS: &[Statement] = &[
    of(
        S::Letters(Letters::List),
        "list dead letters",
        Select,
        &[Text, Text, Int8s, Text],
        Some(LETTER),
        concat!(
            "SELECT ",
            columns!(),
            " FROM cutover.dead_letters WHERE pipeline = $1 AND state = $2
             AND ($3::bigint[] IS NULL OR id = ANY($3)) AND ($4::text IS NULL OR source_table = $4) ORDER BY id"
        ),
    ),
    of(
        S::Letters(Letters::Show),
        "show dead letter",
        Select,
        &[Text, Int8],
        Some(WHOLE),
        concat!("SELECT ", columns!(), ", record::text FROM cutover.dead_letters WHERE pipeline = $1 AND id = $2"),
    ),
    of(
        S::Letters(Letters::Discard),
        "discard dead letters",
        Update,
        &[Text, Int8s],
        None,
        "UPDATE cutover.dead_letters SET state = 'discarded', closed_at = clock_timestamp()
         WHERE pipeline = $1 AND id = ANY($2) AND state = 'open'",
    ),
    of(
        S::Letters(Letters::Wanted),
        "rows of dead letters",
        Select,
        &[Text, Text, Int8s],
        Some(&[Text, Text, Int8, Text]),
        "SELECT s.definition::text, d.key_text, d.version, d.record::text FROM cutover.dead_letters d
         JOIN cutover.schemas s ON s.pipeline = d.pipeline AND s.id = d.schema_id
         WHERE d.pipeline = $1 AND d.state = $2 AND ($3::bigint[] IS NULL OR d.id = ANY($3)) ORDER BY d.version",
    ),
    of(
        S::Letters(Letters::Waiting),
        "rows that have waited",
        Select,
        &[Text, Text, Text, Int8, Int8, Int8],
        Some(&[Text, Text, Text, Int8, Text]),
        "SELECT w.source_table, s.definition::text, w.key_text, w.version, pg_catalog.convert_from(w.value, 'UTF8') FROM (
           SELECT *, pg_catalog.sum(pg_catalog.octet_length(value)) OVER (ORDER BY source_table, pg_catalog.md5(key_text), version)
             - pg_catalog.octet_length(value) AS before FROM (
               SELECT source_table, key_text, version, schema_id, value FROM cutover.waiting
               WHERE pipeline = $1 AND (source_table, pg_catalog.md5(key_text), version) > ($2, pg_catalog.md5($3), $4)
                 AND since < pg_catalog.clock_timestamp() - interval '3 seconds'
               ORDER BY source_table, pg_catalog.md5(key_text), version LIMIT $5) first) w
         JOIN cutover.schemas s ON s.pipeline = $1 AND s.id = w.schema_id
         WHERE w.before = 0 OR w.before + pg_catalog.octet_length(w.value) <= $6
         ORDER BY w.source_table, pg_catalog.md5(w.key_text), w.version",
    ),
    of(
        S::Letters(Letters::Retried),
        "retried dead letters",
        Select,
        &[Text, Int8s],
        Some(&[Int8, Int4, Bool]),
        "SELECT d.id, d.attempts, EXISTS (SELECT FROM cutover.waiting w WHERE w.pipeline = d.pipeline
         AND w.source_table = d.source_table AND md5(w.key_text) = md5(d.key_text))
         FROM cutover.dead_letters d WHERE d.pipeline = $1 AND d.id = ANY($2) AND d.state = 'open'",
    ),
];
