//! What a migration tells other systems: one enum of events, and where they are carried to.
//!
//! docs/events.md is the contract: names, fields and units here are read by others and only ever grow. No event holds a
//! row's value, a password or a connection string.

use async_trait::async_trait;
use serde::Serialize;

use crate::model::Problem;

/// The format of an event's JSON.
const FORMAT: u32 = 1;

/// Something that happened to a migration.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Tables are being copied: a first time, or again.
    SnapshotStarted { tables: Vec<StartedTable> },
    /// How far the copy of one table is; at a bounded rate.
    TableMigrationProgress {
        table: String,
        copy: i64,
        rows_copied: u64,
        /// An estimate until the copy is complete.
        rows_total: u64,
        /// Of the rows, 0 to 100.
        percent: f64,
        rows_per_second: f64,
        /// None while the rate is unknown.
        eta_seconds: Option<f64>,
    },
    /// Every row of a table is durable in the target, and so is the stream up to what the copy saw.
    TableCompleted {
        table: String,
        copy: i64,
        rows_copied: u64,
        /// From the start of this copy; restarts of the worker count.
        duration_seconds: f64,
    },
    /// The pipeline is in another phase, or has halted, or goes on after a halt.
    PhaseChanged {
        /// None in a pipeline's first event.
        from: Option<String>,
        to: String,
        halted: Option<Problem>,
    },
    /// Rows wait for others for longer than that takes, or none does any more.
    RowsWaiting {
        /// 0: all are in, or gone.
        rows: u64,
        /// How long the oldest has waited.
        oldest_seconds: f64,
        reasons: Vec<WaitingReason>,
    },
    /// Source and target were compared.
    VerificationResult {
        clean: bool,
        /// The share of compared rows that are equal, 0 to 1.
        match_rate: f64,
        rows_repaired: u64,
        duration_seconds: f64,
        tables: Vec<VerifiedTable>,
    },
    /// Both sides changed one row, and one change was kept.
    Conflict {
        table: String,
        key_digest: String,
        kept: Direction,
        /// Versions are microseconds since the Unix epoch.
        kept_version_us: i64,
        dropped_version_us: i64,
    },
    /// The old system is the one that is written to again.
    RollbackCompleted { from: String, to: String, duration_seconds: f64 },
}

/// A table whose copy began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StartedTable {
    pub table: String,
    /// 1 for the first copy of the table, 2 for the second.
    pub copy: i64,
}

/// Rows of one table that wait for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitingReason {
    /// The source table, with its database.
    pub table: String,
    /// What the target says of them.
    pub reason: String,
    pub rows: u64,
}

/// What the comparison of one table found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedTable {
    pub table: String,
    pub rows: u64,
    pub missing: u64,
    pub extra: u64,
    pub different: u64,
}

/// Which way a change travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the old system to the new one.
    Forward,
    Reverse,
}

impl Event {
    /// The event as it is stored before it has a number: a JSON object.
    pub fn body(&self, pipeline: &str, ts_ms: i64) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            ts_ms: i64,
            pipeline: &'a str,
            #[serde(flatten)]
            event: &'a Event,
        }
        serde_json::to_string(&Body { ts_ms, pipeline, event: self })
    }
}

/// An event that is stored and numbered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedEvent {
    /// The same whenever the event is handed on again.
    pub id: String,
    /// Grows by one along the pipeline's events.
    pub sequence: i64,
    /// What [`Event::body`] gave.
    pub body: String,
}

impl NumberedEvent {
    /// The event's JSON, on one line and without its end.
    pub fn line(&self) -> String {
        let fields = self.body.trim_start().strip_prefix('{').unwrap_or("}");
        format!("{{\"format\":{FORMAT},\"id\":\"{}\",\"sequence\":{},{fields}", self.id, self.sequence)
    }
}

/// Where events are carried to for others to follow.
#[async_trait]
pub trait EventSink: Send + Sync + std::fmt::Debug {
    /// Appends events in their order. `Ok` means that all are durable. After an error any number of the first ones may
    /// be, and all are handed in again later, so that a follower meets an event at least once. Answers within a bounded
    /// time.
    async fn append(&self, events: &[NumberedEvent]) -> Result<(), EventSinkError>;
}

