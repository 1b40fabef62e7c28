//! Checks every transform against the real target, and makes the plans.
//!
//! Each source table gets a temporary stub with its columns, each `SELECT` becomes a temporary view over the
//! stubs, and everything is rolled back. The view's columns and its parse say the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::{
    Diagnostic, Location, Severity,
    file::{Statement, TransformFile},
    injective::is_one_to_one,
    keys::key_reads,
    merge,
    shape::QueryShape,
    subject::{Subject, VIEW, VIEW_PREFIX},
};
use crate::{
    database::postgres::{PgError, sql},
    model::{Coverage, Plan, PlanColumn, PlanRole, TTL_COLUMN, TableName, TableSchema, TargetTable},
};

/// The outcome: plans are only whole when no problem is an error.
#[derive(Debug, Default)]
pub struct CheckedTransforms {
    pub plans: Vec<Plan>,
    pub problems: Vec<Diagnostic>,
}

impl CheckedTransforms {
    /// Whether the plans can run.
    pub fn passed(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity == Severity::Warning)
    }
}

/// Functions of `pg_catalog` that are only stable, and whose result is not the row's or the
/// pinned settings' alone.
const REFUSED: [&str; 26] = [
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "current_setting",
    "txid_current_if_assigned",
    "pg_current_xact_id_if_assigned",
    "txid_current_snapshot",
    "pg_current_snapshot",
    "inet_client_addr",
    "inet_client_port",
    "inet_server_addr",
    "inet_server_port",
    "current_database",
    "current_schema",
    "current_schemas",
    "pg_backend_pid",
    "pg_postmaster_start_time",
    "pg_conf_load_time",
    "table_to_xml",
    "table_to_xmlschema",
    "table_to_xml_and_xmlschema",
    "schema_to_xml",
    "database_to_xml",
    "schema_to_xml_and_xmlschema",
    "database_to_xml_and_xmlschema",
    "pg_stat_get_snapshot_timestamp",
];

/// Checks these transforms, and for every source table that none of them reads a copy
/// column by column into the table of the same name in `default_schema`. Source tables that are `refused` for
/// themselves, which has been said, get no plan, and nothing is said of what reads them.
///
/// # Errors
/// Only when the server cannot be asked; what is wrong with a transform is a [`Diagnostic`].
pub async fn check(
    client: &Client,
    sources: &[Arc<TableSchema>],
    files: &[TransformFile],
    targets: &[TargetTable],
    default_schema: &str,
    refused: &BTreeSet<TableName>,
) -> Result<CheckedTransforms, PgError> {
    client
        .batch_execute(
            "BEGIN; SELECT pg_catalog.set_config('search_path',
               'pg_temp, ' || pg_catalog.current_setting('search_path'), true)",
        )
        .await?;
    let mut checker = Checker {
        client,
        sources,
        refused,
        targets: targets.iter().map(|table| (table.name.clone(), Arc::new(table.clone()))).collect(),
        stubs: BTreeMap::new(),
        checked: CheckedTransforms::default(),
    };
    let result = checker.run(files, default_schema).await;
    client.batch_execute("ROLLBACK").await?;
    result.map(|()| checker.checked)
}

pub(super) struct Checker<'a> {
    pub client: &'a Client,
    pub sources: &'a [Arc<TableSchema>],
    pub refused: &'a BTreeSet<TableName>,
    targets: BTreeMap<TableName, Arc<TargetTable>>,
    /// Source tables by their stub's oid.
    pub stubs: BTreeMap<u32, Arc<TableSchema>>,
    pub checked: CheckedTransforms,
}

impl<'a> Checker<'a> {
    async fn run(&mut self, files: &[TransformFile], default_schema: &str) -> Result<(), PgError> {
        self.create_stubs().await?;
        let before = self.checked.problems.len();
        let mut read: BTreeSet<TableName> = BTreeSet::new();
        let mut written: BTreeSet<TableName> = BTreeSet::new();
        for file in files {
            written.insert(file.target.clone());
            read.extend(self.file(file).await?);
        }
        // A file with an error may read any table: whether one that seems to be copied column by column is, and so what
        // is wrong with that, is then unknown.
        let certain = self.checked.problems.iter().skip(before).all(|problem| problem.severity == Severity::Warning);
        let stubs: Vec<Arc<TableSchema>> = self.stubs.values().cloned().collect();
        for source in stubs.iter().filter(|source| !self.refused.contains(&source.table)) {
            let target = TableName::new(default_schema, source.table.table.clone());
            if !read.contains(&source.table) && !written.contains(&target) {
                let before = self.checked.problems.len();
                self.copy(source, &target).await?;
                if !certain {
                    self.checked.problems.truncate(before);
                }
            }
        }
        Ok(())
    }

