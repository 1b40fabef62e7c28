//! `cutover status`.

use std::{fmt::Write as _, io::Write as _, time::Duration};

use super::Failure;
use crate::{
    config::Config,
    control::parts,
    observe::now_us,
    state::{
        status::{Phase, Status},
        verifications::VerifiedTable,
    },
};

pub(crate) async fn status(config: &Config, json: bool, watch: bool) -> Result<(), Failure> {
    let store = parts::store(config)?;
    loop {
        let status = store.proven_status().await.map_err(|error| {
            anyhow::anyhow!("the state of `{}` cannot be read: {error}; has `cutover run` been started?", config.name)
        })?;
        let text = if json {
            serde_json::to_string(&status)? + "\n"
        } else {
            super::about(config, &render(&config.name, &status))
        };
        let mut out = std::io::stdout().lock();
        if watch && !json {
            // Home and clear: a screen that is drawn again in place.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        write!(out, "{text}")?;
        out.flush()?;
        drop(out);
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What is at the target neither as a row nor gone.
fn set_aside(status: &Status, line: &mut impl FnMut(&str, String)) {
    let aged = |count: u64, oldest: Option<f64>| match oldest {
        Some(seconds) => format!("{count}, the oldest for {}", human_seconds(seconds)),
        None => count.to_string(),
    };
    line("waiting", aged(status.waiting, status.waiting_oldest_seconds));
    for waits in &status.waiting_for {
        let since = human_seconds(waits.oldest_seconds);
        line("", format!("{} of {}, for {since}: {}", waits.rows, waits.table, waits.reason));
    }
    if status.cascades > 0 {
        line("cascades", format!("{} parents whose children are read again", status.cascades));
    }
    let dead = aged(status.dead_letters, status.dead_letters_oldest_seconds);
    line("dead letters", if status.dead_letters == 0 { dead } else { format!("{dead}; {}", super::DEAD_LETTERS) });
    if status.dead_letters_discarded > 0 {
        line("discarded", format!("{}: their rows stay as they are at the target", status.dead_letters_discarded));
    }
}

fn render(name: &str, status: &Status) -> String {
    let phase = match status.phase {
        Phase::New => "new",
        Phase::Copying => "copying",
        Phase::Following if status.synced => "following, in step",
        Phase::Following => "following",
    };
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<14}{value}");
    };
    line("pipeline", format!("{name}: {phase}"));
    line(
        "worker",
        match (status.worker_running, status.appliers.is_empty()) {
            (true, _) => "running".into(),
            (false, true) => "not running; start it with `cutover run`".into(),
            (false, false) => "none captures; start one with `cutover run --role capture`".into(),
        },
    );
    for applier in &status.appliers {
        let partitions: Vec<String> = applier.partitions.iter().map(u32::to_string).collect();
        let what = if partitions.is_empty() { "none yet".to_owned() } else { partitions.join(", ") };
        line("applies", format!("{}: partitions {what}", applier.process));
    }
    line("lag", status.lag_seconds.map_or("unknown: nothing is applied yet".into(), |lag| format!("{lag:.2} s")));
    let eta = status.eta_seconds.map(|eta| format!(", about {} left", human_seconds(eta))).unwrap_or_default();
    line("copied", format!("{:.1} %{eta}", status.progress() * 100.0));
    line(
        "throughput",
        format!("{:.0} copied rows/s, {:.0} changes/s", status.copied_rows_per_second, status.changes_per_second),
    );
    set_aside(status, &mut line);
    if let Some(replay) = &status.replay {
        let eta = replay.eta_seconds.map(|eta| format!(", about {} left", human_seconds(eta))).unwrap_or_default();
        let (rows, total) = (replay.rows, replay.rows_total);
        line("replay", format!("{:.1} % from {}: {rows} of {total} rows{eta}", replay.percent, replay.from));
    }
    if !status.verified.is_empty() {
        line("verified", verified(status));
    }
    for (part, what) in &status.retrying {
        line("retrying", format!("{part}: {what}"));
    }
    if let Some(halt) = &status.halted {
        line("HALTED", halt.what.clone());
        line("to do", halt.fix.clone());
    }
    tables(&mut text, status);
    text
}

fn tables(text: &mut String, status: &Status) {
    let width = status.tables.iter().map(|table| table.table.len()).max().unwrap_or(0).max(5);
    let _ = writeln!(text, "\n{:<width$}  {:<8}{:>14}{:>14}{:>14}", "table", "state", "rows", "copied", "applied");
    for table in &status.tables {
        let _ = writeln!(
            text,
            "{:<width$}  {:<8}{:>14}{:>14}{:>14}",
            table.table,
            table.state.name(),
            table.rows,
            table.copied,
            table.applied
        );
    }
}

/// When each table was compared as a whole, and what drifted.
fn verified(status: &Status) -> String {
    let age = |table: &VerifiedTable| human_seconds((now_us() - table.at_us).max(0) as f64 / 1e6);
    let oldest = status.verified.iter().min_by_key(|table| table.at_us).map(age).unwrap_or_default();
    let (compared, all) = (status.verified.len(), status.tables.len());
    let found = match status.drift_rows {
        0 => "no drift".to_owned(),
        rows => format!("{rows} rows drifted; `cutover verify --repair` sends them again"),
    };
    format!("{compared} of {all} tables, the oldest {oldest} ago: {found}")
}

/// `1h 02m`, `3m 05s`, `12s`.
pub(crate) fn human_seconds(seconds: f64) -> String {
    let whole = seconds.ceil().max(0.0) as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        assert_eq!([human_seconds(11.2), human_seconds(185.0), human_seconds(3720.0)], ["12s", "3m 05s", "1h 02m"]);
    }
}
