//! What the target's user must be allowed to do.
//!
//! What enters: a session as that user. What leaves: what is missing, each with the statement that gives it. Both
//! `check` and a worker that starts ask, so that a grant that is missing is told before the first row.

use tokio_postgres::Client;

use super::{
    PgError,
    catalog::{OWNER_COLUMN, VERSION_COLUMN},
    sql,
};
use crate::model::{Plan, PlanRole, Problem};

/// What is missing on the database and on the schema of the target tables.
pub async fn on_database(client: &Client, schema: &str) -> Result<Vec<Problem>, PgError> {
    let row = client
        .query_one(
            "SELECT current_database()::text, current_user::text, has_database_privilege(current_database(), 'TEMPORARY'), \
             CASE WHEN to_regnamespace('cutover') IS NULL THEN has_database_privilege(current_database(), 'CREATE') END, \
             CASE WHEN to_regnamespace('cutover') IS NOT NULL THEN has_schema_privilege('cutover', 'USAGE, CREATE') END, \
             to_regnamespace(quote_ident($1)) IS NOT NULL, \
             CASE WHEN to_regnamespace(quote_ident($1)) IS NOT NULL \
                  THEN has_schema_privilege(to_regnamespace(quote_ident($1)), 'USAGE') END",
            &[&schema],
        )
        .await?;
    let (database, user): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let (database, to) = (sql::ident(&database), sql::ident(&user));
    let mut problems = Vec::new();
    let mut add = |what: String, fix: String| problems.push(Problem { what, fix });
    for (held, privilege, purpose) in [
        (row.try_get::<_, bool>(2)?, "TEMPORARY", "to check transforms"),
        (row.try_get::<_, Option<bool>>(3)?.unwrap_or(true), "CREATE", "to keep its state in the schema `cutover`"),
    ] {
        if !held {
            add(
                format!("`{user}` has no {privilege} on the database {database}, which cutover needs {purpose}"),
                format!("GRANT {privilege} ON DATABASE {database} TO {to}"),
            );
        }
    }
    if row.try_get::<_, Option<bool>>(4)? == Some(false) {
        add(
            format!("the schema `cutover` of the target belongs to another user, and `{user}` may not write there"),
            format!(
                "run cutover as that user, or GRANT USAGE, CREATE ON SCHEMA cutover and ALL ON ALL TABLES and ALL SEQUENCES IN SCHEMA cutover TO {to}"
            ),
        );
    }
    if !row.try_get::<_, bool>(5)? {
        add(format!("the target has no schema `{schema}`"), "create it, or correct [target] schema".into());
    } else if row.try_get::<_, Option<bool>>(6)? == Some(false) {
        add(
            format!("`{user}` may not use the schema `{schema}`"),
            format!("GRANT USAGE ON SCHEMA {} TO {to}", sql::ident(schema)),
        );
    }
    Ok(problems)
}

/// What is missing on a plan's target table.
pub async fn on_table(client: &Client, plan: &Plan) -> Result<Vec<Problem>, PgError> {
    let (table, mut versions) = (&plan.target.name, vec![VERSION_COLUMN]);
    if let PlanRole::Share(share) = &plan.role {
        versions.push(&share.own.version);
    }
    if plan.is_owned() {
        versions.push(OWNER_COLUMN);
    }
    let row = client
        .query_opt(
            "SELECT ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p \
                    WHERE NOT has_table_privilege(c.oid, p)), \
             pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)::text, current_user::text, \
             (SELECT min(v) FROM unnest($3::text[]) v WHERE NOT EXISTS (SELECT FROM pg_attribute a \
                WHERE a.attrelid = c.oid AND a.attname = v AND NOT a.attisdropped)) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
            &[&table.schema, &table.table, &versions],
        )
        .await?;
    // That the table is not there is for the transforms' check to say.
    let Some(row) = row else { return Ok(Vec::new()) };
    let missing: Vec<String> = row.try_get(0)?;
    let (owns, owner, user): (bool, String, String) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let (name, to) = (sql::table(table), sql::ident(&user));
    let mut problems = Vec::new();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        problems.push(Problem {
            what: format!("`{user}` has no {missing} on {table}"),
            fix: format!("GRANT {missing} ON {name} TO {to}"),
        });
    }
    if let (false, Some(version)) = (owns, row.try_get::<_, Option<String>>(4)?) {
        problems.push(Problem {
            what: format!("{table} has no column {version} yet, and only its owner `{owner}` may add one"),
            fix: format!(
                "as `{owner}`: ALTER TABLE {name} ADD {} bigint NOT NULL DEFAULT 0; or GRANT {} TO {to}",
                if version == VERSION_COLUMN || version == OWNER_COLUMN { version } else { sql::ident(&version) },
                sql::ident(&owner)
            ),
        });
    }
    Ok(problems)
}
