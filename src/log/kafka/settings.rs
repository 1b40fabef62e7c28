//! How the brokers are reached: the URL, and the settings of librdkafka's clients.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::properties::KafkaProperties;
use crate::log::{LogConfig, Topic};

const PORT: u16 = 9092;
/// How long an append waits for its acknowledgement before it is called failed.
pub(super) const DELIVERY_MAX: Duration = Duration::from_secs(10);
/// How long a question to the brokers may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Records that wait in the producer; an append beyond that waits as well.
const QUEUED_RECORDS_MAX: u32 = 200_000;
/// Bytes that wait in the producer, beside one record of the largest size.
const QUEUED_KB_MAX: u64 = 32 << 10;
/// What a reader fetches ahead, per partition.
const FETCHED_AHEAD_KB: u32 = 8 << 10;
/// What one fetch brings at most, compressed, per partition.
const FETCH_BYTES: u32 = 2 << 20;
/// A process that is not heard of for this long loses its partitions to others.
const MEMBER_SILENT_MAX: Duration = Duration::from_secs(8);
const MEMBER_HEARTBEAT: Duration = Duration::from_millis(500);
/// What tells writers under one lease apart.
const TURN_BITS: u32 = 16;
/// The most that librdkafka takes for one record.
pub(super) const RECORD_BYTES_MAX: u64 = 1_000_000_000;

/// How certificates are checked (`?tls=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Verify,
    Require,
    Disable,
}

/// The brokers that a `kafka://` URL names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaUrl {
    brokers: String,
    tls: Tls,
}

impl KafkaUrl {
    /// Parses `kafka://host:9092,host2:9092?tls=verify`.
    ///
    /// # Errors
    /// What is wrong with it, without the URL.
    pub fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("kafka://").ok_or("must begin with kafka://")?;
        if rest.contains('@') {
            return Err("names a user: give it as `sasl.username` and `sasl.password` in [log.kafka]".into());
        }
        let (hosts, query) = rest.split_once('?').unwrap_or((rest, ""));
        let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
        let brokers = hosts.split(',').map(broker).collect::<Result<Vec<_>, _>>()?;
        let is_local = brokers.iter().all(|(host, _)| is_loopback(host));
        let mut tls = if is_local { Tls::Disable } else { Tls::Verify };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            tls = match pair {
                "tls=verify" => Tls::Verify,
                "tls=require" => Tls::Require,
                "tls=disable" => Tls::Disable,
                _ if pair.starts_with("tls=") => {
                    return Err("has a `tls` that is none of verify, require, disable".into());
                }
                _ => return Err("has a parameter other than `tls`: other settings belong in [log.kafka]".into()),
            };
        }
        let brokers = brokers.iter().map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(",");
        Ok(KafkaUrl { brokers, tls })
    }

    pub fn brokers(&self) -> &str {
        &self.brokers
    }
}

