//! Servers of this test process alone, for tests that kill, pause or reconfigure them.
//!
//! They are an instance of `scripts/services` with ports of its own, started when first asked for. A guard process
//! wipes them when this process is gone, however it ended. One test has a server at a time.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

/// Below the ports of all other instances.
const PORT_BASES: std::ops::Range<u16> = 2000..2270;
/// What `scripts/services` adds to the base for the servers used here.
const PORT_OFFSETS: [u16; 8] = [80, 83, 92, 93, 306, 307, 309, 2432];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    Mysql57,
    Mysql80,
    Mariadb,
    Pg15,
    Kafka,
    Dynamodb,
    /// Take Kafka first.
    Connect,
}

static SERVERS: [Mutex<()>; 7] = [const { Mutex::const_new(()) }; 7];
static PORT_BASE: OnceLock<u16> = OnceLock::new();

/// A running server that no other test uses meanwhile.
pub struct OwnServer {
    server: Own,
    pub url: &'static str,
    _turn: MutexGuard<'static, ()>,
}

impl Own {
    fn name(self) -> &'static str {
        match self {
            Self::Mysql57 => "mysql57",
            Self::Mysql80 => "mysql80",
            Self::Mariadb => "mariadb",
            Self::Pg15 => "pg15",
            Self::Kafka => "kafka",
            Self::Dynamodb => "dynamodb",
            Self::Connect => "connect",
        }
    }

    /// Starts it for all tests of this process, each of which has tables of its own.
    pub fn share(self) -> String {
        start(self)
    }

    pub async fn take(self) -> OwnServer {
        let turn = SERVERS[self as usize].lock().await;
        let url = start(self);
        OwnServer { server: self, url: Box::leak(url.into_boxed_str()), _turn: turn }
    }
}

impl OwnServer {
    /// Starts it again after it was ended, on the same data.
    pub fn start(&self) {
        start(self.server);
    }

    /// Ends it and deletes everything that it had.
    pub fn wipe(&self) {
        services(&["wipe", self.server.name()]);
    }

    /// Where its data are.
    pub fn data(&self) -> PathBuf {
        services_folder().join(instance()).join(self.server.name()).join("data")
    }

    /// Stops it and starts it with more options, such as `--skip-log-bin`; without any it is as it was.
    pub fn restart_with(&self, options: &str) {
        services(&["stop", self.server.name()]);
        let started =
            command(port_base()).args(["start", self.server.name()]).env("CUTOVER_MYSQL_OPTIONS", options).output();
        let started = started.unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    }

    /// Ends it without letting it finish anything, and waits until it is gone.
    pub fn crash(&self) {
        // PostgreSQL's processes share memory: they end together on SIGQUIT, which writes nothing either.
        let signal = if self.server == Own::Pg15 { "-QUIT" } else { "-KILL" };
        let status = services(&["status", self.server.name()]);
        let pid = status.split_once("pid=").unwrap().1.split(' ').next().unwrap().to_owned();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        while Path::new(&format!("/proc/{pid}")).exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for OwnServer {
    /// The broker that holds what Kafka Connect knows belongs to other tests from here on, and they make it forget. A
    /// test that fails may leave any server with options that are not those of the next.
    fn drop(&mut self) {
        if self.server == Own::Connect || std::thread::panicking() {
            let stopped = command(port_base()).args(["stop", self.server.name()]).status();
            assert!(std::thread::panicking() || stopped.is_ok_and(|status| status.success()));
        }
    }
}

fn start(server: Own) -> String {
    let out = services(&["start", server.name()]);
    out.lines().find_map(|line| line.strip_prefix(server.name())).unwrap().trim().to_owned()
}

fn instance() -> String {
    format!("own-{}", std::process::id())
}

fn port_base() -> u16 {
    *PORT_BASE.get_or_init(|| {
        let from = usize::try_from(std::process::id()).unwrap() % PORT_BASES.len();
        let free =
            |base: &u16| PORT_OFFSETS.iter().all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok());
        let base = PORT_BASES.cycle().skip(from).take(PORT_BASES.len()).map(|base| base * 10).find(free).unwrap();
        guard(base);
        base
    })
}

fn command(base: u16) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
    let mut command = Command::new(script);
    command.args(["--instance", &instance()]).env("CUTOVER_PORT_BASE", base.to_string());
    command
}

fn services_folder() -> PathBuf {
    std::env::var_os("CUTOVER_SERVICES_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".services"), Into::into)
}

/// Wipes the instance when this process has ended.
#[expect(clippy::zombie_processes, reason = "the guard outlives this process")]
fn guard(base: u16) {
    let folder = services_folder();
    let wait = format!(
        "while [ -d /proc/{} ]; do sleep 0.5; done; \"$@\"; cd '{}' && rmdir {instance}; rm -f locks/{instance}-*",
        std::process::id(),
        folder.display(),
        instance = instance(),
    );
    let wipe = command(base);
    let mut guard = Command::new("setsid");
    guard.args(["bash", "-c", &wait, "guard"]).arg(wipe.get_program()).args(wipe.get_args()).arg("wipe");
    guard.env("CUTOVER_PORT_BASE", base.to_string());
    guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
}

fn services(arguments: &[&str]) -> String {
    let out = command(port_base()).args(arguments).output().unwrap();
    assert!(out.status.success(), "scripts/services {arguments:?} failed: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
