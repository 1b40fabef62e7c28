//! What an error of the target means for a batch (rule 24).
//!
//! What one row alone can cause is that row's dead letter: any refusal that is not of the world (an outage, a
//! transaction that cannot write, another schema of the target) makes the sink look for the row. What fails without a
//! row as well, or for every row, is the plan's fault, and halts.

use crate::{
    database::postgres::{PgError, Refusal},
    model::Problem,
    target::ApplyError,
};

/// Why a set of rows was not written.
#[derive(Debug)]
pub enum Failure {
    /// Some row of the set is at fault: find it.
    Rows(Box<Refusal>),
    /// Several rows claim one target key.
    Clash,
    /// Some row has what no PostgreSQL text can hold, so that the batch cannot be sent as it is: find it.
    Unsendable,
    /// The dead letters changed since they were read: read them again.
    Reload,
    /// The whole batch is off.
    Stop(ApplyError),
}

/// What is done with a row that fails alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It can never be stored as it is.
    DeadLetter,
    /// Another row must come, or go, first.
    Wait,
}

/// Not a failure of its own: an earlier statement of the transaction has failed.
pub const ABORTED: &str = "25P02";
/// One statement met a key twice.
const TWICE: &str = "21000";
const FOREIGN_KEY: &str = "23503";
const UNIQUE: &str = "23505";
const EXCLUSION: &str = "23P01";

impl From<PgError> for Failure {
    fn from(error: PgError) -> Self {
        let refusal = match error {
            PgError::Refused(refusal) => refusal,
            PgError::Unreachable(reason) | PgError::Protocol(reason) => {
                return Failure::Stop(ApplyError::Unreachable(reason));
            }
            PgError::Login(problem) => {
                let remedy = "check the user, password and privileges of [target] url".to_owned();
                return Failure::Stop(ApplyError::Halt(Problem::new(problem.to_string(), remedy)));
            }
        };
        match refusal.sqlstate.as_str() {
            TWICE => Failure::Clash,
            ABORTED => Failure::Stop(transient(&refusal)),
            _ if refusal.passes() => Failure::Stop(transient(&refusal)),
            _ if is_of_the_world(&refusal) => Failure::Stop(refused(&refusal)),
            _ => Failure::Rows(refusal),
        }
    }
}

/// Whether no row can have caused this: states of the transaction (25), the session (26, 34), the login (28), the
/// database (3D, 3F), objects (55), the machine (58), settings (F0), another server (HV), damaged data.
fn is_of_the_world(refusal: &Refusal) -> bool {
    let world = ["25", "26", "28", "34", "3B", "3D", "3F", "55", "58", "72", "F0", "HV"];
    world.contains(&refusal.sqlstate.get(..2).unwrap_or_default())
        || matches!(refusal.sqlstate.as_str(), "XX001" | "XX002")
}

/// Whether this is an error of a value (22), a constraint (23, 44), a limit (54: that of an index entry, of the depth
/// of a JSON), or one that a trigger raises (P0). Anything else may be the plan's own fault.
pub fn blames_a_row(sqlstate: &str) -> bool {
    matches!(sqlstate.get(..2), Some("22" | "23" | "44" | "54" | "P0")) || sqlstate == TWICE
}

/// A statement that is refused whichever row it has.
pub fn refused(refusal: &Refusal) -> ApplyError {
    ApplyError::Halt(Problem::new(
        format!("the target refused a statement: {refusal}"),
        "run `cutover check`, which compares the transforms with the target's tables and privileges",
    ))
}

/// Why a statement that compares rows failed: what no value is to blame for is no row's, and stops the comparison.
pub fn of_comparison(error: PgError) -> Failure {
    match Failure::from(error) {
        Failure::Rows(refusal) if !blames_a_row(&refusal.sqlstate) => Failure::Stop(refused(&refusal)),
        other @ (Failure::Rows(_) | Failure::Clash | Failure::Unsendable | Failure::Reload | Failure::Stop(_)) => other,
    }
}

/// A statement of a plan that cannot be prepared, which no row is to blame for.
pub fn unprepared(error: PgError) -> Failure {
    match Failure::from(error) {
        Failure::Rows(refusal) => Failure::Stop(refused(&refusal)),
        other @ (Failure::Clash | Failure::Unsendable | Failure::Reload | Failure::Stop(_)) => other,
    }
}

fn transient(refusal: &Refusal) -> ApplyError {
    ApplyError::Transient { sqlstate: refusal.sqlstate.clone(), message: refusal.message.clone() }
}

/// What becomes of a row that failed alone with this error.
pub fn verdict(refusal: &Refusal) -> Verdict {
    match refusal.sqlstate.as_str() {
        FOREIGN_KEY | UNIQUE | EXCLUSION => Verdict::Wait,
        _ => Verdict::DeadLetter,
    }
}

/// Whether a row refers to one that is not there.
pub fn is_orphan(refusal: &Refusal) -> bool {
    refusal.sqlstate == FOREIGN_KEY
}

/// Whether a row's value is taken by another.
pub fn is_taken(refusal: &Refusal) -> bool {
    matches!(refusal.sqlstate.as_str(), UNIQUE | EXCLUSION)
}

/// An error that no row is to blame for.
pub fn stop(error: PgError) -> ApplyError {
    match Failure::from(error) {
        Failure::Stop(error) => error,
        Failure::Rows(refusal) if !blames_a_row(&refusal.sqlstate) => refused(&refusal),
        Failure::Rows(refusal) => ApplyError::Halt(Problem::new(
            format!("the target refused cutover's own tables: {refusal}"),
            "let nothing else write to the schema `cutover`, and start again",
        )),
        Failure::Clash | Failure::Reload => clash(),
        Failure::Unsendable => unsendable(),
    }
}

/// The transform gives two rows one key, whichever way the batch is written.
pub fn clash() -> ApplyError {
    ApplyError::Halt(Problem::new(
        "the target met one key twice in one statement",
        "make the target's key depend on the source's key alone, one to one",
    ))
}

/// A batch that cannot be sent whichever way it is written.
pub fn unsendable() -> ApplyError {
    ApplyError::Halt(Problem::new(
        "the batch has a text with a NUL byte (0x00), which PostgreSQL cannot store",
        "take the byte out in the transform or at the source, and start again",
    ))
}
