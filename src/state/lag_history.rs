//! The lag over time, coarse, for the report of a migration.
//!
//! The leader adds a figure a second. A point is one step of time: the highest lag in it, and what had been applied at
//! its end. **Invariant:** never more than [`POINTS_MAX`] points; when there would be, steps become twice as long, so
//! that an hour and a year take the same room.

use serde::{Deserialize, Serialize};

use super::{StateError, Store};

/// Points that are kept.
pub const POINTS_MAX: usize = 720;
/// The first step, in seconds.
const STEP_SECONDS: i64 = 10;
/// The note with the history.
const HISTORY: &str = "lag over time";

/// The lag over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LagHistory {
    step_seconds: i64,
    points: Vec<LagPoint>,
}

/// One step of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LagPoint {
    /// When the step began, seconds since the Unix epoch.
    pub at_seconds: i64,
    /// The highest lag in it.
    pub lag_seconds: f64,
    /// Changes that had been applied by its end, since the pipeline began.
    pub changes: u64,
}

impl Default for LagHistory {
    fn default() -> Self {
        LagHistory { step_seconds: STEP_SECONDS, points: Vec::new() }
    }
}

impl LagHistory {
    /// Seconds that a point stands for.
    pub fn step_seconds(&self) -> i64 {
        self.step_seconds
    }

    /// The points, the oldest first. A step in which no worker ran has none.
    pub fn points(&self) -> &[LagPoint] {
        &self.points
    }

    /// Adds what is known now; whether a step begins with it.
    pub fn add(&mut self, now_us: i64, lag_seconds: f64, changes: u64) -> bool {
        let newest = LagPoint { at_seconds: self.step_of(now_us.div_euclid(1_000_000)), lag_seconds, changes };
        // A clock that was set back stays in the step that it had reached.
        if let Some(last) = self.points.last_mut().filter(|last| last.at_seconds >= newest.at_seconds) {
            last.take_in(&newest);
            return false;
        }
        self.points.push(newest);
        while self.points.len() > POINTS_MAX {
            self.halve();
        }
        true
    }

    fn step_of(&self, seconds: i64) -> i64 {
        seconds.div_euclid(self.step_seconds) * self.step_seconds
    }

    fn halve(&mut self) {
        self.step_seconds *= 2;
        let mut points: Vec<LagPoint> = Vec::with_capacity(self.points.len() / 2 + 1);
        for point in std::mem::take(&mut self.points) {
            let point = LagPoint { at_seconds: self.step_of(point.at_seconds), ..point };
            match points.last_mut().filter(|last| last.at_seconds == point.at_seconds) {
                Some(last) => last.take_in(&point),
                None => points.push(point),
            }
        }
        self.points = points;
    }
}

impl LagPoint {
    /// When the step began, µs since the Unix epoch.
    pub fn at_us(&self) -> i64 {
        self.at_seconds.saturating_mul(1_000_000)
    }

    fn take_in(&mut self, newer: &LagPoint) {
        self.lag_seconds = self.lag_seconds.max(newer.lag_seconds);
        self.changes = newer.changes;
    }
}

impl Store {
    /// The lag since the pipeline began.
    pub async fn lag_history(&self) -> Result<LagHistory, StateError> {
        let noted = self.note(HISTORY).await?;
        // What another release noted is not worth an error.
        Ok(noted.and_then(|noted| serde_json::from_str(&noted).ok()).unwrap_or_default())
    }

    /// Keeps the lag since the pipeline began.
    pub(crate) async fn set_lag_history(&self, history: &LagHistory) -> Result<(), StateError> {
        self.set_note(HISTORY, &serde_json::to_string(history)?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn a_point_is_the_highest_lag_of_its_step() {
        let mut history = LagHistory::default();
        let began: Vec<bool> = [(0, 1.0), (4, 7.0), (9, 2.0), (10, 3.0), (5, 9.0)]
            .map(|(at, lag)| history.add(at * SECOND, lag, 5))
            .into();
        assert_eq!(began, [true, false, false, true, false]);
        let points: Vec<(i64, f64)> = history.points().iter().map(|p| (p.at_seconds, p.lag_seconds)).collect();
        assert_eq!(points, [(0, 7.0), (10, 9.0)]);
    }

    #[test]
    fn years_take_no_more_room_than_hours_and_keep_their_peak() {
        let mut history = LagHistory::default();
        let steps: u64 = 50_000;
        for step in 0..steps {
            let lag = if step == 777 { 99.0 } else { 0.5 };
            history.add(step.cast_signed() * STEP_SECONDS * SECOND, lag, step);
            assert!(history.points().len() <= POINTS_MAX);
        }
        assert_eq!(history.step_seconds(), STEP_SECONDS * 128);
        let highest = history.points().iter().map(|point| point.lag_seconds).fold(0.0, f64::max);
        assert_eq!((highest, history.points().last().map(|point| point.changes)), (99.0, Some(steps - 1)));
        let apart = history.points().windows(2).map(|two| two[1].at_seconds - two[0].at_seconds);
        assert!(apart.into_iter().all(|apart| apart == history.step_seconds()));
    }
}
