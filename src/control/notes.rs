//! What capture notes in the target's `cutover` schema: schemas, and tables to copy again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;

use crate::{
    log::Log,
    model::{Beyond, Position, TableName, TableSchema, Version},
    pipeline::capture::Register,
    source::CaptureError,
    state::Store,
};

/// Takes note of schemas and of tables to copy again, in the target.
#[derive(Debug)]
pub struct Notes {
    pub store: Arc<Store>,
    /// Which source columns the transforms use, by table; what no transform uses needs no new copy.
    pub used: BTreeMap<String, Vec<String>>,
    /// Whether tables may be copied again: on the way back nothing is.
    pub copies: bool,
}

#[async_trait]
impl Register for Notes {
    async fn schema(&self, schema: &TableSchema, clock: Version) -> Result<(), CaptureError> {
        Ok(self.store.add_schema(schema, clock).await?)
    }

    async fn rewritten(&self, table: &TableName, columns: &[String], clock: Version) -> Result<(), CaptureError> {
        let used = self.used.get(&table.table).is_some_and(|used| columns.iter().any(|column| used.contains(column)));
        if !used {
            tracing::info!(%table, "the table was altered; no transform uses what changed");
            return Ok(());
        }
        if !self.copies {
            tracing::error!(
                %table,
                "rows of the table may have changed unseen, and nothing is copied on the way back: see to it that the other side has \
                 what was changed"
            );
            return Ok(());
        }
        self.store.queue_copy(&table.table, clock).await?;
        tracing::warn!(%table, "the table was altered in a column that a transform uses; it is copied again");
        Ok(())
    }

    async fn begins_anew(&self, has_rows: bool) -> Result<(), CaptureError> {
        if !self.copies {
            return Ok(());
        }
        // What happened since the last position is in no log: the target may lack rows of any table.
        self.store.set_whole_tables(&BTreeSet::new()).await?;
        let queued = self.store.queue_begun_copies(has_rows).await?;
        if queued > 0 {
            tracing::warn!(
                tables = queued,
                "the log is gone, and no position was stored yet: what was copied is copied again"
            );
        }
        Ok(())
    }

    async fn begins_at(&self, log: &dyn Log, position: &Position, clock: Version) -> Result<(), CaptureError> {
        Ok(self.store.lanes_begin_at(log.epoch(), log.partitions(), position, clock).await?)
    }

    async fn clock_moves(&self, to: Version) -> Result<(), CaptureError> {
        Ok(self.store.set_moved_clock(to).await?)
    }

    async fn beyond(&self) -> Result<Option<Beyond>, CaptureError> {
        Ok(self.store.beyond().await?)
    }

    async fn beyond_is_over(&self) -> Result<(), CaptureError> {
        Ok(self.store.clear_beyond().await?)
    }

    async fn all_copied_again(&self) -> Result<bool, CaptureError> {
        Ok(self.store.not_to_be_copied_again().await?.is_empty())
    }
}
