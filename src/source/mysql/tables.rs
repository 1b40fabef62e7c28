//! The watched tables: their schema at the reader's point of the log, and what the log's table ids stand for.
//!
//! The catalog shows the present, the log the past. A schema is therefore held against every table map, and replaced
//! only when a DDL statement passed or the map does not fit. A catalog that is already ahead of the log still helps
//! where the event names its columns (`binlog_row_metadata = FULL`), or where it only has more columns at the end; what
//! neither knows any more, such an event may describe itself.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    binlog::{DecodeError, DecodeOptions, RowDecoder, SchemaMismatch, TableMap, TableMapBody},
    described,
};
use crate::model::{Column, TableName, TableSchema};

/// Table ids are new after every DDL and restart of the server: beyond this many the old ones are forgotten.
const MAPS_MAX: usize = 4096;

/// What a table id stands for.
#[derive(Debug)]
pub(super) struct Mapped {
    bytes: Vec<u8>,
    pub(super) map: TableMap,
    /// None for a table that is not watched.
    pub(super) decoder: Option<RowDecoder>,
}

#[derive(Debug)]
struct Watched {
    schema: Arc<TableSchema>,
    /// A DDL statement has passed: the catalog is asked at the next table map.
    stale: bool,
    /// Not captured: its changes are read for what they do to the children of its rows.
    only_followed: bool,
}

/// The tables of a reader.
#[derive(Debug)]
pub(super) struct Tables {
    /// By the name that the server compares.
    watched: HashMap<TableName, Watched>,
    maps: HashMap<u64, Mapped>,
    options: DecodeOptions,
    /// The server compares names of tables without regard to case (`lower_case_table_names` is not 0).
    names_fold: bool,
}

/// What becomes of a table map.
#[derive(Debug)]
pub(super) enum Mapping {
    Known,
    /// The table's present schema is needed, for [`Tables::bind`].
    NeedsCatalog(Box<PendingMap>),
}

/// A table map whose schema is not known yet.
#[derive(Debug)]
pub(super) struct PendingMap {
    bytes: Vec<u8>,
    map: TableMap,
    pub(super) table: TableName,
}

/// No schema that is known fits the event.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    #[error(transparent)]
    Mismatch(#[from] SchemaMismatch),
    #[error("{0} is in the binlog and no longer in the catalog")]
    Gone(TableName),
    #[error("{0} has no primary key and no unique key without nulls any more")]
    NoKey(TableName),
    #[error("the rows of {0} are told apart by other columns than before")]
    OtherKey(TableName),
}

impl Tables {
    pub(super) fn new(
        schemas: impl IntoIterator<Item = Arc<TableSchema>>,
        options: DecodeOptions,
        names_fold: bool,
    ) -> Self {
        let mut tables = Tables { watched: HashMap::new(), maps: HashMap::new(), options, names_fold };
        for schema in schemas {
            let name = tables.compared(&schema.table);
            tables.watched.insert(name, Watched { schema, stale: false, only_followed: false });
        }
        tables
    }

    /// A table's name as the server compares it.
    pub(super) fn compared(&self, table: &TableName) -> TableName {
        if self.names_fold {
            TableName::new(table.schema.to_lowercase(), table.table.to_lowercase())
        } else {
            table.clone()
        }
    }

    /// Reads the changes of a table that is not captured, from now on.
    pub(super) fn follow(&mut self, schema: Arc<TableSchema>) {
        let name = self.compared(&schema.table);
        self.watched.entry(name).or_insert(Watched { schema, stale: false, only_followed: true });
        // What stood for a table that nobody read has no decoder.
        self.maps.retain(|_, mapped| mapped.decoder.is_some());
    }

    fn captured(&self, table: &TableName) -> Option<&Watched> {
        self.watched.get(&self.compared(table)).filter(|watched| !watched.only_followed)
    }

    pub(super) fn schema(&self, table: &TableName) -> Option<&Arc<TableSchema>> {
        self.captured(table).map(|watched| &watched.schema)
    }

    pub(super) fn watches(&self, table: &TableName) -> bool {
        self.captured(table).is_some()
    }

    /// Whether changes of the table's rows are read, captured or not.
    pub(super) fn reads(&self, table: &TableName) -> bool {
        self.watched.contains_key(&self.compared(table))
    }

    pub(super) fn watches_database(&self, database: &str) -> bool {
        let database = self.compared(&TableName::new(database, "")).schema;
        self.watched.iter().any(|(table, watched)| table.schema == database && !watched.only_followed)
    }

    /// The watched tables.
    pub(super) fn watched(&self) -> impl Iterator<Item = &TableName> {
        self.watched.values().filter(|watched| !watched.only_followed).map(|watched| &watched.schema.table)
    }

