//! What a range of the log holds: where it begins, how many rows of which tables, from when to when.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Ask, Stopped};
use crate::{
    log::{Control, Kind, Log, LogError, Offset, Stored, Topic},
    model::{TableSchema, Version},
    pipeline::replay::chosen,
    state::{Store, lanes::Offsets, replays::From},
};

const READ_BYTES_MAX: usize = 2 << 20;
/// Bytes read to learn when a record was committed.
const PROBE_BYTES_MAX: usize = 64 << 10;

/// Rows of one source table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRows {
    pub table: String,
    pub rows: u64,
}

/// Commit times, µs since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub first_us: i64,
    pub last_us: i64,
}

/// What a range holds.
#[derive(Debug, Default)]
pub struct Survey {
    /// By source table with its schema: the table, and its rows.
    tables: BTreeMap<String, (String, u64)>,
    pub span: Option<Span>,
    /// The lowest watermark of the copied rows.
    pub watermark_min: Option<Version>,
    /// The schemas that rows refer to.
    pub schemas: Vec<Arc<TableSchema>>,
    /// No change of this version or lower is missing after the first that the changes topic holds.
    pub changes_reach: Version,
}

impl Survey {
    /// Reads the range. Rows that a fence keeps out, and those of other tables, do not count.
    pub async fn of(
        log: &dyn Log,
        store: &Store,
        starts: &Offsets,
        ends: &Offsets,
        tables: &[String],
        fences: &HashMap<String, Version>,
    ) -> Result<Self, Stopped> {
        let stored = store.schemas().await?;
        let mut known: HashMap<u64, Arc<TableSchema>> =
            stored.into_iter().map(|(_, schema)| (schema.id(), Arc::new(schema))).collect();
        let mut survey = Survey::default();
        let mut used: HashSet<u64> = HashSet::new();
        for (topic, starts, ends) in
            [(Topic::Changes, &starts.changes, &ends.changes), (Topic::Snapshot, &starts.snapshot, &ends.snapshot)]
        {
            for (partition, (from, to)) in (0u32..).zip(starts.iter().zip(ends)) {
                let mut next = *from;
                while next < *to {
                    let records = log.read(topic, partition, next, READ_BYTES_MAX, Duration::from_millis(500)).await?;
                    for stored in records {
                        next = stored.offset + 1;
                        if stored.offset < *to {
                            survey.take(topic, stored, &mut known, &mut used, tables, fences);
                        }
                    }
                }
            }
        }
        for partition in 0..log.partitions() {
            survey.changes_reach = survey.changes_reach.max(reach(log, partition).await?);
        }
        survey.schemas = used.iter().filter_map(|id| known.get(id).cloned()).collect();
        Ok(survey)
    }

    fn take(
        &mut self,
        topic: Topic,
        Stored { record, .. }: Stored,
        known: &mut HashMap<u64, Arc<TableSchema>>,
        used: &mut HashSet<u64>,
        tables: &[String],
        fences: &HashMap<String, Version>,
    ) {
        let headers = record.headers;
        match headers.kind {
            Kind::Row => {}
            Kind::Schema => {
                if let Ok(schema) = serde_json::from_slice::<TableSchema>(&record.value) {
                    known.insert(schema.id(), Arc::new(schema));
                }
                return;
            }
            Kind::Truncate | Kind::Control | Kind::Heartbeat | Kind::Start | Kind::Cascade => return,
        }
        // What a row refers to and nobody knows stops the replay itself, with its offset.
        let Some((id, schema)) = headers.schema.and_then(|id| Some((id, known.get(&id)?))) else { return };
        let name = schema.table.to_string();
        if !chosen(tables, schema) || fences.get(&name).is_some_and(|fence| headers.version < *fence) {
            return;
        }
        used.insert(id);
        self.tables.entry(name).or_insert_with(|| (schema.table.table.clone(), 0)).1 += 1;
        match topic {
            Topic::Snapshot => {
                let lowest = self.watermark_min.get_or_insert(headers.version);
                *lowest = headers.version.min(*lowest);
            }
            Topic::Changes => {}
        }
        let span = self.span.get_or_insert(Span { first_us: headers.commit_us, last_us: headers.commit_us });
        span.first_us = span.first_us.min(headers.commit_us);
        span.last_us = span.last_us.max(headers.commit_us);
    }

    pub fn tables(&self) -> Vec<TableRows> {
        self.tables.values().map(|(table, rows)| TableRows { table: table.clone(), rows: *rows }).collect()
    }

    pub fn rows(&self) -> u64 {
        self.tables.values().map(|(_, rows)| rows).sum()
    }
}

