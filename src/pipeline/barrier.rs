//! When a copy is through: what it read is in the target, and the stream has passed it.

use std::time::Duration;

use super::{copier::Copier, copies::Shared};
use crate::{log::Topic, model::Position, observe::Captured, snapshot::SnapshotError};

/// How often the source's end is asked for again while capture follows another server.
const ASK_EVERY: Duration = Duration::from_millis(200);

impl Copier {
    /// Waits until everything copied so far is in the target, and the stream has passed what the last chunk may have
    /// seen.
    ///
    /// A read may see changes that capture, when it lags, gets to much later: from the barrier on the target is as
    /// consistent as the source was, at each end of a transaction. False if a chunk saw what the source has lost since:
    /// capture, which came to it after a failover, will never meet that (rule 16).
    pub(super) async fn barrier(&self, seen: &[Position], shared: &Shared) -> Result<bool, SnapshotError> {
        let mut ends = Vec::new();
        for partition in 0..self.log.partitions() {
            ends.push(self.log.bounds(Topic::Snapshot, partition).await?.1);
        }
        let mut moved = self.frontier.watch_applied();
        let is_copied = || (0u32..).zip(&ends).all(|(part, end)| self.frontier.snapshot_offset(part) >= *end);
        // The sender lives as long as the frontier that we hold, here and below.
        let _ = moved.wait_for(|_| is_copied()).await;
        let captured = self.captured_up_to_now(shared).await?;
        let _ = moved.wait_for(|_| self.frontier.reached(&captured.ends)).await;
        Ok(seen.iter().all(|seen| captured.position.covers(seen)))
    }

    /// What capture has made durable, once that is everything that the source's log holds now.
    async fn captured_up_to_now(&self, shared: &Shared) -> Result<Captured, SnapshotError> {
        let mut end = shared.ends.end().await?;
        let mut watched = self.frontier.watch_captured();
        loop {
            let captured = watched.borrow_and_update().clone();
            match captured {
                Some(captured) if captured.position.covers(&end) => return Ok(captured),
                // The end of a server that has been replaced may never come.
                Some(captured) if !captured.position.same_server(&end) => end = shared.ends.end().await?,
                Some(_) | None => {}
            }
            let _ = tokio::time::timeout(ASK_EVERY, watched.changed()).await;
        }
    }
}
