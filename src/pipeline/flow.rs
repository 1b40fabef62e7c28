//! One direction of a pipeline, put together: a source's changes and copies into the log, and the log into a target.
//!
//! ```text
//! source ─► capture loop ─┐         ┌─► apply loops ─► target
//! source ─► copier ───────┴─► log ──┘   one half for each target
//! ```
//!
//! The halves meet in the log and in the frontier, and nowhere else. [`Flow::start`] begins the half that fills the
//! log, [`ApplyHalf::start`] the half that empties it: a process of one role has one of them, a connector's pipeline
//! has no other than the second. Deliberately absent: who decides when they run (`control`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    apply::ApplyLoop,
    batches::Bounds,
    capture::{CaptureLoop, Register},
    copier::Copier,
    refetch::Refetch,
    replay::ReplayLoop,
};
use crate::{
    log::{Log, Offset, Topic},
    model::{DebeziumConnector, Position, Version},
    observe::{Environment, Frontier, Halts, Room},
    snapshot::Progress,
    source::{Selection, Source},
    target::{Pass, Target},
};

/// Snapshot rows written in one transaction: the stream waits for at most one such transaction.
const SNAPSHOT_BATCH_ROWS_MAX: usize = 2_000;
/// Bytes of them; one row may have more.
const SNAPSHOT_BATCH_BYTES_MAX: usize = 2 << 20;
/// Batches of the largest size that are on their way into a target, of all lanes together. One that is larger, because
/// a row is, goes alone.
const BATCHES_MAX: usize = 4;

/// How tables are copied.
#[derive(Debug, Clone)]
pub struct CopyBounds {
    pub chunk_rows: u64,
    /// Chunks read at the same time.
    pub parallel: usize,
    /// A copy, and a replay, slow down to their minimum share while the stream's lag is above this.
    pub lag_max_seconds: f64,
    /// By table, those that its rows refer to at the target.
    pub parents: BTreeMap<String, BTreeSet<String>>,
}

/// The half that makes the log durable in a target.
#[derive(Clone)]
pub struct ApplyHalf {
    pub target: Arc<dyn Target>,
    pub log: Arc<dyn Log>,
    pub frontier: Arc<Frontier>,
    pub halts: Arc<Halts>,
    pub environment: Arc<dyn Environment>,
    /// Of one batch.
    pub bounds: Bounds,
    /// For the batches of all lanes: [`ApplyHalf::room_for`] these bounds.
    pub room: Room,
    /// Sinks of each partition of the snapshot topic.
    pub snapshot_sinks: usize,
    pub lag_max_seconds: f64,
}

impl std::fmt::Debug for ApplyHalf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplyHalf").field("target", &self.target).finish_non_exhaustive()
    }
}

impl ApplyHalf {
    /// Room for the batches of all lanes.
    pub fn room_for(bounds: Bounds) -> Room {
        Room::new(BATCHES_MAX * bounds.bytes_max)
    }

    /// Bounds of a batch of copied rows, and of a replayed one.
    fn snapshot_bounds(&self) -> Bounds {
        Bounds {
            rows_max: self.bounds.rows_max.min(SNAPSHOT_BATCH_ROWS_MAX),
            bytes_max: self.bounds.bytes_max.min(SNAPSHOT_BATCH_BYTES_MAX),
        }
    }

