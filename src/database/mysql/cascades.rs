//! Foreign keys that change rows of children when a parent's row changes.

use mysql_async::{Conn, prelude::Queryable};

use super::connect::QueryError;
use crate::model::{CascadeLink, TableName};

/// Of the tables of a schema, their foreign keys with an action, column by column. Each of both sides names the schema,
/// and no condition says that it is the same: else MariaDB opens the tables of all databases, `sys` among them.
const KEYS: &str = "SELECT c.TABLE_NAME, c.CONSTRAINT_NAME, c.COLUMN_NAME, c.REFERENCED_TABLE_SCHEMA, \
     c.REFERENCED_TABLE_NAME, c.REFERENCED_COLUMN_NAME, r.DELETE_RULE, r.UPDATE_RULE \
     FROM information_schema.KEY_COLUMN_USAGE c JOIN information_schema.REFERENTIAL_CONSTRAINTS r \
       ON r.CONSTRAINT_NAME = c.CONSTRAINT_NAME AND r.TABLE_NAME = c.TABLE_NAME \
     WHERE c.TABLE_SCHEMA = ? AND r.CONSTRAINT_SCHEMA = ? AND c.REFERENCED_TABLE_NAME IS NOT NULL \
       AND (r.DELETE_RULE IN ('CASCADE', 'SET NULL') OR r.UPDATE_RULE IN ('CASCADE', 'SET NULL')) \
     ORDER BY c.TABLE_NAME, c.CONSTRAINT_NAME, c.ORDINAL_POSITION";

/// A row of [`KEYS`].
type KeyRow = (String, String, String, String, String, String, String, String);

/// The foreign keys with an action of the tables of this schema.
///
/// # Errors
/// When the catalog cannot be asked.
pub async fn load_cascades(conn: &mut Conn, schema: &str) -> Result<Vec<CascadeLink>, QueryError> {
    let rows: Vec<KeyRow> = conn
        .exec(KEYS, (schema, schema))
        .await
        .map_err(|error| QueryError::new("asking for foreign keys with actions", error))?;
    let mut links: Vec<(String, CascadeLink)> = Vec::new();
    for (table, name, column, parent_schema, parent, parent_column, on_delete, on_update) in rows {
        let child = TableName::new(schema, table);
        match links.last_mut() {
            Some((last, link)) if *last == name && link.child == child => {
                link.columns.push(column);
                link.parent_columns.push(parent_column);
            }
            Some(_) | None => {
                let acts = |rule: &str| rule.eq_ignore_ascii_case("CASCADE") || rule.eq_ignore_ascii_case("SET NULL");
                let link = CascadeLink {
                    child,
                    columns: vec![column],
                    parent: TableName::new(parent_schema, parent),
                    parent_columns: vec![parent_column],
                    on_delete: acts(&on_delete),
                    on_update: acts(&on_update),
                    carries_key: on_update.eq_ignore_ascii_case("CASCADE"),
                };
                links.push((name, link));
            }
        }
    }
    Ok(links.into_iter().map(|(_, link)| link).collect())
}
