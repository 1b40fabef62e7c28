//! Why the pipeline's state could not be read or written.

use super::format::FORMAT;
use crate::{
    database::postgres::PgError,
    model::{Disposition, Problem},
};

/// What kept something from being read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// What is stored, or is to be stored, does not read as what it should be.
    #[error("{0}")]
    Unreadable(String),
    #[error(
        "the cutover schema of the target has format {found}, this binary reads up to {FORMAT}; use the newer binary"
    )]
    NewerFormat { found: i32 },
    /// What this process wanted to note is the leader's to note.
    #[error("another worker leads the pipeline now")]
    Superseded,
}

impl StateError {
    /// What whoever asked does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            StateError::Postgres(error) => error.disposition(),
            // It will learn that its lease is lost.
            StateError::Superseded => Disposition::Retry,
            StateError::Unreadable(_) | StateError::NewerFormat { .. } => Disposition::Halt,
        }
    }

    /// What is wrong, and what to do about it where that is known here.
    pub fn problem(&self) -> Problem {
        match self {
            StateError::Postgres(error) => error.problem(),
            StateError::Unreadable(_) | StateError::NewerFormat { .. } | StateError::Superseded => {
                Problem::bare(self.to_string())
            }
        }
    }

    /// Whether the server could not be reached, or left before it had answered.
    pub fn is_outage(&self) -> bool {
        matches!(self, StateError::Postgres(PgError::Unreachable(_)))
    }

    /// What is wrong with the login, where it is that.
    pub fn login(&self) -> Option<Problem> {
        match self {
            StateError::Postgres(PgError::Login(problem)) => {
                Some(problem.clone().or("correct user, password or database in [target] url"))
            }
            StateError::Postgres(PgError::Unreachable(_) | PgError::Refused(_) | PgError::Protocol(_))
            | StateError::Unreadable(_)
            | StateError::NewerFormat { .. }
            | StateError::Superseded => None,
        }
    }

    /// Something that is stored cannot be read.
    pub(super) fn unreadable(what: &str, error: &serde_json::Error) -> Self {
        StateError::Unreadable(format!("{what} cannot be read: {error}"))
    }
}

impl From<tokio_postgres::Error> for StateError {
    fn from(error: tokio_postgres::Error) -> Self {
        StateError::Postgres(error.into())
    }
}

/// Something that is to be stored cannot be written as JSON.
impl From<serde_json::Error> for StateError {
    fn from(error: serde_json::Error) -> Self {
        StateError::Unreadable(error.to_string())
    }
}
