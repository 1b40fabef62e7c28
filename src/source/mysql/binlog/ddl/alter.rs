//! ALTER TABLE: its clauses, and the columns that they name.

use super::{AlterKind, Parser, Statement, token::Token};

impl Parser<'_> {
    /// ALTER [ONLINE] [IGNORE] TABLE [IF EXISTS] t …; ALTER DATABASE and the like are nothing to capture.
    pub(super) fn alter_statement(&mut self) -> Statement {
        while self.take("ONLINE") || self.take("OFFLINE") || self.take("IGNORE") {}
        if !self.take("TABLE") {
            return Statement::Other;
        }
        self.if_exists();
        let Some(table) = self.table() else { return Statement::Other };
        let mut clauses = Clauses::default();
        // MariaDB's WAIT n and NOWAIT come before the first clause.
        if self.take("WAIT") {
            self.tokens.next();
        }
        self.take("NOWAIT");
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
        Statement::AlterTable { table, kinds: clauses.kinds, columns: clauses.columns }
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
                Some(Token::Word(_) | Token::Quoted(_) | Token::Text | Token::Symbol(_)) => {}
            }
            self.tokens.next();
        }
    }

    fn clause(&mut self, clauses: &mut Clauses) {
        // PARTITION BY after nothing at all is left to the caller.
        let Some(Token::Word(word)) = self.tokens.peek() else { return };
        let verb = word.to_ascii_uppercase();
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
            "CONVERT" => {
                let kind = if self.take("TO") { AlterKind::ConvertCharset } else { AlterKind::PartitionConvert };
                clauses.kinds.push(kind);
            }
            "TRUNCATE" if self.take("PARTITION") => clauses.kinds.push(AlterKind::PartitionTruncate),
            "EXCHANGE" => clauses.kinds.push(AlterKind::PartitionExchange),
            "DISCARD" | "IMPORT" => clauses.kinds.push(AlterKind::Tablespace),
            "COALESCE" | "REORGANIZE" | "REBUILD" | "OPTIMIZE" | "ANALYZE" | "CHECK" | "REPAIR" | "REMOVE" => {
                clauses.kinds.push(AlterKind::PartitionOther);
            }
            // DEFAULT CHARACTER SET is for columns to come; ENGINE, COMMENT, ORDER BY and so on for none.
            _ => clauses.kinds.push(AlterKind::Other),
        }
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
            "PERIOD" | "SYSTEM" => clauses.kinds.push(AlterKind::Other),
            "PARTITION" => {
                self.tokens.next();
                clauses.kinds.push(AlterKind::PartitionOther);
            }
            _ => self.add_columns(clauses),
        }
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
                clauses.kinds.push(AlterKind::PartitionDrop);
            }
            "PERIOD" | "SYSTEM" => clauses.kinds.push(AlterKind::Other),
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
                clauses.kinds.extend(self.table().map(AlterKind::Rename));
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

#[derive(Default)]
struct Clauses {
    kinds: Vec<AlterKind>,
    columns: Vec<String>,
}

impl Clauses {
    fn name(&mut self, column: Option<String>) {
        self.columns.extend(column.filter(|column| !self.columns.contains(column)));
    }
}
