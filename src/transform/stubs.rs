//! Stand-ins for the source's tables, which the `SELECT`s under check read.
//!
//! They are views, as a view may have columns with the names that every table of PostgreSQL keeps for itself (`xmin`).

use std::{collections::BTreeMap, sync::Arc};

use super::{Diagnostic, check::Checker};
use crate::{
    database::postgres::{PgError, sql},
    model::{TableName, TableSchema},
};

impl Checker<'_> {
    /// Makes a stub for each source table that can have one; what keeps the others from it is a problem of theirs.
    pub(super) async fn create_stubs(&mut self) -> Result<(), PgError> {
        let mut names: BTreeMap<String, TableName> = BTreeMap::new();
        for source in self.sources {
            let table = &source.table;
            let name = sql::cut(&table.table).to_owned();
            if let Some(other) = names.get(&name) {
                self.checked.problems.push(alike(other, table));
                continue;
            }
            names.insert(name, table.clone());
            let Some(columns) = self.columns_of(source) else { continue };
            let create = format!("SAVEPOINT stub; CREATE TEMPORARY VIEW {} AS {columns}", sql::ident(&table.table));
            if let Err(error) = self.client.batch_execute(&create).await.map_err(PgError::from) {
                let Some(refusal) = error.refusal() else { return Err(error) };
                let message = format!("source table {table}: {refusal}");
                self.checked.problems.push(Diagnostic::error(message).hint(
                    "the target must know the table's types, and its user needs the TEMPORARY privilege on the database",
                ));
                self.client.batch_execute("ROLLBACK TO stub").await?;
                continue;
            }
            self.client.batch_execute("RELEASE stub").await?;
            let stub = format!("pg_temp.{}", sql::ident(&table.table));
            let oid: u32 = self.client.query_one("SELECT $1::text::regclass::oid", &[&stub]).await?.try_get(0)?;
            self.stubs.insert(oid, Arc::clone(source));
        }
        Ok(())
    }

    /// The `SELECT` behind a stub; none if a transform could not tell two of the columns apart.
    fn columns_of(&mut self, source: &TableSchema) -> Option<String> {
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        let mut columns = Vec::new();
        for column in &source.columns {
            match names.insert(sql::cut(&column.name), &column.name) {
                None => columns.push(format!("NULL::{} AS {}", column.column_type.sql(), sql::ident(&column.name))),
                // Nothing is made of its rows in any case.
                Some(_) if self.refused.contains(&source.table) => {}
                Some(other) => {
                    let message = format!(
                        "source table {}: its columns `{other}` and `{}` are alike in their first 63 bytes, where \
                         PostgreSQL cuts names",
                        source.table, column.name
                    );
                    let hint = "rename one at the source, or leave the table out of [source] tables";
                    self.checked.problems.push(Diagnostic::error(message).hint(hint));
                    return None;
                }
            }
        }
        Some(format!("SELECT {}", columns.join(", ")))
    }
}

fn alike(one: &TableName, other: &TableName) -> Diagnostic {
    if one.table == other.table {
        let message =
            format!("two source tables are called `{}`, and a transform could not tell them apart", one.table);
        return Diagnostic::error(message).hint("run a pipeline for each schema");
    }
    let message = format!(
        "source tables {one} and {other} are alike in the first 63 bytes of their names, where PostgreSQL cuts them, and a \
         transform could not tell them apart"
    );
    let hint = "move one of them by a pipeline of its own ([source] tables names the tables of a pipeline), or rename it at the \
                source";
    Diagnostic::error(message).hint(hint)
}
