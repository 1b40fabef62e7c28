//! CREATE: tables and what replaces them, and the kinds of things that hold no rows.

use super::{Extent, Parser, RowChange, Statement, token::Token};

/// What is made, altered and dropped by name and holds no row of a table.
pub(super) fn is_no_table(kind: &str) -> bool {
    matches!(
        kind,
        "USER"
            | "ROLE"
            | "PROCEDURE"
            | "FUNCTION"
            | "PACKAGE"
            | "LIBRARY"
            | "TRIGGER"
            | "EVENT"
            | "VIEW"
            | "SERVER"
            | "SEQUENCE"
            | "TABLESPACE"
            | "UNDO"
            | "LOGFILE"
            | "RESOURCE"
            | "SPATIAL"
            | "REFERENCE"
            | "PREPARE"
    )
}

impl Parser<'_> {
    pub(super) fn create(&mut self, statements: &mut Vec<Statement>) -> Extent {
        let replaces = self.take("OR") && self.take("REPLACE");
        loop {
            let kind = self.word();
            match kind.as_str() {
                "TEMPORARY" => {
                    statements.push(Statement::TemporaryTable);
                    return Extent::Statement;
                }
                "TABLE" => {
                    self.create_table(replaces, statements);
                    return Extent::Statement;
                }
                "INDEX" => {
                    let statement = self.index_statement();
                    statements.push(statement);
                    return Extent::Statement;
                }
                "DATABASE" | "SCHEMA" => {
                    self.if_exists();
                    let dropped = self.name().filter(|_| replaces).map(Statement::DropDatabase);
                    statements.push(dropped.unwrap_or(Statement::Harmless));
                    return Extent::Statement;
                }
                "SEQUENCE" => {
                    self.if_exists();
                    let dropped = self.table().filter(|_| replaces).map(|name| Statement::DropTable(vec![name]));
                    statements.push(dropped.unwrap_or(Statement::Harmless));
                    return Extent::Statement;
                }
                "UNIQUE" | "FULLTEXT" | "SPATIAL" | "VECTOR" | "ONLINE" | "OFFLINE" | "AGGREGATE" | "JSON"
                | "RELATIONAL" | "DUALITY" => {}
                // CREATE DEFINER = user@host PROCEDURE: the kind follows the account.
                "DEFINER" => self.skip_definer(),
                // CREATE ALGORITHM = MERGE SQL SECURITY INVOKER VIEW
                "ALGORITHM" | "SECURITY" => {
                    self.take_symbol('=');
                    self.tokens.next();
                }
                "SQL" => {}
                // A routine's body has semicolons of its own.
                kind if is_no_table(kind) => {
                    statements.push(Statement::Harmless);
                    return Extent::Text;
                }
                _ => {
                    let unknown = Statement::Unknown(format!("CREATE {kind}").trim_end().to_owned());
                    statements.push(unknown);
                    return Extent::Statement;
                }
            }
        }
    }

    fn create_table(&mut self, replaces: bool, statements: &mut Vec<Statement>) {
        self.if_exists();
        let Some(table) = self.table() else {
            let unknown = self.unknown("CREATE TABLE");
            return statements.push(unknown);
        };
        if replaces {
            statements.push(Statement::DropTable(vec![table.clone()]));
        }
        statements.push(Statement::CreateTable(table));
        // As a statement, CREATE TABLE … SELECT reads again, and calls what it calls again.
        while self.tokens.peek().is_some_and(|token| *token != Token::Symbol(';')) {
            if self.take("SELECT") && self.calls_something() {
                statements.push(Statement::RowChange(RowChange { verb: "CREATE TABLE SELECT".into(), names: None }));
            } else {
                self.tokens.next();
            }
        }
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
}