/// Why events could not be carried on. They stay stored, and it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("events cannot be written to {place} ({reason}); they are kept in the target meanwhile")]
pub struct EventSinkError {
    pub place: String,
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: &Event) -> serde_json::Value {
        let body = event.body("cart", 1_700_000_000_123).expect("it can be written");
        let numbered = NumberedEvent { id: "8f1c".into(), sequence: 7, body };
        serde_json::from_str(&numbered.line()).expect("a line is a JSON object")
    }

    #[test]
    fn a_line_has_its_envelope_and_its_fields_side_by_side() {
        let event = Event::PhaseChanged { from: Some("copying".into()), to: "following".into(), halted: None };
        let wanted = serde_json::json!({
            "format": 1, "id": "8f1c", "sequence": 7, "ts_ms": 1_700_000_000_123_i64, "pipeline": "cart",
            "event": "phase_changed", "from": "copying", "to": "following", "halted": null,
        });
        assert_eq!(line(&event), wanted);
    }

    /// An example of each event; the text of docs/events.md is held against it.
    fn examples() -> Vec<Event> {
        vec![
            Event::SnapshotStarted { tables: vec![StartedTable { table: "t".into(), copy: 1 }] },
            Event::TableMigrationProgress {
                table: "t".into(),
                copy: 1,
                rows_copied: 5,
                rows_total: 10,
                percent: 50.0,
                rows_per_second: 2.5,
                eta_seconds: Some(2.0),
            },
            Event::TableCompleted { table: "t".into(), copy: 1, rows_copied: 10, duration_seconds: 4.5 },
            Event::PhaseChanged { from: None, to: "copying".into(), halted: Some(Problem::new("r", "d")) },
            Event::RowsWaiting {
                rows: 3,
                oldest_seconds: 31.5,
                reasons: vec![WaitingReason { table: "shop.t".into(), reason: "violates".into(), rows: 3 }],
            },
            Event::VerificationResult {
                clean: false,
                match_rate: 0.75,
                rows_repaired: 0,
                duration_seconds: 1.5,
                tables: vec![VerifiedTable { table: "t".into(), rows: 4, missing: 1, extra: 0, different: 0 }],
            },
            Event::Conflict {
                table: "t".into(),
                key_digest: "c4ca4238".into(),
                kept: Direction::Forward,
                kept_version_us: 2,
                dropped_version_us: 1,
            },
            Event::RollbackCompleted { from: "switched".into(), to: "following".into(), duration_seconds: 3.5 },
        ]
    }

    /// Every path to a value, `tables[].copy`, with the kind of the value.
    fn shape(value: &serde_json::Value, path: &str, found: &mut std::collections::BTreeSet<String>) {
        use serde_json::Value;
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    shape(value, &inner, found);
                }
            }
            Value::Array(values) => values.iter().for_each(|value| shape(value, &format!("{path}[]"), found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                found.insert(path.to_owned());
            }
        }
    }

    #[test]
    fn the_documentation_has_an_example_of_every_event_with_exactly_its_fields() {
        let text = include_str!("../../docs/events.md");
        let documented: Vec<serde_json::Value> = text
            .lines()
            .filter(|line| line.starts_with("{\"format\""))
            .map(|line| serde_json::from_str(line).expect("an example is JSON"))
            .collect();
        for event in examples() {
            let written = line(&event);
            let wanted = {
                let mut fields = std::collections::BTreeSet::new();
                shape(&written, "", &mut fields);
                fields
            };
            let found: std::collections::BTreeSet<String> = {
                let mut fields = std::collections::BTreeSet::new();
                documented
                    .iter()
                    .filter(|example| example["event"] == written["event"])
                    .for_each(|example| shape(example, "", &mut fields));
                fields.remove("halted");
                fields
            };
            assert_eq!(found, wanted, "docs/events.md: {}", written["event"]);
            let name = written["event"].as_str().expect("a name");
            assert!(text.contains(&format!("## `{name}`")), "docs/events.md has no section on {name}");
            for field in &wanted {
                let last = field.rsplit('.').next().unwrap_or(field);
                assert!(text.contains(&format!("`{last}`")), "docs/events.md does not say what `{field}` is");
            }
        }
    }
}
