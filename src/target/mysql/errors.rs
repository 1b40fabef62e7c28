//! What an error of MySQL or MariaDB means: for a batch, and for who looks at the target.

use mysql_async::ServerError;

use crate::{
    database::{
        mysql::{
            catalog::CatalogError,
            connect::{self, ConnectError, QueryError},
        },
        postgres::Refusal,
    },
    model::{Disposition, Problem},
    target::{ApplyError, rows::RowsError},
};

/// A unique value that another row has, as PostgreSQL calls it.
pub(super) const TAKEN: &str = "23505";
/// A limit that a row is over.
pub(super) const TOO_LARGE: &str = "54000";

/// `ER_DUP_ENTRY`, `ER_DUP_ENTRY_WITH_KEY_NAME`.
const DUPLICATE: [u16; 2] = [1062, 1586];
/// The server takes no writes for now: `--read-only`, `--super-read-only`, a lock of all tables, a cluster that is not
/// ready (1047, 3098, 3101); or it ran out of something (1021, 1114, 1180, 1206), or of patience with a session that
/// rested (4031).
const PASSES: [u16; 11] = [1021, 1047, 1114, 1180, 1206, 1223, 1290, 1836, 3098, 3101, 4031];
/// What a value is to blame for, besides SQLSTATE classes 22 and 23: a check (3819; MariaDB 4025), a character that the
/// column has not (1366), a cut value (1265), one of another type (1411, 1525), a view's check (1369), a trigger's
/// SIGNAL (1644), a row that is too large (1118, 1153, 1301), a partition that is not there (1526), a geometry (1416,
/// 3037, 3548).
const OF_A_ROW: [u16; 22] = [
    1048, 1118, 1153, 1264, 1265, 1292, 1301, 1364, 1366, 1367, 1369, 1406, 1411, 1416, 1525, 1526, 1644, 1690, 3037,
    3548, 3819, 4025,
];
/// Those whose message quotes the value, where nobody can tell where it ends.
const QUOTED: [(u16, &str); 5] = [
    (1064, "an error of syntax"),
    (1367, "an illegal number"),
    (1525, "a value that is none of the column's type"),
    (1526, "no partition for a value"),
    (1690, "a value out of range"),
];
const OF_JSON: std::ops::RangeInclusive<u16> = 3140..=3158;

