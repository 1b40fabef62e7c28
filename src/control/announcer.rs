//! The announcer: says what has happened, by comparing the pipeline's state with what was told before.
//!
//! ```text
//! state in the target ──► news ──► cutover.events ──► carrier ──► file or topic
//! ```
//!
//! What was told is stored in the transaction that stores the events, so a worker that is killed at any moment tells
//! nothing twice and leaves out nothing that the state still shows. Deliberately absent: what happened and was undone
//! between two looks, a second apart.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    model::Problem,
    observe::{Event, EventSink, Halts, StartedTable, WaitingReason},
    state::{
        StateError, Store,
        copies::CopyState,
        events::SeenTable,
        status::{Phase, Status},
        waiting::WaitingFor,
    },
};

/// Progress of one table is told at most this often.
const PROGRESS_EVERY_MS: i64 = 10_000;
/// Rows that have waited for so long are told of.
const WAITING_SECONDS_MIN: f64 = 30.0;
const CARRY_EVERY: Duration = Duration::from_millis(500);
/// Events handed to the sink at once.
const CARRY_EVENTS_MAX: i64 = 100;
/// A carrier that is told to stop has this long for what is left.
const LAST_CARRY_MAX: Duration = Duration::from_secs(3);

/// What the pipeline has told, stored as a note.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    phase: Option<String>,
    halted: Option<Problem>,
    /// That rows wait was told, and not yet that none does any more.
    waiting: bool,
    tables: BTreeMap<String, ToldTable>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct ToldTable {
    /// The newest copy whose start was told.
    started: i64,
    /// The newest copy whose end was told.
    completed: i64,
    /// The copied rows, and when they were told.
    rows_copied: u64,
    progress_ms: i64,
}

/// The pipeline as the state has it now.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub phase: Phase,
    pub halted: Option<Problem>,
    pub rows_per_second: f64,
    pub tables: Vec<SeenTable>,
    /// How many rows wait, for how long the oldest has, and what for.
    pub waiting: (u64, f64, Vec<WaitingFor>),
}

/// What is new in `seen`, in the order in which it is to be told.
pub fn news(told: &mut Told, seen: &Seen, now_ms: i64) -> Vec<Event> {
    let mut events = Vec::new();
    let changed = phase_change(told, seen);
    let (before, after) = match seen.phase {
        Phase::New | Phase::Copying => (changed, None),
        // Its tables are complete first.
        Phase::Following => (None, changed),
    };
    events.extend(before);
    told.tables.retain(|name, _| seen.tables.iter().any(|table| table.table == *name));
    events.extend(starts(told, seen));
    for table in &seen.tables {
        let told = told.tables.entry(table.table.clone()).or_default();
        events.extend(table_news(told, table, seen.rows_per_second, now_ms));
    }
    events.extend(after);
    events.extend(waiting_news(told, seen));
    events
}

fn waiting_news(told: &mut Told, seen: &Seen) -> Option<Event> {
    let (rows, oldest_seconds, reasons) = &seen.waiting;
    let waits = match told.waiting {
        true => *rows > 0,
        false => *rows > 0 && *oldest_seconds >= WAITING_SECONDS_MIN,
    };
    if waits == std::mem::replace(&mut told.waiting, waits) {
        return None;
    }
    let reason = |waits: &WaitingFor| WaitingReason {
        table: waits.table.clone(),
        reason: waits.reason.clone(),
        rows: waits.rows,
    };
    let reasons = reasons.iter().map(reason).collect();
    Some(Event::RowsWaiting { rows: *rows, oldest_seconds: tenths(*oldest_seconds), reasons })
}

fn phase_change(told: &mut Told, seen: &Seen) -> Option<Event> {
    let to = seen.phase.name();
    if told.phase.as_deref() == Some(to) && told.halted == seen.halted {
        return None;
    }
    let from = told.phase.replace(to.to_owned());
    told.halted.clone_from(&seen.halted);
    Some(Event::PhaseChanged { from, to: to.to_owned(), halted: seen.halted.clone() })
}

/// Copies that were asked for together are told together, once the first of them has begun.
fn starts(told: &mut Told, seen: &Seen) -> Option<Event> {
    let started = |told: &Told, table: &str| told.tables.get(table).map_or(0, |told| told.started);
    let new: Vec<&SeenTable> = seen.tables.iter().filter(|table| table.copy > started(told, &table.table)).collect();
    if new.iter().all(|table| table.state == CopyState::Pending) {
        return None;
    }
    let tables = new.iter().map(|table| StartedTable { table: table.table.clone(), copy: table.copy }).collect();
    for table in new {
        let told = told.tables.entry(table.table.clone()).or_default();
        *told = ToldTable { started: table.copy, completed: told.completed, ..ToldTable::default() };
    }
    Some(Event::SnapshotStarted { tables })
}

