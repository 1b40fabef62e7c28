//! Time and chance, which the loops are given and never take from the machine themselves: a simulation has its own.

#![expect(clippy::disallowed_methods, reason = "this is where time and chance come from")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest pause between two attempts at something that fails.
const PAUSE_MAX: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// What a loop may know of time and chance. Waiting goes by the runtime's clock, which a simulation pauses.
pub trait Environment: Send + Sync {
    /// Now, in microseconds since the Unix epoch.
    fn now_us(&self) -> i64;
    /// A number from 0 up to, and without, 1.
    fn fraction(&self) -> f64;
}

/// Now by the machine's clock, in microseconds since the Unix epoch: for what no simulation plays.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A number that nobody else has: for the names of logs, sessions and members.
pub fn unique() -> u64 {
    rand::random()
}

/// The machine's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Environment for Machine {
    fn now_us(&self) -> i64 {
        now_us()
    }

    fn fraction(&self) -> f64 {
        rand::random_range(0.0..1.0)
    }
}

/// Pauses between attempts, with jitter: each is up to twice the one before, and at most ten seconds.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { pause: PAUSE_MIN }
    }
}

impl Backoff {
    /// The next pause, after an attempt that lasted `lasted`. One that held for long begins anew.
    pub fn next(&mut self, environment: &dyn Environment, lasted: Duration) -> Duration {
        if lasted > PAUSE_MAX {
            self.pause = PAUSE_MIN;
        }
        let pause = self.pause.mul_f64((1.0 + environment.fraction()) / 2.0);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_something_held() {
        let mut backoff = Backoff::default();
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            last = backoff.next(&Machine, Duration::ZERO);
        }
        assert!(last >= PAUSE_MAX / 2 && last <= PAUSE_MAX, "{last:?}");
        assert!(backoff.next(&Machine, PAUSE_MAX * 2) <= PAUSE_MIN);
    }
}
