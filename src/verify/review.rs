//! What is said of rows that differ for good, with what people have said of them before.
//!
//! What enters is rows that the confirmer has settled; what leaves is the verdict's counts, and rows to be reviewed by
//! hand. **Invariant**: a row is accepted for as long as it differs in the way in which it was accepted, and then it is
//! neither drift nor repaired. A row leaves the review only if it was looked at and does not differ.

use std::collections::{BTreeMap, HashMap};

use super::{
    Ask, Verifier, VerifyError,
    confirm::Confirmer,
    doubts::{Open, Repair},
    verdict::{Drift, TableVerdict},
};
use crate::{
    log::envelope::key_values,
    model::{Plan, Value, Version},
    state::{
        drift::{DRIFT_ROWS_MAX, DriftKey, DriftKind, DriftRow, DriftState, FoundDrift, KnownDrift},
        verifications::Parked,
    },
    target::{Difference, Doubt},
};

/// Drifted rows of a table that are kept for a repair; more are left to another run.
const REPAIRS_MAX: usize = 100_000;

/// What is said of an extra row that a repair cannot delete.
const ALONE: &str = "its key does not lead back to the source: if it is not wanted, delete it by hand";
/// What is said of a row whose dead letter somebody has closed.
const DISCARDED: &str = "its dead letter was discarded; `cutover verify --repair` sends the row again";
/// What is kept of a row that the target refuses, whose own words may have values of the row in them.
const REFUSED: &str = "it cannot be made: the target refuses it; `cutover verify --values` shows its words";

/// What is known of the rows of a table that drifted before.
pub(super) struct Reviewed {
    known: HashMap<DriftKey, KnownDrift>,
    /// Those that are looked for, and were not found to differ so far; with the source row's key, if that is what is
    /// looked at.
    unmet: BTreeMap<DriftKey, Option<String>>,
    /// How many more may be kept.
    room: usize,
    /// What a target says of a row may be shown, and is not to be kept.
    values: bool,
}

impl Reviewed {
    pub async fn of(verifier: &Verifier, table: &str, ask: &Ask) -> Result<Self, VerifyError> {
        let mut known = verifier.store.known_drift(table).await?;
        // Who asks for a row wants to know how it differs, accepted or not.
        for row in ask.rows.iter().flatten().filter(|row| row.table == table) {
            if let Some(known) = known.get_mut(&row.drift_key()) {
                known.state = DriftState::Open;
            }
        }
        let mut reviewed = Reviewed { known, unmet: BTreeMap::new(), room: 0, values: ask.values };
        reviewed.begin_again();
        Ok(reviewed)
    }

    /// Every row is looked at anew.
    pub fn begin_again(&mut self) {
        self.unmet = self.known.keys().map(|row| (row.clone(), None)).collect();
        self.room = DRIFT_ROWS_MAX.saturating_sub(self.known.len());
    }

    /// These rows alone are looked at, by the keys of their source rows.
    pub fn look_for(&mut self, rows: impl IntoIterator<Item = (DriftKey, Option<String>)>) {
        self.unmet = rows.into_iter().collect();
    }

    /// The row cannot be called equal.
    pub fn meet(&mut self, row: &DriftKey) {
        self.unmet.remove(row);
    }

    /// The source's row cannot be made, so that nobody can say what should be there.
    fn meet_source(&mut self, source_key: &str) {
        self.unmet.retain(|_, source| source.as_deref() != Some(source_key));
    }

    /// Those that were looked at, and do not differ.
    pub fn equal(&self) -> Vec<DriftKey> {
        self.unmet.keys().cloned().collect()
    }

    fn accepts(&self, row: &DriftKey, digest: i64) -> bool {
        let known = self.known.get(row);
        known.is_some_and(|known| known.state == DriftState::Accepted && known.digest == digest)
    }

    /// Whether a row that drifted is kept: one that was before always is, and of others the first.
    fn keeps(&mut self, row: &DriftKey) -> bool {
        if self.known.contains_key(row) {
            return true;
        }
        let keeps = self.room > 0;
        self.room = self.room.saturating_sub(1);
        keeps
    }
}

