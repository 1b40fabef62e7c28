//! Where rows end that are not in the database whose session the sink has.
//!
//! A sink reads its batch, runs the transforms, and keeps what cannot be written in PostgreSQL. Where the rows are of
//! another server, PostgreSQL answers the *facts* that a batch makes, and [`Rows`] writes them there: a dead fact says
//! that a key is gone as of its version, a live one is a row. The transaction there commits first, then PostgreSQL's
//! with the offset and with what could not be written: a crash between them brings the batch again, which changes
//! nothing.

use std::fmt;

use async_trait::async_trait;

use super::{ApplyError, Counts};
use crate::{
    database::postgres::Refusal,
    model::{Plan, Problem, Version},
};

/// What a batch says of one row of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    pub version: Version,
    /// The text of each value that the statement gives, as PostgreSQL spells it: bytes as hexadecimal digits, an
    /// interval as µs.
    pub values: Vec<Option<String>>,
}

/// What facts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactKind {
    /// Keys that are gone, in the order of the target's key.
    Dead,
    /// Rows, in the order of the plan's columns.
    Live,
    /// Keys of copied rows, which are gone where the target has something older: what it has of their version is the
    /// row itself.
    Older,
}

/// Why facts were not written.
#[derive(Debug)]
pub enum RowsError {
    /// Some row is at fault.
    Row(Box<Refusal>),
    /// The whole batch is off.
    Stop(ApplyError),
}

impl From<ApplyError> for RowsError {
    fn from(error: ApplyError) -> Self {
        RowsError::Stop(error)
    }
}

impl From<RowsError> for ApplyError {
    /// Of facts that are no single row's.
    fn from(error: RowsError) -> Self {
        match error {
            RowsError::Stop(error) => error,
            RowsError::Row(refusal) => ApplyError::Halt(Problem::new(
                format!("the target refused a statement: {refusal}"),
                "let nothing else write to the target's tables, and start again",
            )),
        }
    }
}

/// A connection that writes facts.
#[async_trait]
pub trait Rows: Send + Sync + fmt::Debug {
    /// Begins a transaction with the lane's mark, unless one is open.
    async fn begin(&mut self) -> Result<(), ApplyError>;

    /// Writes facts of one kind, which have a key each. With `replace` the rows that are there are removed before any
    /// of them is written, where that loses nothing: unique values may have been swapped.
    async fn write(
        &mut self,
        plan: &Plan,
        kind: FactKind,
        facts: Vec<Fact>,
        replace: bool,
    ) -> Result<Counts, RowsError>;

    /// Removes everything of these plans that is older than `version`, once nobody writes anything else.
    async fn empty(&mut self, plans: &[&Plan], version: Version) -> Result<(), RowsError>;

    /// Sets, keeps or goes back to a savepoint; nothing outside of a transaction.
    async fn savepoint(&mut self, sql: &'static str) -> Result<(), ApplyError>;

    /// Commits the transaction, if one is open.
    async fn commit(&mut self) -> Result<(), ApplyError>;

    /// Takes back what is not committed. A connection that cannot is given up.
    async fn roll_back(&mut self);
}
