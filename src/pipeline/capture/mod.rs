//! The capture loop: a source's events, made durable in the log.
//!
//! Two futures run side by side. The *reader* turns events into records and gathers them in a group;
//! the *writer* appends one group at a time, so that the next group grows while the log syncs this
//! one (group commit without a timer). A group is
//!
//! ```text
//! rows of whole transactions … │ control: position and clock │ rows of a transaction still open …
//! ```
//!
//! **Invariant:** a control record is appended after every record of the transactions before it, and the
//! frontier moves only when the append has answered. After any failure capture opens the source again
//! at the last control record; what was half-written is written again with the same versions.

mod reader;
mod tail;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{
    reader::{AppendGroup, Complete, Reader, ends_within},
    tail::Tail,
};
use crate::{
    log::{Control, Log, LogError, Record, Topic, envelope::EnvelopeError},
    model::{Beyond, DebeziumConnector, Disposition, Position, Problem, TableName, TableSchema, Version},
    observe::{self, Backoff, Environment, Frontier, Halts, metric},
    source::{CaptureError, Selection, Source},
};

/// Groups between reader and writer.
const GROUPS_WAITING_MAX: usize = 1;
/// How often a capture that lost its place looks whether it may begin anew.
const REPAIRED_EVERY: Duration = Duration::from_secs(1);

/// Takes note of what must be durable before the log goes on.
#[async_trait]
pub trait Register: Send + Sync {
    /// A table has this schema from the version `clock` on.
    async fn schema(&self, schema: &TableSchema, clock: Version) -> Result<(), CaptureError>;
    /// Rows of the table may have changed without events. A copy that shows them must be labelled with `clock` at
    /// least: else a row that was changed before them would seem to be newer.
    async fn rewritten(&self, table: &TableName, columns: &[String], clock: Version) -> Result<(), CaptureError>;
    /// Capture knows of no position and begins where the source is: copies that have begun missed what happened since,
    /// and are to be made again. If the log `has_rows` from before, each table's copy must also remove what it does not
    /// meet: what was done to those rows since is in no log.
    async fn begins_anew(&self, has_rows: bool) -> Result<(), CaptureError>;
    /// The log begins at this position, with this clock: a partition of which the target has no position yet goes on
    /// from here when the log is lost.
    async fn begins_at(&self, log: &dyn Log, position: &Position, clock: Version) -> Result<(), CaptureError>;
    /// The clock is moved to this version, which the source's log does not tell.
    async fn clock_moves(&self, to: Version) -> Result<(), CaptureError>;
    /// What the target has from beyond the position that capture began at when a log was lost.
    async fn beyond(&self) -> Result<Option<Beyond>, CaptureError>;
    /// Capture has met that once more, or begins anew.
    async fn beyond_is_over(&self) -> Result<(), CaptureError>;
    /// Whether every table has been asked to be copied again and no such copy has begun.
    async fn all_copied_again(&self) -> Result<bool, CaptureError>;
}

/// Everything the loop works with.
pub struct CaptureLoop {
    pub source: Arc<dyn Source>,
    /// What of it is captured.
    pub selection: Selection,
    pub register: Arc<dyn Register>,
    pub log: Arc<dyn Log>,
    pub frontier: Arc<Frontier>,
    pub halts: Arc<Halts>,
    pub environment: Arc<dyn Environment>,
    /// The pipeline's name, for the envelope's `source` block.
    pub pipeline: String,
    /// The connector that the envelope's `source` block names.
    pub connector: DebeziumConnector,
    /// Where to begin when the log is empty: the position and clock stored in the target, if any.
    pub fallback: Option<(Position, Version)>,
}

impl std::fmt::Debug for CaptureLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureLoop").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// Why one opened source came to its end.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

impl SessionError {
    fn disposition(&self) -> Disposition {
        match self {
            SessionError::Capture(error) => error.disposition(),
            SessionError::Log(error) => error.disposition(),
            SessionError::Envelope(_) => Disposition::Halt,
        }
    }

    /// Whether what follows the captured position is gone.
    fn is_loss(&self) -> bool {
        matches!(self, SessionError::Capture(CaptureError::Lost { .. }))
    }
}

