//! The configuration file: the components' own structs put together.
//!
//! Reading it reports every mistake at once, each with its key path and what is allowed there, and
//! connects to nothing. `${ENV}` is replaced inside string values after parsing, so a secret may
//! hold quotes, and a secret never shows in a message.

#[doc(hidden)]
pub mod fuzz;
mod reverse;
mod sections;
mod target;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use self::{
    reverse::ReverseConfig,
    sections::{HttpConfig, SnapshotConfig, TransformConfig, VerifyConfig, VerifyLog},
    target::{StateConfig, TargetConfig},
};
use crate::{
    log::LogConfig,
    model::{SourceKind, direction::PIPELINE_BYTES_MAX},
    source::SourceConfig,
    target::postgres::ApplyConfig,
};

/// A whole configuration, valid in itself.
#[derive(Debug, Clone)]
pub struct Config {
    /// Keys all state of the pipeline: schema rows, topics, server id.
    pub name: String,
    pub source: SourceConfig,
    pub target: TargetConfig,
    pub log: LogConfig,
    pub transform: TransformConfig,
    pub snapshot: SnapshotConfig,
    pub apply: ApplyConfig,
    pub http: HttpConfig,
    pub verify: VerifyConfig,
    /// What of the target's own changes goes back to the source; nothing without it.
    pub reverse: Option<ReverseConfig>,
    /// The folder of the configuration file, which its paths are relative to.
    pub folder: PathBuf,
}

/// Everything wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
#[error("{}", render(.path, .mistakes))]
pub struct ConfigError {
    pub path: PathBuf,
    pub mistakes: Vec<Mistake>,
}

/// One mistake: where, and what is allowed there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub key: String,
    pub message: String,
}

impl Mistake {
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Mistake { key: key.into(), message: message.into() }
    }
}

fn render(path: &Path, mistakes: &[Mistake]) -> String {
    let mut text = format!("{} has {} mistake(s):", path.display(), mistakes.len());
    for Mistake { key, message } in mistakes {
        text.push_str(&if key.is_empty() { format!("\n  {message}") } else { format!("\n  {key}: {message}") });
    }
    text
}

