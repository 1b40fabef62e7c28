//! `[target]`, and the PostgreSQL beside a target that is none.

use std::{fmt, path::PathBuf};

use serde::Deserialize;

use super::{Config, Mistake, scheme};
use crate::{
    database::{mysql, postgres},
    model::SourceKind,
    target::TargetKind,
};

/// `[target]`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    pub url: String,
    /// The schema that unqualified target tables live in; of MySQL and MariaDB the database that the URL names.
    #[serde(default)]
    pub schema: String,
    /// A PEM file of certificates to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// A SQL file that the worker runs once, when the copy is complete: indexes, unique constraints, foreign keys.
    pub after_copy: Option<PathBuf>,
}

impl fmt::Debug for TargetConfig {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetConfig")
            .field("schema", &self.schema)
            .field("ca_file", &self.ca_file)
            .field("after_copy", &self.after_copy)
            .finish_non_exhaustive()
    }
}

impl TargetConfig {
    /// Which kind of server it is; none for a scheme that is not known.
    pub fn kind(&self) -> Option<TargetKind> {
        TargetKind::of(&self.url)
    }

    /// The database that a URL of MySQL names; empty if it names none.
    pub(super) fn database_of(url: &str) -> String {
        let connector = mysql::connect::Connector::new(url).ok();
        connector.and_then(|connector| connector.database().map(str::to_owned)).unwrap_or_default()
    }

    /// With the schema that it has where none is named.
    pub(super) fn settled(self, mistakes: &mut Vec<Mistake>) -> Self {
        let of_url = match self.kind() {
            Some(TargetKind::Mysql) => {
                if !self.schema.is_empty() {
                    let message = "is not used with MySQL and MariaDB, whose URL names the database; remove it";
                    mistakes.push(Mistake::new("target.schema", message));
                }
                if self.ca_file.is_some() {
                    let message = "is not used with MySQL and MariaDB; write ?ca=FILE in the URL";
                    mistakes.push(Mistake::new("target.ca_file", message));
                }
                Self::database_of(&self.url)
            }
            Some(TargetKind::Postgres) | None if self.schema.is_empty() => "public".into(),
            Some(TargetKind::Postgres) | None => self.schema,
        };
        TargetConfig { schema: of_url, ..self }
    }
}

/// The PostgreSQL that keeps the pipeline's state.
#[derive(Clone)]
pub struct StateConfig<'a> {
    pub url: &'a str,
    /// Where names without a schema are looked for.
    pub schema: &'a str,
    /// A PEM file of certificates to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for StateConfig<'_> {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateConfig").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl Config {
    /// The target, and, where it is no PostgreSQL, the one that runs its transforms.
    pub(super) fn judge_target(&self, wrong: &mut impl FnMut(&str, String)) {
        scheme(&self.target.url, &TargetKind::ALL.map(TargetKind::schemes).concat(), "target.url", wrong);
        if let Some(engine) = &self.transform.engine {
            scheme(engine, TargetKind::Postgres.schemes(), "transform.engine", wrong);
            if let Err(error) = postgres::Address::parse(engine) {
                wrong("transform.engine", error.to_string());
            }
        }
        match self.target.kind() {
            Some(TargetKind::Mysql) => {
                if let Err(error) = mysql::connect::Connector::new(&self.target.url) {
                    wrong("target.url", error.problem_of("target").to_string());
                }
                if self.target.schema.is_empty() {
                    wrong("target.url", "names no database; write mysql://user:password@host:3306/database".into());
                }
                if self.transform.engine.is_none() && SourceKind::of(&self.source.url) != Some(SourceKind::Postgres) {
                    let message = "is missing: a target that is MySQL or MariaDB needs a PostgreSQL that runs the transforms and keeps the \
                                   pipeline's state; name one, postgresql://user:password@host:5432/database";
                    wrong("transform.engine", message.into());
                }
            }
            Some(TargetKind::Postgres) | None => {
                if let Err(error) = postgres::Address::parse(&self.target.url) {
                    wrong("target.url", error.to_string());
                }
                if self.transform.engine.is_some() {
                    wrong(
                        "transform.engine",
                        "is not used: a target that is PostgreSQL runs its transforms; remove it".into(),
                    );
                }
            }
        }
    }

    /// The PostgreSQL that runs the transforms and keeps the pipeline's state: the target, or, where that is none, the
    /// one that `[transform] engine` names, or else the source.
    pub fn state(&self) -> StateConfig<'_> {
        match (self.target.kind(), &self.transform.engine) {
            (Some(TargetKind::Mysql), Some(url)) => StateConfig { url, schema: "public", ca_file: None },
            (Some(TargetKind::Mysql), None) => {
                StateConfig { url: &self.source.url, schema: "public", ca_file: self.source.ca_file.clone() }
            }
            (Some(TargetKind::Postgres) | None, _) => {
                let TargetConfig { url, schema, ca_file, .. } = &self.target;
                StateConfig { url, schema, ca_file: ca_file.as_ref().map(|file| self.path(file)) }
            }
        }
    }
}
