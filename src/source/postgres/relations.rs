//! The tables that the stream speaks of, as they were at its point of the log.
//!
//! The stream describes a table before its first change after each of its alterations, by names and type numbers; what
//! the numbers stand for and which columns are the key is in the catalog, which shows the present. What enters is both;
//! what leaves is a schema, and what of it is new against the one before.

use std::{collections::HashMap, sync::Arc};

use super::{
    COPY_AGAIN, halt, lost,
    pgoutput::{Cell, Relation, RelationColumn, ReplicaIdentity},
};
use crate::{
    database::postgres::{
        catalog,
        spelling::Spelling,
        sql,
        tables::{SourceTable, places},
    },
    model::{Column, TableName, TableSchema, Value},
    source::CaptureError,
};

/// A table of the stream.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) relation: Relation,
    pub(super) schema: Arc<TableSchema>,
    spellings: Vec<Spelling>,
    /// Of the values of a row, which are cutover's own, in a table that it also writes to.
    own: Vec<usize>,
}

/// What a relation's number stands for.
#[derive(Debug, Clone)]
pub(super) enum Known {
    /// A table that is published and not watched.
    Unwatched,
    Followed(Arc<Followed>),
}

/// The watched tables and the relations of the stream.
#[derive(Debug)]
pub(super) struct Relations {
    known: HashMap<u32, Known>,
    /// Of every watched table, the newest schema.
    schemas: HashMap<TableName, Arc<TableSchema>>,
    /// What the catalog was judged by: a table that comes to look like that needs no copy for it.
    judged: HashMap<TableName, TableSchema>,
    /// By relation, the places of columns that are cutover's own.
    own: HashMap<u32, Vec<usize>>,
}

/// What a relation's arrival changes.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    /// Another schema than before.
    pub(super) schema: Option<Arc<TableSchema>>,
    /// Columns that rows may have got without events.
    pub(super) rewritten: Vec<String>,
}

impl Relations {
    pub(super) fn new(schemas: impl IntoIterator<Item = Arc<TableSchema>>) -> Self {
        let schemas = schemas.into_iter().map(|schema| (schema.table.clone(), schema));
        Relations { known: HashMap::new(), schemas: schemas.collect(), judged: HashMap::new(), own: HashMap::new() }
    }

    /// What became of a table before this schema of it has been judged.
    pub(super) fn judged(&mut self, schema: TableSchema) {
        self.judged.insert(schema.table.clone(), schema);
    }

    pub(super) fn get(&self, id: u32) -> Option<&Known> {
        self.known.get(&id)
    }

    /// Notes a relation that needs no description; gives back one that does, without columns that are cutover's own.
    pub(super) fn note(&mut self, mut relation: Relation) -> Option<Relation> {
        let is_own = |column: &RelationColumn| catalog::is_own(&column.name);
        let columns = relation.columns.iter().enumerate();
        let own: Vec<usize> = columns.filter(|(_, column)| is_own(column)).map(|(place, _)| place).collect();
        relation.columns.retain(|column| !is_own(column));
        let table = TableName::new(&relation.schema, &relation.table);
        if !self.schemas.contains_key(&table) {
            self.known.insert(relation.id, Known::Unwatched);
            return None;
        }
        match self.known.get(&relation.id) {
            Some(Known::Followed(followed)) if followed.relation == relation && followed.own == own => None,
            Some(Known::Followed(_) | Known::Unwatched) | None => {
                self.own.insert(relation.id, own);
                Some(relation)
            }
        }
    }

