//! What PostgreSQL understood of a `SELECT`: the functions and relations that it uses, how many rows
//! it makes of one, and what its result columns depend on.

use super::tree::Tree;

/// A `SELECT`'s query tree.
#[derive(Debug)]
pub struct QueryShape {
    query: Tree,
    /// The temporary view that the tree was read from.
    view: u32,
}

/// How a function call that is a cast was written.
const CAST_EXPLICIT: u32 = 1;
const CAST_IMPLICIT: u32 = 2;
/// A range table entry's kind for a relation.
const RELATION: u32 = 0;

/// Fields of a tree that say where something stands, or repeat what others say.
const PLACES: [&str; 4] = ["location", "varnosyn", "varattnosyn", "list_end"];

/// Writes a tree so that two are alike if they mean the same of the same columns.
fn spell(tree: &Tree, source: Option<u32>, columns: &[&str], text: &mut String) {
    match tree {
        Tree::Node { kind, fields } => {
            let own = kind == "VAR" && tree.number("varlevelsup") == Some(0) && tree.number("varno") == source;
            let place = tree.number("varattno").and_then(|number| number.checked_sub(1));
            if let Some(name) = place.filter(|_| own).and_then(|place| columns.get(place as usize)) {
                text.push_str(&format!("{{{name}}}"));
                return;
            }
            text.push('{');
            text.push_str(kind);
            for (field, values) in fields.iter().filter(|(field, _)| !PLACES.contains(&field.as_str())) {
                text.push_str(&format!(" :{field}"));
                values.iter().for_each(|value| spell(value, source, columns, text));
            }
            text.push('}');
        }
        Tree::List(items) => {
            text.push('(');
            items.iter().for_each(|item| spell(item, source, columns, text));
            text.push(')');
        }
        Tree::Word(word) => {
            text.push(' ');
            text.push_str(word);
        }
    }
}

impl QueryShape {
    /// Reads `ev_action` of a view's rule.
    pub fn parse(ev_action: &str, view: u32) -> Option<QueryShape> {
        let Tree::List(mut queries) = Tree::parse(ev_action)? else { return None };
        let query = queries.pop().filter(|query| query.kind() == "QUERY")?;
        Some(QueryShape { query, view })
    }

    /// Functions by oid, those behind operators, aggregates and window functions included.
    pub fn functions(&self) -> Vec<u32> {
        let fields = ["funcid", "opfuncid", "aggfnoid", "winfnoid"];
        let nodes = self.query.nodes();
        let mut oids: Vec<u32> =
            nodes.iter().flat_map(|node| fields.iter().filter_map(|field| node.number(field))).collect();
        oids.sort_unstable();
        oids.dedup();
        oids.retain(|oid| *oid != 0);
        oids
    }

    /// Relations by oid, at every level.
    pub fn relations(&self) -> Vec<u32> {
        let nodes = self.query.nodes();
        let entries = nodes.iter().filter(|node| node.number("rtekind") == Some(RELATION));
        let mut oids: Vec<u32> = entries.filter_map(|entry| entry.number("relid")).collect();
        oids.sort_unstable();
        oids.dedup();
        oids.retain(|oid| *oid != self.view);
        oids
    }

    /// Whether it reads the clock or the session's user through a keyword (`CURRENT_DATE`).
    pub fn reads_session(&self) -> bool {
        self.query.nodes().iter().any(|node| node.kind() == "SQLVALUEFUNCTION")
    }

    /// Whether it locks rows.
    pub fn locks(&self) -> bool {
        self.query.nodes().iter().any(|node| node.has("rowMarks"))
    }

    /// Whether a whole row is used as one value.
    pub fn uses_whole_row(&self) -> bool {
        self.query.nodes().iter().any(|node| node.kind() == "VAR" && node.number("varattno") == Some(0))
    }

