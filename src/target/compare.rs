//! Comparing what a target has with what the source's rows would make there.
//!
//! What enters is rows of a source table as records of the log would carry them; they go through today's transforms
//! where they always go. What leaves is differences, both ways. The two reads are of different moments, so that a
//! difference is a doubt at first: whoever asks looks again ([`Comparer::again`]). Nothing is changed. Deliberately
//! absent: what a doubt means (`verify`).

use async_trait::async_trait;

use super::{ApplyError, RowEvent};
use crate::model::{TableName, Value, Version};

/// What is wrong with a row of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Difference {
    /// The source's row makes one that is not there.
    Missing,
    /// It is there, and no row of the source makes it.
    Extra,
    /// It is there with other values.
    Different,
    /// The source's row cannot be transformed, so that nobody can say what should be there.
    Refused,
}

/// A target row in doubt.
#[derive(Debug, Clone, PartialEq)]
pub struct Doubt {
    /// The plan that makes, or would make, the row: its place among the plans.
    pub plan: usize,
    pub difference: Difference,
    /// The target's key, as text by column; empty where it cannot be told.
    pub key: Vec<Option<String>>,
    /// The place, among the rows that were handed in, of the one that makes it; none of an extra row.
    pub row: Option<usize>,
    /// The key of the source row that an extra row would be of, where that follows from the target's.
    pub source_key: Option<Vec<Value>>,
    /// The columns that differ.
    pub columns: Vec<String>,
    /// What the source's row makes of those, and what is there, if values were asked for.
    pub values: Vec<(Option<String>, Option<String>)>,
    /// The highest version at which the target heard of this row: of the row, its tombstone, its set, or a fence.
    pub version: Version,
    /// What it says, of a row that cannot be transformed.
    pub reason: Option<String>,
}

/// How to look.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Looks {
    /// Show the values of columns that differ.
    pub values: bool,
    /// Look at this share of the rows alone, 0 to 1, picked by a hash of the target's key; at all of them if none is
    /// given.
    pub sample: Option<f64>,
}

/// What comparing a part of a table gave.
#[derive(Debug)]
pub enum Compared {
    /// The rows in doubt; and how many of those that were handed in were looked at.
    Doubts(Vec<Doubt>, u64),
    /// The source's rows do not come in the order of the target's keys: the table is to be begun anew by
    /// [`Walk::Seen`].
    Unordered,
}

/// How extra rows are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// The source's rows come in the order of the target's keys, where these are whole numbers: each part is compared
    /// with the range of keys that it covers. Keys of other types are walked as by [`Walk::Seen`].
    Ranged,
    /// Every key that was made is noted beside the target, and what is left over at the end is extra.
    Seen,
}

/// A connection that compares.
#[async_trait]
pub trait Comparer: Send {
    /// Begins a pass over a source table.
    async fn begin(&mut self, table: &TableName, walk: Walk) -> Result<(), ApplyError>;

    /// Compares the next rows of the table's pass.
    async fn compare(&mut self, rows: &[RowEvent]) -> Result<Compared, ApplyError>;

    /// The next extra rows that no part of the pass has met, up to a bound; none when there are no more. All of the
    /// table's rows were handed in before.
    async fn extras(&mut self) -> Result<Vec<Doubt>, ApplyError>;

    /// The next keys of which the target has heard above a version, of the pass that was begun, up to a bound; none
    /// when there are no more. Nothing is said of them: to be looked at again.
    async fn changed(&mut self, since: Version) -> Result<Vec<Doubt>, ApplyError>;

    /// What is still different, of the target rows that these source rows make and of those with the keys (by plan).
    /// The source rows of all of these keys are among the rows, unless the source has them no more.
    async fn again(
        &mut self,
        rows: &[RowEvent],
        keys: &[(usize, Vec<Option<String>>)],
    ) -> Result<Vec<Doubt>, ApplyError>;

    /// How many rows of the target have no parent that a foreign key asks for, by the key's name and its table's; also
    /// of keys that the target does not enforce.
    async fn orphans(&mut self) -> Result<Vec<(String, u64)>, ApplyError>;

    /// How many rows the table's plans make of these.
    async fn made(&mut self, rows: &[RowEvent]) -> Result<u64, ApplyError>;

    /// How many rows the targets of the table have now.
    async fn count(&mut self, table: &TableName) -> Result<u64, ApplyError>;
}
