//! What a statement of a query event does to tables: a classifier, not a parser.
//!
//! What enters is the text of one query event; what leaves says which tables are made, emptied, renamed, altered
//! or gone. It never fails: what it does not recognise is [`Statement::Other`], and everything that changes a
//! row of a table without a rows event is recognised. Comments that servers execute (`/*! … */`, `/*M! … */`)
//! are read as text. Deliberately absent: types, expressions, privileges, everything inside routines.

mod alter;
mod token;

use token::{Token, Tokens};

use super::SqlMode;
use crate::model::TableName;

/// A statement, as far as capture cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    Begin,
    Commit,
    Rollback,
    /// SAVEPOINT, RELEASE SAVEPOINT.
    Savepoint,
    /// ROLLBACK TO SAVEPOINT: rows since the savepoint, of tables without transactions too, stay in the log and
    /// are undone; a server writes it only when a non-transactional table was changed.
    RollbackToSavepoint,
    Truncate(TableName),
    /// DROP TABLE and DROP VIEW; not of temporary tables.
    DropTable(Vec<TableName>),
    DropDatabase(String),
    /// Old and new name.
    RenameTable(Vec<(TableName, TableName)>),
    AlterTable {
        table: TableName,
        /// What it does, in order; never empty.
        kinds: Vec<AlterKind>,
        /// The columns that it names, old and new names, in order, once each.
        columns: Vec<String>,
    },
    CreateTable(TableName),
    Xa(XaVerb),
    /// A row change as a statement (`binlog_format` is not ROW): the caller halts.
    Dml,
    Other,
}

/// One clause of ALTER TABLE, or an index statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlterKind {
    AddColumn,
    DropColumn,
    /// MODIFY, CHANGE, ALTER COLUMN … TYPE: the stored rows may have been rewritten.
    ChangeColumn,
    /// RENAME COLUMN.
    RenameColumn,
    /// ALTER COLUMN … SET/DROP DEFAULT, visibility: no stored row changes.
    ColumnAttribute,
    /// ADD or DROP PRIMARY KEY.
    PrimaryKey,
    /// Any other index, constraint or foreign key.
    Index,
    /// CONVERT TO CHARACTER SET: every text of the table is rewritten.
    ConvertCharset,
    /// DROP, TRUNCATE, EXCHANGE of a partition: rows change without events.
    PartitionDrop,
    PartitionTruncate,
    PartitionExchange,
    /// MariaDB's CONVERT PARTITION … TO TABLE and back.
    PartitionConvert,
    /// Partitions were made or moved; no row changes.
    PartitionOther,
    /// DISCARD or IMPORT TABLESPACE: all rows change without events.
    Tablespace,
    /// RENAME TO.
    Rename(TableName),
    /// Table options, ENGINE, COMMENT, AUTO_INCREMENT, FORCE: no stored value changes.
    Other,
}

/// The verb of an XA statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XaVerb {
    /// XA START, XA BEGIN.
    Start,
    End,
    Prepare,
    Commit,
    Rollback,
}
