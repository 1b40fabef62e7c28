//! Opening a session with its settings pinned.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    PgError,
    liveness::{self, SessionIdentity},
    sql, tls,
};
use crate::model::Problem;

/// How long a connection may take to open.
pub(super) const CONNECT_SECONDS_MAX: u64 = 10;
/// How long the server may take to answer whoever has just connected.
const ANSWER_SECONDS_MAX: u64 = 30;
/// A peer that answers nothing for this long is gone.
const SILENCE_SECONDS_MAX: u64 = 60;

/// A PostgreSQL address: `postgresql://user:password@host:port/database?tls=verify|require|disable`.
#[derive(Clone)]
pub struct Address {
    pub(super) config: Config,
    pub(super) mode: tls::Mode,
    pub(super) host: String,
    pub(super) port: u16,
    database: String,
    pub(super) dial: Option<Arc<dyn Dial>>,
}

/// A connection's bytes, both ways.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Opens connections by other means than TCP: to a server that lives in this process.
#[async_trait]
pub trait Dial: Send + Sync {
    async fn dial(&self) -> std::io::Result<Box<dyn Wire>>;
}

/// A URL that is no PostgreSQL address. The URL itself is not quoted: it holds a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", self.problem())]
pub struct UrlError(String);

impl UrlError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        Problem::new(
            format!("the PostgreSQL URL {}", self.0),
            "it reads postgresql://user:password@host:port/database?tls=verify|require|disable",
        )
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "postgresql://{}:{}/{}", self.host, self.port, self.database)
    }
}

