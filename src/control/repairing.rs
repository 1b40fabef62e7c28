//! Drifted rows, sent through the log again as fresh facts.
//!
//! What enters is the keys of rows that a comparison found; what leaves is records in the snapshot topic, each with the
//! watermark of its read, which is above the version that the target has (rule 25): the clock is raised for that.
//! Nothing is written around the pipeline, so that a change or a delete that comes meanwhile is newer and wins.
//! Deliberately absent: what has drifted; whoever asks has confirmed that.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    log::envelope::{Encoder, key_values},
    model::{Change, Disposition, Images, Op, Origin, Problem, TableSchema, Version},
    pipeline::refetch::{Refetch, Wanted},
    snapshot::SnapshotError,
    state::{
        StateError, Store,
        requests::{Request, RequestState},
    },
};

/// How long the clock may take to come to where it was raised: the source's log has to be quiet for a moment.
const RAISED_WITHIN: Duration = Duration::from_secs(120);
/// How far ahead of now a version may be that the clock is moved above, in microseconds: a day. All later versions are
/// above it.
const AHEAD_MAX_US: i64 = 86_400_000_000;
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Attempts while a side is away, a second apart.
const ATTEMPTS_MAX: u32 = 300;

/// A request to send rows of a source table again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    pub table: String,
    pub rows: Vec<RepairRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRow {
    /// The record's key.
    pub key: String,
    /// The version that has to be overcome.
    pub version: Version,
    /// Delete what the target has, unless the source has the row.
    pub is_extra: bool,
}

/// Does what is asked, and answers how many rows were sent.
pub(super) async fn answer(store: &Store, refetch: &Refetch, request: &Request) -> Result<(), StateError> {
    let repairs: Repairs = match serde_json::from_value(request.arguments.clone()) {
        Ok(repairs) => repairs,
        Err(error) => {
            let text = format!("this worker does not understand the request ({error}); use one of the same release");
            return store.answer(request.id, RequestState::Refused, &text).await;
        }
    };
    let mut attempts = 0;
    let (state, text) = loop {
        match tokio::time::timeout(RAISED_WITHIN, send(refetch, &repairs)).await {
            Ok(Ok(sent)) => break (RequestState::Done, sent.to_string()),
            Ok(Err(error)) if error.disposition() == Disposition::Retry && attempts < ATTEMPTS_MAX => {
                attempts += 1;
                tokio::time::sleep(RETRY_EVERY).await;
            }
            Ok(Err(error)) => break (RequestState::Refused, error.to_string()),
            Err(_) => {
                let text = "the rows could not be sent again within two minutes: the target is behind, or has a version from the \
                            future, above which the clock moves when the source's log is quiet for a moment; repair again";
                break (RequestState::Refused, text.to_owned());
            }
        }
    };
    tracing::info!(table = repairs.table, rows = repairs.rows.len(), answer = text, "drifted rows were sent again");
    store.answer(request.id, state, &text).await
}

/// Sends the rows, and waits until they are in the target.
pub(super) async fn send(refetch: &Refetch, repairs: &Repairs) -> Result<usize, SnapshotError> {
    let schema = refetch.source.schema(&repairs.table).await?;
    let now = refetch.frontier.watch_captured().borrow().as_ref().map_or(0, |captured| captured.watermark());
    let mut rows = Vec::new();
    for row in &repairs.rows {
        let key: Bytes = row.key.clone().into_bytes().into();
        let shown = if row.is_extra { shown(refetch, &schema, &key) } else { None };
        // What is above the clock came from no log: above that, so that a tie decides nothing.
        let version = if row.version > now { row.version.saturating_add(1) } else { row.version };
        rows.push(Wanted { schema: Arc::clone(&schema), key, version, shown });
    }
    let (sent, highest) = (rows.len(), rows.iter().map(|row| row.version).max().unwrap_or_default());
    if highest > refetch.environment.now_us().saturating_add(AHEAD_MAX_US) {
        return Err(SnapshotError::Halt(Problem::new(
            format!("a row of {} at the target has the version {highest}, which is far in the future", repairs.table),
            "set its cutover_version to 0 at the target, and repair again: the clock cannot be moved so far",
        )));
    }
    refetch.frontier.want_clock(highest);
    let strange = refetch.send(&repairs.table, rows).await?;
    refetch.applied(&refetch.ends().await?).await;
    Ok(sent - strange.len())
}

/// An envelope that shows no more of a row than its key.
fn shown(refetch: &Refetch, schema: &Arc<TableSchema>, key: &[u8]) -> Option<Bytes> {
    let images = Images { before: None, after: Some(schema.row_of_key(key_values(schema, key)?)) };
    let change = Change { schema: Arc::clone(schema), op: Op::Read, images, version: 0, commit_us: 0 };
    let encoded = Encoder::new(&refetch.pipeline, refetch.connector).encode(&change, &Origin::default());
    encoded.ok().map(|encoded| encoded.value)
}
