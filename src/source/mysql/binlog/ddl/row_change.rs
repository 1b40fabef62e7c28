//! Row changes as statements: which tables they write to, where the text tells.
//!
//! Only the forms that tools and managed servers write are taken apart: one table that is written to, and relations
//! that are read by FROM and JOIN. Everything else (several tables, routines, loops) names nothing, and nobody may
//! take it for harmless.

use super::{Names, Parser, RowChange, Statement, token::Token};
use crate::model::TableName;

impl Parser<'_> {
    /// After the verb.
    pub(super) fn row_change(&mut self, verb: String) -> Statement {
        let names = match verb.as_str() {
            "INSERT" | "REPLACE" => self.inserted(),
            "UPDATE" => self.updated(),
            "DELETE" => self.deleted(),
            "SELECT" => self.called(),
            _ => None,
        };
        Statement::RowChange(RowChange { verb, names })
    }

    /// INSERT [IGNORE] [INTO] t …
    fn inserted(&mut self) -> Option<Names> {
        while ["LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE"].iter().any(|word| self.take(word)) {}
        self.take("INTO");
        let written = self.table()?;
        self.named(written)
    }

    /// UPDATE [IGNORE] t [[AS] alias] SET …
    fn updated(&mut self) -> Option<Names> {
        while ["LOW_PRIORITY", "IGNORE"].iter().any(|word| self.take(word)) {}
        let written = self.table()?;
        if !self.take("SET") {
            self.take("AS");
            self.name()?;
            if !self.take("SET") {
                return None;
            }
        }
        self.named(written)
    }

    /// DELETE [QUICK] [IGNORE] FROM t [WHERE …]
    fn deleted(&mut self) -> Option<Names> {
        while ["LOW_PRIORITY", "QUICK", "IGNORE"].iter().any(|word| self.take(word)) {}
        if !self.take("FROM") {
            return None;
        }
        let written = self.table()?;
        let whole = self.ends_here() || ["WHERE", "ORDER", "LIMIT", "RETURNING"].iter().any(|word| self.take(word));
        if whole { self.named(written) } else { None }
    }

    /// SELECT `schema`.`routine`(…): of one of the server's own schemas it writes to no other.
    fn called(&mut self) -> Option<Names> {
        let routine = self.table()?;
        (self.take_symbol('(') && !self.calls_something())
            .then(|| Names { written: vec![routine], read: Vec::new() })
            .filter(|names| names.written.iter().all(|routine| is_the_servers(&routine.schema)))
    }

    /// The rest of a statement that writes to this table alone; none if it may call a routine.
    fn named(&mut self, written: TableName) -> Option<Names> {
        let mut names = Names { written: vec![written], read: Vec::new() };
        let mut before = Token::Symbol(' ');
        while !self.ends_here() {
            let token = self.tokens.next()?;
            if token.is("FROM") || token.is("JOIN") {
                if self.take_symbol('(') {
                    before = Token::Symbol('(');
                    continue;
                }
                if self.take("DUAL") {
                    before = Token::Symbol(' ');
                    continue;
                }
                names.read.push(self.table()?);
                self.take("AS");
                if !matches!(self.tokens.peek(), Some(Token::Symbol(_))) && !self.keyword_is_next() {
                    self.tokens.next();
                }
                // FROM a, b: which of them are names is not asked.
                if self.tokens.peek().is_some_and(|token| *token == Token::Symbol(',')) {
                    return None;
                }
                before = Token::Symbol(' ');
                continue;
            }
            if token == Token::Symbol('(') && may_call(&before) {
                return None;
            }
            before = behind(&before, token);
        }
        Some(names)
    }

    fn keyword_is_next(&mut self) -> bool {
        let after_a_table =
            ["WHERE", "JOIN", "ON", "USING", "FORCE", "USE", "IGNORE", "GROUP", "ORDER", "LIMIT", "UNION"];
        let more = ["INNER", "LEFT", "RIGHT", "CROSS", "NATURAL", "STRAIGHT_JOIN", "FOR", "LOCK", "HAVING"];
        let Some(token) = self.tokens.peek() else { return true };
        after_a_table.iter().chain(&more).any(|word| token.is(word))
    }

    /// Whether the rest of the statement may call a routine; it is read to its end.
    pub(super) fn calls_something(&mut self) -> bool {
        let mut before = Token::Symbol(' ');
        let mut calls = false;
        while !self.ends_here() {
            let Some(token) = self.tokens.next() else { break };
            calls |= token == Token::Symbol('(') && may_call(&before);
            before = behind(&before, token);
        }
        calls
    }
}

