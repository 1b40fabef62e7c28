//! Removing what the source no longer has: after a TRUNCATE, and after a repeated copy.
//!
//! A TRUNCATE removes what is older than itself. A repeated copy has given every row of the source a version of its own
//! time or newer: what is older at the target was deleted while nobody captured it; so were parked rows that are older.
//! Rows that others still refer to are left for a later sweep, after those that refer to them have been copied too;
//! rows whose newest state is a dead letter stay as they are: where rows have owners, they are told by these. Of rows
//! that several source tables share only the contributor's part goes.

use tokio_postgres::types::ToSql;

use super::{
    lane,
    merged::Merged,
    needs, owned, sets, side_work,
    statement::{Builder, cast, key_type},
};
use crate::{
    database::postgres::{
        PgError, Session,
        catalog::{OWNER_COLUMN, VERSION_COLUMN},
        sql,
    },
    model::{Plan, PlanRole, Share, Version},
};

/// The dead letters and waiting rows of a source table from before its copy.
const FORGET: [&str; 2] = [side_work::FENCE_DEAD, side_work::FENCE_WAITING];

/// Whether a dead letter of a source table is open, or a row of it waits.
const SET_ASIDE: &str = "
SELECT EXISTS (SELECT FROM cutover.dead_letters WHERE pipeline = $1 AND source_table = $2 AND state = 'open')
  OR EXISTS (SELECT FROM cutover.waiting WHERE pipeline = $1 AND source_table = $2)";

/// Forgets what is set aside of a source table and older than `before`; whether anything is left.
pub(super) async fn forget_older(
    session: &Session,
    pipeline: &str,
    source: &str,
    before: Version,
) -> Result<bool, PgError> {
    for forget in FORGET {
        session.client.execute(forget, &[&pipeline, &source, &before]).await?;
    }
    Ok(session.client.query_one(SET_ASIDE, &[&pipeline, &source]).await?.try_get(0)?)
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    pub rows: u64,
    /// Nothing is left that the source does not have.
    pub complete: bool,
}

