//! `[apply]` of the configuration.

use serde::Deserialize;

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
    /// Every setting that cannot work, by its path.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, value) in [("batch_rows_max", self.batch_rows_max), ("batch_bytes_max", self.batch_bytes_max)] {
            if value == 0 {
                problems.push(format!("apply.{name} is 0; it must be at least 1"));
            }
        }
        // An array of one statement may not reach PostgreSQL's limit of 1 GB for a value.
        if self.batch_bytes_max > 256 << 20 {
            problems.push(format!(
                "apply.batch_bytes_max is {}; it may be at most {}",
                self.batch_bytes_max,
                256 << 20
            ));
        }
        if self.transaction_rows_max == 0 {
            problems.push("apply.transaction_rows_max is 0; it must be at least 1".into());
        }
        problems
    }
}
