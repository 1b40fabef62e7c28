//! What must be true of the target: of every commit, and of its rows at the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    chance::{self, Chance},
    mutations::Mutation,
    postgres::{
        Change, Fault, Faults, Moment, Point, Postgres, SessionInfo, Settings, Value, Watch, Weakness, dead_letters,
        fences,
    },
    source::{Key, Tables, watched},
    target,
    world::same,
};

/// Watches the target.
pub struct Oracle {
    chance: Arc<Chance>,
    problems: Mutex<Vec<String>>,
    /// The newest TRUNCATE of each source table.
    truncated: Mutex<BTreeMap<String, i64>>,
    /// Open dead letters: the version that the target refused, by number and key.
    refused: Mutex<BTreeMap<i64, (String, i64)>>,
}

impl Oracle {
    pub fn new(chance: Arc<Chance>) -> Arc<Self> {
        Arc::new(Oracle { chance, problems: Mutex::default(), truncated: Mutex::default(), refused: Mutex::default() })
    }

    pub fn first_problem(&self) -> Option<String> {
        self.problems.lock().unwrap().first().cloned()
    }

    pub fn hold(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = what();
            self.chance.note(format!("DOES NOT HOLD: {what}"));
            self.problems.lock().unwrap().push(what);
        }
    }

    /// Whether every table is copied.
    pub fn is_copied(&self, postgres: &Postgres) -> bool {
        let tables = postgres.cutover_rows("tables");
        tables.len() == watched(&self.chance).len()
            && tables.iter().all(|table| table["state"] == Value::text("copied"))
    }

    pub fn waiting(&self, postgres: &Postgres) -> usize {
        postgres.cutover_rows("waiting").len()
    }

    /// Parents whose children are still to be read again.
    pub fn cascades(&self, postgres: &Postgres) -> usize {
        postgres.cutover_rows("cascades").len()
    }

    /// The requests that nobody has answered.
    pub fn asked(&self, postgres: &Postgres) -> Vec<String> {
        let requests = postgres.cutover_rows("requests");
        let open = requests.iter().filter(|request| request["state"] == Value::text("new"));
        open.map(|request| request["command"].str().to_owned()).collect()
    }

    /// The keys of the open dead letters, as the log has them.
    pub fn dead_letters(&self, postgres: &Postgres) -> Vec<String> {
        let letters = postgres.cutover_rows("dead_letters");
        let open = letters.iter().filter(|letter| letter["state"] == Value::text("open"));
        open.map(|letter| letter["key_text"].str().to_owned()).collect()
    }

    /// A row goes with a tombstone that is as new. What a sweep removes was never met, and a TRUNCATE leaves a fence.
    fn hold_deletes(&self, session: &SessionInfo, changes: &[Change]) {
        let mut truncated = self.truncated.lock().unwrap();
        let fences = changes.iter().filter(|change| change.table == "cutover.fences");
        for fence in fences.filter_map(|change| change.after.as_ref()) {
            truncated.insert(fence[fences::source_table].str().to_owned(), fence[fences::version].int());
        }
        if !session.application_name.contains("changes") {
            return;
        }
        for change in changes {
            let (Some(name), Some(row), None) = (change.table.strip_prefix("public."), &change.before, &change.after)
            else {
                continue;
            };
            let keys = if name == "notes" { 2 } else { 1 };
            let version = row[row.len() - 1].int();
            if truncated.get(&format!("shop.{name}")).is_some_and(|fence| version < *fence) {
                continue;
            }
            let tombstones = format!("cutover.tombstones_public_{name}");
            let buried = changes.iter().filter(|other| other.table == tombstones).any(|other| {
                other.after.as_ref().is_some_and(|grave| grave[..keys] == row[..keys] && grave[keys].int() >= version)
            });
            self.hold(buried, || {
                let who = &session.application_name;
                format!("{who} removed {row:?} of {name} and left no tombstone that is as new")
            });
        }
    }

    /// Nothing older than a dead letter of its row is written (rule 23).
    fn hold_refused(&self, session: &SessionInfo, changes: &[Change]) {
        let mut refused = self.refused.lock().unwrap();
        for change in changes.iter().filter(|change| change.table == "cutover.dead_letters") {
            let Some(before) = &change.before else { continue };
            refused.remove(&before[dead_letters::id].int());
        }
        for change in changes.iter().filter(|change| change.table == "public.notes") {
            let Some(row) = &change.after else { continue };
            let (key, version) = (format!("{{\"a\":{},\"b\":{}}}", row[0].int(), row[1].int()), row[3].int());
            let newer = refused.values().any(|(other, refused)| *other == key && *refused > version);
            self.hold(!newer, || format!("{} wrote {row:?} past its dead letter", session.application_name));
        }
        for change in changes.iter().filter(|change| change.table == "cutover.dead_letters") {
            let Some(letter) = &change.after else { continue };
            if letter[dead_letters::state] == Value::text("open") {
                let (key, version) = (letter[dead_letters::key_text].str(), letter[dead_letters::version].int());
                refused.insert(letter[dead_letters::id].int(), (key.to_owned(), version));
            }
        }
    }

    /// Compares every row; how many there are.
    pub fn judge(&self, postgres: &Postgres, source: &Tables) -> Result<u64, String> {
        let (mut rows, mut different) = (0, Vec::new());
        let refused = target::refused(source);
        for (table, expected) in target::expected(source, &self.chance) {
            let found: BTreeMap<Key, Vec<Value>> = postgres
                .rows(&format!("public.{table}"))
                .into_iter()
                .map(|(key, (others, _))| (key.iter().map(Value::int).collect(), [key, others].concat()))
                .collect();
            let keys: std::collections::BTreeSet<&Key> = expected.keys().chain(found.keys()).collect();
            for key in keys {
                rows += 1;
                if table == "notes" && refused.contains(key) {
                    continue;
                }
                let (wanted, there) = (expected.get(key), found.get(key));
                let equal = match (wanted, there) {
                    (Some(wanted), Some(there)) => wanted.iter().zip(there).all(|(one, other)| same(one, other)),
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                };
                if !equal {
                    different.push(format!("{table} {key:?}: source {wanted:?}, target {there:?}"));
                }
            }
        }
        let letters = self.dead_letters(postgres);
        let wanted: Vec<String> = refused.iter().map(|key| format!("{{\"a\":{},\"b\":{}}}", key[0], key[1])).collect();
        for letter in letters.iter().filter(|letter| !wanted.contains(letter)) {
            different.push(format!("a dead letter of {letter}, which the target does not refuse"));
        }
        for key in wanted.iter().filter(|key| !letters.contains(key)) {
            different.push(format!("no dead letter of {key}, which the target refuses"));
        }
        if different.is_empty() {
            Ok(rows)
        } else {
            Err(format!("source and target differ:\n  {}", different.join("\n  ")))
        }
    }
}

