//! What the tests of the rules stand on: one pipeline from a MySQL or MariaDB database to a PostgreSQL one, run by the
//! built binary, and ways to hold a part of it still while something else happens.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::support::{Mysql, Postgres, Worker, Workspace, eventually};

/// The longest that a pipeline of a few rows may take for anything.
const SOON: Duration = Duration::from_secs(60);

pub struct Rig {
    pub source: Mysql,
    pub target: Postgres,
    pub work: Workspace,
}

impl Rig {
    /// Both databases with these tables, and a configuration that follows `tables`.
    pub async fn new(source: Mysql, target: Postgres, tables: &[&str], at_source: &str, at_target: &str) -> Self {
        source.exec(at_source).await;
        target.exec(at_target).await;
        // The name makes the replica's id, which must be unique on a server that tests share.
        let work = Workspace::new(source.database(), &source.url(), &target.url(), tables);
        Rig { source, target, work }
    }

    /// Another pipeline from the same source.
    pub async fn beside(&self, target: Postgres, tables: &[&str], at_target: &str) -> (Postgres, Workspace) {
        target.exec(at_target).await;
        let name = format!("{}_b", self.source.database());
        let work = Workspace::new(&name, &self.source.url(), &target.url(), tables);
        (target, work)
    }

    /// Runs a worker until it is synced.
    pub async fn sync(&self) {
        let (code, said) = self.until_synced().await;
        assert_eq!(code, Some(0), "{said}");
    }

    /// Runs a worker until it is synced or halts: exit code and standard error.
    pub async fn until_synced(&self) -> (Option<i32>, String) {
        let mut worker = self.work.start(&["--until-synced"]);
        let code = worker.wait_exit(SOON).await.code();
        (code, worker.stderr())
    }

    /// Runs a worker that is to halt: its last words.
    pub async fn halts(&self) -> String {
        let (code, said) = self.until_synced().await;
        assert_eq!(code, Some(3), "{said}");
        said.lines().filter(|line| line.starts_with("cutover:")).collect::<Vec<_>>().join("\n")
    }

    /// Follows the remedy of most halts: copies the only table again while the worker waits for that.
    pub async fn copied_again(&self, table: &str) -> Worker {
        let worker = self.work.start(&[]);
        self.eventually("halted", async |status| status["worker_running"] == true && !status["halted"].is_null()).await;
        let copied = self.work.run(&["resnapshot", table]).await;
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        worker
    }

    /// A worker that has copied everything and goes on.
    pub async fn following(&self) -> Worker {
        let worker = self.work.start(&[]);
        self.eventually("synced", async |status| status["synced"] == true).await;
        worker
    }

    /// `cutover status --json`; null before the worker has made its state.
    pub async fn status(&self) -> Value {
        serde_json::from_slice(&self.work.run(&["status", "--json"]).await.stdout).unwrap_or_default()
    }

    /// Waits for a status that the check accepts.
    pub async fn eventually(&self, what: &str, mut check: impl AsyncFnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(what, SOON, async || {
            last = self.status().await;
            check(&last).await
        })
        .await;
        last
    }

    /// Waits for the same answer to the same query on both sides.
    pub async fn same(&self, query: &str) {
        let mut differ = None;
        let deadline = tokio::time::Instant::now() + SOON;
        while tokio::time::Instant::now() < deadline {
            let (wanted, found) = (self.source.query(query).await, self.target.query(query).await);
            if wanted == found {
                return;
            }
            differ = Some((wanted, found));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{query}: source and target stay different: {differ:?}");
    }

    /// Waits for an answer of the target.
    pub async fn target_has(&self, query: &str, wanted: &str) {
        let mut found = String::new();
        eventually_or(SOON, async || {
            found = joined(&self.target.query(query).await);
            found == wanted
        })
        .await
        .unwrap_or_else(|()| panic!("{query}: {found:?} instead of {wanted:?}"));
    }

    /// Holds the writers of copied rows still until this is dropped: their sessions are stopped, between two
    /// transactions.
    pub async fn hold_copied_rows(&self) -> HeldWriters {
        let sessions = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
            AND application_name LIKE 'cutover % snapshot %'";
        let mut pids = Vec::new();
        eventually("both writers are there", SOON, async || {
            pids = self.target.query(sessions).await.into_iter().flatten().flatten().collect();
            pids.len() == 2
        })
        .await;
        let held = HeldWriters { pids };
        held.signal("-STOP");
        held
    }

    /// Asks for a new copy of a table, and waits until its rows are in the log.
    pub async fn copy_again_into_the_log(&self, table: &str) {
        let before = bytes_below(&self.work.path().join("cutover-data"), "snapshot");
        let ask = format!(
            "INSERT INTO cutover.requests (pipeline, command, arguments) \
             VALUES ('{}', 'resnapshot', '{{\"subject\": \"{table}\"}}')",
            self.source.database()
        );
        self.target.exec(&ask).await;
        let log = self.work.path().join("cutover-data");
        eventually("the copied rows are in the log", SOON, async || bytes_below(&log, "snapshot") > before).await;
        // The chunk's rows are one append; the record that ends it is in the same or the next.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Sessions of a target that do nothing.
pub struct HeldWriters {
    pids: Vec<String>,
}

impl HeldWriters {
    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).args(&self.pids).status();
        assert!(
            std::thread::panicking() || status.is_ok_and(|status| status.success()),
            "kill {signal} {:?}: the tests need the right to signal the target's sessions",
            self.pids
        );
    }
}

impl Drop for HeldWriters {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

async fn eventually_or(limit: Duration, mut check: impl AsyncFnMut() -> bool) -> Result<(), ()> {
    let deadline = tokio::time::Instant::now() + limit;
    while !check().await {
        if tokio::time::Instant::now() > deadline {
            return Err(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Rows as one text: columns joined by a space, rows by a comma.
pub fn joined(rows: &crate::support::Rows) -> String {
    let text = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "null".into());
    rows.iter().map(|row| row.iter().map(text).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

/// Bytes of the files below a folder whose path has this word.
fn bytes_below(folder: &Path, word: &str) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| {
            let path = entry.path();
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => bytes_below(&path, word),
                Ok(meta) if path.to_string_lossy().contains(word) => meta.len(),
                Ok(_) | Err(_) => 0,
            }
        })
        .sum()
}
