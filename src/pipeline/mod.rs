//! The loops that join the stages: source to log, log to sink.
//!
//! Source and target never meet but here, each behind its trait; no kind of database is named. [`flow`] puts one
//! direction together. What enters the capture loop is a [`Source`]'s events, what leaves is a durable log; what enters
//! the apply loop is the log, what leaves is a durable target. The one thing the loops share is the frontier
//! ([`crate::observe::Frontier`]): how far capture has got, for snapshot watermarks, and how far apply has got, for lag
//! and the log's retention.
//!
//! [`Source`]: crate::source::Source

mod appender;
pub mod apply;
mod barrier;
pub mod batches;
pub mod capture;
mod connections;
pub(crate) mod copier;
mod copies;
pub mod flow;
pub(crate) mod refetch;
pub(crate) mod replay;
