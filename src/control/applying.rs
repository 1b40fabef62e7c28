//! Where the apply loops are: in this process, or in others that share the partitions (`--role apply`).

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::worker::{Role, Worker};
use crate::{pipeline::flow::ApplyHalf, state::StateError};

const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The apply loops, as who leads the pipeline has them.
pub(super) enum Applying {
    Here { loops: JoinSet<()>, stop: CancellationToken },
    Elsewhere,
}

impl Applying {
    pub(super) fn new(role: Role) -> Self {
        match role {
            Role::All => Applying::Here { loops: JoinSet::new(), stop: CancellationToken::new() },
            Role::Capture | Role::Apply => Applying::Elsewhere,
        }
    }

    /// Starts the loops, or lets those of other processes go on.
    pub(super) async fn start(&mut self, worker: &Worker, apply: &ApplyHalf, until: &CancellationToken) {
        match self {
            Applying::Here { loops, stop } => {
                *stop = until.child_token();
                *loops = apply.start(stop);
            }
            Applying::Elsewhere => {
                while let Err(error) = worker.store.wake().await {
                    worker.halts.trouble("rest", &error.to_string());
                    tokio::select! {
                        biased;
                        () = until.cancelled() => return,
                        () = tokio::time::sleep(RETRY_EVERY) => {},
                    }
                }
                worker.halts.well("rest");
            }
        }
    }

    /// Waits until nothing is applied any more, with what is planned today.
    pub(super) async fn rest(&mut self, worker: &Worker, number: i64) -> Result<(), StateError> {
        match self {
            Applying::Here { .. } => {
                self.stop().await;
                Ok(())
            }
            Applying::Elsewhere => worker.store.rest(number).await,
        }
    }

    /// Stops the loops of this process and waits for the batches at work.
    pub(super) async fn stop(&mut self) {
        match self {
            Applying::Here { loops, stop } => {
                stop.cancel();
                while loops.join_next().await.is_some() {}
            }
            Applying::Elsewhere => {}
        }
    }
}
