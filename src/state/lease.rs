//! The lease: one worker writes at a time.
//!
//! The lease is a row of the target. Whoever holds it writes its number, the *epoch*, which grows by
//! one with every new holder; every sink transaction checks it, so a worker that lost the lease without noticing
//! (paused, cut off) is refused by the target itself. A lease can be taken when it has run out, or
//! at once when the session that took it is gone, which is how a killed worker is replaced without a wait.
//!
//! Where several processes apply, the lease is that of the one that captures, and each of the others writes its
//! partitions under a number that it drew for them ([`draw`]). All numbers of a pipeline come from one row, so that
//! the newest is the highest.

use std::time::Duration;

use tokio_postgres::Client;

use super::{StateError, Store};
use crate::log::{Topic, config::PARTITIONS_MAX};

/// How long a lease lasts without being renewed. A killed worker on a dead host is replaced after this.
pub const LEASE_SECONDS: i64 = 10;
/// How often its holder renews it.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);

/// The purpose of the sessions that a replay writes with.
pub const REPLAY: &str = "replay";
/// The purpose of the sessions that remove what a copy has not met.
pub(crate) const SWEEP: &str = "sweep";

/// A lease that this process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub epoch: i64,
}

/// Who holds the lease instead.
#[derive(Debug, Clone, PartialEq)]
pub struct Holder {
    pub holder: String,
    /// Seconds until the lease runs out unless it is renewed.
    pub seconds_left: f64,
}

/// What came of asking for the lease.
#[derive(Debug)]
pub(crate) enum Taken {
    Lease(Lease),
    HeldBy(Holder),
    /// It was taken, and at once by another worker.
    Lost,
}

/// The role of the lease of who leads.
const LEADER: &str = "worker";

impl Store {
    /// Takes the lease, under an epoch above every number that was drawn.
    pub(crate) async fn take_lease(&self, holder: &str) -> Result<Taken, StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        let lease = match acquire(client, &self.pipeline, LEADER, holder).await? {
            Ok(lease) => lease,
            Err(other) => return Ok(Taken::HeldBy(other)),
        };
        Ok(raise(client, &self.pipeline, LEADER, lease).await?.map_or(Taken::Lost, Taken::Lease))
    }

    /// Ends the sessions of whoever held the lease before: those that write rows too, unless other processes apply.
    pub(crate) async fn end_predecessor(&self, applies: bool) -> Result<(), StateError> {
        let session = self.session().await?;
        let client = session.client()?;
        if applies {
            end_predecessor(client, &self.pipeline).await?;
        } else {
            end_predecessor_of_capture(client, &self.pipeline).await?;
        }
        Ok(())
    }

    /// Ends the sessions that write a partition of a topic.
    pub(crate) async fn end_sinks(&self, topic: Topic, part: u32) -> Result<(), StateError> {
        let session = self.session().await?;
        Ok(end_sinks(session.client()?, &self.pipeline, topic, part).await?)
    }

    /// Renews the lease; false if another worker has taken it.
    pub(crate) async fn renew_lease(&self, lease: Lease) -> Result<bool, StateError> {
        let session = self.session().await?;
        Ok(renew(session.client()?, &self.pipeline, LEADER, lease).await?)
    }

    /// Gives the lease up, so that the next worker need not wait.
    pub(crate) async fn release_lease(&self, lease: Lease) -> Result<(), StateError> {
        let session = self.session().await?;
        Ok(release(session.client()?, &self.pipeline, LEADER, lease).await?)
    }
}

/// Takes the lease of `pipeline` for `role`, or says who holds it.
pub async fn acquire(
    client: &Client,
    pipeline: &str,
    role: &str,
    holder: &str,
) -> Result<Result<Lease, Holder>, tokio_postgres::Error> {
    client
        .execute(
            "INSERT INTO cutover.lease (pipeline, role, holder, epoch, expires_at) \
             VALUES ($1, $2, '', 0, '-infinity') ON CONFLICT DO NOTHING",
            &[&pipeline, &role],
        )
        .await?;
    // `FOR UPDATE` of the one row serializes workers that start together.
    let taken = client
        .query_opt(
            "UPDATE cutover.lease l SET holder = $3, epoch = epoch + 1, \
                    expires_at = clock_timestamp() + make_interval(secs => $4::float8), \
                    backend_pid = pg_backend_pid(), \
                    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) \
             WHERE pipeline = $1 AND role = $2 AND (expires_at < clock_timestamp() OR NOT EXISTS ( \
                    SELECT 1 FROM pg_stat_activity a WHERE a.pid = l.backend_pid AND a.backend_start = l.backend_start)) \
             RETURNING epoch",
            &[&pipeline, &role, &holder, &(LEASE_SECONDS as f64)],
        )
        .await?;
    if let Some(row) = taken {
        return Ok(Ok(Lease { epoch: row.get(0) }));
    }
    let row = client
        .query_one(
            // Given up since, it ended at minus infinity, from which older servers cannot subtract.
            "SELECT holder, CASE WHEN isfinite(expires_at) THEN extract(epoch FROM expires_at - clock_timestamp())::float8 \
             ELSE 0 END FROM cutover.lease WHERE pipeline = $1 AND role = $2",
            &[&pipeline, &role],
        )
        .await?;
    Ok(Err(Holder { holder: row.get(0), seconds_left: row.get(1) }))
}

