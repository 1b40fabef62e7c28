//! What statements of the log do to watched tables: DDL, TRUNCATE, and what must not be followed.

use super::{
    binlog::{
        Query,
        ddl::{AlterKind, Statement, XaVerb, classify},
    },
    halt, lost,
    reader::LogReader,
};
use crate::{
    model::{TableName, TableSchema},
    source::{CaptureError, CaptureEvent},
};

/// What a statement means for the transaction that it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// It stands for a whole transaction, unless one was begun explicitly.
    Whole,
    /// It begins, goes on with, or has ended one.
    Part,
}

impl LogReader {
    /// Reads a statement. Outside of an explicit transaction it commits by itself, ours or not.
    pub(super) fn statement(&mut self, query: &Query<'_>) -> Result<(), CaptureError> {
        let mut flow = Flow::Whole;
        for statement in classify(&query.sql, &query.schema, query.sql_mode) {
            if self.follow(statement, query)? == Flow::Part {
                flow = Flow::Part;
            }
        }
        match (flow, &self.group) {
            (Flow::Part, _) => Ok(()),
            (Flow::Whole, Some(group)) if group.explicit => Ok(()),
            (Flow::Whole, Some(_)) => self.commit(),
            (Flow::Whole, None) => Err(self.at_place(halt(
                "a statement outside of any transaction",
                "check the source's binlog with mysqlbinlog",
            ))),
        }
    }

    fn follow(&mut self, statement: Statement, query: &Query<'_>) -> Result<Flow, CaptureError> {
        match statement {
            Statement::Begin | Statement::Xa(XaVerb::Start) => return self.explicit(),
            Statement::Savepoint | Statement::Xa(XaVerb::End) => return Ok(Flow::Part),
            Statement::Commit => return self.commit().map(|()| Flow::Part),
            Statement::Rollback => {
                self.refuse_if_changed("a transaction was rolled back after its changes were logged")?;
                return self.commit().map(|()| Flow::Part);
            }
            Statement::RollbackToSavepoint => {
                self.refuse_if_changed("a transaction was rolled back to a savepoint after its changes were logged")?;
                return Ok(Flow::Part);
            }
            // What it prepared was refused, if it was ours: nothing of a watched table is left to commit.
            Statement::Xa(XaVerb::Prepare | XaVerb::Commit | XaVerb::Rollback) | Statement::Other => {}
            Statement::Dml => self.row_change(query)?,
            Statement::Truncate(table) => self.truncate(&table)?,
            Statement::DropTable(tables) => {
                if let Some(table) = tables.iter().find(|table| self.tables.watches(table)) {
                    return Err(self.at_place(halt(format!("{table} was dropped"), DROPPED)));
                }
            }
            Statement::DropDatabase(database) => {
                if self.tables.watches_database(&database) {
                    return Err(self.at_place(halt(format!("the database {database} was dropped"), DROPPED)));
                }
            }
            Statement::RenameTable(renames) => {
                let ours = |(old, new): &&(TableName, TableName)| self.tables.watches(old) || self.tables.watches(new);
                if let Some((old, new)) = renames.iter().find(ours) {
                    return Err(self.refused(&format!("{old} was renamed to {new}"), RENAMED));
                }
            }
            Statement::CreateTable(table) => {
                self.tables.changed(&table);
                // CREATE TABLE … SELECT as one transaction: its rows and their commit follow.
                if query.sql.trim_end().to_ascii_uppercase().ends_with("START TRANSACTION") {
                    return self.explicit();
                }
            }
            Statement::AlterTable { table, kinds, columns } => self.alter(&table, &kinds, columns)?,
        }
        Ok(Flow::Whole)
    }

    /// A row change as a statement is refused, except the two that servers write by themselves.
    fn row_change(&self, query: &Query<'_>) -> Result<(), CaptureError> {
        if is_systems_own(&query.sql) {
            return Ok(());
        }
        match emptied_memory_table(&query.sql) {
            Some(table) if !self.tables.watches(&table) => Ok(()),
            Some(_) | None => Err(self.refused("a row change was logged as a statement", ROW_FORMAT)),
        }
    }

    fn explicit(&mut self) -> Result<Flow, CaptureError> {
        match &mut self.group {
            Some(group) => {
                group.explicit = true;
                Ok(Flow::Part)
            }
            None => Err(self.at_place(halt(
                "a transaction begins without a GTID event",
                "capture from MySQL 5.7 or later, or MariaDB 10.5 or later",
            ))),
        }
    }

    fn truncate(&mut self, table: &TableName) -> Result<(), CaptureError> {
        // Ticks for every table, so that the table list does not move versions.
        let (version, commit_us) = self.tick()?;
        if let Some(schema) = self.tables.schema(table).cloned() {
            self.deliver_change(CaptureEvent::Truncate { table: schema, version, commit_us });
        }
        Ok(())
    }