impl Config {
    /// Reads and validates a configuration file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let fail = |mistake| ConfigError { path: path.to_owned(), mistakes: vec![mistake] };
        let text = std::fs::read_to_string(path).map_err(|error| {
            fail(Mistake::new(
                "",
                format!("cannot be read ({error}); name the file with -c, or write one with `cutover init`"),
            ))
        })?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Self::parse(&text, folder, &|name| std::env::var(name).ok())
            .map_err(|mistakes| ConfigError { path: path.to_owned(), mistakes })
    }

    /// Parses and validates a configuration; `environment` looks up `${ENV}` names.
    pub fn parse(
        text: &str,
        folder: PathBuf,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, Vec<Mistake>> {
        let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| vec![syntax(text, &error)])?;
        let mut mistakes = Vec::new();
        for (key, value) in &mut table {
            interpolate(key, value, environment, &mut mistakes);
        }
        const SECTIONS: [&str; 10] =
            ["name", "source", "target", "log", "transform", "snapshot", "apply", "http", "verify", "reverse"];
        for key in table.keys().filter(|key| !SECTIONS.contains(&key.as_str())) {
            mistakes.push(Mistake::new(key, format!("unknown key; allowed are {}", SECTIONS.join(", "))));
        }
        let name = match table.remove("name") {
            Some(toml::Value::String(name)) => Some(name),
            Some(_) => {
                mistakes.push(Mistake::new("name", "must be a string"));
                None
            }
            None => {
                mistakes.push(Mistake::new(
                    "name",
                    "is missing; it keys all state of the pipeline, for example name = \"cart\"",
                ));
                None
            }
        };
        let source: Option<SourceConfig> = section(&mut table, "source", &mut mistakes);
        let target: Option<TargetConfig> = section(&mut table, "target", &mut mistakes);
        let log: Option<LogConfig> = section(&mut table, "log", &mut mistakes);
        let transform: Option<TransformConfig> = section(&mut table, "transform", &mut mistakes);
        let snapshot: Option<SnapshotConfig> = section(&mut table, "snapshot", &mut mistakes);
        let apply: Option<ApplyConfig> = section(&mut table, "apply", &mut mistakes);
        let http: Option<HttpConfig> = section(&mut table, "http", &mut mistakes);
        let verify: Option<VerifyConfig> = section(&mut table, "verify", &mut mistakes);
        let has_reverse = table.contains_key("reverse");
        let reverse: Option<ReverseConfig> = section(&mut table, "reverse", &mut mistakes);
        let (
            Some(name),
            Some(source),
            Some(target),
            Some(log),
            Some(transform),
            Some(snapshot),
            Some(apply),
            Some(http),
            Some(verify),
            Some(reverse),
        ) = (name, source, target, log, transform, snapshot, apply, http, verify, reverse)
        else {
            return Err(mistakes);
        };
        let source = SourceConfig { ca_file: source.ca_file.map(|file| folder.join(file)), ..source };
        let target = target.settled(&mut mistakes);
        let reverse = has_reverse.then_some(reverse);
        let config = Config { name, source, target, log, transform, snapshot, apply, http, verify, reverse, folder };
        config.judge(&mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// What the types alone cannot tell.
    fn judge(&self, mistakes: &mut Vec<Mistake>) {
        // One mistake shows in several ways: the first is the nearest to its cause.
        let mut wrong = |key: &str, message: String| {
            if mistakes.iter().all(|known| known.key != key) {
                mistakes.push(Mistake::new(key, message));
            }
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if self.name.is_empty() || self.name.len() > PIPELINE_BYTES_MAX || !self.name.chars().all(plain) {
            wrong("name", "must be 1 to 40 of a-z, 0-9, _ and -".into());
        }
        if self.log.debezium.is_some() {
            self.judge_without_source(&mut wrong);
        } else if self.source.url.is_empty() {
            wrong("source.url", "is missing".into());
        } else {
            scheme(&self.source.url, &SourceKind::ALL.map(SourceKind::schemes).concat(), "source.url", &mut wrong);
            for (key, message) in self.source.problems() {
                wrong(key, message);
            }
        }
        self.judge_target(&mut wrong);
        self.judge_reverse(&mut wrong);
        if self.http.listen.parse::<std::net::SocketAddr>().is_err() {
            wrong("http.listen", "must be an address, for example 127.0.0.1:7070".into());
        }
        for (key, value) in [
            ("snapshot.lag_max_seconds", self.snapshot.lag_max_seconds),
            ("http.ready_lag_max_seconds", self.http.ready_lag_max_seconds),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                wrong(key, "must be a number of seconds above 0".into());
            }
        }
        for (key, value, max) in [
            ("snapshot.chunk_rows", self.snapshot.chunk_rows, 1_000_000),
            ("snapshot.parallel", self.snapshot.parallel as u64, 64),
            ("snapshot.apply_parallel", self.snapshot.apply_parallel as u64, 64),
            ("verify.confirm_seconds", self.verify.confirm_seconds, 3600),
            ("verify.repair_rows_max", self.verify.repair_rows_max, 1_000_000),
        ] {
            if value == 0 || value > max {
                wrong(key, format!("must be 1 to {max}"));
            }
        }
        if !(0.0..=1.0).contains(&self.verify.match_min) {
            wrong("verify.match_min", "must be a share of rows, from 0 to 1".into());
        }
        if !(0.0..1.0).contains(&self.verify.count_difference_max.unwrap_or_default()) {
            wrong("verify.count_difference_max", "must be a share of rows, from 0 to below 1".into());
        }
        if self.snapshot.read_units_per_second == Some(0) {
            wrong(
                "snapshot.read_units_per_second",
                "must be 1 or more; leave it out to take half of what the table has".into(),
            );
        }
        for (key, message) in self.log.problems().into_iter().chain(self.apply.problems()) {
            wrong(key, message);
        }
    }

    /// A connector of Debezium captures: what there is no source for is not asked for.
    fn judge_without_source(&self, wrong: &mut impl FnMut(&str, String)) {
        if !self.source.url.is_empty() {
            wrong("source.url", "is not used with [log.debezium], whose connector captures; remove it".into());
        }
        if self.source.tables.as_ref().is_some_and(Vec::is_empty) {
            wrong("source.tables", "names no table; leave it out to follow all that have topics".into());
        }
        if self.target.after_copy.is_some() {
            let message = "is not used with [log.debezium]: nothing tells when the connector's snapshot is complete; remove it, and run the script \
                           yourself when it is";
            wrong("target.after_copy", message.into());
        }
    }

    /// A path of the configuration, made relative to its file.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }
}

fn scheme(url: &str, allowed: &[&str], key: &str, wrong: &mut impl FnMut(&str, String)) {
    let allowed_list = allowed.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(", ");
    match url::Url::parse(url) {
        Ok(parsed) if allowed.contains(&parsed.scheme()) => {}
        Ok(_) => wrong(key, format!("has a scheme that is not supported here; allowed are {allowed_list}")),
        Err(error) => {
            wrong(key, format!("is no URL ({error}); it has the form {}user:password@host:port/database", allowed_list))
        }
    }
}

/// Takes one section out of the file. Every mistake in it is noted: the offending key is removed and
/// the section read again, until it fits or nothing more can be told.
fn section<T: DeserializeOwned>(table: &mut toml::Table, name: &str, mistakes: &mut Vec<Mistake>) -> Option<T> {
    let mut value = table.remove(name).unwrap_or_else(|| toml::Value::Table(toml::Table::new()));
    if value.is_array() {
        mistakes.push(Mistake::new(name, "several of them are not supported yet; write one [section]"));
        return None;
    }
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(section) => return Some(section),
            Err(error) => error,
        };
        let path = error.path().to_string();
        let error = error.into_inner();
        let message = error.message();
        let named = |prefix: &str| message.strip_prefix(prefix).and_then(|rest| rest.split('`').next());
        if let Some(missing) = named("missing field `") {
            let key = format!("{name}.{missing}");
            // A key that was removed below for another mistake is not missing as well.
            if mistakes.iter().all(|mistake| mistake.key != key) {
                mistakes.push(Mistake::new(key, "is missing"));
            }
            return None;
        }
        let offender = named("unknown field `").unwrap_or_else(|| path.split(['.', '[']).next().unwrap_or_default());
        let removed = value.as_table_mut().and_then(|section| section.remove(offender)).is_some();
        let key = if removed { format!("{name}.{offender}") } else { name.to_owned() };
        mistakes.push(Mistake::new(key, plain(message)));
        if !removed {
            return None;
        }
    }
}

