//! What statements of the log do to watched tables: DDL, TRUNCATE, and what must not be followed.

use std::collections::BTreeSet;

use super::{
    binlog::{
        Query,
        ddl::{AlterKind, RowChange, Statement, XaVerb, classify, is_the_servers},
    },
    halt, lost,
    reader::{LogReader, Pending},
};
use crate::{
    model::{Column, TableName, TableSchema},
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
    /// Reads a statement. Outside of an explicit transaction it commits by itself, ours or not. A row change comes back
    /// that only the catalog can tell whether it concerns a watched table.
    pub(super) fn statement(&mut self, query: &Query<'_>) -> Result<Option<Pending>, CaptureError> {
        let mut flow = Flow::Whole;
        let mut pending = None;
        for statement in classify(&query.sql, &query.schema, query.sql_mode) {
            if let Statement::RowChange(change) = statement {
                pending = pending.or(self.row_change(change, query)?);
            } else if self.follow(statement, query)? == Flow::Part {
                flow = Flow::Part;
            }
        }
        match (flow, &self.group) {
            (Flow::Part, _) => {}
            (Flow::Whole, Some(group)) if group.explicit => {}
            (Flow::Whole, Some(_)) => self.commit()?,
            (Flow::Whole, None) => {
                return Err(self.at_place(halt(
                    "a statement outside of any transaction",
                    "check the source's binlog with mysqlbinlog",
                )));
            }
        }
        Ok(pending)
    }

    fn follow(&mut self, statement: Statement, query: &Query<'_>) -> Result<Flow, CaptureError> {
        match statement {
            Statement::Begin | Statement::Xa(XaVerb::Start) => return self.explicit(),
            Statement::Savepoint | Statement::Xa(XaVerb::End) => return Ok(Flow::Part),
            Statement::Commit => return self.commit().map(|()| Flow::Part),
            Statement::Rollback => {
                self.forget_held();
                self.refuse_if_changed("a transaction was rolled back after its changes were logged")?;
                return self.commit().map(|()| Flow::Part);
            }
            Statement::RollbackToSavepoint => {
                self.refuse_if_changed("a transaction was rolled back to a savepoint after its changes were logged")?;
                return Ok(Flow::Part);
            }
            // What it prepared was refused, if it was ours: nothing of a watched table is left to commit.
            Statement::Xa(XaVerb::Prepare | XaVerb::Commit | XaVerb::Rollback)
            | Statement::RowChange(_)
            | Statement::TemporaryTable => {}
            // A trigger among others: what a row change reaches has to be asked for again.
            Statement::Harmless => self.outside.clear(),
            Statement::Unknown(words) => {
                return Err(
                    self.refused(&format!("a statement was logged that cutover does not know ({words} …)"), UNKNOWN)
                );
            }
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
            Statement::RenameTable(renames) => self.rename(&renames)?,
            Statement::CreateTable(table) => {
                self.outside.clear();
                self.links_stale = true;
                self.tables.changed(&table);
                // CREATE TABLE … SELECT as one transaction: its rows and their commit follow.
                if query.sql.trim_end().to_ascii_uppercase().ends_with("START TRANSACTION") {
                    return self.explicit();
                }
            }
            Statement::AlterTable { table, kinds, columns } => self.alter(&table, &kinds, &columns)?,
        }
        Ok(Flow::Whole)
    }

    fn rename(&mut self, renames: &[(TableName, TableName)]) -> Result<(), CaptureError> {
        self.outside.clear();
        self.links_stale = true;
        for (old, new) in renames {
            self.tables.changed(old);
            self.tables.changed(new);
        }
        let ours = |(old, new): &&(TableName, TableName)| self.tables.watches(old) || self.tables.watches(new);
        match renames.iter().find(ours) {
            Some((old, new)) => Err(self.refused(&format!("{old} was renamed to {new}"), RENAMED)),
            None => Ok(()),
        }
    }

    /// A row change as a statement. What names only the server's own schemas is nobody's, and what names other tables
    /// than the watched ones is nothing if the catalog agrees.
    fn row_change(&self, change: RowChange, query: &Query<'_>) -> Result<Option<Pending>, CaptureError> {
        let Some(names) = change.names.clone() else {
            return Err(self.row_change_refused(&change, "it does not say which tables it changes"));
        };
        let own = |table: &TableName| is_the_servers(&self.tables.compared(table).schema);
        if names.written.iter().chain(&names.read).all(own) {
            return Ok(None);
        }
        if let Some(table) = names.written.iter().find(|table| self.tables.watches(table)) {
            return Err(self.row_change_refused(&change, &format!("it changes {table}")));
        }
        if self.outside.contains(&names) {
            return Ok(None);
        }
        let emptied = emptied_memory_table(&query.sql).is_some();
        Ok(Some(Pending::Reach { change, names, emptied }))
    }

    /// A row change as a statement halts, and says why it concerns us.
    pub(super) fn row_change_refused(&self, change: &RowChange, why: &str) -> CaptureError {
        self.refused(&format!("a row change was logged as a statement ({}): {why}", change.verb), ROW_FORMAT)
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

    fn alter(&mut self, table: &TableName, kinds: &[AlterKind], columns: &[String]) -> Result<(), CaptureError> {
        self.outside.clear();
        self.links_stale = true;
        // Ticks for every table, as a TRUNCATE does: what a copy reads after this must be newer than the last change
        // before it.
        let (clock, _) = self.tick()?;
        for kind in kinds {
            self.refuse_other_table(table, kind)?;
        }
        self.tables.changed(table);
        let Some(schema) = self.tables.schema(table).cloned() else { return Ok(()) };
        let mut rewritten = BTreeSet::new();
        for kind in kinds {
            match kind {
                AlterKind::AddColumn => {
                    rewritten.extend(spelled(columns, &schema));
                    if kinds.contains(&AlterKind::DropColumn) {
                        rewritten.extend(names_of(&schema, |column| column.generated));
                    }
                }
                // A name that moves to another column is another column's rows under the old name.
                AlterKind::ChangeColumn | AlterKind::RenameColumn => {
                    rewritten.extend(spelled(columns, &schema));
                    rewritten.extend(names_of(&schema, |column| column.generated));
                }
                AlterKind::ConvertCharset => {
                    rewritten.extend(spelled(columns, &schema));
                    rewritten.extend(names_of(&schema, |column| column.charset.is_some() || column.generated));
                }
                AlterKind::Rebuilt => rewritten.extend(names_of(&schema, |_| true)),
                AlterKind::PartitionDrop
                | AlterKind::PartitionTruncate
                | AlterKind::PartitionExchange(_)
                | AlterKind::PartitionConvert(_) => {
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
                AlterKind::PrimaryKey => {
                    return Err(self.refused(&format!("the primary key of {table} was changed"), OTHER_KEY));
                }
                AlterKind::Unknown(word) => {
                    let reason = format!("{table} was altered in a way that cutover does not know ({word} …)");
                    return Err(self.refused(&reason, UNKNOWN));
                }
                AlterKind::DropColumn
                | AlterKind::ColumnAttribute
                | AlterKind::Index
                | AlterKind::PartitionOther
                | AlterKind::Other => {}
            }
        }
        if !rewritten.is_empty() {
            let (table, columns) = (schema.table.clone(), rewritten.into_iter().collect());
            self.deliver_change(CaptureEvent::Rewritten { table, columns, clock });
        }
        Ok(())
    }

    /// A clause that takes rows or the name of another table, which may be the watched one.
    fn refuse_other_table(&self, table: &TableName, kind: &AlterKind) -> Result<(), CaptureError> {
        match kind {
            AlterKind::PartitionExchange(other) | AlterKind::PartitionConvert(other) if self.tables.watches(other) => {
                Err(self.refused(&format!("rows of {other} were exchanged with a partition of {table}"), UNLOGGED))
            }
            AlterKind::Rename(new) if self.tables.watches(new) && !self.tables.watches(table) => {
                Err(self.refused(&format!("{table} was renamed to a watched table's name"), RENAMED))
            }
            AlterKind::AddColumn
            | AlterKind::DropColumn
            | AlterKind::ChangeColumn
            | AlterKind::RenameColumn
            | AlterKind::ColumnAttribute
            | AlterKind::PrimaryKey
            | AlterKind::Index
            | AlterKind::ConvertCharset
            | AlterKind::PartitionDrop
            | AlterKind::PartitionTruncate
            | AlterKind::PartitionExchange(_)
            | AlterKind::PartitionConvert(_)
            | AlterKind::PartitionOther
            | AlterKind::Tablespace
            | AlterKind::Rename(_)
            | AlterKind::Rebuilt
            | AlterKind::Other
            | AlterKind::Unknown(_) => Ok(()),
        }
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
const UNKNOWN: &str = "what it did to the tables is not known: copy every table again with `cutover resnapshot TABLE`, and report the \
     statement, so that the next version knows it";
const OTHER_KEY: &str = "the target's rows are still told apart by the old key: bring its table and the transforms in line with the new \
     one, and copy every table again with `cutover resnapshot TABLE`";
const UNLOGGED: &str =
    "rows changed that the binlog does not show: copy every table again with `cutover resnapshot TABLE`";

/// A server that comes up again empties its tables of the MEMORY engine, and says so with exactly
/// ``DELETE FROM `database`.`table` ``.
fn emptied_memory_table(sql: &str) -> Option<TableName> {
    let name = sql.trim_end().strip_prefix("DELETE FROM `")?.strip_suffix('`')?;
    let (database, table) = name.split_once("`.`")?;
    (!database.contains('`') && !table.contains('`')).then(|| TableName::new(database, table))
}

/// Names of columns as the schema spells them: to the server, a name is the same in any case.
fn spelled<'a>(columns: &'a [String], schema: &'a TableSchema) -> impl Iterator<Item = String> + 'a {
    columns.iter().map(|name| {
        let same = schema.columns.iter().find(|column| column.name.to_lowercase() == name.to_lowercase());
        same.map_or_else(|| name.clone(), |column| column.name.clone())
    })
}

fn names_of(schema: &TableSchema, which: impl Fn(&Column) -> bool) -> impl Iterator<Item = String> {
    schema.columns.iter().filter(move |column| which(column)).map(|column| column.name.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::{
            binlog::{DecodeOptions, SqlMode},
            progress::{GroupId, Progress},
            tables::Tables,
        },
        *,
    };
    use crate::model::{Clock, ColumnType, Flavor, MysqlPosition};

    fn column(name: &str, generated: bool) -> Column {
        Column {
            name: name.into(),
            column_type: ColumnType::Integer,
            source_type: "int".into(),
            nullable: false,
            charset: None,
            collation: None,
            generated,
        }
    }

    /// Watches `shop.t`.
    fn reader(names_fold: bool) -> LogReader {
        let position = MysqlPosition { file: "bin.000001".into(), offset: 4, server: "s".into(), gtids: None };
        let columns = vec![column("id", false), column("net", false), column("gross", false), column("g", true)];
        let schema = TableSchema { table: TableName::new("shop", "t"), columns, key: vec![0] };
        let tables = Tables::new([Arc::new(schema)], DecodeOptions::default(), names_fold);
        let progress = Progress::new(&position, false).expect("valid");
        LogReader::new(Flavor::Mysql, progress, tables, Clock::new(0, 1_000_000), || 0)
    }

    fn read(reader: &mut LogReader, schema: &str, sql: &str) -> Result<Option<Pending>, CaptureError> {
        let (schema, sql, sql_mode) = (schema.into(), sql.into(), SqlMode::default());
        reader.begin(GroupId::Anonymous, 0, false).expect("nothing is open");
        reader.statement(&Query { thread_id: 0, schema, sql, sql_mode, error_code: 0, microseconds: None })
    }

    fn refusal(names_fold: bool, sql: &str) -> String {
        read(&mut reader(names_fold), "shop", sql).expect_err(sql).to_string()
    }

    fn rewritten(sql: &str) -> Option<Vec<String>> {
        let mut reader = reader(false);
        read(&mut reader, "shop", sql).expect(sql);
        match reader.take() {
            Some(CaptureEvent::Rewritten { columns, .. }) => Some(columns),
            Some(_) | None => None,
        }
    }

    #[test]
    fn what_is_not_known_halts_with_its_first_words_and_a_remedy() {
        let said = refusal(false, "IMPORT TABLE FROM 'x.sdi'");
        assert!(said.contains("IMPORT TABLE") && said.contains("cutover resnapshot"), "{said}");
        assert!(refusal(false, "ALTER TABLE t SHUFFLE").contains("SHUFFLE"));
        assert!(refusal(false, "ALTER TABLE archive EXCHANGE PARTITION p WITH TABLE t").contains("exchanged"));
        assert!(refusal(false, "ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (net)").contains("primary key"));
    }

    #[test]
    fn names_compare_as_the_server_compares_them() {
        assert!(refusal(true, "DROP TABLE SHOP.T").contains("dropped"));
        assert!(refusal(true, "ALTER TABLE T RENAME TO u").contains("renamed"));
        for (fold, emptied) in [(true, true), (false, false)] {
            let mut reader = reader(fold);
            read(&mut reader, "SHOP", "TRUNCATE T").expect("it is read");
            assert_eq!(matches!(reader.take(), Some(CaptureEvent::Truncate { .. })), emptied);
        }
    }

    #[test]
    fn a_row_change_as_a_statement_passes_where_it_is_the_servers_own_and_halts_where_it_is_ours() {
        let mut reader = reader(false);
        let own = "/* of the service */ UPDATE mysql.x SET a = 1";
        assert!(read(&mut reader, "shop", own).expect("harmless").is_none());
        assert!(read(&mut reader, "mysql", "INSERT IGNORE INTO x VALUES (1)").expect("harmless").is_none());
        let other = "REPLACE INTO percona.heartbeat (ts) VALUES ('x')";
        if let Some(Pending::Reach { names, .. }) = read(&mut reader, "shop", other).expect("asked") {
            reader.stays_outside(names);
        }
        assert!(read(&mut reader, "shop", other).expect("known").is_none());
        read(&mut reader, "shop", "CREATE TRIGGER x BEFORE INSERT ON u FOR EACH ROW SET @x = 1").expect("harmless");
        assert!(read(&mut reader, "shop", other).expect("asked again").is_some());
        assert!(refusal(false, "UPDATE t SET net = 1").contains("it changes shop.t"));
        assert!(refusal(false, "INSERT INTO mysql.x SELECT shop.f()").contains("logged as a statement"));
    }

    #[test]
    fn columns_whose_names_move_and_generated_ones_over_them_are_rewritten() {
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(rewritten("ALTER TABLE t RENAME COLUMN net TO x"), names(&["g", "net", "x"]));
        assert_eq!(rewritten("ALTER TABLE t CHANGE NET gross int"), names(&["g", "gross", "net"]));
        assert_eq!(rewritten("ALTER TABLE t MODIFY Net bigint"), names(&["g", "net"]));
        assert_eq!(rewritten("ALTER TABLE t ADD x int"), names(&["x"]));
        assert_eq!(rewritten("ALTER IGNORE TABLE t ADD UNIQUE (net)"), names(&["g", "gross", "id", "net"]));
        assert_eq!(rewritten("ALTER TABLE t DROP COLUMN net"), None);
        assert_eq!(rewritten("ALTER TABLE t ENGINE = InnoDB"), None);
    }

    #[test]
    fn a_memory_table_that_a_starting_server_empties_is_told_from_a_delete() {
        assert_eq!(emptied_memory_table("DELETE FROM `shop`.`cache`"), Some(TableName::new("shop", "cache")));
        assert_eq!(emptied_memory_table("DELETE FROM `shop`.`cache` WHERE `a` = `b`"), None);
    }
}