    fn alter(&mut self, table: &TableName, kinds: &[AlterKind], columns: Vec<String>) -> Result<(), CaptureError> {
        // Ticks for every table, as a TRUNCATE does: what a copy reads after this must be newer than the last change
        // before it.
        let (clock, _) = self.tick()?;
        let renamed_to_ours =
            kinds.iter().any(|kind| matches!(kind, AlterKind::Rename(new) if self.tables.watches(new)));
        let Some(schema) = self.tables.schema(table).cloned() else {
            if renamed_to_ours {
                return Err(self.refused(&format!("{table} was renamed to a watched table's name"), RENAMED));
            }
            return Ok(());
        };
        let mut rewritten = Vec::new();
        for kind in kinds {
            match kind {
                AlterKind::AddColumn | AlterKind::ChangeColumn => rewritten.clone_from(&columns),
                AlterKind::ConvertCharset => {
                    rewritten.clone_from(&columns);
                    rewritten.extend(texts_of(&schema).filter(|name| !columns.contains(name)));
                    break;
                }
                AlterKind::PartitionDrop
                | AlterKind::PartitionTruncate
                | AlterKind::PartitionExchange
                | AlterKind::PartitionConvert => {
                    return Err(
                        self.refused(&format!("partitions of {table} were dropped, truncated or exchanged"), UNLOGGED)
                    );
                }
                AlterKind::Tablespace => {
                    return Err(self.refused(&format!("the tablespace of {table} was discarded or imported"), UNLOGGED));
                }
                AlterKind::Rename(new) => {
                    return Err(self.refused(&format!("{table} was renamed to {new}"), RENAMED));
                }
                AlterKind::DropColumn
                | AlterKind::RenameColumn
                | AlterKind::ColumnAttribute
                | AlterKind::PrimaryKey
                | AlterKind::Index
                | AlterKind::PartitionOther
                | AlterKind::Other => {}
            }
        }
        self.tables.changed(table);
        if !rewritten.is_empty() {
            self.deliver_change(CaptureEvent::Rewritten { table: table.clone(), columns: rewritten, clock });
        }
        Ok(())
    }

    fn deliver_change(&mut self, captured: CaptureEvent) {
        self.deliver(captured);
        if let Some(group) = &mut self.group {
            group.changes = true;
        }
    }

    fn refuse_if_changed(&self, what: &str) -> Result<(), CaptureError> {
        if self.group.as_ref().is_some_and(|group| group.changes) {
            return Err(self.refused(
                what,
                "this happens when tables of InnoDB and of an engine without transactions are changed together: convert the latter to \
                 InnoDB, and copy every table again with `cutover resnapshot TABLE`",
            ));
        }
        Ok(())
    }

    /// What happened here cannot be followed, and will not go away: beyond it only a new copy leads.
    fn refused(&self, reason: &str, remedy: &str) -> CaptureError {
        self.at_place(lost(reason, remedy))
    }
}

const ROW_FORMAT: &str = "set binlog_format = ROW at the source, globally and in the sessions that change it, and copy every table again with \
     `cutover resnapshot TABLE`";
const DROPPED: &str =
    "remove the table from [source] tables and restart; to follow a new table of that name, add it again afterwards";
const RENAMED: &str = "change [source] tables and the transforms if it is to be followed under its new name, start again, and copy every table \
     again with `cutover resnapshot TABLE`";
const UNLOGGED: &str =
    "rows changed that the binlog does not show: copy every table again with `cutover resnapshot TABLE`";

/// Managed services write their heartbeat into the system's database as a statement
/// (`INSERT INTO mysql.rds_heartbeat2 …`), which touches no table of anybody's.
fn is_systems_own(sql: &str) -> bool {
    let start: String = sql.chars().filter(|character| *character != '`').take(40).collect();
    let words: Vec<String> = start.split_whitespace().map(str::to_ascii_lowercase).collect();
    matches!(words.as_slice(), [verb, into, table, ..]
        if matches!(verb.as_str(), "insert" | "replace") && into == "into" && table.starts_with("mysql."))
}

/// A server that comes up again empties its tables of the MEMORY engine, and says so with exactly
/// ``DELETE FROM `database`.`table` ``.
fn emptied_memory_table(sql: &str) -> Option<TableName> {
    let name = sql.trim_end().strip_prefix("DELETE FROM `")?.strip_suffix('`')?;
    let (database, table) = name.split_once("`.`")?;
    (!database.contains('`') && !table.contains('`')).then(|| TableName::new(database, table))
}

fn texts_of(schema: &TableSchema) -> impl Iterator<Item = String> {
    schema.columns.iter().filter(|column| column.charset.is_some()).map(|column| column.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_servers_write_by_themselves_are_told_from_row_changes() {
        assert!(is_systems_own(
            "INSERT INTO mysql.rds_heartbeat2(id, value) values (1,2) ON DUPLICATE KEY UPDATE value = 2"
        ));
        assert!(!is_systems_own("INSERT INTO shop.mysql VALUES (1)"));
        assert!(!is_systems_own("UPDATE mysql.x, shop.t SET t.a = 1"));
        assert_eq!(emptied_memory_table("DELETE FROM `shop`.`cache`"), Some(TableName::new("shop", "cache")));
        assert_eq!(emptied_memory_table("DELETE FROM `shop`.`cache` WHERE `a` = `b`"), None);
    }
}
