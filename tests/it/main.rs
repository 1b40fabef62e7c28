//! The integration tests: one binary, real servers. `support` starts the servers through `scripts/services` and gives
//! each test databases of its own, so that tests run in parallel and beside other checkouts.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "in a test, a panic with its message is the report, figures are printed, and time is the machine's"
)]

mod analyze;
mod apply_check;
mod apply_check_roles;
mod apply_history;
mod apply_rate;
mod apply_rig;
mod apply_rules;
mod bad_input;
mod broken_sessions;
mod capture_mysql;
mod check;
mod connect_mysql;
mod debezium;
mod deploy;
mod dlq;
mod dlq_topic;
mod dynamo;
mod events;
mod follow;
mod fuzz_corpora;
mod init;
mod init_for_mysql;
mod job;
mod kafka_events;
mod kafka_pipeline;
mod log_contract;
mod log_embedded;
mod log_kafka;
mod log_rate;
mod mysql_target;
mod mysql_target_check;
mod mysql_target_rows;
mod mysql_target_verify;
mod operations;
mod own_servers;
mod pipeline;
mod pipeline_postgres;
mod replay;
mod report;
mod reverse;
mod roles;
mod round_trip;
mod rules_cascades;
mod rules_catalog;
mod rules_limits;
mod rules_merge;
mod rules_one_row;
mod rules_owned;
mod rules_owned_history;
mod rules_owned_pipeline;
mod rules_positions;
mod rules_postgres_source;
mod rules_retyped;
mod rules_rig;
mod rules_sets;
mod rules_shared;
mod rules_shared_history;
mod rules_shared_pipeline;
mod rules_source;
mod rules_statements;
mod rules_waiting;
mod scan_mysql;
mod servers;
mod simulator;
mod simulator_claims;
mod small_tables;
mod support;
mod tidy;
mod types;
mod types_mysql;
mod types_postgres;
mod verify;
mod verify_digests;
mod verify_proof;
mod verify_review;
mod verify_rows;
mod wide_rows;
