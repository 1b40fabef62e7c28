//! What removes the rows that a repeated copy has not met.

use cutover::model::Plan;

use super::{
    ModelTable, Postgres,
    exec::{Exec, Stop},
    own::{dead_letters, lease},
    session::Answer,
    store::TableId,
    value::{Param, Value},
};

/// The stale rows of a target.
#[derive(Debug)]
pub struct Stale {
    target: TableId,
    /// Of each column of the target's key, its place and the source column that it is.
    key: Vec<(usize, String)>,
    /// Tables that refer to the target, with pairs of their column and the target's.
    children: Vec<(TableId, Vec<(usize, usize)>)>,
}

impl Stale {
    pub fn new(plan: &Plan, models: &[ModelTable], pg: &Postgres) -> Option<Self> {
        let id = |name: &cutover::model::TableName| pg.table_id(&name.to_string());
        let place = |table: TableId, name: &String| {
            let store = pg.store();
            store.tables[table].shape.columns.iter().position(|column| column == name).unwrap()
        };
        let target = id(&plan.target.name);
        let reads = plan.key_reads.as_ref()?;
        let key = plan.target.key.iter().zip(reads);
        let key = key.map(|(name, read)| (place(target, name), plan.reads[*read].clone())).collect();
        let others = models.iter().map(|model| &model.plan.target).filter(|other| other.name != plan.target.name);
        let keys = others.flat_map(|other| other.foreign_keys.iter().map(move |key| (other, key)));
        let children = keys.filter(|(_, key)| key.parent == plan.target.name).map(|(child, key)| {
            let child = id(&child.name);
            let pairs = key.columns.iter().zip(&key.parent_columns);
            (child, pairs.map(|(own, parent)| (place(child, own), place(target, parent))).collect())
        });
        Some(Stale { target, key, children: children.collect() })
    }

    /// The rows that are older than the copy; none under another lease, and none that are dead letters.
    fn rows(&self, exec: &Exec<'_>, params: &[Param]) -> Vec<super::Row> {
        let (before, pipeline, epoch, source) =
            (params[0].int(), params[1].value(), params[2].value(), params[3].value());
        let leased = |row: &[Value]| {
            row[lease::pipeline] == pipeline && row[lease::role] == Value::text("worker") && row[lease::epoch] == epoch
        };
        if exec.rows(lease::ID, leased).is_empty() {
            return Vec::new();
        }
        let open = |row: &[Value]| {
            row[dead_letters::pipeline] == pipeline
                && row[dead_letters::source_table] == source
                && row[dead_letters::state] == Value::text("open")
        };
        let dead: Vec<serde_json::Value> = exec
            .rows(dead_letters::ID, open)
            .iter()
            .map(|row| serde_json::from_str(row[dead_letters::key_text].str()).unwrap())
            .collect();
        let is_dead = |row: &[Value]| {
            dead.iter().any(|letter| {
                self.key.iter().all(|(place, name)| match &letter[name] {
                    serde_json::Value::String(text) => row[*place].print().as_deref() == Some(text),
                    other => row[*place].print() == Some(other.to_string()),
                })
            })
        };
        let old = |row: &[Value]| row.last().is_some_and(|version| (1..before).contains(&version.int()));
        exec.rows(self.target, |row| old(row) && !is_dead(row))
    }

    pub fn left(&self, exec: &Exec<'_>, params: &[Param]) -> Answer {
        Answer::row(vec![Value::Bool(!self.rows(exec, params).is_empty())])
    }

    pub async fn sweep(&self, exec: &mut Exec<'_>, params: &[Param]) -> Result<Answer, Stop> {
        let mut stale = self.rows(exec, params);
        for (child, pairs) in &self.children {
            let children = exec.rows(*child, |_| true);
            let refers = |row: &super::Row| {
                children.iter().any(|child| pairs.iter().all(|(own, parent)| child[*own] == row[*parent]))
            };
            stale.retain(|row| !refers(row));
        }
        let before = params[0].int();
        let key: Vec<usize> = self.key.iter().map(|(place, _)| *place).collect();
        let gone = |row: &[Value]| {
            row.last().is_some_and(|version| version.int() < before)
                && stale.iter().any(|other| key.iter().all(|place| other[*place] == row[*place]))
        };
        Ok(Answer::affected(exec.delete_where(self.target, gone).await?.len()))
    }
}
