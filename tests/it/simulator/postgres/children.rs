//! What asks a target table for the rows that refer to parents of the source.

use cutover::{
    model::{ColumnType, Plan},
    target::{ChildrenOf, postgres::children_statement},
};

use super::{
    Postgres,
    exec::Exec,
    recognise::normalise,
    session::Answer,
    store::TableId,
    table::integer,
    value::{Param, Row, Type, Value},
};

/// Rows answered at a time.
const CHILDREN_MAX: usize = 500;

/// The statement for one target table, about numbers alone.
#[derive(Debug)]
pub struct Children {
    target: TableId,
    /// Places of the key's columns, in the order of the source's key.
    key: Vec<usize>,
    extra: Vec<Option<usize>>,
    /// The column that refers to the parent, at the source and as a place; none if every row is meant.
    compared: Option<(String, usize)>,
    goes_on: bool,
}

impl Children {
    /// The statement of this text; none if it is none of the plan's.
    pub fn find(normal: &str, plan: &Plan, pg: &Postgres) -> Option<Self> {
        if !normal.starts_with("WITH w AS MATERIALIZED") {
            return None;
        }
        let of_numbers = |name: &String| {
            plan.source.columns.iter().any(|column| column.name == *name && column.column_type == ColumnType::BigInt)
        };
        let one_or_none = || {
            let one = plan.reads.iter().filter(|name| of_numbers(name)).map(|name| vec![name.clone()]);
            std::iter::once(Vec::new()).chain(one)
        };
        for columns in one_or_none() {
            for extra in one_or_none() {
                for goes_on in [false, true] {
                    let any = columns.is_empty();
                    let of = ChildrenOf { child: "", columns: &columns, keys: &[], any, extra: &extra };
                    if normalise(&children_statement(plan, &of, goes_on)?) == normal {
                        return Some(Self::new(plan, &columns, &extra, goes_on, pg));
                    }
                }
            }
        }
        None
    }

    fn new(plan: &Plan, columns: &[String], extra: &[String], goes_on: bool, pg: &Postgres) -> Self {
        let place = |name: &String| {
            let result = plan.columns.iter().find(|column| column.source.as_ref() == Some(name))?;
            plan.target.columns.iter().position(|column| column.name == result.name)
        };
        let key = plan
            .source
            .key_columns()
            .map(|column| place(&column.name).unwrap_or_else(|| panic!("{} does not show its key", plan.name())));
        Children {
            target: pg.table_id(&plan.target.name.to_string()),
            key: key.collect(),
            extra: extra.iter().map(place).collect(),
            compared: columns.first().and_then(|name| Some((name.clone(), place(name)?))),
            goes_on,
        }
    }

    pub fn columns(&self) -> Vec<Type> {
        let texts = 2 * self.key.len() + self.extra.len();
        std::iter::once(Type::Int8).chain(std::iter::repeat_n(Type::Text, texts)).collect()
    }

    /// The version before which a row is meant, if it is.
    fn meant(&self, row: &Row, parents: &[(Option<i64>, i64)], own: i64) -> Option<i64> {
        let refers = |parent: Option<i64>| match &self.compared {
            None => true,
            Some((_, place)) => parent.is_some_and(|parent| row[*place] == Value::Int(parent)),
        };
        parents.iter().filter(|(parent, version)| own < *version && refers(*parent)).map(|(_, version)| *version).max()
    }

    pub fn run(&self, exec: &Exec<'_>, params: &[Param]) -> Answer {
        let parent = |text: &Option<std::sync::Arc<str>>| {
            let key: serde_json::Value = serde_json::from_str(text.as_ref()?).unwrap();
            let (name, _) = self.compared.as_ref()?;
            key[name].as_i64()
        };
        let keys = params[0].texts().iter().map(parent);
        let parents: Vec<(Option<i64>, i64)> = keys.zip(params[1].ints().iter().copied()).collect();
        let after: Option<Vec<Value>> = self.goes_on.then(|| {
            let value = |text: &Option<std::sync::Arc<str>>| {
                integer(text.as_ref().unwrap(), "bigint", i64::MIN, i64::MAX).unwrap()
            };
            params[2].texts().iter().map(value).collect()
        });
        let key = |row: &Row| -> Vec<Value> { self.key.iter().map(|place| row[*place].clone()).collect() };
        let mut found: Vec<(Vec<Value>, i64, Row)> = Vec::new();
        for row in exec.rows(self.target, |_| true) {
            let own = row.last().map_or(0, Value::int);
            if own > 0
                && after.as_ref().is_none_or(|after| key(&row) > *after)
                && let Some(before) = self.meant(&row, &parents, own)
            {
                found.push((key(&row), before, row));
            }
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found.truncate(CHILDREN_MAX);
        let text = |value: &Value| value.print().map_or(Value::Null, Value::text);
        let answer = |(key, before, row): (Vec<Value>, i64, Row)| {
            let mut cells = vec![Value::Int(before)];
            cells.extend(key.iter().map(text));
            cells.extend(self.extra.iter().map(|place| place.map_or(Value::Null, |place| text(&row[place]))));
            cells.extend(key.iter().map(text));
            cells
        };
        Answer::rows(found.into_iter().map(answer).collect())
    }
}
