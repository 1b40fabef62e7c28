//! What the fuzz target of the configuration runs: any text is a configuration or a list of mistakes, no mistake shows
//! what an environment variable holds, and any password reaches its URL whole.

use std::path::PathBuf;

use super::Config;
use crate::{database::postgres, log::embedded::EmbeddedSettings, model::fuzz::Input};

/// In every value that the environment holds, in lower case, as URLs keep it.
const SECRET: &str = "hunter2";
/// What the variables of a file are set to, by the first byte.
const VALUES: [&str; 8] = [
    "hunter2",
    "mysql://u:hunter2@127.0.0.1/shop",
    "postgresql://u:hunter2@127.0.0.1/shop",
    "hunter2://u@h/shop",
    "mysql://u:p@1?hunter2@h/shop",
    "postgresql://u:p@1?tls=hunter2@h/shop",
    "hunter2`, expected 'x'\n, expected hunter2",
    "file:\"hunter2\"://${hunter2}",
];

/// The first byte says whether the rest is a file, and what its variables are set to, or a password.
pub fn config(bytes: &[u8]) {
    let Some((first, Ok(rest))) = bytes.split_first().map(|(first, rest)| (first, str::from_utf8(rest))) else {
        return;
    };
    if first & 1 == 0 {
        file(rest, VALUES[usize::from(first >> 1) % VALUES.len()]);
    } else {
        password(&mut Input::new(rest.as_bytes()));
    }
}

/// Every variable is set but `NONE`.
fn file(text: &str, value: &str) {
    let environment = |name: &str| (name != "NONE").then(|| value.to_owned());
    match Config::parse(text, PathBuf::from("/etc/cutover"), &environment) {
        Ok(config) => usable(&config),
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "a refusal says why");
            for mistake in &mistakes {
                assert!(!mistake.message.contains(SECRET), "{} shows a value", mistake.key);
            }
        }
    }
}

/// What is made of a configuration that was accepted.
fn usable(config: &Config) {
    assert!(config.source.resolve(&config.name, || 0).is_ok(), "an accepted source can be connected to");
    assert!(postgres::Address::parse(&config.target.url).is_ok(), "an accepted target can be connected to");
    assert!(config.log.folder(&config.folder).is_some(), "an accepted log has a folder");
    let settings = EmbeddedSettings::from(&config.log);
    assert!(settings.segment_bytes <= settings.bytes_max && settings.retention_ms >= 0);
    assert!((1..=1_000_000).contains(&config.snapshot.chunk_rows));
}

/// Any password, in both URLs.
fn password(input: &mut Input<'_>) {
    let secret = String::from_utf8_lossy(input.rest()).into_owned();
    let text = "name = 'cart'\n[source]\nurl = 'mysql://u:${P}@h/shop'\n[target]\nurl = 'postgresql://u:${P}@h/shop'";
    let parsed = Config::parse(text, PathBuf::new(), &|_| Some(secret.clone()));
    let Ok(config) = parsed else { return assert!(parsed.is_ok(), "any password is accepted") };
    for url in [&config.source.url, &config.target.url] {
        let written = url.split_once("u:").and_then(|(_, rest)| rest.split_once('@'));
        let written = written.map(|(password, _)| decoded(password));
        assert_eq!(written.as_deref(), Some(secret.as_bytes()), "a password reaches its URL whole");
    }
    usable(&config);
}

/// What a percent-encoded text stands for.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, tail)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let (hex, tail) = tail.split_at_checked(2).unwrap_or((tail, ""));
        bytes.extend(u8::from_str_radix(hex, 16).ok());
        rest = tail;
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}
