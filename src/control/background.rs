//! Requests that take a while: each is a task beside the leader, which owns them.
//!
//! A request stays open until its task has answered it, so that a worker that is killed meanwhile leaves it to the next
//! one. Every task can therefore be done again from the beginning; a replay, once begun, goes on from what the target
//! has.

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    repairing,
    replay::{Ask, Replayer, Stopped},
    worker::Worker,
};
use crate::{
    model::Disposition,
    observe::{Backoff, Halts},
    pipeline::refetch::{Refetch, Wanted},
    snapshot::SnapshotError,
    state::{
        Store,
        dead_letters::{DeadLetterState, DeadRow, Retried, Selection},
        replays::ReplayState,
        requests::{Request, RequestState},
        waiting::{LOOKED_FOR_AFTER_SECONDS, WaitingRow},
    },
};

const RETRY_EVERY: Duration = Duration::from_secs(1);
/// The number under which the replay that is under way is a task: no request has it.
const REPLAYING: i64 = 0;
/// The number of the task that looks for waiting rows at the source.
const LOOKING: i64 = -1;
/// Waiting rows that are looked for together, and their bytes; one row may have more.
const WAITING_ROWS_MAX: i64 = 500;
const WAITING_BYTES_MAX: i64 = 4 << 20;

/// What is being done on request.
pub(super) struct Background {
    tools: Tools,
    tasks: JoinSet<()>,
    begun: Arc<Mutex<HashSet<i64>>>,
    /// When the last look at the source for waiting rows began that has come to its end.
    looked: Arc<Mutex<Option<Instant>>>,
    stop: CancellationToken,
}

/// What the tasks work with.
#[derive(Clone)]
struct Tools {
    halts: Arc<Halts>,
    replayer: Replayer,
    /// Held while a replay begins, and while tombstones are forgotten.
    barrier: Arc<tokio::sync::Mutex<()>>,
}

impl Background {
    pub(super) fn new(worker: &Worker, replayer: Replayer) -> Self {
        let tools = Tools { halts: Arc::clone(&worker.halts), replayer, barrier: Arc::default() };
        let (begun, looked) = (Arc::default(), Arc::default());
        Background { tools, tasks: JoinSet::new(), begun, looked, stop: worker.stop.child_token() }
    }

