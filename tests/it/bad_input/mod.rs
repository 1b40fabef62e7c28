//! Bad input on real servers: what is wrong is named with what to do about it, the exit code says whose turn it is, no
//! password shows anywhere, and once it is put right nothing is missing.
//!
//! Both sides are met as users that may do no more than they need.

mod configuration;
mod machine;
mod rows;
mod source;
mod target;
mod transforms;

use std::{net::TcpListener, time::Duration};

use crate::support::{Mysql, Postgres, Worker, Workspace, eventually};

/// Each is looked for in everything that is printed.
const SOURCE_PASSWORD: &str = "Source-Pa55word";
const TARGET_PASSWORD: &str = "Target-Pa55word";

/// What docs/operations.md tells to grant at the source; `{}` is the database.
const SOURCE_GRANTS: [&str; 2] = ["REPLICATION SLAVE, REPLICATION CLIENT ON *.*", "SELECT ON {}.*"];

const START_LIMIT: Duration = Duration::from_secs(30);
const SYNC_LIMIT: Duration = Duration::from_secs(60);

/// How a command ended and all that it printed.
struct Said {
    code: Option<i32>,
    text: String,
}

impl Said {
    /// It ended with this code and said all of these words.
    #[track_caller]
    fn expect(&self, code: i32, words: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{}", self.text);
        for word in words {
            assert!(self.text.contains(word), "`{word}` is not in\n{}", self.text);
        }
        for password in [SOURCE_PASSWORD, TARGET_PASSWORD] {
            assert!(!self.text.contains(password), "a password was printed:\n{}", self.text);
        }
        self
    }
}

/// A pipeline between a database of each kind, with tables that are filled already.
struct Pipeline {
    source: Mysql,
    target: Postgres,
    work: Workspace,
}

impl Pipeline {
    /// On MySQL 5.7 and PostgreSQL 15; the target's tables belong to the pipeline's role.
    async fn new(source_sql: &str, target_sql: &str) -> Self {
        Self::between(Mysql::v57().await, Postgres::v15().await, source_sql, target_sql).await
    }

    async fn between(source: Mysql, target: Postgres, source_sql: &str, target_sql: &str) -> Self {
        source.exec(source_sql).await;
        let grants: Vec<String> = SOURCE_GRANTS.iter().map(|grant| grant.replace("{}", source.database())).collect();
        let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
        let user = source.user(SOURCE_PASSWORD, &grants).await;
        let role = target.role(TARGET_PASSWORD).await;
        target.exec(&format!("ALTER DATABASE {role} OWNER TO {role}")).await;
        // The name makes the replica's id, of which a server knows each once.
        let work = Workspace::new(
            source.database(),
            &source.url_as(&user, SOURCE_PASSWORD),
            &target.url_as(&role, TARGET_PASSWORD),
            &[],
        );
        let pipeline = Self { source, target, work };
        pipeline.at_target(target_sql).await;
        pipeline.configure("tables = []\n", "");
        // Whatever else listens on the default port here.
        pipeline.work.configure_also("[http]\nlisten = \"127.0.0.1:0\"\n");
        pipeline
    }

    /// One table with three rows on both sides.
    async fn small() -> Self {
        Self::new(
            "CREATE TABLE t (id int PRIMARY KEY, v varchar(40)); INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, NULL)",
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
        )
        .await
    }

    /// Runs statements as the pipeline's role, to which belongs what they make.
    async fn at_target(&self, sql: &str) {
        self.target.exec(&format!("SET ROLE {}", self.target.database())).await;
        self.target.exec(sql).await;
        self.target.exec("RESET ROLE").await;
    }

    fn configure(&self, from: &str, to: &str) {
        let text = self.work.configuration();
        assert!(text.contains(from), "`{from}` is not in\n{text}");
        self.work.configure(&text.replace(from, to));
    }

    async fn command(&self, arguments: &[&str]) -> Said {
        let output = self.work.run(arguments).await;
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Said { code: output.status.code(), text: text.concat() }
    }

