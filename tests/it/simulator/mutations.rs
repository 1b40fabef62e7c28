//! The rules of docs/rules.md, each broken on purpose, to show that a simulated run notices.

use super::chance::Fault;

/// One broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mutation {
    /// Rule 1: sinks of one lane write at the same time.
    NoLaneLock,
    /// Rule 1: live facts do not look at tombstones.
    NoTombstoneCheck,
    /// Rule 1: a delete leaves no tombstone.
    NoTombstones,
    /// An older row replaces a newer one.
    LiveIgnoresVersion,
    /// An older delete removes a newer row.
    DeadIgnoresVersion,
    /// Rule 2: all rows of a transaction have one version.
    ClockPerTransaction,
    /// Rule 2: a new log's clock does not start above the target's versions.
    ClockStartsLow,
    /// Rule 5: rows that trade a unique value are not removed before they are inserted.
    NoReplace,
    /// Rule 10: a TRUNCATE leaves no fence.
    NoTruncateFence,
    /// Rule 13: a chunk does not wait until what it is labelled with is visible.
    NoWatermarkWait,
    /// Rules 16 and 17: capture goes on past a gap.
    SkipGaps,
    /// Rule 17: a log that lost its tail is written to.
    NoTailCheck,
    /// Rule 17: with a log that is lost and a source that fails over, what the target has from beyond its position is
    /// taken for what the source has.
    BeyondForgotten,
    /// Rule 18: capture resumes where any partition is, not where all are.
    ResumeAtTheNewestPartition,
    /// Rule 18: readers are not told that a writer starts again.
    NoStartRecord,
    /// Rule 19: the offset is stored apart from the rows.
    OffsetOutsideTransaction,
    /// Rule 19: a batch is written from whatever offset and lease, a lane is taken back from a newer lease, and a
    /// worker does not learn that it lost its lease.
    OffsetUnchecked,
    /// Rule 22: tombstones are forgotten while tables are copied.
    TombstonesForgottenEarly,
    /// Rule 22: the leader forgets tombstones while a replay brings old rows again.
    TombstonesForgottenInReplay,
    /// A leader passes over a request, which is never answered.
    RequestPassedOver,
    /// Rule 23: a dead letter does not fence its key.
    NoDeadLetterFence,
    /// Rule 12: a table whose rows were rewritten is copied again from before that.
    RecopyTooEarly,
    /// Rule 17: a log that is lost before a position was stored does not have the copies made again.
    NoCopyWithoutPosition,
    /// A repeated copy does not look for what the source no longer has.
    NoSweep,
    /// Rule 38: a cascade that is followed while older rows may come is not followed once more.
    NoSecondLook,
    /// Rule 38: a cascade is followed before every lane has what came before it.
    CascadesFollowedEarly,
    /// Rule 38: what follows for children of children is not kept.
    CascadesEndAtChildren,
    /// Rule 39: a compare does not wait until the target has what the source's log had.
    VerifyDoesNotWait,
    /// Rule 39: a compare does not look for rows that no row of the source makes.
    VerifyForgetsExtras,
    /// Rule 39: the source's row is read again where what the target has may not be visible yet.
    VerifyTrustsStalePosition,
    /// Rule 39: a compare does not ask which rows wait or are dead letters.
    VerifyPassesOverParked,
    /// Rule 39: a digest of the target's rows is of their number alone.
    VerifyTrustsNumbers,
}

impl Mutation {
    pub const ALL: [Mutation; 32] = [
        Mutation::NoLaneLock,
        Mutation::NoTombstoneCheck,
        Mutation::NoTombstones,
        Mutation::LiveIgnoresVersion,
        Mutation::DeadIgnoresVersion,
        Mutation::ClockPerTransaction,
        Mutation::ClockStartsLow,
        Mutation::NoReplace,
        Mutation::NoTruncateFence,
        Mutation::NoWatermarkWait,
        Mutation::SkipGaps,
        Mutation::NoTailCheck,
        Mutation::BeyondForgotten,
        Mutation::ResumeAtTheNewestPartition,
        Mutation::NoStartRecord,
        Mutation::OffsetOutsideTransaction,
        Mutation::OffsetUnchecked,
        Mutation::TombstonesForgottenEarly,
        Mutation::TombstonesForgottenInReplay,
        Mutation::RequestPassedOver,
        Mutation::NoDeadLetterFence,
        Mutation::RecopyTooEarly,
        Mutation::NoCopyWithoutPosition,
        Mutation::NoSweep,
        Mutation::NoSecondLook,
        Mutation::CascadesFollowedEarly,
        Mutation::CascadesEndAtChildren,
        Mutation::VerifyDoesNotWait,
        Mutation::VerifyForgetsExtras,
        Mutation::VerifyTrustsStalePosition,
        Mutation::VerifyPassesOverParked,
        Mutation::VerifyTrustsNumbers,
    ];
}

