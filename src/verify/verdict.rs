//! What a comparison says.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::doubts::Repair;
use crate::{
    observe::{Event, VerifiedTable as VerifiedEvent},
    state::{
        drift::{DriftKey, FoundDrift},
        verifications::{Gate, NotedVerdict, VerifiedTable},
    },
    target::Difference,
};

/// Drifted rows of a table that are shown one by one.
const SHOWN_MAX: usize = 100;

/// What comparing the tables gave: `verify --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Every row of every table was compared, and is equal or was accepted as it is.
    pub clean: bool,
    /// The share of rows that did not drift, 0 to 1.
    pub match_rate: f64,
    pub tables: Vec<TableVerdict>,
    /// What a switch asks for.
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// What keeps it from being clean besides the tables; null otherwise.
    pub caveat: Option<String>,
}

/// What comparing one source table gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableVerdict {
    /// The source table, as the configuration names it.
    pub table: String,
    /// Rows of the source that were compared.
    pub rows: u64,
    /// Those of them that are in chunks which are the same on both sides as when they were found equal.
    #[serde(default)]
    pub unchanged: u64,
    /// Those of them that were not compared one by one, because both sides make one digest of their chunk.
    #[serde(default)]
    pub digested: u64,
    pub missing: u64,
    pub extra: u64,
    pub different: u64,
    /// Rows that differ because they wait, or are dead letters.
    pub explained: u64,
    /// Rows that differ, and whose changes may still be on their way.
    pub unconfirmed: u64,
    /// Rows that changed each time that they were looked at, so that nothing is proven of them.
    pub moving: u64,
    /// Rows of the target that several rows of the source make.
    #[serde(default)]
    pub shared: u64,
    /// Rows that drifted in a way that somebody has accepted: they are no drift.
    #[serde(default)]
    pub accepted: u64,
    /// Rows that had drifted, and were found equal when they had been sent again.
    #[serde(default)]
    pub repaired: u64,
    /// Rows that could not be called equal, the first of them.
    pub drift: Vec<Drift>,
    /// Drifted rows that a repair can send again.
    #[serde(skip)]
    pub repairs: Vec<Repair>,
    /// Drifted rows to be reviewed, a bounded number of them.
    #[serde(skip)]
    pub found: Vec<FoundDrift>,
    /// Rows that were to be reviewed, and do not differ any more.
    #[serde(skip)]
    pub equal: Vec<DriftKey>,
    /// Why the table was not compared; null if it was.
    pub skipped: Option<String>,
}

/// A row that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// The target table; of a round trip the source's.
    pub target: String,
    /// `missing`, `extra`, `different`; or `explained`, `unconfirmed`, `moving`, `shared`, which are no drift.
    pub kind: String,
    /// Its key, by column.
    pub key: Vec<Option<String>>,
    pub columns: Vec<String>,
    /// What it should be and what it is, by column, if that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<(Option<String>, Option<String>)>,
    /// Why, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl TableVerdict {
    pub(super) fn new(table: &str) -> Self {
        TableVerdict {
            table: table.to_owned(),
            rows: 0,
            unchanged: 0,
            digested: 0,
            missing: 0,
            extra: 0,
            different: 0,
            explained: 0,
            unconfirmed: 0,
            moving: 0,
            shared: 0,
            accepted: 0,
            repaired: 0,
            drift: Vec::new(),
            repairs: Vec::new(),
            found: Vec::new(),
            equal: Vec::new(),
            skipped: None,
        }
    }

    /// Rows that drifted.
    pub fn drifted(&self) -> u64 {
        self.missing + self.extra + self.different
    }

    /// Rows that did not drift, and cannot be called equal.
    pub fn unproven(&self) -> u64 {
        self.explained + self.unconfirmed + self.moving + self.shared
    }

    /// Rows that cannot be called equal.
    pub(super) fn unequal(&self) -> u64 {
        self.drifted() + self.unproven()
    }

    /// Compared as a whole, and equal, but for rows that were accepted.
    pub fn is_clean(&self) -> bool {
        self.unequal() == 0 && self.skipped.is_none()
    }

    /// What is kept of it: found at this time, µs since the Unix epoch.
    pub fn noted(&self, at_us: i64) -> VerifiedTable {
        VerifiedTable {
            table: self.table.clone(),
            rows: self.rows,
            missing: self.missing,
            extra: self.extra,
            different: self.different,
            is_clean: self.is_clean(),
            at_us,
        }
    }

    /// What these rows were counted as does not count any more: they are looked at again.
    pub(super) fn begin_again(&mut self, repairs: &[Repair]) {
        for repair in repairs {
            let count = match repair.difference() {
                Difference::Missing | Difference::Refused => &mut self.missing,
                Difference::Extra => &mut self.extra,
                Difference::Different => &mut self.different,
            };
            *count = count.saturating_sub(1);
            self.drift.retain(|drift| !repair.is(drift));
        }
    }

    pub(super) fn show(&mut self, drift: Drift) {
        if self.drift.len() < SHOWN_MAX {
            self.drift.push(drift);
        }
    }
}

