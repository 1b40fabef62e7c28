//! A PostgreSQL source: connection, role, settings, slot, publication, tables, and what they log of a change.

use tokio_postgres::Client;

use super::{Part, Report, judge_clock, target::ExaminedTarget};
use crate::{
    config::Config,
    database::postgres::{
        self, PgError, Session, ddl, mark,
        publication::{self, Publication},
        server::ServerFacts,
        slot, sql,
        tables::{self, SourceTable},
    },
    model::Problem,
    source,
};

/// What the source's user may do, and what is free for it.
#[derive(Debug)]
struct Standing {
    user: String,
    replicates: bool,
    /// May make a publication in this database.
    creates: bool,
    slots_free: i64,
    senders_free: i64,
}

/// Examines the source; none if there is too little to go on with.
pub(super) async fn examine(config: &Config, report: &mut Report) -> Option<Vec<SourceTable>> {
    let address = match postgres::Address::parse(&config.source.url) {
        Ok(address) => address,
        Err(error) => {
            report.blocked_by(Part::Source, error.problem());
            return None;
        }
    };
    let options = source::postgres::options(&config.name, config.source.ca_file.clone());
    let session = match Session::open(&address, &options).await {
        Ok(session) => session,
        Err(error) => {
            let problem = match error {
                PgError::Unreachable(what) => {
                    Problem::new(what, "start the server, or correct host and port in [source] url")
                }
                PgError::Login(_) | PgError::Refused(_) | PgError::Protocol(_) => error.problem(),
            };
            report.blocked_by(Part::Source, problem);
            return None;
        }
    };
    match examine_source(config, &session.client, report).await {
        Ok(tables) => Some(tables),
        Err(error) => {
            report.blocked_by(Part::Source, error.problem());
            None
        }
    }
}

async fn examine_source(config: &Config, client: &Client, report: &mut Report) -> Result<Vec<SourceTable>, PgError> {
    let facts = ServerFacts::load(client).await?;
    for problem in facts.problems() {
        report.blocks_on(Part::Source, problem.what, problem.fix);
    }
    if let Some(problem) = mark::problem(facts.version).filter(|_| config.goes_both_ways()) {
        report.blocks_on(Part::Source, problem.what, problem.fix);
    }
    judge_facts(&facts, config.source.clock_ahead_max_seconds, report);
    let (schema, only) = (config.source.postgres_schema(), config.source.tables.as_deref());
    let found = tables::load(client, schema, only).await?;
    for problem in tables::problems(&found, only.unwrap_or_default(), schema) {
        report.blocks_on(Part::Source, problem.what, problem.fix);
    }
    let name = slot::name_of(&config.name);
    let standing = standing(client).await?;
    let slot = slot::load(client, &name).await?;
    judge_standing(&standing, slot.is_none(), report);
    if let Some(why) = slot.and_then(|slot| slot.invalidated) {
        report.blocks_on(
            Part::Source,
            format!("the source has invalidated the replication slot `{name}` ({why})"),
            "raise max_slot_wal_keep_size at the source, and copy every table again with `cutover resnapshot TABLE`",
        );
    }
    judge_access(client, &found, &standing, report).await?;
    judge_publication(publication::load(client, &name).await?, &name, &found, &standing, report);
    // Older servers keep messages out of their stream.
    if facts.version >= 140_000 && ddl::is_offered(client).await? {
        report.offers(
            Part::Source,
            "an event trigger would say in the source's log where a table was altered; without it, the catalog is asked \
             every 0.5 to 5 s (docs/postgresql.md)",
            ddl::CREATE,
        );
    }
    Ok(found)
}

fn judge_facts(facts: &ServerFacts, ahead_max_seconds: u32, report: &mut Report) {
    if facts.encoding == "SQL_ASCII" {
        report.warns_of(
            Part::Source,
            "the source's database has the encoding SQL_ASCII, which keeps any bytes; those that are no UTF-8 halt the pipeline",
            "find and correct them before the copy",
        );
    }
    judge_clock(facts.now_us, ahead_max_seconds, report);
}