    async fn check(&self) -> Said {
        self.command(&["check"]).await
    }

    /// `run` with these arguments, to its end.
    async fn run(&self, arguments: &[&str], limit: Duration) -> Said {
        let mut worker = self.work.start(arguments);
        end_of(&mut worker, limit).await
    }

    /// Both `check` and a worker refuse, in these words.
    async fn refused(&self, words: &[&str]) {
        let mut with_fix = words.to_vec();
        with_fix.push("fix: ");
        self.check().await.expect(1, &with_fix);
        self.run(&[], START_LIMIT).await.expect(3, words);
    }

    async fn synced(&self) -> Said {
        self.run(&["--until-synced"], SYNC_LIMIT).await
    }

    /// After the repair `check` is content, and a worker brings everything over.
    async fn recovered(&self) {
        self.check().await.expect(0, &["ready: "]);
        self.synced().await.expect(0, &[]);
        self.assert_equal().await;
    }

    /// The table `t` holds the same on both sides.
    async fn assert_equal(&self) {
        let at_source = self.source.query("SELECT id, v FROM t ORDER BY id").await;
        assert!(!at_source.is_empty());
        assert_eq!(self.target.query("SELECT id, v FROM t ORDER BY id").await, at_source);
        let set_aside = "SELECT (SELECT count(*) FROM cutover.dead_letters WHERE state = 'open') + (SELECT count(*) FROM cutover.waiting)";
        assert_eq!(self.target.value(set_aside).await.as_deref(), Some("0"));
    }

    /// A server that is not there at the start is waited for, visibly, and then used.
    async fn waited_for(&self, part: &str, url: &str) {
        let mut gate = Gate::before(url);
        let address = format!("127.0.0.1:{}", gate.port);
        self.configure(&format!("127.0.0.1:{}/", gate.server), &format!("{address}/"));
        self.check().await.expect(1, &[&format!("{part}: "), &address, "fix: "]);
        let mut worker = self.work.start(&["--until-synced"]);
        eventually("the worker says what it waits for", START_LIMIT, async || worker.stderr().contains(&address)).await;
        let (status, why) = worker.get("/readyz").await.unwrap();
        assert_eq!(status, 503);
        assert!(why.contains(&format!("{part} is retrying: ")) && why.contains(&address), "{why}");
        assert!(worker.get("/healthz").await.unwrap().0 == 200);
        gate.open().await;
        end_of(&mut worker, SYNC_LIMIT).await.expect(0, &["recovered"]);
        self.assert_equal().await;
    }

    /// Waits until `status --json` has all of these parts.
    async fn eventually_status(&self, words: &[&str]) {
        eventually(&format!("status has {words:?}"), Duration::from_secs(30), async || {
            let status = self.command(&["status", "--json"]).await;
            words.iter().all(|word| status.text.contains(word))
        })
        .await;
    }
}

/// A server that does not answer yet: nothing listens on the port before `open`.
struct Gate {
    port: u16,
    server: u16,
    forwarding: Option<tokio::task::JoinHandle<()>>,
}

impl Gate {
    /// Before the server of this URL.
    fn before(url: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { port, server: url::Url::parse(url).unwrap().port().unwrap(), forwarding: None }
    }

    async fn open(&mut self) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let server = self.server;
        self.forwarding = Some(tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut upstream = tokio::net::TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    let _ended = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                });
            }
        }));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(forwarding) = &self.forwarding {
            forwarding.abort();
        }
    }
}

async fn end_of(worker: &mut Worker, limit: Duration) -> Said {
    let code = worker.wait_exit(limit).await.code();
    Said { code, text: worker.stderr() }
}

/// Stops a worker as an operator does; it must have been well until then.
async fn stop(mut worker: Worker) -> Said {
    assert!(worker.is_running(), "{}", worker.stderr());
    worker.terminate().await;
    end_of(&mut worker, Duration::from_secs(11)).await
}