    /// A DDL statement passed.
    pub(super) fn changed(&mut self, table: &TableName) {
        if let Some(watched) = self.watched.get_mut(&self.compared(table)) {
            watched.stale = true;
        }
    }

    pub(super) fn mapped(&self, table_id: u64) -> Option<&Mapped> {
        self.maps.get(&table_id)
    }

    /// A file has ended: every statement's maps come again.
    pub(super) fn forget_maps(&mut self) {
        self.maps.clear();
    }

    /// Notes what a table id stands for.
    pub(super) fn map(&mut self, body: &TableMapBody<'_>) -> Result<Mapping, DecodeError> {
        if let Some(mapped) = self.maps.get(&body.table_id)
            && mapped.bytes == body.bytes
            && mapped.decoder.as_ref().is_none_or(|decoder| self.is_current(&decoder.schema().table))
        {
            return Ok(Mapping::Known);
        }
        if self.maps.len() >= MAPS_MAX {
            self.maps.clear();
        }
        let map = body.parse()?;
        let table = self.compared(&TableName::new(&map.schema, &map.table));
        let bytes = body.bytes.to_vec();
        let Some(watched) = self.watched.get(&table) else {
            self.maps.insert(body.table_id, Mapped { bytes, map, decoder: None });
            return Ok(Mapping::Known);
        };
        if !watched.stale
            && let Ok(decoder) = RowDecoder::new(&map, Arc::clone(&watched.schema), &self.options)
        {
            self.maps.insert(body.table_id, Mapped { bytes, map, decoder: Some(decoder) });
            return Ok(Mapping::Known);
        }
        let table = watched.schema.table.clone();
        Ok(Mapping::NeedsCatalog(Box::new(PendingMap { bytes, map, table })))
    }

    fn is_current(&self, table: &TableName) -> bool {
        self.watched.get(&self.compared(table)).is_some_and(|watched| !watched.stale)
    }

    /// Fits a table map to the present catalog, or to what is known besides. The new schema, if there is one.
    pub(super) fn bind(
        &mut self,
        pending: PendingMap,
        catalog: Option<TableSchema>,
    ) -> Result<Option<Arc<TableSchema>>, BindError> {
        let PendingMap { bytes, map, table } = pending;
        let known = self.watched.get(&self.compared(&table));
        let only_followed = known.is_some_and(|known| known.only_followed);
        let current = known.map(|known| Arc::clone(&known.schema));
        let catalog = catalog.map(|catalog| match &current {
            Some(current) => catalog.spelled_as(current),
            None => catalog,
        });
        let decoder = fit(&map, &table, catalog, current.as_ref(), &self.options)?;
        let schema = Arc::clone(decoder.schema());
        if schema.key.is_empty() && !only_followed {
            return Err(BindError::NoKey(table));
        }
        if !only_followed && current.as_ref().is_some_and(|current| !same_key(current, &schema)) {
            return Err(BindError::OtherKey(table));
        }
        self.maps.insert(map.table_id, Mapped { bytes, map, decoder: Some(decoder) });
        let changed = current.is_none_or(|current| current != schema);
        let watched = Watched { schema: Arc::clone(&schema), stale: false, only_followed };
        self.watched.insert(self.compared(&table), watched);
        Ok((changed && !only_followed).then_some(schema))
    }
}

/// Whether rows are told apart as before: by columns of the same names, or in the same places where they were renamed.
fn same_key(before: &TableSchema, after: &TableSchema) -> bool {
    let names = |schema: &TableSchema| schema.key_columns().map(|column| column.name.clone()).collect::<BTreeSet<_>>();
    names(before) == names(after) || (before.columns.len() == after.columns.len() && before.key == after.key)
}

/// Tries the catalog as it is, the schema before, what can be put together of both, and of both and the event itself.
fn fit(
    map: &TableMap,
    table: &TableName,
    catalog: Option<TableSchema>,
    current: Option<&Arc<TableSchema>>,
    options: &DecodeOptions,
) -> Result<RowDecoder, BindError> {
    let catalog = catalog.map(Arc::new);
    let names = map.shown_names();
    let names = names.as_deref();
    let known = [catalog.as_deref(), current.map(AsRef::as_ref)];
    let candidates = [
        catalog.clone(),
        current.map(Arc::clone),
        names.and_then(|names| by_name(names, &[catalog.as_deref(), current.map(AsRef::as_ref)])),
        names.and_then(|names| by_name(names, &[current.map(AsRef::as_ref), catalog.as_deref()])),
        catalog.as_deref().and_then(|catalog| prefix(catalog, map.columns.len())),
        names.and_then(|names| by_description(map, names, &known, false)),
        names.and_then(|names| by_description(map, names, &known, true)),
    ];
    let mut first_mismatch = None;
    for candidate in candidates.into_iter().flatten() {
        match RowDecoder::new(map, candidate, options) {
            Ok(decoder) => return Ok(decoder),
            Err(mismatch) => {
                first_mismatch.get_or_insert(mismatch);
            }
        }
    }
    if let Some(catalog) = &catalog
        && let Ok(decoder) = RowDecoder::with_hidden_behind(map, Arc::clone(catalog), options)
    {
        return Ok(decoder);
    }
    match (first_mismatch, catalog) {
        (Some(mismatch), Some(_)) => Err(mismatch.into()),
        (Some(_) | None, None) | (None, Some(_)) => Err(BindError::Gone(table.clone())),
    }
}

