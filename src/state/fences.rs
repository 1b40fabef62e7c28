//! What a replay leaves out: below a table's fence, its rows are out of date.

use std::collections::HashMap;

use super::{StateError, Store};
use crate::model::Version;

impl Store {
    /// What is kept out as out of date: by source table with its schema, the version below which it is.
    pub async fn fences(&self) -> Result<HashMap<String, Version>, StateError> {
        let session = self.session().await?;
        let rows = session
            .client()?
            .query("SELECT source_table, version FROM cutover.fences WHERE pipeline = $1", &[&self.pipeline])
            .await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}