/// The model target of a run.
pub fn postgres(chance: &Arc<Chance>, oracle: &Arc<Oracle>) -> Arc<Postgres> {
    let faults = Arc::new(Bad { chance: Arc::clone(chance) });
    let is = |mutation| chance.run.mutation == Some(mutation);
    let weakness = Weakness {
        no_lane_lock: is(Mutation::NoLaneLock),
        no_tombstone_check: is(Mutation::NoTombstoneCheck),
        no_tombstones: is(Mutation::NoTombstones),
        live_ignores_version: is(Mutation::LiveIgnoresVersion),
        dead_ignores_version: is(Mutation::DeadIgnoresVersion),
        offset_outside_transaction: is(Mutation::OffsetOutsideTransaction),
        offset_unchecked: is(Mutation::OffsetUnchecked),
        no_truncate_fence: is(Mutation::NoTruncateFence),
        no_dead_letter_fence: is(Mutation::NoDeadLetterFence),
        no_replace: is(Mutation::NoReplace),
        no_tail_check: is(Mutation::NoTailCheck),
        beyond_forgotten: is(Mutation::BeyondForgotten),
        request_passed_over: is(Mutation::RequestPassedOver),
        no_second_look: is(Mutation::NoSecondLook),
        cascades_followed_early: is(Mutation::CascadesFollowedEarly),
        cascades_end_at_children: is(Mutation::CascadesEndAtChildren),
        verify_forgets_extras: is(Mutation::VerifyForgetsExtras),
        verify_trusts_numbers: is(Mutation::VerifyTrustsNumbers),
        verify_passes_over_parked: is(Mutation::VerifyPassesOverParked),
    };
    let settings = Settings { base_us: chance::BEGIN_US, replica_allowed: chance.likely(0.5), weakness };
    let postgres = Postgres::with(target::tables(chance), faults, settings);
    postgres.watch(Arc::clone(oracle) as _);
    postgres
}

/// What goes wrong inside the target.
struct Bad {
    chance: Arc<Chance>,
}

impl Faults for Bad {
    fn at(&self, moment: &Moment<'_>) -> Fault {
        let chance = &self.chance;
        let what = || format!("{} of {}", moment.statement, moment.session.application_name);
        if chance.strikes(chance::Fault::TargetRefuses, 0.003, what) {
            let states = ["40001", "40P01", "55P03", "57014", "53100"];
            return Fault::Error(states[chance.number(0..states.len() as u64) as usize].to_owned());
        }
        if chance.strikes(chance::Fault::TargetCut, 0.002, what) {
            return if chance.likely(0.5) { Fault::DropConnectionBefore } else { Fault::DropConnectionAfter };
        }
        if moment.point == Point::Commit
            && chance.strikes(chance::Fault::Kill, 0.004, || format!("at a commit: {}", what()))
        {
            chance.kill.notify_one();
            return if chance.likely(0.5) { Fault::DropConnectionBefore } else { Fault::DropConnectionAfter };
        }
        match moment.point {
            Point::Connect | Point::Prepare => Fault::Continue,
            Point::Statement | Point::Snapshot | Point::Commit if chance.likely(0.2) => {
                Fault::Delay(chance.pause(Duration::from_millis(4)))
            }
            Point::Statement | Point::Snapshot | Point::Commit => Fault::Continue,
        }
    }
}

impl Watch for Oracle {
    fn committed(&self, session: &SessionInfo, changes: &[Change]) {
        self.hold_deletes(session, changes);
        self.hold_refused(session, changes);
        for change in changes {
            if self.chance.detailed {
                let (session, table) = (&session.application_name, &change.table);
                self.chance.note(format!("{session}: {table} {:?} -> {:?}", change.before, change.after));
            }
            let (Some(before), Some(after)) = (&change.before, &change.after) else { continue };
            // Pipeline, topic, partition, log epoch, offset, lease epoch. A replay that begins anew starts from its
            // beginning.
            let replays = || before[1].str().starts_with("replay.");
            if change.table == "cutover.offsets" && before[3] == after[3] && !replays() {
                self.hold(before[4].int() <= after[4].int() && before[5].int() <= after[5].int(), || {
                    format!("{} moved an offset from {before:?} back to {after:?}", session.application_name)
                });
            }
            if change.table.starts_with("public.") || change.table.starts_with("cutover.tombstones_") {
                let (old, new) = (before[before.len() - 1].int(), after[after.len() - 1].int());
                self.hold(old <= new, || {
                    format!("{} moved {} from version {old} back to {new}", session.application_name, change.table)
                });
            }
        }
    }
}