impl Address {
    /// Reads a URL. Loopback hosts default to `tls=disable`, all others to `tls=verify`.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let error = |reason: &str| UrlError(reason.to_owned());
        let url = url::Url::parse(url).map_err(|reason| UrlError(format!("cannot be read ({reason})")))?;
        if !matches!(url.scheme(), "postgresql" | "postgres") {
            return Err(error("has another scheme"));
        }
        let host = url.host_str().ok_or_else(|| error("names no host"))?.trim_matches(['[', ']']).to_owned();
        let loopback =
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let mut mode = if loopback { tls::Mode::Disable } else { tls::Mode::Verify };
        for (name, value) in url.query_pairs() {
            mode = match (name.as_ref(), value.as_ref()) {
                ("tls", "verify") => tls::Mode::Verify,
                ("tls", "require") => tls::Mode::Require,
                ("tls", "disable") => tls::Mode::Disable,
                ("tls", _) => return Err(error("has a tls setting that is none of verify, require, disable")),
                // Not named: it may be what follows a question mark in a password.
                _ => return Err(error("has a setting other than tls")),
            };
        }
        let user = decode(url.username()).ok_or_else(|| error("has a user that is not UTF-8"))?;
        if user.is_empty() {
            return Err(error("names no user"));
        }
        let database = decode(url.path().trim_start_matches('/')).ok_or_else(|| error("has a bad database name"))?;
        if database.is_empty() || database.contains('/') {
            return Err(error("names no database"));
        }
        let port = url.port().unwrap_or(5432);
        let mut config = Config::new();
        config.host(&host).port(port).user(user).dbname(&database);
        config.connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX));
        config.keepalives_idle(Duration::from_secs(SILENCE_SECONDS_MAX / 2));
        config.keepalives_interval(Duration::from_secs(SILENCE_SECONDS_MAX / 6));
        config.tcp_user_timeout(Duration::from_secs(SILENCE_SECONDS_MAX));
        if let Some(password) = url.password() {
            config.password(decode(password).ok_or_else(|| error("has a password that is not UTF-8"))?);
        }
        config.ssl_mode(match mode {
            tls::Mode::Verify | tls::Mode::Require => tokio_postgres::config::SslMode::Require,
            tls::Mode::Disable => tokio_postgres::config::SslMode::Disable,
        });
        Ok(Address { config, mode, host, port, database, dial: None })
    }

    /// The same address, reached by `dial` and without TLS.
    pub fn through(mut self, dial: Arc<dyn Dial>) -> Self {
        self.dial = Some(dial);
        self
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let hex = (*byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

/// What a session is for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Target schemas, in the order in which unqualified names are looked up after `pg_catalog`.
    pub schemas: Vec<String>,
    /// A PEM file of certificates to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Take `session_replication_role = replica` if the server allows it: foreign keys and ordinary triggers
    /// rest while rows are written.
    pub replica: bool,
}

/// An open session; it closes when dropped.
#[derive(Debug)]
pub struct Session {
    pub client: Client,
    /// Whether foreign keys and ordinary triggers rest in this session.
    pub replica: bool,
    connection: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Connects and pins the session's settings.
    pub async fn open(target: &Address, options: &Options) -> Result<Self, PgError> {
        let (client, connection) = timely(connect(target, options)).await?;
        let (watched, watch) = oneshot::channel();
        let connection = tokio::spawn(drive(connection, target.clone(), options.clone(), watch));
        let mut session = Session { client, replica: false, connection };
        timely(session.pin(options)).await?;
        // A server inside this process needs no watch: its wire cannot break in the middle.
        if target.dial.is_none() {
            let identity = timely(liveness::identity(&session.client)).await?;
            // The other end waits for it as long as the connection stands.
            let _ = watched.send(identity);
        }
        Ok(session)
    }

    async fn pin(&mut self, options: &Options) -> Result<(), PgError> {
        self.client.batch_execute(&settings(&options.schemas)).await?;
        if options.replica {
            self.replica = match self.client.batch_execute("SET session_replication_role = replica").await {
                Ok(()) => true,
                Err(error) => match PgError::from(error) {
                    // Only a superuser may, or who was granted the parameter: without it foreign keys are obeyed.
                    PgError::Refused(refusal) if refusal.sqlstate == "42501" => false,
                    other => return Err(other),
                },
            };
        }
        Ok(())
    }
}

/// A connection's own work: it ends when the connection does.
pub(super) type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Connects and logs in.
pub(super) async fn connect(target: &Address, options: &Options) -> Result<(Client, Connection), PgError> {
    let mut config = target.config.clone();
    config.application_name(&options.application_name);
    Ok(match (&target.dial, target.mode) {
        (Some(dial), _) => {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let wire = dial.dial().await.map_err(|error| PgError::Unreachable(error.to_string()))?;
            let (client, connection) = config.connect_raw(wire, NoTls).await.map_err(|error| named(target, error))?;
            (client, Box::pin(run(connection)) as Connection)
        }
        (None, tls::Mode::Disable) => {
            let (client, connection) = config.connect(NoTls).await.map_err(|error| named(target, error))?;
            (client, Box::pin(run(connection)) as Connection)
        }
        (None, tls::Mode::Verify | tls::Mode::Require) => {
            let settings = tls::config(target.mode, options.ca_file.as_deref())
                .map_err(|text| PgError::Login(Problem::bare(text)))?;
            let connector = MakeRustlsConnect::new(settings);
            let (client, connection) = config.connect(connector).await.map_err(|error| named(target, error))?;
            (client, Box::pin(run(connection)) as Connection)
        }
    })
}

/// What belongs to opening a session is answered soon, or there is nobody.
pub(super) async fn timely<T>(work: impl Future<Output = Result<T, PgError>>) -> Result<T, PgError> {
    let nobody = |_| PgError::Unreachable(format!("no answer to the login within {ANSWER_SECONDS_MAX} s"));
    tokio::time::timeout(Duration::from_secs(ANSWER_SECONDS_MAX), work).await.map_err(nobody)?
}

/// What may make TLS work.
pub(super) const TLS_WAYS: &str = "give the server's CA as ca_file, or set ?tls=require or ?tls=disable";

/// Adds the address and, where TLS is the likely cause, the way out.
fn named(target: &Address, error: tokio_postgres::Error) -> PgError {
    let at = format!("{}:{}", target.host, target.port);
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let text = format!("{error}{cause}");
    if text.contains("certificate") || text.contains("TLS") {
        return PgError::Login(Problem::new(format!("PostgreSQL at {at}: {text}"), TLS_WAYS));
    }
    match PgError::from(error) {
        PgError::Unreachable(reason) => PgError::Unreachable(format!("PostgreSQL at {at}: {reason}")),
        PgError::Login(problem) => PgError::Login(problem.at(format_args!("PostgreSQL at {at}"))),
        PgError::Protocol(reason) => PgError::Unreachable(format!("PostgreSQL at {at}: {reason}")),
        PgError::Refused(refusal) => PgError::Refused(refusal),
    }
}

async fn run<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    // The client's next call reports why the connection ended.
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a PostgreSQL connection ended");
    }
}

