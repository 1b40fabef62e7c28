//! The Debezium envelope.
