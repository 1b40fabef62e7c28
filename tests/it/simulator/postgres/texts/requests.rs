//! Requests, checkpoints, and the transforms that were in force.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Insert, Select, Update},
    state::{State as S, checkpoints::Checkpoints, requests::Requests},
    value::Type::{Bool, Int4, Int8, Text},
};

pub const TEXTS: &[Statement] = &[
    of(
        S::Requests(Requests::Ask),
        "ask",
        Insert,
        &[Text, Text, Text],
        Some(&[Int8]),
        "INSERT INTO cutover.requests (pipeline, command, arguments) VALUES ($1, $2, $3::text::jsonb) RETURNING id",
    ),
    of(
        S::Requests(Requests::Open),
        "open requests",
        Select,
        &[Text],
        Some(&[Int8, Text, Text, Text]),
        "SELECT id, command, coalesce(arguments ->> 'subject', ''), arguments::text FROM cutover.requests
         WHERE pipeline = $1 AND state = 'new' ORDER BY id",
    ),
    of(
        S::Requests(Requests::Answer),
        "answer request",
        Update,
        &[Text, Int8, Text, Text],
        None,
        "UPDATE cutover.requests SET state = $3, answer = to_jsonb($4::text), updated_at = now()
         WHERE pipeline = $1 AND id = $2",
    ),
    of(
        S::Requests(Requests::StateOf),
        "state of request",
        Select,
        &[Text, Int8],
        Some(&[Text, Text]),
        "SELECT state, coalesce(answer #>> '{}', '') FROM cutover.requests WHERE pipeline = $1 AND id = $2",
    ),
    of(
        S::Checkpoints(Checkpoints::NoteTransforms),
        "note transforms",
        Insert,
        &[Text, Text, Text, Text, Text],
        None,
        "INSERT INTO cutover.transforms (pipeline, hash, log_epoch, offsets, plans)
         SELECT $1, $2, $3, $4::text::jsonb, $5::text::jsonb WHERE NOT EXISTS (
           SELECT FROM (SELECT * FROM cutover.transforms WHERE pipeline = $1 ORDER BY seq DESC LIMIT 1) t
           WHERE t.hash = $2 AND t.log_epoch = $3 AND t.plans = $5::text::jsonb)",
    ),
    of(
        S::Checkpoints(Checkpoints::Transforms),
        "transforms in force",
        Select,
        &[Text, Text],
        Some(&[Text, Text]),
        "SELECT offsets::text, plans::text FROM cutover.transforms WHERE pipeline = $1 AND log_epoch = $2 ORDER BY seq",
    ),
    of(
        S::Checkpoints(Checkpoints::Create),
        "create checkpoint",
        Insert,
        &[Text, Text, Text],
        None,
        "INSERT INTO cutover.checkpoints (pipeline, name, details) VALUES ($1, $2, $3::text::jsonb)
         ON CONFLICT DO NOTHING",
    ),
    of(
        S::Checkpoints(Checkpoints::Point),
        "point",
        Select,
        &[Text],
        Some(&[Bool, Int4, Int8, Text, Text, Int8, Text]),
        "SELECT topic = 'changes', part, next_offset, log_epoch, position::text, clock,
                coalesce((SELECT hash FROM cutover.transforms t WHERE t.pipeline = $1 ORDER BY seq DESC LIMIT 1), '')
         FROM cutover.offsets WHERE pipeline = $1 AND topic IN ('changes', 'snapshot') ORDER BY part",
    ),
    of(
        S::Checkpoints(Checkpoints::List),
        "checkpoints",
        Select,
        &[Text],
        Some(&[Text, Text, Text]),
        "SELECT name, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), details::text
         FROM cutover.checkpoints WHERE pipeline = $1 ORDER BY created_at, name",
    ),
];
