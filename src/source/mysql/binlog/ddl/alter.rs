//! ALTER TABLE: its clauses, and the columns that they name.

use super::{AlterKind, Extent, Parser, Statement, create::is_no_table, token::Token};
use crate::model::TableName;

impl Parser<'_> {
    /// ALTER [ONLINE] [IGNORE] TABLE [IF EXISTS] t …; ALTER DATABASE and the like are nothing to capture.
    pub(super) fn alter_statement(&mut self, statements: &mut Vec<Statement>) -> Extent {
        let mut clauses = Clauses::default();
        loop {
            if self.take("IGNORE") {
                // Rows that a new unique key does not allow are gone.
                clauses.kinds.push(AlterKind::Rebuilt);
            } else if !self.take("ONLINE") && !self.take("OFFLINE") {
                break;
            }
        }
        let kind = self.word();
        let of_no_table =
            matches!(kind.as_str(), "DATABASE" | "SCHEMA" | "INSTANCE" | "DEFINER" | "ALGORITHM" | "SQL" | "JSON");
        if of_no_table || is_no_table(&kind) {
            statements.push(Statement::Harmless);
            // An event's body has semicolons of its own.
            return Extent::Text;
        }
        let table = if kind == "TABLE" { self.altered_table() } else { None };
        let Some(table) = table else {
            let unknown = Statement::Unknown(format!("ALTER {kind}").trim_end().to_owned());
            statements.push(unknown);
            return Extent::Statement;
        };
        loop {
            self.clause(&mut clauses);
            // What is left of the clause, to the next comma that is not in parentheses.
            if !self.next_clause(&mut clauses) {
                break;
            }
        }
        if clauses.kinds.is_empty() {
            clauses.kinds.push(AlterKind::Other);
        }
        statements.push(Statement::AlterTable { table, kinds: clauses.kinds, columns: clauses.columns });
        Extent::Statement
    }

    /// The name, and MariaDB's WAIT n and NOWAIT before the first clause.
    fn altered_table(&mut self) -> Option<TableName> {
        self.if_exists();
        let table = self.table()?;
        if self.take("WAIT") {
            self.tokens.next();
        }
        self.take("NOWAIT");
        Some(table)
    }

    /// Skips to the next clause. PARTITION BY may follow table options without a comma.
    fn next_clause(&mut self, clauses: &mut Clauses) -> bool {
        let mut depth = 0usize;
        loop {
            match self.tokens.peek() {
                None => return false,
                Some(Token::Symbol(';')) if depth == 0 => return false,
                Some(Token::Symbol(',')) if depth == 0 => {
                    self.tokens.next();
                    return true;
                }
                Some(Token::Symbol('(')) => depth += 1,
                Some(Token::Symbol(')')) => depth = depth.saturating_sub(1),
                Some(word) if depth == 0 && word.is("PARTITION") => {
                    if self.tokens.peek_at(1).is_some_and(|next| next.is("BY")) {
                        clauses.kinds.push(AlterKind::PartitionOther);
                    }
                }
                // Table options may follow each other without a comma.
                Some(word) if depth == 0 && word.is("ENGINE") => {
                    self.tokens.next();
                    // A column may be called so.
                    let is_option = match self.tokens.peek() {
                        Some(Token::Symbol(symbol)) => *symbol == '=',
                        Some(Token::Word(_) | Token::Quoted(_) | Token::Text) => true,
                        None => false,
                    };
                    if is_option {
                        self.engine(clauses);
                    }
                    continue;
                }
                Some(Token::Word(_) | Token::Quoted(_) | Token::Text | Token::Symbol(_)) => {}
            }
            self.tokens.next();
        }
    }

    fn clause(&mut self, clauses: &mut Clauses) {
        let verb = match self.tokens.peek() {
            None | Some(Token::Symbol(';')) => return,
            Some(Token::Word(word)) => word.to_ascii_uppercase(),
            // MariaDB shows options of engines in quotes.
            Some(Token::Quoted(name))
                if !clauses.in_names && OPTIONS.iter().any(|option| name.eq_ignore_ascii_case(option)) =>
            {
                name.to_ascii_uppercase()
            }
            // DROP PARTITION p0, `p1`
            Some(Token::Quoted(_) | Token::Text | Token::Symbol(_)) => String::new(),
        };
        // PARTITION BY after nothing at all is left to the caller.
        if verb == "PARTITION" {
            return;
        }
        self.tokens.next();
        match verb.as_str() {
            "ADD" => self.add(clauses),
            "DROP" => self.drop_clause(clauses),
            "MODIFY" => {
                self.column_keyword();
                self.column(clauses);
                clauses.kinds.push(AlterKind::ChangeColumn);
            }
            "CHANGE" => {
                self.column_keyword();
                self.column(clauses);
                self.column(clauses);
                clauses.kinds.push(AlterKind::ChangeColumn);
            }
            "ALTER" => self.alter_clause(clauses),
            "RENAME" => self.rename_clause(clauses),
            "CONVERT" if self.take("TO") => clauses.kinds.push(AlterKind::ConvertCharset),
            "CONVERT" => self.other_table(clauses, AlterKind::PartitionConvert),
            "TRUNCATE" if self.take("PARTITION") => clauses.names(AlterKind::PartitionTruncate),
            "EXCHANGE" => self.other_table(clauses, AlterKind::PartitionExchange),
            "DISCARD" | "IMPORT" => clauses.names(AlterKind::Tablespace),
            "REPAIR" => clauses.names(AlterKind::Rebuilt),
            "COALESCE" | "REORGANIZE" | "REBUILD" | "OPTIMIZE" | "ANALYZE" | "CHECK" | "REMOVE" => {
                clauses.names(AlterKind::PartitionOther);
            }
            "ENGINE" => self.engine(clauses),
            "ORDER" => clauses.names(AlterKind::Other),
            option if OPTIONS.contains(&option) => clauses.kinds.push(AlterKind::Other),
            _ if clauses.in_names => {}
            word => clauses.kinds.push(AlterKind::Unknown(word.to_owned())),
        }
    }

    /// ENGINE [=] name. InnoDB takes every row over.
    fn engine(&mut self, clauses: &mut Clauses) {
        self.take_symbol('=');
        let innodb = self.name().is_some_and(|name| name.eq_ignore_ascii_case("innodb"));
        clauses.kinds.push(if innodb { AlterKind::Other } else { AlterKind::Rebuilt });
    }

    /// EXCHANGE PARTITION p WITH TABLE t, CONVERT PARTITION p TO TABLE t, CONVERT TABLE t TO PARTITION p
    fn other_table(&mut self, clauses: &mut Clauses, kind: impl Fn(TableName) -> AlterKind) {
        while !self.ends_here() {
            if self.take("TABLE") {
                let kind = self.table().map_or_else(|| AlterKind::Unknown("PARTITION".into()), kind);
                return clauses.names(kind);
            }
            self.tokens.next();
        }
        clauses.kinds.push(AlterKind::Unknown("PARTITION".into()));
    }

    /// [COLUMN] [IF [NOT] EXISTS]
    fn column_keyword(&mut self) {
        self.take("COLUMN");
        self.if_exists();
    }

    fn column(&mut self, clauses: &mut Clauses) {
        let name = self.name();
        clauses.name(name);
    }

    fn add(&mut self, clauses: &mut Clauses) {
        let keyword = self.peek_keyword();
        match keyword.as_str() {
            "PRIMARY" => clauses.kinds.push(AlterKind::PrimaryKey),
            "CONSTRAINT" => {
                self.tokens.next();
                let symbol = !matches!(self.peek_keyword().as_str(), "PRIMARY" | "UNIQUE" | "FOREIGN" | "CHECK");
                if symbol {
                    self.if_exists();
                    self.tokens.next();
                }
                let primary = self.peek_keyword() == "PRIMARY";
                clauses.kinds.push(if primary { AlterKind::PrimaryKey } else { AlterKind::Index });
            }
            "INDEX" | "KEY" | "UNIQUE" | "FULLTEXT" | "SPATIAL" | "VECTOR" | "FOREIGN" | "CHECK"
                if self.index_follows() =>
            {
                clauses.kinds.push(AlterKind::Index);
            }
            "PERIOD" if self.follows("FOR") => clauses.kinds.push(AlterKind::Other),
            // Its rows are no longer what the log says of them: a DELETE is an update there.
            "SYSTEM" if self.follows("VERSIONING") => {
                clauses.kinds.push(AlterKind::Unknown("SYSTEM VERSIONING".into()));
            }
            "PARTITION" => {
                self.tokens.next();
                clauses.names(AlterKind::PartitionOther);
            }
            _ => self.add_columns(clauses),
        }
    }

    /// Whether this word comes after the next one, which is then a keyword and no name.
    fn follows(&mut self, word: &str) -> bool {
        self.tokens.peek_at(1).is_some_and(|next| next.is(word))
    }

    /// Whether the keyword is one, and no column of that name: a quoted name is never a keyword, and these words
    /// are reserved except VECTOR, which a type follows when it is a name.
    fn index_follows(&mut self) -> bool {
        if self.peek_keyword() != "VECTOR" {
            return true;
        }
        self.tokens.peek_at(1).is_some_and(|next| next.is("INDEX") || next.is("KEY") || *next == Token::Symbol('('))
    }

    fn add_columns(&mut self, clauses: &mut Clauses) {
        self.column_keyword();
        clauses.kinds.push(AlterKind::AddColumn);
        if !self.take_symbol('(') {
            self.column(clauses);
            return;
        }
        // ADD (a INT, b INT): a name after the parenthesis and after every comma at its level.
        let mut depth = 1usize;
        self.column(clauses);
        while depth > 0 {
            match self.tokens.next() {
                None => return,
                Some(Token::Symbol('(')) => depth += 1,
                Some(Token::Symbol(')')) => depth -= 1,
                Some(Token::Symbol(',')) if depth == 1 => self.column(clauses),
                Some(Token::Word(_) | Token::Quoted(_) | Token::Text | Token::Symbol(_)) => {}
            }
        }
    }

    fn drop_clause(&mut self, clauses: &mut Clauses) {
        match self.peek_keyword().as_str() {
            "PRIMARY" => clauses.kinds.push(AlterKind::PrimaryKey),
            "INDEX" | "KEY" | "FOREIGN" | "CONSTRAINT" | "CHECK" => clauses.kinds.push(AlterKind::Index),
            "PARTITION" => {
                self.tokens.next();
                clauses.names(AlterKind::PartitionDrop);
            }
            "PERIOD" if self.follows("FOR") => clauses.kinds.push(AlterKind::Other),
            // Its rows are no longer what the log says of them: a DELETE is an update there.
            "SYSTEM" if self.follows("VERSIONING") => {
                clauses.kinds.push(AlterKind::Unknown("SYSTEM VERSIONING".into()));
            }
            _ => {
                self.column_keyword();
                self.column(clauses);
                clauses.kinds.push(AlterKind::DropColumn);
            }
        }
    }

    /// ALTER [COLUMN] c SET DEFAULT …, ALTER INDEX i VISIBLE, ALTER CHECK c ENFORCED
    fn alter_clause(&mut self, clauses: &mut Clauses) {
        match self.peek_keyword().as_str() {
            "INDEX" | "KEY" | "CHECK" | "CONSTRAINT" => clauses.kinds.push(AlterKind::Index),
            _ => {
                self.column_keyword();
                self.column(clauses);
                clauses.kinds.push(AlterKind::ColumnAttribute);
            }
        }
    }

    /// RENAME COLUMN a TO b, RENAME INDEX a TO b, RENAME [TO|AS|=] t
    fn rename_clause(&mut self, clauses: &mut Clauses) {
        match self.peek_keyword().as_str() {
            "COLUMN" => {
                self.column_keyword();
                self.column(clauses);
                self.take("TO");
                self.column(clauses);
                clauses.kinds.push(AlterKind::RenameColumn);
            }
            "INDEX" | "KEY" => clauses.kinds.push(AlterKind::Index),
            _ => {
                if !self.take("TO") && !self.take("AS") {
                    self.take_symbol('=');
                }
                let kind = self.table().map_or_else(|| AlterKind::Unknown("RENAME".into()), AlterKind::Rename);
                clauses.kinds.push(kind);
            }
        }
    }

    /// The next token as an upper-case keyword, not taken; empty if it is none.
    fn peek_keyword(&mut self) -> String {
        match self.tokens.peek() {
            Some(Token::Word(word)) => word.to_ascii_uppercase(),
            Some(Token::Quoted(_) | Token::Text | Token::Symbol(_)) | None => String::new(),
        }
    }
}

