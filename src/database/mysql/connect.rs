//! Connecting to MySQL and MariaDB.
//!
//! What enters: a URL, `mysql://user:password@host:port/database?tls=verify|require|disable&ca=FILE`. What leaves:
//! connections whose session is pinned, so that no server or user default can change what a value looks like: UTC,
//! utf8mb4, an empty `sql_mode`, REPEATABLE READ. A connection that fails says whether trying again can help. Absent on
//! purpose: a pool (every stage owns its connections), and the password in any message or log.

use std::{
    fmt,
    sync::{Arc, Once},
    time::Duration,
};

use mysql_async::{Conn, DriverError, IoError, Opts, OptsBuilder, ServerError, SslOpts};
use url::Url;

use crate::model::{Disposition, Problem};

/// How long a connection may take to be established, log-in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the network may be silent before TCP asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The protocol's own limit: rows up to here pass.
const PACKET_BYTES_MAX: usize = 1 << 30;
const DEFAULT_PORT: u16 = 3306;

/// The session that every connection gets.
///
/// `sql_mode = ''` allows zero dates in comparisons, gives backslashes and double quotes one meaning, and pads no CHAR.
/// The network timeouts are long because a scan is read as slowly as the log takes it. The comments are MySQL's and
/// MariaDB's names of one thing: no limit on how long a SELECT may run.
const SESSION: &str = "SET time_zone = '+00:00', sql_mode = '', autocommit = 1, net_write_timeout = 3600, \
     net_read_timeout = 3600, wait_timeout = 86400 /*!50708 , max_execution_time = 0 */ /*M!100100 , max_statement_time = 0 */";
const NAMES: &str = "SET NAMES utf8mb4";
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.problem())]
pub enum ConnectError {
    /// The URL is no address of a server.
    Url { problem: String },
    /// The file with the certificate authority cannot be used.
    CaFile { path: String, source: std::io::Error },
    /// Wrong password, no such user, no such database, no right to it.
    Denied { server: String, code: u16, message: String },
    /// Nobody answers there.
    Unreachable { server: String, reason: String },
    /// The server cannot be talked to under TLS as it is asked for.
    Tls { server: String, reason: String },
    /// TLS is wanted, and the server has none.
    NoTls { server: String },
    /// A way of logging in that is not known here.
    AuthPlugin { server: String, plugin: String },
}

impl ConnectError {
    /// What is wrong with a source's connection, and what to do about it.
    pub fn problem(&self) -> Problem {
        self.problem_of("source")
    }

    /// What is wrong with the connection that this section's URL names, and what to do about it.
    pub fn problem_of(&self, section: &str) -> Problem {
        match self {
            ConnectError::Url { problem } => {
                Problem::new(format!("the {section} URL {problem}"), "write mysql://user:password@host:3306/database")
            }
            ConnectError::CaFile { path, source } => Problem::new(
                format!("the CA file {path} cannot be read: {source}"),
                format!("correct `ca=` in the {section} URL"),
            ),
            ConnectError::Denied { server, code, message } => Problem::new(
                format!("{server} refuses the login: {message} (error {code})"),
                format!("correct user, password or database in [{section}] url, or grant what is missing"),
            ),
            ConnectError::Unreachable { server, reason } => Problem::bare(format!("{server} is unreachable: {reason}")),
            ConnectError::Tls { server, reason } => Problem::new(
                format!("TLS with {server} failed: {reason}"),
                "cutover speaks TLS 1.2 (ECDHE) and 1.3 and verifies the certificate: give the server such a \
                 configuration, name its CA with `&ca=FILE`, or choose `tls=require` (no verification) or \
                 `tls=disable`",
            ),
            ConnectError::NoTls { server } => Problem::new(
                format!("{server} offers no TLS"),
                "turn it on there, or add `?tls=disable` to the URL if the network is trusted",
            ),
            ConnectError::AuthPlugin { server, plugin } => Problem::new(
                format!("{server} wants the authentication plugin `{plugin}`, which cutover does not speak"),
                "give the user caching_sha2_password or mysql_native_password (ALTER USER … IDENTIFIED WITH …)",
            ),
        }
    }