impl CaptureLoop {
    /// Captures until `stop`, or until something halts it.
    pub async fn run(self, stop: CancellationToken) {
        let (mut backoff, mut anew) = (Backoff::default(), false);
        while !stop.is_cancelled() {
            let started = Instant::now();
            // What has been captured anew is in the log, which is where to go on from then.
            anew &= self.frontier.watch_captured().borrow().is_none();
            let Err(error) = self.session(anew, &stop).await else { return };
            metrics::counter!(metric::SYNC_ERRORS, "stage" => "capture").increment(1);
            match error.disposition() {
                Disposition::Retry => self.halts.trouble("capture", &error.to_string()),
                Disposition::Halt | Disposition::DeadLetter if error.is_loss() => {
                    self.frontier.lost();
                    if !self.repaired(error, &stop).await {
                        return;
                    }
                    anew = true;
                }
                Disposition::Halt | Disposition::DeadLetter => {
                    return self.halts.halt("capture", halt_of(error));
                }
            }
            let pause = backoff.next(&*self.environment, started.elapsed());
            tokio::select! { biased; () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
        }
    }

    /// Halts until every table is to be copied again, which makes up for what was lost; false if it was stopped before.
    async fn repaired(&self, lost: SessionError, stop: &CancellationToken) -> bool {
        let mut lost = Some(lost);
        loop {
            match self.register.all_copied_again().await {
                Ok(true) => break,
                Ok(false) => self.halts.well("capture"),
                Err(error) => self.halts.trouble("capture", &error.to_string()),
            }
            if let Some(lost) = lost.take() {
                self.halts.halt("capture", halt_of(lost));
            }
            tokio::select! { biased; () = stop.cancelled() => return false, () = tokio::time::sleep(REPAIRED_EVERY) => {} }
        }
        self.halts.lift("capture");
        true
    }

    /// Opens the source where the log ends, or anew where the source is, and captures until `stop` or an error.
    async fn session(&self, anew: bool, stop: &CancellationToken) -> Result<(), SessionError> {
        let beyond = self.register.beyond().await?;
        let in_log = self.resume_point().await?;
        let begins = in_log.is_none();
        let mut from = in_log.or_else(|| self.fallback.clone());
        if let (Some((_, clock)), Some(beyond)) = (&mut from, &beyond) {
            // What begins anew is newer than all that there is.
            *clock = if anew { beyond.highest } else { beyond.clock }.max(*clock);
        }
        let tail = self.tail(&mut from, anew).await?;
        let clock = from.as_ref().map_or(0, |(_, clock)| *clock);
        match &from {
            Some((position, clock)) if begins && !anew => self.register.begins_at(&*self.log, position, *clock).await?,
            Some(_) => {}
            None => self.register.begins_anew(tail::has_rows(&*self.log).await?).await?,
        }
        let begins_here = from.is_none();
        let opening = match from {
            Some((_, clock)) if anew => self.source.stream_anew(&self.selection, clock),
            from => self.source.stream(&self.selection, from),
        };
        let mut source = tokio::select! { biased; () = stop.cancelled() => return Ok(()), source = opening => source? };
        let (sender, receiver) = mpsc::channel(GROUPS_WAITING_MAX);
        let expected = beyond.as_ref().filter(|_| !anew);
        let settles = |position: &Position| beyond.as_ref().is_some_and(|beyond| anew || beyond.is_met(position));
        let reader = Reader::new(self, clock, expected, tail);
        // A writer that gives up drops its receiver, which ends the reader; a reader that ends drops
        // its sender, and the writer finishes what it has been given.
        let (read, written) =
            tokio::join!(reader.run(&mut *source, sender, stop), self.write(receiver, begins_here, &settles, stop));
        written?;
        read
    }

    /// What the log has from behind the place where capture resumes, and is to come once more. What begins anew is
    /// newer than that, and expects nothing.
    async fn tail(&self, from: &mut Option<(Position, Version)>, anew: bool) -> Result<Option<Tail>, SessionError> {
        let Some((position, clock)) = from.as_mut().filter(|(position, _)| position.has_one_order()) else {
            return Ok(None);
        };
        let Some(newest) = tail::newest(&*self.log, *clock).await? else { return Ok(None) };
        if anew {
            *clock = newest.version;
            return Ok(None);
        }
        let end = self.source.end().await.map_err(|error| CaptureError::Unreachable(error.to_string()))?;
        Ok(Some(Tail { newest, resumes: position.clone(), end }))
    }

    /// The last position whose transactions are complete in every partition (rule 18); none if the log has none.
    async fn resume_point(&self) -> Result<Option<(Position, Version)>, LogError> {
        let mut lowest: Option<Control> = None;
        for partition in 0..self.log.partitions() {
            let Some((_, control)) = self.log.last_control(Topic::Changes, partition).await? else {
                lowest = None;
                break;
            };
            if lowest.as_ref().is_none_or(|lowest| control.clock < lowest.clock) {
                lowest = Some(control);
            }
        }
        Ok(lowest.and_then(|control| Some((control.position?, control.clock))))
    }

    /// Appends groups in order until the reader ends. The first of them says where the log begins, if it `begins_here`:
    /// what was committed before is a copy's. `settles` says whether capture, at this position, has made up for what
    /// the target has from beyond an earlier one.
    async fn write(
        &self,
        mut groups: mpsc::Receiver<AppendGroup>,
        mut begins_here: bool,
        settles: &(dyn Fn(&Position) -> bool + Sync),
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        // Whether an earlier group ended inside a transaction.
        let (mut within, mut settled) = (false, false);
        while let Some(group) = groups.recv().await {
            let (records, complete, taken) = group.into_records(self.log.partitions());
            let ends_within = ends_within(&records).unwrap_or(within);
            if let Some(first) = complete.as_ref().filter(|_| begins_here) {
                self.register.begins_at(&*self.log, &first.position, first.clock).await?;
                begins_here = false;
            }
            self.append(records, within, stop).await?;
            drop(taken);
            within = ends_within;
            let Some(complete) = complete else { continue };
            let mut ends = Vec::new();
            for partition in 0..self.log.partitions() {
                ends.push(self.log.bounds(Topic::Changes, partition).await?.1);
            }
            let Complete { position, clock, commit_us, .. } = complete;
            if !settled && settles(&position) {
                self.register.beyond_is_over().await?;
                settled = true;
            }
            self.frontier.captured(observe::Captured { position, clock, ends, commit_us });
            self.halts.well("capture");
        }
        Ok(())
    }

    /// Appends one group, waiting for as long as the log is full or its disk refuses. `within` is whether it goes on
    /// with a transaction that an earlier group has begun.
    async fn append(
        &self,
        records: Vec<(u32, Record)>,
        within: bool,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut backoff = Backoff::default();
        loop {
            // Records share their bytes, so that a copy for the retry costs little.
            match self.log.append(Topic::Changes, records.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if error.disposition() == Disposition::Retry => {
                    metrics::counter!(metric::SYNC_ERRORS, "stage" => "log").increment(1);
                    self.halts.trouble("capture", &error.to_string());
                    let pause = backoff.next(&*self.environment, Duration::ZERO);
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Err(error.into()),
                        () = tokio::time::sleep(pause) => {}
                    }
                    // Nothing of the group was written, and it still follows what was.
                    if matches!(error, LogError::Full { .. }) {
                        continue;
                    }
                    // A start record drops all of the open transaction, also what earlier groups have of it: capture
                    // goes back to where it begins.
                    if within {
                        return Err(error.into());
                    }
                    // The failed append may have left a part behind: a start record makes readers drop it.
                    if let Err(error) =
                        self.log.append(Topic::Changes, AppendGroup::start(self.log.partitions()).records).await
                    {
                        self.halts.trouble("capture", &error.to_string());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn halt_of(error: SessionError) -> Problem {
    match error {
        SessionError::Capture(CaptureError::Halt(problem) | CaptureError::Lost(problem)) => problem,
        SessionError::Capture(error @ CaptureError::Unreachable(_)) => {
            Problem::new(error.to_string(), "make the source reachable and restart the worker")
        }
        SessionError::Envelope(error) => {
            Problem::new(error.to_string(), "this is a defect of cutover: report it with this message")
        }
        SessionError::Log(error) => Problem::new(error.to_string(), "restart the worker when that is done"),
    }
}
