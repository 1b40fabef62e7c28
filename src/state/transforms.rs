//! Which transforms were in force when.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{StateError, Store, lanes::Offsets};
use crate::model::{Plan, TableName, Version};

/// What a plan does, as far as a replay needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanNote {
    pub source: TableName,
    pub target: TableName,
    /// What decides which rows there are.
    pub identity: String,
}

/// Transforms, and from where on they were in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    pub offsets: Offsets,
    /// The clock that the target had.
    pub clock: Version,
    pub plans: Vec<PlanNote>,
}

/// What plans do.
pub fn plan_notes(plans: &[Plan]) -> Vec<PlanNote> {
    let note = |plan: &Plan| PlanNote {
        source: plan.source.table.clone(),
        target: plan.target.name.clone(),
        identity: plan.identity.clone(),
    };
    plans.iter().map(note).collect()
}

impl Store {
    /// Notes which transforms are in force from here on, by their hash and what they do, unless they were already.
    pub async fn note_transforms(
        &self,
        log_epoch: &str,
        partitions: u32,
        hash: &str,
        plans: &[Plan],
    ) -> Result<(), StateError> {
        let offsets = self.applied_offsets(log_epoch, partitions).await?;
        let clock = self.position().await?.map_or(0, |(_, clock)| clock);
        let (offsets, notes) = (serde_json::to_string(&(offsets, clock))?, serde_json::to_string(&plan_notes(plans))?);
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "INSERT INTO cutover.transforms (pipeline, hash, log_epoch, offsets, plans) \
                 SELECT $1, $2, $3, $4::text::jsonb, $5::text::jsonb WHERE NOT EXISTS ( \
                   SELECT FROM (SELECT * FROM cutover.transforms WHERE pipeline = $1 ORDER BY seq DESC LIMIT 1) t \
                   WHERE t.hash = $2 AND t.log_epoch = $3 AND t.plans = $5::text::jsonb)",
                &[&self.pipeline, &hash, &log_epoch, &offsets, &notes],
            )
            .await?;
        Ok(())
    }

    /// The tables that the transforms fill which were in force last; none before the first start.
    pub async fn filled_tables(&self) -> Result<BTreeSet<TableName>, StateError> {
        let session = self.session().await?;
        let newest = "SELECT plans::text FROM cutover.transforms WHERE pipeline = $1 ORDER BY seq DESC LIMIT 1";
        let Some(row) = session.client()?.query_opt(newest, &[&self.pipeline]).await? else {
            return Ok(BTreeSet::new());
        };
        let plans: Vec<PlanNote> =
            serde_json::from_str(row.get(0)).map_err(|error| StateError::unreadable("cutover.transforms", &error))?;
        Ok(plans.into_iter().map(|plan| plan.target).collect())
    }

    /// The transforms that were in force in this log, oldest first.
    pub async fn transforms(&self, log_epoch: &str) -> Result<Vec<InForce>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT offsets::text, plans::text FROM cutover.transforms WHERE pipeline = $1 AND log_epoch = $2 ORDER BY seq",
                &[&self.pipeline, &log_epoch],
            )
            .await?;
        let broken = |error: serde_json::Error| StateError::unreadable("cutover.transforms", &error);
        let read = |row: &tokio_postgres::Row| {
            let (offsets, clock) = serde_json::from_str(row.get(0)).map_err(broken)?;
            Ok(InForce { offsets, clock, plans: serde_json::from_str(row.get(1)).map_err(broken)? })
        };
        rows.iter().map(read).collect()
    }
}
