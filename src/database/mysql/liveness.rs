//! Sessions that the server no longer has.
//!
//! A scan waits for rows for as long as the server takes. Where something in between keeps the connection up though the
//! server's side of it is gone, that is for ever: so the session is looked for at the server, over another connection.

use std::time::Duration;

use mysql_async::prelude::Queryable;

use super::connect::Connector;

/// How often a session is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(45);
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Awaits what the session `id` is asked for; none if the server no longer has the session.
pub async fn answered<T>(connector: &Connector, id: u32, work: impl Future<Output = T>) -> Option<T> {
    let gone = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Ok(Some(false)) = tokio::time::timeout(ANSWER_MAX, is_there(connector, id)).await {
                return;
            }
        }
    };
    tokio::select! { biased; done = work => Some(done), () = gone => None }
}

/// Whether the server has the session; none if it cannot be asked.
async fn is_there(connector: &Connector, id: u32) -> Option<bool> {
    let mut conn = connector.connect().await.ok()?;
    // A user sees its own sessions without any privilege.
    let sql = format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id}");
    let found: Option<u64> = conn.query_first(sql).await.ok()?;
    drop(conn.disconnect().await);
    found.map(|found| found > 0)
}
