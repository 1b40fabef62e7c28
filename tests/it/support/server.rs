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
    Kafka,
}

static URLS: [OnceCell<String>; 7] = [const { OnceCell::const_new() }; 7];
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
            Self::Kafka => "kafka",
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
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
    let out = Command::new(&script).args(arguments).output().unwrap();
    assert!(out.status.success(), "scripts/services {arguments:?} failed: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
