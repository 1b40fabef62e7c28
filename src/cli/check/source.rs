//! The source: connection, grants, settings, tables, keys.

use mysql_async::Conn;

use super::{Part, Report, judge_clock};
use crate::{
    cli::eligible::obstacle,
    config::Config,
    database::mysql::{
        catalog::{CatalogError, load_tables},
        connect::{ConnectError, Connector},
        details::{TableDetails, load_details},
        server::{self, Grants, ServerFacts},
    },
    model::{Problem, TableSchema},
};

/// What is known of the source.
#[derive(Debug)]
pub(super) struct ExaminedSource {
    pub facts: ServerFacts,
    /// The tables that the pipeline follows.
    pub tables: Vec<TableSchema>,
    pub details: Vec<TableDetails>,
}

/// Examines the source; none if there is too little to go on with.
pub(super) async fn examine(config: &Config, report: &mut Report) -> Option<ExaminedSource> {
    let mut blocked = |problem: Problem| report.blocked_by(Part::Source, problem);
    let connector = Connector::new(&config.source.url).map_err(|error| blocked(error.problem())).ok()?;
    let Some(database) = connector.database().map(str::to_owned) else {
        blocked(Problem::new("the source URL names no database", "end it with /database"));
        return None;
    };
    let mut conn = match connector.connect().await {
        Ok(conn) => conn,
        Err(error @ ConnectError::Unreachable { .. }) => {
            blocked(error.problem().or("start the server, or correct host and port in [source] url"));
            return None;
        }
        Err(
            error @ (ConnectError::Url { .. }
            | ConnectError::CaFile { .. }
            | ConnectError::Denied { .. }
            | ConnectError::Tls { .. }
            | ConnectError::NoTls { .. }
            | ConnectError::AuthPlugin { .. }),
        ) => {
            blocked(error.problem());
            return None;
        }
    };
    let source = examine_source(config, &mut conn, &database, report).await;
    if let Err(error) = conn.disconnect().await {
        tracing::debug!(%error, "the connection to the source ended badly");
    }
    source
}

async fn examine_source(
    config: &Config,
    conn: &mut Conn,
    database: &str,
    report: &mut Report,
) -> Option<ExaminedSource> {
    let grants = match Grants::load(conn).await {
        Ok(grants) => Some(grants),
        Err(error) => {
            report.blocked_by(Part::Source, error.problem());
            None
        }
    };
    if let Some(grants) = &grants {
        judge_grants(grants, grants.missing_everywhere(), report);
    }
    let facts = match ServerFacts::load(conn).await {
        Ok(facts) => facts,
        Err(error) => {
            // Without the grant the server refuses to tell its position, which has been said already.
            let said = grants.as_ref().is_some_and(|grants| !grants.everywhere("REPLICATION CLIENT") && !grants.roles);
            if !said {
                report.blocked_by(Part::Source, error.problem());
            }
            return None;
        }
    };
    for problem in server::problems(&facts) {
        report.blocks_on(Part::Source, problem.what, problem.fix);
    }
    if !facts.filters.replication.is_empty() {
        let told = format!(
            "the source is a replica that does not take everything over ({}): what its primary has beyond that is not copied",
            facts.filters.replication.join(", ")
        );
        report.warns_of(Part::Source, told, "capture from its primary if the tables here are not whole");
    }
    judge_clock(facts.now_us, config.source.clock_ahead_max_seconds, report);
    let only = config.source.tables.as_deref();
    let loaded = match load_tables(conn, database, only).await {
        Ok(tables) => load_details(conn, database, only).await.map(|details| (tables, details)),
        Err(error) => Err(error),
    };
    let (tables, details) = match loaded {
        Ok(loaded) => loaded,
        Err(error @ (CatalogError::Database(_) | CatalogError::Unreadable { .. })) => {
            report.blocked_by(Part::Source, error.problem());
            return None;
        }
        Err(error @ (CatalogError::UnknownType { .. } | CatalogError::Changed { .. })) => {
            report.blocked_by(Part::Source, error.problem());
            return None;
        }
    };
    judge_tables(&tables, only.unwrap_or_default(), database, &facts, report);
    if let Some(grants) = &grants {
        judge_grants(grants, grants.missing_on(&tables, &facts), report);
    }
    judge_eligibility(&tables, report);
    Some(ExaminedSource { facts, tables, details })
}

