//! Rule 37 with real sources: two source rows that claim one key, through restarts, new copies, a replay and a verify.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Mysql, Postgres, Worker, Workspace, eventually};

const SOON: Duration = Duration::from_secs(120);
const ROWS: &str = "SELECT string_agg(code || ' ' || n, ', ' ORDER BY code) FROM t";
const AT_TARGET: &str = "CREATE TABLE t (code text PRIMARY KEY, n int)";

enum Source {
    Mysql(Mysql),
    Postgres(Postgres),
}

struct Pair {
    source: Source,
    target: Postgres,
    work: Workspace,
}

impl Pair {
    async fn mysql(source: Mysql) -> Self {
        source.exec("CREATE TABLE t (code varchar(10) COLLATE utf8mb4_bin PRIMARY KEY, n int)").await;
        let (name, url) = (source.database().to_owned(), source.url());
        Self::of(Source::Mysql(source), &name, &url).await
    }

    async fn postgres(source: Postgres) -> Self {
        source.exec(AT_TARGET).await;
        let (name, url) = (source.database().to_owned(), source.url());
        Self::of(Source::Postgres(source), &name, &url).await
    }

    async fn of(source: Source, name: &str, url: &str) -> Self {
        let target = Postgres::v18().await;
        target.exec(AT_TARGET).await;
        let work = Workspace::new(name, url, &target.url(), &["t"]);
        work.transform("t", "SELECT lower(code) AS code, n FROM t");
        Pair { source, target, work }
    }

    async fn exec(&self, sql: &str) {
        match &self.source {
            Source::Mysql(source) => source.exec(sql).await,
            Source::Postgres(source) => source.exec(sql).await,
        }
    }

    async fn has(&self, wanted: &str) {
        eventually(wanted, SOON, async || self.target.value(ROWS).await.as_deref() == Some(wanted)).await;
    }

    async fn status(&self) -> Value {
        serde_json::from_slice(&self.work.run(&["status", "--json"]).await.stdout).unwrap_or_default()
    }

    async fn eventually(&self, what: &str, mut check: impl AsyncFnMut(&Value) -> bool) {
        eventually(what, SOON, async || check(&self.status().await).await).await;
    }

    async fn waits(&self, rows: u64) {
        self.eventually(&format!("{rows} wait"), async |status| {
            status["waiting"] == rows && status["dead_letters"] == 0 && status["synced"] == (rows == 0)
        })
        .await;
    }

    async fn done(&self, arguments: &[&str]) {
        let out = self.work.run(arguments).await;
        let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(out.status.success(), "{arguments:?}: {text}");
    }

    /// A verdict once the table is copied: the exit code, and of its rows how many are (drifted, explained).
    async fn verified(&self) -> (Option<i32>, u64, u64) {
        self.eventually("copied", async |status| status["phase"] == "following").await;
        let out = self.work.run(&["verify", "--json"]).await;
        let verdict: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        let table = &verdict["tables"][0];
        let count = |name: &str| table[name].as_u64().unwrap_or_else(|| panic!("{name}: {verdict}"));
        (out.status.code(), count("missing") + count("extra") + count("different"), count("explained"))
    }
}

