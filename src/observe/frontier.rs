//! How far each side has got.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant},
};

use super::Invariant;
use crate::model::{Position, Version};

/// What capture has made durable in the log: a position, the version of the last change up to it,
/// and where the log ends there. A chunk read that sees everything up to `position` carries its watermark.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    pub position: Position,
    pub clock: Version,
    /// Per partition of the changes topic, the offset after the last record up to `position`.
    pub ends: Vec<u64>,
    /// The newest commit or heartbeat time seen, µs since the Unix epoch.
    pub commit_us: i64,
}

impl Captured {
    /// What a row may be labelled with that is read from now on.
    pub fn watermark(&self) -> Version {
        self.position.watermark(self.clock)
    }
}

/// How long after a change there are changes.
const LIVE_FOR: Duration = Duration::from_secs(1);

/// What one partition's apply loop has made durable in the target.
#[derive(Debug, Default)]
struct PartitionProgress {
    changes: AtomicU64,
    snapshot: AtomicU64,
    clock: AtomicI64,
    newest_commit_us: AtomicI64,
    /// Of a log whose partitions come one by one: not there yet, and behind in nothing.
    is_idle: AtomicBool,
}

/// Progress shared by all loops of a worker. Every value only grows.
#[derive(Debug)]
pub struct Frontier {
    captured: watch::Sender<Option<Captured>>,
    partitions: Vec<PartitionProgress>,
    /// Told of every move. A `watch` wakes those who wait in an order that is left to chance, and a simulated run is to
    /// be the same every time.
    moved: Notify,
    changes: Mutex<BTreeMap<String, u64>>,
    /// When there last were changes of rows to apply.
    changed_at: Mutex<Option<Instant>>,
    wanted_clock: AtomicI64,
}

impl Frontier {
    pub fn new(partitions: u32) -> Arc<Frontier> {
        Arc::new(Frontier {
            captured: watch::channel(None).0,
            partitions: (0..partitions).map(|_| PartitionProgress::default()).collect(),
            moved: Notify::new(),
            changes: Mutex::default(),
            changed_at: Mutex::default(),
            wanted_clock: AtomicI64::new(0),
        })
    }

    /// Of all partitions these are there.
    pub fn use_partitions(&self, partitions: &[u32]) {
        for (partition, progress) in (0..).zip(&self.partitions) {
            progress.is_idle.store(!partitions.contains(&partition), Ordering::Release);
        }
    }

    fn in_use(&self) -> impl Iterator<Item = &PartitionProgress> {
        self.partitions.iter().filter(|progress| !progress.is_idle.load(Ordering::Acquire))
    }

    /// Capture has made everything up to here durable in the log.
    pub fn captured(&self, captured: Captured) {
        let before = self.captured.borrow().as_ref().map(|before| before.clock);
        Invariant::CapturedGrows.hold(before.is_none_or(|before| before <= captured.clock), || {
            format!("clock {} after {before:?}", captured.clock)
        });
        self.captured.send_replace(Some(captured));
        self.moved.notify_waiters();
    }

    /// What capture made durable leads nowhere: nothing may be labelled with it until capture has begun anew.
    pub fn lost(&self) {
        self.captured.send_replace(None);
        self.moved.notify_waiters();
    }

    /// Follows what capture makes durable.
    pub fn watch_captured(&self) -> watch::Receiver<Option<Captured>> {
        self.captured.subscribe()
    }

    /// Somebody waits for capture's clock to reach this, also if nothing happens at the source.
    pub fn want_clock(&self, clock: Version) {
        self.wanted_clock.fetch_max(clock, Ordering::AcqRel);
    }

    /// The highest clock that anybody waits for, or has waited for.
    pub fn wanted_clock(&self) -> Version {
        self.wanted_clock.load(Ordering::Acquire)
    }

    /// The target has every change before `offset` in this partition, up to this clock and commit time.
    pub fn applied_changes(&self, partition: u32, offset: u64, clock: Option<Version>, newest_commit_us: Option<i64>) {
        let Some(progress) = self.partitions.get(partition as usize) else { return };
        progress.changes.fetch_max(offset, Ordering::AcqRel);
        progress.clock.fetch_max(clock.unwrap_or(0), Ordering::AcqRel);
        progress.newest_commit_us.fetch_max(newest_commit_us.unwrap_or(0), Ordering::AcqRel);
        self.moved.notify_waiters();
    }

