//! What a change of the catalog means for what was captured: nothing, another copy, or a halt.
//!
//! Pure: what enters are two fingerprints, what leaves is the judgement. What is not known to be harmless is copied
//! again.
//!
//! | changed | means |
//! |---|---|
//! | a file alone (`VACUUM FULL`, `CLUSTER`, another tablespace); `TRUNCATE`, which the stream tells | nothing |
//! | a file of a table that may have been unlogged for a while, as no publication names it | a copy |
//! | a file, and a column's row in the catalog (`ALTER COLUMN … TYPE … USING`) | a copy, for that column |
//! | a column's name, type, or what its type is made of; a column that came | a copy, for that column |
//! | the key; the table under the name; how the publication sends the table, or what it sends at all | a copy |
//! | a partition that was attached with rows, detached or dropped, or that is stored in another file | a copy |
//! | a partition that the stream spoke of, and that had gone before anybody looked | a copy |
//! | a partition that was made as one or attached empty, a column that went, a label that came | nothing |
//! | no table under the name, or one that is a partition now; an unlogged partition; no publication | a halt |

use std::collections::BTreeSet;

use super::COPY_AGAIN;
use crate::{
    database::postgres::{
        catalog,
        fingerprint::{ColumnMark, FileMark, Fingerprint, TableMark},
        sql, tables,
    },
    model::{Problem, TableName},
};

/// A table to be copied again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) table: TableName,
    /// Columns whose values may have changed; a transform that uses none of them needs no copy.
    pub(super) columns: Vec<String>,
    pub(super) why: &'static str,
}

/// What keeps capture from going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// There is no such table. It may come back at once: a swap is two statements.
    Gone(Problem),
    /// What is changed from now on is in no log.
    Unlogged(Problem),
    /// What the source logs from now on, or has logged, is not sent.
    Lost(Problem),
}

/// What keeps these tables from being captured, whatever was known before.
pub(super) fn obstacle(known: &Fingerprint, found: &Fingerprint, watched: &[TableName]) -> Option<Obstacle> {
    if found.publication.is_none() {
        let what = "the source has no publication for the pipeline any more, so that it cannot send what was changed";
        return Some(Obstacle::Lost(Problem::new(what, COPY_AGAIN)));
    }
    watched.iter().find_map(|table| {
        let Some(mark) = found.named(table) else {
            let other = known.named(table).and_then(|known| found.numbered(known.oid)).map(TableMark::table);
            let what = match &other {
                Some(other) => format!("the source's table {table} is called {other} now"),
                None => format!("the source has no table {table} any more"),
            };
            let remedy = match &other {
                Some(other) if other.schema == table.schema => format!(
                    "ALTER TABLE {} RENAME TO {} and start again; or name in [source] tables, and in the transforms, what \
                     takes its place",
                    sql::table(other),
                    sql::ident(&table.table)
                ),
                Some(other) => format!(
                    "ALTER TABLE {} SET SCHEMA {} (and its name {}) and start again; or take it out of [source] tables",
                    sql::table(other),
                    sql::ident(&table.schema),
                    sql::ident(&table.table)
                ),
                None => "make it again and start again, which copies it; or take it out of [source] tables".into(),
            };
            return Some(Obstacle::Gone(Problem::new(what, remedy)));
        };
        if mark.is_partition {
            let what = format!("the source's table {table} is a partition now");
            let remedy = "detach it and start again; or name the root in [source] tables";
            return Some(Obstacle::Gone(Problem::new(what, remedy)));
        }
        let unlogged = mark.files.iter().find(|file| file.since.is_some() && file.unlogged)?;
        let partition = sql::table(&TableName::new(&unlogged.schema, &unlogged.name));
        Some(Obstacle::Unlogged(tables::unlogged(&partition, table)))
    })
}

/// Whether the publication does not send what it did, or not the same way, or is to send another table.
pub(super) fn is_sent_otherwise(known: &Fingerprint, found: &Fingerprint, watched: &[TableName]) -> bool {
    known.publication != found.publication
        || watched.iter().any(|table| match (known.named(table), found.named(table)) {
            (Some(known), Some(found)) => known.sent != found.sent || known.oid != found.oid,
            (known, found) => known.is_some() || found.is_some(),
        })
}

/// The partitions that came otherwise than by being made as one: what they bring is in no stream, unless they bring
/// nothing.
pub(super) fn attached(known: &Fingerprint, found: &Fingerprint) -> Vec<u32> {
    let new = |now: &TableMark| {
        let before = known.named(&now.table());
        let is_new = |file: &&FileMark| before.is_some_and(|before| file_before(before, file).is_none());
        now.files.iter().filter(is_new).filter(|file| !is_born(file)).map(|file| file.oid).collect::<Vec<_>>()
    };
    found.tables.iter().flat_map(new).collect()
}

