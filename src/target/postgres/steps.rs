//! Sending several statements before the first has answered.
//!
//! The server runs them in order, each with a snapshot of its own: a batch costs two round trips, one for
//! everything and one for the commit, and the lane's lock still comes before the snapshot that reads tombstones.
//! When one fails the rest of the transaction fails with it, so the first error is the one that counts.

use futures::future::join_all;
use tokio_postgres::{Client, Row, Statement, types::ToSql};

use super::failure::ABORTED;
use crate::database::postgres::PgError;

/// A parameter on its way.
pub type Param<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// A statement to send.
enum Step<'a> {
    /// Without parameters and rows.
    Simple(&'static str),
    Prepared(Statement, Vec<Param<'a>>),
}

impl Step<'_> {
    async fn run(self, client: &Client) -> Result<Vec<Row>, PgError> {
        match self {
            Step::Simple(sql) => {
                client.batch_execute(sql).await?;
                Ok(Vec::new())
            }
            Step::Prepared(statement, params) => {
                let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|param| param.as_ref() as _).collect();
                Ok(client.query(&statement, &params).await?)
            }
        }
    }
}

/// Statements to send together, each with a mark by which its answer is known.
pub struct Steps<'a, M> {
    queue: Vec<(M, Step<'a>)>,
}

impl<M> Default for Steps<'_, M> {
    fn default() -> Self {
        Steps { queue: Vec::new() }
    }
}

impl<'a, M> Steps<'a, M> {
    /// A statement without parameters and rows.
    pub fn simple(&mut self, mark: M, sql: &'static str) {
        self.queue.push((mark, Step::Simple(sql)));
    }

    /// A prepared statement: anything else would need a round trip of its own first, and lose its place.
    pub fn query(&mut self, mark: M, statement: Statement, params: Vec<Param<'a>>) {
        self.queue.push((mark, Step::Prepared(statement, params)));
    }

    /// Runs them in order; every answer, or the first failure.
    pub async fn run(self, client: &Client) -> Result<Vec<(M, Vec<Row>)>, PgError> {
        let (marks, steps): (Vec<M>, Vec<Step<'a>>) = self.queue.into_iter().unzip();
        let answers = join_all(steps.into_iter().map(|step| step.run(client))).await;
        let mut done = Vec::with_capacity(answers.len());
        let mut failed: Option<PgError> = None;
        for (mark, answer) in marks.into_iter().zip(answers) {
            match answer {
                Ok(rows) => done.push((mark, rows)),
                Err(error) if failed.as_ref().is_none_or(|first| first.sqlstate() == ABORTED) => failed = Some(error),
                Err(_) => {}
            }
        }
        failed.map_or(Ok(done), Err)
    }
}
