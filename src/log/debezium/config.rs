//! `[log.debezium]` of the configuration: whose topics are applied.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The topics of a connector of Debezium, in place of a log of our own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebeziumConfig {
    /// What the names of the tables' topics have before the table: `<topic.prefix>.<database>`, on PostgreSQL
    /// `<topic.prefix>.<schema>`.
    pub topics: String,
    /// Where topics are begun that do not hold their first records any more.
    #[serde(default)]
    pub begin: Begin,
    /// Types of source columns whose values come without a schema, by table and column, as PostgreSQL spells them.
    /// Without it a column has the type of the target's column of the same name.
    #[serde(default)]
    pub columns: BTreeMap<String, BTreeMap<String, String>>,
}

/// Where a topic is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Begin {
    /// With its first record; a topic that lacks it is refused.
    #[default]
    Complete,
    /// With what it still holds: the rest comes by an incremental snapshot.
    Available,
}

impl DebeziumConfig {
    /// The database of the tables, or PostgreSQL's schema.
    pub fn database(&self) -> &str {
        self.topics.rsplit('.').next().unwrap_or_default()
    }

    /// The topic of a table.
    pub fn topic(&self, table: &str) -> String {
        format!("{}.{table}", self.topics)
    }

    /// The table of a topic; none of topics that are no table's.
    pub fn table<'a>(&self, topic: &'a str) -> Option<&'a str> {
        let table = topic.strip_prefix(self.topics.as_str())?.strip_prefix('.')?;
        (!table.is_empty() && !table.contains('.')).then_some(table)
    }

    /// Every mistake, as (key, problem).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let (prefix, database) = self.topics.rsplit_once('.').unwrap_or_default();
        if prefix.is_empty() || database.is_empty() || !self.topics.chars().all(plain) {
            let problem = "must be the connector's topic.prefix, a dot, and the database (PostgreSQL: the schema), as in \"legacy.shop\"";
            return vec![("log.debezium.topics", problem.into())];
        }
        Vec::new()
    }
}
