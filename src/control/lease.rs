//! The lease: one worker writes at a time.
//!
//! The lease is a row of the target. Whoever holds it writes its number, the *epoch*, which grows by
//! one with every new holder; every sink transaction checks it, so a worker that lost the lease without noticing
//! (paused, cut off) is refused by the target itself. A lease can be taken when it has run out, or
//! at once when the session that took it is gone, which is how a killed worker is replaced without a wait.

use std::time::Duration;

use tokio_postgres::Client;

use crate::log::Topic;

/// How long a lease lasts without being renewed. A killed worker on a dead host is replaced after this.
pub const LEASE_SECONDS: i64 = 10;
/// How often its holder renews it.
pub const RENEW_EVERY: Duration = Duration::from_secs(3);

/// The purpose of the sessions that a replay writes with.
pub const REPLAY: &str = "replay";

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

/// Ends the sink sessions of whoever held the lease before. A worker that was paused or cut off inside a transaction keeps its
/// locks at the target for as long as the target believes in its connection.
pub async fn end_predecessor(client: &Client, pipeline: &str) -> Result<(), tokio_postgres::Error> {
    let mut names: Vec<String> = [Topic::Changes, Topic::Snapshot].map(|topic| sink_name(pipeline, topic)).into();
    names.push(format!("cutover {pipeline} {REPLAY}"));
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
pub fn sink_name(pipeline: &str, topic: Topic) -> String {
    format!("cutover {pipeline} {}", topic.suffix())
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
