//! PostgreSQL: connecting, its catalog, and what its errors mean.
//!
//! Every session that leaves here has its settings pinned: what a transform computes must not depend on the
//! server's configuration, and no schema may put itself before `pg_catalog`
//! (rule 28). Deliberately absent: pools. A session has one owner.

mod bound;
pub mod catalog;
mod connect;
pub mod ddl;
mod error;
pub mod fingerprint;
pub(crate) mod in_flight;
mod liveness;
pub mod mark;
pub(crate) mod privileges;
pub(crate) mod publication;
pub(crate) mod replication;
pub mod scan;
pub(crate) mod server;
pub(crate) mod slot;
pub(crate) mod spelling;
pub mod sql;
pub mod tables;
mod tls;
pub(crate) mod type_names;

pub use connect::{Address, Dial, Options, Session, UrlError, Wire};
pub use error::{PgError, Refusal};