/// The version after which a partition of the changes topic holds every change; the highest where it holds none at all.
async fn reach(log: &dyn Log, partition: u32) -> Result<Version, LogError> {
    let (mut next, end) = log.bounds(Topic::Changes, partition).await?;
    while next < end {
        let records = log.read(Topic::Changes, partition, next, PROBE_BYTES_MAX, Duration::from_millis(500)).await?;
        for Stored { offset, record } in records {
            next = offset + 1;
            match record.headers.kind {
                Kind::Row | Kind::Truncate | Kind::Cascade => return Ok(record.headers.version.saturating_sub(1)),
                Kind::Control | Kind::Heartbeat => {
                    if let Ok(control) = serde_json::from_slice::<Control>(&record.value) {
                        return Ok(control.clock);
                    }
                }
                Kind::Schema | Kind::Start => {}
            }
        }
    }
    Ok(Version::MAX)
}

/// Where a replay begins in each partition of both topics, or why the log does not reach back to there.
pub(super) async fn starts(
    log: &dyn Log,
    store: &Store,
    ask: &Ask,
    ends: &Offsets,
) -> Result<Result<Offsets, String>, Stopped> {
    let wanted = match &ask.from {
        From::Beginning => {
            let zero = vec![0; log.partitions() as usize];
            Offsets { changes: zero.clone(), snapshot: zero }
        }
        From::Checkpoint(name) => {
            let known = store.checkpoints().await?;
            let Some(checkpoint) = known.into_iter().find(|checkpoint| checkpoint.name == *name) else {
                return Ok(Err(format!(
                    "there is no checkpoint `{name}`: `cutover checkpoint list` shows those there are"
                )));
            };
            if checkpoint.point.log_epoch != log.epoch() {
                return Ok(Err(format!("checkpoint `{name}` is of a log that is gone")));
            }
            checkpoint.point.offsets
        }
        From::TimeUs(at_us) => since(log, *at_us, ends, None).await?,
        From::Offset(_) if log.partitions() > 1 => {
            let reason = "an offset names one place only in a log of one partition: say a time or a checkpoint";
            return Ok(Err(reason.into()));
        }
        From::Offset(offset) => {
            let end = ends.changes.first().copied().unwrap_or_default();
            if *offset > end {
                return Ok(Err(format!("offset {offset} is not applied yet: the target has what is before {end}")));
            }
            let (start, _) = log.bounds(Topic::Changes, 0).await?;
            match time_of(log, Topic::Changes, 0, (*offset).max(start), end).await? {
                Some((_, at_us)) => since(log, at_us, ends, Some(*offset)).await?,
                None => Offsets { changes: vec![*offset], snapshot: ends.snapshot.clone() },
            }
        }
    };
    for (topic, offsets) in [(Topic::Changes, &wanted.changes), (Topic::Snapshot, &wanted.snapshot)] {
        for (partition, offset) in (0u32..).zip(offsets) {
            let (start, _) = log.bounds(topic, partition).await?;
            if start > *offset {
                return Ok(Err(format!(
                    "the log no longer reaches back to {}: {}/{partition} starts at offset {start}, and {offset} was \
                     asked for ([log] retention_hours and bytes_max say what is kept)",
                    ask.label,
                    topic.suffix()
                )));
            }
        }
    }
    Ok(Ok(wanted))
}

/// The first records that were committed at that time or later; of the changes topic from `offset` on, where that is
/// given.
async fn since(log: &dyn Log, at_us: i64, ends: &Offsets, offset: Option<Offset>) -> Result<Offsets, Stopped> {
    let mut found = Offsets::default();
    for (topic, ends) in [(Topic::Changes, &ends.changes), (Topic::Snapshot, &ends.snapshot)] {
        for (partition, end) in (0u32..).zip(ends) {
            let (start, _) = log.bounds(topic, partition).await?;
            let (mut low, mut high) = (start, (*end).max(start));
            while low < high {
                let middle = low + (high - low) / 2;
                match time_of(log, topic, partition, middle, high).await? {
                    Some((at, time_us)) if time_us < at_us => low = at + 1,
                    Some(_) | None => high = middle,
                }
            }
            // The records before the first that is left may be what was asked for.
            if low == start && start > 0 && starts_later(log, topic, partition, at_us).await? {
                low = start - 1;
            }
            match topic {
                Topic::Changes => found.changes.push(offset.unwrap_or(low)),
                Topic::Snapshot => found.snapshot.push(low),
            }
        }
    }
    Ok(found)
}

/// Whether the first record that is left was committed after that time.
async fn starts_later(log: &dyn Log, topic: Topic, partition: u32, at_us: i64) -> Result<bool, LogError> {
    let (start, end) = log.bounds(topic, partition).await?;
    Ok(time_of(log, topic, partition, start, end).await?.is_some_and(|(_, time_us)| time_us > at_us))
}

/// The first record from an offset on that has a commit time, before `end`.
async fn time_of(
    log: &dyn Log,
    topic: Topic,
    partition: u32,
    from: Offset,
    end: Offset,
) -> Result<Option<(Offset, i64)>, LogError> {
    let mut next = from;
    while next < end {
        let records = log.read(topic, partition, next, PROBE_BYTES_MAX, Duration::from_millis(500)).await?;
        for Stored { offset, record } in records {
            next = offset + 1;
            if record.headers.commit_us > 0 && offset < end {
                return Ok(Some((offset, record.headers.commit_us)));
            }
        }
    }
    Ok(None)
}
