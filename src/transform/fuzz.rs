//! What the fuzz target of transforms runs: any text splits into statements or is refused with its place, and any
//! text in place of PostgreSQL's query tree is a shape or none.

use std::path::Path;

use super::{
    file::{Directives, OnDelete, TransformFile, place},
    shape::Shape,
};

const COLUMNS: usize = 4;

/// The first byte says whether the rest is a file or a query tree.
pub fn transform(bytes: &[u8]) {
    let Some((first, Ok(text))) = bytes.split_first().map(|(first, rest)| (first, str::from_utf8(rest))) else {
        return;
    };
    if first & 1 == 0 { file(text) } else { tree(text) }
}

fn file(text: &str) {
    let path = Path::new("transforms/shop.orders.sql");
    let parsed = match TransformFile::parse(path, text, "public") {
        Ok(parsed) => parsed,
        Err(problem) => {
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            let line = problem.place.map(|place| place.line as usize);
            return assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "a mistake has a place in the file");
        }
    };
    let mut rest = 0;
    let mut again = String::new();
    for statement in &parsed.statements {
        let found = text.get(rest..).and_then(|rest| rest.find(&statement.sql));
        assert!(found.is_some() && !statement.sql.is_empty(), "a statement is a piece of the file");
        // The same text may stand before it, in a comment.
        let starts = text.get(rest..).into_iter().flat_map(|tail| tail.match_indices(&statement.sql));
        let start = starts.map(|(at, _)| rest + at).find(|at| {
            let place = place(path, text, *at);
            (place.line, place.column) == (statement.line, statement.column)
        });
        assert!(start.is_some(), "a statement is where it says");
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
    let Some(shape) = Shape::parse(text, 1) else { return };
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
