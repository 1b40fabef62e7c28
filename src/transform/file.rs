//! Reading a transform's file: statements split at their semicolons, and the directives above them.
//!
//! Only as much SQL is understood as it takes to find a semicolon that is not inside a literal, a quoted name, a
//! dollar quote or a comment. What a statement means is PostgreSQL's to say.

use std::path::{Path, PathBuf};

use super::{Diagnostic, Location};
use crate::model::{OnDelete, TableName};

/// A transform's file, split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransformFile {
    pub path: PathBuf,
    /// The target table, from the file's name.
    pub target: TableName,
    pub statements: Vec<Statement>,
}

/// One statement of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Without comments above it and without the semicolon; comments inside stay.
    pub sql: String,
    /// Where `sql` begins, from 1.
    pub line: u32,
    pub column: u32,
    pub directives: Directives,
}

/// What comments of the form `-- cutover: name = value` say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directives {
    /// The target column that names the source row that a set belongs to.
    pub parent_key: Option<Vec<String>>,
    pub on_delete: Option<OnDelete>,
}

impl TransformFile {
    /// Splits a file's text. `path` names the target table: `orders.sql`, or `sales.orders.sql` for a table
    /// outside the default schema.
    pub fn parse(path: &Path, text: &str, default_schema: &str) -> Result<Self, Diagnostic> {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let target = match stem.split_once('.') {
            Some((schema, table)) => TableName::new(schema, table),
            None => TableName::new(default_schema, stem),
        };
        let statements =
            split(text).map_err(|(message, at)| Diagnostic::error(message).at(location(path, text, at)))?;
        let statements =
            statements.into_iter().map(|span| statement(path, text, &span)).collect::<Result<Vec<_>, Diagnostic>>()?;
        if statements.is_empty() {
            let problem = Diagnostic::error("the file holds no SELECT".to_owned());
            return Err(problem
                .at(location(path, text, 0))
                .hint("write one, or remove the file to copy column by column"));
        }
        Ok(TransformFile { path: path.to_owned(), target, statements })
    }
}

/// The location of a byte of a file's text.
pub fn location(path: &Path, text: &str, byte: usize) -> Location {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Location { file: path.to_owned(), line: line as u32, column: column as u32 }
}

/// A statement's bytes in its file, and the comments above it.
struct Span {
    start: usize,
    end: usize,
    comments: Vec<(usize, usize)>,
}

fn statement(path: &Path, text: &str, span: &Span) -> Result<Statement, Diagnostic> {
    let mut directives = Directives::default();
    for (start, end) in &span.comments {
        let comment = text.get(*start..*end).unwrap_or_default();
        let Some(rest) = comment.trim_start_matches('-').trim().strip_prefix("cutover:") else { continue };
        directive(&mut directives, rest).map_err(|message| {
            let hint = "the directives are `parent_key = column[, column]` and `on_delete = delete|clear|keep`";
            Diagnostic::error(message).at(location(path, text, *start)).hint(hint)
        })?;
    }
    let at = location(path, text, span.start);
    let sql = text.get(span.start..span.end).unwrap_or_default();
    let sql = sql.trim_end_matches(|last| u8::try_from(last).is_ok_and(is_blank)).to_owned();
    Ok(Statement { sql, line: at.line, column: at.column, directives })
}

fn directive(directives: &mut Directives, text: &str) -> Result<(), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let (name, value) = (name.trim(), value.trim());
    match name {
        "parent_key" if !value.is_empty() => {
            directives.parent_key = Some(value.split(',').map(|column| column.trim().to_owned()).collect());
        }
        "on_delete" => {
            directives.on_delete = Some(match value {
                "delete" => OnDelete::Delete,
                "clear" => OnDelete::Clear,
                "keep" => OnDelete::Keep,
                _ => return Err(format!("`on_delete = {value}` is none of delete, clear, keep")),
            });
        }
        "parent_key" => return Err("`parent_key` names no column".to_owned()),
        _ => return Err(format!("there is no directive `{name}`")),
    }
    Ok(())
}

/// Finds the statements. A comment before a statement's first token is above it.
fn split(text: &str) -> Result<Vec<Span>, (String, usize)> {
    let bytes = text.as_bytes();
    let mut spans = Vec::new();
    let mut comments = Vec::new();
    let mut start: Option<usize> = None;
    let mut at = 0;
    while at < bytes.len() {
        let end = token(bytes, at)?;
        let piece = bytes.get(at..end).unwrap_or_default();
        if piece.starts_with(b"--") && start.is_none() {
            comments.push((at, end));
        } else if piece == b";" {
            if let Some(start) = start.take() {
                spans.push(Span { start, end: at, comments: std::mem::take(&mut comments) });
            }
        } else if start.is_none() && !piece.starts_with(b"/*") && !piece.iter().all(|byte| is_blank(*byte)) {
            start = Some(at);
        } else if piece.starts_with(b"--") && text.get(at..end).is_some_and(|comment| comment.contains("cutover:")) {
            comments.push((at, end));
        }
        at = end;
    }
    if let Some(start) = start {
        spans.push(Span { start, end: bytes.len(), comments });
    }
    Ok(spans)
}

