//! The integration tests: one binary, real servers. `support` starts the servers through `scripts/services` and gives
//! each test databases of its own, so that tests run in parallel and beside other checkouts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test, a panic with its message is the report")]

mod apply_check;
mod apply_history;
mod apply_rig;
mod bad_input;
mod capture_mysql;
mod check;
mod init;
mod log_contract;
mod log_embedded;
mod pipeline;
mod scan_mysql;
mod servers;
mod support;
mod tidy;
mod types;
mod types_mysql;