    /// Whether trying again can help.
    pub fn disposition(&self) -> Disposition {
        match self {
            ConnectError::Unreachable { .. } => Disposition::Retry,
            ConnectError::Url { .. }
            | ConnectError::CaFile { .. }
            | ConnectError::Denied { .. }
            | ConnectError::Tls { .. }
            | ConnectError::NoTls { .. }
            | ConnectError::AuthPlugin { .. } => Disposition::Halt,
        }
    }
}

/// What is checked of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    Verify,
    /// Encrypted, to whoever answers.
    Require,
    Disable,
}

/// A parsed URL: makes connections.
#[derive(Clone)]
pub struct Connector {
    opts: Opts,
    server: String,
    database: Option<String>,
}

impl fmt::Debug for Connector {
    /// Without the password, which [`Opts`] would print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("server", &self.server).field("database", &self.database).finish()
    }
}

impl Connector {
    /// Parses a URL. Reads the CA file if one is named; connects to nothing.
    pub fn new(url: &str) -> Result<Self, ConnectError> {
        install_tls_provider();
        let parsed = ParsedUrl::new(url)?;
        let server = format!("{}:{}", parsed.host, parsed.port);
        let ssl = match parsed.tls {
            Tls::Disable => None,
            Tls::Require => {
                Some(SslOpts::default().with_danger_accept_invalid_certs(true).with_danger_skip_domain_validation(true))
            }
            Tls::Verify => Some(verifying(parsed.ca.as_deref())?),
        };
        let opts = OptsBuilder::default()
            .ip_or_hostname(parsed.host)
            .tcp_port(parsed.port)
            .user(Some(parsed.user))
            .pass(parsed.password)
            .db_name(parsed.database.clone())
            .ssl_opts(ssl)
            .prefer_socket(false)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE))
            .max_allowed_packet(Some(PACKET_BYTES_MAX))
            // Only a pool would use it; given here, it need not be asked from the server.
            .wait_timeout(Some(28_800))
            // Every statement of a scan is a text of its own: a cache would only keep the server's memory.
            .stmt_cache_size(0)
            .init(vec![NAMES, SESSION, ISOLATION]);
        Ok(Connector { opts: opts.into(), server, database: parsed.database })
    }

    /// Connects, logs in, pins the session.
    pub async fn connect(&self) -> Result<Conn, ConnectError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, Conn::new(self.opts.clone())).await {
            Ok(result) => result.map_err(|error| self.connect_error(error)),
            Err(_) => {
                let reason = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
                Err(ConnectError::Unreachable { server: self.server.clone(), reason })
            }
        }
    }

    /// `host:port`, for messages.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The database that the URL names.
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    fn connect_error(&self, error: mysql_async::Error) -> ConnectError {
        let server = self.server.clone();
        if let Some(reason) = tls_reason(&error) {
            return ConnectError::Tls { server, reason };
        }
        match error {
            mysql_async::Error::Server(ServerError { code, message, .. }) if is_transient(code) => {
                ConnectError::Unreachable { server, reason: format!("{message} (error {code})") }
            }
            mysql_async::Error::Server(ServerError { code, message, .. }) => {
                ConnectError::Denied { server, code, message }
            }
            mysql_async::Error::Driver(DriverError::UnknownAuthPlugin { name }) => {
                ConnectError::AuthPlugin { server, plugin: name }
            }
            mysql_async::Error::Driver(DriverError::MysqlOldPasswordDisabled) => {
                ConnectError::AuthPlugin { server, plugin: "mysql_old_password".into() }
            }
            mysql_async::Error::Driver(DriverError::CleartextPluginDisabled) => {
                ConnectError::AuthPlugin { server, plugin: "mysql_clear_password".into() }
            }
            mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer) => ConnectError::NoTls { server },
            other => {
                // The driver's own words say twice that it is an IO error.
                let text = other.to_string();
                let reason = text.trim_start_matches("Input/output error: ").to_owned();
                ConnectError::Unreachable { server, reason }
            }
        }
    }
}

