//! The built binary, run as a user runs it: a folder with `cutover.toml` and transforms, commands, and workers that can
//! be killed and started again on the same folder.

#![allow(dead_code, reason = "the tests of the command line and the pipeline are the users")]

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::http;

/// Above the servers' ports, and below those that the system gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 27_000..32_500;
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const EXIT_LIMIT: Duration = Duration::from_secs(10);
const STDERR_SHOWN_BYTES: usize = 16 * 1024;

static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
static NEXT_LOG: AtomicU16 = AtomicU16::new(0);

/// The folder of one pipeline. It outlives its workers.
pub struct Workspace {
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Workspace {
    /// The smallest configuration; `name` keys all state, so tests that share a target need different ones.
    pub fn new(name: &str, source_url: &str, target_url: &str, tables: &[&str]) -> Self {
        let workspace = Self { folder: tempfile::tempdir().unwrap(), environment: Vec::new() };
        fs::create_dir(workspace.path().join("transforms")).unwrap();
        workspace.configure(&format!(
            "name = {name:?}\n\n[source]\nurl = {source_url:?}\ntables = {tables:?}\n\n[target]\nurl = {target_url:?}\n"
        ));
        workspace
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Sets a variable in the environment of every later command.
    pub fn set_env(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    /// Replaces the whole configuration.
    pub fn configure(&self, toml: &str) {
        fs::write(self.path().join("cutover.toml"), toml).unwrap();
    }

    pub fn configuration(&self) -> String {
        fs::read_to_string(self.path().join("cutover.toml")).unwrap()
    }

    /// Adds tables to the configuration, such as `"[snapshot]\nchunk_rows = 100\n"`.
    pub fn configure_also(&self, toml: &str) {
        self.configure(&format!("{}\n{toml}", self.configuration()));
    }

    pub fn transform(&self, target_table: &str, sql: &str) {
        fs::write(self.path().join("transforms").join(format!("{target_table}.sql")), sql).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cutover"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null()).kill_on_drop(true);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end, whatever its exit code.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output();
        timeout(COMMAND_LIMIT, output).await.unwrap_or_else(|_| panic!("cutover {arguments:?}: no end")).unwrap()
    }

    /// Starts a command whose output is read while it runs.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Starts `cutover run` with these further arguments, on a port of its own.
    pub fn start(&self, arguments: &[&str]) -> Worker {
        let listen = format!("127.0.0.1:{}", free_port());
        let stderr = self.path().join(format!("worker-{}.stderr", NEXT_LOG.fetch_add(1, Ordering::Relaxed)));
        let mut command = self.command(&["run", "--listen", &listen]);
        command.args(arguments).stdout(Stdio::null()).stderr(File::create(&stderr).unwrap());
        Worker { child: command.spawn().unwrap(), listen, stderr: File::open(&stderr).unwrap() }
    }
}

/// One worker process. Dropping it kills it; if the test is failing, its last words are shown.
pub struct Worker {
    child: Child,
    listen: String,
    /// Open, since a test that fails may drop the folder first.
    stderr: File,
}

impl Worker {
    /// As a power cut does: no handler runs.
    pub async fn kill9(&mut self) {
        self.child.start_kill().unwrap();
        self.wait_exit(EXIT_LIMIT).await;
    }

    /// Asks for a drain; `wait_exit` follows.
    pub async fn terminate(&self) {
        self.signal("TERM").await;
    }

    /// Sends a signal by its name: `STOP` and `CONT` pause a worker and let it go on.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("the worker has ended already").to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().await.unwrap();
        assert!(status.success(), "no SIG{name} could be sent");
    }

    pub async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        timeout(limit, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("the worker did not exit within {limit:?}"))
            .unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The most memory that it had, in MiB.
    pub fn peak_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    pub fn listen(&self) -> &str {
        &self.listen
    }

    pub fn stderr(&self) -> String {
        let (mut file, mut said) = (&self.stderr, Vec::new());
        file.rewind().unwrap();
        file.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    }

    pub async fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        http::get(&self.listen, path).await
    }

    pub async fn metrics(&self) -> String {
        let (status, body) = self.get("/metrics").await.unwrap_or_else(|error| panic!("/metrics: {error}"));
        assert_eq!(status, 200, "{body}");
        body
    }

    /// A sample by its name, labels included as they are printed:
    /// `cutover_changes_applied_total{table="t",op="insert"}`.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let metrics = self.metrics().await;
        metrics.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _already_ended = self.child.start_kill();
        if std::thread::panicking() {
            let said = self.stderr();
            let from = said.len().saturating_sub(STDERR_SHOWN_BYTES);
            let from = (from..=said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("--- stderr of the worker on {} ---\n{}--- end ---", self.listen, &said[from..]);
        }
    }
}

/// A port that nothing holds now. Test processes begin at different places, so that two of them seldom meet.
fn free_port() -> u16 {
    let offset = u16::try_from(std::process::id() % 55).unwrap() * 100;
    for _ in PORTS {
        let step = offset.wrapping_add(NEXT_PORT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + step % (PORTS.end - PORTS.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free between {} and {}", PORTS.start, PORTS.end);
}
