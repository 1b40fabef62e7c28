//! PostgreSQL: connecting, its catalog, and what its errors mean.
//!
//! Every session that leaves here has its settings pinned: what a transform computes must not depend on the
//! server's configuration, and no schema may put itself before `pg_catalog`
//! (CORRECTNESS rule 28). Deliberately absent: pools. A session has one owner.

mod bound;
pub mod catalog;
mod connect;
mod error;
mod liveness;
pub mod privileges;
pub mod publication;
pub mod replication;
pub mod scan;
pub mod server;
pub mod slot;
pub mod spelling;
pub mod sql;
pub mod state;
pub mod tables;
mod tls;
pub mod unseen;

pub use connect::{Dial, Options, Session, Target, UrlError, Wire};
pub use error::{PgError, Refusal};
