//! Progress of `run` for people: bars on a terminal, plain lines in a log.

use std::{
    io::{IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::status::human_seconds;
use crate::state::status::{Phase, Status};

/// How often a line is written while tables are copied, and while the stream is only followed.
const LINE_EVERY_COPYING: Duration = Duration::from_secs(5);
const LINE_EVERY_FOLLOWING: Duration = Duration::from_secs(60);

struct Screen {
    bars: MultiProgress,
    summary: ProgressBar,
    tables: Vec<(String, ProgressBar)>,
}

struct Shown {
    screen: Option<Screen>,
    last_line: Option<Instant>,
    last_phase: Option<Phase>,
}

static SHOWN: Mutex<Shown> = Mutex::new(Shown { screen: None, last_line: None, last_phase: None });

/// Shows a status: called about once a second by the worker.
pub(crate) fn show(status: &Status) {
    let mut shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if std::io::stderr().is_terminal() {
        shown.screen.get_or_insert_with(Screen::new).draw(status);
        return;
    }
    let every = if status.phase == Phase::Following { LINE_EVERY_FOLLOWING } else { LINE_EVERY_COPYING };
    let due = shown.last_line.is_none_or(|last| last.elapsed() >= every);
    if due || shown.last_phase != Some(status.phase) {
        shown.last_line = Some(Instant::now());
        shown.last_phase = Some(status.phase);
        tracing::info!("{}", summary(status));
    }
}

/// One line: where it stands, how fast, how far behind.
fn summary(status: &Status) -> String {
    let lag = status.lag_seconds.map_or("unknown".into(), |lag| format!("{lag:.1} s"));
    let eta = status.eta_seconds.map(|eta| format!(", eta {}", human_seconds(eta))).unwrap_or_default();
    let copied = match status.phase {
        Phase::New => "starting".into(),
        Phase::Copying => {
            format!("copied {:.1} %{eta}, {:.0} rows/s", status.progress() * 100.0, status.copied_rows_per_second)
        }
        Phase::Following if status.synced => "in step".into(),
        Phase::Following => "following".into(),
    };
    let mut line = format!("{copied}, {:.0} changes/s, lag {lag}", status.changes_per_second);
    for (count, what) in [(status.waiting, "waiting"), (status.dead_letters, "dead letters")] {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    line
}

impl Screen {
    fn new() -> Self {
        let bars = MultiProgress::new();
        let summary = bars.add(ProgressBar::no_length());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            summary.set_style(style);
        }
        Screen { bars, summary, tables: Vec::new() }
    }

    fn draw(&mut self, status: &Status) {
        for table in &status.tables {
            let known = self.tables.iter().position(|(name, _)| *name == table.table);
            let index = known.unwrap_or_else(|| {
                let bar = self.bars.insert_before(&self.summary, ProgressBar::new(table.rows));
                let template = "{prefix:24!} {wide_bar} {human_pos}/{human_len}  eta {eta}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_prefix(table.table.clone());
                self.tables.push((table.table.clone(), bar));
                self.tables.len() - 1
            });
            let Some((_, bar)) = self.tables.get(index) else { continue };
            bar.set_length(table.rows.max(table.copied));
            bar.set_position(table.copied);
        }
        self.summary.set_message(summary(status));
        self.summary.tick();
    }
}

/// Where logs go: stderr, above the bars where there are any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogWriter;

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for LogWriter {
    type Writer = LogLine;

    fn make_writer(&'a self) -> LogLine {
        LogLine(Vec::new())
    }
}

/// One log line, written whole when it is dropped.
#[derive(Debug)]
pub(crate) struct LogLine(Vec<u8>);

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let line = &self.0;
        // `show` logs while it holds the lock, on no terminal: then there are no bars to keep clear of.
        let shown = SHOWN.try_lock();
        let written = match shown.as_ref().ok().and_then(|shown| shown.screen.as_ref()) {
            Some(screen) => screen.bars.suspend(|| std::io::stderr().write_all(line)),
            None => std::io::stderr().write_all(line),
        };
        // There is nowhere left to report a broken stderr to.
        drop(written);
    }
}