/// The life of two rows that claim one key.
async fn contested(pair: Pair) {
    pair.exec("INSERT INTO t VALUES ('A', 1), ('b', 2)").await;
    let mut worker = pair.work.start(&[]);
    pair.has("a 1, b 2").await;
    pair.exec("INSERT INTO t VALUES ('a', 9), ('c', 3)").await;
    pair.has("a 1, b 2, c 3").await;
    pair.waits(1).await;
    let status = pair.status().await;
    let reason = status["waiting_for"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("two source rows map to one target key"), "{reason}");
    assert_eq!(pair.verified().await, (Some(1), 0, 1), "who waits is explained");
    // The delete of who waits removes nothing; nor does it come back.
    pair.exec("DELETE FROM t WHERE code = 'a'; UPDATE t SET n = 4 WHERE code = 'A'").await;
    pair.has("a 4, b 2, c 3").await;
    pair.waits(0).await;
    assert_eq!(pair.verified().await, (Some(0), 0, 0));
    // Who waits comes in by itself when the key is free, through a kill.
    pair.exec("INSERT INTO t VALUES ('a', 5); UPDATE t SET n = 6 WHERE code = 'a'").await;
    pair.waits(1).await;
    worker.kill9().await;
    pair.exec("DELETE FROM t WHERE code = 'A'").await;
    let _worker = pair.work.start(&[]);
    pair.has("a 6, b 2, c 3").await;
    // A key that changes its spelling is the same key at the target.
    pair.exec("UPDATE t SET code = 'A' WHERE code = 'a'; UPDATE t SET n = 7 WHERE code = 'A'").await;
    pair.has("a 7, b 2, c 3").await;
    pair.waits(0).await;
    // A replay of all of that ends as it began.
    pair.exec("INSERT INTO t VALUES ('C', 8)").await;
    pair.waits(1).await;
    pair.done(&["replay", "--from", "beginning"]).await;
    pair.has("a 7, b 2, c 3").await;
    pair.waits(1).await;
    // A new copy as well, but for who has the key of the two.
    pair.done(&["resnapshot", "t"]).await;
    let either = "SELECT count(*) = 3 AND count(*) FILTER (WHERE code = 'c' AND n IN (3, 8)) = 1 FROM t";
    pair.waits(1).await;
    eventually("either", SOON, async || pair.target.value(either).await.as_deref() == Some("t")).await;
    assert_eq!(pair.verified().await, (Some(1), 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_rows_that_claim_one_key_take_turns_on_mysql_80() {
    contested(Pair::mysql(Mysql::v80().await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_rows_that_claim_one_key_take_turns_on_postgresql() {
    contested(Pair::postgres(Postgres::v18().await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_a_new_copy_gives_the_key_of_a_row_that_was_deleted_unseen_to_who_waits() {
    let pair = Pair::mysql(Mysql::v80().await).await;
    pair.exec("INSERT INTO t VALUES ('A', 1), ('b', 2), ('D', 4)").await;
    let _worker = pair.work.start(&[]);
    pair.has("a 1, b 2, d 4").await;
    pair.exec("INSERT INTO t VALUES ('a', 9), ('B', 8)").await;
    pair.waits(2).await;
    pair.exec("SET sql_log_bin = 0; DELETE FROM t WHERE code IN ('A', 'D'); SET sql_log_bin = 1").await;
    pair.done(&["resnapshot", "t"]).await;
    // a has its key, nobody has d, and one of b and B waits.
    let ended = "SELECT count(*) = 2 AND count(*) FILTER (WHERE code = 'a' AND n = 9 OR code = 'b' AND n IN (2, 8)) = 2
                 FROM t";
    eventually("swept", SOON, async || pair.target.value(ended).await.as_deref() == Some("t")).await;
    pair.waits(1).await;
    assert_eq!(pair.verified().await, (Some(1), 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_37_a_run_until_synced_does_everything_else_and_says_who_waits_for_a_key() {
    let pair = Pair::mysql(Mysql::v80().await).await;
    pair.exec("INSERT INTO t VALUES ('A', 1), ('a', 2), ('b', 3)").await;
    let mut worker: Worker = pair.work.start(&["--until-synced"]);
    let code = worker.wait_exit(SOON).await.code();
    let said = worker.stderr();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("two source rows map to one target key"), "{said}");
    assert_eq!(pair.target.value("SELECT count(*) FROM t").await.as_deref(), Some("2"));
    pair.exec("DELETE FROM t WHERE code = 'a'").await;
    let mut worker: Worker = pair.work.start(&["--until-synced"]);
    assert_eq!(worker.wait_exit(SOON).await.code(), Some(0), "{}", worker.stderr());
    pair.has("a 1, b 3").await;
}
