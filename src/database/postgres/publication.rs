//! The publication: which tables' changes the server sends.
//!
//! It is made or completed where the user may do so; else the statement that its owner has to run is the answer. What
//! was made by somebody else is used as it is, if it sends everything that capture needs.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::{PgError, sql, tables::SourceTable};
use crate::model::Problem;

/// `publish_via_partition_root`: a partition's change is its root's, which is the table that is copied.
const OPTIONS: &str = "WITH (publish_via_partition_root = true)";

/// A publication, as the catalog shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    pub all_tables: bool,
    /// Inserts, updates, deletes and truncations are all sent.
    pub everything: bool,
    pub by_root: bool,
    /// The current user may change it.
    pub ours: bool,
    /// Tables with a row filter or a column list.
    pub partial: Vec<String>,
    /// Tables (of any schema) whose changes are sent, as `schema.table`.
    pub tables: BTreeSet<String>,
}

/// Why the publication is not as it has to be.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error("{0}")]
    Problem(Problem),
}

/// The publication of this name.
pub async fn load(client: &Client, name: &str) -> Result<Option<Publication>, PgError> {
    let sql = "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot, \
               pg_has_role(current_user, pubowner, 'USAGE') FROM pg_publication WHERE pubname = $1";
    let Some(row) = client.query_opt(sql, &[&name]).await? else { return Ok(None) };
    let sql = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = $1";
    let mut tables = BTreeSet::new();
    for row in client.query(sql, &[&name]).await? {
        tables.insert(row.try_get(0)?);
    }
    // Row filters and column lists came with PostgreSQL 15: of a release without them there is nothing to find in the
    // JSON.
    let sql = "SELECT r.prrelid::regclass::text FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
               WHERE p.pubname = $1 AND (to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL)";
    let mut partial = Vec::new();
    for row in client.query(sql, &[&name]).await? {
        partial.push(row.try_get(0)?);
    }
    Ok(Some(Publication {
        all_tables: row.try_get(0)?,
        everything: row.try_get(1)?,
        by_root: row.try_get(2)?,
        ours: row.try_get(3)?,
        partial,
        tables,
    }))
}

impl Publication {
    /// Which of these tables it does not send.
    pub fn missing<'a>(&self, tables: &'a [SourceTable]) -> Vec<&'a SourceTable> {
        tables.iter().filter(|table| !self.tables.contains(&table.schema.table.to_string())).collect()
    }

    /// What of it would lose changes.
    pub fn problem(&self, name: &str, tables: &[SourceTable]) -> Option<Problem> {
        let name = sql::ident(name);
        let problem = |what: &str, fix: String| Some(Problem { what: format!("the publication {name} {what}"), fix });
        if !self.everything {
            let fix = format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')");
            return problem("does not send all kinds of changes", fix);
        }
        if !self.by_root && tables.iter().any(|table| table.partitioned) {
            let fix = format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)");
            return problem("sends changes of partitions as their own", fix);
        }
        if !self.partial.is_empty() {
            let fix = format!(
                "ALTER PUBLICATION {name} DROP TABLE {}; the next start adds it whole, and copies it again",
                self.partial.join(", ")
            );
            return problem(&format!("leaves out rows or columns of {}", self.partial.join(", ")), fix);
        }
        None
    }
}

/// Sees to it that the changes of these tables are sent; whether something had to be done for that.
///
/// # Errors
/// When it cannot be done by this user, or the publication leaves out something of what is sent.
pub async fn ensure(client: &Client, name: &str, tables: &[SourceTable]) -> Result<bool, PublicationError> {
    let found = load(client, name).await?;
    if let Some(problem) = found.as_ref().and_then(|found| found.problem(name, tables)) {
        return Err(PublicationError::Problem(problem));
    }
    let missing = found.as_ref().map_or_else(|| tables.iter().collect(), |found| found.missing(tables));
    let Some(statement) = statement(name, found.is_some(), &missing) else { return Ok(false) };
    // What is made here is made here: a standby that is missing must not hold it back.
    client.batch_execute("SET synchronous_commit = local").await.map_err(PgError::from)?;
    match client.batch_execute(&statement).await.map_err(PgError::from) {
        Ok(()) => {
            tracing::info!(publication = name, tables = missing.len(), "the publication sends more tables");
            Ok(true)
        }
        Err(PgError::Refused(refusal)) if refusal.sqlstate == "42501" => {
            let fix = format!("as the owner of the tables, with CREATE on the database: {statement}");
            let what = format!("the source user may not publish the tables' changes ({})", refusal.message);
            Err(PublicationError::Problem(Problem { what, fix }))
        }
        Err(error) => Err(error.into()),
    }
}

/// What makes or completes the publication; none if nothing is missing.
pub fn statement(name: &str, exists: bool, missing: &[&SourceTable]) -> Option<String> {
    let name = sql::ident(name);
    (!missing.is_empty()).then(|| match exists {
        false => format!("CREATE PUBLICATION {name} FOR TABLE {} {OPTIONS}", listed(missing)),
        true => format!("ALTER PUBLICATION {name} ADD TABLE {}", listed(missing)),
    })
}

/// Only the tables themselves, not those that inherit from them; partitions belong to their root.
fn listed(tables: &[&SourceTable]) -> String {
    let one = |table: &&SourceTable| {
        let name = sql::table(&table.schema.table);
        if table.partitioned { name } else { format!("ONLY {name}") }
    };
    tables.iter().map(one).collect::<Vec<_>>().join(", ")
}