    /// Checks a file; the source tables that it reads.
    async fn file(&mut self, file: &TransformFile) -> Result<Vec<TableName>, PgError> {
        let Some(statement) = file.statements.first() else { return Ok(Vec::new()) };
        let start = |statement: &Statement| Location {
            file: file.path.clone(),
            line: statement.line,
            column: statement.column,
        };
        let Some(target) = self.targets.get(&file.target).cloned() else {
            let problem = Diagnostic::error(format!("the target has no table {}", file.target)).at(start(statement));
            self.checked.problems.push(problem.hint("create it, or name the file after the table that it fills"));
            return Ok(Vec::new());
        };
        let mut plans = Vec::new();
        for (place, statement) in file.statements.iter().enumerate() {
            let subject = Subject { file: Some(file), statement, target: target.clone(), place };
            plans.extend(self.subject(&subject).await?);
        }
        let read = plans.iter().map(|plan| plan.source.table.clone()).collect();
        if plans.len() < file.statements.len() {
            return Ok(read);
        }
        match merge::roles(file, plans) {
            Ok(plans) if plans.iter().any(|plan| plan.target.elsewhere && plan.role != PlanRole::Whole) => {
                self.checked.problems.push(not_whole().at(start(statement)));
            }
            Ok(plans) => {
                for (plan, statement) in plans.iter().zip(&file.statements) {
                    self.indexed(plan, start(statement)).await?;
                }
                self.checked.plans.extend(plans);
            }
            Err(problems) => self.checked.problems.extend(problems),
        }
        Ok(read)
    }

    async fn copy(&mut self, source: &Arc<TableSchema>, target: &TableName) -> Result<(), PgError> {
        let Some(table) = self.targets.get(target).cloned() else {
            let message =
                format!("source table {} has no transform, and the target has no table {target}", source.table);
            let hint = if sql::cut(&source.table.table) == source.table.table {
                "create the table, or write a transform that reads the source table"
            } else {
                "PostgreSQL cuts names after 63 bytes: create a table with a shorter name, and write a transform that reads \
                 the source table, FROM its whole name, in a file that is called as the new table"
            };
            self.checked.problems.push(Diagnostic::error(message).hint(hint));
            return Ok(());
        };
        // A column that the target computes takes no value.
        let computed = |name: &str| table.column(name).is_some_and(|column| column.generated);
        // A column that says how a row went is none of the row's.
        let absent = |name: &str| name == TTL_COLUMN && table.column(name).is_none();
        let names = source.columns.iter().map(|column| column.name.as_str());
        let names = names.filter(|name| !computed(name) && !absent(name));
        let select = format!("SELECT {} FROM {}", sql::list("", names), sql::ident(&source.table.table));
        let directives = super::file::Directives::default();
        let statement = Statement { sql: select, line: 1, column: 1, directives };
        let plan = self.subject(&Subject { file: None, statement: &statement, target: table, place: 0 }).await?;
        self.checked.plans.extend(plan);
        Ok(())
    }

    /// Checks one `SELECT`; its plan, unless a problem was found.
    async fn subject(&mut self, subject: &Subject<'_>) -> Result<Option<Plan>, PgError> {
        self.client.batch_execute("SAVEPOINT subject").await?;
        let before = self.checked.problems.len();
        let plan = self.view(subject).await;
        self.client.batch_execute("ROLLBACK TO subject").await?;
        match plan {
            Ok(plan) => {
                let mut added = self.checked.problems.iter().skip(before);
                Ok(plan.filter(|_| added.all(|problem| problem.severity == Severity::Warning)))
            }
            Err((error, prefix)) => match error.refusal() {
                Some(refusal) => {
                    self.checked.problems.push(subject.refused(refusal, prefix));
                    Ok(None)
                }
                None => Err(error),
            },
        }
    }

