//! From a statement's text to what it means.
//!
//! The product sends a finite set of statements. Those on cutover's own tables are known word by word (`texts`), those
//! of a plan are built here as the sink builds them. Anything else is a panic: SQL that changes must be taught to the
//! model.

use std::collections::BTreeMap;

use cutover::{
    database::postgres::sql,
    model::{ColumnType, Coverage, Plan, TableName},
    target::postgres::{Builder, left_statement, sweep_statement, tombstone_table},
};

use super::{
    Postgres,
    children::Children,
    compare::Comparing,
    exec::{Exec, Stop},
    faults::SessionInfo,
    plan::{Part, PlanStatement},
    session::Answer,
    state::{self, State},
    store::TableId,
    sweep::Stale,
    table::ModelTable,
    texts,
    value::{Param, Type},
};

/// How a statement's completion is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Select,
    Insert,
    Update,
    Delete,
}

/// A statement that the model knows.
#[derive(Debug)]
pub struct Known {
    pub name: &'static str,
    pub params: Vec<Type>,
    /// None for a statement that answers no rows.
    pub columns: Option<Vec<Type>>,
    pub tag: Tag,
    meaning: Meaning,
}

#[derive(Debug)]
enum Meaning {
    State(State),
    Plan(PlanStatement),
    /// `DELETE … WHERE cutover_version < $1`, of a target table or its tombstones.
    Older(TableId),
    /// The highest version of a target table and its tombstones.
    Highest(TableId, TableId),
    /// Rows that a copy has not met.
    Sweep(Stale),
    /// Whether there are any left.
    Left(Stale),
    /// Rows that refer to parents of the source.
    Children(Children),
    /// What the source's rows make, beside what is there.
    Comparing(Comparing),
}

impl Known {
    pub async fn run(&self, exec: &mut Exec<'_>, info: &SessionInfo, params: &[Param]) -> Result<Answer, Stop> {
        match &self.meaning {
            Meaning::State(kind) => state::run(*kind, exec, info, params).await,
            Meaning::Plan(plan) => plan.run(exec, params).await,
            Meaning::Older(table) => state::delete_older(exec, *table, params[0].int()).await,
            Meaning::Highest(target, tombstones) => Ok(state::highest(exec, *target, *tombstones)),
            Meaning::Sweep(stale) => stale.sweep(exec, params).await,
            Meaning::Left(stale) => Ok(stale.left(exec, params)),
            Meaning::Children(children) => Ok(children.run(exec, params)),
            Meaning::Comparing(comparing) => comparing.run(exec, params),
        }
    }
}

