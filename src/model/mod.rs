//! The vocabulary of the pipeline: values, schemas, changes, versions and positions.
//!
//! Everything here is pure: no IO, no async, no clock but the one that is handed in. Every other
//! module speaks in these terms, so that stages never need to import each other.

pub mod change;
pub mod debezium;
pub mod dynamodb;
#[doc(hidden)]
pub mod fuzz;
pub mod position;
pub mod postgres;
pub mod role;
pub mod schema;
pub mod target;
pub mod value;
pub mod version;

pub use change::{Change, Images, Op};
pub use debezium::{DebeziumPosition, SourcePlace};
pub use dynamodb::{DynamoPosition, ShardPosition, StreamPosition, TTL_COLUMN};
pub use position::{GtidSet, MysqlPosition, Position};
pub use postgres::{Lsn, PostgresPosition};
pub use role::{Contributor, OnDelete, Role, Share};
pub use schema::{Column, ColumnType, TableName, TableSchema};
pub use target::{Coverage, ForeignKey, Identity, Plan, PlanColumn, TargetColumn, TargetTable};
pub use value::{Value, ZeroDates};
pub use version::{Clock, ClockError, Version};

/// What a stage does about an error: the one decision that every error type answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The world is wrong for now (connection, lock, shutdown): try again with backoff.
    Retry,
    /// This row is wrong and will stay wrong: set it aside with its error.
    DeadLetter,
    /// Going on would lose or corrupt rows: stop this pipeline and say what to do.
    Halt,
}
