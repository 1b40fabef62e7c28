//! What every test stands on: servers (`mysql`, `postgres`), the built binary (`worker`), and bounded waiting.
//!
//! Nothing here knows cutover's own modules: a test that compares databases must not trust the code it tests.

mod dynamo;
mod http;
mod kafka;
mod mysql;
mod own;
mod postgres;
mod server;
mod worker;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

pub use dynamo::{Dynamo, plain_item};
pub use kafka::Kafka;
pub use mysql::Mysql;
pub use own::Own;
pub use postgres::Postgres;
pub use server::tls_ca;
#[allow(unused_imports, reason = "the tests of the command line are the users")]
pub use worker::{Worker, Workspace};

/// One answer of a server: rows of columns as text, `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;

const POLL_EVERY: Duration = Duration::from_millis(50);

/// Asks until the answer is yes. A check that hangs counts against the same limit.
#[allow(dead_code, reason = "the tests of the pipeline are the users")]
pub async fn eventually(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    loop {
        match timeout_at(deadline, check()).await {
            Ok(true) => return,
            Ok(false) if Instant::now() < deadline => sleep(POLL_EVERY).await,
            Ok(false) | Err(_) => panic!("{what}: not within {limit:?}"),
        }
    }
}
