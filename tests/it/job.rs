//! One job, whatever the source: tables are copied while a load changes them, and the worker is killed on the way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;

use crate::support::{Mysql, Postgres, Workspace, eventually};

/// A source that statements are sent to.
pub trait Executes: Send + Sync + 'static {
    fn execute(&self, statements: String) -> impl Future<Output = ()> + Send;
}

impl Executes for Mysql {
    async fn execute(&self, statements: String) {
        self.exec(&statements).await;
    }
}

impl Executes for Postgres {
    async fn execute(&self, statements: String) {
        self.exec(&statements).await;
    }
}

/// Sends one transaction after the other until the flag is set; then says how many.
pub fn load(
    source: &Arc<impl Executes>,
    stop: &Arc<AtomicBool>,
    mut transaction: impl FnMut() -> String + Send + 'static,
) -> JoinHandle<u32> {
    let (source, stop) = (Arc::clone(source), Arc::clone(stop));
    tokio::spawn(async move {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            source.execute(transaction()).await;
            count += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        count
    })
}

/// Waits for the end of the copy.
pub async fn copied(work: &Workspace, patience: Duration) {
    eventually("the copy is complete", patience, async || {
        let status = work.run(&["status", "--json"]).await;
        String::from_utf8_lossy(&status.stdout).contains("\"phase\":\"following\"")
    })
    .await;
}

/// Runs the worker under such transactions, kills it `kills` times, and ends when all that the source had is at the
/// target.
pub async fn run_through_kills(
    work: &Workspace,
    source: &Arc<impl Executes>,
    transaction: impl FnMut() -> String + Send + 'static,
    kills: u32,
    patience: Duration,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let load = load(source, &stop, transaction);
    for kill in 0..kills {
        let mut worker = work.start(&[]);
        let pause = 1500 + 400 * u64::from(kill);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        assert!(worker.is_running(), "{}", worker.stderr());
        worker.kill9().await;
    }
    let mut worker = work.start(&[]);
    copied(work, patience).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let transactions = load.await.unwrap();
    assert!(transactions > 100, "the load ran: {transactions}");
    worker.terminate().await;
    assert!(worker.wait_exit(Duration::from_secs(10)).await.success(), "{}", worker.stderr());

    let mut last = work.start(&["--until-synced"]);
    assert!(last.wait_exit(Duration::from_secs(60)).await.success(), "{}", last.stderr());
}
