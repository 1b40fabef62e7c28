//! Follows how far other processes have got, from the offsets in the target.

use std::{sync::Arc, time::Duration};

use crate::{
    log::Topic,
    observe::{Frontier, Halts},
    state::{StateError, Store},
};

/// What waits for others to apply (a copy, a drain) notices it this late.
pub(super) const OFTEN: Duration = Duration::from_millis(100);
/// What only tells the lag notices it this late.
pub(super) const SELDOM: Duration = Duration::from_millis(500);

/// Brings the offsets of the target's lanes to the frontier, for as long as it is polled.
pub(super) async fn follow(
    store: Arc<Store>,
    frontier: Arc<Frontier>,
    halts: Arc<Halts>,
    log_epoch: String,
    every: Duration,
) {
    loop {
        match look(&store, &frontier, &log_epoch).await {
            Ok(()) => halts.well("offsets"),
            Err(error) => halts.trouble("offsets", &error.to_string()),
        }
        tokio::time::sleep(every).await;
    }
}

async fn look(store: &Store, frontier: &Frontier, log_epoch: &str) -> Result<(), StateError> {
    for lane in store.lanes(log_epoch).await? {
        let (offset, clock) = if lane.is_current { (lane.next_offset, lane.clock) } else { (0, 0) };
        match lane.topic {
            Topic::Changes => frontier.applied_changes(lane.part, offset, Some(clock), Some(lane.newest_commit_us)),
            Topic::Snapshot => frontier.applied_snapshot(lane.part, offset),
        }
    }
    Ok(())
}
