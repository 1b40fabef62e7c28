//! Asking a running worker for something, and following it until it has answered.

use std::time::Duration;

use tokio::time::Instant;

use super::Failure;
use crate::state::{
    StateError, Store,
    format::FORMAT,
    lease::LEASE_SECONDS,
    requests::{Command, RequestState},
};

/// How long a worker has to take a request before the command says that none runs, and to get over a halt that the
/// request may repair.
pub(super) const TAKEN_WITHIN: Duration = Duration::from_secs(15);

/// How long a worker that was just started, or that takes over from one whose host is gone, has until it leads.
const LEADS_WITHIN: Duration = Duration::from_secs(LEASE_SECONDS.unsigned_abs());
/// How often the command looks for it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The pipeline's state has the layout that this program reads.
pub(super) async fn state_is_ours(store: &Store) -> Result<(), Failure> {
    match store.format().await? {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => Err(Failure::Runtime(StateError::NewerFormat { found }.into())),
        Some(_) => Err(Failure::Runtime(anyhow::anyhow!(
            "the state of the pipeline is of an older release; restart the worker with this one, which brings it up"
        ))),
        None => Err(Failure::Runtime(anyhow::anyhow!("the pipeline has no state yet; start it with `cutover run`"))),
    }
}

/// The pipeline has this source table.
pub(super) async fn is_known(store: &Store, table: &str) -> Result<(), Failure> {
    let known = store.status().await?.tables;
    if known.iter().any(|status| status.table == table) {
        return Ok(());
    }
    let names: Vec<&str> = known.iter().map(|status| status.table.as_str()).collect();
    let names = if names.is_empty() { "none yet: start the worker first".to_owned() } else { names.join(", ") };
    Err(Failure::Usage(anyhow::anyhow!("the pipeline has no source table `{table}`; it has {names}")))
}

/// A worker is there to do it; nothing is asked of one that is not.
pub(super) async fn worker_runs(store: &Store, command: Command) -> Result<(), Failure> {
    worker_runs_for(store, command.name()).await
}

/// As [`worker_runs`]; `words` are what the command is called.
pub(super) async fn worker_runs_for(store: &Store, words: &str) -> Result<(), Failure> {
    let asked = Instant::now();
    while asked.elapsed() < LEADS_WITHIN {
        if store.status().await?.worker_running {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    eprintln!(
        "cutover: no worker runs, and nothing was done; start one with `cutover run`, then `cutover {words}` again"
    );
    Err(Failure::No)
}

/// Leaves a request and waits for its answer. A refusal has been printed.
pub(super) async fn follow(
    store: &Store,
    command: Command,
    arguments: &serde_json::Value,
    every: Duration,
) -> Result<String, Failure> {
    let request = store.ask_with(command, arguments).await?;
    answer(store, request, every).await
}

/// Waits for the answer to a request. A refusal has been printed.
pub(super) async fn answer(store: &Store, request: i64, every: Duration) -> Result<String, Failure> {
    let asked = Instant::now();
    loop {
        tokio::time::sleep(every).await;
        let (state, answer) = store.request_state(request).await?;
        match state {
            RequestState::Done => return Ok(answer),
            RequestState::Refused => {
                eprintln!("cutover: {answer}");
                return Err(Failure::No);
            }
            RequestState::New if asked.elapsed() < TAKEN_WITHIN => continue,
            RequestState::New => {}
        }
        let status = store.status().await?;
        if let Some(halt) = status.halted {
            return Err(Failure::Runtime(anyhow::anyhow!(
                "halted: {}; {}; the request stays, and is done when the worker goes on",
                halt.what,
                halt.fix
            )));
        }
        if !status.worker_running {
            return Err(Failure::Runtime(anyhow::anyhow!(
                "the worker has gone; start one with `cutover run`, it will find the request"
            )));
        }
    }
}