    /// Takes a relation's description.
    pub(super) fn bind(&mut self, relation: Relation, described: Described) -> Result<Arrived, CaptureError> {
        let table = TableName::new(&relation.schema, &relation.table);
        let before = self.schemas.get(&table).map(Arc::clone);
        let mut schema = TableSchema { table: table.clone(), columns: described.columns, key: Vec::new() };
        let key_before: Option<Vec<String>> =
            before.as_ref().map(|before| before.key_columns().map(|column| column.name.clone()).collect());
        schema.key = [Some(described.key), key_before]
            .into_iter()
            .flatten()
            .find_map(|names| places(&schema, &names).filter(|key| !key.is_empty()))
            .ok_or_else(|| {
                halt(
                    format!("{table} has no primary key any more, so that its rows cannot be told apart"),
                    "add it again and start again; or take the table out of [source] tables",
                )
            })?;
        identifies(&relation, &schema)?;
        let mut arrived = Arrived::default();
        let schema = match before {
            Some(before) if *before == schema => before,
            Some(before) => {
                let has_same_key =
                    before.key_columns().map(|column| &column.name).eq(schema.key_columns().map(|column| &column.name));
                let is_judged = has_same_key && self.judged.get(&table) == Some(&schema);
                arrived.rewritten = if is_judged { Vec::new() } else { rewritten(&before, &schema) };
                Arc::new(schema)
            }
            None => Arc::new(schema),
        };
        if self.schemas.insert(table, Arc::clone(&schema)).is_none_or(|before| before != schema) {
            arrived.schema = Some(Arc::clone(&schema));
        }
        let spellings = schema.columns.iter().map(Spelling::of).collect();
        let id = relation.id;
        let own = self.own.get(&id).cloned().unwrap_or_default();
        self.known.insert(id, Known::Followed(Arc::new(Followed { relation, schema, spellings, own })));
        Ok(arrived)
    }
}

/// What the catalog says of a relation.
#[derive(Debug)]
pub(super) struct Described {
    /// In the relation's order.
    pub(super) columns: Vec<Column>,
    /// Names of the key's columns; empty if the table has gone.
    pub(super) key: Vec<String>,
}

impl Described {
    /// From the present table where the relation's columns are still its own, and from their types where not.
    pub(super) fn new(relation: &Relation, table: Option<&SourceTable>, others: &[Column]) -> Self {
        let present = |name: &str, wire: (u32, i32)| {
            let table = table?;
            let place = table.schema.columns.iter().position(|column| column.name == name)?;
            (table.wire_types.get(place) == Some(&wire)).then(|| table.schema.columns.get(place).cloned())?
        };
        let other = |name: &str| others.iter().find(|column| column.name == name).cloned();
        let columns = relation.columns.iter().filter_map(|column| {
            present(&column.name, (column.type_oid, column.type_modifier)).or_else(|| other(&column.name))
        });
        let key = table.map(|table| table.schema.key_columns().map(|column| column.name.clone()).collect());
        Described { columns: columns.collect(), key: key.unwrap_or_default() }
    }
}

/// A change has to name its row.
fn identifies(relation: &Relation, schema: &TableSchema) -> Result<(), CaptureError> {
    let named = |place: &usize| relation.columns.get(*place).is_some_and(|column| column.key);
    let identified = match relation.identity {
        ReplicaIdentity::Full => true,
        ReplicaIdentity::Default | ReplicaIdentity::Index => schema.key.iter().all(named),
        ReplicaIdentity::Nothing => false,
    };
    if identified {
        return Ok(());
    }
    let name = sql::table(&schema.table);
    Err(lost(
        format!("the source does not log which row of {} a change is of", schema.table),
        format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT (with a primary key) or FULL, and {COPY_AGAIN}"),
    ))
}

/// Columns that are new, or of another type: rows have values there that no event told of.
fn rewritten(before: &TableSchema, after: &TableSchema) -> Vec<String> {
    let key = |schema: &TableSchema| schema.key_columns().map(|column| column.name.clone()).collect::<Vec<_>>();
    let all = key(before) != key(after);
    let changed = |column: &&Column| {
        all || before.column(&column.name).is_none_or(|known| known.source_type != column.source_type)
    };
    after.columns.iter().filter(changed).map(|column| column.name.clone()).collect()
}