/// What an error of a running connection calls for: a statement that the server refuses will be
/// refused again, anything else (network, shutdown, locks) may pass.
pub fn disposition(error: &mysql_async::Error) -> Disposition {
    match error {
        mysql_async::Error::Server(error) if !is_transient(error.code) => Disposition::Halt,
        mysql_async::Error::Server(_)
        | mysql_async::Error::Io(_)
        | mysql_async::Error::Driver(_)
        | mysql_async::Error::Other(_) => Disposition::Retry,
        mysql_async::Error::Url(_) => Disposition::Halt,
    }
}

/// Errors of the server that pass by themselves: too many connections, shutdown, host blocked for errors, locks and
/// deadlocks, a killed query, a failed read or write, a server that is starting.
fn is_transient(code: u16) -> bool {
    const TRANSIENT: [u16; 20] = [
        1028, 1037, 1040, 1041, 1053, 1077, 1079, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1213, 1317,
        1927, 3168,
    ];
    TRANSIENT.contains(&code)
}

/// The TLS library's own words, if it is why there is no connection. It hides inside an IO error.
fn tls_reason(error: &mysql_async::Error) -> Option<String> {
    match error {
        mysql_async::Error::Io(IoError::Tls(error)) => Some(error.to_string()),
        mysql_async::Error::Io(IoError::Io(error)) => {
            error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).map(ToString::to_string)
        }
        mysql_async::Error::Driver(_)
        | mysql_async::Error::Other(_)
        | mysql_async::Error::Server(_)
        | mysql_async::Error::Url(_) => None,
    }
}

/// Both of rustls' providers may be linked; without a choice the first handshake panics.
fn install_tls_provider() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("another part of the process has chosen the TLS provider");
        }
    });
}

/// Trusts the CA in `ca` alone, or, without it, what the system trusts.
fn verifying(ca: Option<&str>) -> Result<SslOpts, ConnectError> {
    if let Some(path) = ca {
        let bytes = std::fs::read(path).map_err(|source| ConnectError::CaFile { path: path.to_owned(), source })?;
        return Ok(SslOpts::default().with_disable_built_in_roots(true).with_root_certs(vec![bytes.into()]));
    }
    let system = rustls_native_certs::load_native_certs().certs;
    Ok(SslOpts::default().with_root_certs(system.into_iter().map(|cert| cert.to_vec().into()).collect()))
}

struct ParsedUrl {
    host: String,
    port: u16,
    user: String,
    password: Option<String>,
    database: Option<String>,
    tls: Tls,
    ca: Option<String>,
}