    async fn view(&mut self, subject: &Subject<'_>) -> Result<Option<Plan>, (PgError, usize)> {
        let plain = |error: tokio_postgres::Error| (PgError::from(error), 0);
        let text = &subject.statement.sql;
        // Alone first: what is no statement by itself must not become one inside of ours.
        self.client.prepare(text).await.map_err(plain)?;
        self.client
            .execute(&format!("{VIEW_PREFIX}{text}"), &[])
            .await
            .map_err(|error| (PgError::from(error), VIEW_PREFIX.chars().count()))?;
        let rule = self
            .client
            .query_one(
                "SELECT c.oid, r.ev_action::text FROM pg_catalog.pg_class c
                 JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid
                 WHERE c.oid = ('pg_temp.' || $1)::regclass",
                &[&VIEW],
            )
            .await
            .map_err(plain)?;
        let view: u32 = rule.try_get(0).map_err(plain)?;
        let action: String = rule.try_get(1).map_err(plain)?;
        let Some(shape) = QueryShape::parse(&action, view) else {
            let message = "PostgreSQL's parse of this SELECT cannot be followed".to_owned();
            self.checked.problems.push(subject.problem(Diagnostic::error(message).hint("write it more simply"), 0));
            return Ok(None);
        };
        let Some((stub, source)) = self.source(subject, &shape).await.map_err(plain)? else { return Ok(None) };
        if self.refused.contains(&source.table) {
            return Ok(None);
        }
        self.functions(subject, &shape).await.map_err(plain)?;
        let Some(results) = self.columns(subject, &shape, view).await.map_err(plain)? else { return Ok(None) };
        let coverage = self.key(subject, &shape, &source, &results.names);
        self.assignable(subject, &shape, &results).await?;
        let reads = self.reads(&shape, view, stub, &source).await.map_err(plain)?;
        let key_reads = key_reads(subject, &shape, &source, &results.names, &reads);
        let one_to_one = is_one_to_one(&shape, &source, &subject.target, &results.names, &results.types);
        if subject.target.elsewhere && !one_to_one {
            self.checked.problems.push(subject.problem(not_one_to_one(), 0));
        }
        let identity = identity(subject, &shape, &source, &results.names, coverage);
        let is_set = subject.statement.directives.parent_key.is_some();
        let source_of = |place: usize| {
            let column = if is_set { shape.column_beside(place)? } else { shape.column_of(place)? };
            source.columns.get(column).map(|column| column.name.clone())
        };
        let sources: Vec<Option<String>> = (0..results.names.len()).map(source_of).collect();
        let results = results.names.into_iter().zip(results.casts).zip(sources);
        let columns = results.map(|((name, cast), source)| PlanColumn { name, cast, source });
        let columns: Vec<PlanColumn> = columns.collect();
        Ok(Some(Plan {
            source,
            target: subject.target.clone(),
            file: subject.file.map(|file| file.path.clone()),
            select: text.clone(),
            reads,
            columns,
            coverage,
            role: PlanRole::Whole,
            key_reads,
            one_to_one,
            identity,
        }))
    }

    /// The one source table that is read; nothing else may be.
    async fn source(
        &mut self,
        subject: &Subject<'_>,
        shape: &QueryShape,
    ) -> Result<Option<(u32, Arc<TableSchema>)>, tokio_postgres::Error> {
        let relations = shape.relations();
        let (stubs, others): (Vec<u32>, Vec<u32>) = relations.iter().partition(|oid| self.stubs.contains_key(oid));
        if !others.is_empty() {
            let rows = self
                .client
                .query("SELECT c.oid::regclass::text FROM pg_catalog.pg_class c WHERE c.oid = ANY($1)", &[&others])
                .await?;
            let names = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
            let problem = Diagnostic::error(format!("reads {}, which is not the source row", names.join(", ")));
            let hint = "a transform sees one source row; name the source table alone, without a schema";
            self.checked.problems.push(subject.problem(problem.hint(hint), 0));
            return Ok(None);
        }
        match stubs.as_slice() {
            [oid] => Ok(self.stubs.get(oid).map(|source| (*oid, source.clone()))),
            [] => {
                let problem = Diagnostic::error("reads no source table").hint("say FROM and the source table's name");
                self.checked.problems.push(subject.problem(problem, 0));
                Ok(None)
            }
            _ => {
                let names: Vec<String> =
                    stubs.iter().filter_map(|oid| self.stubs.get(oid)).map(|source| source.table.to_string()).collect();
                let problem = Diagnostic::error(format!("reads several source tables: {}", names.join(", ")))
                    .hint("a transform sees one source row; join at the target instead, in a view");
                self.checked.problems.push(subject.problem(problem, 0));
                Ok(None)
            }
        }
    }

