//! Replays.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Insert, Select, Update},
    state::{State as S, replays::Replays},
    value::Type::{self, Bool, Int4s, Int8, Int8s, Seconds, Text, Texts},
};

const REPLAY: &[Type] = &[Int8, Text, Text, Text, Seconds, Int8, Text];

macro_rules! replay {
    () => {
        "SELECT r.id, r.state, r.details::text, r.outcome, extract(epoch FROM clock_timestamp() - r.resumed_at)::float8, r.resumed_done,
           (SELECT json_agg(json_build_array(o.topic, o.part, o.next_offset))::text FROM cutover.offsets o
            WHERE o.pipeline = r.pipeline AND o.topic LIKE 'replay.%')
         FROM cutover.replays r WHERE r.pipeline = $1"
    };
}

pub const TEXTS: &[Statement] = &[
    of(
        S::Replays(Replays::Running),
        "running replay",
        Select,
        &[Text],
        Some(REPLAY),
        concat!(replay!(), " AND r.state = 'running'"),
    ),
    of(
        S::Replays(Replays::OfRequest),
        "replay of request",
        Select,
        &[Text, Int8],
        Some(REPLAY),
        concat!(replay!(), " AND r.id = $2"),
    ),
    of(
        S::Replays(Replays::Any),
        "any replay",
        Select,
        &[],
        Some(&[Bool]),
        "SELECT EXISTS (SELECT FROM cutover.replays WHERE state = 'running')",
    ),
    of(
        S::Replays(Replays::Begin),
        "begin replay",
        Insert,
        &[Text, Int8, Text, Text, Texts, Int4s, Int8s],
        None,
        "WITH noted AS (DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'replay'),
              passes AS (INSERT INTO cutover.offsets (pipeline, topic, part, log_epoch, next_offset)
                SELECT $1, x.topic, x.part, $4, x.next FROM unnest($5::text[], $6::int[], $7::bigint[]) x(topic, part, next)
                ON CONFLICT (pipeline, topic, part) DO UPDATE SET log_epoch = excluded.log_epoch,
                  next_offset = excluded.next_offset)
         INSERT INTO cutover.replays (pipeline, id, state, details) VALUES ($1, $2, 'running', $3::text::jsonb)
         ON CONFLICT (pipeline, id) DO UPDATE SET details = excluded.details, resumed_at = now(), resumed_done = 0",
    ),
    of(
        S::Replays(Replays::Resume),
        "resume replay",
        Update,
        &[Text, Int8, Int8],
        None,
        "UPDATE cutover.replays SET resumed_at = clock_timestamp(), resumed_done = $3 WHERE pipeline = $1 AND id = $2",
    ),
    of(
        S::Replays(Replays::End),
        "end replay",
        Update,
        &[Text, Int8, Text, Text],
        None,
        "WITH noted AS (DELETE FROM cutover.dead_letters WHERE pipeline = $1 AND state = 'replay'),
              passes AS (DELETE FROM cutover.offsets WHERE pipeline = $1 AND topic LIKE 'replay.%')
         UPDATE cutover.replays SET state = $3, outcome = $4, finished_at = clock_timestamp()
         WHERE pipeline = $1 AND id = $2",
    ),
];
