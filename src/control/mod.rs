//! Running and steering a pipeline: the worker, who leads, what operators ask of it and what it answers.
//!
//! All state besides the log is in the target's `cutover` schema ([`crate::state`]), keyed by the pipeline's name.
//! Commands never talk to the worker: they leave a request there and follow its progress, so that
//! they work from any host and whether or not a worker runs.

mod announcer;
mod applier;
mod applying;
mod background;
mod capturing;
mod cascades;
mod connector;
pub(crate) mod copy_order;
mod dead_letter_topic;
pub mod error;
mod follower;
pub mod http;
mod leader;
mod leadership;
pub mod notes;
pub mod parts;
pub mod preview;
mod proving;
mod repairing;
pub mod replay;
pub mod reverse;
mod running;
pub mod start;
pub mod verifying;
pub mod worker;
