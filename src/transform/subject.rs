//! A `SELECT` under check, and the places of what is wrong with it.

use std::sync::Arc;

use super::{
    Diagnostic, Location,
    file::{Statement, TransformFile},
    shape::QueryShape,
};
use crate::{database::postgres::Refusal, model::TargetTable};

/// The view that a `SELECT` becomes.
pub const VIEW: &str = "cutover_check";

/// What comes before the `SELECT` in the statement that makes the view.
pub const VIEW_PREFIX: &str = "CREATE TEMPORARY VIEW cutover_check AS ";

/// A `SELECT` under check.
pub struct Subject<'a> {
    /// None for the default mapping.
    pub file: Option<&'a TransformFile>,
    pub statement: &'a Statement,
    pub target: Arc<TargetTable>,
    /// Its place among the statements of its file, from 0.
    pub place: usize,
}

impl Subject<'_> {
    /// Whether other `SELECT`s fill columns of the same rows.
    pub fn shares(&self) -> bool {
        self.file.is_some_and(|file| file.statements.len() > 1)
    }

    /// The place of a character of the statement, from 0.
    fn location_at(&self, offset: usize) -> Option<Location> {
        let file = self.file?;
        let before: String = self.statement.sql.chars().take(offset).collect();
        let lines = before.matches('\n').count() as u32;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() as u32;
        let indent = if lines == 0 { self.statement.column } else { 1 };
        Some(Location { file: file.path.clone(), line: self.statement.line + lines, column: column + indent })
    }

    pub fn problem(&self, diagnostic: Diagnostic, offset: usize) -> Diagnostic {
        match self.location_at(offset) {
            Some(location) => diagnostic.at(location),
            None => {
                let problem =
                    diagnostic.problem.at(format_args!("the column-by-column copy into {}", self.target.name));
                Diagnostic { problem, ..diagnostic }
            }
        }
    }

    /// The server's own words; `prefix` characters come before the statement in what it was sent.
    pub fn refused(&self, refusal: &Refusal, prefix: usize) -> Diagnostic {
        let offset = refusal.position.map_or(0, |position| (position as usize).saturating_sub(prefix + 1));
        let problem = Diagnostic::error(format!("{} (SQLSTATE {})", refusal.message, refusal.sqlstate));
        let problem = match &refusal.hint {
            Some(hint) => problem.hint(hint.clone()),
            None => problem,
        };
        self.problem(problem, offset)
    }

    /// Where a result column is written, in characters of the statement.
    pub fn location(&self, shape: &QueryShape, column: usize) -> usize {
        let byte = shape.location_of(column).and_then(|byte| byte.checked_sub(VIEW_PREFIX.len()));
        byte.and_then(|byte| self.statement.sql.get(..byte)).map_or(0, |before| before.chars().count())
    }
}
