//! Transactions that capture has met, and reads may not see yet (rule 14).
//!
//! PostgreSQL sends a transaction as soon as its commit record is in the log, and shows it to other sessions a little
//! later: with a synchronous standby that is missing, as late as the standby comes back. What enters: the transactions
//! that capture meets, in the order of their commits, each with the clock before its first change. What leaves: for a
//! snapshot that a read has taken, the version that its rows may be labelled with. Invariant: a label is below the
//! first version of every captured transaction that the read does not see. Deliberately absent: any IO.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use crate::model::{Lsn, Version};

/// What one read sees: `pg_current_snapshot()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgSnapshot {
    xmin: u64,
    xmax: u64,
    running: BTreeSet<u64>,
}

impl PgSnapshot {
    /// Reads `xmin:xmax:xip,xip,…`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let (xmin, xmax) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let running = fields.next()?.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok());
        let snapshot = PgSnapshot { xmin, xmax, running: running.collect::<Option<_>>()? };
        (fields.next().is_none() && xmin <= xmax).then_some(snapshot)
    }

    /// Whether the transaction had ended when the snapshot was taken.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }

    /// Whether the transaction that the log calls by its low 32 bits had ended.
    pub fn has_seen(&self, xid: u32) -> bool {
        self.sees(self.full(xid))
    }

    /// The full number of a transaction that the log calls by its low 32 bits: the one closest to now.
    fn full(&self, xid: u32) -> u64 {
        const EPOCH: u64 = 1 << 32;
        let candidate = self.xmax & !(EPOCH - 1) | u64::from(xid);
        if candidate > self.xmax + EPOCH / 2 {
            candidate.saturating_sub(EPOCH)
        } else if candidate + EPOCH / 2 < self.xmax {
            candidate + EPOCH
        } else {
            candidate
        }
    }
}

/// A transaction that capture has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Met {
    xid: u32,
    /// The end of its commit record.
    end: Lsn,
    /// The clock before its first change.
    before: Version,
}

/// The transactions of one source, shared by its capture and its reads.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By commit.
    met: VecDeque<Met>,
    /// Transactions that ran when capture was opened: an earlier capture may have met them.
    doubtful: BTreeSet<u64>,
}

/// What was known before a read took its snapshot.
#[derive(Debug)]
pub struct Ticket {
    met: Vec<Met>,
    doubtful: BTreeSet<u64>,
}

/// What a read's rows may be labelled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// With the version that capture had.
    Everything,
    /// With this version at most.
    UpTo(Version),
    /// With none: this transaction, which may have been captured at any time, has not ended.
    NotYet(u64),
}

impl InFlight {
    /// Capture begins: it may have met everything that `snapshot` does not see of what had begun before `next`.
    pub fn begin(&self, snapshot: &PgSnapshot, next: u64) {
        let mut state = self.state();
        state.met.clear();
        let begun = snapshot.running.iter().copied().chain(snapshot.xmax..next);
        state.doubtful = begun.collect();
    }

    /// Capture has met a transaction with changes.
    pub fn met(&self, xid: u32, end: Lsn, before: Version) {
        let mut state = self.state();
        // What comes now has not come before.
        state.doubtful.retain(|doubtful| *doubtful & 0xffff_ffff != u64::from(xid));
        state.met.push_back(Met { xid, end, before });
    }

    /// How many transactions are remembered.
    pub fn len(&self) -> usize {
        self.state().met.len()
    }

    /// What is known of the transactions up to `captured`. To be had before the snapshot is taken.
    pub fn ticket(&self, captured: Lsn) -> Ticket {
        let state = self.state();
        let met = state.met.iter().take_while(|met| met.end <= captured).copied().collect();
        Ticket { met, doubtful: state.doubtful.clone() }
    }