/// Why the target could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.problem())]
pub enum MysqlError {
    Connect(#[from] ConnectError),
    Query(#[from] QueryError),
    Catalog(#[from] CatalogError),
    /// It cannot be used as it is.
    Unusable(Problem),
}

impl MysqlError {
    /// What is wrong, and what to do about it.
    pub fn problem(&self) -> Problem {
        match self {
            MysqlError::Connect(error) => error.problem_of("target"),
            MysqlError::Query(error) => {
                error.problem().or("run `cutover check`, which compares the target with what is needed")
            }
            MysqlError::Catalog(error) => error.problem().at("the target"),
            MysqlError::Unusable(problem) => problem.clone(),
        }
    }

    /// Whether trying again can help.
    pub fn disposition(&self) -> Disposition {
        match self {
            MysqlError::Connect(error) => error.disposition(),
            MysqlError::Query(error) => error.disposition(),
            MysqlError::Catalog(error) => error.disposition(),
            MysqlError::Unusable(_) => Disposition::Halt,
        }
    }
}

impl From<MysqlError> for ApplyError {
    fn from(error: MysqlError) -> Self {
        match error.disposition() {
            Disposition::Halt | Disposition::DeadLetter => ApplyError::Halt(error.problem()),
            Disposition::Retry => ApplyError::Unreachable(error.to_string()),
        }
    }
}

/// What an error of a statement that writes means.
pub(super) fn of_writing(error: mysql_async::Error) -> RowsError {
    match error {
        mysql_async::Error::Server(error) => of_server(&error),
        other => RowsError::Stop(ApplyError::Unreachable(other.to_string())),
    }
}

/// An error of a statement of ours, which has no row to blame.
pub(super) fn no_row(error: RowsError) -> ApplyError {
    match error {
        RowsError::Stop(error) => error,
        RowsError::Row(refusal) => ApplyError::Halt(Problem::new(
            format!("the target refused cutover's own tables: {refusal}"),
            "let nothing else write to the database `cutover`, and start again",
        )),
    }
}

fn of_server(error: &ServerError) -> RowsError {
    let ServerError { code, message, state } = error;
    let passes =
        PASSES.contains(code) || connect::disposition(&mysql_async::Error::Server(error.clone())) == Disposition::Retry;
    if passes {
        let message = without_value(*code, message);
        return RowsError::Stop(ApplyError::Transient { sqlstate: state.clone(), message });
    }
    let of_a_value =
        matches!(state.get(..2), Some("22" | "23" | "45")) || OF_JSON.contains(code) || OF_A_ROW.contains(code);
    if of_a_value { RowsError::Row(refusal(*code, state, message)) } else { RowsError::Stop(refused(*code, message)) }
}

/// A statement that is refused whichever row it has.
fn refused(code: u16, message: &str) -> ApplyError {
    ApplyError::Halt(Problem::new(
        format!("the target refused a statement: {} (error {code})", without_value(code, message)),
        "run `cutover check`, which compares the transforms with the target's tables and privileges",
    ))
}

/// What a row was refused for. SQLSTATEs that say little (HY000, 01000) become that of a value in general.
pub(super) fn refusal(code: u16, state: &str, message: &str) -> Box<Refusal> {
    let sqlstate = match state.get(..2) {
        _ if DUPLICATE.contains(&code) => TAKEN,
        Some("22" | "23") => state,
        _ => "22000",
    };
    of_row(sqlstate, format!("{} (error {code})", without_value(code, message)))
}

pub(super) fn of_row(sqlstate: &str, message: impl Into<String>) -> Box<Refusal> {
    Box::new(Refusal::new(sqlstate, message))
}

/// A message without the value that it quotes.
fn without_value(code: u16, message: &str) -> String {
    if let Some((_, told)) = QUOTED.iter().find(|(quoted, _)| *quoted == code) {
        return (*told).to_owned();
    }
    let tail = |mark: &str| message.rfind(mark).and_then(|at| message.get(at..));
    if DUPLICATE.contains(&code) {
        return format!("Duplicate entry{}", tail(" for key ").unwrap_or_default());
    }
    match message.split_once(" value: '") {
        Some((what, _)) => {
            let place = [" for column ", " for function "].into_iter().find_map(tail);
            format!("{what} value{}", place.unwrap_or_default())
        }
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u16, state: &str, message: &str) -> RowsError {
        of_server(&ServerError { code, state: state.into(), message: message.into() })
    }

    #[test]
    fn no_message_quotes_a_value() {
        for (code, message, told) in [
            (1062, "Duplicate entry 'a for key b' for key 'users.email'", "Duplicate entry for key 'users.email'"),
            (
                1366,
                "Incorrect string value: '\\xF0\\x9F' for column 'name' at row 2",
                "Incorrect string value for column 'name' at row 2",
            ),
            (1292, "Truncated incorrect DOUBLE value: 'a secret for y'", "Truncated incorrect DOUBLE value"),
            (1525, "Incorrect DATE value: 'secret'", "a value that is none of the column's type"),
            (1526, "Table has no partition for value 42", "no partition for a value"),
            (1406, "Data too long for column 'name' at row 1", "Data too long for column 'name' at row 1"),
        ] {
            assert_eq!(without_value(code, message), told);
        }
    }

    #[test]
    fn what_one_value_can_cause_is_its_rows_and_the_rest_is_not() {
        assert!(matches!(server(1062, "23000", "x"), RowsError::Row(refusal) if refusal.sqlstate == TAKEN));
        assert!(matches!(server(1366, "HY000", "x"), RowsError::Row(refusal) if refusal.sqlstate == "22000"));
        assert!(matches!(server(3141, "22032", "x"), RowsError::Row(refusal) if refusal.sqlstate == "22032"));
        assert!(matches!(server(1213, "40001", "x"), RowsError::Stop(ApplyError::Transient { .. })));
        assert!(matches!(server(1290, "HY000", "x"), RowsError::Stop(ApplyError::Transient { .. })));
        assert!(matches!(server(1525, "HY000", "x"), RowsError::Row(_)));
        assert!(matches!(server(4031, "HY000", "x"), RowsError::Stop(ApplyError::Transient { .. })));
        assert!(matches!(server(1146, "42S02", "x"), RowsError::Stop(ApplyError::Halt(_))));
    }
}