/// Draws a number higher than every number and lease before it.
pub async fn draw(client: &Client, pipeline: &str) -> Result<i64, tokio_postgres::Error> {
    let row = client
        .query_one(
            "INSERT INTO cutover.lease AS l (pipeline, role, holder, epoch, expires_at) \
             SELECT $1, 'numbers', '', coalesce(max(epoch), 0) + 1, '-infinity' FROM cutover.lease WHERE pipeline = $1 \
             ON CONFLICT (pipeline, role) DO UPDATE SET epoch = greatest(l.epoch + 1, excluded.epoch) RETURNING epoch",
            &[&pipeline],
        )
        .await?;
    row.try_get(0)
}

/// Lifts the epoch of a lease that was just taken above every number that was drawn; none if the lease is lost already.
pub async fn raise(
    client: &Client,
    pipeline: &str,
    role: &str,
    lease: Lease,
) -> Result<Option<Lease>, tokio_postgres::Error> {
    let epoch = draw(client, pipeline).await?;
    let raised = client
        .execute(
            "UPDATE cutover.lease SET epoch = $4 WHERE pipeline = $1 AND role = $2 AND epoch = $3",
            &[&pipeline, &role, &lease.epoch, &epoch],
        )
        .await?;
    Ok((raised == 1).then_some(Lease { epoch }))
}

/// Ends the sessions of whoever held the lease before. A worker that was paused or cut off inside a transaction keeps
/// its locks at the target for as long as the target believes in its connection.
pub async fn end_predecessor(client: &Client, pipeline: &str) -> Result<(), tokio_postgres::Error> {
    let lanes = (0..PARTITIONS_MAX).flat_map(|part| [Topic::Changes, Topic::Snapshot].map(|topic| (topic, part)));
    let mut names: Vec<String> = lanes.map(|(topic, part)| sink_name(pipeline, topic, part)).collect();
    names.extend(of_leader(pipeline));
    end(client, &names).await
}

/// As [`end_predecessor`], for a holder that leaves the applying to other processes.
pub async fn end_predecessor_of_capture(client: &Client, pipeline: &str) -> Result<(), tokio_postgres::Error> {
    end(client, &of_leader(pipeline)).await
}

/// The sessions that write rows for who leads alone.
fn of_leader(pipeline: &str) -> [String; 2] {
    [SWEEP, REPLAY].map(|purpose| session_name(pipeline, purpose))
}

/// Ends the sessions that write a partition of a topic.
pub async fn end_sinks(client: &Client, pipeline: &str, topic: Topic, part: u32) -> Result<(), tokio_postgres::Error> {
    end(client, &[sink_name(pipeline, topic, part)]).await
}

async fn end(client: &Client, names: &[String]) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND usename = current_user AND application_name = ANY($1)",
            &[&names],
        )
        .await?;
    Ok(())
}

/// What the sessions that write rows are called at the target.
pub fn sink_name(pipeline: &str, topic: Topic, part: u32) -> String {
    session_name(pipeline, &sink_purpose(topic, part))
}

/// What the sessions that write rows are for.
pub(crate) fn sink_purpose(topic: Topic, part: u32) -> String {
    format!("{} {part}", topic.suffix())
}

/// What a session is called at the target.
pub(crate) fn session_name(pipeline: &str, purpose: &str) -> String {
    format!("cutover {pipeline} {purpose}")
}

/// Renews the lease; false if another worker has taken it.
pub async fn renew(client: &Client, pipeline: &str, role: &str, lease: Lease) -> Result<bool, tokio_postgres::Error> {
    // The renewing session becomes the lease's session: a reconnect must not look like a death.
    let renewed = client
        .execute(
            "UPDATE cutover.lease SET expires_at = clock_timestamp() + make_interval(secs => $4::float8), \
                    backend_pid = pg_backend_pid(), \
                    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) \
             WHERE pipeline = $1 AND role = $2 AND epoch = $3",
            &[&pipeline, &role, &lease.epoch, &(LEASE_SECONDS as f64)],
        )
        .await?;
    Ok(renewed == 1)
}

/// Gives the lease up, so that the next worker need not wait.
pub async fn release(client: &Client, pipeline: &str, role: &str, lease: Lease) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "UPDATE cutover.lease SET expires_at = '-infinity' WHERE pipeline = $1 AND role = $2 AND epoch = $3",
            &[&pipeline, &role, &lease.epoch],
        )
        .await?;
    Ok(())
}