impl Verdict {
    pub(super) fn of(tables: Vec<TableVerdict>) -> Self {
        // A comparison of nothing proves nothing. A table that is empty on both sides is equal.
        let clean = !tables.is_empty() && tables.iter().all(TableVerdict::is_clean);
        let (drifted, rows) = tables
            .iter()
            .fold((0, 0), |(drifted, rows), table| (drifted + table.drifted(), rows + table.rows + table.extra));
        let match_rate =
            if rows == 0 { f64::from(u8::from(clean)) } else { 1.0 - (drifted.min(rows) as f64 / rows as f64) };
        Verdict { clean, match_rate, tables, gates: Vec::new(), caveat: None }
    }

    /// The same, with what a switch asks for: this match rate, this difference of the numbers of rows, as a share, and
    /// no row without the parent that a foreign key asks for.
    #[must_use]
    pub fn gated(mut self, match_min: f64, count_difference_max: f64, orphans: Vec<(String, u64)>) -> Self {
        let difference = |table: &TableVerdict| {
            let there = (table.rows + table.extra).saturating_sub(table.missing);
            table.rows.abs_diff(there) as f64 / table.rows.max(there).max(1) as f64
        };
        let most = self.tables.iter().map(difference).fold(0.0, f64::max);
        let gate = |name: &str, passed, found, wanted| Gate { name: name.to_owned(), passed, found, wanted };
        let unproven = |table: &TableVerdict| table.unproven() + u64::from(table.skipped.is_some());
        let unproven: u64 = self.tables.iter().map(unproven).sum::<u64>() + u64::from(self.caveat.is_some());
        self.gates.push(gate("unproven", unproven == 0, unproven as f64, 0.0));
        self.gates.push(gate("match_rate", self.match_rate >= match_min, self.match_rate, match_min));
        self.gates.push(gate("count_difference", most <= count_difference_max, most, count_difference_max));
        for (key, rows) in orphans {
            self.gates.push(gate(&format!("foreign_key {key}"), rows == 0, rows as f64, 0.0));
        }
        self
    }

    /// The same, and not clean.
    #[must_use]
    pub fn but(mut self, caveat: String) -> Self {
        self.clean = false;
        self.caveat = Some(caveat);
        self
    }

    /// The same as an event.
    pub fn event(&self, duration_seconds: f64) -> Event {
        let told = |table: &TableVerdict| VerifiedEvent {
            table: table.table.clone(),
            rows: table.rows,
            missing: table.missing,
            extra: table.extra,
            different: table.different,
        };
        Event::VerificationResult {
            clean: self.clean,
            match_rate: self.match_rate,
            rows_repaired: self.tables.iter().map(|table| table.repaired).sum(),
            duration_seconds: (duration_seconds * 1000.0).round() / 1000.0,
            tables: self.tables.iter().map(told).collect(),
        }
    }

    /// What is kept of it besides the tables: found at this time, µs since the Unix epoch.
    pub fn noted(&self, at_us: i64) -> NotedVerdict {
        NotedVerdict { at_us, gates: self.gates.clone() }
    }

    /// Rows that drifted, over all tables.
    pub fn drifted(&self) -> u64 {
        self.tables.iter().map(TableVerdict::drifted).sum()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.tables.iter().map(|table| table.table.len()).max().unwrap_or(0).max(5);
        let mut text = String::new();
        let head = ["rows", "missing", "extra", "different", "explained"];
        let _ = write!(text, "{:<width$}", "table");
        head.iter().for_each(|name| _ = write!(text, "{name:>12}"));
        for table in &self.tables {
            let _ = write!(text, "\n{:<width$}", table.table);
            for count in [table.rows, table.missing, table.extra, table.different, table.explained] {
                let _ = write!(text, "{count:>12}");
            }
            if let Some(why) = &table.skipped {
                let _ = write!(text, "  not compared: {why}");
            }
            let remarks = [
                (
                    table.unconfirmed,
                    "differ whose changes may still be on their way; verify again when the worker has caught up",
                ),
                (
                    table.unchanged,
                    "have not changed on either side since they were compared, by the digests of their chunks",
                ),
                (table.digested, "are equal by the digests that both servers make of their chunks"),
                (table.repaired, "repaired"),
                (table.moving, "changed each time that they were looked at: nothing is proven of them"),
                (table.shared, "are made by several rows of the source each"),
                (table.accepted, "differ, and are accepted by review"),
            ];
            for (rows, remark) in remarks.iter().filter(|(rows, _)| *rows > 0) {
                let _ = write!(text, "\n  {rows} rows {remark}");
            }
            for drift in &table.drift {
                let _ = write!(text, "\n  {drift}");
            }
            let (shown, all) = (table.drift.len() as u64, table.unequal());
            if all > shown {
                let _ = write!(text, "\n  and {} more", all - shown);
            }
        }
        let _ = write!(text, "\n\n{}", self.summary());
        f.write_str(&text)
    }
}

