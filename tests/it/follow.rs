//! A source, a target and a pipeline between them: what the tests of the running worker stand on.

use std::{ops::Range, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

use crate::support::{Mysql, Postgres, Rows, Worker, Workspace, eventually};

/// How long anything may take that takes a second on a quiet machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

const CONTENTS: &str = "SELECT id, n, note FROM t ORDER BY id";

/// One table, `t (id, n, note)`, on both sides.
pub struct Follow {
    pub source: Mysql,
    pub target: Postgres,
    pub work: Workspace,
}

impl Follow {
    /// The pipeline has the name of the source's database: its server id must be its own among all tests.
    pub async fn new(source: Mysql, target: Postgres) -> Self {
        source.exec("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, note longtext CHARACTER SET utf8mb4)").await;
        target.exec("CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL, note text)").await;
        let work = Workspace::new(source.database(), &source.url(), &target.url(), &["t"]);
        Follow { source, target, work }
    }

    /// With these rows, copied, and a worker that follows.
    pub async fn running(source: Mysql, target: Postgres, ids: Range<u32>) -> (Self, Worker) {
        let pipe = Self::new(source, target).await;
        pipe.insert(ids).await;
        let worker = pipe.work.start(&[]);
        following(&worker).await;
        (pipe, worker)
    }

    pub fn name(&self) -> &str {
        self.source.database()
    }

    pub async fn insert(&self, ids: Range<u32>) {
        let rows: Vec<String> = ids.map(|id| format!("({id}, 0, 'row {id}')")).collect();
        for rows in rows.chunks(2000) {
            self.source.exec(&format!("INSERT INTO t VALUES {}", rows.join(", "))).await;
        }
    }

    /// Makes `count` rows of `note_bytes` in one transaction, from `first` on.
    pub async fn insert_at_once(&self, first: u32, count: u32, note_bytes: u32) {
        let digits: Vec<String> = (0..100).map(|digit| format!("({digit})")).collect();
        self.source.exec("CREATE TABLE IF NOT EXISTS digits (i int PRIMARY KEY)").await;
        self.source.exec(&format!("REPLACE INTO digits VALUES {}", digits.join(", "))).await;
        let number = "a.i * 10000 + b.i * 100 + c.i";
        self.source
            .exec(&format!(
                "INSERT INTO t SELECT {first} + {number}, 1, REPEAT('x', {note_bytes}) FROM digits a, digits b, digits c \
                 WHERE {number} < {count}"
            ))
            .await;
    }

    pub async fn contents(&self) -> (Rows, Rows) {
        (self.source.query(CONTENTS).await, self.target.query(CONTENTS).await)
    }

    /// Waits until both sides are equal.
    pub async fn in_step(&self) {
        eventually("source and target are equal", PATIENCE, async || {
            let (source, target) = self.contents().await;
            source == target
        })
        .await;
    }

    /// What a query of one value gives at the target; none while the state is not there yet.
    pub async fn at_target(&self, sql: &str) -> Option<String> {
        let client = self.target.connect().await;
        let rows = client.simple_query(sql).await.ok()?;
        rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    pub async fn eventually_at_target(&self, sql: &str, wanted: &str) {
        eventually(&format!("{sql} is {wanted}"), PATIENCE, async || {
            self.at_target(sql).await.as_deref() == Some(wanted)
        })
        .await;
    }

    /// Loses the embedded log, as a lost disk does.
    pub fn lose_log(&self) {
        std::fs::remove_dir_all(self.log_folder()).unwrap();
    }

    pub fn log_folder(&self) -> std::path::PathBuf {
        self.work.path().join("cutover-data/log")
    }
}

/// Stops a worker and expects that it says goodbye as it should.
pub async fn stop(worker: &mut Worker) {
    worker.terminate().await;
    let status = worker.wait_exit(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}: {}", worker.stderr());
}

/// The status as the worker serves it; none while it cannot.
pub async fn status(worker: &Worker) -> Option<Value> {
    match worker.get("/status").await {
        Ok((200, body)) => serde_json::from_str(&body).ok(),
        Ok(_) | Err(_) => None,
    }
}

pub async fn following(worker: &Worker) {
    eventually("the copy is complete", PATIENCE, async || {
        status(worker).await.is_some_and(|status| status["phase"] == "following")
    })
    .await;
}

/// Waits for a halt; its reason and its remedy.
pub async fn halted(worker: &Worker) -> (String, String) {
    let mut halt = None;
    eventually("the worker halts", PATIENCE, async || {
        halt = status(worker).await.map(|status| status["halted"].clone()).filter(Value::is_object);
        halt.is_some()
    })
    .await;
    let halt = halt.unwrap();
    let text = |key: &str| halt[key].as_str().unwrap().to_owned();
    (text("reason"), text("remedy"))
}

/// Waits until `/readyz` answers this, and gives its text.
pub async fn ready(worker: &Worker, wanted: u16) -> String {
    let mut text = String::new();
    eventually(&format!("/readyz is {wanted}"), PATIENCE, async || match worker.get("/readyz").await {
        Ok((found, body)) => {
            text = body;
            found == wanted
        }
        Err(_) => false,
    })
    .await;
    text
}

/// The sum of a metric's samples that have all these labels; none if there is no such sample, or no worker yet.
pub async fn metric(worker: &Worker, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let (_, metrics) = worker.get("/metrics").await.ok()?;
    let wanted: Vec<String> = labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    let samples = metrics.lines().filter_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let (found, found_labels) = sample.split_once('{').unwrap_or((sample, ""));
        let fits = found == name && wanted.iter().all(|label| found_labels.contains(label.as_str()));
        fits.then(|| value.parse::<f64>().ok())?
    });
    samples.reduce(|sum, value| sum + value)
}