/// Runs a connection until it ends, or until the server no longer has the session; whoever waits for an answer then
/// gets an error.
async fn drive(connection: Connection, target: Address, options: Options, watch: oneshot::Receiver<SessionIdentity>) {
    let lost = async {
        match watch.await {
            Ok(identity) => liveness::gone(&target, &options, &identity).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = connection => {}
        () = lost => tracing::warn!(
            session = options.application_name,
            "the server no longer has this session, though the connection stands; it is opened again"
        ),
    }
}

/// Everything that a transform, or the text form of a value, could depend on (rule 28).
/// Absent is `lc_messages`, which only a superuser may set and no value depends on.
/// `force_custom_plan`: a generic plan made while a tombstone table was empty is ruinous later.
pub(super) fn settings(schemas: &[String]) -> String {
    let mut path = vec!["pg_catalog".to_owned()];
    path.extend(schemas.iter().map(|schema| sql::ident(schema)));
    path.push("pg_temp".to_owned());
    format!(
        "SET search_path = {}; SET row_security = off; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; \
         SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; SET extra_float_digits = 1; \
         SET lc_monetary = 'C'; SET lc_numeric = 'C'; SET lc_time = 'C'; \
         SET standard_conforming_strings = on; SET xmlbinary = 'base64'; SET xmloption = 'content'; \
         SET default_text_search_config = 'pg_catalog.simple'; SET array_nulls = on; \
         SET transform_null_equals = off; SET quote_all_identifiers = off; SET check_function_bodies = on; \
         SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
         SET default_transaction_deferrable = off; SET plan_cache_mode = force_custom_plan; SET jit = off; \
         SET client_min_messages = warning; \
         SET statement_timeout = '10min'; SET lock_timeout = '1min'; \
         SET idle_in_transaction_session_timeout = '10min'",
        path.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_needs_no_tls_and_other_hosts_are_verified() {
        let mode = |url: &str| Address::parse(url).expect("valid").mode;
        assert_eq!(mode("postgresql://a@127.0.0.1/b"), tls::Mode::Disable);
        assert_eq!(mode("postgres://a@[::1]:5433/b"), tls::Mode::Disable);
        assert_eq!(mode("postgresql://a@db.example/b"), tls::Mode::Verify);
        assert_eq!(mode("postgresql://a@db.example/b?tls=require"), tls::Mode::Require);
    }

    #[test]
    fn a_bad_url_says_what_is_missing_and_never_quotes_the_password() {
        for (url, part) in [
            ("mysql://a:hunter2@h/b", "scheme"),
            ("postgresql://h/b", "user"),
            ("postgresql://a:hunter2@h", "database"),
            ("postgresql://a:hunter2@h/b?tls=maybe", "verify"),
            ("postgresql://a:hunter2@h/b?sslmode=disable", "other than tls"),
            ("postgresql://a:p@1?hunter2@h/b", "other than tls"),
        ] {
            let message = Address::parse(url).expect_err(url).to_string();
            assert!(message.contains(part) && !message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn escaped_passwords_are_decoded_and_debug_shows_none() {
        let target = Address::parse("postgresql://u:p%40ss%2F@localhost/db").expect("valid");
        assert_eq!(target.config.get_password(), Some("p@ss/".as_bytes()));
        assert_eq!(format!("{target:?}"), "postgresql://localhost:5432/db");
    }
}
