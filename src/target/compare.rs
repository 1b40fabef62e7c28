//! Comparing what a target has with what the source's rows would make there.
//!
//! What enters is rows of a source table as records of the log would carry them; they go through today's transforms
//! where they always go. What leaves is differences, both ways. The two reads are of different moments, so that a
//! difference is a doubt at first: whoever asks looks again ([`Comparer::again`]). Nothing is changed. Deliberately
//! absent: what a doubt means (`verify`).

use std::collections::HashMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{ApplyError, RowEvent};
use crate::{
    model::{Plan, TableName, Value, Version},
    snapshot::Digest,
    state::verifications::Parked,
};

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
    /// Of what the source's row makes and what is there, in the columns that differ: the same only for as long as the
    /// row differs in the same way. It says something only after a look at the row ([`Comparer::again`]).
    pub digest: i64,
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
    /// Note of every row what it was found to be (`cutover.migration_rows`), under the number of this comparison.
    pub notes_rows: Option<i64>,
}

/// A row of the source that makes a target row which another one makes too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    pub plan: usize,
    /// The target's key, as text by column.
    pub key: Vec<Option<String>>,
    /// The place of the source's row among those that were handed in.
    pub row: usize,
}

/// A row of the source that does not come back equal when it goes through a transform and one of the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strayed {
    /// Its place among those that were handed in.
    pub row: usize,
    /// The columns that it comes back with other values in.
    pub columns: Vec<String>,
    /// Why it does not come back at all, if it does not.
    pub reason: Option<String>,
}

/// Rows of the target, as a look at one moment found them.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    pub doubts: Vec<Doubt>,
    /// The source's rows that were parked at that moment, by the keys of their records.
    pub parked: HashMap<String, Parked>,
}

/// A stretch of the target's rows that was compared with a chunk of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// What compares and of which columns: by other statements it would be another proof.
    pub made_by: String,
    /// Of each plan.
    pub ends: Vec<StretchEnd>,
}

/// Where a stretch ends for a plan, and what was there when it was compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StretchEnd {
    /// The target's key, as text by column. It goes with the stretch.
    pub upper: Vec<Option<String>>,
    /// Of the rows behind the stretch before, with their versions.
    pub there: Digest,
}

/// What comparing a part of a table gave.
#[derive(Debug)]
pub enum Compared {
    Part {
        doubts: Vec<Doubt>,
        /// How many of the rows that were handed in were looked at.
        rows: u64,
        /// Rows of the part that make one target row.
        shared: Vec<Shared>,
    },
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

    /// Whether the pass that was begun has stretches: all of it goes by ranges of keys.
    fn has_stretches(&self) -> bool;

    /// Ends the stretch of what was compared since the last one ended, each part at the moment of its comparison. None
    /// where the pass has no stretches, or had nothing to compare.
    fn end_stretch(&mut self) -> Option<Stretch>;

    /// Whether what is there, from where the pass is to the end of this stretch, is what was there then.
    async fn is_as(&mut self, stretch: &Stretch) -> Result<bool, ApplyError>;

    /// What is there, from where the pass is up to a key of the source: as the digest that PostgreSQL would make of the
    /// source's rows ([`Scan::digest`](crate::snapshot::Scan::digest)), and as a stretch. None where rows are not
    /// copied as they are, so that no such digest can be made.
    async fn copied(&mut self, upper: &[String]) -> Result<Option<(Digest, Stretch)>, ApplyError>;

    /// Goes on behind a stretch without comparing it.
    fn pass_by(&mut self, stretch: &Stretch);

    /// Whether what was found of rows is noted from here on, if whoever opened this asked for that.
    fn note_rows(&mut self, notes: bool);

    /// The next extra rows that no part of the pass has met, up to a bound; none when there are no more. All of the
    /// table's rows were handed in before.
    async fn extras(&mut self) -> Result<Vec<Doubt>, ApplyError>;

    /// The next keys of which the target has heard above a version, of the pass that was begun, up to a bound; none
    /// when there are no more. Nothing is said of them: to be looked at again.
    async fn changed(&mut self, since: Version) -> Result<Vec<Doubt>, ApplyError>;

    /// What is still different, of the target rows that these source rows make and of those with the keys (by plan).
    /// The source rows of all of these keys are among the rows, unless the source has them no more. `sources` are the
    /// keys of the records of all of them: which are parked is of the same moment.
    async fn again(
        &mut self,
        table: &TableName,
        rows: &[RowEvent],
        keys: &[(usize, Vec<Option<String>>)],
        sources: &[String],
    ) -> Result<Looked, ApplyError>;

    /// Notes the target keys that more than one row of a pass by [`Walk::Seen`] has made; how many they are.
    async fn note_shared(&mut self) -> Result<u64, ApplyError>;

    /// Which of these rows make a key that was noted so, if `noted`; else those that make the same key as another one
    /// of them.
    async fn shared(&mut self, rows: &[RowEvent], noted: bool) -> Result<Vec<Shared>, ApplyError>;

    /// How many rows of the targets of these source tables have no parent that a foreign key asks for, by the key's
    /// name and its table's; also of keys that the target does not enforce.
    async fn orphans(&mut self, tables: &[TableName]) -> Result<Vec<(String, u64)>, ApplyError>;

    /// Whether the rows of a source table go to the target one by one, and these plans of the way back make rows of the
    /// table of what they become.
    fn goes_back(&self, table: &TableName, back: &[Plan]) -> bool;

    /// Which of these rows do not come back equal by these plans of the way back. Neither side's tables are read.
    async fn there_and_back(&mut self, rows: &[RowEvent], back: &[Plan]) -> Result<Vec<Strayed>, ApplyError>;

    /// How many rows the table's plans make of these. One that cannot be transformed counts as one that it would make.
    async fn made(&mut self, rows: &[RowEvent]) -> Result<u64, ApplyError>;

    /// How many rows the targets of the table have now.
    async fn count(&mut self, table: &TableName) -> Result<u64, ApplyError>;
}