/// Missing privileges block; they only warn where a role, whose own grants are not listed, may give them.
fn judge_grants(grants: &Grants, missing: Vec<Problem>, report: &mut Report) {
    for Problem { what, fix } in missing {
        if grants.roles {
            report.warns_of(Part::Source, format!("{what}, unless one of its roles has"), fix);
        } else {
            report.blocks_on(Part::Source, what, fix);
        }
    }
}

fn judge_tables(tables: &[TableSchema], wanted: &[String], database: &str, facts: &ServerFacts, report: &mut Report) {
    for name in wanted.iter().filter(|name| !tables.iter().any(|schema| schema.table.table == **name)) {
        let case = if facts.names_fold { "; this server keeps table names in lower case" } else { "" };
        report.blocks_on(
            Part::Source,
            format!("`{database}` has no table `{name}`, or the source user may not see it"),
            format!("correct [source] tables (base tables, by their exact name{case}), or GRANT SELECT on it"),
        );
    }
    if tables.is_empty() && wanted.is_empty() {
        report.blocks_on(
            Part::Source,
            format!("`{database}` has no table that the source user may see"),
            format!("correct the database in [source] url, or GRANT SELECT ON `{database}`.* TO the source user"),
        );
    }
}

fn judge_eligibility(tables: &[TableSchema], report: &mut Report) {
    for schema in tables {
        let table = &schema.table.table;
        if let Some(Problem { what, fix }) = obstacle(schema) {
            let fix = format!("{fix}, or leave `{table}` out of [source] tables");
            report.blocks_on(Part::Source, format!("table `{table}` {what}"), fix);
        }
        for column in schema.key_columns() {
            let Some(collation) = column.collation.as_deref().filter(|name| !name.ends_with("_bin")) else { continue };
            report.warns_of(
                Part::Source,
                format!(
                    "the key of `{table}` has the column `{}` with {collation}, under which texts such as 'a' and 'A' are one; \
                     at the target they are two",
                    column.name
                ),
                "keep the key as it is in the transform; one that folds case or spaces can map two rows to one key",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::check::Weight,
        database::mysql::filters::Filters,
        model::{Column, ColumnType, Flavor, TableName},
        observe::now_us,
    };

    fn table(name: &str, collation: Option<&str>, key: &[usize]) -> TableSchema {
        let column = Column {
            name: "code".into(),
            column_type: ColumnType::Text,
            source_type: "varchar(9)".into(),
            nullable: false,
            charset: Some("utf8mb4".into()),
            collation: collation.map(str::to_owned),
            generated: false,
        };
        TableSchema { table: TableName::new("shop", name), columns: vec![column], key: key.to_vec() }
    }

    #[test]
    fn a_table_without_a_key_blocks_and_a_folding_key_warns() {
        let mut report = Report::default();
        judge_eligibility(
            &[
                table("none", None, &[]),
                table("folding", Some("utf8mb4_0900_ai_ci"), &[0]),
                table("binary", Some("utf8mb4_bin"), &[0]),
            ],
            &mut report,
        );
        let found: Vec<(Weight, bool)> =
            report.findings.iter().map(|finding| (finding.weight, finding.problem.what.contains("folding"))).collect();
        assert_eq!(found.len(), 2, "{report}");
        assert_eq!(report.findings[0].weight, Weight::Blocks);
        assert!(
            report.findings[0].problem.what.contains("`none`") && report.findings[1].problem.what.contains("`folding`")
        );
    }

    #[test]
    fn the_clock_may_be_ahead_by_the_bound() {
        let mut report = Report::default();
        let facts = |ahead: i64| ServerFacts {
            flavor: Flavor::Mysql,
            version: (8, 0, 15),
            version_text: "8.0.15".into(),
            server: "uuid".into(),
            gtids: true,
            log_bin: true,
            logs_replicated: true,
            binlog_format: "ROW".into(),
            binlog_row_image: "FULL".into(),
            metadata_full: true,
            partial_json: false,
            order_commits: true,
            checksum: "CRC32".into(),
            names_fold: false,
            purged: None,
            filters: Filters::default(),
            now_us: now_us() + ahead * 1_000_000,
        };
        judge_clock(facts(-3_600).now_us, 60, &mut report);
        judge_clock(facts(30).now_us, 60, &mut report);
        assert_eq!(report.findings, vec![]);
        judge_clock(facts(120).now_us, 60, &mut report);
        assert!(report.blocks() && report.to_string().contains("clock_ahead_max_seconds"));
    }
}
