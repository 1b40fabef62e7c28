//! What the report is made of, and what has to be true before a switch.

use serde::Deserialize;
use url::Url;

use super::super::status::human_seconds;
use crate::{
    config::Config,
    state::{
        StateError, Store,
        copies::{CopyState, CopyTimes},
        dead_letters::LetterGroup,
        lag_history::LagHistory,
        status::{Phase, Status},
        verifications::{Gate, NotedVerdict},
    },
};

/// A lag above this is no time for a switch, in seconds.
const LAG_SECONDS_MAX: f64 = 30.0;
/// A proof that is older than this is none, in seconds.
const PROOF_SECONDS_MAX: f64 = 24.0 * 3600.0;

/// Everything that is known of a migration.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) pipeline: String,
    /// Where the rows come from and go to, without users and passwords.
    pub(super) source: String,
    pub(super) target: String,
    /// When this was gathered, µs since the Unix epoch.
    pub(super) made_us: i64,
    pub(super) status: Status,
    pub(super) copies: Vec<CopyTimes>,
    pub(super) lag: LagHistory,
    pub(super) letters: Vec<LetterGroup>,
    /// What the last comparison of whole tables said.
    pub(super) verdict: Option<NotedVerdict>,
    /// What was told, the oldest first.
    pub(super) told: Vec<Told>,
}

/// An event, as far as the report shows it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) at: String,
    pub(super) what: Milestone,
}

/// Events that the report tells of; others are shown in another way.
#[derive(Debug)]
pub(super) enum Milestone {
    Phase(Phased),
    CopyBegan(Vec<Started>),
    Verified(Compared),
    /// So many rows wait.
    Waiting(u64),
}