/// Whether this is a schema that every server brings along, and that only the server and its service write to.
pub fn is_the_servers(schema: &str) -> bool {
    ["mysql", "sys", "information_schema", "performance_schema"].contains(&schema)
}

/// A token for the next one to look back at. Behind a dot there is a name, whatever it is called.
fn behind<'a>(before: &Token<'a>, token: Token<'a>) -> Token<'a> {
    match token {
        Token::Word(word) if *before == Token::Symbol('.') => Token::Quoted(word.to_owned()),
        other => other,
    }
}

/// Whether what stands before a parenthesis may be a routine. A routine that has the name of a function of the server
/// is called with its schema.
fn may_call(before: &Token<'_>) -> bool {
    match before {
        Token::Word(word) => !BUILT_IN.iter().any(|known| word.eq_ignore_ascii_case(known)),
        Token::Quoted(_) => true,
        Token::Text | Token::Symbol(_) => false,
    }
}

/// Words that a parenthesis may follow without a call of anything that writes.
const BUILT_IN: [&str; 136] = [
    "VALUES",
    "VALUE",
    "SET",
    "WHERE",
    "AND",
    "OR",
    "XOR",
    "NOT",
    "IN",
    "ON",
    "AS",
    "SELECT",
    "FROM",
    "BY",
    "KEY",
    "INDEX",
    "USING",
    "EXISTS",
    "ANY",
    "ALL",
    "SOME",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "BETWEEN",
    "LIKE",
    "DIV",
    "MOD",
    "INTERVAL",
    "LIMIT",
    "UPDATE",
    "PARTITION",
    "DISTINCT",
    "UNION",
    "HAVING",
    "IS",
    "OVER",
    "BINARY",
    "CHAR",
    "DECIMAL",
    "DATETIME",
    "TIME",
    "DATE",
    "TIMESTAMP",
    "UNSIGNED",
    "SIGNED",
    "IF",
    "IFNULL",
    "NULLIF",
    "COALESCE",
    "ISNULL",
    "GREATEST",
    "LEAST",
    "NOW",
    "SYSDATE",
    "CURDATE",
    "CURTIME",
    "CURRENT_TIMESTAMP",
    "CURRENT_DATE",
    "CURRENT_TIME",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "UTC_TIMESTAMP",
    "UTC_DATE",
    "UTC_TIME",
    "UNIX_TIMESTAMP",
    "FROM_UNIXTIME",
    "DATE_ADD",
    "DATE_SUB",
    "DATE_FORMAT",
    "DATEDIFF",
    "TIMESTAMPDIFF",
    "TIMESTAMPADD",
    "TIMEDIFF",
    "STR_TO_DATE",
    "TO_DAYS",
    "YEAR",
    "MONTH",
    "DAY",
    "HOUR",
    "MINUTE",
    "SECOND",
    "CONNECTION_ID",
    "USER",
    "CURRENT_USER",
    "SESSION_USER",
    "DATABASE",
    "VERSION",
    "UUID",
    "UUID_SHORT",
    "RAND",
    "LAST_INSERT_ID",
    "ROW_COUNT",
    "CAST",
    "CONVERT",
    "CONCAT",
    "CONCAT_WS",
    "GROUP_CONCAT",
    "LOWER",
    "UPPER",
    "LENGTH",
    "CHAR_LENGTH",
    "SUBSTRING",
    "SUBSTR",
    "LEFT",
    "RIGHT",
    "TRIM",
    "REPLACE",
    "HEX",
    "UNHEX",
    "CONV",
    "CRC32",
    "MD5",
    "SHA1",
    "SHA2",
    "COUNT",
    "SUM",
    "MIN",
    "MAX",
    "AVG",
    "BIT_XOR",
    // What a server makes of a routine's variable.
    "NAME_CONST",
    "LPAD",
    "RPAD",
    "DEFAULT",
    "MICROSECOND",
    "NVL",
    "JSON_OBJECT",
    "JSON_ARRAY",
    "JSON_EXTRACT",
    "JSON_SET",
    "ABS",
    "FLOOR",
    "CEIL",
    "ROUND",
];
