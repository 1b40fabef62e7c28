//! The mark of a transaction that a pipeline has written: a message in the server's log, and nothing in any table.
//!
//! It is transactional and comes before the first row, so that a capture knows whose the transaction is before it has
//! read any of it. `pgoutput` sends such messages from PostgreSQL 14 on.

use super::sql;
use crate::model::Problem;

/// What its messages are called. Those of the trigger in [`super::ddl`] have another name.
pub const PREFIX: &str = "cutover.pipeline";

/// The first release whose log tells a capture of messages.
const VERSION_MIN: i32 = 140_000;

/// What a transaction of the pipeline says behind its BEGIN.
pub fn statement(pipeline: &str) -> String {
    format!("; SELECT pg_catalog.pg_logical_emit_message(true, '{PREFIX}', {})", sql::literal(pipeline))
}

/// What is wrong with a server of this version (`server_version_num`) that is captured, and that the pipeline's other
/// direction writes to.
pub fn problem(version: i32) -> Option<Problem> {
    let what = "the source is older than PostgreSQL 14, whose log does not tell what [reverse] has written from what others have";
    (version < VERSION_MIN).then(|| Problem::new(what, "upgrade it to PostgreSQL 14 or later, or remove [reverse]"))
}
