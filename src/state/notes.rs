//! Small things, each kept as a text under a name.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::{StateError, Store, spelled::spelled};
use crate::{
    database::postgres::PgError,
    model::{Beyond, CascadeLink, TableName, Version},
};

/// Whether the script after the copy has run.
const AFTER_COPY: &str = "after_copy";
/// Where the clock was moved to that the source's log does not tell.
const MOVED_CLOCK: &str = "the clock was moved to";
/// What the target has from beyond its position, of a log that is lost.
const BEYOND: &str = "beyond the position";
/// The foreign keys of the source that change rows unseen.
const CASCADES: &str = "foreign keys that act unseen";
/// The tables that the target has had whole since capture began.
const WHOLE: &str = "tables that were copied whole";

spelled! {
    /// What is known of the script after the copy. Nothing is noted before one is configured.
    pub enum AfterCopy: "state of the script after the copy" {
        /// It is still to run.
        Pending = "pending",
        /// It is configured no longer, and has not run.
        None = "none",
        Done = "done",
    }
}

/// Notes that the script after the copy has run, in the transaction in which it ran.
pub(crate) async fn after_copy_has_run(client: &Client, pipeline: &str) -> Result<(), PgError> {
    client
        .execute("UPDATE cutover.notes SET value = 'done' WHERE pipeline = $1 AND key = 'after_copy'", &[&pipeline])
        .await?;
    Ok(())
}

impl Store {
    /// Notes that the script after the copy has run.
    pub(crate) async fn after_copy_done(&self) -> Result<(), StateError> {
        let session = self.session().await?;
        Ok(after_copy_has_run(session.client()?, &self.pipeline).await?)
    }

    /// Whether the script after the copy has run; none if none was ever configured.
    pub(crate) async fn after_copy(&self) -> Result<Option<AfterCopy>, StateError> {
        self.note(AFTER_COPY).await?.map(|noted| AfterCopy::read(&noted)).transpose()
    }

    /// Notes what is to become of the script after the copy.
    pub(crate) async fn set_after_copy(&self, state: AfterCopy) -> Result<(), StateError> {
        self.set_note(AFTER_COPY, state.name()).await
    }

    /// The version that the clock was moved to last without the source's log; 0 if it never was.
    pub(crate) async fn moved_clock(&self) -> Result<Version, StateError> {
        let noted = self.note(MOVED_CLOCK).await?;
        let read = noted.map(|noted| serde_json::from_str::<Version>(&noted)).transpose();
        Ok(read.map_err(|error| StateError::unreadable("where the clock was moved to", &error))?.unwrap_or_default())
    }

    /// Notes that the clock is moved to this version.
    pub(crate) async fn set_moved_clock(&self, to: Version) -> Result<(), StateError> {
        self.set_note(MOVED_CLOCK, &to.to_string()).await
    }

    /// What the target has from beyond its position, until capture has met it once more.
    pub(crate) async fn beyond(&self) -> Result<Option<Beyond>, StateError> {
        let noted = self.note(BEYOND).await?;
        let read = noted.map(|noted| serde_json::from_str::<Option<Beyond>>(&noted)).transpose();
        read.map(Option::flatten)
            .map_err(|error| StateError::unreadable("what was applied beyond the stored position", &error))
    }

    /// Notes what the target has from beyond its position.
    pub(crate) async fn set_beyond(&self, beyond: &Beyond) -> Result<(), StateError> {
        self.set_note(BEYOND, &serde_json::to_string(beyond)?).await
    }

    /// The target has nothing any more that the source may not have.
    pub(crate) async fn clear_beyond(&self) -> Result<(), StateError> {
        self.set_note(BEYOND, "null").await
    }

    /// The foreign keys of the source that change rows unseen, all that were ever found.
    pub async fn cascade_links(&self) -> Result<Vec<CascadeLink>, StateError> {
        let noted = self.note(CASCADES).await?;
        let read = noted.map(|noted| serde_json::from_str::<Vec<CascadeLink>>(&noted)).transpose();
        Ok(read.map_err(|error| StateError::unreadable("foreign keys of the source", &error))?.unwrap_or_default())
    }