impl Verdict {
    fn summary(&self) -> String {
        let rows: u64 = self.tables.iter().map(|table| table.rows).sum();
        let accepted: u64 = self.tables.iter().map(|table| table.accepted).sum();
        let said = match (self.clean, self.drifted()) {
            (true, _) if accepted > 0 => {
                format!("clean: {rows} rows compared, all equal but {accepted} that are accepted by review")
            }
            (true, _) => format!("clean: {rows} rows compared, all equal"),
            (false, 0) => format!("not proven: {rows} rows compared, none drifted, and not all could be called equal"),
            (false, drifted) => format!("drift: {drifted} of {rows} rows, match rate {:.6}", self.match_rate),
        };
        let gates = self.gates.iter().filter(|gate| !gate.passed);
        let gates =
            gates.map(|gate| format!("\ngate not passed: {} is {}, wanted {}", gate.name, gate.found, gate.wanted));
        let caveat = self.caveat.iter().map(|caveat| format!("\n{caveat}"));
        std::iter::once(said).chain(gates).chain(caveat).collect()
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<&str> = self.key.iter().map(|part| part.as_deref().unwrap_or("null")).collect();
        write!(f, "{} {} ({})", self.kind, self.target, key.join(", "))?;
        for (place, column) in self.columns.iter().enumerate() {
            write!(f, "{} {column}", if place == 0 { ":" } else { "," })?;
            if let Some((ours, theirs)) = self.values.get(place) {
                let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "null".into());
                write!(f, " should be {} and is {}", text(ours), text(theirs))?;
            }
        }
        match &self.reason {
            Some(reason) => write!(f, "; {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_compared_is_not_clean_and_empty_tables_are_equal() {
        assert!(!Verdict::of(Vec::new()).clean);
        assert!(Verdict::of(vec![TableVerdict::new("t")]).clean);
        let skipped = TableVerdict { skipped: Some("why".into()), ..TableVerdict::new("t") };
        assert!(!Verdict::of(vec![TableVerdict::new("a"), skipped]).clean);
        let explained = TableVerdict { rows: 5, explained: 1, ..TableVerdict::new("t") };
        let verdict = Verdict::of(vec![explained]);
        assert!(!verdict.clean && verdict.drifted() == 0);
        assert!(!Verdict::of(vec![TableVerdict::new("t")]).but("the transforms changed".into()).clean);
    }

    #[test]
    fn rows_that_moved_each_time_and_rows_that_several_make_are_not_clean() {
        let moving = TableVerdict { rows: 5, moving: 2, ..TableVerdict::new("a") };
        let shared = TableVerdict { rows: 5, shared: 1, ..TableVerdict::new("b") };
        for table in [moving, shared] {
            assert!(!table.is_clean() && !table.noted(0).is_clean);
            let verdict = Verdict::of(vec![table.clone()]).gated(0.999, 0.01, Vec::new());
            assert!(!verdict.clean && verdict.drifted() == 0);
            assert_eq!((verdict.gates[0].passed, verdict.gates[0].found), (false, table.unproven() as f64));
            assert!(verdict.to_string().contains("not proven"), "{verdict}");
        }
    }

    #[test]
    fn rows_that_were_accepted_are_no_drift_and_are_told() {
        let table = TableVerdict { rows: 10, accepted: 2, ..TableVerdict::new("t") };
        let verdict = Verdict::of(vec![table]).gated(0.999, 0.01, Vec::new());
        assert!(verdict.clean && verdict.drifted() == 0 && verdict.gates.iter().all(|gate| gate.passed));
        assert!((verdict.match_rate - 1.0).abs() < 1e-9);
        let said = verdict.to_string();
        assert!(said.contains("2 rows differ, and are accepted by review"), "{said}");
        assert!(said.contains("all equal but 2 that are accepted"), "{said}");
    }

    #[test]
    fn gates_say_what_was_found_and_what_was_wanted() {
        let table = TableVerdict { rows: 1000, missing: 20, ..TableVerdict::new("t") };
        let verdict =
            Verdict::of(vec![table]).gated(0.999, 0.01, vec![("a_fk of public.a".into(), 3), ("b".into(), 0)]);
        let passed: Vec<bool> = verdict.gates.iter().map(|gate| gate.passed).collect();
        assert_eq!(passed, [true, false, false, false, true]);
        assert!((verdict.gates[2].found - 0.02).abs() < 1e-9);
        assert!(verdict.to_string().contains("gate not passed: foreign_key a_fk of public.a is 3, wanted 0"));
    }

    #[test]
    fn the_match_rate_counts_rows_of_both_sides() {
        let table = TableVerdict { rows: 8, missing: 1, extra: 2, different: 1, ..TableVerdict::new("t") };
        assert!((Verdict::of(vec![table]).match_rate - 0.6).abs() < 1e-9);
    }
}
