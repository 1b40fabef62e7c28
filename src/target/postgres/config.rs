//! `[apply]` of the configuration.

use serde::Deserialize;

/// An array of one statement may not reach PostgreSQL's limit of 1 GB for a value.
const BATCH_BYTES_MAX: usize = 256 << 20;

/// Bounds of the apply stage.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyConfig {
    /// Row changes in one statement.
    pub batch_rows_max: usize,
    /// Bytes of records in one statement.
    pub batch_bytes_max: usize,
    /// Rows of one source transaction that are written in one target transaction. A larger one is written in
    /// several, and readers of the target may see a part of it.
    pub transaction_rows_max: u64,
    /// Open dead letters; one more stops the pipeline.
    pub dead_letters_max: u64,
}

impl Default for ApplyConfig {
    fn default() -> Self {
        ApplyConfig {
            batch_rows_max: 5_000,
            batch_bytes_max: 4 << 20,
            transaction_rows_max: 10_000_000,
            dead_letters_max: 1_000,
        }
    }
}

impl ApplyConfig {
    /// Every setting that cannot work, as (key, problem).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let at_least_1 = || "is 0; it must be at least 1".to_owned();
        for (key, value) in
            [("apply.batch_rows_max", self.batch_rows_max), ("apply.batch_bytes_max", self.batch_bytes_max)]
        {
            if value == 0 {
                problems.push((key, at_least_1()));
            }
        }
        if self.batch_bytes_max > BATCH_BYTES_MAX {
            let problem = format!("is {}; it may be at most {BATCH_BYTES_MAX}", self.batch_bytes_max);
            problems.push(("apply.batch_bytes_max", problem));
        }
        if self.transaction_rows_max == 0 {
            problems.push(("apply.transaction_rows_max", at_least_1()));
        }
        problems
    }
}