impl ParsedUrl {
    fn new(text: &str) -> Result<Self, ConnectError> {
        let problem = |problem: String| ConnectError::Url { problem };
        let url = Url::parse(text).map_err(|error| problem(format!("is not a URL ({error})")))?;
        if !matches!(url.scheme(), "mysql" | "mariadb") {
            return Err(problem("has a scheme other than mysql".into()));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| problem("names no host".into()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let decoded = |text: &str, what: &str| {
            percent_decoded(text).ok_or_else(|| problem(format!("has a {what} that is not percent-encoded UTF-8")))
        };
        let user = decoded(url.username(), "user")?;
        if user.is_empty() {
            return Err(problem("names no user".into()));
        }
        let password = url.password().map(|password| decoded(password, "password")).transpose()?;
        let database = decoded(url.path().trim_start_matches('/'), "database")?;
        let mut tls = if is_loopback(&host) { Tls::Disable } else { Tls::Verify };
        let mut ca = None;
        for (name, value) in url.query_pairs() {
            match (name.as_ref(), value.as_ref()) {
                ("tls", "verify") => tls = Tls::Verify,
                ("tls", "require") => tls = Tls::Require,
                ("tls", "disable") => tls = Tls::Disable,
                ("tls", _) => return Err(problem("has a tls that is none of verify, require, disable".into())),
                ("ca", path) => ca = Some(path.to_owned()),
                // Not named: it may be what follows a question mark in a password.
                _ => return Err(problem("has a parameter other than tls and ca".into())),
            }
        }
        let database = (!database.is_empty()).then_some(database);
        Ok(ParsedUrl { host, port: url.port().unwrap_or(DEFAULT_PORT), user, password, database, tls, ca })
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

/// An identifier in backquotes.
pub fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// An error of the database together with what was being done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {source}")]
pub struct QueryError {
    pub what: String,
    #[source]
    pub source: Arc<mysql_async::Error>,
}

impl QueryError {
    pub fn new(what: impl Into<String>, source: mysql_async::Error) -> Self {
        QueryError { what: what.into(), source: Arc::new(source) }
    }

    /// What is wrong; what to do depends on what was asked.
    pub fn problem(&self) -> Problem {
        Problem::bare(self.to_string())
    }

    /// Whether trying again can help.
    pub fn disposition(&self) -> Disposition {
        disposition(&self.source)
    }

    /// The server's error number, if the server answered.
    pub fn code(&self) -> Option<u16> {
        match self.source.as_ref() {
            mysql_async::Error::Server(error) => Some(error.code),
            mysql_async::Error::Driver(_)
            | mysql_async::Error::Io(_)
            | mysql_async::Error::Other(_)
            | mysql_async::Error::Url(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_everything_is_taken_apart() {
        let url = ParsedUrl::new("mysql://us%40er:p%3Ass%2F@db.example:3307/sh%20op?tls=require&ca=/etc/ca.pem")
            .expect("valid");
        assert_eq!((url.host.as_str(), url.port, url.user.as_str()), ("db.example", 3307, "us@er"));
        assert_eq!(url.password.as_deref(), Some("p:ss/"));
        assert_eq!(url.database.as_deref(), Some("sh op"));
        assert_eq!((url.tls, url.ca.as_deref()), (Tls::Require, Some("/etc/ca.pem")));
    }

    #[test]
    fn tls_is_verified_unless_the_host_is_this_one() {
        for (url, tls) in [
            ("mysql://u@db/s", Tls::Verify),
            ("mysql://u@10.0.0.1/s", Tls::Verify),
            ("mysql://u@127.0.0.1/s", Tls::Disable),
            ("mysql://u@localhost/s", Tls::Disable),
            ("mysql://u@[::1]:3306/s", Tls::Disable),
            ("mysql://u@localhost/s?tls=verify", Tls::Verify),
        ] {
            assert_eq!(ParsedUrl::new(url).expect("valid").tls, tls, "{url}");
        }
    }

    #[test]
    fn mistakes_in_a_url_are_named_without_the_password() {
        for (url, word) in [
            ("postgresql://u:secret@db/s", "scheme"),
            ("mysql://:secret@db/s", "user"),
            ("mysql://u:secret@db/s?tls=secret", "tls"),
            ("mysql://u:secret@db/s?ssl=1", "other than tls"),
            ("mysql://u:p@1?secret@db/s", "other than tls"),
            ("secret://u:p@db/s", "scheme"),
            ("mysql://u:secret%ZZ@db/s", "password"),
            ("mysql:secret", "host"),
        ] {
            let error = ParsedUrl::new(url).err().expect("refused").to_string();
            assert!(error.contains(word) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_connector_prints_no_password() {
        let connector = Connector::new("mysql://u:secret@127.0.0.1:1/s").expect("valid");
        assert!(!format!("{connector:?}").contains("secret"));
        assert_eq!(connector.database(), Some("s"));
    }

    #[tokio::test]
    async fn nobody_there_is_worth_a_retry() {
        let connector = Connector::new("mysql://u:secret@127.0.0.1:1/s").expect("valid");
        let error = connector.connect().await.expect_err("port 1 is closed");
        assert_eq!(error.disposition(), Disposition::Retry);
        assert!(error.to_string().contains("127.0.0.1:1"));
    }
}
