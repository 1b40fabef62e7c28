//! What an error of PostgreSQL means for us.

use crate::model::Disposition;
use tokio_postgres::error::{DbError, ErrorPosition};

use crate::model::Problem;

/// An error, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// No connection, or it broke: the same again later.
    #[error("{0}")]
    Unreachable(String),
    /// The server wants another user, password, database or TLS setting.
    #[error("{0}")]
    Login(Problem),
    /// The server answered with an error.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The answer was not what this program expects.
    #[error("{0}")]
    Protocol(String),
}

/// An error report of the server. Its detail is kept out: it may quote row values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.problem())]
pub struct Refusal {
    pub sqlstate: String,
    pub message: String,
    pub hint: Option<String>,
    /// In characters of the statement, from 1.
    pub position: Option<u32>,
    pub table: Option<String>,
    pub constraint: Option<String>,
}

impl Refusal {
    /// With this SQLSTATE and message alone.
    pub fn new(sqlstate: impl Into<String>, message: impl Into<String>) -> Self {
        Refusal {
            sqlstate: sqlstate.into(),
            message: message.into(),
            hint: None,
            position: None,
            table: None,
            constraint: None,
        }
    }

    /// What the server says, and its hint as what to do.
    pub fn problem(&self) -> Problem {
        let Refusal { message, sqlstate, hint, .. } = self;
        let fix = hint.as_ref().map(|hint| format!("hint: {hint}")).unwrap_or_default();
        Problem::new(format!("{message} (SQLSTATE {sqlstate})"), fix)
    }

    /// Whether the same statement may work later: locks, serialization, resources, an operator's doing.
    pub fn passes(&self) -> bool {
        matches!(self.sqlstate.get(..2), Some("40" | "53" | "57" | "08"))
            || matches!(self.sqlstate.as_str(), "55P03" | "25P03")
    }
}

impl PgError {
    /// What its caller does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            PgError::Unreachable(_) => Disposition::Retry,
            PgError::Refused(refusal) if refusal.passes() => Disposition::Retry,
            PgError::Login(_) | PgError::Refused(_) | PgError::Protocol(_) => Disposition::Halt,
        }
    }

    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            PgError::Unreachable(what) | PgError::Protocol(what) => Problem::bare(what),
            PgError::Login(problem) => problem.clone(),
            PgError::Refused(refusal) => refusal.problem(),
        }
    }

    /// The server's report, if it made one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            PgError::Refused(refusal) => Some(refusal),
            PgError::Unreachable(_) | PgError::Login(_) | PgError::Protocol(_) => None,
        }
    }

    /// What the server's report means.
    pub(super) fn reported(report: Refusal) -> Self {
        match report.sqlstate.as_str() {
            // The server starts, stops, recovers, or was told to end this session.
            "57P01" | "57P02" | "57P03" | "57P05" => PgError::Unreachable(report.message),
            "28000" | "28P01" | "3D000" => PgError::Login(Problem::bare(report.message)),
            code if code.starts_with("08") => PgError::Unreachable(report.message),
            _ => PgError::Refused(Box::new(report)),
        }
    }

    /// The server's SQLSTATE, if it sent one.
    pub fn sqlstate(&self) -> &str {
        self.refusal().map_or("", |refusal| &refusal.sqlstate)
    }
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(report) => classify(report),
            None if error.is_closed() => PgError::Unreachable("the server closed the connection".into()),
            None => match std::error::Error::source(&error) {
                Some(cause) if cause.is::<std::io::Error>() => PgError::Unreachable(format!("{error}: {cause}")),
                Some(cause) => PgError::Protocol(format!("{error}: {cause}")),
                None => PgError::Protocol(error.to_string()),
            },
        }
    }
}

fn classify(report: &DbError) -> PgError {
    PgError::reported(Refusal {
        sqlstate: report.code().code().to_owned(),
        message: report.message().to_owned(),
        hint: report.hint().map(str::to_owned),
        position: match report.position() {
            Some(ErrorPosition::Original(position)) => Some(*position),
            Some(ErrorPosition::Internal { .. }) | None => None,
        },
        table: report.table().map(str::to_owned),
        constraint: report.constraint().map(str::to_owned),
    })
}