impl Confirmer<'_> {
    /// Takes rows to be looked at that had drifted when they were noted; how many can be. Those whose key does not lead
    /// back to the source are told apart from others by a whole comparison alone.
    pub fn add_reviewed(&mut self, rows: &[DriftRow], plans: &[Plan]) -> Result<u64, VerifyError> {
        let mut taken: BTreeMap<DriftKey, Option<String>> = BTreeMap::new();
        let mut doubts = Vec::new();
        for row in rows.iter().filter(|row| row.table == self.schema.table.table) {
            let Some(source_key) = row.source_key.as_ref() else { continue };
            let Some(values) = key_values(&self.schema, source_key.as_bytes()) else { continue };
            // One that cannot be made is noted by the source's key.
            let key = if row.key == [Some(source_key.clone())] { Vec::new() } else { row.key.clone() };
            let makes =
                |plan: &Plan| plan.source.table == self.schema.table && plan.target.name.to_string() == row.target;
            for (plan, _) in plans.iter().enumerate().filter(|(_, plan)| makes(plan)) {
                taken.insert(row.drift_key(), Some(source_key.clone()));
                doubts.push(noted(plan, row.kind, key.clone(), values.clone()));
            }
        }
        let count = taken.len() as u64;
        self.reviewed.look_for(taken);
        self.add(doubts, &[])?;
        Ok(count)
    }

    /// Says of rows that differ for good whether that is known already.
    pub fn tell(&mut self, drifted: Vec<Open>, verdict: &mut TableVerdict) {
        for open in drifted {
            let explained = match open.parked {
                Some(Parked::Waits) => Some("it waits for another row"),
                Some(Parked::Dead) => Some("it is a dead letter; `cutover dlq list` shows it"),
                Some(Parked::Discarded) | None => None,
            };
            if let Some(why) = explained {
                verdict.explained += 1;
                self.show(open, "explained", Some(why.to_owned()), verdict);
                continue;
            }
            let target = self.targets.get(open.doubt.plan).cloned().unwrap_or_default();
            let key = open.drift_key(&target);
            if self.reviewed.accepts(&key, open.doubt.digest) {
                verdict.accepted += 1;
                self.reviewed.meet(&key);
                continue;
            }
            if verdict.repairs.len() < REPAIRS_MAX {
                verdict.repairs.extend(Repair::of(&open, &target));
            }
            let (count, kind) = match open.doubt.difference {
                Difference::Missing | Difference::Refused => (&mut verdict.missing, DriftKind::Missing),
                Difference::Extra => (&mut verdict.extra, DriftKind::Extra),
                Difference::Different => (&mut verdict.different, DriftKind::Different),
            };
            *count += 1;
            let reason = reason(&open);
            if self.reviewed.keeps(&key) {
                let has_words = open.doubt.difference == Difference::Refused && self.reviewed.values;
                let reason = if has_words { Some(REFUSED.to_owned()) } else { reason.clone() };
                verdict.found.push(FoundDrift {
                    target: key.target,
                    key: key.key,
                    source_key: open.key_text(),
                    kind,
                    columns: open.doubt.columns.clone(),
                    digest: open.doubt.digest,
                    reason,
                });
            }
            self.show(open, kind.name(), reason, verdict);
        }
    }

    /// Shows a row that cannot be called equal.
    pub fn show(&mut self, open: Open, kind: &str, reason: Option<String>, verdict: &mut TableVerdict) {
        let target = self.targets.get(open.doubt.plan).cloned().unwrap_or_default();
        self.reviewed.meet(&open.drift_key(&target));
        if let (Difference::Refused, Some(source_key)) = (open.doubt.difference, open.key_text()) {
            self.reviewed.meet_source(&source_key);
        }
        let Doubt { key, columns, values, .. } = open.doubt;
        verdict.show(Drift { target, kind: kind.to_owned(), key, columns, values, reason });
    }
}

/// Why a row has drifted, where that is known.
fn reason(open: &Open) -> Option<String> {
    if open.parked == Some(Parked::Discarded) {
        return Some(DISCARDED.to_owned());
    }
    let reason = open.doubt.reason.clone();
    match open.doubt.difference {
        Difference::Missing | Difference::Different => reason,
        Difference::Refused => reason.map(|reason| format!("it cannot be made: {reason}")),
        Difference::Extra => reason.or(open.source.is_none().then(|| ALONE.to_owned())),
    }
}

/// A doubt about a row that is noted: nothing is said of it but where it is.
fn noted(plan: usize, kind: DriftKind, key: Vec<Option<String>>, source_key: Vec<Value>) -> Doubt {
    let difference = match kind {
        DriftKind::Missing => Difference::Missing,
        DriftKind::Extra => Difference::Extra,
        DriftKind::Different => Difference::Different,
    };
    Doubt {
        plan,
        difference,
        key,
        row: None,
        source_key: Some(source_key),
        columns: Vec::new(),
        values: Vec::new(),
        version: Version::MIN,
        digest: 0,
        reason: None,
    }
}
