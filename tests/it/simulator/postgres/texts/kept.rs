//! Notes, schemas, fences, and where lanes are.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Insert, Select, Update},
    state::{State as S, kept::Kept, times::Times},
    value::Type::{Bool, Int4, Int4s, Int8, Text},
};

pub const TEXTS: &[Statement] = &[
    of(
        S::Kept(Kept::Definition),
        "definition",
        Select,
        &[Text, Int8],
        Some(&[Text]),
        "SELECT definition::text FROM cutover.schemas WHERE pipeline = $1 AND id = $2",
    ),
    of(
        S::Kept(Kept::Schema),
        "schema",
        Insert,
        &[Text, Int8, Text],
        None,
        "INSERT INTO cutover.schemas (pipeline, id, definition) VALUES ($1, $2, $3::text::jsonb) ON CONFLICT DO NOTHING",
    ),
    of(
        S::Kept(Kept::Fence),
        "fence",
        Insert,
        &[Text, Text, Int8],
        None,
        "INSERT INTO cutover.fences AS f (pipeline, source_table, version) VALUES ($1, $2, $3)
         ON CONFLICT (pipeline, source_table) DO UPDATE SET version = greatest(f.version, excluded.version)",
    ),
    of(
        S::Kept(Kept::RaiseFence),
        "raise fence",
        Insert,
        &[Text, Text, Int8, Int8],
        None,
        "INSERT INTO cutover.fences AS f (pipeline, source_table, version)
         SELECT $1, $2, $3 WHERE EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $4)
         ON CONFLICT (pipeline, source_table) DO UPDATE SET version = greatest(f.version, excluded.version)",
    ),
    of(
        S::Kept(Kept::Note),
        "note",
        Select,
        &[Text, Text],
        Some(&[Text]),
        "SELECT value FROM cutover.notes WHERE pipeline = $1 AND key = $2",
    ),
    of(
        S::Kept(Kept::SetNote),
        "set note",
        Insert,
        &[Text, Text, Text],
        None,
        "INSERT INTO cutover.notes (pipeline, key, value, updated_at) VALUES ($1, $2, $3, clock_timestamp())
         ON CONFLICT (pipeline, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
    ),
    of(
        S::Kept(Kept::AddSchema),
        "add schema",
        Insert,
        &[Text, Int8, Text, Int8, Text],
        None,
        "INSERT INTO cutover.schemas (pipeline, id, source_table, clock, definition) VALUES ($1, $2, $3, $4, $5::text::jsonb)
         ON CONFLICT (pipeline, id) DO UPDATE SET clock = greatest(cutover.schemas.clock, excluded.clock),
         seq = CASE WHEN cutover.schemas.clock < excluded.clock THEN excluded.seq ELSE cutover.schemas.seq END",
    ),
    of(
        S::Kept(Kept::Schemas),
        "schemas",
        Select,
        &[Text],
        Some(&[Int8, Text]),
        "SELECT clock, definition::text FROM cutover.schemas WHERE pipeline = $1 ORDER BY clock, seq",
    ),
    of(
        S::Kept(Kept::NewestCommits),
        "newest commits",
        Select,
        &[Text],
        Some(&[Int4, Int8]),
        "SELECT part, newest_commit_us FROM cutover.offsets WHERE pipeline = $1 AND topic = 'changes'",
    ),
    of(
        S::Kept(Kept::NextOffsets),
        "next offsets",
        Select,
        &[Text, Text],
        Some(&[Bool, Int4, Int8]),
        "SELECT topic = 'changes', part, next_offset FROM cutover.offsets
         WHERE pipeline = $1 AND log_epoch = $2 AND topic IN ('changes', 'snapshot')",
    ),
    of(
        S::Kept(Kept::Position),
        "position",
        Select,
        &[Text],
        Some(&[Text, Int8]),
        "SELECT position::text, clock FROM cutover.offsets
         WHERE pipeline = $1 AND topic = 'changes' AND position IS NOT NULL ORDER BY clock LIMIT 1",
    ),
    of(
        S::Kept(Kept::ScriptRan),
        "script ran",
        Update,
        &[Text],
        None,
        "UPDATE cutover.notes SET value = 'done' WHERE pipeline = $1 AND key = 'after_copy'",
    ),
    of(
        S::Kept(Kept::Fences),
        "fences",
        Select,
        &[Text],
        Some(&[Text, Int8]),
        "SELECT source_table, version FROM cutover.fences WHERE pipeline = $1",
    ),
    of(
        S::Kept(Kept::Positions),
        "positions",
        Select,
        &[Text, Text],
        Some(&[Text]),
        "SELECT position::text FROM cutover.offsets
         WHERE pipeline = $1 AND topic = 'changes' AND log_epoch = $2 AND position IS NOT NULL",
    ),
    of(
        S::Kept(Kept::Lanes),
        "lanes",
        Select,
        &[Text, Text],
        Some(&[Text, Int4, Bool, Int8, Int8, Int8]),
        "SELECT topic, part, log_epoch = $2, next_offset, clock, newest_commit_us FROM cutover.offsets
         WHERE pipeline = $1 AND topic IN ('changes', 'snapshot')",
    ),
    of(
        S::Kept(Kept::BeginLog),
        "begin log",
        Update,
        &[Text, Text, Int4],
        None,
        "WITH lanes AS (SELECT * FROM cutover.offsets WHERE pipeline = $1 AND topic IN ('changes', 'snapshot')),
              least AS (SELECT position, clock, newest_commit_us FROM lanes
                        WHERE topic = 'changes' AND position IS NOT NULL ORDER BY clock LIMIT 1),
              kept AS (UPDATE cutover.offsets o
                       SET position = l.position, clock = l.clock, newest_commit_us = l.newest_commit_us FROM least l
                       WHERE o.pipeline = $1 AND o.topic = 'changes' AND o.part < $3 AND o.log_epoch <> $2
                         AND o.clock > l.clock),
              gone AS (DELETE FROM cutover.offsets
                       WHERE pipeline = $1 AND topic IN ('changes', 'snapshot') AND part >= $3)
         UPDATE cutover.chunks SET parts_done = '{}' WHERE pipeline = $1 AND state <> 'done' AND parts_done <> '{}'
            AND EXISTS (SELECT FROM lanes WHERE log_epoch <> $2)",
    ),
    of(
        S::Kept(Kept::LanesBegin),
        "lanes begin",
        Insert,
        &[Text, Text, Int4, Text, Int8],
        None,
        "INSERT INTO cutover.offsets AS o (pipeline, topic, part, log_epoch, position, clock)
         SELECT $1, 'changes', part, $2, $4::text::jsonb, $5::bigint FROM generate_series(0, $3 - 1) part
         ON CONFLICT (pipeline, topic, part) DO UPDATE SET position = excluded.position, clock = excluded.clock
         WHERE o.position IS NULL",
    ),
    // Lanes of a connector's topics.
    of(
        S::Kept(Kept::LaneSeen),
        "lane seen",
        Select,
        &[Text, Int4, Text],
        Some(&[Int8, Text, Int8]),
        "SELECT next_offset, position::text, clock FROM cutover.offsets
         WHERE pipeline = $1 AND topic = 'changes' AND part = $2 AND log_epoch = $3",
    ),
    of(
        S::Kept(Kept::LanesAreFresh),
        "lanes are fresh",
        Update,
        &[Text, Int4s, Int8],
        None,
        "UPDATE cutover.offsets SET newest_commit_us = greatest(newest_commit_us, $3)
         WHERE pipeline = $1 AND topic = 'changes' AND part = ANY($2)",
    ),
    // Times as people write them.
    of(
        S::Times(Times::Read),
        "read time",
        Select,
        &[Text],
        Some(&[Int8]),
        "SELECT (extract(epoch FROM $1::text::timestamptz) * 1000000)::bigint",
    ),
    of(
        S::Times(Times::Spell),
        "spell time",
        Select,
        &[Int8],
        Some(&[Text]),
        "SELECT to_char(to_timestamp($1::bigint / 1000000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')",
    ),
];
