//! From SQL files to checked plans: what a source row becomes at the target.
//!
//! What enters is `transforms/<target>.sql` and the catalogs of both sides; what leaves is a [`Plan`] per
//! pair of source and target table, or every [`Diagnostic`] with its file, line and column. The invariant: a
//! plan's `SELECT` reads nothing but its source row and settings that every session pins, so that the same row
//! gives the same result on every run. Deliberately absent: a SQL parser. PostgreSQL parses, and we read
//! what it understood. Running a plan is the sink's work.

mod check;
mod file;
#[doc(hidden)]
pub mod fuzz;
mod injective;
mod keys;
mod merge;
mod results;
mod shape;
mod stubs;
mod subject;
mod tree;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use check::{CheckedTransforms, check};
pub use file::{Directives, Statement, TransformFile};

use crate::model::{Plan, PlanRole, Problem};

/// A location in a file, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub file: PathBuf,
    pub line: u32,
    pub column: u32,
}

/// Whether a problem keeps the pipeline from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

/// What is wrong with a transform, how bad that is, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub location: Option<Location>,
    pub problem: Problem,
}

impl Diagnostic {
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Error, location: None, problem: Problem::bare(message) }
    }

    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(message) }
    }

    pub(crate) fn at(self, location: Location) -> Self {
        Diagnostic { location: Some(location), ..self }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Diagnostic { problem: Problem::new(self.problem.what, hint), ..self }
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{}:{}:{}: ", location.file.display(), location.line, location.column)?;
        }
        write!(f, "{}", self.problem)
    }
}

/// Reads every `*.sql` of a folder, in name order. A folder that does not exist holds no transforms.
///
/// # Errors
/// Every file that cannot be read or split, not just the first.
pub fn load(folder: &Path, default_schema: &str) -> Result<Vec<TransformFile>, Vec<Diagnostic>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(vec![unreadable(folder, &error)]),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| vec![unreadable(folder, &error)])?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            paths.push(path);
        }
    }
    paths.sort();
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error));
        match text.and_then(|text| TransformFile::parse(&path, &text, default_schema)) {
            Ok(file) => files.push(file),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::error(format!("{} cannot be read: {error}", path.display())).hint("make it readable for cutover's user")
}

/// Identifies the transforms as they are written, before anything is known of the tables.
pub fn files_hash(files: &[TransformFile]) -> String {
    let statements = files.iter().flat_map(|file| file.statements.iter().map(move |statement| (file, statement)));
    let texts: Vec<String> = statements
        .map(|(file, statement)| format!("{}\0{:?}\0{}", file.target, statement.directives, statement.sql))
        .collect();
    let digest = Sha256::digest(texts.join("\0\0").as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Identifies what the transforms do: workers with different hashes must not write side by side
/// (rule 19).
pub fn transforms_hash(plans: &[Plan]) -> String {
    let text =
        |plan: &Plan| format!("{}\0{}\0{}{}", plan.source.table, plan.target.name, plan.select, role(&plan.role));
    let mut texts: Vec<String> = plans.iter().map(text).collect();
    texts.sort();
    let digest = Sha256::digest(texts.join("\0\0").as_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn role(role: &PlanRole) -> String {
    match role {
        PlanRole::Whole => String::new(),
        PlanRole::Share(share) => format!("\0{} {:?}", share.own.version, share.own.on_delete),
        PlanRole::Set { parent } => format!("\0set of {}", parent.join(", ")),
    }
}