/// Text with every run of white space as one blank.
pub fn normalise(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the text means; none if the model does not know it.
pub fn recognise(text: &str, pg: &Postgres) -> Option<Known> {
    let normal = normalise(text);
    if let Some(known) = texts::find(&normal) {
        return Some(Known {
            name: known.name,
            params: known.params.to_vec(),
            columns: known.columns.map(<[Type]>::to_vec),
            tag: known.tag,
            meaning: Meaning::State(known.state),
        });
    }
    let models = pg.models();
    models
        .iter()
        .enumerate()
        .find_map(|(place, model)| of_plan(text, place, model, pg))
        .or_else(|| models.iter().find_map(|model| of_target(&normal, model, pg)))
        .or_else(|| models.iter().enumerate().find_map(|(place, model)| of_comparison(text, place, model, pg)))
}

/// Statements that are built from the names of a target table.
fn of_target(normal: &str, model: &ModelTable, pg: &Postgres) -> Option<Known> {
    let (target, tombs) = (&model.plan.target.name, tombstone_table(&model.plan.target.name));
    let id = |name: &TableName| pg.table_id(&name.to_string());
    let known = |name, params: &[Type], columns: Option<&[Type]>, tag, meaning| {
        Some(Known { name, params: params.to_vec(), columns: columns.map(<[Type]>::to_vec), tag, meaning })
    };
    for (name, table) in [("truncate", target), ("forget tombstones", &tombs)] {
        if normal == format!("DELETE FROM {} WHERE cutover_version < $1", sql::table(table)) {
            return known(name, &[Type::Int8], None, Tag::Delete, Meaning::Older(id(table)));
        }
    }
    if normal == normalise(&texts::highest(target, &tombs)) {
        let meaning = Meaning::Highest(id(target), id(&tombs));
        return known("highest version", &[], Some(&[Type::Int8]), Tag::Select, meaning);
    }
    let plans: Vec<Plan> = pg.models().iter().map(|model| model.plan.clone()).collect();
    let params = [Type::Int8, Type::Text, Type::Int8, Type::Text];
    if sweep_statement(&model.plan, &plans).is_some_and(|text| normal == normalise(&text)) {
        let stale = Stale::new(&model.plan, pg.models(), pg)?;
        return known("sweep", &params, None, Tag::Delete, Meaning::Sweep(stale));
    }
    if left_statement(&model.plan).is_some_and(|text| normal == normalise(&text)) {
        let stale = Stale::new(&model.plan, pg.models(), pg)?;
        return known("left", &params, Some(&[Type::Bool]), Tag::Select, Meaning::Left(stale));
    }
    let children = Children::find(normal, &model.plan, pg)?;
    let (params, columns) = ([Type::Texts, Type::Int8s, Type::Texts], children.columns());
    known("children", &params, Some(&columns), Tag::Select, Meaning::Children(children))
}

/// Statements that the sink builds for a plan, with source columns of the types that the text shows.
fn of_plan(text: &str, place: usize, model: &ModelTable, pg: &Postgres) -> Option<Known> {
    let plan = &model.plan;
    let pipeline = between(text, "z.pipeline = '", "' AND")?.replace("''", "'");
    let types: Option<Vec<ColumnType>> = (0..plan.reads.len()).map(|column| column_type(text, column)).collect();
    let types = types?;
    let builder = Builder { plan, types: &types, pipeline: &pipeline, replays: false };
    let mut built: BTreeMap<String, Part> = BTreeMap::new();
    built.insert(builder.dead(), Part::Dead);
    built.extend(builder.gone().map(|text| (text, Part::Gone)));
    built.insert(builder.live(), Part::Live);
    built.insert(builder.replace(), Part::Replace);
    built.insert(builder.clashes(), Part::Clashes);
    built.insert(builder.late(), Part::Late);
    built.extend(builder.unmatched().map(|text| (text, Part::Unmatched)));
    for (place, key) in plan.target.foreign_keys.iter().enumerate() {
        built.extend(builder.orphans(key).map(|text| (text, Part::Orphans(place))));
    }
    let part = built.get(text).copied()?;
    let marked = match plan.coverage {
        Coverage::Total => false,
        Coverage::Filter => matches!(part, Part::Dead | Part::Gone),
        Coverage::Partial => true,
    };
    let mut params = vec![Type::Int8s];
    params.extend(marked.then_some(Type::Bools));
    params.extend(vec![Type::Texts; types.len()]);
    let (name, columns, tag) = match part {
        Part::Dead => ("dead", Some(vec![Type::Int8; 2]), Tag::Select),
        Part::Gone => ("gone", Some(vec![Type::Int8; 2]), Tag::Select),
        Part::Live => ("live", Some(vec![Type::Int8; 4]), Tag::Select),
        Part::Replace => ("replace", None, Tag::Insert),
        Part::Unmatched => ("unmatched", Some(vec![Type::Int8]), Tag::Select),
        Part::Late => ("late", Some(vec![Type::Int8]), Tag::Select),
        Part::Clashes => ("clashes", Some(vec![Type::Int8]), Tag::Select),
        Part::Orphans(_) => ("orphans", Some(vec![Type::Int8, Type::Text]), Tag::Select),
    };
    let target = pg.table_id(&plan.target.name.to_string());
    let tombstones = pg.table_id(&tombstone_table(&plan.target.name).to_string());
    let statement = PlanStatement { model: place, part, marked, types, pipeline, target, tombstones };
    Some(Known { name, params, columns, tag, meaning: Meaning::Plan(statement) })
}

/// Statements that compare a plan's target.
fn of_comparison(text: &str, place: usize, model: &ModelTable, pg: &Postgres) -> Option<Known> {
    let comparing = Comparing::find(text, place, model, pg)?;
    let (name, params, columns) = (comparing.name(), comparing.params(&model.plan), comparing.columns());
    Some(Known { name, params, columns: Some(columns), tag: Tag::Select, meaning: Meaning::Comparing(comparing) })
}

pub fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
    let rest = text.split_once(start)?.1;
    Some(rest.split_once(end)?.0)
}

/// The type to which the statement casts a source column.
pub fn column_type(text: &str, column: usize) -> Option<ColumnType> {
    if text.contains(&format!("pg_catalog.decode(x.c{column}, ")) {
        return Some(ColumnType::Bytes);
    }
    let cast = between(text, &format!(", x.c{column}"), &format!(" AS c{column}"))?;
    let Some(name) = cast.strip_prefix("::") else { return Some(ColumnType::Text) };
    let known = [
        ColumnType::SmallInt,
        ColumnType::Integer,
        ColumnType::BigInt,
        ColumnType::Real,
        ColumnType::Double,
        ColumnType::Json,
        ColumnType::Date,
        ColumnType::Timestamp,
        ColumnType::TimestampTz,
        ColumnType::Interval,
    ];
    if let Some(found) = known.into_iter().find(|kind| kind.sql() == name) {
        return Some(found);
    }
    if let Some((precision, scale)) = between(name, "numeric(", ")").and_then(|inside| inside.split_once(',')) {
        return Some(ColumnType::Numeric { precision: precision.parse().ok()?, scale: scale.parse().ok()? });
    }
    Some(ColumnType::Named(name.to_owned()))
}