fn table_news(told: &mut ToldTable, seen: &SeenTable, rows_per_second: f64, now_ms: i64) -> Option<Event> {
    let (table, copy, rows_copied) = (seen.table.clone(), seen.copy, seen.rows_copied);
    if told.started < copy {
        return None;
    }
    if seen.state == CopyState::Copied {
        let event = Event::TableCompleted { table, copy, rows_copied, duration_seconds: seen.duration_seconds };
        let first = told.completed < copy;
        told.completed = copy;
        return first.then_some(event);
    }
    if rows_copied == told.rows_copied || now_ms - told.progress_ms < PROGRESS_EVERY_MS {
        return None;
    }
    told.rows_copied = rows_copied;
    told.progress_ms = now_ms;
    // The estimate may be too low; what is copied is there.
    let rows_total = seen.rows_total.max(rows_copied);
    let left = (rows_total - rows_copied) as f64;
    Some(Event::TableMigrationProgress {
        table,
        copy,
        rows_copied,
        rows_total,
        percent: tenths(rows_copied as f64 * 100.0 / rows_total as f64),
        rows_per_second: tenths(rows_per_second),
        eta_seconds: (rows_per_second > 0.0).then(|| tenths(left / rows_per_second)),
    })
}

/// More digits would say more than is known.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Tells what the worker under this lease sees.
#[derive(Debug)]
pub(super) struct Announcer {
    store: Arc<Store>,
    lease_epoch: i64,
    told: Told,
}

impl Announcer {
    /// Goes on after what earlier workers told.
    pub(super) async fn resume(store: Arc<Store>, lease_epoch: i64) -> Result<Self, StateError> {
        let noted = store.told().await?;
        // A migration does not stop for its events.
        let told = noted.map(|noted| serde_json::from_str(&noted)).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "what was told before cannot be read; it is told again");
            None
        });
        let told = told.unwrap_or_default();
        Ok(Announcer { store, lease_epoch, told })
    }

    /// Stores what is new since the last time. `status` is older than the tables read here, so that a table's end is
    /// told before the phase that follows from it.
    pub(super) async fn tell(
        &mut self,
        status: &Status,
        halted: Option<Problem>,
        now_ms: i64,
    ) -> Result<(), StateError> {
        let seen = Seen {
            phase: status.phase,
            halted,
            rows_per_second: status.copied_rows_per_second,
            tables: self.store.seen_tables().await?,
            waiting: (status.waiting, status.waiting_oldest_seconds.unwrap_or_default(), status.waiting_for.clone()),
        };
        let mut told = self.told.clone();
        let new = news(&mut told, &seen, now_ms);
        if new.is_empty() {
            return Ok(());
        }
        let state = serde_json::to_string(&told)?;
        if self.store.tell(&new, now_ms, self.lease_epoch, &state).await? {
            self.told = told;
        }
        Ok(())
    }
}

/// Carries stored events to where others follow them, until `stop`; then what is left, if that does not take long.
pub(super) async fn carry(store: Arc<Store>, sink: Arc<dyn EventSink>, halts: Arc<Halts>, stop: CancellationToken) {
    let carried = async {
        loop {
            let is_last = stop.is_cancelled();
            match carry_once(&store, &*sink).await {
                Ok(()) => halts.well("events"),
                Err(why) => halts.trouble("events", &why),
            }
            if is_last {
                break;
            }
            tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(CARRY_EVERY) => {} }
        }
    };
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_CARRY_MAX).await;
    };
    tokio::select! {
        biased;
        () = carried => {}
        () = late => tracing::warn!("the last events are not carried on yet; the next worker does it"),
    }
}

