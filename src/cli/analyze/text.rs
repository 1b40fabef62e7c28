//! An analysis as people read it.

use std::fmt;

use super::{Analysis, Rates, Table};

impl fmt::Display for Analysis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.tables.iter().map(|table| table.bytes).sum();
        writeln!(f, "{}: {} table(s), about {} rows, {}", self.source, self.tables.len(), self.rows, size(bytes))?;
        let width = self.tables.iter().map(|table| table.table.chars().count()).max().unwrap_or_default().max(5);
        writeln!(
            f,
            "\n{:width$}  {:>13}  {:>9}  {:>9}  written and read each second; key",
            "table", "rows", "size", "read in"
        )?;
        for table in &self.tables {
            line(f, table, width)?;
        }
        match self.counted_seconds {
            Some(seconds) => writeln!(f, "rates are means over the {} that the server has counted", time(seconds))?,
            None => writeln!(f, "the server does not count what is written and read")?,
        }
        if let Some(seconds) = self.copy_seconds {
            let readers = self.readers;
            writeln!(
                f,
                "\nreading all of it takes about {} with {readers} connection(s), by samples; storing it may take longer",
                time(seconds)
            )?;
        }
        if self.tables.iter().any(|table| !table.parents.is_empty()) {
            writeln!(f, "\nparents first: {}", self.order.join(", "))?;
        }
        for ring in &self.rings {
            writeln!(
                f,
                "refer to each other, so that their keys have to be deferrable or come after the copy: {}",
                ring.join(", ")
            )?;
        }
        let care =
            self.tables.iter().flat_map(|table| table.care.iter().map(move |care| format!("{}: {care}", table.table)));
        list(f, "need care", care)?;
        list(f, "stay behind, or act beside the move", self.beside.iter().cloned())?;
        list(f, "not known", self.unknown.iter().map(ToString::to_string))?;
        list(
            f,
            "`cutover check` says",
            self.check.iter().map(|found| format!("{}: {} -> {}", found.weight, found.what, found.fix)),
        )
    }
}

fn line(f: &mut fmt::Formatter<'_>, table: &Table, width: usize) -> fmt::Result {
    let Table { table: name, rows, bytes, key, rates, read_seconds, .. } = table;
    let used = match rates {
        Some(Rates { inserted, updated, deleted, read }) => {
            format!("+{inserted:.1} ~{updated:.1} -{deleted:.1}, {read:.1}")
        }
        None => "not counted".into(),
    };
    let read = read_seconds.map_or_else(|| "-".into(), time);
    let key = if key.is_empty() { "none".into() } else { key.join(", ") };
    writeln!(f, "{name:width$}  {rows:>13}  {:>9}  {read:>9}  {used}; {key}", size(*bytes))
}

fn list(f: &mut fmt::Formatter<'_>, title: &str, lines: impl Iterator<Item = String>) -> fmt::Result {
    for (number, line) in lines.enumerate() {
        if number == 0 {
            writeln!(f, "\n{title}:")?;
        }
        writeln!(f, "  {line}")?;
    }
    Ok(())
}

/// Bytes in the largest unit that they are one of.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or_else(|| format!("{bytes} B"), |(name, unit)| format!("{:.1} {name}", bytes as f64 / *unit as f64))
}

/// Seconds in the largest unit that they are one of.
fn time(seconds: f64) -> String {
    const UNITS: [(&str, f64); 3] = [("days", 86_400.0), ("h", 3600.0), ("min", 60.0)];
    let unit = UNITS.iter().find(|(_, unit)| seconds >= *unit);
    unit.map_or_else(|| format!("{seconds:.1} s"), |(name, unit)| format!("{:.1} {name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_in_the_largest_unit() {
        assert_eq!([size(0), size(1023), size(1536), size(5 << 40)], ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]);
        assert_eq!([time(0.25), time(90.0), time(7200.0), time(172_800.0)], ["0.2 s", "1.5 min", "2.0 h", "2.0 days"]);
    }
}
