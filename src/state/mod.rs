//! The pipeline's own state: everything that it keeps besides the log, in the schema `cutover` of a PostgreSQL.
//!
//! One file for each thing kept. What enters is what to store or to ask for; what leaves is rows as types. Every
//! table is keyed by the pipeline's name. What must commit with the rows (the offsets that a batch moves, tombstones,
//! fences) the target writes itself; all else is written here. Deliberately absent: decisions. What follows from a
//! halt, a request or a replay is `control`'s.

pub mod appliers;
pub mod cascades;
pub mod checkpoints;
pub mod copies;
pub mod copying;
pub mod dead_letter_copies;
pub mod dead_letters;
pub mod drift;
mod error;
pub mod events;
mod fences;
pub mod format;
pub mod lag_history;
pub mod lanes;
pub mod lease;
pub mod migration_log;
pub mod notes;
pub mod replays;
pub mod requests;
mod schemas;
mod spelled;
pub mod status;
mod store;
pub mod transforms;
pub mod verifications;
pub mod waiting;

pub use error::StateError;
pub use store::{OpenSession, Store, key};
