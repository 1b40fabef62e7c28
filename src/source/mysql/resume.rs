//! Where a dump starts, and whether this server can continue what was captured.
//!
//! Before anything is read, what was captured is held against what the server has (rules 16 and 17): a server that
//! never had a captured transaction, or has thrown away one that was not captured, halts the source with a list of
//! them.

use std::time::Duration;

use mysql_async::Conn;

use super::{COPY_AGAIN, halt, lost, query_error, stream::Start};
use crate::{
    database::mysql::server::{self, ServerFacts},
    model::{Flavor, GtidSet, MariadbGtids, MysqlPosition},
    source::CaptureError,
};

/// A commit is streamed a few milliseconds before the server counts it as executed: a quick reconnect waits for that.
const CATCH_UP_TRIES: u32 = 50;
const CATCH_UP_PAUSE: Duration = Duration::from_millis(100);
/// How many transactions' worth of text a message lists.
const LISTED_CHARS_MAX: usize = 400;

/// Where to start on this server to go on after `position`.
pub(super) async fn plan(
    conn: &mut Conn,
    facts: &ServerFacts,
    position: &MysqlPosition,
) -> Result<Start, CaptureError> {
    match (facts.flavor, &position.gtids) {
        (Flavor::Mysql, Some(gtids)) if facts.gtids => plan_gtids(conn, facts, gtids).await,
        (Flavor::Mariadb, Some(gtids)) => plan_mariadb(conn, gtids).await,
        (Flavor::Mysql | Flavor::Mariadb, Some(_) | None) => plan_file(conn, facts, position).await,
    }
}

async fn plan_gtids(conn: &mut Conn, facts: &ServerFacts, gtids: &str) -> Result<Start, CaptureError> {
    let captured = parse(gtids)?;
    let mut errant = captured.clone();
    for attempt in 0..CATCH_UP_TRIES {
        if attempt > 0 {
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
        let executed = server::executed(conn, Flavor::Mysql).await.map_err(query_error)?;
        errant = captured.minus(&parse(&executed)?);
        if errant.is_empty() {
            break;
        }
    }
    if !errant.is_empty() {
        return Err(lost(
            format!("the source never executed transactions that were captured: {}", listed(&errant.to_string())),
            "connect to the server that has them; if they are lost for good, their rows differ at the target: copy the tables \
             again with `cutover resnapshot TABLE`",
        ));
    }
    let purged = parse(facts.purged.as_deref().unwrap_or_default())?.minus(&captured);
    if !purged.is_empty() {
        return Err(lost(
            format!(
                "the source has purged binlogs with transactions that were not captured: {}",
                listed(&purged.to_string())
            ),
            COPY_AGAIN,
        ));
    }
    Ok(Start::Gtids(captured))
}

/// MariaDB itself refuses a GTID that is not in its log (strict mode); what it accepts silently, a position
/// ahead of its own in some domain, is refused here.
async fn plan_mariadb(conn: &mut Conn, gtids: &str) -> Result<Start, CaptureError> {
    let unreadable = |_| halt(format!("the stored position {gtids} is no MariaDB GTID position"), RESTORE);
    let captured: MariadbGtids = gtids.parse().map_err(unreadable)?;
    let mut ahead = captured.clone();
    for attempt in 0..CATCH_UP_TRIES {
        if attempt > 0 {
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
        let executed = server::executed(conn, Flavor::Mariadb).await.map_err(query_error)?;
        let executed: MariadbGtids = executed.parse().map_err(unreadable)?;
        ahead = executed.behind(&ahead);
        if ahead.is_empty() {
            return Ok(Start::MariadbGtids(captured.to_string()));
        }
    }
    Err(lost(
        format!("the source is behind what was captured: it has not reached {}", listed(&ahead.to_string())),
        "connect to the server that has these transactions; if they are lost for good, their rows differ at the target: copy the \
         tables again with `cutover resnapshot TABLE`",
    ))
}

/// Without GTIDs a position means something on one server alone.
async fn plan_file(conn: &mut Conn, facts: &ServerFacts, position: &MysqlPosition) -> Result<Start, CaptureError> {
    if facts.server != position.server {
        return Err(lost(
            format!(
                "the position {}:{} is of server {}, and the source is now server {}",
                position.file, position.offset, position.server, facts.server
            ),
            "connect to the old server, or turn GTIDs on so that positions survive a failover; to go on with the new one, copy every \
             table again with `cutover resnapshot TABLE`",
        ));
    }
    let files = server::binlog_files(conn).await.map_err(query_error)?;
    let Some(index) = files.iter().position(|file| *file == position.file) else {
        return Err(lost(
            format!(
                "the source no longer has the binlog file {}; its oldest is {}",
                position.file,
                files.first().map_or("none", String::as_str)
            ),
            COPY_AGAIN,
        ));
    };
    if let Ok(offset) = u32::try_from(position.offset) {
        return Ok(Start::File { file: position.file.clone(), offset });
    }
    // The request's offset has 32 bits. A file that long ends with the transaction that made it so.
    match files.get(index + 1) {
        Some(next) => Ok(Start::File { file: next.clone(), offset: 4 }),
        None => Err(CaptureError::Unreachable(format!("{} has not ended yet", position.file))),
    }
}

const RESTORE: &str =
    "restore the log's folder from a backup, or copy every table again with `cutover resnapshot TABLE`";

fn parse(gtids: &str) -> Result<GtidSet, CaptureError> {
    gtids.parse().map_err(|error| halt(format!("the position cannot be read: {error}"), RESTORE))
}

fn listed(text: &str) -> String {
    let mut shown: String = text.chars().take(LISTED_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push_str(" …");
    }
    shown
}
