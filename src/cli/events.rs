//! `cutover status --events`.

use std::{io::Write as _, time::Duration};

use super::Failure;
use crate::{config::Config, control::parts, state::events::ShownEvent};

const POLL_EVERY: Duration = Duration::from_secs(1);
/// Fields that every event has; a line for people begins with what matters of them.
const ENVELOPE: [&str; 3] = ["ts_ms", "pipeline", "event"];

pub(crate) async fn events(config: &Config, json: bool, watch: bool) -> Result<(), Failure> {
    let store = parts::store(config)?;
    let mut shown = 0;
    loop {
        let events = store.events_after(shown).await.map_err(|error| {
            anyhow::anyhow!("the events of `{}` cannot be read: {error}; has `cutover run` been started?", config.name)
        })?;
        let mut out = std::io::stdout().lock();
        for event in &events {
            let line = if json { event.event.line() } else { render(event) };
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        drop(out);
        shown = events.last().map_or(shown, |event| event.event.sequence);
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// `2026-01-31 12:00:00  table_completed  copy=1 duration_seconds=1.5 …`
fn render(shown: &ShownEvent) -> String {
    let body: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&shown.event.body).unwrap_or_default();
    let name = body.get("event").and_then(|name| name.as_str()).unwrap_or("unknown");
    let fields: Vec<String> = body
        .iter()
        .filter(|(field, value)| !ENVELOPE.contains(&field.as_str()) && !value.is_null())
        .map(|(field, value)| match value.as_str() {
            Some(text) => format!("{field}={text}"),
            None => format!("{field}={value}"),
        })
        .collect();
    format!("{}  {name:<24}  {}", shown.at, fields.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{Event, NumberedEvent};

    #[test]
    fn a_line_for_people_has_the_time_the_name_and_what_is_not_null() {
        let event = Event::PhaseChanged { from: None, to: "copying".into(), halted: None };
        let body = event.body("cart", 0).expect("it can be written");
        let event = NumberedEvent { id: "i".into(), sequence: 1, body };
        let line = render(&ShownEvent { event, at: "1970-01-01 00:00:00".into() });
        assert_eq!(line, "1970-01-01 00:00:00  phase_changed             to=copying");
    }
}
