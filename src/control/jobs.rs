//! Requests that take a while: each is a task beside the steward, which owns them.
//!
//! A request stays open until its task has answered it, so that a worker that is killed meanwhile leaves it to the next one.
//! Every task can therefore be done again from the beginning.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinSet;

use super::{
    letters::{self, Retried},
    requests::Request,
    store::Store,
};
use crate::{
    database::postgres::PgError,
    model::Disposition,
    observe::Halts,
    snapshot::{SnapshotError, refetch::Refetch},
};

const RETRY_EVERY: Duration = Duration::from_secs(1);

/// What is being done on request.
pub(super) struct Jobs {
    tools: Tools,
    tasks: JoinSet<()>,
    begun: Arc<Mutex<HashSet<i64>>>,
}

/// What the tasks work with.
#[derive(Clone)]
struct Tools {
    store: Arc<Store>,
    halts: Arc<Halts>,
    refetch: Refetch,
}

impl Jobs {
    pub(super) fn new(store: Arc<Store>, halts: Arc<Halts>, refetch: Refetch) -> Self {
        Jobs { tools: Tools { store, halts, refetch }, tasks: JoinSet::new(), begun: Arc::default() }
    }

    /// Tries dead letters again.
    pub(super) fn retry(&mut self, request: &Request) {
        while self.tasks.try_join_next().is_some() {}
        let id = request.id;
        if !self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return;
        }
        let (tools, ids, begun) = (self.tools.clone(), ids(request), Arc::clone(&self.begun));
        self.tasks.spawn(async move {
            if let Err(error) = tools.retry(id, &ids).await {
                tools.halts.trouble("dlq", &error.to_string());
            }
            // Unless it was answered, it is open still and begins again.
            begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
    }

    /// Ends all tasks.
    pub(super) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }
}

impl Tools {
    async fn retry(&self, request: i64, ids: &[i64]) -> Result<(), PgError> {
        let (state, answer) = loop {
            match letters::retry(&self.store, &self.refetch, ids).await {
                Ok(retried) => {
                    let Retried { stored, failed, waiting, strange } = retried;
                    tracing::info!(stored, failed, waiting, strange, "tried dead letters again");
                    break ("done", serde_json::to_string(&retried).unwrap_or_default());
                }
                Err(error) if error.disposition() == Disposition::Retry => {
                    self.halts.trouble("dlq", &error.to_string());
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => break ("refused", told(error)),
            }
        };
        self.halts.well("dlq");
        self.store.answer(request, state, &answer).await
    }
}

fn told(error: SnapshotError) -> String {
    match error {
        SnapshotError::Halt { reason, remedy } => format!("{reason}; {remedy}"),
        SnapshotError::Source(_) | SnapshotError::Target(_) | SnapshotError::Log(_) => error.to_string(),
    }
}

/// The letters that a request is about.
pub(super) fn ids(request: &Request) -> Vec<i64> {
    let ids = request.arguments.get("ids").and_then(|ids| ids.as_array());
    ids.into_iter().flatten().filter_map(serde_json::Value::as_i64).collect()
}
