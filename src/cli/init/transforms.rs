//! `transforms/<target table>.sql`: each column by name, ready to be edited.

use super::{
    names::{identifier, one_line},
    plan::PlannedTable,
};

/// The text of a table's transform.
pub(super) fn render(table: &PlannedTable) -> String {
    let source = &table.schema.table.table;
    let mut lines = Vec::new();
    let last = table.columns.len().saturating_sub(1);
    for (index, (column, target)) in table.schema.columns.iter().zip(&table.columns).enumerate() {
        let mut select = identifier(&column.name);
        if target.cast {
            select.push_str(&format!("::{}", target.column_type.sql()));
        }
        if target.cast || target.name != column.name {
            select.push_str(&format!(" AS {}", identifier(&target.name)));
        }
        if index != last {
            select.push(',');
        }
        lines.push((select, note(&column.source_type, target.hint.as_deref())));
    }
    let width = lines.iter().map(|(select, _)| select.chars().count()).max().unwrap_or_default().min(48);
    let mut text = format!(
        "-- {} from the source's {}, column by column. Written by `cutover init`: rename, cast, filter with WHERE.\n\
         -- Every row of the source goes through this SELECT. The primary key must depend on the source's key only.\n\
         SELECT\n",
        one_line(&table.name),
        one_line(source)
    );
    for (select, note) in lines {
        text.push_str(format!("    {select:width$}  -- {note}").trim_end());
        text.push('\n');
    }
    text.push_str(&format!("FROM {};\n", identifier(source)));
    text
}

/// A semicolon ends a statement for whoever reads the file carelessly, so there is none in a comment.
fn note(source_type: &str, hint: Option<&str>) -> String {
    let note = match hint {
        Some(hint) => format!("{source_type}: {hint}"),
        None => source_type.to_owned(),
    };
    one_line(&note).replace(';', ",")
}
