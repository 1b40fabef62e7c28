//! Sessions at the source that are asked for one thing after the other: what a table looks like, where the log ends.
//!
//! Copies of many small tables ask such things hundreds of times, and a login costs the server more than an answer.
//! **Invariant:** a session is used again for a second at most, so that after a failover the server is asked that the
//! name leads to; one that has failed is not used again. Deliberately absent: what is asked.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// How long a session is used after it was opened.
const USED_FOR: Duration = Duration::from_secs(1);

/// Sessions that nobody asks at the moment.
pub(super) struct Asked<T> {
    idle: Arc<Mutex<Vec<Kept<T>>>>,
}

/// A session, and until when it may be used.
pub(super) struct Kept<T> {
    pub(super) session: T,
    until: Instant,
}

impl<T> Kept<T> {
    /// One that has just been opened.
    fn new(session: T) -> Self {
        Kept { session, until: Instant::now() + USED_FOR }
    }
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Asked { idle: Arc::default() }
    }
}

impl<T> fmt::Debug for Asked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Asked<T> {
    /// A session to ask over: one that may be asked once more, or what `open` gives.
    pub(super) async fn session<E>(&self, open: impl Future<Output = Result<T, E>>) -> Result<Kept<T>, E> {
        match self.take() {
            Some(kept) => Ok(kept),
            None => Ok(Kept::new(open.await?)),
        }
    }

    /// A session that may be asked once more, if there is one.
    fn take(&self) -> Option<Kept<T>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|kept| kept.until > Instant::now());
        idle.pop()
    }

    /// Keeps a session that has answered. It ends when its time is over.
    pub(super) fn keep(&self, kept: Kept<T>) {
        let until = kept.until;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        let idle = Arc::downgrade(&self.idle);
        tokio::spawn(async move {
            sleep_until(until).await;
            if let Some(idle) = idle.upgrade() {
                idle.lock().unwrap_or_else(PoisonError::into_inner).retain(|kept| kept.until > until);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says how many of it there are.
    fn session() -> Arc<()> {
        Arc::new(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_asked_again_for_a_second_and_then_ends() {
        let (asked, session) = (Asked::default(), session());
        asked.keep(Kept::new(Arc::clone(&session)));
        tokio::time::sleep(USED_FOR / 2).await;
        let kept = asked.take().expect("it is there");
        assert!(asked.take().is_none(), "it is with the one who asks");
        asked.keep(kept);
        tokio::time::sleep(USED_FOR / 2 + Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&session), 1, "it has ended by itself");
        assert!(asked.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_has_answered_late_is_not_asked_again() {
        let asked = Asked::default();
        let kept = Kept::new(session());
        tokio::time::sleep(USED_FOR).await;
        asked.keep(kept);
        assert!(asked.take().is_none());
    }
}
