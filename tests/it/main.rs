//! Integration tests: one binary.

mod log_contract;
mod log_embedded;
