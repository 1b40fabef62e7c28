//! Whether a `SELECT`'s results fit the target's columns.

use super::{
    Diagnostic, Location,
    check::Checker,
    shape::QueryShape,
    subject::{Subject, VIEW},
};
use crate::{
    database::postgres::{PgError, sql},
    model::{Plan, PlanRole, TargetTable},
};

/// Text becomes an enum, an array, a `jsonb`, a name (`regtype`) or the like by an explicit cast; numbers, times,
/// booleans and bytes must be written as such in the transform, where the writer sees what is cast. (`unnest` of two
/// arrays is a piece of syntax that PostgreSQL knows by its unqualified name only.)
const RESULTS: &str = "
SELECT a.attname::text,
  coalesce(s.typcategory = 'S' AND t.oid <> 'bytea'::regtype AND (t.typcategory NOT IN ('S', 'N', 'D', 'T', 'B')
    OR t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ^@ 'reg'), false),
  pg_catalog.format_type(a.atttypid, a.atttypmod)
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type s ON s.oid = a.atttypid
LEFT JOIN unnest($2::text[], $3::text[]) c(name, type_sql) ON c.name = a.attname::text
LEFT JOIN pg_catalog.pg_type t ON t.oid = pg_catalog.to_regtype(c.type_sql)
WHERE a.attrelid = $1 AND a.attnum > 0 ORDER BY a.attnum";

/// What a target on another server has in place of truth values.
const INTEGERS: [&str; 4] = ["smallint", "integer", "bigint", "numeric"];

fn names(target: &TargetTable) -> Vec<String> {
    target.columns.iter().map(|column| column.name.clone()).collect()
}

fn casts(target: &TargetTable) -> Vec<String> {
    target.columns.iter().map(|column| column.cast_sql.clone()).collect()
}

/// What the server says of a view's columns beside the target's.
pub(super) struct Results {
    pub names: Vec<String>,
    pub casts: Vec<Option<String>>,
    /// The results' own types.
    pub types: Vec<String>,
}

const INDEXED: &str = "
SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1::text::regclass AND i.indpred IS NULL AND $2::text[] <@
  ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE k.place <= pg_catalog.cardinality($2)))";

