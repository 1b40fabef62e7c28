//! A session on the target's `cutover` schema that opens again after it broke.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use tokio::sync::{Mutex, MutexGuard};

use super::StateError;
use crate::database::postgres::{Address, Options, PgError, Session};

/// What state is kept under: the pipeline's name, and the target's where there are several. Neither has a `/` in it.
pub fn key(pipeline: &str, target: Option<&str>) -> String {
    target.map_or_else(|| pipeline.to_owned(), |target| format!("{pipeline}/{target}"))
}

/// The pipeline's state in the target.
#[derive(Debug)]
pub struct Store {
    pub pipeline: String,
    target: Address,
    options: Options,
    session: Mutex<Option<Session>>,
    /// The epoch of the lease that this process leads with; 0 before it has led.
    led: Arc<AtomicI64>,
}

/// An open session, for as long as it is held.
#[derive(Debug)]
pub struct OpenSession<'a>(MutexGuard<'a, Option<Session>>);

impl OpenSession<'_> {
    /// The session's client.
    pub fn client(&self) -> Result<&tokio_postgres::Client, StateError> {
        let session = self.0.as_ref().ok_or_else(|| PgError::Unreachable("the session closed".into()))?;
        Ok(&session.client)
    }
}

impl Store {
    pub fn new(pipeline: &str, target: Address, options: Options) -> Self {
        Store { pipeline: pipeline.to_owned(), target, options, session: Mutex::new(None), led: Arc::default() }
    }

    /// The same, over a session of its own, which is opened when it is needed.
    pub(super) fn beside(&self) -> Self {
        Store {
            pipeline: self.pipeline.clone(),
            target: self.target.clone(),
            options: self.options.clone(),
            session: Mutex::new(None),
            led: Arc::clone(&self.led),
        }
    }

    /// Whether nobody is at its session at this moment.
    pub(super) fn is_free(&self) -> bool {
        self.session.try_lock().is_ok()
    }

    /// From now on this process leads, with the lease of this epoch: once another one does, nothing is noted any more.
    /// A process that slept through the end of its lease would else note what was true when it fell asleep.
    pub fn leads(&self, epoch: i64) {
        self.led.store(epoch, Ordering::Relaxed);
    }

    /// Whether this process has held the lease.
    pub fn has_led(&self) -> bool {
        self.led() != 0
    }

    /// The lease that notes are written under; 0 for a process that has not led.
    pub(super) fn led(&self) -> i64 {
        self.led.load(Ordering::Relaxed)
    }

    /// The session, opened first if it is not.
    pub async fn session(&self) -> Result<OpenSession<'_>, StateError> {
        let mut session = self.session.lock().await;
        if session.as_ref().is_none_or(|session| session.client.is_closed()) {
            *session = Some(Session::open(&self.target, &self.options).await?);
        }
        Ok(OpenSession(session))
    }

    /// Closes the session; what it held goes with it.
    pub async fn close(&self) {
        *self.session.lock().await = None;
    }

    /// A time as people write it, in µs since the Unix epoch; none if it is no time.
    pub async fn time_us(&self, text: &str) -> Result<Option<i64>, StateError> {
        let session = self.session().await?;
        let sql = "SELECT (extract(epoch FROM $1::text::timestamptz) * 1000000)::bigint";
        match session.client()?.query_one(sql, &[&text]).await.map_err(PgError::from) {
            Ok(row) => Ok(row.get(0)),
            Err(PgError::Refused(refusal)) if refusal.sqlstate.starts_with("22") => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// µs since the Unix epoch as people write a time, in UTC.
    pub async fn spelled_time(&self, at_us: i64) -> Result<String, StateError> {
        let session = self.session().await?;
        let sql =
            "SELECT to_char(to_timestamp($1::bigint / 1000000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
        Ok(session.client()?.query_one(sql, &[&at_us]).await?.get(0))
    }
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn a_target_without_a_name_keeps_the_key_that_the_pipeline_had() {
        assert_eq!(key("cart", None), "cart");
        assert_eq!(key("cart", Some("search")), "cart/search");
    }
}
