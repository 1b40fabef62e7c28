//! Named invariants: what must hold at every moment, asked where it could first be seen to break.
//!
//! In tests and simulations a violation is a panic; in production it is counted and logged, and the pipeline goes on:
//! the merge by version forgives much, and an operator decides.

use std::sync::atomic::{AtomicBool, Ordering};

use super::metric;

/// Something that must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// Along a source's log every change has a higher version than the one before.
    VersionsIncrease,
    /// A control record's clock is at least the version of every change before it.
    ControlCoversChanges,
    /// What capture has made durable never moves back.
    CapturedGrows,
    /// A chunk's watermark is one that capture has reached, and not older than the copy.
    WatermarkIsCaptured,
    /// The batches of a partition follow each other without a gap.
    BatchesAreContiguous,
    /// The stored offset of the snapshot topic only grows.
    SnapshotOffsetGrows,
}

impl Invariant {
    pub const ALL: [Invariant; 6] = [
        Invariant::VersionsIncrease,
        Invariant::ControlCoversChanges,
        Invariant::CapturedGrows,
        Invariant::WatermarkIsCaptured,
        Invariant::BatchesAreContiguous,
        Invariant::SnapshotOffsetGrows,
    ];

    /// Its name as metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Invariant::VersionsIncrease => "versions_increase",
            Invariant::ControlCoversChanges => "control_covers_changes",
            Invariant::CapturedGrows => "captured_grows",
            Invariant::WatermarkIsCaptured => "watermark_is_captured",
            Invariant::BatchesAreContiguous => "batches_are_contiguous",
            Invariant::SnapshotOffsetGrows => "snapshot_offset_grows",
        }
    }

    /// Takes note if it does not hold. `what` says where, without any row's values.
    pub fn hold(self, holds: bool, what: impl FnOnce() -> String) {
        if holds {
            return;
        }
        let (invariant, what) = (self.name(), what());
        metrics::counter!(metric::INVARIANT_VIOLATIONS, "invariant" => invariant).increment(1);
        tracing::error!(
            invariant,
            what,
            "an invariant does not hold: this is a defect of cutover, report it with this message"
        );
        assert!(!PANICS.load(Ordering::Relaxed), "invariant {invariant}: {what}");
    }
}

static PANICS: AtomicBool = AtomicBool::new(cfg!(debug_assertions));

/// From now on a violation is a panic, in a release build too.
pub fn panic_on_violation() {
    PANICS.store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "invariant versions_increase: 5 after 7")]
    fn a_violation_is_a_panic_in_tests() {
        Invariant::VersionsIncrease.hold(true, || "fine".into());
        Invariant::VersionsIncrease.hold(false, || "5 after 7".into());
    }
}
