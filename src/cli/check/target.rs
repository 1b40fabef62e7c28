//! The target: connection, privileges, tables, triggers; and the transforms, which only the target can judge.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use tokio_postgres::Client;

use super::{Part, Report, Weight};
use crate::{
    config::Config,
    control::copy_order,
    database::postgres::{self, PgError, Session, catalog, privileges, sql},
    model::{Plan, Problem, TableName, TableSchema},
    state::format::{self, FORMAT},
    target::{TargetKind, mysql::Survey},
    transform::{self, Severity},
};

/// What is known of the target.
#[derive(Debug)]
pub(super) struct ExaminedTarget {
    plans: Vec<Plan>,
    /// Foreign keys that act by themselves: child, parent, event, action.
    rules: Vec<(TableName, TableName, String, String)>,
    /// Whether foreign keys and ordinary triggers rest while cutover writes.
    replica: bool,
}

impl ExaminedTarget {
    /// The transforms of a source table.
    pub(super) fn plans_of(&self, source: &TableName) -> impl Iterator<Item = &Plan> {
        self.plans.iter().filter(move |plan| plan.source.table == *source)
    }

    /// Whether the delete of a parent changes its children here, by itself.
    pub(super) fn acts_on_delete(&self, child: &TableName, parent: &TableName) -> bool {
        let target_of = |source: &TableName| {
            self.plans.iter().find(|plan| plan.source.table == *source).map(|plan| &plan.target.name)
        };
        let (Some(child), Some(parent)) = (target_of(child), target_of(parent)) else { return false };
        let same = |(own_child, own_parent, event, _): &(TableName, TableName, String, String)| {
            own_child == child && own_parent == parent && event == "DELETE"
        };
        !self.replica && self.rules.iter().any(same)
    }

    /// Source tables whose rows before a change a transform needs whole, to tell which rows it had made of them.
    pub(super) fn full_row_images(&self) -> impl Iterator<Item = &TableName> {
        self.plans.iter().filter(|plan| plan.needs_full_row_images()).map(|plan| &plan.source.table)
    }
}

/// Examines the target; none if there is too little to go on with. Source tables that are `refused` for themselves
/// count for nothing here.
pub(super) async fn examine(
    config: &Config,
    sources: Option<&[TableSchema]>,
    refused: &BTreeSet<TableName>,
    report: &mut Report,
) -> Option<ExaminedTarget> {
    judge_after_copy(config, report);
    let files = match transform::load(&config.path(&config.transform.folder), &config.target.schema) {
        Ok(files) => Some(files),
        Err(problems) => {
            problems.iter().for_each(|problem| add(problem, report));
            None
        }
    };
    let blocked = |report: &mut Report, problem: Problem| report.blocked_by(Part::Target, problem);
    let state = config.state();
    let address = match postgres::Address::parse(state.url) {
        Ok(address) => address,
        Err(error) => {
            blocked(report, error.problem());
            return None;
        }
    };
    let options = postgres::Options {
        application_name: format!("cutover {} check", config.name),
        schemas: vec![state.schema.to_owned()],
        ca_file: state.ca_file,
        replica: true,
    };
    let key = match (config.target.kind(), &config.transform.engine) {
        (Some(TargetKind::Mysql), Some(_)) => "[transform] engine",
        (Some(TargetKind::Mysql), None) => "[source] url",
        (Some(TargetKind::Postgres) | None, _) => "[target] url",
    };
    let session = match Session::open(&address, &options).await {
        Ok(session) => session,
        Err(PgError::Login(problem)) => {
            blocked(report, problem.or(format!("correct user, password or database in {key}")));
            return None;
        }
        Err(PgError::Unreachable(reason)) => {
            blocked(report, Problem::new(reason, format!("start the server, or correct host and port in {key}")));
            return None;
        }
        Err(error @ (PgError::Refused(_) | PgError::Protocol(_))) => {
            blocked(report, error.problem());
            return None;
        }
    };
    match examine_tables(config, (sources, refused), files, &session, report).await {
        Ok(target) => target,
        Err(error) => {
            blocked(report, error.problem());
            None
        }
    }
}

fn judge_after_copy(config: &Config, report: &mut Report) {
    let Some(file) = &config.target.after_copy else { return };
    let path = config.path(file);
    if let Err(error) = std::fs::read_to_string(&path) {
        report.blocks_on(
            Part::Target,
            format!("[target] after_copy names {}, which cannot be read: {error}", path.display()),
            "correct the path, which is relative to the configuration file, or take the key out",
        );
    }
}

