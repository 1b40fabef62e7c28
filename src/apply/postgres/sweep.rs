//! After a repeated copy: removing what the source has no more.
//!
//! The copy has given every row of the source a version of its own time or newer. What is older at the target was deleted while nobody
//! captured it; so were rows set aside that are older. Rows that others still refer to are left for a later sweep,
//! after those that refer to them have been copied too; rows whose newest state is a dead letter stay as they are.

use super::statement::{cast, key_type};
use crate::{
    database::postgres::{PgError, Session, catalog::VERSION_COLUMN, sql},
    model::{Plan, Version},
};

/// The dead letters and waiting rows of a source table from before its copy.
const FORGET: [&str; 2] = [super::store::FENCE_DEAD, super::store::FENCE_WAITING];

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    pub rows: u64,
    /// Nothing is left that the source does not have.
    pub complete: bool,
}

/// Which rows go (`$1` the version before which they do, `$2` the pipeline, `$3` the lease's epoch, `$4` the source table).
fn stale(plan: &Plan) -> Option<String> {
    let table = &plan.source.table;
    let places = plan.key_reads.as_ref()?;
    let same = plan.target.key.iter().zip(places).map(|(key, place)| {
        let (name, target) = (plan.reads.get(*place)?, plan.target.column(key)?);
        let column = plan.source.column(name)?;
        let text = format!("(d.key ->> {})", sql::literal(name));
        Some(format!("{}::{} = g.{}", cast(&text, &column.column_type), key_type(target), sql::ident(key)))
    });
    let same: Vec<String> = same.collect::<Option<_>>()?;
    debug_assert!(!same.is_empty(), "{table} has a key");
    Some(format!(
        "g.{VERSION_COLUMN} > 0 AND g.{VERSION_COLUMN} < $1\n\
         AND EXISTS (SELECT FROM cutover.lease WHERE pipeline = $2 AND role = 'worker' AND epoch = $3)\n\
         AND NOT EXISTS (SELECT FROM cutover.dead_letters d WHERE d.pipeline = $2 AND d.source_table = $4 AND d.state = 'open' \
         AND {})",
        same.join(" AND ")
    ))
}

/// The statement that removes stale rows of a plan's target, but for those that rows of other plans' targets refer to.
/// None if the target's key is not that of the source, so that dead letters cannot be told.
pub fn sweep_statement(plan: &Plan, plans: &[Plan]) -> Option<String> {
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
    Some(format!("DELETE FROM {} g WHERE {}{}", sql::table(target), stale(plan)?, children.concat()))
}

/// Asks whether stale rows are left.
pub fn left_statement(plan: &Plan) -> Option<String> {
    Some(format!("SELECT EXISTS (SELECT FROM {} g WHERE {})", sql::table(&plan.target.name), stale(plan)?))
}

/// Removes what a copy that began at `before` has not met from a plan's target, under the lease of this epoch. The session is
/// of no more use after an error: it may be inside a transaction.
pub async fn sweep(
    session: &Session,
    pipeline: &str,
    (plan, plans): (&Plan, &[Plan]),
    before: Version,
    lease_epoch: i64,
) -> Result<Swept, PgError> {
    let (client, source) = (&session.client, plan.source.table.to_string());
    let (Some(delete), Some(left)) = (sweep_statement(plan, plans), left_statement(plan)) else {
        return Ok(Swept { rows: 0, complete: true });
    };
    client.batch_execute("BEGIN").await?;
    for forget in FORGET {
        client.execute(forget, &[&pipeline, &source, &before]).await?;
    }
    let rows = client.execute(&delete, &[&before, &pipeline, &lease_epoch, &source]).await?;
    let left = client.query_one(&left, &[&before, &pipeline, &lease_epoch, &source]).await?;
    client.batch_execute("COMMIT").await?;
    Ok(Swept { rows, complete: !left.try_get::<_, bool>(0)? })
}
