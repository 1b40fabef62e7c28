//! What can go wrong, and on purpose: faults from the world's seed, and mutations that break a rule.

use std::time::Duration;

use super::table::Change;

/// A session as `pg_stat_activity` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    pub pid: i32,
    pub application_name: String,
    pub user: String,
    pub database: String,
    /// µs since the Unix epoch.
    pub started_us: i64,
}

/// Where a fault may strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A connection opens; the session has no application name yet.
    Connect,
    /// A statement is about to be prepared.
    Prepare,
    /// A statement is about to run.
    Statement,
    /// A statement has its snapshot, and has read and written nothing yet: what commits now it does not see.
    Snapshot,
    /// A transaction, explicit or not, is about to commit.
    Commit,
}

/// A moment at which the world is asked.
#[derive(Debug)]
pub struct Moment<'a> {
    pub point: Point,
    pub session: &'a SessionInfo,
    /// What the statement is called here: `advance`, `live`, `BEGIN`.
    pub statement: &'a str,
}

/// What happens then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Continue,
    /// First this passes, then it goes on.
    Delay(Duration),
    /// The statement, or the commit, fails with this SQLSTATE.
    Error(String),
    /// The session ends before it does that; its transaction is rolled back.
    DropConnectionBefore,
    /// It is done, and the session ends without an answer. At [`Point::Prepare`] and [`Point::Snapshot`] as `Before`.
    DropConnectionAfter,
}

/// Decides what happens at each moment.
pub trait Faults: Send + Sync {
    fn at(&self, moment: &Moment<'_>) -> Fault;
}

/// Nothing ever goes wrong.
#[derive(Debug)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn at(&self, _moment: &Moment<'_>) -> Fault {
        Fault::Continue
    }
}

/// Sees every transaction right after it has committed, before its session answers.
pub trait Watch: Send + Sync {
    fn committed(&self, session: &SessionInfo, changes: &[Change]);
}

/// Ways in which the SQL could be wrong. All off, the model means what the product says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weakness {
    /// The lane's locks are never taken.
    pub no_lane_lock: bool,
    /// Live facts do not look at tombstones.
    pub no_tombstone_check: bool,
    /// Dead facts leave no tombstone.
    pub no_tombstones: bool,
    /// Live facts overwrite newer rows.
    pub live_ignores_version: bool,
    /// Dead facts remove newer rows.
    pub dead_ignores_version: bool,
    /// The offset moves at once, whatever becomes of the transaction.
    pub offset_outside_transaction: bool,
    /// The offset moves from wherever it is, under whatever lease, and nobody is told that a lease was lost.
    pub offset_unchecked: bool,
    /// Images older than a TRUNCATE are applied.
    pub no_truncate_fence: bool,
    /// Nobody finds the open dead letters.
    pub no_dead_letter_fence: bool,
    /// Rows that trade a unique value are not removed before they are inserted.
    pub no_replace: bool,
    /// Nobody finds how far the target is in the log.
    pub no_tail_check: bool,
    /// Nothing is kept of what the target has from beyond its position.
    pub beyond_forgotten: bool,
    /// Every other request is not found.
    pub request_passed_over: bool,
    /// A cascade that is to be followed once more is ended.
    pub no_second_look: bool,
    /// Cascades are found before every lane has what came before them.
    pub cascades_followed_early: bool,
    /// What follows for children of children is not kept.
    pub cascades_end_at_children: bool,
    /// A comparison does not look for rows that no row of the source makes.
    pub verify_forgets_extras: bool,
    pub verify_trusts_numbers: bool,
    /// Nobody finds what is parked of the rows that a comparison looks at.
    pub verify_passes_over_parked: bool,
}
