//! `[source]` of the configuration.

use std::{fmt, path::PathBuf};

use serde::Deserialize;

use super::{mysql, postgres};
use crate::{database::dynamodb, model::SourceKind};

/// `[source]` as written.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Empty where a connector of Debezium captures.
    #[serde(default)]
    pub url: String,
    /// The tables to follow; all of the URL's database without it.
    #[serde(default)]
    pub tables: Option<Vec<String>>,
    /// What becomes of zero dates: `null`, `error`, or a date such as `1970-01-01`.
    #[serde(default = "default_zero_dates")]
    pub zero_dates: String,
    /// How far a commit time may be ahead of this machine's clock before capture halts.
    #[serde(default = "default_clock_ahead_max_seconds")]
    pub clock_ahead_max_seconds: u32,
    #[serde(default)]
    pub cascades: Cascades,
    /// This worker's id among the source's replicas; derived from the pipeline's name without it.
    #[serde(default)]
    pub server_id: Option<u32>,
    /// The schema that the tables are in, of a PostgreSQL source; `public` without it.
    #[serde(default)]
    pub schema: Option<String>,
    /// A PEM file of certificates to trust in place of the system's, of a PostgreSQL source; by its full path.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// What is done about foreign keys whose cascades the source's log does not show (rule 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cascades {
    /// The children of a parent that was deleted or whose key was changed are read again.
    #[default]
    Refetch,
    /// The target's own foreign keys are to do the same. Refused: they act on what reaches the target, where a key that
    /// changes is a delete and an insert, and a row that is deleted and made again no delete at all.
    Target,
    /// Nothing: no captured row is changed by them, or nobody minds.
    None,
}

fn default_zero_dates() -> String {
    "null".to_owned()
}

fn default_clock_ahead_max_seconds() -> u32 {
    60
}

impl fmt::Debug for SourceConfig {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceConfig")
            .field("tables", &self.tables)
            .field("zero_dates", &self.zero_dates)
            .field("clock_ahead_max_seconds", &self.clock_ahead_max_seconds)
            .field("cascades", &self.cascades)
            .field("server_id", &self.server_id)
            .field("schema", &self.schema)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

impl SourceConfig {
    /// The kind of server that the URL names; none if it names none.
    pub fn kind(&self) -> Option<SourceKind> {
        SourceKind::of(&self.url)
    }

    /// How far a commit time may be ahead of this machine's clock, in µs.
    pub fn clock_ahead_max_us(&self) -> i64 {
        i64::from(self.clock_ahead_max_seconds) * 1_000_000
    }

    /// Every mistake that can be found without a connection, as (key, problem).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = match self.kind() {
            Some(SourceKind::Mysql) => mysql::config::problems(self),
            Some(SourceKind::Postgres) => postgres::config::problems(self),
            Some(SourceKind::Dynamo) => match dynamodb::Connector::new(&self.url) {
                Ok(_) => Vec::new(),
                Err(error) => vec![("source.url", error.to_string())],
            },
            None => Vec::new(),
        };
        if self.tables.as_ref().is_some_and(Vec::is_empty) {
            problems.push(("source.tables", "names no table; leave it out to follow all of them".into()));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ZeroDates;

    fn parse(text: &str) -> Result<SourceConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn the_smallest_source_has_defaults_for_the_rest() {
        let config = parse("url = 'mysql://u:secret@127.0.0.1/shop'").expect("valid");
        assert_eq!(config.problems(), vec![]);
        assert_eq!((config.zero_dates(), config.clock_ahead_max_seconds), (Some(ZeroDates::Null), 60));
        assert!(!format!("{config:?}").contains("secret"));
        let resolved = config.resolve("cart", || 0).expect("valid");
        assert!(resolved.server_id >= 0x8000_0000);
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        assert!(parse("url = 'mysql://u@h/s'\ntabels = []").is_err());
        assert!(parse("url = 'mysql://u@h/s'\ncascades = 'ignore'").is_err());
        let config =
            parse("url = 'mysql://u@h'\nzero_dates = '2024-02-30'\ntables = []\ncascades = 'target'\nserver_id = 0")
                .expect("parses");
        let keys: Vec<&str> = config.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["source.url", "source.zero_dates", "source.cascades", "source.server_id", "source.tables"]);
    }
}
