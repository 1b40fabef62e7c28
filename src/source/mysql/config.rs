//! What capture from a binlog takes from `[source]`.

use crate::{
    database::mysql::connect::{ConnectError, Connector},
    model::{Version, ZeroDates, direction::peer_of},
    source::{Cascades, SourceConfig},
};

/// Every mistake of a MySQL source that can be found without a connection, as (key, problem).
pub fn problems(config: &SourceConfig) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    match Connector::new(&config.url) {
        Ok(connector) if connector.database().is_some() => {}
        Ok(_) => {
            problems.push(("source.url", "names no database; write mysql://user:password@host:3306/database".into()))
        }
        Err(error) => problems.push(("source.url", error.to_string())),
    }
    if config.zero_dates().is_none() {
        let problem = "must be \"null\", \"error\", or a date such as \"1970-01-01\"";
        problems.push(("source.zero_dates", problem.into()));
    }
    if config.cascades == Cascades::Target {
        let problem = "\"target\" would lose rows: a parent's key that changes comes there as a delete and an insert, and a \
                       parent that is deleted and made again at once as no delete; leave it out, and children are \
                       read again at the source";
        problems.push(("source.cascades", problem.into()));
    }
    if config.server_id == Some(0) {
        problems.push(("source.server_id", "must be 1 or more, and no other replica's".into()));
    }
    if config.schema.is_some() {
        problems
            .push(("source.schema", "is for PostgreSQL sources; the URL names the database of a MySQL source".into()));
    }
    if config.ca_file.is_some() {
        problems.push(("source.ca_file", "is for PostgreSQL sources; remove it".into()));
    }
    problems
}

impl SourceConfig {
    /// The option `zero_dates`, parsed; none if it cannot be.
    pub fn zero_dates(&self) -> Option<ZeroDates> {
        match self.zero_dates.as_str() {
            "null" => Some(ZeroDates::Null),
            "error" => Some(ZeroDates::Error),
            date => parse_date(date),
        }
    }

    /// What capture needs to know of it, for the pipeline `name`.
    pub fn resolve(&self, name: &str, now_us: fn() -> i64) -> Result<MysqlSourceConfig, ConnectError> {
        Ok(MysqlSourceConfig {
            connector: Connector::new(&self.url)?,
            server_id: self.server_id.unwrap_or_else(|| server_id_of(name)),
            peer: peer_of(name),
            zero_dates: self.zero_dates().unwrap_or_default(),
            clock_ahead_max_us: self.clock_ahead_max_us(),
            clock_min: 0,
            now_us,
        })
    }
}

/// What [`super::MysqlStream`] needs to know.
#[derive(Debug, Clone)]
pub struct MysqlSourceConfig {
    pub connector: Connector,
    pub server_id: u32,
    /// The pipeline that writes here what comes from where this one goes: its transactions are left out.
    pub peer: String,
    pub zero_dates: ZeroDates,
    pub clock_ahead_max_us: i64,
    /// A capture without a stored position begins above this version.
    pub clock_min: Version,
    /// This machine's time, µs since the Unix epoch.
    pub now_us: fn() -> i64,
}

/// A replica's id out of the pipeline's name, in the upper half, where people put none of theirs.
fn server_id_of(name: &str) -> u32 {
    crc32fast::hash(name.as_bytes()) | 0x8000_0000
}

fn parse_date(text: &str) -> Option<ZeroDates> {
    let mut fields = text.split('-');
    let mut next = |digits: usize| {
        let field = fields.next()?;
        (field.len() == digits && field.bytes().all(|byte| byte.is_ascii_digit())).then(|| field.parse::<u16>().ok())?
    };
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if fields.next().is_some() || year == 0 || day == 0 || day > days {
        return None;
    }
    Some(ZeroDates::Replace { year, month: u8::try_from(month).ok()?, day: u8::try_from(day).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_date_can_become_any_real_date() {
        assert_eq!(parse_date("2024-02-29"), Some(ZeroDates::Replace { year: 2024, month: 2, day: 29 }));
        for text in ["2023-02-29", "1970-1-1", "0000-01-01", "1970-13-01", "1970-01-01-01", "+970-01-01", ""] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }
}
