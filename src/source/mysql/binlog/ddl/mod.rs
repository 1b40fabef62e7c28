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
        // WITH … and (SELECT …) are queries or row changes; what they are shows at their verb.
        let verb = self.word();
        let statement = match verb.as_str() {
            "BEGIN" => Statement::Begin,
            "START" if self.take("TRANSACTION") => Statement::Begin,
            "COMMIT" => Statement::Commit,
            "ROLLBACK" => self.rollback(),
            "SAVEPOINT" | "RELEASE" => Statement::Savepoint,
            "XA" => self.xa(),
            "TRUNCATE" => {
                self.take("TABLE");
                self.table().map_or(Statement::Other, Statement::Truncate)
            }
            "DROP" => self.drop_statement(),
            "RENAME" if self.take("TABLE") || self.take("TABLES") => self.rename(),
            "ALTER" => self.alter_statement(),
            "CREATE" => return self.create(statements),
            "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" | "IMPORT" | "CALL" => Statement::Dml,
            "WITH" if self.mentions_row_change() => Statement::Dml,
            _ => Statement::Other,
        };
        statements.push(statement);
        Extent::Statement
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
            _ => Statement::Other,
        }
    }

    fn drop_statement(&mut self) -> Statement {
        if self.take("TEMPORARY") {
            return Statement::Other;
        }
        match self.word().as_str() {
            "TABLE" | "TABLES" | "VIEW" => {
                self.if_exists();
                let mut tables: Vec<TableName> = self.table().into_iter().collect();
                while self.take_symbol(',') {
                    tables.extend(self.table());
                }
                Statement::DropTable(tables)
            }
            "DATABASE" | "SCHEMA" => {
                self.if_exists();
                self.name().map_or(Statement::Other, Statement::DropDatabase)
            }
            "INDEX" => self.index_statement(),
            _ => Statement::Other,
        }
    }

    /// [ONLINE|UNIQUE …] INDEX name … ON table, after CREATE or DROP: an ALTER TABLE in other words.
    fn index_statement(&mut self) -> Statement {
        while let Some(token) = self.tokens.next() {
            if token.is("ON") {
                let kinds = vec![AlterKind::Index];
                return match self.table() {
                    Some(table) => Statement::AlterTable { table, kinds, columns: Vec::new() },
                    None => Statement::Other,
                };
            }
        }
        Statement::Other
    }

    /// RENAME TABLE a TO b, …; MariaDB allows IF EXISTS and WAIT n.
    fn rename(&mut self) -> Statement {
        self.if_exists();
        let mut pairs = Vec::new();
        loop {
            let old = self.table();
            while !self.take("TO") {
                if self.tokens.next().is_none_or(|token| token == Token::Symbol(';')) {
                    return Statement::RenameTable(pairs);
                }
            }
            pairs.extend(old.zip(self.table()));
            if !self.take_symbol(',') {
                return Statement::RenameTable(pairs);
            }
        }
    }

    fn create(&mut self, statements: &mut Vec<Statement>) -> Extent {
        let replaces = self.take("OR") && self.take("REPLACE");
        loop {
            match self.word().as_str() {
                // Row changes of a temporary table are not in the binlog.
                "TEMPORARY" => break,
                "TABLE" => {
                    self.if_exists();
                    let Some(table) = self.table() else { break };
                    if replaces {
                        statements.push(Statement::DropTable(vec![table.clone()]));
                    }
                    statements.push(Statement::CreateTable(table));
                    return Extent::Statement;
                }
                "INDEX" => {
                    let statement = self.index_statement();
                    statements.push(statement);
                    return Extent::Statement;
                }
                "PROCEDURE" | "FUNCTION" | "TRIGGER" | "EVENT" | "PACKAGE" => {
                    statements.push(Statement::Other);
                    return Extent::Text;
                }
                "UNIQUE" | "FULLTEXT" | "SPATIAL" | "VECTOR" | "ONLINE" | "OFFLINE" | "AGGREGATE" => {}
                // CREATE DEFINER = user@host PROCEDURE: the kind follows the account.
                "DEFINER" => self.skip_definer(),
                _ => break,
            }
        }
        statements.push(Statement::Other);
        Extent::Statement
    }

    /// = user@host, where either part may be quoted, or CURRENT_USER().
    fn skip_definer(&mut self) {
        self.take_symbol('=');
        self.tokens.next();
        if self.take_symbol('@') {
            self.tokens.next();
        }
        if self.take_symbol('(') {
            self.take_symbol(')');
        }
        self.take_symbol('*');
    }

    fn mentions_row_change(&mut self) -> bool {
        let is_row_change = |token: &Token| token.is("INSERT") || token.is("UPDATE") || token.is("DELETE");
        while let Some(token) = self.tokens.next() {
            if is_row_change(&token) {
                return true;
            }
        }
        false
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
