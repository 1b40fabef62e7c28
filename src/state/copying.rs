//! The progress of copies over several sessions, so that tables which are copied beside each other do not wait for each
//! other's commits: what small tables note becomes durable together.

use std::sync::Arc;

use async_trait::async_trait;

use super::Store;
use crate::{
    model::{Position, TableSchema, Version},
    snapshot::{Chunk, Progress, SnapshotError, TableCopy},
};

/// Sessions beside the pipeline's own: it and these serve as many tables as are copied beside each other.
const SESSIONS_MAX: usize = 7;

/// The sessions. Whoever has something to note takes one that is free.
#[derive(Debug)]
pub struct Copying {
    own: Arc<Store>,
    beside: Vec<Store>,
}

impl Copying {
    pub fn new(own: &Arc<Store>) -> Self {
        let beside = (0..SESSIONS_MAX).map(|_| own.beside()).collect();
        Copying { own: Arc::clone(own), beside }
    }

    /// One that nobody is at; the pipeline's own if all are taken.
    fn free(&self) -> &Store {
        if self.own.is_free() {
            return &self.own;
        }
        self.beside.iter().find(|store| store.is_free()).unwrap_or(&self.own)
    }
}

#[async_trait]
impl Progress for Copying {
    async fn unfinished(&self) -> Result<Vec<TableCopy>, SnapshotError> {
        self.free().unfinished().await
    }

    async fn schema(&self, copy: &TableCopy, schema: &TableSchema, rows_estimate: u64) -> Result<(), SnapshotError> {
        self.free().schema(copy, schema, rows_estimate).await
    }

    async fn began(&self, copy: &TableCopy, clock: Version) -> Result<Version, SnapshotError> {
        self.free().began(copy, clock).await
    }

    async fn chunks(&self, copy: &TableCopy) -> Result<Vec<Chunk>, SnapshotError> {
        self.free().chunks(copy).await
    }

    async fn seen(&self, copy: &TableCopy) -> Result<Vec<Position>, SnapshotError> {
        self.free().seen(copy).await
    }

    async fn saw(&self, copy: &TableCopy, seen: &[Position]) -> Result<(), SnapshotError> {
        self.free().saw(copy, seen).await
    }

    async fn again(&self, copy: &TableCopy) -> Result<(), SnapshotError> {
        self.free().again(copy).await
    }

    async fn add_chunk(&self, copy: &TableCopy, chunk: &Chunk, last: bool) -> Result<(), SnapshotError> {
        self.free().add_chunk(copy, chunk, last).await
    }

    async fn finish(&self, copy: &TableCopy) -> Result<bool, SnapshotError> {
        self.free().finish(copy).await
    }

    async fn rest(&self) {
        for store in &self.beside {
            store.close().await;
        }
    }
}
