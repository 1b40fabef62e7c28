//! What a target table looks like, and what a checked transform says about it.
//!
//! Pure data: the catalog fills it in, the transform's check judges by it, the sink and the verifier build their
//! statements from it.

use std::{path::PathBuf, sync::Arc};

use super::{
    role::PlanRole,
    schema::{TableName, TableSchema},
};

/// A table of the target, as its catalog describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTable {
    pub name: TableName,
    /// In the table's order, without cutover's own columns.
    pub columns: Vec<TargetColumn>,
    /// The primary key's columns, in key order; empty without a primary key.
    pub key: Vec<String>,
    /// Names of unique indexes and exclusion constraints besides the primary key.
    pub uniques: Vec<String>,
    pub foreign_keys: Vec<ForeignKey>,
    /// Whether a row may be removed and inserted again inside one statement without touching the rows that
    /// refer to it: true unless a foreign key to this table has an action of its own.
    pub replaceable: bool,
    pub partitioned: bool,
    /// Whether it has cutover's own column for owners, which a transform from before may have left.
    pub has_owners: bool,
    /// It is on another server than the one that runs the transforms, which takes its columns' types for those that a
    /// transform would see (docs/types.md).
    pub elsewhere: bool,
}

/// A column of a target table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetColumn {
    pub name: String,
    /// The type with its length: `character varying(20)`.
    pub type_sql: String,
    /// The type to cast to, without a length (an explicit cast to one cuts text in silence) and with
    /// a domain's base type in its place: assignment does the rest, and errors where it must.
    pub cast_sql: String,
    /// The collation, where it is not the type's own.
    pub collation: Option<String>,
    /// Its collation takes different texts for equal.
    pub folds: bool,
    pub not_null: bool,
    pub has_default: bool,
    pub identity: Option<Identity>,
    pub generated: bool,
}

/// How an identity column takes explicit values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    Always,
    ByDefault,
}

/// A foreign key of a target table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub columns: Vec<String>,
    pub parent: TableName,
    pub parent_columns: Vec<String>,
}

impl TargetTable {
    pub fn column(&self, name: &str) -> Option<&TargetColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// How many rows a transform makes of a source row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Exactly one row each, whose key depends on the source's key only: the newest image says it all.
    Total,
    /// At most one row each, whose key depends on the source's key only: an image before says whether there was a row.
    Filter,
    /// A set, or a key that the check cannot follow: images before say which rows there were.
    Partial,
}

/// A transform that has passed its check: how rows of one source table become rows of one target table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The source table with the columns and types that the transform was checked against.
    pub source: Arc<TableSchema>,
    pub target: Arc<TargetTable>,
    /// Where the transform was read from; none for the column-by-column default.
    pub file: Option<PathBuf>,
    /// The `SELECT`, verbatim, without its semicolon.
    pub select: String,
    /// Names of the source columns that the `SELECT` reads, in the source's order.
    pub reads: Vec<String>,
    /// The result columns, which are target columns, in the `SELECT`'s order.
    pub columns: Vec<PlanColumn>,
    pub coverage: Coverage,
    pub role: PlanRole,
    /// Of each column of the target's key (of a set: of its parent's), the place in `reads` of the source column that
    /// it is, cast or not; none if one of them is computed in another way, or if they are not the whole key of the
    /// source.
    pub key_reads: Option<Vec<usize>>,
    /// It is proven that no two source rows have one key at the target. Else two may (`lower(email)`).
    pub one_to_one: bool,
    /// A digest of what decides which target rows a source row has: the key and the `WHERE`, or all of a set's
    /// `SELECT`. Transforms with the same one differ in the values of their rows alone.
    pub identity: String,
}

/// One result column of a transform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanColumn {
    pub name: String,
    /// The type to cast the result to, where assignment alone would refuse it (text to an enum).
    pub cast: Option<String>,
    /// The source column that it is, cast or not; none if it is computed in another way.
    pub source: Option<String>,
}

impl Plan {
    /// Whether each row at the target has to know which source row it is of, because another may claim its key
    /// (rule 37). Rows that several source tables share, and the rows of a set, know no owner.
    pub fn is_owned(&self) -> bool {
        match self.role {
            PlanRole::Whole => !self.one_to_one,
            PlanRole::Share(_) | PlanRole::Set { .. } => false,
        }
    }

    /// Whether rows before a change have to be known whole, to tell which rows the plan had made of them.
    pub fn needs_full_row_images(&self) -> bool {
        match self.coverage {
            Coverage::Total => false,
            Coverage::Filter | Coverage::Partial => self.key_reads.is_none(),
        }
    }

    /// The transform as messages name it.
    pub fn name(&self) -> String {
        match &self.file {
            Some(file) => file.display().to_string(),
            None => format!("the default mapping of {}", self.source.table),
        }
    }
}
