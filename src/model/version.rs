//! Versions, and the hybrid clock that makes them.
//!
//! A version is microseconds since the Unix epoch, but it orders changes rather than telling the
//! time: `max(previous + 1, commit time)`, one tick per row change of the source's log, watched
//! table or not. The clock's state is stored with every position, so that capturing again from a
//! stored position gives every change the version that it had before.

use super::Problem;

/// The version of a row: microseconds since the Unix epoch, strictly increasing along a source's log.
pub type Version = i64;

/// The hybrid logical clock over a source's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    last: Version,
    ahead_max_us: i64,
}

/// A commit time that the clock refuses.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}", self.problem())]
pub enum ClockError {
    TooFarAhead { commit_us: i64, ahead_us: i64 },
}

impl ClockError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        let ClockError::TooFarAhead { commit_us, ahead_us } = self;
        let ahead_s = ahead_us / 1_000_000;
        Problem::new(
            format!(
                "the source committed at {commit_us} µs, which is {ahead_s} s ahead of this machine's clock: a version from the \
                 future would beat every later change"
            ),
            format!(
                "set the source's clock (or the session's TIMESTAMP) right, or raise [source] clock_ahead_max_seconds above \
                 {ahead_s} and start again"
            ),
        )
    }
}

impl Clock {
    /// A clock that continues from `last`, the highest version given out so far (0 for none), and
    /// refuses commit times more than `ahead_max_us` microseconds ahead of now.
    pub fn new(last: Version, ahead_max_us: i64) -> Self {
        Clock { last, ahead_max_us }
    }

    /// The highest version given out.
    pub fn last(&self) -> Version {
        self.last
    }

    /// Raises the clock to at least `floor`; true if that changed it (the caller logs and stores it).
    pub fn raise(&mut self, floor: Version) -> bool {
        let raised = floor > self.last;
        self.last = self.last.max(floor);
        raised
    }

    /// Refuses a commit time further ahead of `now_us` than the bound (rule 3).
    pub fn check(&self, commit_us: i64, now_us: i64) -> Result<(), ClockError> {
        let ahead_us = commit_us.saturating_sub(now_us);
        if ahead_us > self.ahead_max_us { Err(ClockError::TooFarAhead { commit_us, ahead_us }) } else { Ok(()) }
    }

    /// The version of the next row change, committed at `commit_us`.
    pub fn tick(&mut self, commit_us: i64) -> Version {
        self.last = self.last.saturating_add(1).max(commit_us);
        self.last
    }

    /// Ticks `rows` times at once and returns the first of the versions given out: a row event of a
    /// table that is not watched moves the clock exactly as if it were.
    pub fn tick_many(&mut self, commit_us: i64, rows: u64) -> Version {
        if rows == 0 {
            return self.last;
        }
        let first = self.tick(commit_us);
        self.last = self.last.saturating_add_unsigned(rows - 1);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_increase_within_one_commit_time_and_follow_it_when_it_moves_on() {
        let mut clock = Clock::new(0, 60_000_000);
        assert_eq!(clock.tick(1_000_000), 1_000_000);
        assert_eq!(clock.tick(1_000_000), 1_000_001);
        assert_eq!(clock.tick(999_000), 1_000_002);
        assert_eq!(clock.tick(2_000_000), 2_000_000);
    }

    #[test]
    fn skipping_the_rows_of_an_unwatched_table_moves_the_clock_as_watching_it_would() {
        let (mut watched, mut skipped) = (Clock::new(7, 0), Clock::new(7, 0));
        for _ in 0..5 {
            watched.tick(3);
        }
        assert_eq!(skipped.tick_many(3, 5), 8);
        assert_eq!(skipped, watched);
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_refused_with_the_way_out() {
        let clock = Clock::new(0, 60_000_000);
        assert_eq!(clock.check(160_000_000, 100_000_000), Ok(()));
        let error = clock.check(160_000_001, 100_000_000).expect_err("beyond the bound");
        assert!(error.to_string().contains("clock_ahead_max_seconds"));
    }
}