    /// Held by who forgets tombstones.
    pub(super) fn barrier(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.tools.barrier)
    }

    /// Tries dead letters again.
    pub(super) fn retry(&mut self, request: &Request) {
        let (tools, id, ids) = (self.tools.clone(), request.id, ids(request));
        self.begin(id, "dlq", async move { tools.retry(id, &ids).await });
    }

    /// Sends drifted rows again.
    pub(super) fn repair(&mut self, request: &Request) {
        let (tools, request) = (self.tools.clone(), request.clone());
        self.begin(request.id, "repair", async move {
            Ok(repairing::answer(&tools.replayer.store, &tools.replayer.refetch, &request).await?)
        });
    }

    /// Looks at a replay that is asked for, and begins it.
    pub(super) fn replay(&mut self, request: &Request) {
        let (tools, request, stop) = (self.tools.clone(), request.clone(), self.stop.clone());
        self.begin(request.id, "replay", async move {
            if tools.begin_replay(&request).await? {
                tools.replay(&stop).await?;
            }
            Ok(())
        });
    }

    /// Goes on with the replay that the last worker left, if there is one.
    pub(super) fn go_on_replaying(&mut self) {
        let (tools, stop) = (self.tools.clone(), self.stop.clone());
        self.begin(REPLAYING, "replay", async move { tools.replay(&stop).await });
    }

    /// Looks for rows at the source that have waited for a while: what is no longer there waits no more.
    pub(super) fn look_for_waiting(&mut self) {
        let (tools, looked) = (self.tools.clone(), Arc::clone(&self.looked));
        self.begin(LOOKING, "waiting", async move {
            let began = Instant::now();
            tools.look_for_waiting().await?;
            *looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(began);
            Ok(())
        });
    }

    /// Whether such a look has begun since rows wait that have for so many seconds, and has met them all.
    pub(super) fn has_looked(&self, seconds: f64) -> bool {
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.is_some_and(|began| began.elapsed().as_secs_f64() + LOOKED_FOR_AFTER_SECONDS < seconds)
    }

    /// Begins a task, unless it has begun. One that fails for now may begin again when its request is met again.
    fn begin(&mut self, id: i64, part: &'static str, task: impl Future<Output = Result<(), Stopped>> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        if !self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            return;
        }
        let (halts, begun) = (Arc::clone(&self.tools.halts), Arc::clone(&self.begun));
        self.tasks.spawn(async move {
            match task.await {
                Ok(()) => halts.well(part),
                Err(error) => halts.trouble(part, &error.to_string()),
            }
            begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
    }

    /// Ends all tasks: a replay after the batch at work, others at once.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(RETRY_EVERY, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

impl Tools {
    /// A parent that is gone for good may have taken its children along unseen: they wait for it for ever.
    async fn look_for_waiting(&self) -> Result<(), Stopped> {
        let (store, refetch) = (&self.replayer.store, &self.replayer.refetch);
        let (mut after, mut gone) = ((String::new(), String::new(), 0), 0);
        loop {
            let rows = store.waiting_rows(&after, WAITING_ROWS_MAX, WAITING_BYTES_MAX).await?;
            let Some(last) = rows.last() else { break };
            after = (last.table.clone(), last.key.clone(), last.version);
            let mut tables: BTreeMap<String, Vec<Wanted>> = BTreeMap::new();
            for WaitingRow { table: _, schema, key, version, record } in rows {
                let shown = Some(record.into());
                let table = tables.entry(schema.table.table.clone()).or_default();
                // Several events of a row are one row to look for; the newest is the last.
                table.retain(|other| other.key != key.as_bytes());
                table.push(Wanted { schema, key: key.into(), version, shown });
            }
            for (table, rows) in tables {
                gone += refetch.send_gone(&table, rows).await.map_err(|error| Stopped::Later(error.to_string()))?;
            }
        }
        if gone > 0 {
            tracing::warn!(gone, "rows that waited for others are no longer at the source; they wait no more");
        }
        Ok(())
    }

    async fn retry(&self, request: i64, ids: &[i64]) -> Result<(), Stopped> {
        let (store, refetch) = (&self.replayer.store, &self.replayer.refetch);
        let (state, answer) = loop {
            match retry(store, refetch, ids).await {
                Ok(retried) => {
                    let Retried { stored, failed, waiting, strange } = retried;
                    tracing::info!(stored, failed, waiting, strange, "tried dead letters again");
                    break (RequestState::Done, serde_json::to_string(&retried).unwrap_or_default());
                }
                Err(error) if error.disposition() == Disposition::Retry => {
                    self.halts.trouble("dlq", &error.to_string());
                    tokio::time::sleep(RETRY_EVERY).await;
                }
                Err(error) => break (RequestState::Refused, told(error)),
            }
        };
        Ok(store.answer(request, state, &answer).await?)
    }

    /// Answers what a replay would do, and stores it if it is to begin; whether it is.
    async fn begin_replay(&self, request: &Request) -> Result<bool, Stopped> {
        let store = &self.replayer.store;
        let ask: Ask = match serde_json::from_value(request.arguments.clone()) {
            Ok(ask) => ask,
            Err(error) => {
                let text =
                    format!("this worker does not understand the request ({error}); use one of the same release");
                store.answer(request.id, RequestState::Refused, &text).await?;
                return Ok(false);
            }
        };
        // The worker that stored it was killed before it answered: it is under way, or over.
        let begun = store.replay(request.id).await?.is_some();
        let plan = {
            let _no_tombstone_is_forgotten = self.barrier.lock().await;
            self.replayer.plan(request.id, &ask, !ask.dry_run && !begun).await
        };
        match plan {
            Ok(plan) => {
                let begins = plan.refused.is_none() && !ask.dry_run && !begun;
                if begins {
                    tracing::info!(id = request.id, from = ask.label, rows = plan.rows, "replaying");
                }
                let answer = serde_json::to_string(&plan).map_err(|error| Stopped::Later(error.to_string()))?;
                store.answer(request.id, RequestState::Done, &answer).await?;
                Ok(begins)
            }
            Err(Stopped::Refused(reason)) => {
                store.answer(request.id, RequestState::Refused, &reason).await?;
                Ok(false)
            }
            Err(error @ (Stopped::Later(_) | Stopped::Fenced)) => Err(error),
        }
    }

    /// Brings the replay that is under way to its end.
    async fn replay(&self, stop: &CancellationToken) -> Result<(), Stopped> {
        let store = &self.replayer.store;
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let started = Instant::now();
            let stopped = match store.running_replay().await {
                Ok(None) => return Ok(()),
                Ok(Some(replay)) => match self.replayer.run(&replay, stop).await {
                    Ok(()) => return Ok(()),
                    Err(Stopped::Refused(reason)) => {
                        tracing::error!(id = replay.id, reason, "the replay has ended before its end");
                        return Ok(store.end_replay(replay.id, ReplayState::Failed, &reason).await?);
                    }
                    Err(Stopped::Fenced) => return Ok(()),
                    Err(Stopped::Later(why)) => why,
                },
                Err(error) => error.to_string(),
            };
            self.halts.trouble("replay", &stopped);
            let pause = backoff.next(&*self.replayer.apply.environment, started.elapsed());
            tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
        }
        Ok(())
    }
}

/// Reads the rows of these open letters again, each at a fresh watermark, sends them through the snapshot topic, and
/// waits until the target has answered (rule 23): a row that can be stored clears its letter, another one renews it.
async fn retry(store: &Store, refetch: &Refetch, ids: &[i64]) -> Result<Retried, SnapshotError> {
    let before = store.dead_letters(DeadLetterState::Open, &Selection::Ids(ids.to_vec())).await?;
    let before: BTreeMap<i64, i32> = before.iter().map(|letter| (letter.id, letter.attempts)).collect();
    let groups = store.dead_row_groups(DeadLetterState::Open, Some(ids)).await?;
    let _turn = refetch.turn.lock().await;
    for group in &groups {
        for (table, rows) in store.dead_rows(DeadLetterState::Open, Some(group)).await? {
            let wanted = rows.into_iter().map(|DeadRow { schema, key, version, record }| Wanted {
                schema,
                key: key.into(),
                version,
                shown: Some(record.into()),
            });
            refetch.send(&table, wanted.collect()).await?;
        }
    }
    if !groups.is_empty() {
        refetch.applied(&refetch.ends().await?).await;
    }
    Ok(store.retried_dead_letters(&before).await?)
}

fn told(error: SnapshotError) -> String {
    match error {
        SnapshotError::Halt(problem) => problem.to_string(),
        SnapshotError::Source(_) | SnapshotError::Target(_) | SnapshotError::Log(_) => error.to_string(),
    }
}

/// The letters that a request is about.
pub(super) fn ids(request: &Request) -> Vec<i64> {
    let ids = request.arguments.get("ids").and_then(|ids| ids.as_array());
    ids.into_iter().flatten().filter_map(serde_json::Value::as_i64).collect()
}
