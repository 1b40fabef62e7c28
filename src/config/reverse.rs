//! `[reverse]`, and the configuration of the way back that follows from it.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Config, SourceConfig, TargetConfig, TransformConfig, VerifyConfig};
use crate::{
    model::{
        SourceKind,
        direction::{PIPELINE_BYTES_MAX, REVERSE, is_reverse, reverse_of},
    },
    source::Cascades,
    target::TargetKind,
};

/// `[reverse]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReverseConfig {
    /// `fallback`: one side is written at a time.
    pub mode: String,
    /// The folder of the transforms from the target's tables to the source's.
    pub transforms: PathBuf,
}

impl Default for ReverseConfig {
    fn default() -> Self {
        ReverseConfig { mode: "fallback".into(), transforms: "reverse".into() }
    }
}

impl Config {
    /// Whether what this pipeline goes to is captured as well, by its other direction.
    pub fn goes_both_ways(&self) -> bool {
        self.reverse.is_some() || self.is_reverse()
    }

    /// Whether this is a way back, which copies nothing.
    pub fn is_reverse(&self) -> bool {
        is_reverse(&self.name)
    }

    /// The way back: from the target to the source, with state, log and slot of its own, which are called after its
    /// name. None without `[reverse]`. Which tables it reads is not in it: those that the way there fills.
    pub fn reversed(&self) -> Option<Config> {
        let reverse = self.reverse.as_ref()?;
        let ca_file = self.target.ca_file.as_ref().map(|file| self.path(file));
        let source = SourceConfig {
            url: self.target.url.clone(),
            tables: None,
            zero_dates: "null".into(),
            clock_ahead_max_seconds: self.source.clock_ahead_max_seconds,
            cascades: Cascades::default(),
            server_id: None,
            schema: Some(self.target.schema.clone()),
            ca_file,
        };
        // A target's file is relative to the configuration, and this one is not any more.
        let ca_file =
            self.source.ca_file.as_ref().map(|file| std::path::absolute(file).unwrap_or_else(|_| file.clone()));
        let target =
            TargetConfig { url: self.source.url.clone(), schema: self.source_schema(), ca_file, after_copy: None };
        Some(Config {
            name: reverse_of(&self.name),
            source,
            target,
            log: self.log.clone(),
            transform: TransformConfig { folder: reverse.transforms.clone(), engine: None },
            snapshot: self.snapshot.clone(),
            apply: self.apply.clone(),
            http: self.http.clone(),
            // The rows that it writes are compared on the way there.
            verify: VerifyConfig { rows_per_second: 0, auto_repair: false, ..self.verify.clone() },
            reverse: None,
            folder: self.folder.clone(),
        })
    }

    /// Where the source's tables are, as a target's.
    fn source_schema(&self) -> String {
        match self.source.kind() {
            Some(SourceKind::Mysql) => TargetConfig::database_of(&self.source.url),
            Some(SourceKind::Postgres | SourceKind::Dynamo) | None => self.source.postgres_schema().to_owned(),
        }
    }

    /// What of `[reverse]` is wrong, or of the rest because of it.
    pub(super) fn judge_reverse(&self, wrong: &mut impl FnMut(&str, String)) {
        if self.is_reverse() {
            wrong("name", format!("must not end with {REVERSE}, which is the name of a pipeline's way back"));
        }
        let Some(reverse) = &self.reverse else { return };
        match reverse.mode.as_str() {
            "fallback" => {}
            "two-way" => {
                let message = "cannot be \"two-way\" yet: both sides written at the same time are not there; write \"fallback\", and \
                               have one side written at a time";
                wrong("reverse.mode", message.into());
            }
            _ => wrong("reverse.mode", "must be \"fallback\"".into()),
        }
        if self.name.len() + REVERSE.len() > PIPELINE_BYTES_MAX {
            let most = PIPELINE_BYTES_MAX - REVERSE.len();
            wrong(
                "name",
                format!("must be 1 to {most} of a-z, 0-9, _ and - with [reverse], whose pipeline is NAME{REVERSE}"),
            );
        }
        if self.log.debezium.is_some() {
            let message =
                "is not used with [log.debezium]: a connector does not tell whose a change is; remove one of both";
            wrong("reverse", message.into());
        } else if !matches!(self.source.kind(), Some(SourceKind::Mysql | SourceKind::Postgres)) {
            wrong("source.url", "must be MySQL, MariaDB or PostgreSQL with [reverse], which writes to it".into());
        }
        if self.target.kind() != Some(TargetKind::Postgres) {
            wrong("target.url", "must be PostgreSQL with [reverse], which captures it".into());
        }
        if self.verify.auto_repair {
            let message = "is not used with [reverse]: it would take what the new side's users change for drift; remove one of both";
            wrong("verify.auto_repair", message.into());
        }
    }
}