/// The end of the token at `at`: a comment, literal, quoted name, dollar quote, word, or single byte.
fn token(bytes: &[u8], at: usize) -> Result<usize, (String, usize)> {
    let rest = bytes.get(at..).unwrap_or_default();
    let unclosed = |what: &str| (format!("{what} is never closed"), at);
    match rest {
        [b'-', b'-', ..] => Ok(at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => comment(rest).map(|length| at + length).ok_or_else(|| unclosed("a comment")),
        [b'\'', ..] => quoted(rest, b'\'', false).map(|length| at + length).ok_or_else(|| unclosed("a literal")),
        [b'e' | b'E', b'\'', ..] => quoted(rest.get(1..).unwrap_or_default(), b'\'', true)
            .map(|length| at + 1 + length)
            .ok_or_else(|| unclosed("a literal")),
        [b'"', ..] => quoted(rest, b'"', false).map(|length| at + length).ok_or_else(|| unclosed("a quoted name")),
        [b'$', ..] => match tag(rest) {
            Some(tag) => {
                let body = rest.get(tag.len()..).unwrap_or_default();
                let close = body.windows(tag.len()).position(|window| window == tag);
                close.map(|close| at + close + 2 * tag.len()).ok_or_else(|| unclosed("a dollar quote"))
            }
            None => Ok(at + 1),
        },
        [first, ..] if word(*first) => {
            Ok(at + rest.iter().position(|byte| !word(*byte) && *byte != b'$').unwrap_or(rest.len()))
        }
        _ => Ok(at + 1),
    }
}

/// What is blank to PostgreSQL; a blank of Unicode is a character of a name to it.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b'\x0b'
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The length of a quoted piece, `None` if it never ends. A doubled quote is one quote.
fn quoted(bytes: &[u8], quote: u8, backslashes: bool) -> Option<usize> {
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'\\' if backslashes => at += 2,
            byte if *byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if *byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// Block comments nest in PostgreSQL.
fn comment(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0u32, 0);
    loop {
        match bytes.get(at..)? {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            [] => return None,
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// `$$` or `$name$` at the start of these bytes.
fn tag(bytes: &[u8]) -> Option<&[u8]> {
    let close = bytes.iter().skip(1).position(|byte| !word(*byte))? + 1;
    let named = bytes.get(1).is_some_and(|byte| !byte.is_ascii_digit());
    (bytes.get(close) == Some(&b'$') && (close == 1 || named)).then(|| bytes.get(..=close)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TransformFile, Diagnostic> {
        TransformFile::parse(Path::new("transforms/orders.sql"), text, "public")
    }

    fn statements(text: &str) -> Vec<String> {
        parse(text).expect("valid").statements.into_iter().map(|statement| statement.sql).collect()
    }

    #[test]
    fn only_semicolons_outside_of_quotes_and_comments_split() {
        let text = "SELECT ';', E'\\';', \";\", $$;$$, $a$;$$;$a$ /* ; /* ; */ ; */ -- ;\n FROM t;\nSELECT 2";
        let found = statements(text);
        assert_eq!(found.len(), 2);
        assert!(found[0].ends_with("FROM t"));
        assert_eq!(found[1], "SELECT 2");
    }

    #[test]
    fn a_dollar_inside_a_name_or_a_parameter_opens_no_quote() {
        assert_eq!(statements("SELECT a$b$ FROM t; SELECT $1; SELECT c").len(), 3);
    }

    #[test]
    fn a_blank_that_is_part_of_a_name_to_postgresql_stays() {
        assert_eq!(statements("SELECT a\u{a0};\x0b;SELECT b \x0b\n"), ["SELECT a\u{a0}", "SELECT b"]);
        assert_eq!(statements("\u{3000};"), ["\u{3000}"]);
    }

    #[test]
    fn a_statement_knows_its_line_and_column_and_its_directives() {
        let file = parse("-- orders\n-- cutover: parent_key = order_id, shop\n\n  SELECT 1;\n").expect("valid");
        let statement = &file.statements[0];
        assert_eq!((statement.line, statement.column), (4, 3));
        assert_eq!(statement.directives.parent_key, Some(vec!["order_id".to_owned(), "shop".to_owned()]));
        assert_eq!(file.target, TableName::new("public", "orders"));
    }

    #[test]
    fn an_unknown_directive_and_an_open_quote_are_refused_with_their_place() {
        let problem = parse("SELECT 1;\n-- cutover: on_delte = keep\nSELECT 2").expect_err("unknown");
        assert_eq!(problem.location.as_ref().map(|location| location.line), Some(2));
        assert!(problem.problem.what.contains("on_delte"));
        let problem = parse("SELECT 1,\n 'abc").expect_err("open");
        assert_eq!(problem.location.map(|location| (location.line, location.column)), Some((2, 2)));
        assert!(parse("-- nothing\n;").is_err());
    }

    #[test]
    fn a_file_may_name_the_schema() {
        let file = TransformFile::parse(Path::new("sales.orders.sql"), "SELECT 1", "public").expect("valid");
        assert_eq!(file.target, TableName::new("sales", "orders"));
    }
}