    /// Notes which foreign keys of the source change rows unseen.
    pub async fn set_cascade_links(&self, links: &[CascadeLink]) -> Result<(), StateError> {
        self.set_note(CASCADES, &serde_json::to_string(links)?).await
    }

    /// The tables of which the target has had every row since capture began.
    pub(crate) async fn whole_tables(&self) -> Result<BTreeSet<String>, StateError> {
        let noted = self.note(WHOLE).await?;
        Ok(noted.and_then(|noted| serde_json::from_str(&noted).ok()).unwrap_or_default())
    }

    /// Notes of which tables the target has every row.
    pub(crate) async fn set_whole_tables(&self, tables: &BTreeSet<String>) -> Result<(), StateError> {
        self.set_note(WHOLE, &serde_json::to_string(tables)?).await
    }

    /// The columns that a copy without a transform had of a source table when it was planned last.
    pub(crate) async fn noted_columns(&self, source: &TableName) -> Result<Option<Vec<String>>, StateError> {
        let noted = self.note(&columns_of(source)).await?;
        Ok(noted.and_then(|noted| serde_json::from_str(&noted).ok()))
    }

    /// Notes which columns copies without a transform have of their source tables.
    pub(crate) async fn note_columns(&self, tables: &[(&TableName, &[String])]) -> Result<(), StateError> {
        let keys: Vec<String> = tables.iter().map(|(table, _)| columns_of(table)).collect();
        let values: Result<Vec<String>, _> = tables.iter().map(|(_, columns)| serde_json::to_string(columns)).collect();
        let session = self.session().await?;
        let noted = session
            .client()?
            .execute(
                "INSERT INTO cutover.notes (pipeline, key, value, updated_at) \
                 SELECT $1, n.key, n.value, clock_timestamp() FROM unnest($2::text[], $3::text[]) n(key, value) \
                 WHERE $4::bigint = 0 \
                    OR EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $4) \
                 ON CONFLICT (pipeline, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
                &[&self.pipeline, &keys, &values?, &self.led()],
            )
            .await?;
        if noted == 0 && !keys.is_empty() { Err(StateError::Superseded) } else { Ok(()) }
    }

    /// The numbers of a connector's lanes, as [`Store::set_connector_lanes`] has noted them for this log.
    pub(crate) async fn connector_lanes(&self, log_epoch: &str) -> Result<Option<String>, StateError> {
        self.note(log_epoch).await
    }

    /// Notes the numbers of a connector's lanes, as JSON.
    pub(crate) async fn set_connector_lanes(&self, log_epoch: &str, lanes: &str) -> Result<(), StateError> {
        self.set_note(log_epoch, lanes).await
    }

    /// A value that the pipeline keeps under a name.
    pub async fn note(&self, key: &str) -> Result<Option<String>, StateError> {
        let session = self.session().await?;
        let row = session
            .client()?
            .query_opt("SELECT value FROM cutover.notes WHERE pipeline = $1 AND key = $2", &[&self.pipeline, &key])
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Keeps a value under a name.
    pub async fn set_note(&self, key: &str, value: &str) -> Result<(), StateError> {
        let session = self.session().await?;
        let noted = session
            .client()?
            .execute(
                "INSERT INTO cutover.notes (pipeline, key, value, updated_at) SELECT $1, $2, $3, clock_timestamp() \
                 WHERE $4::bigint = 0 \
                    OR EXISTS (SELECT FROM cutover.lease WHERE pipeline = $1 AND role = 'worker' AND epoch = $4) \
                 ON CONFLICT (pipeline, key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
                &[&self.pipeline, &key, &value, &self.led()],
            )
            .await?;
        if noted == 0 { Err(StateError::Superseded) } else { Ok(()) }
    }
}

fn columns_of(source: &TableName) -> String {
    format!("columns of {source}")
}