    /// There are changes of rows to apply.
    pub fn changes_come(&self) {
        *self.changed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether changes of rows have come within the last second. In any partition: rows that several source tables
    /// share have one lane.
    pub fn is_live(&self) -> bool {
        let changed_at = *self.changed_at.lock().unwrap_or_else(PoisonError::into_inner);
        changed_at.is_some_and(|at| at.elapsed() < LIVE_FOR)
    }

    /// Waits until capture has made something durable that is accepted: that.
    pub async fn captured_when(&self, mut accepts: impl FnMut(&Captured) -> bool) -> Captured {
        self.when(|| self.captured.borrow().as_ref().filter(|captured| accepts(captured)).cloned()).await
    }

    /// Waits until this is so.
    pub async fn is_so(&self, mut holds: impl FnMut() -> bool) {
        self.when(|| holds().then_some(())).await;
    }

    /// What there is to be found, asked anew whenever something has moved.
    async fn when<T>(&self, mut find: impl FnMut() -> Option<T>) -> T {
        loop {
            let moved = self.moved.notified();
            if let Some(found) = find() {
                return found;
            }
            moved.await;
        }
    }

    /// The target has every snapshot record before `offset` in this partition.
    pub fn applied_snapshot(&self, partition: u32, offset: u64) {
        let Some(progress) = self.partitions.get(partition as usize) else { return };
        progress.snapshot.fetch_max(offset, Ordering::AcqRel);
        self.moved.notify_waiters();
    }

    /// Counts changes of a source table that are durable in the target.
    pub fn count_changes(&self, table: &str, changes: u64) {
        let mut counts = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(table) {
            Some(count) => *count += changes,
            None => {
                counts.insert(table.to_owned(), changes);
            }
        }
    }

    /// Changes that are durable in the target, by source table.
    pub fn changes(&self) -> BTreeMap<String, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The offset up to which a partition's snapshot records are in the target.
    pub fn snapshot_offset(&self, partition: u32) -> u64 {
        self.partitions.get(partition as usize).map_or(0, |progress| progress.snapshot.load(Ordering::Acquire))
    }

    /// The offset up to which a partition's changes are in the target.
    pub fn changes_offset(&self, partition: u32) -> u64 {
        self.partitions.get(partition as usize).map_or(0, |progress| progress.changes.load(Ordering::Acquire))
    }

    /// Whether every partition of the changes topic is applied up to these offsets.
    pub fn reached(&self, ends: &[u64]) -> bool {
        ends.iter().zip(&self.partitions).all(|(end, progress)| progress.changes.load(Ordering::Acquire) >= *end)
    }

    /// Whether the target has every snapshot record before these offsets.
    pub fn copied(&self, ends: &[u64]) -> bool {
        (0u32..).zip(ends).all(|(partition, end)| self.snapshot_offset(partition) >= *end)
    }

    /// The lowest clock over partitions: every change up to this version is in the target.
    pub fn applied_clock(&self) -> Version {
        self.in_use().map(|progress| progress.clock.load(Ordering::Acquire)).min().unwrap_or(0)
    }

    /// Seconds from the newest commit (or heartbeat) that is durable in the target to `now_us`, the
    /// maximum over partitions; none before the first.
    pub fn lag_seconds(&self, now_us: i64) -> Option<f64> {
        let oldest = self.in_use().map(|progress| progress.newest_commit_us.load(Ordering::Acquire)).min()?;
        (oldest > 0).then(|| (now_us - oldest).max(0) as f64 / 1e6)
    }

    /// Seconds from the newest commit (or heartbeat) that is durable in the log to `now_us`.
    pub fn capture_lag_seconds(&self, now_us: i64) -> Option<f64> {
        let captured = self.captured.borrow();
        captured.as_ref().map(|captured| (now_us - captured.commit_us).max(0) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_maximum_over_partitions_and_unknown_before_the_first_commit() {
        let frontier = Frontier::new(2);
        assert_eq!(frontier.lag_seconds(9_000_000), None);
        frontier.applied_changes(0, 5, Some(7), Some(8_000_000));
        assert_eq!(frontier.lag_seconds(9_000_000), None, "partition 1 has applied nothing yet");
        frontier.applied_changes(1, 5, Some(6), Some(6_000_000));
        assert_eq!(frontier.lag_seconds(9_000_000), Some(3.0));
        assert_eq!(frontier.applied_clock(), 6);
    }

    #[test]
    fn a_partition_that_is_not_there_is_behind_in_nothing() {
        let frontier = Frontier::new(3);
        frontier.use_partitions(&[1]);
        frontier.applied_changes(1, 5, Some(7), Some(8_000_000));
        assert_eq!((frontier.lag_seconds(9_000_000), frontier.applied_clock()), (Some(1.0), 7));
        frontier.use_partitions(&[0, 1]);
        assert_eq!((frontier.lag_seconds(9_000_000), frontier.applied_clock()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_live_for_a_second() {
        let frontier = Frontier::new(2);
        assert!(!frontier.is_live());
        frontier.changes_come();
        frontier.applied_changes(0, 5, Some(7), None);
        assert!(frontier.is_live());
        tokio::time::advance(LIVE_FOR).await;
        assert!(!frontier.is_live());
    }

    #[test]
    fn snapshot_rows_never_make_the_stream_look_fresh() {
        let frontier = Frontier::new(1);
        frontier.applied_snapshot(0, 100);
        assert_eq!(frontier.lag_seconds(9_000_000), None);
        assert!(!frontier.reached(&[1]));
    }
}
