//! Starting servers, and the names of the databases that tests get on them.
//!
//! In: the output of `scripts/services`. Out: a URL for each server, started at most once per test process. A database
//! is called `it_<pid>_<number>`, so that what a killed run left behind is known by its dead process and swept.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::OnceCell;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Mysql57,
    Mysql80,
    Mysql97,
    Mariadb,
    Pg15,
    Pg18,
}

static URLS: [OnceCell<String>; 6] = [const { OnceCell::const_new() }; 6];
/// MySQL 5.7's place among the ports of an instance of `scripts/services`.
const MYSQL57_OFFSET: u16 = 306;
/// The ports of servers that are a test's own, between those of the shared instances.
const OWN_PORTS: std::ops::Range<u16> = 26_000..26_400;

static DATABASES: AtomicUsize = AtomicUsize::new(0);

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Mysql57 => "mysql57",
            Self::Mysql80 => "mysql80",
            Self::Mysql97 => "mysql97",
            Self::Mariadb => "mariadb",
            Self::Pg15 => "pg15",
            Self::Pg18 => "pg18",
        }
    }

    /// The administrator's URL of a server that answers. `sweep` runs once, on the first use in this process.
    pub async fn url(self, sweep: impl AsyncFnOnce(&str)) -> &'static str {
        let cell = &URLS[self as usize];
        cell.get_or_init(async || {
            let out = services(&["start", self.name()]);
            let url = out.lines().find_map(|line| line.strip_prefix(self.name())).unwrap().trim().to_owned();
            sweep(&url).await;
            url
        })
        .await
    }
}

/// A MySQL 5.7 of a test's own, for settings that hold for a whole server. Wiped when dropped.
pub struct OwnMysql {
    instance: String,
    port_base: String,
    url: &'static str,
}

impl OwnMysql {
    pub fn start() -> Self {
        sweep_own();
        let offset = u16::try_from(std::process::id() % 40).unwrap() * 10;
        let span = OWN_PORTS.end - OWN_PORTS.start;
        let mut ports = (0..span).map(|step| OWN_PORTS.start + (offset + step) % span);
        let port = ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
        let mut own = Self {
            instance: format!("own-{}-{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed)),
            port_base: (port - MYSQL57_OFFSET).to_string(),
            url: "",
        };
        // Lives as long as the process, like the URLs of the shared servers.
        own.url = Box::leak(own.start_with("").into_boxed_str());
        own
    }

    pub fn url(&self) -> &'static str {
        self.url
    }

    /// Stops the server and starts it with more options.
    pub fn restart_with(&self, options: &str) {
        self.services("stop", "");
        self.start_with(options);
    }

    fn start_with(&self, options: &str) -> String {
        let out = self.services("start", options);
        out.lines().find_map(|line| line.strip_prefix("mysql57 ")).unwrap().trim().to_owned()
    }

    fn services(&self, command: &str, options: &str) -> String {
        let own = [("CUTOVER_PORT_BASE", self.port_base.as_str()), ("CUTOVER_MYSQL_OPTIONS", options)];
        services_with(&["--instance", &self.instance, command, "mysql57"], &own)
    }
}

impl Drop for OwnMysql {
    fn drop(&mut self) {
        wipe(&self.instance);
    }
}

/// Wipes what killed runs left behind.
fn sweep_own() {
    let Ok(entries) = std::fs::read_dir(services_folder()) else { return };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let pid = name.strip_prefix("own-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            wipe(&name);
        }
    }
}

fn wipe(instance: &str) {
    // No port matters for this, but the script wants to be told one.
    services_with(&["--instance", instance, "wipe", "mysql57"], &[("CUTOVER_PORT_BASE", "26000")]);
    let root = services_folder();
    let _gone = std::fs::remove_dir(root.join(instance));
    let _gone = std::fs::remove_file(root.join("locks").join(format!("{instance}-mysql57")));
}

fn services_folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(".services");
    std::env::var_os("CUTOVER_SERVICES_DIR").map_or(here, PathBuf::from)
}

/// The CA that signed the certificates of MySQL 9.7, MariaDB and both PostgreSQL servers.
pub fn tls_ca() -> PathBuf {
    let out = services(&["env", "mysql97"]);
    PathBuf::from(out.lines().find_map(|line| line.strip_prefix("CUTOVER_TLS_CA=")).unwrap())
}

/// A database name that no other test has, here or in another process.
pub fn fresh_database() -> String {
    format!("it_{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed))
}

/// Whether a test process that is gone left this database behind.
pub fn is_left_behind(database: &str) -> bool {
    let pid = database.strip_prefix("it_").and_then(|rest| rest.split('_').next());
    pid.and_then(|pid| pid.parse::<u32>().ok()).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// The same URL with another user, password or database.
pub fn url_with(url: &str, login: Option<(&str, &str)>, database: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    if let Some((user, password)) = login {
        url.set_username(user).unwrap();
        url.set_password(Some(password)).unwrap();
    }
    url.set_path(database);
    url.into()
}

/// Runs asynchronous cleanup to its end from a `drop`, whose own runtime may be about to stop.
pub fn clean_up(work: impl Future<Output = ()> + Send + 'static) {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _late = runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(20), work).await });
    };
    let _panicked = std::thread::spawn(run).join();
}

fn services(arguments: &[&str]) -> String {
    services_with(arguments, &[])
}

fn services_with(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
    let out = Command::new(&script).args(arguments).envs(environment.iter().copied()).output().unwrap();
    assert!(out.status.success(), "scripts/services {arguments:?} failed: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