    /// Forgets what a snapshot sees: every later one will.
    pub fn forget(&self, ticket: &Ticket, snapshot: &PgSnapshot) {
        let mut state = self.state();
        state.doubtful.retain(|xid| !snapshot.sees(*xid));
        let Some(last) = ticket.met.last().map(|met| met.end) else { return };
        state.met.retain(|met| met.end > last || !snapshot.has_seen(met.xid));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// What rows read with this snapshot, which was taken after the ticket, may be labelled with.
    pub fn judge(&self, snapshot: &PgSnapshot) -> Visibility {
        if let Some(xid) = self.doubtful.iter().find(|xid| !snapshot.sees(**xid)) {
            return Visibility::NotYet(*xid);
        }
        let hidden = self.met.iter().find(|met| !snapshot.has_seen(met.xid));
        hidden.map_or(Visibility::Everything, |met| Visibility::UpTo(met.before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> PgSnapshot {
        PgSnapshot::parse(text).expect("valid")
    }

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let taken = snapshot("10:20:12,15");
        assert!([9, 10, 11, 19].iter().all(|xid| taken.sees(*xid)));
        assert!([12, 15, 20, 21].iter().all(|xid| !taken.sees(*xid)));
        for text in ["", "1", "1:2", "2:1:", "1:2:x", "1:2:3:4"] {
            assert_eq!(PgSnapshot::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_transactions_low_bits_stand_for_the_number_closest_to_now() {
        let late = snapshot(&format!("{0}:{0}:", (5_u64 << 32) + 10));
        assert_eq!(late.full(9), (5 << 32) + 9);
        assert_eq!(late.full(u32::MAX), (5 << 32) - 1);
        let early = snapshot(&format!("{0}:{0}:", (5_u64 << 32) - 10));
        assert_eq!(early.full(3), (5 << 32) + 3, "a transaction that began after the snapshot");
    }

    #[test]
    fn a_label_precedes_the_first_captured_transaction_that_is_not_seen() {
        let in_flight = InFlight::default();
        in_flight.begin(&snapshot("100:100:"), 100);
        for (xid, end, before) in [(101, 1000, 50), (103, 1100, 60), (102, 1200, 70)] {
            in_flight.met(xid, Lsn(end), before);
        }
        assert_eq!(in_flight.ticket(Lsn(1200)).judge(&snapshot("104:104:")), Visibility::Everything);
        assert_eq!(in_flight.ticket(Lsn(1200)).judge(&snapshot("102:104:102")), Visibility::UpTo(70));
        assert_eq!(in_flight.ticket(Lsn(1200)).judge(&snapshot("102:104:102,103")), Visibility::UpTo(60));
        assert_eq!(
            in_flight.ticket(Lsn(1100)).judge(&snapshot("102:104:102")),
            Visibility::Everything,
            "102 was not captured yet"
        );
    }

    #[test]
    fn what_ran_when_capture_began_is_waited_for_unless_it_comes() {
        let in_flight = InFlight::default();
        in_flight.begin(&snapshot("90:95:90"), 97);
        assert_eq!(in_flight.ticket(Lsn(0)).judge(&snapshot("90:98:90")), Visibility::NotYet(90));
        assert_eq!(
            in_flight.ticket(Lsn(0)).judge(&snapshot("96:98:96")),
            Visibility::NotYet(96),
            "a number given out, not yet listed"
        );
        in_flight.met(90, Lsn(10), 5);
        in_flight.met(96, Lsn(20), 6);
        assert_eq!(in_flight.ticket(Lsn(20)).judge(&snapshot("90:98:90")), Visibility::UpTo(5));
        assert_eq!(in_flight.ticket(Lsn(5)).judge(&snapshot("95:98:95")), Visibility::NotYet(95));
        let ticket = in_flight.ticket(Lsn(5));
        in_flight.forget(&ticket, &snapshot("98:98:"));
        assert_eq!(in_flight.ticket(Lsn(5)).judge(&snapshot("98:98:")), Visibility::Everything);
    }

    #[test]
    fn only_what_every_later_read_sees_is_forgotten() {
        let in_flight = InFlight::default();
        in_flight.met(1, Lsn(10), 1);
        in_flight.met(2, Lsn(20), 2);
        let ticket = in_flight.ticket(Lsn(20));
        in_flight.met(3, Lsn(30), 3);
        in_flight.forget(&ticket, &snapshot("2:4:2"));
        assert_eq!(in_flight.len(), 2, "2 is not seen, and 3 came after the ticket");
    }
}
