//! How far copies are.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Delete, Insert, Select, Update},
    state::{State as S, copies::Copies},
    value::Type::{Bool, Int4, Int8, Int8s, Text, Texts},
};

pub const TEXTS: &[Statement] = &[
    of(
        S::Copies(Copies::ChunkApplied),
        "chunk applied",
        Update,
        &[Text, Text, Int8, Int8, Int8],
        None,
        "UPDATE cutover.chunks SET state = 'applied', rows = $5, updated_at = clock_timestamp()
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND chunk = $4",
    ),
    of(
        S::Copies(Copies::Register),
        "register tables",
        Insert,
        &[Text, Texts],
        None,
        "INSERT INTO cutover.tables (pipeline, source_table, position, generation, state)
         SELECT $1, name, place, 1, 'pending' FROM unnest($2::text[]) WITH ORDINALITY t(name, place)
         ON CONFLICT (pipeline, source_table) DO UPDATE SET position = excluded.position",
    ),
    of(
        S::Copies(Copies::ForgetTables),
        "forget tables",
        Delete,
        &[Text, Texts],
        None,
        "DELETE FROM cutover.tables WHERE pipeline = $1 AND source_table <> ALL($2::text[])",
    ),
    of(
        S::Copies(Copies::ForgetChunks),
        "forget chunks",
        Delete,
        &[Text, Texts],
        None,
        "DELETE FROM cutover.chunks WHERE pipeline = $1 AND source_table <> ALL($2::text[])",
    ),
    of(
        S::Copies(Copies::Queue),
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
        S::Copies(Copies::QueueBegun),
        "queue begun copies",
        Update,
        &[Text, Bool],
        None,
        "UPDATE cutover.tables SET generation = generation + 1, state = 'pending', bounds_done = false,
           rows_copied = 0, requested_at = now(), started_at = NULL, finished_at = NULL
         WHERE pipeline = $1 AND (state <> 'pending' OR ($2 AND generation = 1))",
    ),
    of(
        S::Copies(Copies::NotAgain),
        "not to be copied again",
        Select,
        &[Text],
        Some(&[Text]),
        "SELECT source_table FROM cutover.tables
         WHERE pipeline = $1 AND NOT (state = 'pending' AND generation > 1) ORDER BY position, source_table",
    ),
    of(
        S::Copies(Copies::Left),
        "copies left",
        Select,
        &[Text],
        Some(&[Int8, Int8]),
        "SELECT count(*), count(*) FILTER (WHERE state <> 'copied') FROM cutover.tables WHERE pipeline = $1",
    ),
    of(
        S::Copies(Copies::Advance),
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
        S::Copies(Copies::Unfinished),
        "unfinished copies",
        Select,
        &[Text],
        Some(&[Text, Int8, Bool, Int8]),
        "SELECT source_table, generation, bounds_done, not_before FROM cutover.tables
         WHERE pipeline = $1 AND state <> 'copied' ORDER BY position, source_table",
    ),
    of(
        S::Copies(Copies::Copying),
        "copying",
        Update,
        &[Text, Text, Int8, Int8],
        None,
        "UPDATE cutover.tables SET state = 'copying', rows_estimate = $4, started_at = coalesce(started_at, now())
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3",
    ),
    of(
        S::Copies(Copies::Chunks),
        "chunks",
        Select,
        &[Text, Text, Int8],
        Some(&[Int8, Text, Text, Bool]),
        "SELECT chunk, lower, upper, state = 'done' FROM cutover.chunks
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3 ORDER BY chunk",
    ),
    of(
        S::Copies(Copies::AddChunk),
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
        S::Copies(Copies::Finish),
        "finish copy",
        Update,
        &[Text, Text, Int8],
        None,
        "UPDATE cutover.tables SET state = 'copied', finished_at = now()
         WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND NOT EXISTS (
             SELECT 1 FROM cutover.chunks WHERE pipeline = $1 AND source_table = $2 AND generation = $3 AND state <> 'done')",
    ),
    of(
        S::Copies(Copies::DropChunks),
        "drop chunks",
        Delete,
        &[Text, Text],
        None,
        "DELETE FROM cutover.chunks WHERE pipeline = $1 AND source_table = $2",
    ),
    of(
        S::Copies(Copies::Alone),
        "alone",
        Select,
        &[Text],
        Some(&[Bool]),
        "SELECT NOT EXISTS (SELECT FROM cutover.tables WHERE pipeline NOT IN ($1::text, $1::text || '-reverse'))",
    ),
    of(
        S::Copies(Copies::FollowOnly),
        "follow only",
        Update,
        &[Text],
        None,
        "UPDATE cutover.tables SET state = 'copied' WHERE pipeline = $1 AND state <> 'copied'",
    ),
];