#[derive(Debug, Deserialize)]
pub(super) struct Phased {
    pub(super) to: String,
    pub(super) halted: Option<Halted>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Halted {
    pub(super) reason: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Started {
    pub(super) table: String,
    pub(super) copy: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Compared {
    pub(super) clean: bool,
    pub(super) match_rate: f64,
    pub(super) rows_repaired: u64,
}

impl Milestone {
    /// What an event's body tells; none if the report does not tell of it.
    fn read(body: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Named {
            event: String,
        }
        #[derive(Deserialize)]
        struct Tables {
            tables: Vec<Started>,
        }
        #[derive(Deserialize)]
        struct Waiting {
            rows: u64,
        }
        // What another release has told may have other fields, and is left out.
        let Named { event } = serde_json::from_str(body).ok()?;
        match event.as_str() {
            "phase_changed" => serde_json::from_str(body).ok().map(Milestone::Phase),
            "snapshot_started" => serde_json::from_str(body).ok().map(|Tables { tables }| Milestone::CopyBegan(tables)),
            "verification_result" => serde_json::from_str(body).ok().map(Milestone::Verified),
            "rows_waiting" => serde_json::from_str(body).ok().map(|Waiting { rows }| Milestone::Waiting(rows)),
            _ => None,
        }
    }
}

/// One thing that has to be true before a switch.
#[derive(Debug, PartialEq)]
pub(super) struct Requirement {
    pub(super) name: String,
    pub(super) passed: bool,
    pub(super) found: String,
    pub(super) wanted: String,
    /// What to do where it is not passed.
    pub(super) fix: String,
}

/// Asks the pipeline's state.
pub(super) async fn gather(config: &Config, store: &Store, made_us: i64) -> Result<Facts, StateError> {
    let told = store.events_after(0).await?;
    let told =
        told.into_iter().filter_map(|shown| Milestone::read(&shown.event.body).map(|what| Told { at: shown.at, what }));
    Ok(Facts {
        pipeline: config.name.clone(),
        source: place(&config.source.url),
        target: place(&config.target.url),
        made_us,
        status: store.proven_status().await?,
        copies: store.copy_times().await?,
        lag: store.lag_history().await?,
        letters: store.dead_letters_by_cause().await?,
        verdict: store.last_verdict().await?,
        told: told.collect(),
    })
}

/// A URL without user, password and options.
fn place(url: &str) -> String {
    let Ok(url) = Url::parse(url) else { return "unknown".into() };
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

impl Facts {
    /// What has to be true before a switch, in the order in which it is looked for.
    pub(super) fn requirements(&self) -> Vec<Requirement> {
        let mut all = vec![self.copied(), self.halted(), self.in_step()];
        all.extend(self.nothing_aside());
        all.extend([self.proven(), self.proof_age()]);
        let gates = self.verdict.iter().flat_map(|verdict| &verdict.gates);
        // Tables that could not be compared are named by the proof.
        all.extend(gates.filter(|gate| gate.name != "unproven").map(gate));
        all
    }

    /// Whether the move can go.
    pub(super) fn goes(&self) -> bool {
        self.requirements().iter().all(|requirement| requirement.passed)
    }

    fn copied(&self) -> Requirement {
        let left: Vec<&str> =
            self.copies.iter().filter(|copy| copy.state != CopyState::Copied).map(|copy| copy.table.as_str()).collect();
        let found = match (self.copies.len(), left.len()) {
            (0, _) => "no table is known".to_owned(),
            (all, 0) => format!("all {all} are"),
            (all, _) => format!("{} of {all} are; left: {}", all - left.len(), left.join(", ")),
        };
        Requirement {
            name: "tables are copied".into(),
            passed: self.status.phase == Phase::Following && left.is_empty() && !self.copies.is_empty(),
            found,
            wanted: "all, and the script after the copy has run".into(),
            fix: "let `cutover run` copy them".into(),
        }
    }

    fn halted(&self) -> Requirement {
        let (found, fix) = match (&self.status.halted, self.status.worker_running) {
            (Some(halt), _) => (format!("halted: {}", halt.what), halt.fix.to_string()),
            (None, true) => ("it runs".to_owned(), String::new()),
            (None, false) => ("none runs".to_owned(), "start one with `cutover run`".to_owned()),
        };
        Requirement {
            name: "worker".into(),
            passed: self.status.halted.is_none() && self.status.worker_running,
            found,
            wanted: "runs, not halted".into(),
            fix,
        }
    }

    fn in_step(&self) -> Requirement {
        let lag = self.status.lag_seconds;
        Requirement {
            name: "lag".into(),
            passed: lag.is_some_and(|lag| lag <= LAG_SECONDS_MAX),
            found: lag.map_or_else(|| "nothing is applied yet".into(), |lag| format!("{lag:.1} s")),
            wanted: format!("at most {LAG_SECONDS_MAX:.0} s"),
            fix: "wait until the worker has caught up; `cutover status --watch` shows it".into(),
        }
    }

    fn nothing_aside(&self) -> [Requirement; 3] {
        let status = &self.status;
        let none = |name: &str, rows: u64, fix: &str| Requirement {
            name: name.into(),
            passed: rows == 0,
            found: rows.to_string(),
            wanted: "0".into(),
            fix: fix.into(),
        };
        [
            none("rows that wait", status.waiting, "`cutover status` says what for; bring that to the target"),
            none("open dead letters", status.dead_letters, super::super::DEAD_LETTERS),
            none("parents whose children are read again", status.cascades, "wait until the worker has read them"),
        ]
    }

    /// Whether every table was compared as a whole, and was equal, after its copy.
    fn proven(&self) -> Requirement {
        let unproven: Vec<String> = self.copies.iter().filter_map(|copy| self.unproven(copy)).collect();
        let all = self.copies.len();
        let found = match unproven.as_slice() {
            [] => format!("{all} of {all}"),
            some => format!("{} of {all}; not: {}", all - some.len(), some.join(", ")),
        };
        Requirement {
            name: "tables that are proven equal".into(),
            passed: unproven.is_empty() && all > 0,
            found,
            wanted: "all, after their copy".into(),
            fix: "run `cutover verify`, with --repair if rows drifted".into(),
        }
    }

    /// A table that is not proven, and why.
    fn unproven(&self, copy: &CopyTimes) -> Option<String> {
        let CopyTimes { table, finished_us, .. } = copy;
        match self.status.verified.iter().find(|verified| verified.table == *table) {
            None => Some(format!("{table} (never compared)")),
            Some(verified) if !verified.is_clean => Some(format!("{table} (not equal)")),
            Some(verified) if finished_us.is_none_or(|finished| verified.at_us < finished) => {
                Some(format!("{table} (copied since)"))
            }
            Some(_) => None,
        }
    }

    fn proof_age(&self) -> Requirement {
        let oldest = self.status.verified.iter().map(|verified| verified.at_us).min();
        let age = oldest.map(|at_us| self.made_us.saturating_sub(at_us).max(0) as f64 / 1e6);
        Requirement {
            name: "age of the oldest proof".into(),
            passed: age.is_some_and(|age| age <= PROOF_SECONDS_MAX),
            found: age.map_or_else(|| "there is none".into(), human_seconds),
            wanted: format!("at most {}", human_seconds(PROOF_SECONDS_MAX)),
            fix: "run `cutover verify` again".into(),
        }
    }
}

/// What `cutover verify` has judged.
fn gate(gate: &Gate) -> Requirement {
    let Gate { name, passed, found, wanted } = gate;
    let is_least = name == "match_rate";
    Requirement {
        name: name.replace('_', " "),
        passed: *passed,
        found: found.to_string(),
        wanted: format!("{} {wanted}", if is_least { "at least" } else { "at most" }),
        fix: "`cutover verify` names the rows; correct them, or run it with --repair".into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::state::verifications::VerifiedTable;

    const HOUR: i64 = 3_600_000_000;

    /// A migration of two tables that can go.
    pub(in crate::cli::report) fn ready() -> Facts {
        let status = serde_json::json!({
            "phase": "following", "synced": true, "lag_seconds": 0.4, "tables": [], "waiting": 0, "dead_letters": 0,
            "dead_letters_discarded": 0, "drift_rows": 0, "worker_running": true, "appliers": [], "retrying": {},
            "copied_rows_per_second": 0.0, "changes_per_second": 12.0, "conflicts": 0,
        });
        let mut status: Status = serde_json::from_value(status).expect("a status");
        let verified = |table: &str| VerifiedTable {
            table: table.into(),
            rows: 10,
            missing: 0,
            extra: 0,
            different: 0,
            is_clean: true,
            at_us: 5 * HOUR,
        };
        status.verified = vec![verified("carts"), verified("a|b <i>")];
        let copy = |table: &str| CopyTimes {
            table: table.into(),
            copy: 1,
            state: CopyState::Copied,
            rows_copied: 7_200,
            started_us: Some(HOUR),
            finished_us: Some(2 * HOUR),
        };
        let mut lag = LagHistory::default();
        for step in 0..100_i64 {
            lag.add(HOUR + step * 10_000_000, 1.0 + (step % 7) as f64, step.cast_unsigned() * 500);
        }
        let gate = Gate { name: "match_rate".into(), passed: true, found: 1.0, wanted: 0.999 };
        Facts {
            pipeline: "cart".into(),
            source: place("mysql://u:secret@old.example:3306/shop?x=1"),
            target: place("postgresql://u:secret@new.example/shop"),
            made_us: 6 * HOUR,
            status,
            copies: vec![copy("carts"), copy("a|b <i>")],
            lag,
            letters: Vec::new(),
            verdict: Some(NotedVerdict { at_us: 5 * HOUR, gates: vec![gate] }),
            told: vec![Told { at: "1970-01-01 01:00:00".into(), what: Milestone::Waiting(3) }],
        }
    }

    fn missed(facts: &Facts) -> Vec<String> {
        assert_eq!(facts.goes(), facts.requirements().iter().all(|requirement| requirement.passed));
        let missed = facts.requirements().into_iter().filter(|requirement| !requirement.passed);
        missed.map(|requirement| requirement.name).collect()
    }

    #[test]
    fn a_migration_goes_when_nothing_is_missed() {
        assert_eq!(missed(&ready()), [""; 0]);
        assert_eq!(ready().source, "mysql://old.example:3306/shop");
    }

    #[test]
    fn events_are_read_as_they_are_told() {
        use crate::{
            model::Problem,
            observe::{Event, StartedTable},
        };
        let body = |event: Event| event.body("cart", 5).expect("it can be written");
        let started = vec![StartedTable { table: "carts".into(), copy: 2 }];
        let read = [
            Event::PhaseChanged { from: None, to: "copying".into(), halted: Some(Problem::new("why", "do")) },
            Event::SnapshotStarted { tables: started },
            Event::VerificationResult {
                clean: false,
                match_rate: 0.5,
                rows_repaired: 3,
                duration_seconds: 1.5,
                tables: Vec::new(),
            },
            Event::RowsWaiting { rows: 4, oldest_seconds: 1.0, reasons: Vec::new() },
        ]
        .map(|event| format!("{:?}", Milestone::read(&body(event))));
        assert_eq!(
            read,
            [
                "Some(Phase(Phased { to: \"copying\", halted: Some(Halted { reason: \"why\" }) }))",
                "Some(CopyBegan([Started { table: \"carts\", copy: 2 }]))",
                "Some(Verified(Compared { clean: false, match_rate: 0.5, rows_repaired: 3 }))",
                "Some(Waiting(4))",
            ]
        );
    }

    #[test]
    fn whatever_is_missed_is_named() {
        let of = |change: &dyn Fn(&mut Facts)| {
            let mut facts = ready();
            change(&mut facts);
            missed(&facts).join(", ")
        };
        assert_eq!(of(&|facts| facts.status.worker_running = false), "worker");
        assert_eq!(of(&|facts| facts.status.lag_seconds = Some(31.0)), "lag");
        assert_eq!(of(&|facts| facts.status.lag_seconds = None), "lag");
        assert_eq!(of(&|facts| facts.status.waiting = 1), "rows that wait");
        assert_eq!(of(&|facts| facts.status.dead_letters = 1), "open dead letters");
        assert_eq!(of(&|facts| facts.status.phase = Phase::Copying), "tables are copied");
        assert_eq!(of(&|facts| facts.status.verified[1].is_clean = false), "tables that are proven equal");
        assert_eq!(of(&|facts| drop(facts.status.verified.pop())), "tables that are proven equal");
        assert_eq!(of(&|facts| facts.copies[0].finished_us = Some(6 * HOUR)), "tables that are proven equal");
        assert_eq!(of(&|facts| facts.made_us = 30 * HOUR), "age of the oldest proof");
        assert_eq!(of(&|facts| facts.verdict.as_mut().expect("one").gates[0].passed = false), "match rate");
        assert_eq!(of(&|facts| facts.copies.clear()), "tables are copied, tables that are proven equal");
    }
}
