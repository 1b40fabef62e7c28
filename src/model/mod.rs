//! The vocabulary of the pipeline: values, schemas, changes, versions and positions.
//!
//! Everything here is pure: no IO, no async, no clock but the one that is handed in. Every other
//! module speaks in these terms, so that stages never need to import each other.

pub(crate) mod cascade;
pub(crate) mod change;
pub(crate) mod debezium;
pub mod direction;
pub(crate) mod dynamodb;
#[doc(hidden)]
pub mod fuzz;
pub mod gtid;
pub(crate) mod position;
pub(crate) mod postgres;
pub mod problem;
pub(crate) mod role;
pub(crate) mod schema;
pub mod source;
pub(crate) mod target;
pub(crate) mod value;
pub(crate) mod version;

pub use cascade::{Cascade, CascadeKind, CascadeLink};
pub use change::{Change, Images, Op};
pub use debezium::{DebeziumPosition, SourcePlace};
pub use dynamodb::{DynamoPosition, ShardPosition, StreamPosition, TTL_COLUMN};
pub use gtid::{GtidSet, InvalidGtidSet, MariadbGtids};
pub use position::{Beyond, MysqlPosition, Position};
pub use postgres::{Lsn, PostgresPosition};
pub use problem::Problem;
pub use role::{Contributor, OnDelete, PlanRole, Share};
pub use schema::{Column, ColumnType, TableName, TableSchema};
pub use source::{DebeziumConnector, Flavor, Origin, SourceKind};
pub use target::{Coverage, ForeignKey, Identity, Plan, PlanColumn, TargetColumn, TargetTable};
pub use value::{Value, ZeroDates, row_bytes};
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
