//! What capture from PostgreSQL needs to know, and what of `[source]` is wrong for it.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use crate::{
    database::postgres::{Address, Options, in_flight::InFlight, slot},
    model::{TableName, Version, direction::peer_of},
    source::{Cascades, SourceConfig},
    state::Store,
};

/// Every mistake of a PostgreSQL source that can be found without a connection, as (key, problem).
pub fn problems(config: &SourceConfig) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    if let Err(error) = Address::parse(&config.url) {
        problems.push(("source.url", error.to_string()));
    }
    let mut is_for_mysql = |key, given: bool| {
        if given {
            problems.push((key, "is for MySQL and MariaDB sources; remove it".into()));
        }
    };
    is_for_mysql("source.zero_dates", config.zero_dates != "null");
    is_for_mysql("source.cascades", config.cascades != Cascades::Refetch);
    is_for_mysql("source.server_id", config.server_id.is_some());
    problems
}

impl SourceConfig {
    /// The schema of the tables of a PostgreSQL source.
    pub fn postgres_schema(&self) -> &str {
        self.schema.as_deref().unwrap_or("public")
    }
}

/// What [`super::PostgresStream`] needs to know.
#[derive(Debug, Clone)]
pub struct PostgresSourceConfig {
    pub target: Address,
    pub options: Options,
    /// The name of the slot, and of the publication.
    pub slot: String,
    /// The pipeline that writes here what comes from where this one goes: its transactions are left out.
    pub peer: String,
    pub clock_ahead_max_us: i64,
    /// A capture without a stored position begins above this version.
    pub clock_min: Version,
    /// This machine's time, µs since the Unix epoch.
    pub now_us: fn() -> i64,
    /// What capture has met and reads may not see.
    pub in_flight: Arc<InFlight>,
    /// Up to where the server need not send again; 0 while that is not known.
    pub durable: Arc<AtomicU64>,
    /// Tables whose images before a change a transform needs whole.
    pub full_row_images: BTreeSet<TableName>,
    /// Where the fingerprint of what is captured is kept; without it the catalog is not asked.
    pub state: Option<Arc<Store>>,
}

impl PostgresSourceConfig {
    pub fn new(pipeline: &str, target: Address, options: Options, now_us: fn() -> i64) -> Self {
        PostgresSourceConfig {
            target,
            options,
            slot: slot::name_of(pipeline),
            peer: peer_of(pipeline),
            clock_ahead_max_us: 60_000_000,
            clock_min: 0,
            now_us,
            in_flight: Arc::default(),
            durable: Arc::default(),
            full_row_images: BTreeSet::new(),
            state: None,
        }
    }
}
