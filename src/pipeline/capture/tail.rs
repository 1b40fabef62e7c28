//! The end of the log behind the place where capture resumes: rows that a writer appended before it died, or what is
//! left of several partitions' records when some are lost.
//!
//! They are applied as any others are. The server that had them shows them again, with the same versions; after a
//! failover the new one may never have had them, and then nothing takes them back (rule 16). So they are expected by
//! the newest among them. **Invariant:** until they have come, no control record is written: it would be where the
//! next capture resumes, which would not know of them.

use bytes::Bytes;

use crate::{
    log::{Control, Headers, Log, LogError, Record, Topic},
    model::{Position, Version},
};

/// What is to come once more.
#[derive(Debug)]
pub(super) struct Tail {
    /// The newest of these rows.
    pub(super) newest: Newest,
    /// Where capture resumes, before them.
    pub(super) resumes: Position,
    /// Where the source's log ended when capture resumed.
    pub(super) end: Position,
}

/// A row by its version and its key: where commit times are seconds, another server's rows may have the same versions.
#[derive(Debug)]
pub(super) struct Newest {
    pub(super) version: Version,
    key: Bytes,
}

impl Newest {
    /// Whether this is a record of that row.
    pub(super) fn is(&self, record: &Record) -> bool {
        record.headers.version == self.version && record.key == self.key
    }
}

/// What a position of the source says of the rows that are to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// They may still come.
    Later,
    /// This server had them. They came, or are captured under other versions, as when tables were added meanwhile.
    Over,
    /// Another server, which has shown all that it had, and not them.
    Never,
}

impl Tail {
    /// What capture at `position`, with the clock at `clock`, says, if it has not met them.
    pub(super) fn at(&self, position: &Position, clock: Version) -> Coming {
        if clock < self.newest.version && !position.covers(&self.end) {
            Coming::Later
        } else if position.same_server(&self.resumes) {
            Coming::Over
        } else {
            Coming::Never
        }
    }
}

/// The newest row that the log has from after `clock`, where capture resumes; none if it has no such row.
pub(super) async fn newest(log: &dyn Log, clock: Version) -> Result<Option<Newest>, LogError> {
    let mut newest: Option<Newest> = None;
    for partition in 0..log.partitions() {
        let mut reaches_back = false;
        let mut look = |_, record: &Record| {
            let Headers { kind, version, .. } = record.headers;
            if kind.is_resumable() {
                let control: Option<Control> = serde_json::from_slice(&record.value).ok();
                reaches_back |= control.is_some_and(|control| control.clock <= clock);
            } else if kind.is_change() && version <= clock {
                reaches_back = true;
            } else if kind.is_change() && newest.as_ref().is_none_or(|newest| newest.version < version) {
                newest = Some(Newest { version, key: record.key.clone() });
            }
            reaches_back
        };
        log.look_back(Topic::Changes, partition, &mut look).await?;
    }
    Ok(newest)
}

/// Whether the log has changes of rows, wherever they came from.
pub(super) async fn has_rows(log: &dyn Log) -> Result<bool, LogError> {
    for partition in 0..log.partitions() {
        // What is gone was applied once.
        if log.bounds(Topic::Changes, partition).await?.0 > 0 {
            return Ok(true);
        }
        let mut has_rows = false;
        let mut look = |_, record: &Record| {
            has_rows |= record.headers.kind.is_change();
            has_rows
        };
        log.look_back(Topic::Changes, partition, &mut look).await?;
        if has_rows {
            return Ok(true);
        }
    }
    Ok(false)
}
