//! What the `SELECT`s of one file are to their target: whole rows, columns of rows that they share, or sets.
//!
//! What enters are plans that are right each by itself; what leaves are the same plans with their roles, or every
//! reason why they do not go together. The invariant: of a merged row each column has one writer, and the first
//! `SELECT` alone can make a row that the target takes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Diagnostic, Location,
    file::{Statement, TransformFile},
};
use crate::{
    database::postgres::{
        catalog::{VERSION_COLUMN, VERSION_PREFIX},
        sql,
    },
    model::{Contributor, Coverage, Identity, OnDelete, Plan, PlanRole, Share},
};

/// Gives the plans of a file's statements, in their order, their roles.
pub(super) fn roles(file: &TransformFile, plans: Vec<Plan>) -> Result<Vec<Plan>, Vec<Diagnostic>> {
    match (file.statements.as_slice(), plans.as_slice()) {
        ([statement], [plan]) => {
            let role = alone(statement, plan).map_err(|problem| vec![problem.at(location(file, statement))])?;
            Ok(plans.into_iter().map(|plan| Plan { role: role.clone(), ..plan }).collect())
        }
        _ => merged(file, plans),
    }
}

fn location(file: &TransformFile, statement: &Statement) -> Location {
    Location { file: file.path.clone(), line: statement.line, column: statement.column }
}

fn alone(statement: &Statement, plan: &Plan) -> Result<PlanRole, Diagnostic> {
    match statement.directives.on_delete {
        Some(OnDelete::Clear | OnDelete::Keep) => {
            let message = "`on_delete = clear` and `keep` are for rows that several source tables share";
            return Err(Diagnostic::error(message).hint("remove the directive"));
        }
        Some(OnDelete::Delete) | None => {}
    }
    let Some(parent) = &statement.directives.parent_key else { return Ok(PlanRole::Whole) };
    if plan.key_reads.is_none() {
        let key: Vec<&str> = plan.source.key_columns().map(|column| column.name.as_str()).collect();
        let message = format!(
            "`parent_key = {}` must be the key of {}, column for column, as it is or cast once",
            parent.join(", "),
            plan.source.table
        );
        let hint =
            format!("select `{}` in the outermost SELECT and name the results in the directive", key.join("`, `"));
        return Err(Diagnostic::error(message).hint(hint));
    }
    Ok(PlanRole::Set { parent: parent.clone() })
}

/// The plans of several `SELECT`s: the first owns the rows, the others follow.
fn merged(file: &TransformFile, plans: Vec<Plan>) -> Result<Vec<Plan>, Vec<Diagnostic>> {
    let mut problems = Vec::new();
    let mut names = BTreeSet::from([VERSION_COLUMN.to_owned()]);
    let mut writers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut contributors = Vec::new();
    for (index, (statement, plan)) in file.statements.iter().zip(&plans).enumerate() {
        let owns = index == 0;
        let found = problems_of(statement, plan, owns).into_iter().map(|problem| problem.at(location(file, statement)));
        problems.extend(found);
        let mut columns = Vec::new();
        for column in plan.columns.iter().filter(|column| !plan.target.key.contains(&column.name)) {
            if let Some(line) = writers.insert(&column.name, statement.line) {
                let message = format!("`{}` is filled by the SELECT of line {line} already", column.name);
                let hint = "a column of a merged row has one writer: leave it out of one of the two";
                problems.push(Diagnostic::error(message).hint(hint).at(location(file, statement)));
            }
            columns.push(column.name.clone());
        }
        let default = if owns { OnDelete::Delete } else { OnDelete::Clear };
        contributors.push(Contributor {
            source: plan.source.table.clone(),
            owns,
            version: if owns { VERSION_COLUMN.to_owned() } else { version_column(plan, &mut names) },
            columns,
            on_delete: statement.directives.on_delete.unwrap_or(default),
        });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let share = |own: usize| {
        let mut others = contributors.clone();
        PlanRole::Share(Share { own: others.remove(own), others })
    };
    Ok(plans.into_iter().enumerate().map(|(own, plan)| Plan { role: share(own), ..plan }).collect())
}

/// What is wrong with one of several `SELECT`s.
fn problems_of(statement: &Statement, plan: &Plan, owns: bool) -> Vec<Diagnostic> {
    let mut problems = Vec::new();
    if statement.directives.parent_key.is_some() {
        let message = "`parent_key` makes a set of rows, and the SELECTs of this file share single rows";
        problems.push(Diagnostic::error(message).hint("fill a target table of its own with the set"));
    } else if plan.coverage == Coverage::Partial {
        let message = format!(
            "of several SELECTs each must make at most one row of a source row, under a key that follows from that of {}",
            plan.source.table
        );
        let hint = "select the key from the source table itself, without a join, a set-returning function or a subquery in FROM";
        problems.push(Diagnostic::error(message).hint(hint));
    }
    if owns && statement.directives.on_delete == Some(OnDelete::Clear) {
        let message = "the first SELECT owns the row: with `on_delete = clear` a row would stay that nothing owns";
        problems.push(Diagnostic::error(message).hint("say `delete`, which is the default, or `keep`"));
    }
    let own = plan.columns.iter().filter(|column| !owns && !plan.target.key.contains(&column.name));
    for column in own.filter_map(|column| plan.target.column(&column.name)) {
        if column.identity == Some(Identity::Always) {
            let message = format!("`{}` is GENERATED ALWAYS AS IDENTITY, which only an INSERT can fill", column.name);
            problems.push(Diagnostic::error(message).hint("fill it in the first SELECT, or leave it out"));
        }
        if column.not_null && !column.has_default {
            let message = format!(
                "`{}` is NOT NULL without a default, and the row may be there before or after this SELECT's source row",
                column.name
            );
            problems.push(Diagnostic::error(message).hint("give the column a DEFAULT, or fill it in the first SELECT"));
        }
    }
    problems
}

/// A name for a follower's version column; a source table may follow twice.
fn version_column(plan: &Plan, names: &mut BTreeSet<String>) -> String {
    let table = &plan.source.table.table;
    let mut name = sql::short(&format!("{VERSION_PREFIX}{table}"), table);
    let mut number = 1;
    while !names.insert(name.clone()) {
        number += 1;
        let next = format!("{table}_{number}");
        name = sql::short(&format!("{VERSION_PREFIX}{next}"), &next);
    }
    name
}
