//! Events.

use super::{Statement, of};
use crate::simulator::postgres::{
    recognise::Tag::{Insert, Select, Update},
    state::{State as S, events::Events},
    value::Type::{Int8, Seconds, Text, Texts},
};

/// Counts and stores the events, as the last part of a `WITH` and what follows it.
macro_rules! queue {
    () => {
        "counted AS (INSERT INTO cutover.notes AS n (pipeline, key, value)
                     SELECT $1, 'events', cardinality($2::text[])::text FROM allowed
                     ON CONFLICT (pipeline, key) DO UPDATE SET value = (n.value::bigint + excluded.value::bigint)::text
                     RETURNING value::bigint AS last)
         INSERT INTO cutover.events (pipeline, sequence, body)
         SELECT $1, last - cardinality($2::text[]) + place, body::json
         FROM counted, unnest($2::text[]) WITH ORDINALITY AS e(body, place)"
    };
}

pub const TEXTS: &[Statement] = &[
    of(
        S::Events(Events::Queue),
        "queue events",
        Insert,
        &[Text, Texts],
        None,
        concat!("WITH allowed AS (SELECT 1), ", queue!()),
    ),
    of(
        S::Events(Events::Tell),
        "tell events",
        Insert,
        &[Text, Texts, Int8, Text, Int8],
        None,
        concat!(
            "WITH allowed AS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $3 AND $5 >
                              (SELECT count(*) FROM cutover.events WHERE pipeline = $1 AND NOT carried)),
             told AS (INSERT INTO cutover.notes (pipeline, key, value) SELECT $1, 'events told', $4 FROM allowed
                      ON CONFLICT (pipeline, key) DO UPDATE SET value = excluded.value, updated_at = now()), ",
            queue!()
        ),
    ),
    of(
        S::Events(Events::TellOf),
        "tell of an event",
        Insert,
        &[Text, Texts, Int8],
        None,
        concat!(
            "WITH allowed AS (SELECT WHERE $3 > (SELECT count(*) FROM cutover.events WHERE pipeline = $1 AND NOT carried)), ",
            queue!()
        ),
    ),
    of(
        S::Events(Events::SeenTables),
        "seen tables",
        Select,
        &[Text],
        Some(&[Text, Int8, Text, Int8, Int8, Seconds]),
        "SELECT source_table, generation, state, rows_estimate, rows_copied,
                coalesce(extract(epoch FROM finished_at - started_at), 0)::float8
         FROM cutover.tables WHERE pipeline = $1 ORDER BY position, source_table",
    ),
    of(
        S::Events(Events::ToCarry),
        "events to carry",
        Select,
        &[Text, Int8],
        Some(&[Text, Int8, Text]),
        "SELECT id::text, sequence, body::text FROM cutover.events
         WHERE pipeline = $1 AND NOT carried ORDER BY sequence LIMIT $2",
    ),
    of(
        S::Events(Events::Carried),
        "events carried",
        Update,
        &[Text, Int8, Int8],
        None,
        "WITH old AS (DELETE FROM cutover.events WHERE pipeline = $1 AND carried AND sequence <= $2::bigint - $3::bigint)
         UPDATE cutover.events SET carried = true WHERE pipeline = $1 AND NOT carried AND sequence <= $2::bigint",
    ),
    of(
        S::Events(Events::After),
        "events after",
        Select,
        &[Text, Int8],
        Some(&[Text, Int8, Text, Text]),
        "SELECT id::text, sequence, body::text,
                to_char(to_timestamp((body ->> 'ts_ms')::float8 / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
         FROM cutover.events WHERE pipeline = $1 AND sequence > $2 ORDER BY sequence",
    ),
];
