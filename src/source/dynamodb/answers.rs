//! How a shard answers: whether it has been read to its end.

use super::{BEGIN_MARGIN_US, api::RecordPage};

/// So many answers without records, one after another, mean that a shard has been read to its end: one alone may only
/// mean that there was a stretch without records. After records that are about as new as the answer, and from there on,
/// one is enough.
const QUIET_PAGES: u32 = 3;

/// How a shard answers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answers {
    /// Without records, since the last record.
    pub(super) empty: u32,
    /// When the last record was made.
    newest_us: Option<i64>,
    /// Whether it has been read to its end once.
    is_at_end: bool,
}

impl Answers {
    pub(super) fn take(&mut self, page: &RecordPage) {
        if let Some(record) = page.records.last() {
            (self.empty, self.newest_us) = (0, Some(record.created_us));
            return;
        }
        self.empty = self.empty.saturating_add(1);
        let age_us = page.date_us.zip(self.newest_us).map(|(date_us, newest_us)| date_us.saturating_sub(newest_us));
        self.is_at_end |= self.empty >= QUIET_PAGES || age_us.is_some_and(|age_us| age_us <= BEGIN_MARGIN_US);
    }

    /// Whether there was nothing more to read.
    pub(super) fn is_quiet(self) -> bool {
        self.is_at_end && self.empty > 0
    }
}