async fn examine_tables(
    config: &Config,
    (sources, refused): (Option<&[TableSchema]>, &BTreeSet<TableName>),
    files: Option<Vec<transform::TransformFile>>,
    session: &Session,
    report: &mut Report,
) -> Result<Option<ExaminedTarget>, PgError> {
    let client = &session.client;
    judge_database(client, config.state().schema, report).await?;
    let survey = match config.target.kind() {
        Some(TargetKind::Mysql) => match Survey::of(&config.target.url, &config.target.schema).await {
            Ok(survey) => Some(survey),
            Err(error) => {
                let problem = error.problem().or("start the server, or correct host and port in [target] url");
                report.blocked_by(Part::Target, problem);
                return Ok(None);
            }
        },
        Some(TargetKind::Postgres) | None => None,
    };
    let (Some(sources), Some(files)) = (sources, files) else { return Ok(None) };
    let mut schemas: BTreeSet<String> = files.iter().map(|file| file.target.schema.clone()).collect();
    schemas.insert(config.target.schema.clone());
    let schemas: Vec<String> = schemas.into_iter().collect();
    let tables = match &survey {
        Some(survey) => survey.tables().to_vec(),
        None => catalog::tables(client, &schemas).await?,
    };
    let sources: Vec<_> = sources.iter().cloned().map(Arc::new).collect();
    let checked = transform::check(client, &sources, &files, &tables, &config.target.schema, refused).await?;
    checked.problems.iter().for_each(|problem| add(problem, report));
    if let Some(survey) = survey {
        judge_survey(&survey, &checked.plans, report);
        return Ok(Some(ExaminedTarget { plans: checked.plans, rules: Vec::new(), replica: true }));
    }
    let targets: BTreeSet<&TableName> = checked.plans.iter().map(|plan| &plan.target.name).collect();
    let mut missing: Vec<Problem> = Vec::new();
    for plan in &checked.plans {
        missing.extend(privileges::on_table(client, plan).await?);
    }
    // Several plans of one target miss the same.
    missing.dedup();
    missing.into_iter().for_each(|problem| report.blocked_by(Part::Target, problem));
    for table in &targets {
        judge_triggers(client, table, session.replica, report).await?;
    }
    if !session.replica {
        judge_foreign_keys(&checked.plans, report);
        judge_rings(client, &checked.plans, report).await?;
    }
    let rules = acting_rules(client).await?;
    Ok(Some(ExaminedTarget { plans: checked.plans, rules, replica: session.replica }))
}

/// What keeps the plans from a target that is MySQL or MariaDB, and what is worth knowing.
fn judge_survey(survey: &Survey, plans: &[Plan], report: &mut Report) {
    for problem in survey.problems(plans) {
        report.blocked_by(Part::Target, problem);
    }
    for Problem { what, fix } in survey.warnings(plans) {
        report.warns_of(Part::Target, what, fix);
    }
}

/// A problem of the transforms, as a finding.
pub(super) fn add(found: &transform::Diagnostic, report: &mut Report) {
    let problem = found.problem.clone().or("correct the SELECT");
    let problem = match &found.location {
        Some(location) => problem.at(format_args!("{}:{}:{}", shown(&location.file), location.line, location.column)),
        None => problem,
    };
    let weight = match found.severity {
        Severity::Error => Weight::Blocks,
        Severity::Warning => Weight::Warns,
    };
    report.add(weight, Part::Transforms, problem);
}

fn shown(file: &Path) -> String {
    file.display().to_string()
}

async fn judge_database(client: &Client, schema: &str, report: &mut Report) -> Result<(), PgError> {
    let row = client
        .query_one(
            "SELECT current_setting('server_encoding'), current_database()::text, to_regclass('cutover.format') IS NOT NULL",
            &[],
        )
        .await?;
    let (encoding, database): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    if encoding != "UTF8" {
        report.blocks_on(
            Part::Target,
            format!("the database `{database}` has the encoding {encoding}, which cannot hold every text"),
            "create the target database with ENCODING 'UTF8' TEMPLATE template0",
        );
    }
    let missing = privileges::on_database(client, schema).await?;
    if missing.is_empty()
        && row.try_get::<_, bool>(2)?
        && let Some(found) = format::format(client).await?
        && found > FORMAT
    {
        report.blocks_on(
            Part::Target,
            format!("the schema `cutover` has format {found}, and this program knows up to {}", FORMAT),
            "run the newer cutover that wrote it",
        );
    }
    for problem in missing {
        report.blocked_by(Part::Target, problem);
    }
    Ok(())
}