/// Table options and the like that change no stored value, by their first word. The engines of MariaDB take options of
/// any name, which may well decide about rows.
const OPTIONS: [&str; 47] = [
    "ALGORITHM",
    "AUTOEXTEND_SIZE",
    "AUTO_INCREMENT",
    "AVG_ROW_LENGTH",
    "CHAR",
    "CHARACTER",
    "CHARSET",
    "CHECKSUM",
    "COLLATE",
    "COMMENT",
    "COMPRESSION",
    "DATA",
    "DEFAULT",
    "DELAY_KEY_WRITE",
    "DISABLE",
    "ENABLE",
    "ENCRYPTED",
    "ENCRYPTION",
    "ENCRYPTION_KEY_ID",
    "ENGINE_ATTRIBUTE",
    "FORCE",
    "IETF_QUOTES",
    "INDEX",
    "INSERT_METHOD",
    "KEY_BLOCK_SIZE",
    "LOCK",
    "MAX_ROWS",
    "MIN_ROWS",
    "PACK_KEYS",
    "PAGE_CHECKSUM",
    "PAGE_COMPRESSED",
    "PAGE_COMPRESSION_LEVEL",
    "PASSWORD",
    "ROW_FORMAT",
    "SECONDARY_ENGINE",
    "SECONDARY_ENGINE_ATTRIBUTE",
    "SECONDARY_LOAD",
    "SECONDARY_UNLOAD",
    "STATS_AUTO_RECALC",
    "STATS_PERSISTENT",
    "STATS_SAMPLE_PAGES",
    "STORAGE",
    "TABLESPACE",
    "TABLE_CHECKSUM",
    "TRANSACTIONAL",
    "WITH",
    "WITHOUT",
];

#[derive(Default)]
struct Clauses {
    kinds: Vec<AlterKind>,
    columns: Vec<String>,
    /// The last clause ends in a list of names, which commas may go on with.
    in_names: bool,
}

impl Clauses {
    fn name(&mut self, column: Option<String>) {
        self.columns.extend(column.filter(|column| !self.columns.contains(column)));
    }

    /// A clause that ends in a list of names.
    fn names(&mut self, kind: AlterKind) {
        self.kinds.push(kind);
        self.in_names = true;
    }
}