    /// Functions whose result is not the row's alone.
    async fn functions(&mut self, subject: &Subject<'_>, shape: &QueryShape) -> Result<(), tokio_postgres::Error> {
        if shape.reads_session() {
            let problem = Diagnostic::error("reads the clock or the session's user (CURRENT_DATE and its family)");
            let hint = "the same row must give the same result on every run; take the value from a column";
            self.checked.problems.push(subject.problem(problem.hint(hint), 0));
        }
        if shape.locks() {
            let problem = Diagnostic::error("locks rows").hint("remove FOR UPDATE or FOR SHARE");
            self.checked.problems.push(subject.problem(problem, 0));
        }
        let rows = self
            .client
            .query(
                "SELECT p.proname::text, p.provolatile = 'v', p.pronamespace = 'pg_catalog'::regnamespace,
                   p.provolatile = 's', p.oid::regprocedure::text, p.proname = 'age' AND p.pronargs = 1
                     AND p.proargtypes[0] <> 'xid'::regtype
                 FROM pg_catalog.pg_proc p WHERE p.oid = ANY($1) ORDER BY 5",
                &[&shape.functions()],
            )
            .await?;
        for row in rows {
            let (name, volatile, builtin): (String, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let (stable, signature, from_today): (bool, String, bool) =
                (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
            if volatile || (builtin && (REFUSED.contains(&name.as_str()) || from_today)) {
                let problem = Diagnostic::error(format!("{signature} does not depend on the row alone"));
                let hint = "the same row must give the same result on every run; take the value from a column, or \
                            leave it to a DEFAULT or a trigger of the target";
                self.checked.problems.push(subject.problem(problem.hint(hint), 0));
            } else if stable && !builtin {
                let problem = Diagnostic::warning(format!("{signature} is STABLE, so it may read tables"));
                let hint = "its result must depend on its arguments alone; declare it IMMUTABLE if it does";
                self.checked.problems.push(subject.problem(problem.hint(hint), 0));
            }
        }
        let parts = shape.many_row_parts();
        if !parts.is_empty() {
            let problem =
                Diagnostic::warning(format!("uses {}, which sees one source row at a time", parts.join(", ")));
            self.checked.problems.push(subject.problem(problem, 0));
        }
        Ok(())
    }

    /// The source columns that are read, in the source's order.
    async fn reads(
        &self,
        shape: &QueryShape,
        view: u32,
        stub: u32,
        source: &TableSchema,
    ) -> Result<Vec<String>, tokio_postgres::Error> {
        let rows = self
            .client
            .query(
                "SELECT DISTINCT d.refobjsubid FROM pg_catalog.pg_depend d
                 JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                 WHERE r.ev_class = $1 AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $2",
                &[&view, &stub],
            )
            .await?;
        let used = rows.iter().map(|row| row.try_get(0)).collect::<Result<BTreeSet<i32>, _>>()?;
        let all = shape.uses_whole_row();
        let columns = (1i32..).zip(&source.columns).filter(|(number, _)| all || used.contains(number));
        Ok(columns.map(|(_, column)| column.name.clone()).collect())
    }
}

fn not_one_to_one() -> Diagnostic {
    Diagnostic::error("two source rows may have one key at the target, which is MySQL or MariaDB")
        .hint("take the key from the source's key, cast at most")
}

fn not_whole() -> Diagnostic {
    Diagnostic::error("a target that is MySQL or MariaDB takes each of its rows from one source row").hint(
        "fill it from one source table, without parent_key; a set or a merged row needs a target that is PostgreSQL",
    )
}

/// See [`Plan::identity`].
fn identity(
    subject: &Subject<'_>,
    shape: &QueryShape,
    source: &TableSchema,
    names: &[String],
    coverage: Coverage,
) -> String {
    let rows = match coverage {
        Coverage::Total | Coverage::Filter => {
            let columns: Vec<&str> = source.columns.iter().map(|column| column.name.as_str()).collect();
            let key = |key: &String| names.iter().position(|name| name == key);
            shape.identity(&columns, &subject.target.key.iter().filter_map(key).collect::<Vec<_>>())
        }
        // Any part of it may decide which rows there are.
        Coverage::Partial => subject.statement.sql.clone(),
    };
    let digest = Sha256::digest(format!("{}\0{coverage:?}\0{rows}", subject.target.key.join("\0")));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