/// The tables to be copied again, of which every one was found. Of partitions that were attached, these are `empty`.
pub(super) fn copies(
    known: &Fingerprint,
    found: &Fingerprint,
    watched: &[TableName],
    empty: &BTreeSet<u32>,
) -> Vec<Copy> {
    let publication = known.publication != found.publication;
    let judged = watched.iter().filter_map(|table| {
        let now = found.named(table)?;
        let before = known.named(table);
        let (columns, why) = match before {
            Some(_) if publication => (all(now), "the publication was altered"),
            None => (all(now), "nothing is known of how it was captured before"),
            Some(before) => copied(before, now, empty)?,
        };
        let names: BTreeSet<&str> = columns.into_iter().collect();
        Some(Copy { table: table.clone(), columns: names.into_iter().map(str::to_owned).collect(), why })
    });
    judged.collect()
}

fn all(table: &TableMark) -> Vec<&str> {
    table.columns.iter().filter(|column| !column.absent).map(|column| column.name.as_str()).collect()
}

/// The columns that a copy is needed for, and why; none if nothing is.
fn copied<'a>(
    before: &'a TableMark,
    now: &'a TableMark,
    empty: &BTreeSet<u32>,
) -> Option<(Vec<&'a str>, &'static str)> {
    if before.oid != now.oid {
        return Some((all(now), "another table has taken its name"));
    }
    if before.disturbed {
        return Some((all(now), "its name was another table's for a while"));
    }
    if before.strangers.iter().any(|stranger| !now.has_partition(*stranger)) {
        return Some((all(now), "a partition came and went between two looks"));
    }
    if before.sent != now.sent {
        return Some((all(now), "the publication did not always send all of its changes"));
    }
    if before.key != now.key {
        return Some((all(now), "its key was changed"));
    }
    if let Some(why) = partitions(before, now, empty) {
        return Some((all(now), why));
    }
    let rewritten = has_other_files(before, now);
    // What a publication names cannot be set to be unlogged.
    if rewritten && now.sent.as_ref().is_some_and(|sent| !sent.by.starts_with("table ")) {
        return Some((all(now), "it is stored anew, and may not have been logged for a while"));
    }
    let columns: Vec<&str> = now
        .columns
        .iter()
        .filter(|column| !column.absent && !catalog::is_own(&column.name))
        .flat_map(|column| {
            let known = before.columns.iter().find(|known| known.number == column.number && !known.absent);
            altered(known, column, rewritten)
        })
        .collect();
    (!columns.is_empty()).then_some((columns, "columns were altered"))
}

/// The names, then and now, of a column whose values may be other ones.
fn altered<'a>(before: Option<&'a ColumnMark>, now: &'a ColumnMark, rewritten: bool) -> Vec<&'a str> {
    let Some(before) = before else { return vec![&now.name] };
    // A composite shows one more member in every row; an enum has only one more label to choose from.
    let other_meaning = before.meanings.iter().any(|(part, meaning)| now.meanings.get(part) != Some(meaning))
        || now.meanings.keys().any(|part| part.contains('.') && !before.meanings.contains_key(part));
    let other_values = rewritten && before.version != now.version;
    if before.name != now.name || before.type_oid != now.type_oid || other_meaning || other_values {
        return vec![&before.name, &now.name];
    }
    Vec::new()
}

/// Whether the table, or a partition that it had and has, is stored in another file.
fn has_other_files(before: &TableMark, now: &TableMark) -> bool {
    now.files.iter().any(|file| file_before(before, file).is_some_and(|known| known.file != file.file))
}

fn file_before<'a>(before: &'a TableMark, file: &FileMark) -> Option<&'a FileMark> {
    before.files.iter().find(|known| known.oid == file.oid)
}

/// Whether a partition was made as one, and is stored where it was then: a file is first called as its table.
fn is_born(file: &FileMark) -> bool {
    file.born && (file.file == 0 || file.file == file.oid)
}