impl Followed {
    /// The values of a row; of what is unchanged and not in the log, none.
    pub(super) fn values(&self, cells: &[Cell<'_>]) -> Result<Vec<Option<Value>>, CaptureError> {
        if cells.len() != self.spellings.len() + self.own.len() {
            return Err(halt(
                format!(
                    "a change of {} has {} values for {} columns",
                    self.schema.table,
                    cells.len(),
                    self.spellings.len() + self.own.len()
                ),
                "report this with the server's version",
            ));
        }
        let cells = cells.iter().enumerate().filter(|(place, _)| !self.own.contains(place)).map(|(_, cell)| cell);
        let values = self.spellings.iter().zip(cells).zip(&self.schema.columns).map(|((spelling, cell), column)| {
            Ok(match cell {
                Cell::Null => Some(Value::Null),
                Cell::Unchanged => None,
                Cell::Text(bytes) => Some(spelling.value(bytes).map_err(|error| {
                    let reason = format!("a value of {}, column `{}`: {error}", self.schema.table, column.name);
                    halt(reason, "then start again; or take the table out of [source] tables")
                })?),
            })
        });
        values.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::ColumnType, source::postgres::pgoutput::RelationColumn};

    fn column(name: &str, source_type: &str) -> Column {
        Column {
            name: name.into(),
            column_type: ColumnType::Text,
            source_type: source_type.into(),
            nullable: true,
            charset: None,
            collation: None,
            generated: false,
        }
    }

    fn relation(identity: ReplicaIdentity, names: &[(&str, bool)]) -> Relation {
        let columns = names.iter().map(|(name, key)| RelationColumn {
            key: *key,
            name: (*name).into(),
            type_oid: 25,
            type_modifier: -1,
        });
        Relation { id: 1, schema: "s".into(), table: "t".into(), identity, columns: columns.collect() }
    }

    fn watched() -> Relations {
        let schema = TableSchema { table: TableName::new("s", "t"), columns: vec![column("id", "text")], key: vec![0] };
        Relations::new([Arc::new(schema)])
    }

    #[test]
    fn a_relation_of_another_table_is_not_described() {
        let mut relations = watched();
        let other = Relation { table: "u".into(), ..relation(ReplicaIdentity::Default, &[("id", true)]) };
        assert!(relations.note(other).is_none());
        assert!(matches!(relations.get(1), Some(Known::Unwatched)));
    }

    #[test]
    fn a_column_that_came_since_is_told() {
        let mut relations = watched();
        let wide = relation(ReplicaIdentity::Default, &[("id", true), ("added", false)]);
        let wide = relations.note(wide).expect("is to be described");
        let columns = vec![column("id", "text"), column("added", "integer")];
        let arrived = relations.bind(wide.clone(), Described { columns, key: vec!["id".into()] }).expect("bound");
        assert_eq!(arrived.rewritten, ["added"]);
        assert_eq!(arrived.schema.map(|schema| schema.columns.len()), Some(2));
        assert!(relations.note(wide).is_none(), "it is known now");
    }

    #[test]
    fn columns_of_cutovers_own_are_in_no_row() {
        let mut relations = watched();
        let named = [("cutover_version", false), ("id", true), ("cutover_owner", false)];
        let noted = relations.note(relation(ReplicaIdentity::Default, &named)).expect("is to be described");
        let described = Described { columns: vec![column("id", "text")], key: vec!["id".into()] };
        let arrived = relations.bind(noted, described).expect("bound");
        assert!(arrived.schema.is_none() && arrived.rewritten.is_empty(), "{arrived:?}");
        let followed = relations.get(1).and_then(|known| match known {
            Known::Followed(table) => Some(table),
            Known::Unwatched => None,
        });
        let values = followed.expect("followed").values(&[Cell::Text(b"7"), Cell::Text(b"a"), Cell::Null]);
        let values = values.expect("three values");
        assert_eq!(values, [Some(Value::Text("a".into()))]);
    }

    #[test]
    fn the_same_columns_are_no_other_schema() {
        let mut relations = watched();
        let described = Described { columns: vec![column("id", "text")], key: Vec::new() };
        let arrived = relations.bind(relation(ReplicaIdentity::Full, &[("id", true)]), described).expect("bound");
        assert!(arrived.schema.is_none() && arrived.rewritten.is_empty(), "{arrived:?}");
    }

    #[test]
    fn changes_that_do_not_name_their_row_halt() {
        for (identity, key) in [(ReplicaIdentity::Nothing, true), (ReplicaIdentity::Index, false)] {
            let described = Described { columns: vec![column("id", "text")], key: vec!["id".into()] };
            let error = watched().bind(relation(identity, &[("id", key)]), described).expect_err("not identified");
            assert!(error.to_string().contains("REPLICA IDENTITY"), "{error}");
        }
    }
}