    /// What looks as if it were meant over many rows, though it runs per row.
    pub fn many_row_parts(&self) -> Vec<&'static str> {
        let flag = |name: &str| self.query.word(name) == Some("true");
        [
            (flag("hasAggs") || self.query.has("groupClause"), "an aggregate"),
            (flag("hasWindowFuncs"), "a window function"),
            (self.query.has("setOperations"), "UNION, INTERSECT or EXCEPT"),
            (self.query.has("sortClause"), "ORDER BY"),
            (self.query.has("limitCount") || self.query.has("limitOffset"), "LIMIT or OFFSET"),
            (self.query.has("distinctClause"), "DISTINCT"),
        ]
        .into_iter()
        .filter_map(|(found, name)| found.then_some(name))
        .collect()
    }

    /// The place of the source's entry in the range table, if it is the only thing that the query reads from.
    fn only_entry(&self) -> Option<u32> {
        let mut entries = (1u32..)
            .zip(self.query.list("rtable"))
            .filter(|(_, entry)| entry.number("rtekind") != Some(RELATION) || entry.number("relid") != Some(self.view));
        let (index, entry) = entries.next()?;
        (entries.next().is_none() && entry.number("rtekind") == Some(RELATION)).then_some(index)
    }

    /// Whether every row gives at most one: no set-returning function, no join.
    pub fn at_most_one_row(&self) -> bool {
        self.only_entry().is_some() && self.query.word("hasTargetSRFs") == Some("false")
    }

    /// Whether every row gives exactly one.
    pub fn exactly_one_row(&self) -> bool {
        let unfiltered = self.query.get("jointree").is_some_and(|tree| !tree.has("quals"));
        self.at_most_one_row()
            && unfiltered
            && !self.query.has("havingQual")
            && !self.query.has("cteList")
            && self.many_row_parts().iter().all(|part| *part == "ORDER BY")
    }

    /// The source columns (from 0) that a result column (from 0) is computed of; `None` where it
    /// also depends on something that is not a column of the source row itself.
    pub fn sources_of(&self, column: usize) -> Option<Vec<usize>> {
        let source = self.only_entry()?;
        let expression = self.entry(column)?.get("expr")?;
        let mut sources = Vec::new();
        for node in expression.nodes() {
            match node.kind() {
                "SUBLINK" => return None,
                "VAR" if node.number("varlevelsup") == Some(0) && node.number("varno") == Some(source) => {
                    sources.push(node.number("varattno")?.checked_sub(1)? as usize);
                }
                "VAR" => return None,
                _ => {}
            }
        }
        Some(sources)
    }

    /// Whether which rows there are may depend on a source column (from 0).
    pub fn filters_by(&self, column: usize) -> bool {
        let nodes = ["jointree", "havingQual", "limitCount", "limitOffset", "distinctClause"];
        let nodes: Vec<&Tree> = nodes.iter().filter_map(|field| self.query.get(field)).flat_map(Tree::nodes).collect();
        let reads = |node: &&Tree| node.kind() == "SUBLINK" || node.number("varattno") == Some(column as u32 + 1);
        self.query.has("cteList") || nodes.iter().any(reads)
    }

    /// The source column (from 0) that a result column (from 0) is, as it is or cast once.
    pub fn column_of(&self, column: usize) -> Option<usize> {
        self.column_from(self.only_entry()?, column)
    }

    /// As [`Self::column_of`], where the query reads from functions or subqueries beside the source row.
    pub fn column_beside(&self, column: usize) -> Option<usize> {
        let relation =
            |entry: &Tree| entry.number("rtekind") == Some(RELATION) && entry.number("relid") != Some(self.view);
        let mut entries = (1u32..).zip(self.query.list("rtable")).filter(|(_, entry)| relation(entry));
        let (source, _) = entries.next()?;
        if entries.next().is_some() { None } else { self.column_from(source, column) }
    }

    fn column_from(&self, source: u32, column: usize) -> Option<usize> {
        let expression = self.entry(column)?.get("expr")?;
        let uncast = match expression.kind() {
            "FUNCEXPR" if matches!(expression.number("funcformat"), Some(CAST_EXPLICIT | CAST_IMPLICIT)) => {
                match expression.list("args") {
                    [only] => only,
                    _ => return None,
                }
            }
            "RELABELTYPE" | "COERCEVIAIO" => expression.get("arg")?,
            _ => expression,
        };
        let own =
            uncast.kind() == "VAR" && uncast.number("varlevelsup") == Some(0) && uncast.number("varno") == Some(source);
        if own { Some(uncast.number("varattno")?.checked_sub(1)? as usize) } else { None }
    }

    /// What decides which rows the query makes of a source row with these columns: its filters, and the result columns
    /// (from 0) that are the target's key. Where things stand in the text is left out, and so are the places of
    /// columns.
    pub fn identity(&self, columns: &[&str], keys: &[usize]) -> String {
        let source = self.only_entry();
        let mut text = String::new();
        for field in ["jointree", "havingQual", "groupClause", "distinctClause", "limitCount", "limitOffset"] {
            if let Some(tree) = self.query.get(field) {
                spell(tree, source, columns, &mut text);
            }
            text.push(';');
        }
        for key in keys {
            if let Some(expression) = self.entry(*key).and_then(|entry| entry.get("expr")) {
                spell(expression, source, columns, &mut text);
            }
            text.push(';');
        }
        text
    }

    /// Where a result column's expression is in the text that made the view, in bytes.
    pub fn location_of(&self, column: usize) -> Option<usize> {
        let expression = self.entry(column)?.get("expr")?;
        let places = expression.nodes().into_iter().filter_map(|node| node.number("location"));
        places.min().map(|place| place as usize)
    }

    fn entry(&self, column: usize) -> Option<&Tree> {
        let mut entries = self.query.list("targetList").iter();
        entries.find(|entry| entry.number("resno") == Some(column as u32 + 1))
    }
}
