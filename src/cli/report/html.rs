//! The page as one HTML file: no script, nothing that is fetched, light or dark as the reader's system is.

use std::fmt::Write as _;

use super::page::{Bar, Block, GAP_STEPS, Page, Row, Table};
use crate::{
    observe::utc,
    state::lag_history::{LagHistory, LagPoint},
};

const STYLE: &str = include_str!("page.css");
/// The units of the chart's plane; it is stretched to the width of the page.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;

pub(super) fn render(page: &Page) -> String {
    let (title, verdict) = (escaped(&page.title.replace('`', "")), page.verdict());
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}: {verdict}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title} <span class=\"verdict {verdict}\">{verdict}</span></h1>\n"
    );
    for block in &page.blocks {
        match block {
            Block::Heading(heading) => _ = writeln!(text, "<h2>{}</h2>", escaped(heading)),
            Block::Text(paragraph) => _ = writeln!(text, "<p>{}</p>", with_code(paragraph)),
            Block::List(lines) => {
                text.push_str("<ul>\n");
                lines.iter().for_each(|line| _ = writeln!(text, "<li>{}</li>", with_code(line)));
                text.push_str("</ul>\n");
            }
            Block::Table(table) => render_table(&mut text, table),
            Block::Lag(history) => lag(&mut text, history),
            Block::Bars(bars) => render_bars(&mut text, bars),
        }
    }
    text.push_str("</main>\n</body>\n</html>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text between backquotes is a command.
fn with_code(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // Without a partner a backquote is one.
    if parts.len().is_multiple_of(2) {
        return escaped(text);
    }
    let part = |(place, part): (usize, &&str)| {
        if place % 2 == 1 { format!("<code>{}</code>", escaped(part)) } else { escaped(part) }
    };
    parts.iter().enumerate().map(part).collect()
}

fn render_table(text: &mut String, table: &Table) {
    let class = |place: usize| if place >= table.numbers_from { " class=\"number\"" } else { "" };
    text.push_str("<div class=\"table\"><table>\n<thead><tr>");
    for (place, head) in table.head.iter().enumerate() {
        let _ = write!(text, "<th scope=\"col\"{}>{}</th>", class(place), escaped(head));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for Row { is_good, cells } in &table.rows {
        let mark = match is_good {
            Some(true) => " class=\"good\"",
            Some(false) => " class=\"bad\"",
            None => "",
        };
        let _ = write!(text, "<tr{mark}>");
        for (place, cell) in cells.iter().enumerate() {
            let _ = write!(text, "<td{}>{}</td>", class(place), with_code(cell));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table></div>\n");
}

/// The lag over time as a line over an area, with nothing where no worker ran.
fn lag(text: &mut String, history: &LagHistory) {
    let points = history.points();
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
    let top = points.iter().map(|point| point.lag_seconds).fold(0.0, f64::max).max(0.001);
    let span = (last.at_seconds - first.at_seconds).max(1) as f64;
    let x = |point: &LagPoint| (point.at_seconds - first.at_seconds) as f64 / span * WIDTH;
    let y = |point: &LagPoint| HEIGHT - point.lag_seconds.max(0.0) / top * HEIGHT;
    let _ = write!(
        text,
        "<figure class=\"lag\">\n<figcaption>Lag, seconds; the highest is {top:.1}</figcaption>\n\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"Lag over time, at most {top:.1} seconds\">\n"
    );
    let is_near =
        |one: &LagPoint, other: &LagPoint| other.at_seconds - one.at_seconds <= GAP_STEPS * history.step_seconds();
    for run in points.chunk_by(is_near) {
        let (Some(begin), Some(end)) = (run.first(), run.last()) else { continue };
        let line: String = run.iter().map(|point| format!("{:.1},{:.1} ", x(point), y(point))).collect();
        let _ = writeln!(
            text,
            "<polygon points=\"{:.1},{HEIGHT} {line}{:.1},{HEIGHT}\"/><polyline points=\"{line}\"/>",
            x(begin),
            x(end)
        );
    }
    let time = |point: &LagPoint| utc(point.at_us());
    let _ = write!(
        text,
        "</svg>\n<div class=\"axis\"><span>{}</span><span>{} UTC</span></div>\n</figure>\n",
        time(first),
        time(last)
    );
}

fn render_bars(text: &mut String, bars: &[Bar]) {
    text.push_str("<figure class=\"bars\">\n<figcaption>When each table was copied</figcaption>\n");
    for Bar { table, from, to, took } in bars {
        let (name, left, width) = (escaped(table), from * 100.0, (to - from) * 100.0);
        let _ = writeln!(
            text,
            "<div class=\"bar\"><span class=\"name\">{name}</span><span class=\"track\">\
             <span class=\"fill\" style=\"margin-left:{left:.2}%;width:{width:.2}%\"></span></span>\
             <span class=\"took\">{took}</span></div>"
        );
    }
    text.push_str("</figure>\n");
}

#[cfg(test)]
mod tests {
    use super::{super::facts::tests::ready, *};

    fn page_of(facts: &super::super::facts::Facts) -> String {
        render(&super::super::page::of(facts))
    }

    #[test]
    fn a_page_fetches_nothing_and_shows_no_markup_of_others() {
        let text = page_of(&ready());
        assert!(text.contains("<title>Migration cart: go</title>"), "{text}");
        for fetched in ["<script", "http:", "https:", "src=", "url(", "@import", "<link"] {
            assert!(!text.contains(fetched), "{fetched} in {text}");
        }
        assert!(text.contains("a|b &lt;i&gt;") && !text.contains("<i>"), "{text}");
    }

    #[test]
    fn what_is_missed_is_marked_and_says_what_to_do() {
        let mut facts = ready();
        facts.status.dead_letters = 2;
        let text = page_of(&facts);
        assert!(text.contains("<span class=\"verdict no-go\">no-go</span>"), "{text}");
        let row = text.lines().find(|line| line.starts_with("<tr class=\"bad\">")).expect("one is missed");
        assert!(row.contains("open dead letters"), "{row}");
        assert!(text.contains("<li>open dead letters: <code>cutover dlq list</code> shows them"), "{text}");
    }

    #[test]
    fn a_chart_has_a_gap_where_no_worker_ran() {
        let mut facts = ready();
        assert_eq!(page_of(&facts).matches("<polyline").count(), 1);
        facts.lag.add(90_000_000_000, 1.0, 1);
        assert_eq!(page_of(&facts).matches("<polyline").count(), 2);
    }

    #[test]
    fn backquotes_are_commands_only_in_pairs() {
        assert_eq!(with_code("run `a < b` now"), "run <code>a &lt; b</code> now");
        assert_eq!(with_code("one ` alone"), "one ` alone");
    }
}