/// A schema with exactly these columns, each from the first of `schemas` that has it.
fn by_name(names: &[String], schemas: &[Option<&TableSchema>]) -> Option<Arc<TableSchema>> {
    assembled(names, schemas, |_, known| known.cloned())
}

/// A schema with exactly these columns: those that no schema has as the event describes them, and the others too where
/// `retyped` says that they may have had another type for a while.
fn by_description(
    map: &TableMap,
    names: &[String],
    schemas: &[Option<&TableSchema>],
    retyped: bool,
) -> Option<Arc<TableSchema>> {
    // Hidden columns are among the event's, and not among these.
    let described = |index: usize, known: Option<&Column>| {
        let at = map.metadata.names.as_ref()?.iter().position(|name| Some(name) == names.get(index))?;
        described::column(map, at, known)
    };
    assembled(names, schemas, |index, known| match known {
        Some(known) if retyped => described(index, Some(known)).or_else(|| Some(known.clone())),
        Some(known) => Some(known.clone()),
        None => described(index, None),
    })
}

/// A schema of columns that `column` makes of each name's place and of the first column of that name. The key is the
/// first schema's whose key columns are all there.
fn assembled(
    names: &[String],
    schemas: &[Option<&TableSchema>],
    column: impl Fn(usize, Option<&Column>) -> Option<Column>,
) -> Option<Arc<TableSchema>> {
    let mut known = schemas.iter().flatten();
    let named = |name: &String| known.clone().find_map(|schema| schema.column(name));
    let columns: Option<Vec<_>> = names.iter().enumerate().map(|(index, name)| column(index, named(name))).collect();
    let position = |name: &str| names.iter().position(|other| other == name);
    let key_of = |schema: &&TableSchema| {
        schema.key_columns().map(|column| position(&column.name)).collect::<Option<Vec<usize>>>()
    };
    let key = known.clone().find_map(key_of)?;
    let table = known.next()?.table.clone();
    Some(Arc::new(TableSchema { table, columns: columns?, key }))
}

/// The catalog's first columns, before later ones were added at the end.
fn prefix(catalog: &TableSchema, columns: usize) -> Option<Arc<TableSchema>> {
    let fits = columns < catalog.columns.len() && catalog.key.iter().all(|index| *index < columns);
    let first = catalog.columns.iter().take(columns).cloned().collect();
    fits.then(|| Arc::new(TableSchema { columns: first, ..catalog.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ColumnType;

    fn schema(names: &[&str], key: &[usize]) -> TableSchema {
        let column = |name: &&str| Column {
            name: (*name).into(),
            column_type: ColumnType::Integer,
            source_type: "int(11)".into(),
            nullable: true,
            charset: None,
            collation: None,
            generated: false,
        };
        TableSchema { table: TableName::new("s", "t"), columns: names.iter().map(column).collect(), key: key.to_vec() }
    }

    fn names(schema: &TableSchema) -> Vec<&str> {
        schema.columns.iter().map(|column| column.name.as_str()).collect()
    }

    #[test]
    fn an_event_that_names_its_columns_is_put_together_from_past_and_present() {
        let present = schema(&["id", "new", "kept"], &[0]);
        let past = schema(&["kept", "id", "dropped"], &[1]);
        let wanted = ["kept", "id", "dropped"].map(str::to_owned);
        let built = by_name(&wanted, &[Some(&present), Some(&past)]).expect("all names are known");
        assert_eq!((names(&built), built.key.clone()), (vec!["kept", "id", "dropped"], vec![1]));
        let unknown = ["id", "never heard of"].map(str::to_owned);
        assert!(by_name(&unknown, &[Some(&present), Some(&past)]).is_none());
    }

    #[test]
    fn columns_added_at_the_end_since_are_left_off() {
        let present = schema(&["id", "a", "added"], &[0]);
        assert_eq!(names(&prefix(&present, 2).expect("a prefix")), ["id", "a"]);
        assert!(prefix(&present, 3).is_none());
        assert!(prefix(&schema(&["a", "id"], &[1]), 1).is_none());
    }
}
