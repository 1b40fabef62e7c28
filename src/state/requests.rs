//! What commands ask of the worker: rows in the target that it takes and answers.

use std::time::Duration;

use super::{StateError, Store, spelled::spelled};

/// How often the worker looks for requests.
pub const POLL_EVERY: Duration = Duration::from_secs(1);

spelled! {
    /// What can be asked for.
    pub enum Command: "request" {
        /// A table is copied again.
        Resnapshot = "resnapshot",
        RetryDeadLetters = "dlq retry",
        DiscardDeadLetters = "dlq discard",
        Replay = "replay",
        Repair = "verify --repair",
    }
}

spelled! {
    /// How far a request is.
    pub enum RequestState: "state of a request" {
        New = "new",
        Done = "done",
        /// The answer says why.
        Refused = "refused",
    }
}

/// A request that the worker has not finished.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub id: i64,
    /// Or what it is called, if this release does not know it.
    pub command: Result<Command, String>,
    /// What the command is about: a table's name.
    pub subject: String,
    /// Whatever else the command says, as JSON.
    pub arguments: serde_json::Value,
}

impl Store {
    /// Leaves a request about a subject; its number.
    pub async fn ask(&self, command: Command, subject: &str) -> Result<i64, StateError> {
        self.ask_with(command, &serde_json::json!({ "subject": subject })).await
    }

    /// Leaves a request; its number.
    pub async fn ask_with(&self, command: Command, arguments: &serde_json::Value) -> Result<i64, StateError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_one(
                "INSERT INTO cutover.requests (pipeline, command, arguments) VALUES ($1, $2, $3::text::jsonb) RETURNING id",
                &[&self.pipeline, &command.name(), &arguments.to_string()],
            )
            .await?;
        Ok(row.get(0))
    }

    /// The requests that nobody has answered.
    pub async fn open_requests(&self) -> Result<Vec<Request>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query(
                "SELECT id, command, coalesce(arguments ->> 'subject', ''), arguments::text FROM cutover.requests \
                 WHERE pipeline = $1 AND state = 'new' ORDER BY id",
                &[&self.pipeline],
            )
            .await?;
        let read = |row: &tokio_postgres::Row| Request {
            id: row.get(0),
            command: Command::read(row.get(1)).map_err(|_| row.get(1)),
            subject: row.get(2),
            arguments: serde_json::from_str(row.get(3)).unwrap_or_default(),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Answers a request: done, or refused with the reason.
    pub async fn answer(&self, id: i64, state: RequestState, text: &str) -> Result<(), StateError> {
        let session = self.session().await?;
        session
            .client()?
            .execute(
                "UPDATE cutover.requests SET state = $3, answer = to_jsonb($4::text), updated_at = now() \
                 WHERE pipeline = $1 AND id = $2",
                &[&self.pipeline, &id, &state.name(), &text],
            )
            .await?;
        Ok(())
    }

    /// A request's state and answer.
    pub async fn request_state(&self, id: i64) -> Result<(RequestState, String), StateError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_one(
                "SELECT state, coalesce(answer #>> '{}', '') FROM cutover.requests WHERE pipeline = $1 AND id = $2",
                &[&self.pipeline, &id],
            )
            .await?;
        Ok((RequestState::read(row.get(0))?, row.get(1)))
    }
}
