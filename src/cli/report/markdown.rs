//! The page as Markdown, which reads well on a terminal too.

use std::fmt::Write as _;

use super::page::{Block, Page, Row, Table};
use crate::{observe::utc, state::lag_history::LagHistory};

/// Steps of a line of blocks.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Columns that the lag over time takes.
const COLUMNS: usize = 72;

pub(super) fn render(page: &Page) -> String {
    let mut text = format!("# {}: {}\n", page.title, page.verdict());
    for block in &page.blocks {
        match block {
            Block::Heading(heading) => _ = write!(text, "\n## {heading}\n"),
            Block::Text(paragraph) => _ = write!(text, "\n{paragraph}\n"),
            Block::List(lines) => {
                text.push('\n');
                lines.iter().for_each(|line| _ = writeln!(text, "- {line}"));
            }
            Block::Table(table) => render_table(&mut text, table),
            Block::Lag(history) => _ = write!(text, "\n{}\n", line(history)),
            // Text has the same in the table before.
            Block::Bars(_) => {}
        }
    }
    text
}

fn render_table(text: &mut String, table: &Table) {
    let marks = table.rows.iter().any(|row| row.is_good.is_some());
    let cells = |row: &Row| -> Vec<String> {
        let mark = marks.then(|| match row.is_good {
            Some(true) => "ok".to_owned(),
            Some(false) => "**no**".to_owned(),
            None => String::new(),
        });
        mark.into_iter().chain(row.cells.iter().map(|cell| escaped(cell))).collect()
    };
    let head: Vec<String> =
        marks.then(String::new).into_iter().chain(table.head.iter().map(|head| (*head).to_owned())).collect();
    let rows: Vec<Vec<String>> = table.rows.iter().map(cells).collect();
    let width = |place: usize| {
        let all = std::iter::once(&head).chain(&rows);
        all.filter_map(|cells| cells.get(place)).map(|cell| cell.chars().count()).max().unwrap_or_default().max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let numbers_from = table.numbers_from + usize::from(marks);
    let is_number = |place: usize| place >= numbers_from;
    let _ = write!(text, "\n{}", padded(&head, &widths, &is_number));
    let rule = widths.iter().enumerate().map(|(place, width)| {
        if is_number(place) { format!("{}:", "-".repeat(width - 1)) } else { "-".repeat(*width) }
    });
    let _ = write!(text, "\n| {} |\n", rule.collect::<Vec<_>>().join(" | "));
    for row in &rows {
        let _ = writeln!(text, "{}", padded(row, &widths, &is_number));
    }
}

fn padded(cells: &[String], widths: &[usize], is_number: &dyn Fn(usize) -> bool) -> String {
    let cell = |(place, (cell, width)): (usize, (&String, &usize))| {
        if is_number(place) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    };
    let cells: Vec<String> = cells.iter().zip(widths).enumerate().map(cell).collect();
    format!("| {} |", cells.join(" | "))
}

/// What may stand in a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "\\<").replace(['\n', '\r'], " ")
}

/// The lag as blocks, the highest of each column; a column without a worker is empty.
fn line(history: &LagHistory) -> String {
    let points = history.points();
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return String::new() };
    let span = last.at_seconds - first.at_seconds;
    let columns = COLUMNS.min(usize::try_from(span / history.step_seconds()).unwrap_or(COLUMNS) + 1);
    let mut highest: Vec<Option<f64>> = vec![None; columns];
    for point in points {
        let share = (point.at_seconds - first.at_seconds) as f64 / (span + 1) as f64;
        if let Some(column) = highest.get_mut((share * columns as f64) as usize) {
            *column = Some(column.unwrap_or_default().max(point.lag_seconds));
        }
    }
    let top = highest.iter().flatten().copied().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let block = |lag: &Option<f64>| {
        let height = lag.map(|lag| (lag / top * (HEIGHTS.len() - 1) as f64).round() as usize);
        height.and_then(|height| HEIGHTS.get(height)).copied().unwrap_or(' ')
    };
    let blocks: String = highest.iter().map(block).collect();
    let ends = [first, last].map(|point| utc(point.at_us()));
    format!("    {blocks}\n    {} to {}, the highest block is {top:.1} s", ends[0], ends[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_markdown() {
        let facts = super::super::facts::tests::ready();
        let text = render(&super::super::page::of(&facts));
        assert!(text.starts_with("# Migration `cart`: go\n\nFrom mysql://old.example:3306/shop to "), "{text}");
        assert!(!text.contains("secret"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        let carts = lines.iter().find(|line| line.contains("| carts ") && line.contains("copied")).expect("its copy");
        let cells: Vec<&str> = carts.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells, ["carts", "copied", "1970-01-01 01:00:00", "1", "7200", "1h 00m", "2"]);
        assert!(text.contains("a\\|b \\<i>"), "{text}");
        assert!(text.contains("Highest 7.0 s, at 1970-01-01 01:01:00 UTC"), "{text}");
        assert!(text.contains("50 changes a second"), "{text}");
        assert!(lines.iter().any(|line| line.trim_start().starts_with(HEIGHTS) && line.contains('█')), "{text}");
        // Every row of a table has as many cells as its head.
        for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
            let bars = |line: &str| line.replace("\\|", "").matches('|').count();
            assert!(table.trim().lines().all(|line| bars(line) == bars(table.lines().next().unwrap_or_default())));
        }
    }

    #[test]
    fn a_time_without_a_worker_is_a_gap() {
        let mut history = LagHistory::default();
        for step in (0..10).chain(30..40) {
            history.add(step * 10_000_000, 5.0, 0);
        }
        let line = line(&history);
        let blocks = line.lines().next().expect("blocks").trim_start_matches(' ');
        assert_eq!(blocks, format!("{}{}{}", "█".repeat(10), " ".repeat(20), "█".repeat(10)));
    }
}
