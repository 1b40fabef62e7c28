//! When a copy is through: what it read is in the target, and the stream has passed it.

use std::time::Duration;

use super::{appender::snapshot_ends, copier::Copier, copies::Shared};
use crate::{model::Position, observe::Captured, snapshot::SnapshotError};

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
        let ends = snapshot_ends(&*self.log).await?;
        self.frontier.is_so(|| self.frontier.copied(&ends)).await;
        let captured = self.captured_up_to_now(shared).await?;
        self.frontier.is_so(|| self.frontier.reached(&captured.ends)).await;
        Ok(seen.iter().all(|seen| captured.position.covers(seen)))
    }

    /// What capture has made durable, once that is everything that the source's log holds now.
    async fn captured_up_to_now(&self, shared: &Shared) -> Result<Captured, SnapshotError> {
        let mut end = shared.ends.end().await?;
        loop {
            let covers = self.frontier.captured_when(|captured| captured.position.covers(&end));
            if let Ok(captured) = tokio::time::timeout(ASK_EVERY, covers).await {
                return Ok(captured);
            }
            // The end of a server that has been replaced may never come.
            let captured = self.frontier.watch_captured().borrow().clone();
            if captured.is_some_and(|captured| !captured.position.same_server(&end)) {
                end = shared.ends.end().await?;
            }
        }
    }
}
