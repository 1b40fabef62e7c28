//! What operators and other systems see: metric names, progress and lag, halts, events; and the room that stages share.

pub(crate) mod calendar;
pub(crate) mod environment;
pub(crate) mod event;
pub(crate) mod frontier;
pub(crate) mod halt;
pub mod invariant;
pub(crate) mod room;

pub use calendar::{civil, utc};
pub use environment::{Backoff, Environment, Machine, now_us, unique};
pub use event::{
    Direction, Event, EventSink, EventSinkError, NumberedEvent, StartedTable, VerifiedTable, WaitingReason,
};
pub use frontier::{Captured, Frontier};
pub use halt::Halts;
pub use invariant::Invariant;
pub use room::{Room, Taken};

/// Names of the metrics at `/metrics` (the contract in docs/metrics.md).
pub mod metric {
    pub const SYNC_LAG_SECONDS: &str = "cutover_sync_lag_seconds";
    pub const CAPTURE_LAG_SECONDS: &str = "cutover_capture_lag_seconds";
    pub const CHANGES_APPLIED: &str = "cutover_changes_applied_total";
    pub const SYNC_ERRORS: &str = "cutover_sync_errors_total";
    pub const CONFLICTS: &str = "cutover_conflicts_total";
    pub const DEAD_LETTERS: &str = "cutover_dead_letters_total";
    pub const DRIFT_ROWS: &str = "cutover_drift_rows";
    pub const VERIFY_ROWS: &str = "cutover_verify_rows_total";
    pub const VERIFY_LAST_PASS_AGE: &str = "cutover_verify_last_pass_age_seconds";
    pub const SNAPSHOT_ROWS: &str = "cutover_snapshot_rows_total";
    pub const SNAPSHOT_PROGRESS: &str = "cutover_snapshot_progress_ratio";
    pub const TRAFFIC_PERCENT: &str = "cutover_traffic_percent";
    pub const APPLY_BATCH_SECONDS: &str = "cutover_apply_batch_seconds";
    pub const INVARIANT_VIOLATIONS: &str = "cutover_invariant_violations_total";
    pub const END_TO_END_SECONDS: &str = "cutover_end_to_end_seconds";
}
