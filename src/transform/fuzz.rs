//! What the fuzz target of transforms runs: any text splits into statements or is refused with its place, and any
//! text in place of PostgreSQL's query tree is a shape or none.

use std::path::Path;

use super::{
    file::{Directives, TransformFile},
    shape::QueryShape,
};
use crate::model::{OnDelete, fuzz::Input};

/// Bounds of what is tried.
const COLUMNS: usize = 4;
const STATEMENTS_MAX: usize = 8;
const PIECES_MAX: usize = 8;

/// The first byte says whether the rest is a file, what a file is made of, or a query tree.
pub fn transform(bytes: &[u8]) {
    let Some((first, Ok(text))) = bytes.split_first().map(|(first, rest)| (first, str::from_utf8(rest))) else {
        return;
    };
    match first & 3 {
        0 => file(text),
        2 => pieces(&mut Input::new(text.as_bytes())),
        _ => tree(text),
    }
}

/// Statements of literals, names and comments of any content end at the semicolons between them, and nowhere else.
fn pieces(input: &mut Input<'_>) {
    let mut statements: Vec<String> = Vec::new();
    while statements.len() < STATEMENTS_MAX && !input.is_empty() {
        let mut sql = "SELECT".to_owned();
        for _ in 0..input.below(PIECES_MAX) {
            let (kind, content) = (input.below(7), input.text());
            sql.push_str(&match kind {
                0 => format!(" '{}'", content.replace('\'', "''")),
                1 => format!(" E'{}'", content.replace('\\', "\\\\").replace('\'', "\\'")),
                2 => format!(" \"{}\"", content.replace('"', "\"\"")),
                3 => format!(" $t${}$t$", content.replace('$', "$$ ").replace("$t$", "")),
                4 => format!(" /*{0}/*{0}*/;*/", content.replace(['*', '/'], ";")),
                5 => format!(" --{}\n", content.replace(['\n', ':'], ";")),
                _ => " a$b$ $1".to_owned(),
            });
        }
        sql.push_str(" x");
        statements.push(sql);
    }
    if statements.is_empty() {
        return;
    }
    let text = statements.join(" ;\n");
    let found = TransformFile::parse(Path::new("orders.sql"), &text, "public").map(|file| file.statements);
    let found: Vec<String> = found.unwrap_or_default().into_iter().map(|statement| statement.sql).collect();
    assert_eq!(found, statements, "a semicolon inside a piece splits nothing");
}

fn file(text: &str) {
    let path = Path::new("transforms/shop.orders.sql");
    let parsed = match TransformFile::parse(path, text, "public") {
        Ok(parsed) => parsed,
        Err(problem) => {
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            let line = problem.location.map(|location| location.line as usize);
            return assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "a mistake has a place in the file");
        }
    };
    let mut rest = 0;
    let mut again = String::new();
    for statement in &parsed.statements {
        let start = offset(text, statement.line, statement.column).filter(|start| *start >= rest);
        let piece = start.and_then(|start| text.get(start..));
        assert!(!statement.sql.is_empty() && piece.is_some_and(|piece| piece.starts_with(&statement.sql)));
        rest = start.unwrap_or_default() + statement.sql.len();
        again.push_str(&written(&statement.directives));
        again.push_str(&statement.sql);
        again.push_str("\n;\n");
    }
    let again = TransformFile::parse(path, &again, "public");
    let again = again.map(|file| file.statements).unwrap_or_default();
    let pieces = |statements: &[super::Statement]| -> Vec<_> {
        statements.iter().map(|statement| (statement.sql.clone(), statement.directives.clone())).collect()
    };
    assert_eq!(pieces(&again), pieces(&parsed.statements), "what was split splits the same way again");
}

/// The byte of a text that is at a line and column, both from 1.
fn offset(text: &str, line: u32, column: u32) -> Option<usize> {
    let start: usize = text.split_inclusive('\n').take(line as usize - 1).map(str::len).sum();
    let (at, _) = text.get(start..)?.char_indices().nth(column as usize - 1)?;
    Some(start + at)
}

/// Directives as comments.
fn written(directives: &Directives) -> String {
    let mut text = String::new();
    if let Some(columns) = &directives.parent_key {
        text.push_str(&format!("-- cutover: parent_key = {}\n", columns.join(",")));
    }
    if let Some(on_delete) = directives.on_delete {
        let word = match on_delete {
            OnDelete::Delete => "delete",
            OnDelete::Clear => "clear",
            OnDelete::Keep => "keep",
        };
        text.push_str(&format!("-- cutover: on_delete = {word}\n"));
    }
    text
}

fn tree(text: &str) {
    let Some(shape) = QueryShape::parse(text, 1) else { return };
    assert!(shape.functions().len() <= text.len() && shape.relations().len() <= text.len());
    assert!(!shape.exactly_one_row() || shape.at_most_one_row(), "exactly one is at most one");
    let _ = (shape.reads_session(), shape.locks(), shape.uses_whole_row());
    for column in 0..COLUMNS {
        let _ = shape.location_of(column);
        let (of, sources) = (shape.column_of(column), shape.sources_of(column));
        if let (Some(of), Some(sources)) = (of, sources) {
            assert!(sources.contains(&of), "a column that is copied is one that it is computed of");
        }
    }
}
