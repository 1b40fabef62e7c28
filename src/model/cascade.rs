//! Foreign keys whose actions the source's log does not show, and what they may have done.

use serde::{Deserialize, Serialize};

use super::{schema::TableName, value::Value};

/// A foreign key by which a change of a parent's row changes rows of a child unseen (rule 11).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CascadeLink {
    pub child: TableName,
    /// The child's columns, in the order of the parent's that they refer to.
    pub columns: Vec<String>,
    pub parent: TableName,
    pub parent_columns: Vec<String>,
    /// Children go, or lose the reference, with their parent.
    pub on_delete: bool,
    /// Children change when the parent's key does.
    pub on_update: bool,
    /// They are given the new key then, and do not lose the reference.
    pub carries_key: bool,
}

/// What became of a parent's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CascadeKind {
    /// No row has it any more, or not the row that had it: children that refer to it at the target may have changed.
    Gone,
    /// A row was given it: the source may have children with it that the target knows under another key.
    Came,
}

/// Rows of a child table that may have changed without an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Cascade {
    pub child: TableName,
    /// The child's columns that refer to the parent.
    pub columns: Vec<String>,
    /// The parent's key, in the order of these columns.
    pub values: Vec<Value>,
    pub kind: CascadeKind,
}
