//! Halts: what stopped, why, and what an operator does about it.
//!
//! A halted part of the worker stays up and says so; the others go on where that is safe.

use std::{collections::BTreeMap, sync::Mutex};

use crate::model::Problem;

/// The command that a remedy names which copies a table again.
const RESNAPSHOT: &str = "cutover resnapshot";
const NOT_COPIED_BACK: &str = "do not copy any table again while users write to the target: that would bring back what the source had. \
                               Bring what was changed at the target since then to the source by hand, with this way back \
                               taken out of the configuration ([reverse])";

/// The parts of a worker that are halted or that wait for something, by name (`capture`, `apply`, `snapshot`).
#[derive(Debug, Default)]
pub struct Halts {
    /// It is a way back's, where no copy of a table mends anything.
    copies_nothing: bool,
    halted: Mutex<BTreeMap<String, Problem>>,
    troubled: Mutex<BTreeMap<String, String>>,
}

impl Halts {
    /// Of a worker that copies nothing, if it is one.
    pub fn of(copies_nothing: bool) -> Self {
        Halts { copies_nothing, ..Halts::default() }
    }

    /// Notes that `part` has stopped for good.
    pub fn halt(&self, part: &str, halt: Problem) {
        let needs_copy = self.copies_nothing && halt.fix.contains(RESNAPSHOT);
        let halt = if needs_copy { Problem::new(halt.what, NOT_COPIED_BACK) } else { halt };
        tracing::error!(part, reason = %halt.what, remedy = %halt.fix, "halted");
        self.lock(&self.halted).insert(part.to_owned(), halt);
    }

    /// Notes that what `part` halted for is repaired.
    pub fn lift(&self, part: &str) {
        if self.lock(&self.halted).remove(part).is_some() {
            tracing::info!(part, "no longer halted");
        }
    }

    /// The first halt, if any.
    pub fn first(&self) -> Option<Problem> {
        self.lock(&self.halted).values().next().cloned()
    }

    /// Notes that `part` is retrying, and what it waits for; logged when that changes.
    pub fn trouble(&self, part: &str, what: &str) {
        let previous = self.lock(&self.troubled).insert(part.to_owned(), what.to_owned());
        if previous.as_deref() != Some(what) {
            tracing::warn!(part, what, "retrying");
        }
    }

    /// Notes that `part` works again.
    pub fn well(&self, part: &str) {
        if self.lock(&self.troubled).remove(part).is_some() {
            tracing::info!(part, "recovered");
        }
    }

    /// What is being retried, by part.
    pub fn troubles(&self) -> BTreeMap<String, String> {
        self.lock(&self.troubled).clone()
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