impl Checker<'_> {
    /// Names and casts of the result columns.
    pub(super) async fn columns(
        &mut self,
        subject: &Subject<'_>,
        shape: &QueryShape,
        view: u32,
    ) -> Result<Option<Results>, tokio_postgres::Error> {
        let target = &subject.target;
        let rows = self.client.query(RESULTS, &[&view, &names(target), &casts(target)]).await?;
        let mut results = Results { names: Vec::new(), casts: Vec::new(), types: Vec::new() };
        let mut sound = true;
        for (index, row) in rows.iter().enumerate() {
            let name: String = row.try_get(0)?;
            let explicit: bool = row.try_get(1)?;
            let result: String = row.try_get(2)?;
            let problem = match target.column(&name) {
                None if name == "?column?" => {
                    Some(Diagnostic::error("a result column has no name").hint("add AS column"))
                }
                None => {
                    Some(Diagnostic::error(format!("the target table {} has no column `{name}`", target.name)).hint(
                        match subject.file {
                            Some(_) => format!("its columns are {}; name the result with AS", names(target).join(", ")),
                            None => format!(
                                "its columns are {}; add it there, or write a transform that fills those",
                                names(target).join(", ")
                            ),
                        },
                    ))
                }
                Some(column) if column.generated => {
                    Some(Diagnostic::error(format!("the target computes column `{name}` itself")).hint("leave it out"))
                }
                Some(column) => {
                    // Where there are no truth values, numbers stand for them.
                    let counts = target.elsewhere
                        && result == "boolean"
                        && INTEGERS.contains(&&*column.cast_sql)
                        && !target.key.contains(&name);
                    let cast = explicit.then(|| column.cast_sql.clone());
                    results.casts.push(cast.or_else(|| counts.then(|| "integer".into())));
                    results.names.push(name);
                    results.types.push(result);
                    None
                }
            };
            if let Some(problem) = problem {
                sound = false;
                self.checked.problems.push(subject.problem(problem, subject.location(shape, index)));
            }
        }
        for column in target.columns.iter().filter(|_| subject.place == 0) {
            let filled = column.has_default || column.identity.is_some() || column.generated || !column.not_null;
            // A key column that is missing has a message of its own.
            let filled = filled || target.key.contains(&column.name);
            if !filled && !rows.iter().any(|row| row.try_get::<_, &str>(0).is_ok_and(|name| name == column.name)) {
                sound = false;
                let first = if subject.shares() { " from the first SELECT, which makes the rows" } else { "" };
                let message = format!(
                    "the target's column `{}` is NOT NULL, has no default, and gets no value{first}",
                    column.name
                );
                let problem = Diagnostic::error(message).hint("add it to the SELECT, or give the column a DEFAULT");
                self.checked.problems.push(subject.problem(problem, 0));
            }
        }
        Ok(sound.then_some(results))
    }

    /// The server's own word on whether the results fit the columns.
    pub(super) async fn assignable(
        &mut self,
        subject: &Subject<'_>,
        shape: &QueryShape,
        results: &Results,
    ) -> Result<(), (PgError, usize)> {
        let target = match subject.target.elsewhere {
            true => self.stand_in(&subject.target).await.map_err(|error| (error, 0))?,
            false => sql::table(&subject.target.name),
        };
        for (index, (name, cast)) in results.names.iter().zip(&results.casts).enumerate() {
            let cast = cast.as_ref().map(|cast| format!("::{cast}")).unwrap_or_default();
            let column = sql::ident(name);
            let insert = format!(
                "INSERT INTO {target} ({column}) OVERRIDING SYSTEM VALUE SELECT v.{column}{cast} FROM pg_temp.{VIEW} v"
            );
            self.client.batch_execute("SAVEPOINT assignable").await.map_err(|error| (error.into(), 0))?;
            if let Err(error) = self.client.prepare(&insert).await.map_err(PgError::from) {
                let Some(refusal) = error.refusal() else { return Err((error, 0)) };
                let problem = Diagnostic::error(format!("{} (SQLSTATE {})", refusal.message, refusal.sqlstate));
                let problem = problem.hint(format!("cast the result, or change the target's column `{name}`"));
                self.checked.problems.push(subject.problem(problem, subject.location(shape, index)));
            }
            let back = "ROLLBACK TO assignable";
            self.client.batch_execute(back).await.map_err(|error| (error.into(), 0))?;
        }
        Ok(())
    }

    /// A table with the types that a target on another server has for a transform; it goes when the check of the
    /// transform is taken back.
    async fn stand_in(&self, target: &TargetTable) -> Result<String, PgError> {
        const NAME: &str = "pg_temp.cutover_target";
        let columns = target.columns.iter().map(|column| format!("{} {}", sql::ident(&column.name), column.type_sql));
        let columns: Vec<String> = columns.collect();
        self.client.batch_execute(&format!("CREATE TEMPORARY TABLE {NAME} ({})", columns.join(", "))).await?;
        Ok(NAME.to_owned())
    }

    /// The rows of a set are looked for by their parent's key.
    pub(super) async fn indexed(&mut self, plan: &Plan, location: Location) -> Result<(), PgError> {
        let PlanRole::Set { parent } = &plan.role else { return Ok(()) };
        let found = self.client.query_one(INDEXED, &[&sql::table(&plan.target.name), parent]).await?;
        if !found.try_get::<_, bool>(0)? {
            let columns = parent.join(", ");
            let message = format!("{} has no index that begins with `parent_key = {columns}`", plan.target.name);
            let problem = Diagnostic::warning(message).hint(format!(
                "CREATE INDEX ON {} ({columns}): every change of a set looks for its rows",
                plan.target.name
            ));
            self.checked.problems.push(problem.at(location));
        }
        Ok(())
    }
}
