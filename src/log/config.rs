//! The `[log]` section of the configuration.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{
    debezium::DebeziumConfig,
    kafka::{KafkaProperties, KafkaUrl},
};

/// Bounds on `partitions`: lanes cost a connection to the target each.
pub const PARTITIONS_MAX: u32 = 256;

/// The least that `bytes_max` may be; below it segments get too small to be worth their files.
const BYTES_MAX_MIN: u64 = 16 << 20;

const HOURS_MAX: u64 = 24 * 3650;

/// Where the log is, and how much it keeps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `file:FOLDER` for the embedded log, relative to the configuration file; `kafka://HOST:PORT,…` for Kafka.
    pub url: String,
    /// How many partitions each topic has; fixed at the log's first start.
    pub partitions: u32,
    /// How long records stay after they are applied, for `cutover replay`.
    pub retention_hours: u64,
    /// How much the log may hold. Applied records go first, oldest first, whatever their age;
    /// what is not applied is never dropped: capture waits. Of the embedded log alone: a broker's disk is the broker's.
    pub bytes_max: u64,
    /// Settings for librdkafka: SASL, TLS, compression.
    pub kafka: KafkaProperties,
    /// The topics of a connector of Debezium, which are applied in place of a log that this pipeline writes.
    pub debezium: Option<DebeziumConfig>,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            url: "file:cutover-data/log".into(),
            partitions: 1,
            retention_hours: 24 * 7,
            bytes_max: 20 << 30,
            kafka: KafkaProperties::default(),
            debezium: None,
        }
    }
}

impl LogConfig {
    /// The embedded log's folder, relative to `base`; none if the URL names no folder.
    pub fn folder(&self, base: &Path) -> Option<PathBuf> {
        let folder = self.url.strip_prefix("file:")?;
        // `file:///srv/log` and `file:/srv/log` are the same folder.
        let folder = if let Some(rest) = folder.strip_prefix("//") { rest } else { folder };
        (!folder.is_empty()).then(|| base.join(folder))
    }

    /// Whether the log is on Kafka.
    pub fn is_kafka(&self) -> bool {
        self.url.starts_with("kafka://")
    }

    /// Every mistake, as (key, problem).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.is_kafka() {
            problems.extend(KafkaUrl::parse(&self.url).err().map(|problem| ("log.url", problem)));
            problems.extend(self.kafka.problems().into_iter().map(|problem| ("log.kafka", problem)));
        } else if self.folder(Path::new("")).is_none() {
            let allowed = "must be `file:FOLDER`, as in `file:cutover-data/log`, or `kafka://HOST:PORT,HOST:PORT`";
            problems.push(("log.url", allowed.to_owned()));
        } else if !self.kafka.is_empty() {
            problems.push(("log.kafka", "is for a `kafka://` log.url; set that, or remove the section".to_owned()));
        }
        match &self.debezium {
            Some(debezium) if self.is_kafka() => problems.extend(debezium.problems()),
            Some(_) => problems.push((
                "log.debezium",
                "is for a `kafka://` log.url, the brokers that the connector writes to".to_owned(),
            )),
            None => {}
        }
        if !(1..=PARTITIONS_MAX).contains(&self.partitions) {
            let problem = format!("must be from 1 to {PARTITIONS_MAX}, not {}", self.partitions);
            problems.push(("log.partitions", problem));
        }
        if self.retention_hours > HOURS_MAX {
            let hours = self.retention_hours;
            problems.push(("log.retention_hours", format!("must be from 0 to {HOURS_MAX}, not {hours}")));
        }
        if self.bytes_max < BYTES_MAX_MIN {
            let problem = format!("must be at least {BYTES_MAX_MIN}, not {}", self.bytes_max);
            problems.push(("log.bytes_max", problem));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LogConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn the_defaults_are_valid_and_embedded() {
        let config = parse("").expect("valid");
        assert_eq!(config, LogConfig::default());
        assert_eq!(config.problems(), vec![]);
        assert_eq!(config.folder(Path::new("/etc/cart")), Some("/etc/cart/cutover-data/log".into()));
    }

    #[test]
    fn absolute_folders_stay_absolute() {
        for url in ["file:/srv/log", "file:///srv/log"] {
            let config = LogConfig { url: url.into(), ..LogConfig::default() };
            assert_eq!(config.folder(Path::new("/etc/cart")), Some("/srv/log".into()), "{url}");
        }
    }

    #[test]
    fn kafka_is_named_with_its_settings_however_they_are_written() {
        let text = "url = 'kafka://a:9092,b'\n[kafka]\nsasl.username = 'u'\n'sasl.password' = 'hunter2'\nlinger.ms = 5";
        let config = parse(text).expect("valid");
        assert_eq!(config.problems(), vec![]);
        assert!(config.is_kafka() && config.folder(Path::new("/")).is_none());
        let shown = format!("{config:?}");
        assert!(shown.contains("sasl.password") && !shown.contains("hunter2"), "{shown}");
        assert!(parse("kafka.linger = 0.5").is_err_and(|error| error.to_string().contains("a whole number")));
    }

    #[test]
    fn settings_that_would_break_a_guarantee_are_refused() {
        let text = "url = 'kafka://u:p@a:9092'\n[kafka]\nacks = 1\nno.such = 'hunter2'\ncompression.type = 'hunter2'";
        let problems = parse(text).expect("well formed").problems();
        let text = format!("{problems:?}");
        for part in ["names a user", "`acks` cannot be set", "`no.such`", "`compression.type`"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(problems.len() == 4 && !text.contains("hunter2"), "{text}");
        let problems = parse("[kafka]\nlinger.ms = 5").expect("well formed").problems();
        assert_eq!(problems.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["log.kafka"]);
    }

    #[test]
    fn every_mistake_is_named() {
        assert!(parse("retention_days = 1").is_err_and(|error| error.to_string().contains("retention_days")));
        let text = "url = \"log\"\npartitions = 0\nretention_hours = 99999999\nbytes_max = 1";
        let problems = parse(text).expect("well formed").problems();
        let keys: Vec<&str> = problems.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["log.url", "log.partitions", "log.retention_hours", "log.bytes_max"]);
    }
}