pub async fn lag(worker: &Worker) -> Option<f64> {
    metric(worker, "cutover_sync_lag_seconds", &[]).await
}

/// What a network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Open,
    /// Connections stay, and nothing passes.
    Frozen,
    /// Connections break, and new ones are refused.
    Cut,
}

/// A network between a worker and a server.
pub struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    deserted: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of the server of this URL.
    pub async fn new(url: &str, network: Network) -> Self {
        let url = url::Url::parse(url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = watch::Sender::new(network);
        let states = network.subscribe();
        let deserted = watch::Sender::new(());
        let desertions = deserted.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *states.borrow() != Network::Cut {
                    tokio::spawn(connect(client, server.clone(), states.clone(), desertions.subscribe()));
                }
            }
        });
        Proxy { port, network, deserted, accepting }
    }

    /// The URL that leads through this network.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.into()
    }

    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Takes the server away from the connections that there are, without a word to their clients. New ones are not
    /// concerned.
    pub fn desert(&self) {
        self.deserted.send_replace(());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.network.send_replace(Network::Cut);
    }
}

async fn connect(
    client: TcpStream,
    server: String,
    network: watch::Receiver<Network>,
    mut deserted: watch::Receiver<()>,
) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(&mut from_client, &mut to_server, network.clone()) => return,
        () = pump(&mut from_server, &mut to_client, network) => return,
        _ = deserted.changed() => {}
    }
    drop((from_server, to_server));
    let _until_the_client_gives_up = tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await;
}

async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mut network: watch::Receiver<Network>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read.unwrap_or(0),
            _ = network.wait_for(|state| *state == Network::Cut) => return,
        };
        let open = network.wait_for(|state| *state != Network::Frozen).await.map(|state| *state).ok();
        if read == 0 || open != Some(Network::Open) {
            return;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// Sessions that write until they are stopped: one task each.
pub struct Load {
    stop: watch::Sender<bool>,
    writers: Vec<JoinHandle<u64>>,
}

impl Load {
    /// Each writer runs `statement(writer, round)`, again and again, with this pause in between.
    pub async fn start(
        source: &Mysql,
        writers: u64,
        pause: Duration,
        statement: impl Fn(u64, u64) -> String + Send + Sync + 'static,
    ) -> Self {
        let stop = watch::Sender::new(false);
        let statement = Arc::new(statement);
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let mut conn = source.connect().await;
            let (stopped, statement) = (stop.subscribe(), Arc::clone(&statement));
            tasks.push(tokio::spawn(async move {
                let mut round = 0;
                while !*stopped.borrow() {
                    let sql = statement(writer, round);
                    mysql_async::prelude::Queryable::query_drop(&mut conn, sql).await.unwrap();
                    round += 1;
                    tokio::time::sleep(pause).await;
                }
                round
            }));
        }
        Load { stop, writers: tasks }
    }

    /// Stops all writers; how many statements they ran.
    pub async fn stop(self) -> u64 {
        self.stop.send_replace(true);
        let mut rounds = 0;
        for writer in self.writers {
            rounds += writer.await.unwrap();
        }
        rounds
    }
}
