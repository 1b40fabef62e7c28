//! Running and steering a pipeline: the worker, its lease, its state in the target, what
//! operators ask of it and what it answers.
//!
//! All state besides the log is in the target's `cutover` schema, keyed by the pipeline's name.
//! Commands never talk to the worker: they leave a request there and follow its progress, so that
//! they work from any host and whether or not a worker runs.

mod applier;
mod applying;
pub mod checkpoints;
mod columns;
mod connector;
pub mod copies;
pub mod events;
mod follower;
pub mod foresight;
pub mod http;
mod jobs;
mod lead;
pub mod lease;
mod letter_topic;
pub mod letters;
mod members;
pub mod replay;
pub mod requests;
pub mod source;
pub mod status;
mod steward;
pub mod store;
pub mod target;
mod teller;
pub mod worker;
