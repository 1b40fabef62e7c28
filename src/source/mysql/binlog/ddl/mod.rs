//! What a statement of a query event does to tables: a classifier, not a parser.
//!
//! What enters is the text of one query event; what leaves says which tables are made, emptied, renamed, altered
//! or gone. It never fails, and it fails closed: what is known to change no row is a list, and what is on no list is
//! [`Statement::Unknown`], which nobody may skip. Comments that servers execute (`/*! … */`, `/*M! … */`) are read as
//! text. Deliberately absent: types, expressions, privileges, everything inside routines.

mod alter;
mod create;
mod row_change;
mod token;

pub use row_change::is_the_servers;
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
    /// CREATE and DROP TEMPORARY TABLE. The rows of such a table are not in the log.
    TemporaryTable,
    Xa(XaVerb),
    /// Rows that a statement changes, and no rows event (`binlog_format` is not ROW).
    RowChange(RowChange),
    /// Known to change no row and no table.
    Harmless,
    /// On no list: its first words.
    Unknown(String),
}

/// A row change as a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// Its first word.
    pub verb: String,
    /// What it writes to and reads from; none where the text does not tell, as when it calls a routine.
    pub names: Option<Names>,
}

/// The relations that a row change names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    pub written: Vec<TableName>,
    pub read: Vec<TableName>,
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
    /// DROP, TRUNCATE of a partition: rows change without events.
    PartitionDrop,
    PartitionTruncate,
    /// EXCHANGE PARTITION … WITH TABLE: rows of both tables change without events.
    PartitionExchange(TableName),
    /// MariaDB's CONVERT PARTITION … TO TABLE and back.
    PartitionConvert(TableName),
    /// Partitions were made or moved; no row changes.
    PartitionOther,
    /// DISCARD or IMPORT TABLESPACE: all rows change without events.
    Tablespace,
    /// RENAME TO.
    Rename(TableName),
    /// The table was made anew in a way that may leave rows out: ALTER IGNORE, REPAIR, an engine other than InnoDB.
    Rebuilt,
    /// Table options, ENGINE = InnoDB, COMMENT, AUTO_INCREMENT, FORCE: no stored value changes.
    Other,
    /// A clause that is on no list: its first word.
    Unknown(String),
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

/// What `sql` does, in order. `default_schema` is the query event's, for names without one.
pub fn classify(sql: &str, default_schema: &str, mode: SqlMode) -> Vec<Statement> {
    let mut parser = Parser { tokens: Tokens::new(sql, mode), default_schema };
    let mut statements = Vec::new();
    loop {
        while parser.take_symbol(';') {}
        if parser.tokens.peek().is_none() {
            return statements;
        }
        let whole = parser.statement(&mut statements);
        match whole {
            Extent::Statement => {
                while parser.tokens.peek().is_some_and(|token| *token != Token::Symbol(';')) {
                    parser.tokens.next();
                }
            }
            // A routine's body has semicolons of its own.
            Extent::Text => return statements,
        }
    }
}

/// How much of the text a statement takes up.
enum Extent {
    /// Up to the next semicolon.
    Statement,
    Text,
}

struct Parser<'a> {
    tokens: Tokens<'a>,
    default_schema: &'a str,
}

