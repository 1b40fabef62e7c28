//! Sections that belong to no component of their own, with what they are where nothing is said.

use std::{fmt, path::PathBuf};

use serde::Deserialize;

/// `[transform]`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransformConfig {
    /// The folder of `<target table>.sql` files.
    pub folder: PathBuf,
    /// The PostgreSQL that runs the transforms of a target that is none.
    pub engine: Option<String>,
}

impl Default for TransformConfig {
    fn default() -> Self {
        TransformConfig { folder: "transforms".into(), engine: None }
    }
}

impl fmt::Debug for TransformConfig {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransformConfig").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// `[snapshot]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// Rows of one chunk: what one query reads and one restart repeats.
    pub chunk_rows: u64,
    /// Chunks read at the same time.
    pub parallel: usize,
    /// Connections that write snapshot rows to the target.
    pub apply_parallel: usize,
    /// Read units per second that the copy of a DynamoDB table may take; half of what the table has, if it has a limit.
    pub read_units_per_second: Option<u32>,
    /// The copy slows down to its minimum share while the stream's lag is above this.
    pub lag_max_seconds: f64,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        SnapshotConfig {
            chunk_rows: 10_000,
            parallel: 2,
            apply_parallel: 2,
            read_units_per_second: None,
            lag_max_seconds: 10.0,
        }
    }
}

/// `[verify]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyConfig {
    /// Rows that the worker compares in the background each second; none with 0.
    pub rows_per_second: u64,
    /// What is noted of what was compared.
    pub log: VerifyLog,
    /// Whether it sends rows again that have drifted, up to `repair_rows_max` of a table.
    pub auto_repair: bool,
    /// How long a difference has to last before it is drift, where the source's log has no order: DynamoDB.
    pub confirm_seconds: u64,
    /// Rows that `verify --repair` mends; above it, nothing is mended.
    pub repair_rows_max: u64,
    /// The share of rows that a switch wants to be equal.
    pub match_min: f64,
    /// The share of rows by which numbers of rows may differ; [`crate::verify::Tolerance`] says what holds without it.
    pub count_difference_max: Option<f64>,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        VerifyConfig {
            rows_per_second: 1000,
            log: VerifyLog::Chunks,
            auto_repair: false,
            confirm_seconds: 60,
            repair_rows_max: 10_000,
            match_min: 0.999,
            count_difference_max: None,
        }
    }
}

/// `[verify] log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyLog {
    /// Each chunk of the source's rows, so that it can be passed by while it has not changed.
    Chunks,
    /// Each row as well. Every comparison of a whole table then looks at every row.
    Rows,
}

/// `[http]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    pub listen: String,
    /// `/readyz` is red above this lag.
    pub ready_lag_max_seconds: f64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig { listen: "127.0.0.1:7070".into(), ready_lag_max_seconds: 60.0 }
    }
}
