//! Room for rows in memory, which stages share.
//!
//! Rows may be of any width: a stage takes room for what it holds by its bytes, and waits while there is none. What is
//! larger than all of it waits until it is alone, and then goes. Deliberately absent: who may wait for whom. A stage
//! that waits here must hold nothing that others need in order to come to their end.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What room is counted in.
const UNIT_BYTES: usize = 1 << 10;

/// A bounded number of bytes, for all clones together.
#[derive(Debug, Clone)]
pub struct Room {
    free: Arc<Semaphore>,
    units: u32,
}

/// Room that is taken, until this is dropped.
#[derive(Debug)]
pub struct Taken {
    _units: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for this many bytes.
    pub fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Room { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits for room, in the order of those who ask.
    pub async fn take(&self, bytes: usize) -> Taken {
        // The semaphore is never closed.
        Taken { _units: Arc::clone(&self.free).acquire_many_owned(self.units_of(bytes)).await.ok() }
    }

    /// Waits until there would be room, and leaves it.
    pub async fn wait(&self, bytes: usize) {
        drop(self.take(bytes).await);
    }

    /// Whether there is none left at all.
    pub fn is_full(&self) -> bool {
        self.free.available_permits() == 0
    }

    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.units)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn what_is_larger_than_the_room_goes_alone() {
        let room = Room::new(8 << 10);
        let small = room.take(1).now_or_never().expect("room");
        assert!(room.take(100 << 20).now_or_never().is_none(), "something is in the way");
        drop(small);
        let large = room.take(100 << 20).now_or_never().expect("alone");
        assert!(room.is_full() && room.take(1).now_or_never().is_none());
        drop(large);
        assert!(room.take(8 << 10).now_or_never().is_some());
    }

    #[test]
    fn those_who_ask_first_are_not_overtaken() {
        let room = Room::new(8 << 10);
        let half = room.take(4 << 10).now_or_never().expect("room");
        let mut large = Box::pin(room.take(8 << 10));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(room.take(1).now_or_never().is_none(), "a wide row would wait for ever behind narrow ones");
        drop(half);
        assert!(large.now_or_never().is_some());
    }
}