async fn standing(client: &Client) -> Result<Standing, PgError> {
    // Managed services give the right to replicate by a role of theirs.
    let sql = "SELECT current_user::text,
        (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)
          OR EXISTS (SELECT FROM pg_roles WHERE rolname IN ('rds_replication', 'cloudsqlreplica') AND pg_has_role(current_user, oid, 'MEMBER')),
        has_database_privilege(current_database(), 'CREATE'),
        current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM pg_replication_slots),
        current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM pg_stat_replication)";
    let row = client.query_one(sql, &[]).await?;
    Ok(Standing {
        user: row.try_get(0)?,
        replicates: row.try_get(1)?,
        creates: row.try_get(2)?,
        slots_free: row.try_get(3)?,
        senders_free: row.try_get(4)?,
    })
}

fn judge_standing(standing: &Standing, needs_slot: bool, report: &mut Report) {
    if !standing.replicates {
        report.blocks_on(
            Part::Source,
            format!("`{}` may not read the log", standing.user),
            format!("as a superuser: ALTER ROLE {} REPLICATION", sql::ident(&standing.user)),
        );
    }
    if needs_slot && standing.slots_free <= 0 {
        report.blocks_on(
            Part::Source,
            "all of the source's replication slots are taken",
            "raise max_replication_slots and restart the server, or drop a slot that nobody reads",
        );
    }
    if standing.senders_free <= 0 {
        report.blocks_on(
            Part::Source,
            "all of the source's WAL senders are at work",
            "raise max_wal_senders and restart the server",
        );
    }
}

/// What is read has to be readable, all of it.
async fn judge_access(
    client: &Client,
    found: &[SourceTable],
    standing: &Standing,
    report: &mut Report,
) -> Result<(), PgError> {
    let user = sql::ident(&standing.user);
    for table in found {
        let (name, schema) = (sql::table(&table.schema.table), sql::ident(&table.schema.table.schema));
        let sql = "SELECT has_schema_privilege($1::text, 'USAGE'), \
                   has_table_privilege($2::oid, 'SELECT') OR has_any_column_privilege($2::oid, 'SELECT'), \
                   has_schema_privilege($1::text, 'USAGE') AND row_security_active($2::oid)";
        let row = client.query_one(sql, &[&table.schema.table.schema, &table.oid]).await?;
        let (usage, select, hides): (bool, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if !usage {
            let fix = format!("GRANT USAGE ON SCHEMA {schema} TO {user}");
            report.blocks_on(Part::Source, format!("`{}` may not use schema {schema}", standing.user), fix);
        }
        if !select {
            let what = format!("`{}` may not read {}", standing.user, table.schema.table);
            report.blocks_on(Part::Source, what, format!("GRANT SELECT ON {name} TO {user}"));
        }
        if hides {
            let what = format!("row security hides rows of {} from `{}`", table.schema.table, standing.user);
            report.blocks_on(Part::Source, what, format!("as a superuser: ALTER ROLE {user} BYPASSRLS"));
        }
        if !table.generated.is_empty() {
            let columns = table.generated.join(", ");
            report.warns_of(
                Part::Source,
                format!("generated columns of {} are not in the stream: {columns}", table.schema.table),
                "let the target compute them: a generated column there, or an expression in the transform",
            );
        }
    }
    Ok(())
}

fn judge_publication(
    publication: Option<Publication>,
    name: &str,
    found: &[SourceTable],
    standing: &Standing,
    report: &mut Report,
) {
    if let Some(problem) = publication.as_ref().and_then(|publication| publication.problem(name, found)) {
        report.blocks_on(Part::Source, problem.what, problem.fix);
    }
    let missing = match &publication {
        Some(publication) => publication.missing(found),
        None => found.iter().collect(),
    };
    let Some(statement) = publication::statement(name, publication.is_some(), &missing) else { return };
    let ours = publication.as_ref().is_none_or(|publication| publication.ours);
    let owned = missing.iter().all(|table| table.owned);
    if ours && owned && (standing.creates || publication.is_some()) {
        return;
    }
    report.blocks_on(
        Part::Source,
        format!(
            "`{}` may not publish the tables' changes: that takes their owner, with CREATE on the database",
            standing.user
        ),
        format!("as their owner: {statement}"),
    );
}

/// A transform that filters, or makes sets or keys out of other columns, has to know the row before a change.
pub(super) fn judge_images(tables: &[SourceTable], target: &ExaminedTarget, report: &mut Report) {
    for name in target.full_row_images() {
        if tables.iter().any(|table| table.schema.table == *name && table.identity != 'f') {
            report.blocks_on(
                Part::Source,
                format!("a transform of {name} needs whole rows as they were before a change, and the source logs their key alone"),
                format!("ALTER TABLE {} REPLICA IDENTITY FULL", sql::table(name)),
            );
        }
    }
}
