//! What the model of PostgreSQL claims, claimed of real servers too.
//!
//! Each test plays scripts of two or three sessions, statement by statement, on PostgreSQL 15, on 18 and on the model,
//! and compares answers, SQLSTATEs, who waited and when it went on, and the tables at the end. What a test asserts
//! beyond that is the point of its claim: `b3: waits` is the third step counted from 0, of session `b`.

mod cascades;
mod comparisons;
mod control;
mod cutover_tables;
mod foreign_keys;
mod histories;
mod model;
mod rig;
mod rows;
mod tables;
mod transactions;

use rig::{Part, Step, plan};

/// A live fact of `users`.
fn live(session: &'static str, id: &str, email: &str, version: i64) -> Step {
    plan(session, "users", Part::Live, &[(version, false, &[Some(id), Some(email), Some("30")])])
}

/// A dead fact of `users`.
fn dead(session: &'static str, id: &str, version: i64) -> Step {
    plan(session, "users", Part::Dead, &[(version, true, &[Some(id), Some("x"), Some("30")])])
}

/// Asserts that this is among what a script told.
fn said(told: &[String], line: &str) {
    assert!(told.iter().any(|other| other == line), "{line:?} is not among {told:#?}");
}
