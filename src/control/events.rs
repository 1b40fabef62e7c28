//! Events in the target: stored with the state that they tell of, numbered, and kept until they are carried on.
//!
//! What enters is told by the worker, or by a command beside it, in one statement; what leaves goes to the sink in order, and
//! to `cutover status --events`. Invariants: numbers follow the order of commits without a gap; an event is dropped only
//! after it was carried, and then only when many newer ones are there.

use tokio_postgres::GenericClient;

use super::{store::Store, teller::SeenTable};
use crate::{
    database::postgres::PgError,
    observe::{Event, NumberedEvent},
};

/// The note with what was told.
pub(super) const TOLD: &str = "events told";
/// Carried events stay this long, counted in newer ones.
pub const EVENTS_KEPT: i64 = 10_000;
/// While this many wait to be carried, nothing new is told. Nothing is lost by that: the state has it.
const EVENTS_WAITING_MAX: i64 = 10_000;

/// The row of the counter is locked until the commit, so that numbers are given in the order of commits.
const QUEUE: &str = "
    counted AS (INSERT INTO cutover.notes AS n (pipeline, key, value) \
                SELECT $1, 'events', cardinality($2::text[])::text FROM allowed \
                ON CONFLICT (pipeline, key) DO UPDATE SET value = (n.value::bigint + excluded.value::bigint)::text \
                RETURNING value::bigint AS last) \
    INSERT INTO cutover.events (pipeline, sequence, body) \
    SELECT $1, last - cardinality($2::text[]) + place, body::json \
    FROM counted, unnest($2::text[]) WITH ORDINALITY AS e(body, place)";

/// Stores events of something that the caller does in the same transaction, or has done: for a command, or for what no
/// table of the state shows.
pub async fn queue<C: GenericClient + Sync>(
    client: &C,
    pipeline: &str,
    events: &[Event],
    now_ms: i64,
) -> Result<(), PgError> {
    let sql = format!("WITH allowed AS (SELECT 1), {QUEUE}");
    client.execute(&sql, &[&pipeline, &bodies(pipeline, events, now_ms)?]).await?;
    Ok(())
}

fn bodies(pipeline: &str, events: &[Event], now_ms: i64) -> Result<Vec<String>, PgError> {
    let bodies = events.iter().map(|event| event.body(pipeline, now_ms)).collect::<Result<_, _>>();
    bodies.map_err(|error| PgError::Protocol(error.to_string()))
}

/// An event as `cutover status --events` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownEvent {
    pub event: NumberedEvent,
    /// When it was told, UTC, as people read it.
    pub at: String,
}

impl Store {
    /// Stores events together with what is told then, if this lease still holds and the sink keeps up; whether it did.
    pub(super) async fn tell(
        &self,
        events: &[Event],
        now_ms: i64,
        lease_epoch: i64,
        told: &str,
    ) -> Result<bool, PgError> {
        let sql = format!(
            "WITH allowed AS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $3 AND $5 > \
                              (SELECT count(*) FROM cutover.events WHERE pipeline = $1 AND NOT carried)), \
             told AS (INSERT INTO cutover.notes (pipeline, key, value) SELECT $1, '{TOLD}', $4 FROM allowed \
                      ON CONFLICT (pipeline, key) DO UPDATE SET value = excluded.value, updated_at = now()), {QUEUE}"
        );
        let bodies = bodies(&self.pipeline, events, now_ms)?;
        let session = self.session().await?;
        let stored = session
            .client()?
            .execute(&sql, &[&self.pipeline, &bodies, &lease_epoch, &told, &EVENTS_WAITING_MAX])
            .await?;
        Ok(stored > 0)
    }

    /// The tables as the teller looks at them.
    pub(super) async fn seen_tables(&self) -> Result<Vec<SeenTable>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT source_table, generation, state, rows_estimate, rows_copied, \
                        coalesce(extract(epoch FROM finished_at - started_at), 0)::float8 \
                 FROM cutover.tables WHERE pipeline = $1 ORDER BY position, source_table",
                &[&self.pipeline],
            )
            .await?;
        let seen = |row: &tokio_postgres::Row| SeenTable {
            table: row.get(0),
            copy: row.get(1),
            state: row.get(2),
            rows_total: row.get::<_, i64>(3).cast_unsigned(),
            rows_copied: row.get::<_, i64>(4).cast_unsigned(),
            duration_seconds: row.get(5),
        };
        Ok(rows.iter().map(seen).collect())
    }

    /// The first events that are still to be carried.
    pub(super) async fn events_to_carry(&self, count_max: i64) -> Result<Vec<NumberedEvent>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT id::text, sequence, body::text FROM cutover.events \
                 WHERE pipeline = $1 AND NOT carried ORDER BY sequence LIMIT $2",
                &[&self.pipeline, &count_max],
            )
            .await?;
        Ok(rows.iter().map(numbered).collect())
    }

    /// Notes that everything up to this number is where others follow it, and forgets what is old.
    pub(super) async fn events_carried(&self, sequence: i64) -> Result<(), PgError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "WITH old AS (DELETE FROM cutover.events WHERE pipeline = $1 AND carried AND sequence <= $2::bigint - $3::bigint) \
                 UPDATE cutover.events SET carried = true WHERE pipeline = $1 AND NOT carried AND sequence <= $2::bigint",
                &[&self.pipeline, &sequence, &EVENTS_KEPT],
            )
            .await?;
        Ok(())
    }

    /// The events after this number, the oldest first.
    pub async fn events_after(&self, sequence: i64) -> Result<Vec<ShownEvent>, PgError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT id::text, sequence, body::text, \
                        to_char(to_timestamp((body ->> 'ts_ms')::float8 / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') \
                 FROM cutover.events WHERE pipeline = $1 AND sequence > $2 ORDER BY sequence",
                &[&self.pipeline, &sequence],
            )
            .await?;
        Ok(rows.iter().map(|row| ShownEvent { event: numbered(row), at: row.get(3) }).collect())
    }
}

fn numbered(row: &tokio_postgres::Row) -> NumberedEvent {
    NumberedEvent { id: row.get(0), sequence: row.get(1), body: row.get(2) }
}