fn merged<R>(plan: &Plan, share: &Share, make: impl FnOnce(Merged<'_>) -> R) -> R {
    let builder = Builder { plan, types: &[], pipeline: "", replays: false };
    make(Merged { builder: &builder, share })
}

/// What removes all that a plan has written before a version (`$1`).
pub(super) fn truncate(plan: &Plan) -> Vec<String> {
    let older = |table: &str| format!("DELETE FROM {table} WHERE {VERSION_COLUMN} < $1");
    let target = sql::table(&plan.target.name);
    match &plan.role {
        PlanRole::Whole => vec![older(&target)],
        PlanRole::Set { .. } => vec![older(&target), older(&sql::table(&sets::table(&plan.target.name)))],
        PlanRole::Share(share) => merged(plan, share, |merged| merged.expire(|_| String::new())).into_iter().collect(),
    }
}

/// What puts rows into the target that such a removal has uncovered.
pub(super) fn show(plan: &Plan) -> Option<String> {
    match &plan.role {
        PlanRole::Whole | PlanRole::Set { .. } => None,
        PlanRole::Share(share) => merged(plan, share, |merged| merged.show()),
    }
}

/// The source rows of a table that have dead letters.
const LETTERS: &str =
    "SELECT key_text FROM cutover.dead_letters WHERE pipeline = $1 AND source_table = $2 AND state = 'open'";

/// That the lease is held.
const LEASED: &str = "AND EXISTS (SELECT FROM cutover.lease WHERE pipeline = $2 AND role = 'worker' AND epoch = $3)";

/// That the lease is held and the row of this name has no dead letter (`$2` the pipeline, `$3` the lease's epoch, `$4`
/// the source table, and, where rows have owners, `$5` those that have dead letters). None if the row's key is not that
/// of the source, so that dead letters cannot be told.
fn settled(plan: &Plan, row: &str) -> Option<String> {
    let table = &plan.source.table;
    if plan.is_owned() {
        // It may be anybody's if its owner is not known.
        return Some(format!(
            "{LEASED}\nAND $4::text IS NOT NULL AND {row}.{OWNER_COLUMN} <> ALL($5::bigint[])\n\
             AND ({row}.{OWNER_COLUMN} <> 0 OR pg_catalog.cardinality($5::bigint[]) = 0)"
        ));
    }
    let places = plan.key_reads.as_ref()?;
    let keys = match &plan.role {
        PlanRole::Whole | PlanRole::Share(_) => &plan.target.key,
        PlanRole::Set { parent } => parent,
    };
    let same = keys.iter().zip(places).map(|(key, place)| {
        let (name, target) = (plan.reads.get(*place)?, plan.target.column(key)?);
        let column = plan.source.column(name)?;
        let text = format!("(d.key ->> {})", sql::literal(name));
        Some(format!("{}::{} = {row}.{}", cast(&text, &column.column_type), key_type(target), sql::ident(key)))
    });
    let same: Vec<String> = same.collect::<Option<_>>()?;
    debug_assert!(!same.is_empty(), "{table} has a key");
    Some(format!(
        "{LEASED}\n\
         AND NOT EXISTS (SELECT FROM cutover.dead_letters d WHERE d.pipeline = $2 AND d.source_table = $4 AND d.state = 'open' \
         AND {})",
        same.join(" AND ")
    ))
}

/// Which rows go (`$1` the version before which they do).
fn stale(plan: &Plan) -> Option<String> {
    let version = match &plan.role {
        PlanRole::Whole | PlanRole::Set { .. } => VERSION_COLUMN.to_owned(),
        PlanRole::Share(share) => sql::ident(&share.own.version),
    };
    Some(format!("g.{version} > 0 AND g.{version} < $1\n{}", settled(plan, "g")?))
}

/// That no row of another plan's target refers to the row `g`.
fn childless(plan: &Plan, plans: &[Plan]) -> String {
    let target = &plan.target.name;
    let mut children = Vec::new();
    for child in plans.iter().map(|other| &other.target).filter(|child| child.name != *target) {
        for key in child.foreign_keys.iter().filter(|key| key.parent == *target) {
            let joined = key.columns.iter().zip(&key.parent_columns);
            let joined: Vec<String> =
                joined.map(|(own, parent)| format!("c.{} = g.{}", sql::ident(own), sql::ident(parent))).collect();
            let child =
                format!("\nAND NOT EXISTS (SELECT FROM {} c WHERE {})", sql::table(&child.name), joined.join(" AND "));
            if !children.contains(&child) {
                children.push(child);
            }
        }
    }
    children.concat()
}

/// The statement that removes stale rows of a plan's target, except those that rows of other plans' targets refer to.
/// None if there is nothing to remove, or if it cannot be told.
pub fn sweep_statement(plan: &Plan, plans: &[Plan]) -> Option<String> {
    match &plan.role {
        PlanRole::Whole | PlanRole::Set { .. } => {
            let (target, stale) = (sql::table(&plan.target.name), stale(plan)?);
            Some(format!("DELETE FROM {target} g WHERE {stale}{}", childless(plan, plans)))
        }
        PlanRole::Share(share) => {
            let (shown, waiting) = (settled(plan, "g")?, settled(plan, "p")?);
            let shown = format!(" AND g.{} > 0\n{shown}{}", sql::ident(&share.own.version), childless(plan, plans));
            let which = |row: &str| if row == "g" { shown.clone() } else { format!("\n{waiting}") };
            merged(plan, share, |merged| merged.expire(which))
        }
    }
}

/// Asks whether stale rows are left.
pub fn left_statement(plan: &Plan) -> Option<String> {
    if plan.role.keeps() {
        return None;
    }
    Some(format!("SELECT EXISTS (SELECT FROM {} g WHERE {})", sql::table(&plan.target.name), stale(plan)?))
}

/// Removes what a copy that began at `before` has not met from a plan's target, under the lease of this epoch. `mark`
/// is what the transaction says behind its BEGIN. The session is of no more use after an error: it may be inside a
/// transaction.
pub async fn sweep(
    session: &Session,
    (pipeline, mark): (&str, &str),
    (plan, plans): (&Plan, &[Plan]),
    before: Version,
    lease_epoch: i64,
) -> Result<Swept, PgError> {
    let (client, source) = (&session.client, plan.source.table.to_string());
    let (Some(delete), Some(left)) = (sweep_statement(plan, plans), left_statement(plan)) else {
        return Ok(Swept { rows: 0, complete: true });
    };
    client.batch_execute(&format!("BEGIN{mark}")).await?;
    for forget in FORGET {
        client.execute(forget, &[&pipeline, &source, &before]).await?;
    }
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&before, &pipeline, &lease_epoch, &source];
    let mut owners: Vec<i64> = Vec::new();
    if plan.is_owned() {
        // Nobody gets a dead letter, or waits for a row that goes, from here to the commit.
        client.query(lane::LOCK, &[&vec![lane::lock_of(plan, 0)]]).await?;
        for row in client.query(LETTERS, &[&pipeline, &source]).await? {
            owners.push(owned::owner(row.try_get::<_, &str>(0)?.as_bytes()));
        }
        params.push(&owners);
    }
    let rows = match &plan.role {
        PlanRole::Whole | PlanRole::Set { .. } => client.execute(&delete, &params).await?,
        PlanRole::Share(_) => {
            client.query(lane::LOCK, &[&vec![lane::lock_of(plan, 0)]]).await?;
            client.query_one(&delete, &params).await?.try_get::<_, i64>(0)?.unsigned_abs()
        }
    };
    if let Some(show) = show(plan) {
        client.query(&show, &[]).await?;
    }
    if plan.is_owned() {
        client.query(needs::FREE_TABLE, &[&pipeline, &source]).await?;
    }
    let left = client.query_one(&left, &params).await?;
    client.batch_execute("COMMIT").await?;
    Ok(Swept { rows, complete: !left.try_get::<_, bool>(0)? })
}