    /// The loops of all partitions; they end with `stop`, after the batches at work.
    pub fn start(&self, stop: &CancellationToken) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        for partition in 0..self.log.partitions() {
            for topic in [Topic::Changes, Topic::Snapshot] {
                loops.spawn(self.apply_loop(topic, partition).run(stop.clone()));
            }
        }
        loops
    }

    /// The loop of one partition of a topic.
    pub fn apply_loop(&self, topic: Topic, partition: u32) -> ApplyLoop {
        let (bounds, sinks) = match topic {
            Topic::Changes => (self.bounds, 1),
            Topic::Snapshot => (self.snapshot_bounds(), self.snapshot_sinks),
        };
        ApplyLoop {
            target: Arc::clone(&self.target),
            log: Arc::clone(&self.log),
            frontier: Arc::clone(&self.frontier),
            halts: Arc::clone(&self.halts),
            environment: Arc::clone(&self.environment),
            topic,
            partition,
            bounds,
            room: self.room.clone(),
            sinks,
        }
    }

    /// One pass of a replay over a partition, up to the offset `to`, of these source tables (all if there are none).
    pub fn replay_loop(&self, pass: Pass, partition: u32, to: Offset, tables: &[String]) -> ReplayLoop {
        ReplayLoop {
            target: Arc::clone(&self.target),
            log: Arc::clone(&self.log),
            frontier: Arc::clone(&self.frontier),
            environment: Arc::clone(&self.environment),
            pass,
            partition,
            to,
            tables: tables.to_vec(),
            bounds: self.snapshot_bounds(),
            room: self.room.clone(),
            lag_max_seconds: self.lag_max_seconds,
        }
    }
}

/// One direction: from a source to a target.
#[derive(Clone)]
pub struct Flow {
    /// The pipeline's name, for the envelope's `source` block.
    pub pipeline: String,
    /// The connector that the envelope's `source` block names.
    pub connector: DebeziumConnector,
    pub source: Arc<dyn Source>,
    /// What of the source is captured.
    pub selection: Selection,
    pub register: Arc<dyn Register>,
    pub progress: Arc<dyn Progress>,
    /// Where to begin when the log is empty: the position and clock stored in the target, if any.
    pub fallback: Option<(Position, Version)>,
    /// How tables are copied; none where nothing is.
    pub copy: Option<CopyBounds>,
    pub apply: ApplyHalf,
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

impl Flow {
    /// Captures, and copies where anything is to be copied, each until `stop` or a halt.
    pub fn start(&self, stop: &CancellationToken) -> JoinSet<()> {
        let mut loops = JoinSet::new();
        loops.spawn(self.capture_loop().run(stop.clone()));
        if let Some(copy) = &self.copy {
            loops.spawn(self.copier(copy).run(stop.clone()));
        }
        loops
    }

    fn capture_loop(&self) -> CaptureLoop {
        CaptureLoop {
            source: Arc::clone(&self.source),
            selection: self.selection.clone(),
            register: Arc::clone(&self.register),
            log: Arc::clone(&self.apply.log),
            frontier: Arc::clone(&self.apply.frontier),
            halts: Arc::clone(&self.apply.halts),
            environment: Arc::clone(&self.apply.environment),
            pipeline: self.pipeline.clone(),
            connector: self.connector,
            fallback: self.fallback.clone(),
        }
    }

    fn copier(&self, copy: &CopyBounds) -> Copier {
        Copier {
            source: Arc::clone(&self.source),
            progress: Arc::clone(&self.progress),
            target: Arc::clone(&self.apply.target),
            log: Arc::clone(&self.apply.log),
            frontier: Arc::clone(&self.apply.frontier),
            halts: Arc::clone(&self.apply.halts),
            environment: Arc::clone(&self.apply.environment),
            pipeline: self.pipeline.clone(),
            connector: self.connector,
            chunk_rows: copy.chunk_rows,
            parallel: copy.parallel,
            lag_max_seconds: copy.lag_max_seconds,
            parents: copy.parents.clone(),
        }
    }

    /// Reads single rows again.
    pub fn refetch(&self) -> Refetch {
        Refetch {
            source: Arc::clone(&self.source),
            log: Arc::clone(&self.apply.log),
            frontier: Arc::clone(&self.apply.frontier),
            environment: Arc::clone(&self.apply.environment),
            pipeline: self.pipeline.clone(),
            connector: self.connector,
            turn: Arc::default(),
        }
    }
}
