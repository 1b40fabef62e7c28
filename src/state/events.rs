//! Events in the target: stored with the state that they tell of, numbered, and kept until they are carried on.
//!
//! What enters is told by the worker in one statement; what leaves goes to the sink in order, and to `cutover status
//! --events`. Invariants: numbers follow the order of commits without a gap; an event is dropped only after it was
//! carried, and then only when many newer ones are there.

use super::{StateError, Store, copies::CopyState};
use crate::observe::{Event, NumberedEvent};

/// The note with what was told.
const TOLD: &str = "events told";
/// Carried events stay this long, counted in newer ones.
const EVENTS_KEPT: i64 = 10_000;
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

fn bodies(pipeline: &str, events: &[Event], now_ms: i64) -> Result<Vec<String>, StateError> {
    Ok(events.iter().map(|event| event.body(pipeline, now_ms)).collect::<Result<_, _>>()?)
}

/// An event as `cutover status --events` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownEvent {
    pub event: NumberedEvent,
    /// When it was told, UTC, as people read it.
    pub at: String,
}

/// One table as the state has it now.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenTable {
    pub table: String,
    /// The number of the table's newest copy.
    pub copy: i64,
    pub state: CopyState,
    pub rows_total: u64,
    pub rows_copied: u64,
    /// How long the finished copy took.
    pub duration_seconds: f64,
}

impl Store {
    /// What was told, as [`Store::tell`] has stored it; none before the first event.
    pub(crate) async fn told(&self) -> Result<Option<String>, StateError> {
        self.note(TOLD).await
    }

    /// Stores events together with what is told then, if this lease still holds and the sink keeps up; whether it did.
    pub(crate) async fn tell(
        &self,
        events: &[Event],
        now_ms: i64,
        lease_epoch: i64,
        told: &str,
    ) -> Result<bool, StateError> {
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

    /// Stores an event that no state of the pipeline shows, unless the sink is far behind.
    pub async fn tell_of(&self, event: &Event, now_ms: i64) -> Result<(), StateError> {
        let sql = format!(
            "WITH allowed AS (SELECT WHERE $3 > \
                              (SELECT count(*) FROM cutover.events WHERE pipeline = $1 AND NOT carried)), {QUEUE}"
        );
        let bodies = bodies(&self.pipeline, std::slice::from_ref(event), now_ms)?;
        let session = self.session().await?;
        session.client()?.execute(&sql, &[&self.pipeline, &bodies, &EVENTS_WAITING_MAX]).await?;
        Ok(())
    }

    /// The tables as the teller looks at them.
    pub(crate) async fn seen_tables(&self) -> Result<Vec<SeenTable>, StateError> {
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
        let seen = |row: &tokio_postgres::Row| {
            Ok(SeenTable {
                table: row.get(0),
                copy: row.get(1),
                state: CopyState::read(row.get(2))?,
                rows_total: row.get::<_, i64>(3).cast_unsigned(),
                rows_copied: row.get::<_, i64>(4).cast_unsigned(),
                duration_seconds: row.get(5),
            })
        };
        rows.iter().map(seen).collect()
    }

    /// The first events that are still to be carried.
    pub(crate) async fn events_to_carry(&self, count_max: i64) -> Result<Vec<NumberedEvent>, StateError> {
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
    pub(crate) async fn events_carried(&self, sequence: i64) -> Result<(), StateError> {
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
    pub async fn events_after(&self, sequence: i64) -> Result<Vec<ShownEvent>, StateError> {
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