impl Parser<'_> {
    fn statement(&mut self, statements: &mut Vec<Statement>) -> Extent {
        let verb = self.word();
        let statement = match verb.as_str() {
            "BEGIN" if self.ends_here() || self.take("WORK") => Statement::Begin,
            "START" if self.take("TRANSACTION") => Statement::Begin,
            "COMMIT" => Statement::Commit,
            "ROLLBACK" => self.rollback(),
            "SAVEPOINT" | "RELEASE" => Statement::Savepoint,
            "XA" => self.xa(),
            "TRUNCATE" => {
                self.take("TABLE");
                self.table().map_or_else(|| self.unknown(&verb), Statement::Truncate)
            }
            "DROP" => self.drop_statement(),
            "RENAME" if self.take("TABLE") || self.take("TABLES") => self.rename(),
            "RENAME" if self.take("USER") => Statement::Harmless,
            "ALTER" => return self.alter_statement(statements),
            "REPAIR" => {
                self.repair(statements);
                return Extent::Statement;
            }
            "CREATE" => return self.create(statements),
            "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "CALL" | "WITH" | "SELECT" | "DO" => self.row_change(verb),
            "LOAD" if self.take("INDEX") => Statement::Harmless,
            "LOAD" => self.row_change(verb),
            // MariaDB's ANALYZE of a statement carries it out.
            "ANALYZE" if self.analyzes_tables() => Statement::Harmless,
            "ANALYZE" => {
                if self.take("FORMAT") {
                    self.take_symbol('=');
                    self.tokens.next();
                }
                return self.statement(statements);
            }
            "SET" if self.take("STATEMENT") => {
                self.skip_settings();
                return self.statement(statements);
            }
            "SET" => self.set(verb),
            // These speak of the server, of its users and of how it keeps what it has.
            "GRANT" | "REVOKE" | "FLUSH" | "OPTIMIZE" | "CHECK" | "CHECKSUM" | "SHOW" | "USE" | "LOCK" | "UNLOCK"
            | "KILL" | "RESET" | "PURGE" | "CHANGE" | "START" | "STOP" | "INSTALL" | "UNINSTALL" | "CACHE"
            | "BACKUP" | "SHUTDOWN" | "RESTART" => Statement::Harmless,
            _ => self.unknown(&verb),
        };
        statements.push(statement);
        Extent::Statement
    }

    /// A statement that is on no list, by its verb and the word after it.
    fn unknown(&mut self, verb: &str) -> Statement {
        let next = self.word();
        let words: Vec<&str> = [verb, &next].into_iter().filter(|word| !word.is_empty()).collect();
        Statement::Unknown(if words.is_empty() { "no word".into() } else { words.join(" ") })
    }

    fn ends_here(&mut self) -> bool {
        self.tokens.peek().is_none_or(|token| *token == Token::Symbol(';'))
    }

    /// ANALYZE [NO_WRITE_TO_BINLOG | LOCAL] TABLE …
    fn analyzes_tables(&mut self) -> bool {
        ["TABLE", "TABLES", "LOCAL", "NO_WRITE_TO_BINLOG"].iter().any(|word| self.take(word))
    }

    /// MariaDB's SET STATEMENT a = 1, b = 2 FOR: what follows is the statement.
    fn skip_settings(&mut self) {
        while self.tokens.next().is_some_and(|token| !token.is("FOR")) {}
    }

    /// SET PASSWORD, SET ROLE, variables: harmless, unless an expression calls something.
    fn set(&mut self, verb: String) -> Statement {
        if self.take("PASSWORD") || !self.calls_something() { Statement::Harmless } else { self.row_change(verb) }
    }

    /// REPAIR TABLE a, b: what cannot be repaired is left out.
    fn repair(&mut self, statements: &mut Vec<Statement>) {
        while self.take("NO_WRITE_TO_BINLOG") || self.take("LOCAL") {}
        if !self.take("TABLE") && !self.take("TABLES") && !self.take("VIEW") {
            let unknown = self.unknown("REPAIR");
            return statements.push(unknown);
        }
        while let Some(table) = self.table() {
            statements.push(Statement::AlterTable { table, kinds: vec![AlterKind::Rebuilt], columns: Vec::new() });
            if !self.take_symbol(',') {
                return;
            }
        }
    }

    /// ROLLBACK [WORK] [TO [SAVEPOINT] x]
    fn rollback(&mut self) -> Statement {
        self.take("WORK");
        if self.take("TO") { Statement::RollbackToSavepoint } else { Statement::Rollback }
    }

    fn xa(&mut self) -> Statement {
        match self.word().as_str() {
            "START" | "BEGIN" => Statement::Xa(XaVerb::Start),
            "END" => Statement::Xa(XaVerb::End),
            "PREPARE" => Statement::Xa(XaVerb::Prepare),
            "COMMIT" => Statement::Xa(XaVerb::Commit),
            "ROLLBACK" => Statement::Xa(XaVerb::Rollback),
            _ => Statement::Harmless,
        }
    }

    fn drop_statement(&mut self) -> Statement {
        let verb = self.word();
        match verb.as_str() {
            "TEMPORARY" => Statement::TemporaryTable,
            "TABLE" | "TABLES" | "VIEW" => {
                self.if_exists();
                let mut tables: Vec<TableName> = self.table().into_iter().collect();
                while self.take_symbol(',') {
                    tables.extend(self.table());
                }
                if tables.is_empty() { self.unknown("DROP TABLE") } else { Statement::DropTable(tables) }
            }
            "DATABASE" | "SCHEMA" => {
                self.if_exists();
                self.name().map_or_else(|| self.unknown("DROP DATABASE"), Statement::DropDatabase)
            }
            "INDEX" | "ONLINE" | "OFFLINE" => self.index_statement(),
            kind if create::is_no_table(kind) => Statement::Harmless,
            _ => Statement::Unknown(format!("DROP {verb}").trim_end().to_owned()),
        }
    }

    /// [ONLINE|UNIQUE …] INDEX name … ON table, after CREATE or DROP: an ALTER TABLE in other words.
    fn index_statement(&mut self) -> Statement {
        while let Some(token) = self.tokens.next() {
            if token.is("ON") {
                let kinds = vec![AlterKind::Index];
                return match self.table() {
                    Some(table) => Statement::AlterTable { table, kinds, columns: Vec::new() },
                    None => self.unknown("INDEX ON"),
                };
            }
        }
        self.unknown("INDEX")
    }

    /// RENAME TABLE a TO b, …; MariaDB allows IF EXISTS and WAIT n.
    fn rename(&mut self) -> Statement {
        self.if_exists();
        let mut pairs = Vec::new();
        loop {
            let old = self.table();
            while !self.take("TO") {
                if self.tokens.next().is_none_or(|token| token == Token::Symbol(';')) {
                    return self.unknown("RENAME TABLE");
                }
            }
            match old.zip(self.table()) {
                Some(pair) => pairs.push(pair),
                None => return self.unknown("RENAME TABLE"),
            }
            if !self.take_symbol(',') {
                return Statement::RenameTable(pairs);
            }
        }
    }

    /// The next token as an upper-case word; empty, and nothing taken, if it is none.
    fn word(&mut self) -> String {
        match self.tokens.peek() {
            Some(Token::Word(word)) => {
                let word = word.to_ascii_uppercase();
                self.tokens.next();
                word
            }
            Some(Token::Quoted(_) | Token::Text | Token::Symbol(_)) | None => String::new(),
        }
    }

    /// Takes the keyword if it is next.
    fn take(&mut self, keyword: &str) -> bool {
        let found = self.tokens.peek().is_some_and(|token| token.is(keyword));
        if found {
            self.tokens.next();
        }
        found
    }

    fn take_symbol(&mut self, symbol: char) -> bool {
        let found = self.tokens.peek().is_some_and(|token| *token == Token::Symbol(symbol));
        if found {
            self.tokens.next();
        }
        found
    }

    /// IF [NOT] EXISTS
    fn if_exists(&mut self) {
        if self.take("IF") {
            self.take("NOT");
            self.take("EXISTS");
        }
    }

    /// A name, quoted or not.
    fn name(&mut self) -> Option<String> {
        let name = match self.tokens.peek()? {
            Token::Word(word) => (*word).to_owned(),
            Token::Quoted(name) => name.clone(),
            Token::Text | Token::Symbol(_) => return None,
        };
        self.tokens.next();
        Some(name)
    }

    /// `table`, `schema.table`, or `.table`
    fn table(&mut self) -> Option<TableName> {
        if self.take_symbol('.') {
            return Some(TableName::new(self.default_schema, self.name()?));
        }
        let first = self.name()?;
        if self.take_symbol('.') {
            return Some(TableName::new(first, self.name()?));
        }
        Some(TableName::new(self.default_schema, first))
    }
}

#[cfg(test)]
mod tests;
