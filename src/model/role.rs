//! How the rows that a transform makes share their target with others.
//!
//! Pure data, like the rest of the model: the transform's check fills it in, the sink makes its statements from it.

use super::schema::TableName;

/// What a plan's rows are at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanRole {
    /// Whole rows, which no other plan writes.
    Whole,
    /// Some columns of rows that several source tables share (rule 8).
    Share(Share),
    /// The set of rows that belongs to a source row (rule 9), named by these columns of the target.
    Set { parent: Vec<String> },
}

/// One contributor, among those that share a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub own: Contributor,
    pub others: Vec<Contributor>,
}

/// A source table's part of a merged row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contributor {
    pub source: TableName,
    /// Its source row decides that the target row is there.
    pub owns: bool,
    /// The target's column that holds its version; of a follower negative where the newest is a delete, 0 where nothing
    /// came.
    pub version: String,
    /// The columns that only it writes; those of the key are everybody's.
    pub columns: Vec<String>,
    pub on_delete: OnDelete,
}

/// What becomes of a merged row when a contributor's source row is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDelete {
    /// The row goes.
    Delete,
    /// The contributor's columns go back to their defaults.
    Clear,
    /// Deletes are not followed.
    Keep,
}

impl PlanRole {
    /// Whether deletes of the source's rows, TRUNCATE among them, are not followed.
    pub fn keeps(&self) -> bool {
        match self {
            PlanRole::Whole | PlanRole::Set { .. } => false,
            PlanRole::Share(share) => share.own.on_delete == OnDelete::Keep,
        }
    }

    /// Whether it matters that a row was away for a while: an owner that is made anew is not hidden by a follower's
    /// older delete.
    pub fn counts_deaths(&self) -> bool {
        match self {
            PlanRole::Whole | PlanRole::Set { .. } => false,
            PlanRole::Share(share) => share.own.owns && share.removers().next().is_some(),
        }
    }
}

impl Share {
    pub fn all(&self) -> impl Iterator<Item = &Contributor> {
        std::iter::once(&self.own).chain(&self.others)
    }

    /// The contributors whose delete removes a row that another owns.
    pub fn removers(&self) -> impl Iterator<Item = &Contributor> {
        self.all().filter(|contributor| contributor.removes())
    }
}

impl Contributor {
    /// Whether its delete removes a row that another owns.
    pub fn removes(&self) -> bool {
        !self.owns && self.on_delete == OnDelete::Delete
    }

    /// The column of a row that is not shown which says that this contributor's delete is the reason.
    pub fn gone(&self) -> String {
        self.version.replacen("version", "gone", 1)
    }
}
