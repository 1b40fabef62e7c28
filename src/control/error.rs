//! Why a worker could not start or had to end, and whether what went wrong with an attempt may pass.

use crate::{
    log::LogError,
    model::{Disposition, Problem},
    source::SourceError,
    state::StateError,
    target::TargetError,
};

/// Why a worker could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Source(SourceError),
    #[error(transparent)]
    TargetLogin(Problem),
    #[error("the target cannot be written to:{}", Problem::list(.0))]
    TargetRefused(Vec<Problem>),
    #[error("the target: {0}")]
    State(StateError),
    #[error(transparent)]
    Target(TargetError),
    #[error(
        "cannot listen on {address} for metrics and health ({source}); stop what holds it (another worker?), or choose another \
         address with --listen or [http] listen"
    )]
    Listen { address: String, source: std::io::Error },
    #[error(transparent)]
    Log(#[from] LogError),
    /// Not its end: it waits for the lease again ([`super::start::run`]).
    #[error("another worker has taken the lease of `{0}`; this one has stopped writing")]
    LeaseLost(String),
    #[error("`{part}` has no thread to run on ({source}); raise the limit of threads, and start again")]
    Thread { part: &'static str, source: std::io::Error },
    #[error("metrics cannot be collected: {0}")]
    Metrics(String),
}

impl WorkerError {
    /// What is wrong, and what to do about it where that is known here.
    pub fn problem(&self) -> Problem {
        match self {
            WorkerError::TargetLogin(problem) => problem.clone(),
            WorkerError::State(error) => error.problem().at("the target"),
            WorkerError::Log(error) => error.problem(),
            WorkerError::Usage(_)
            | WorkerError::Source(_)
            | WorkerError::TargetRefused(_)
            | WorkerError::Target(_)
            | WorkerError::Listen { .. }
            | WorkerError::LeaseLost(_)
            | WorkerError::Thread { .. }
            | WorkerError::Metrics(_) => Problem::bare(self.to_string()),
        }
    }
}

impl From<SourceError> for WorkerError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Configured(why) => WorkerError::Usage(why),
            error @ (SourceError::Unreachable(_) | SourceError::Login(_) | SourceError::Refused(_)) => {
                WorkerError::Source(error)
            }
        }
    }
}

impl From<StateError> for WorkerError {
    fn from(error: StateError) -> Self {
        match (error.login(), error) {
            (Some(problem), _) => WorkerError::TargetLogin(problem),
            (None, error @ StateError::NewerFormat { .. }) => WorkerError::Usage(error.to_string()),
            (None, error @ (StateError::Postgres(_) | StateError::Unreadable(_) | StateError::Superseded)) => {
                WorkerError::State(error)
            }
        }
    }
}

impl From<TargetError> for WorkerError {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::Postgres(error) => StateError::from(error).into(),
            TargetError::State(error) => error.into(),
            error @ (TargetError::Transforms(_)
            | TargetError::Refused(_)
            | TargetError::Url(_)
            | TargetError::Mysql(_)) => WorkerError::Target(error),
        }
    }
}

/// Why one attempt at something needed for the start did not work.
#[derive(Debug)]
pub enum Attempt {
    /// It may work later.
    Later(String),
    Hopeless(WorkerError),
}

impl Attempt {
    fn judged(disposition: Disposition, error: impl std::fmt::Display + Into<WorkerError>) -> Self {
        match disposition {
            Disposition::Retry => Attempt::Later(error.to_string()),
            Disposition::DeadLetter | Disposition::Halt => Attempt::Hopeless(error.into()),
        }
    }
}

impl From<WorkerError> for Attempt {
    fn from(error: WorkerError) -> Self {
        Attempt::Hopeless(error)
    }
}

impl From<StateError> for Attempt {
    fn from(error: StateError) -> Self {
        Attempt::judged(error.disposition(), error)
    }
}

impl From<SourceError> for Attempt {
    fn from(error: SourceError) -> Self {
        Attempt::judged(error.disposition(), error)
    }
}

impl From<TargetError> for Attempt {
    fn from(error: TargetError) -> Self {
        Attempt::judged(error.disposition(), error)
    }
}

impl From<LogError> for Attempt {
    fn from(error: LogError) -> Self {
        Attempt::judged(error.disposition(), error)
    }
}