/// What the file's syntax lacks and where. The parser's own report quotes the line, which may hold a password.
fn syntax(text: &str, error: &toml::de::Error) -> Mistake {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Mistake::new("", format!("line {line}, column {column} is no TOML: {}", error.message().trim().replace('\n', ", ")))
}

/// A type mismatch in the words of the file instead of this program's, and without the value: it may be a secret.
fn plain(message: &str) -> String {
    // What stands before the last `expected` quotes the value, which may hold anything, even that word.
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return "cannot be read; docs/configuration.md says what is allowed here".to_owned();
    };
    let listed = expected.trim_start_matches("one of ");
    if found.starts_with("unknown field `") {
        return format!("unknown key; allowed are {}", listed.replace('`', ""));
    }
    if found.starts_with("unknown variant `") {
        return format!("must be one of {}", listed.replace('`', "\""));
    }
    let found = found.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
    let found = match found.split(['"', '`']).next().unwrap_or_default().trim() {
        "sequence" => "list",
        "map" => "section",
        other => other,
    };
    let expected = match expected {
        "a string" | "path string" | "string" => "text in quotes",
        "a sequence" => "a list, such as [\"a\", \"b\"]",
        "u16" | "u32" | "u64" | "usize" => "a whole number of 0 or more",
        "f64" => "a number",
        _ if expected.starts_with("struct ") => "a section of its own, with its keys below",
        other => other,
    };
    format!("must be {expected}, and is of the type {found}")
}

/// Replaces `${NAME}` in every string below `value`.
fn interpolate(
    path: &str,
    value: &mut toml::Value,
    environment: &dyn Fn(&str) -> Option<String>,
    mistakes: &mut Vec<Mistake>,
) {
    match value {
        toml::Value::String(text) => {
            if let Some(replaced) = expand(path, text, environment, mistakes) {
                *text = replaced;
            }
        }
        toml::Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                interpolate(&format!("{path}[{index}]"), item, environment, mistakes);
            }
        }
        toml::Value::Table(table) => {
            for (key, item) in table.iter_mut() {
                interpolate(&format!("{path}.{key}"), item, environment, mistakes);
            }
        }
        toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) | toml::Value::Datetime(_) => {}
    }
}

fn expand(
    path: &str,
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    mistakes: &mut Vec<Mistake>,
) -> Option<String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        expanded.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('}') else {
            mistakes.push(Mistake::new(path, "has `${` without `}`"));
            return None;
        };
        let name = &rest[start + 2..start + length];
        match environment(name) {
            Some(found) if expanded.contains("://") => expanded.push_str(&percent_encode(&found)),
            Some(found) => expanded.push_str(&found),
            None => mistakes.push(Mistake::new(
                path,
                format!("the environment variable {name} is not set; export {name}=… before starting cutover"),
            )),
        }
        rest = &rest[start + length + 1..];
    }
    expanded.push_str(rest);
    Some(expanded)
}

/// A secret inside a URL may hold any character: it is percent-encoded. (A whole URL that comes from
/// the environment is taken as it is.)
fn percent_encode(secret: &str) -> String {
    let mut encoded = String::with_capacity(secret.len());
    for byte in secret.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