impl Mutation {
    /// Whether it shows only where foreign keys act below the source's log; the others are played without such keys.
    pub fn is_of_cascades(self) -> bool {
        matches!(self, Self::NoSecondLook | Self::CascadesFollowedEarly | Self::CascadesEndAtChildren)
    }

    /// A seed with which a run noticed it when this was written.
    pub fn noticed_with(self) -> Option<u64> {
        Some(match self {
            Mutation::NoTombstoneCheck
            | Mutation::NoTombstones
            | Mutation::LiveIgnoresVersion
            | Mutation::ClockPerTransaction
            | Mutation::NoTruncateFence
            | Mutation::OffsetOutsideTransaction
            | Mutation::RequestPassedOver
            | Mutation::VerifyForgetsExtras
            | Mutation::VerifyTrustsNumbers => 0,
            Mutation::VerifyPassesOverParked => 3,
            Mutation::VerifyDoesNotWait => 4,
            Mutation::NoWatermarkWait => 6,
            Mutation::CascadesEndAtChildren => 7,
            Mutation::ClockStartsLow | Mutation::SkipGaps | Mutation::NoSweep => 11,
            Mutation::TombstonesForgottenEarly => 16,
            Mutation::OffsetUnchecked => 18,
            Mutation::DeadIgnoresVersion => 26,
            Mutation::TombstonesForgottenInReplay => 39,
            Mutation::BeyondForgotten => 58,
            Mutation::NoDeadLetterFence => 62,
            Mutation::VerifyTrustsStalePosition => 67,
            Mutation::NoLaneLock => 76,
            Mutation::NoSecondLook => 79,
            Mutation::CascadesFollowedEarly => 108,
            Mutation::ResumeAtTheNewestPartition => 122,
            Mutation::NoReplace => 354,
            Mutation::NoTailCheck => 1248,
            Mutation::NoStartRecord | Mutation::RecopyTooEarly | Mutation::NoCopyWithoutPosition => return None,
        })
    }

    /// Whether it shows only where somebody compares; the others are played without that.
    pub fn is_of_verify(self) -> bool {
        matches!(
            self,
            Self::VerifyDoesNotWait
                | Self::VerifyForgetsExtras
                | Self::VerifyTrustsStalePosition
                | Self::VerifyPassesOverParked
                | Self::VerifyTrustsNumbers
        )
    }

    /// The faults that show it, where it takes several that are rare: a test then plays runs of these alone. None
    /// stands for the runs that every test plays.
    pub fn shown_by(self) -> Vec<Fault> {
        match self {
            Mutation::NoTailCheck => vec![Fault::LogTailLost],
            Mutation::BeyondForgotten => vec![Fault::LogTailLost, Fault::LogLost, Fault::FailoverWithLoss],
            // A trade that is taken back, of rows that others refer to: the copy alone has both at once. Otherwise the
            // stream has one change after the other, or a sweep removes the rows.
            Mutation::NoReplace => vec![Fault::FailoverWithLoss],
            Mutation::TombstonesForgottenInReplay => vec![Fault::Replay, Fault::Slow],
            Mutation::RequestPassedOver => vec![Fault::Resnapshot],
            Mutation::NoDeadLetterFence => vec![Fault::Resnapshot, Fault::Slow],
            Mutation::NoCopyWithoutPosition => vec![Fault::LogLost, Fault::Slow],
            Mutation::ResumeAtTheNewestPartition => vec![Fault::LogRefuses, Fault::Kill],
            Mutation::NoStartRecord => vec![Fault::LogRefuses, Fault::FailoverWithLoss],
            Mutation::OffsetUnchecked => vec![Fault::Zombie],
            Mutation::RecopyTooEarly => vec![Fault::Alter, Fault::LogRefuses],
            Mutation::NoWatermarkWait => vec![Fault::Resnapshot, Fault::Slow],
            // A lane that stands still has what came before the cascade after it is followed.
            Mutation::CascadesFollowedEarly => vec![Fault::Slow],
            Mutation::NoTruncateFence => vec![Fault::Truncate, Fault::Resnapshot, Fault::Slow],
            Mutation::NoLaneLock
            | Mutation::NoTombstoneCheck
            | Mutation::NoTombstones
            | Mutation::LiveIgnoresVersion
            | Mutation::DeadIgnoresVersion
            | Mutation::ClockPerTransaction
            | Mutation::ClockStartsLow
            | Mutation::SkipGaps
            | Mutation::OffsetOutsideTransaction
            | Mutation::TombstonesForgottenEarly
            | Mutation::NoSweep
            | Mutation::NoSecondLook
            | Mutation::CascadesEndAtChildren
            | Mutation::VerifyDoesNotWait
            | Mutation::VerifyForgetsExtras
            | Mutation::VerifyTrustsStalePosition
            | Mutation::VerifyPassesOverParked
            | Mutation::VerifyTrustsNumbers => Vec::new(),
        }
    }
}

impl std::str::FromStr for Mutation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = |mutation: &Mutation| format!("{mutation:?}") == name;
        Mutation::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| format!("`{name}` is no mutation; they are {:?}", Mutation::ALL))
    }
}