/// Triggers that fire while cutover writes: they run for every row that is copied, and see rows twice.
async fn judge_triggers(client: &Client, table: &TableName, replica: bool, report: &mut Report) -> Result<(), PgError> {
    let firing = if replica { "AR" } else { "OA" };
    let rows = client
        .query(
            "SELECT t.tgname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND NOT t.tgisinternal AND strpos($3, t.tgenabled::text) > 0 ORDER BY 1",
            &[&table.schema, &table.table, &firing],
        )
        .await?;
    for row in rows {
        let name: String = row.try_get(0)?;
        report.warns_of(
            Part::Target,
            format!("the trigger `{name}` on {table} fires for every row that cutover writes, repeated ones included"),
            format!(
                "if its work is done at the source already, ALTER TABLE \"{}\".\"{}\" DISABLE TRIGGER \"{name}\" until the switch",
                table.schema, table.table
            ),
        );
    }
    Ok(())
}

/// Without the replica role foreign keys are obeyed while rows arrive in any order (rule 26).
fn judge_foreign_keys(plans: &[Plan], report: &mut Report) {
    let with_keys: BTreeSet<String> = plans
        .iter()
        .filter(|plan| !plan.target.foreign_keys.is_empty())
        .map(|plan| plan.target.name.to_string())
        .collect();
    if with_keys.is_empty() {
        return;
    }
    let names: Vec<String> = with_keys.into_iter().collect();
    report.warns_of(
        Part::Target,
        format!(
            "{} have foreign keys, which cutover's user has to obey: a child that comes before its parent waits",
            names.join(", ")
        ),
        "make foreign keys after the copy ([target] after_copy), DEFERRABLE INITIALLY DEFERRED, or let the user rest them: \
         GRANT SET ON PARAMETER session_replication_role TO it (PostgreSQL 15)",
    );
}

const IMMEDIATE: &str = "
SELECT f.conname::text FROM pg_constraint f
WHERE f.contype = 'f' AND f.conparentid = 0 AND NOT f.condeferrable AND f.conrelid <> f.confrelid
  AND f.conrelid::regclass = ANY($1::text[]::regclass[]) AND f.confrelid::regclass = ANY($1::text[]::regclass[]) ORDER BY 1";

/// Rows that refer to each other can only come in together, and only if their keys are not asked for at once.
async fn judge_rings(client: &Client, plans: &[Plan], report: &mut Report) -> Result<(), PgError> {
    for ring in copy_order::rings(plans) {
        let tables: Vec<String> = ring.iter().map(|table| sql::table(table)).collect();
        let rows = client.query(IMMEDIATE, &[&tables]).await?;
        let names = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
        if names.is_empty() {
            continue;
        }
        let tables: Vec<String> = ring.iter().map(ToString::to_string).collect();
        report.blocks_on(
            Part::Target,
            format!(
                "the foreign keys of {} form a ring, and {} are asked for at each statement: rows that refer to each other \
                 would wait for each other for ever",
                tables.join(", "),
                names.join(", ")
            ),
            "ALTER TABLE … ALTER CONSTRAINT … DEFERRABLE INITIALLY DEFERRED for each; or make them after the copy \
             ([target] after_copy)",
        );
    }
    Ok(())
}

async fn acting_rules(client: &Client) -> Result<Vec<(TableName, TableName, String, String)>, PgError> {
    let rows = client
        .query(
            "SELECT cn.nspname::text, c.relname::text, pn.nspname::text, p.relname::text, r.event, \
               CASE r.code WHEN 'c' THEN 'CASCADE' ELSE 'SET NULL' END \
             FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace \
             JOIN pg_class p ON p.oid = f.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace \
             CROSS JOIN LATERAL (VALUES ('DELETE', f.confdeltype::text), ('UPDATE', f.confupdtype::text)) r(event, code) \
             WHERE f.contype = 'f' AND r.code IN ('c', 'n')",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let text = |index: usize| row.try_get::<_, String>(index);
            Ok((TableName::new(text(0)?, text(1)?), TableName::new(text(2)?, text(3)?), text(4)?, text(5)?))
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(PgError::from)
}