fn broker(text: &str) -> Result<(&str, u16), String> {
    let wrong = || "must name its brokers as host:port, separated by commas".to_owned();
    // The colons of an IPv6 address are inside brackets.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        Some(_) | None => (text, PORT),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
    if host.is_empty() || !host.chars().all(plain) || (host.contains(':') && !host.starts_with('[')) {
        return Err(wrong());
    }
    Ok((host, port))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How a log on Kafka is kept. Time and randomness are handed in.
#[derive(Clone)]
pub struct Settings {
    /// The pipeline's name, which the topics begin with.
    pub name: String,
    pub url: KafkaUrl,
    pub properties: KafkaProperties,
    pub partitions: u32,
    pub retention_ms: i64,
    /// How often applied records are looked at for their age.
    pub retention_every: Duration,
    /// The identity of the log, if it is made now.
    pub epoch: u64,
    /// The identity of this writer among those of the log. Of two that write at the same time the one with the higher
    /// number has the turn.
    pub writer: u64,
    /// The time, ms since the Unix epoch.
    pub now_ms: fn() -> i64,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

impl Settings {
    /// The settings of a configuration.
    ///
    /// # Errors
    /// When the log's URL names no brokers.
    pub fn new(name: &str, config: &LogConfig) -> Result<Self, String> {
        Ok(Settings {
            name: name.to_owned(),
            url: KafkaUrl::parse(&config.url)?,
            properties: config.kafka.clone(),
            partitions: config.partitions,
            retention_ms: i64::try_from(config.retention_hours).unwrap_or(i64::MAX).saturating_mul(3_600_000),
            retention_every: Duration::from_secs(60),
            epoch: crate::observe::unique(),
            writer: crate::observe::now_us().cast_unsigned(),
            now_ms: || crate::observe::now_us() / 1000,
        })
    }

    /// These settings for the holder of a lease: whoever takes the lease next has a higher number.
    #[must_use]
    pub fn under_lease(self, lease_epoch: i64) -> Self {
        let number = lease_epoch.cast_unsigned() << TURN_BITS;
        Settings { writer: number | (crate::observe::unique() >> (u64::BITS - TURN_BITS)), ..self }
    }

    /// The name of a topic.
    pub fn topic(&self, topic: Topic) -> String {
        format!("{}.{}", self.name, topic.suffix())
    }

    /// The name of the dead letters' topic.
    pub(super) fn dead_letters(&self) -> String {
        format!("{}.dlq", self.name)
    }

    /// The name of the events' topic.
    pub(super) fn events(&self) -> String {
        format!("{}.events", self.name)
    }

    /// What every client has.
    pub(super) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        let has_login = self.properties.contains("sasl.username") || self.properties.contains("sasl.mechanism");
        let has_login = has_login || self.properties.contains("sasl.mechanisms");
        let protocol = match (self.url.tls, has_login) {
            (Tls::Disable, false) => "plaintext",
            (Tls::Disable, true) => "sasl_plaintext",
            (Tls::Verify | Tls::Require, false) => "ssl",
            (Tls::Verify | Tls::Require, true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if self.url.tls == Tls::Require {
            config.set("enable.ssl.certificate.verification", "false");
        }
        // A broker that has come back is noticed soon, and one that is away is not asked all the time.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        config.set("client.id", format!("cutover-{}", self.name));
        self.properties.apply(&mut config);
        config.set("bootstrap.servers", &self.url.brokers);
        config
    }

    /// A producer for records of up to `record_bytes_max` bytes.
    pub(super) fn producer(&self, record_bytes_max: u64) -> ClientConfig {
        let mut config = self.client();
        for (name, value) in [("compression.type", "lz4"), ("linger.ms", "0"), ("batch.num.messages", "10000")] {
            if !self.properties.contains(name) {
                config.set(name, value);
            }
        }
        config.set("enable.idempotence", "true").set("acks", "all");
        config.set("message.timeout.ms", DELIVERY_MAX.as_millis().to_string());
        config.set("message.max.bytes", record_bytes_max.to_string());
        config.set("queue.buffering.max.messages", QUEUED_RECORDS_MAX.to_string());
        config.set("queue.buffering.max.kbytes", (QUEUED_KB_MAX + record_bytes_max / 1024).to_string());
        config
    }

    /// A consumer that goes where it is told and never elsewhere.
    pub(super) fn consumer(&self) -> ClientConfig {
        let mut config = self.client();
        // librdkafka wants a group for a manual assignment too; nothing is ever committed to it.
        config.set("group.id", format!("cutover.{}", self.name)).set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false").set("auto.offset.reset", "error");
        config.set("isolation.level", "read_uncommitted").set("allow.auto.create.topics", "false");
        config.set("check.crcs", "true").set("fetch.error.backoff.ms", "100");
        config.set("queued.max.messages.kbytes", FETCHED_AHEAD_KB.to_string());
        config.set("fetch.message.max.bytes", FETCH_BYTES.to_string());
        // A reader that catches up empties its queue much faster than the second that is the default.
        config.set("fetch.queue.backoff.ms", "5");
        // Bounds what a broker may answer; one record may be as large as a topic takes.
        config.set("receive.message.max.bytes", (RECORD_BYTES_MAX + (64 << 20)).to_string());
        config
    }

    /// A consumer that tells which partitions are this process's. It moves one at a time from process to process, and
    /// reads none itself.
    pub(super) fn member(&self) -> ClientConfig {
        let mut config = self.consumer();
        config.set("auto.offset.reset", "latest").set("partition.assignment.strategy", "cooperative-sticky");
        config.set("session.timeout.ms", MEMBER_SILENT_MAX.as_millis().to_string());
        config.set("heartbeat.interval.ms", MEMBER_HEARTBEAT.as_millis().to_string());
        config.set("queued.max.messages.kbytes", "1024").set("fetch.message.max.bytes", "1024");
        config
    }
}

impl Settings {
    /// A consumer of topics that other programs write, some in transactions.
    pub(super) fn foreign_consumer(&self) -> ClientConfig {
        let mut config = self.consumer();
        config.set("isolation.level", "read_committed");
        config
    }
}

/// What librdkafka says beside its answers: the last trouble, for messages.
#[derive(Debug, Default)]
pub(super) struct Context {
    trouble: Mutex<Option<(Option<RDKafkaErrorCode>, String)>>,
}

impl Context {
    /// What the client has last heard, or else what this error says.
    pub(super) fn trouble(&self, error: &KafkaError) -> (Option<RDKafkaErrorCode>, String) {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        trouble.unwrap_or_else(|| (None, error.to_string()))
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters comes back as an error, which is reported where it stops something.
        tracing::debug!(?level, facility, "librdkafka: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        let code = error.rdkafka_error_code();
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        // That all of them are down says less than why the last one was.
        if code != Some(RDKafkaErrorCode::AllBrokersDown) || trouble.is_none() {
            *trouble = Some((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Context {}