/// Why partitions that came, went or were emptied ask for a copy. One that is truncated by itself is not in the stream
/// of its root, and nothing tells that from a file that `VACUUM FULL` has written.
fn partitions(before: &TableMark, now: &TableMark, empty: &BTreeSet<u32>) -> Option<&'static str> {
    if before.files.iter().any(|known| file_before(now, known).is_none()) {
        return Some("a partition was detached or dropped");
    }
    now.files.iter().find_map(|file| {
        let Some(known) = file_before(before, file) else {
            // A root that was attached has nothing itself; its partitions are judged like all others.
            let brings_rows = !is_born(file) && file.file != 0 && !empty.contains(&file.oid);
            return brings_rows.then_some("a partition was attached");
        };
        if known.since != file.since {
            return Some("a partition was attached again");
        }
        let stored_anew = file.since.is_some() && known.file != file.file;
        stored_anew.then_some("a partition was emptied, or stored anew")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::database::postgres::fingerprint::{PublicationMark, SentMark};

    fn column(number: i16, name: &str) -> ColumnMark {
        ColumnMark {
            number,
            name: name.into(),
            type_oid: 23,
            modifier: -1,
            absent: false,
            missing: false,
            version: "700".into(),
            meanings: BTreeMap::new(),
        }
    }

    fn file(oid: u32, since: Option<&str>) -> FileMark {
        FileMark {
            oid,
            schema: "s".into(),
            name: format!("f{oid}"),
            file: oid,
            since: since.map(str::to_owned),
            born: false,
            unlogged: false,
        }
    }

    fn table() -> TableMark {
        TableMark {
            oid: 1,
            schema: "s".into(),
            name: "t".into(),
            is_partition: false,
            partitioned: false,
            identity: "d".into(),
            key: Some("1".into()),
            columns: vec![column(1, "id"), column(2, "net"), column(3, "gross")],
            files: vec![file(1, None), file(10, Some("800"))],
            sent: Some(SentMark { by: "table 5".into(), columns: None, filter: None }),
            disturbed: false,
            strangers: BTreeSet::new(),
        }
    }

    fn of(table: TableMark) -> Fingerprint {
        let publication = PublicationMark { oid: 9, version: "600".into(), everything: true, by_root: true };
        Fingerprint { publication: Some(publication), tables: vec![table] }
    }

    fn watched() -> Vec<TableName> {
        vec![TableName::new("s", "t")]
    }

    /// The columns that are copied for a change.
    fn after(change: impl FnOnce(&mut TableMark)) -> Vec<String> {
        let mut now = table();
        change(&mut now);
        let judged = copies(&of(table()), &of(now), &watched(), &BTreeSet::new());
        judged.into_iter().flat_map(|copy| copy.columns).collect()
    }

    const ALL: [&str; 3] = ["gross", "id", "net"];

    #[test]
    fn another_file_alone_is_nothing() {
        assert!(after(|_| ()).is_empty());
        assert!(after(|table| table.files[0].file = 99).is_empty());
        assert!(after(|table| table.columns[1].version = "701".into()).is_empty(), "statistics, or NOT NULL");
    }

    #[test]
    fn a_file_and_a_columns_row_are_a_rewrite() {
        let rewritten = after(|table| {
            table.files[0].file = 99;
            table.columns[1].version = "701".into();
        });
        assert_eq!(rewritten, ["net"]);
    }

    #[test]
    fn names_that_are_swapped_are_copied_again() {
        let swapped = after(|table| {
            table.columns[1].name = "gross".into();
            table.columns[2].name = "net".into();
        });
        assert_eq!(swapped, ["gross", "net"]);
    }

    #[test]
    fn a_column_that_went_is_nothing_and_one_that_came_is_copied() {
        assert!(after(|table| table.columns[1].absent = true).is_empty());
        let again = after(|table| {
            table.columns[1].absent = true;
            table.columns.push(column(4, "net"));
        });
        assert_eq!(again, ["net"]);
        assert_eq!(after(|table| table.columns[1].type_oid = 20), ["net"]);
    }

    #[test]
    fn a_label_that_came_is_nothing_and_one_that_was_renamed_is_copied() {
        let mood = |labels: &[(&str, &str)]| {
            let mut table = table();
            let labels = labels.iter().map(|(part, meaning)| ((*part).to_owned(), (*meaning).to_owned()));
            table.columns[1].meanings = labels.collect();
            of(table)
        };
        let judged = |now: &[(&str, &str)]| {
            copies(&mood(&[("70", "sad"), ("80.1", "23")]), &mood(now), &watched(), &BTreeSet::new())
        };
        assert!(judged(&[("70", "sad"), ("80.1", "23"), ("71", "ok")]).is_empty());
        for now in [
            [("70", "blue"), ("80.1", "23")].as_slice(),
            &[("70", "sad")],
            &[("70", "sad"), ("80.1", "23"), ("80.2", "23")],
        ] {
            assert_eq!(judged(now).first().map(|copy| copy.columns.clone()), Some(vec!["net".to_owned()]), "{now:?}");
        }
    }

    #[test]
    fn what_touches_every_row_is_copied_with_every_column() {
        let changes: [fn(&mut TableMark); 10] = [
            |table| table.oid = 2,
            |table| table.key = Some("2".into()),
            |table| table.sent = Some(SentMark { by: "table 6".into(), columns: None, filter: None }),
            |table| table.files.truncate(1),
            |table| table.files.push(file(11, Some("801"))),
            |table| table.files[1].since = Some("801".into()),
            |table| table.files[1].file = 99,
            |table| table.sent = None,
            |table| table.files = vec![file(1, None), file(12, Some("800"))],
            |table| table.key = None,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            assert_eq!(after(change), ALL, "change {at}");
        }
    }

    #[test]
    fn a_partition_that_was_made_as_one_has_no_rows_of_before() {
        let born = FileMark { born: true, ..file(11, Some("801")) };
        assert!(after(|table| table.files.push(born.clone())).is_empty());
        // Truncated since: what it had before is in the stream, and the TRUNCATE is not.
        assert_eq!(after(|table| table.files.push(FileMark { file: 99, ..born })), ALL);
    }

    #[test]
    fn a_partition_that_is_attached_empty_brings_nothing() {
        let mut now = table();
        now.files.push(file(11, Some("801")));
        now.files.push(FileMark { born: true, ..file(12, Some("802")) });
        let (known, now) = (of(table()), of(now));
        assert_eq!(attached(&known, &now), [11]);
        assert!(copies(&known, &now, &watched(), &BTreeSet::from([11])).is_empty());
        assert_eq!(copies(&known, &now, &watched(), &BTreeSet::new()).len(), 1);
    }

    #[test]
    fn a_file_of_a_table_that_no_publication_names_may_have_missed_changes() {
        let everything = |file| {
            let sent = Some(SentMark { by: "all".into(), columns: None, filter: None });
            let mut table = TableMark { sent, ..table() };
            table.files[0].file = file;
            of(table)
        };
        assert!(copies(&everything(1), &everything(1), &watched(), &BTreeSet::new()).is_empty());
        assert_eq!(copies(&everything(1), &everything(99), &watched(), &BTreeSet::new()).len(), 1);
    }

    #[test]
    fn a_table_that_was_away_or_of_which_nothing_is_known_is_copied() {
        let away = of(TableMark { disturbed: true, ..table() });
        assert_eq!(copies(&away, &of(table()), &watched(), &BTreeSet::new()).len(), 1);
        let nothing = Fingerprint { publication: None, tables: Vec::new() };
        assert_eq!(copies(&nothing, &of(table()), &watched(), &BTreeSet::new()).len(), 1);
    }

    #[test]
    fn a_partition_that_the_stream_spoke_of_and_that_is_gone_is_a_copy() {
        let met = |partition| of(TableMark { strangers: BTreeSet::from([partition]), ..table() });
        assert_eq!(copies(&met(11), &of(table()), &watched(), &BTreeSet::new()).len(), 1);
        assert!(copies(&met(10), &of(table()), &watched(), &BTreeSet::new()).is_empty(), "it is there");
    }

    #[test]
    fn an_unlogged_partition_halts_and_an_unlogged_root_has_no_rows() {
        let judged = |place: usize| {
            let mut now = table();
            now.files[place].unlogged = true;
            obstacle(&of(table()), &of(now), &watched())
        };
        let partition = sql::table(&TableName::new("s", "f10"));
        assert_eq!(judged(1), Some(Obstacle::Unlogged(tables::unlogged(&partition, &TableName::new("s", "t")))));
        assert_eq!(judged(0), None);
    }

    #[test]
    fn a_publication_that_was_altered_and_altered_back_is_not_trusted() {
        let mut now = of(table());
        now.publication = now.publication.map(|publication| PublicationMark { version: "601".into(), ..publication });
        assert!(is_sent_otherwise(&of(table()), &now, &watched()));
        assert_eq!(copies(&of(table()), &now, &watched(), &BTreeSet::new()).len(), 1);
        assert!(!is_sent_otherwise(&of(table()), &of(table()), &watched()));
    }

    #[test]
    fn what_is_gone_is_told_with_where_it_is() {
        let judged = |found: Fingerprint| obstacle(&of(table()), &found, &watched());
        assert_eq!(judged(of(table())), None);
        let told = |found| match judged(found) {
            Some(Obstacle::Gone(problem)) => problem.to_string(),
            Some(Obstacle::Lost(_) | Obstacle::Unlogged(_)) | None => String::new(),
        };
        assert!(told(of(TableMark { name: "t_old".into(), ..table() })).contains("RENAME TO"));
        assert!(told(of(TableMark { schema: "other".into(), ..table() })).contains("SET SCHEMA"));
        assert!(told(of(TableMark { oid: 2, name: "u".into(), ..table() })).contains("has no table"));
        assert!(told(of(TableMark { is_partition: true, ..table() })).contains("is a partition now"));
        let unpublished = Fingerprint { publication: None, ..of(table()) };
        assert!(matches!(judged(unpublished), Some(Obstacle::Lost(_))));
    }
}
