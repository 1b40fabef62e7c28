//! Sessions that the server no longer has.
//!
//! TCP notices a peer that is gone, but not where something in between (a load balancer, a tunnel) keeps its side of
//! the connection up: an answer is then waited for without end. So each session is looked for at the server now and
//! then, over another connection, and given up when the server says that it is not there. Deliberately absent: a bound
//! on how long an answer may take. Statements have one at the server, and a server that cannot be asked may be slow.

use std::time::Duration;

use tokio_postgres::Client;

use super::{Address, Options, PgError, connect};
use crate::observe::{Environment as _, Machine};

/// How often a session is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(45);

/// A session as the server knows it; a process number alone comes back after a restart.
pub(super) struct SessionIdentity {
    pid: i32,
    started: String,
}

pub(super) async fn identity(client: &Client) -> Result<SessionIdentity, PgError> {
    let sql = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let row = client.query_one(sql, &[]).await?;
    Ok(SessionIdentity { pid: row.try_get(0)?, started: row.try_get(1)? })
}

/// Ends when the server has said that the session is gone.
pub(super) async fn gone(target: &Address, options: &Options, session: &SessionIdentity) {
    loop {
        // Sessions that were opened together need not be looked for together.
        tokio::time::sleep(LOOK_EVERY.mul_f64((1.0 + Machine.fraction()) / 2.0)).await;
        if let Ok(false) = connect::timely(is_there(target, options, session)).await {
            return;
        }
    }
}

async fn is_there(target: &Address, options: &Options, session: &SessionIdentity) -> Result<bool, PgError> {
    let options = Options { application_name: format!("{} watch", options.application_name), ..options.clone() };
    let (client, connection) = connect::connect(target, &options).await?;
    let asking = async {
        client.batch_execute("SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'").await?;
        let sql = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2";
        let found = client.query_opt(sql, &[&session.pid, &session.started]).await?;
        Ok::<bool, PgError>(found.is_some())
    };
    // The connection ends with the answer.
    tokio::select! {
        biased;
        found = asking => found,
        () = connection => Err(PgError::Unreachable("the server closed the connection".into())),
    }
}