async fn carry_once(store: &Store, sink: &dyn EventSink) -> Result<(), String> {
    loop {
        let events = store.events_to_carry(CARRY_EVENTS_MAX).await.map_err(|error| error.to_string())?;
        let Some(last) = events.last().map(|event| event.sequence) else { return Ok(()) };
        sink.append(&events).await.map_err(|error| error.to_string())?;
        store.events_carried(last).await.map_err(|error| error.to_string())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, copy: i64, state: &str, rows_copied: u64) -> SeenTable {
        let state = CopyState::read(state).expect("a state of a copy");
        SeenTable { table: name.into(), copy, state, rows_total: 100, rows_copied, duration_seconds: 2.5 }
    }

    fn seen(phase: Phase, tables: &[SeenTable]) -> Seen {
        Seen { phase, halted: None, rows_per_second: 10.0, tables: tables.to_vec(), waiting: (0, 0.0, Vec::new()) }
    }

    fn names(events: &[Event]) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::SnapshotStarted { tables } => {
                let tables: Vec<String> =
                    tables.iter().map(|table| format!("{} {}", table.table, table.copy)).collect();
                format!("started {}", tables.join(", "))
            }
            Event::TableMigrationProgress { table, percent, .. } => format!("{table} {percent} %"),
            Event::TableCompleted { table, copy, .. } => format!("{table} {copy} complete"),
            Event::PhaseChanged { to, halted, .. } if halted.is_some() => format!("{to}, halted"),
            Event::PhaseChanged { from, to, .. } => format!("{} to {to}", from.as_deref().unwrap_or("nothing")),
            Event::RowsWaiting { rows, reasons, .. } => format!("{rows} wait for {} reasons", reasons.len()),
            Event::VerificationResult { .. } | Event::Conflict { .. } | Event::RollbackCompleted { .. } => {
                "not from state".into()
            }
        };
        events.iter().map(name).collect()
    }

    #[test]
    fn a_migration_is_told_in_order_and_each_thing_once() {
        let mut told = Told::default();
        let pending = seen(Phase::New, &[table("a", 1, "pending", 0), table("b", 1, "pending", 0)]);
        assert_eq!(names(&news(&mut told, &pending, 0)), ["nothing to new"]);
        let copying = seen(Phase::Copying, &[table("a", 1, "copying", 0), table("b", 1, "pending", 0)]);
        assert_eq!(names(&news(&mut told, &copying, 1)), ["new to copying", "started a 1, b 1"]);
        assert_eq!(names(&news(&mut told, &copying, 2)), Vec::<String>::new());
        let second = seen(Phase::Copying, &[table("a", 1, "copied", 40), table("b", 1, "copying", 20)]);
        assert_eq!(names(&news(&mut told, &second, 100_000)), ["a 1 complete", "b 20 %"]);
        let done = seen(Phase::Following, &[table("a", 1, "copied", 40), table("b", 1, "copied", 90)]);
        assert_eq!(names(&news(&mut told, &done, 100_001)), ["b 1 complete", "copying to following"]);
        let again = seen(Phase::Copying, &[table("a", 2, "copying", 0), table("b", 1, "copied", 90)]);
        assert_eq!(names(&news(&mut told, &again, 100_002)), ["following to copying", "started a 2"]);
    }

    #[test]
    fn what_was_over_before_anyone_looked_is_told_whole() {
        let done = seen(Phase::Following, &[table("a", 1, "copied", 40)]);
        let told = names(&news(&mut Told::default(), &done, 0));
        assert_eq!(told, ["started a 1", "a 1 complete", "nothing to following"]);
    }

    #[test]
    fn progress_is_told_at_a_bounded_rate_and_only_when_there_is_some() {
        let mut told = Told::default();
        let mut count = 0;
        for second in 0..60 {
            let state = seen(Phase::Copying, &[table("a", 1, "copying", (second * 2).min(80))]);
            count += news(&mut told, &state, i64::try_from(second).expect("small") * 1000 + 50_000)
                .iter()
                .filter(|event| matches!(event, Event::TableMigrationProgress { .. }))
                .count();
        }
        assert_eq!(count, 5, "at 1, 11, 21 and 31 seconds, and at 41 the last rows: nothing moves after that");
    }

    #[test]
    fn an_estimate_that_is_too_low_never_gives_more_than_all() {
        let mut told = Told::default();
        let over = SeenTable { rows_total: 10, ..table("a", 1, "copying", 20) };
        let events = news(&mut told, &seen(Phase::Copying, &[over]), 50_000);
        assert_eq!(names(&events)[2], "a 100 %");
    }

    #[test]
    fn a_halt_and_its_end_are_changes_of_the_phase() {
        let mut told = Told::default();
        let well = seen(Phase::Following, &[]);
        news(&mut told, &well, 0);
        let halt = Problem::new("r", "d");
        let halted = Seen { halted: Some(halt), ..well.clone() };
        assert_eq!(names(&news(&mut told, &halted, 1)), ["following, halted"]);
        assert_eq!(names(&news(&mut told, &halted, 2)), Vec::<String>::new());
        assert_eq!(names(&news(&mut told, &well, 3)), ["following to following"]);
    }

    #[test]
    fn rows_that_wait_for_long_are_told_once_and_that_none_does_any_more() {
        let mut told = Told::default();
        let seen = |rows: u64, seconds: f64| {
            let reason = WaitingFor { table: "s.t".into(), reason: "fk".into(), rows, oldest_seconds: seconds };
            let reasons = if rows > 0 { vec![reason] } else { Vec::new() };
            Seen { waiting: (rows, seconds, reasons), ..seen(Phase::Following, &[]) }
        };
        news(&mut told, &seen(0, 0.0), 0);
        assert_eq!(names(&news(&mut told, &seen(2, 5.0), 1)), Vec::<String>::new(), "most come in soon");
        assert_eq!(names(&news(&mut told, &seen(2, 31.0), 2)), ["2 wait for 1 reasons"]);
        assert_eq!(names(&news(&mut told, &seen(1, 3.0), 3)), Vec::<String>::new());
        assert_eq!(names(&news(&mut told, &seen(0, 0.0), 4)), ["0 wait for 0 reasons"]);
    }

    #[test]
    fn a_table_that_leaves_and_comes_back_is_told_anew() {
        let mut told = Told::default();
        news(&mut told, &seen(Phase::Following, &[table("a", 1, "copied", 1), table("b", 1, "copied", 1)]), 0);
        news(&mut told, &seen(Phase::Following, &[table("a", 1, "copied", 1)]), 1);
        let back = seen(Phase::Copying, &[table("a", 1, "copied", 1), table("b", 1, "copying", 0)]);
        assert_eq!(names(&news(&mut told, &back, 2)), ["following to copying", "started b 1"]);
    }
}
