//! What the source's log says nothing of, asked of its catalog (rule 36).
//!
//! What enters: looks at the catalog, at the start and with every heartbeat, and the tables that the stream describes.
//! What leaves: tables to be copied again, or what keeps capture from going on. Invariants: a look is acted upon when
//! the stream has passed everything that it shows, so that no older change comes after the copy; what is known is kept
//! with the pipeline's state, and replaced there only when the copies that it asks for have been noted. Deliberately
//! absent: what a difference means, which is [`judgement`]'s.
//!
//! Between two looks a table can be swapped away and back. The stream tells of every change by the number of its table,
//! and of the name that it had: where the two do not belong together, that is kept as well ([`TableMark::disturbed`]).
//! It describes a partition right behind its root: one that no look has shown may be gone, and its rows with it
//! ([`TableMark::strangers`]). Where the source has the event trigger of [`ddl`], the catalog is asked at once.
//!
//! [`judgement`]: super::judgement
//! [`ddl`]: crate::database::postgres::ddl
//! [`TableMark::disturbed`]: crate::database::postgres::fingerprint::TableMark::disturbed
//! [`TableMark::strangers`]: crate::database::postgres::fingerprint::TableMark::strangers

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_postgres::Client;

use super::{
    PostgresSourceConfig,
    judgement::{self, Copy, Obstacle},
    pgoutput::{Message, Relation},
    present_tables, publication_error, server_error,
};
use crate::{
    database::postgres::{
        ddl,
        fingerprint::{self, Fingerprint},
        publication,
        tables::SourceTable,
    },
    model::{Lsn, TableName, TableSchema},
    source::CaptureError,
    state::Store,
};

/// Under what the fingerprint is kept.
const NOTE: &str = "catalog";
/// How often the catalog is asked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A look that takes long is repeated after so many times its length: it is to be no load of its own.
const PAUSE_LOOKS: u32 = 20;
/// A busy server is asked this often all the same: until then the target differs, and nobody knows.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// However often the source says that something was altered, it is asked no more often than this.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// How long a table may be gone: who swaps two tables does so in two statements.
const GONE_MAX: Duration = Duration::from_secs(5);

/// A look that is not acted upon yet.
#[derive(Debug)]
struct Pending {
    found: Fingerprint,
    present: Vec<SourceTable>,
    /// Partitions that were attached and held nothing.
    empty: BTreeSet<u32>,
    /// Everything that it shows was committed before this place.
    lsn: Lsn,
    /// What the publication sends is another thing for transactions that began before this one: they have to end before
    /// a copy shows what was not sent of them.
    ended: Option<u64>,
}

/// What is known of the catalog, and what a look showed that is still to be acted upon.
#[derive(Debug)]
pub(super) struct Catalog {
    store: Arc<Store>,
    publication: String,
    version: i32,
    watched: Vec<TableName>,
    known: Option<Fingerprint>,
    /// What is known is not kept yet.
    unkept: bool,
    /// Of the last look; empty if the next one is to be read whatever it shows.
    digest: String,
    look_at: Instant,
    looked_at: Instant,
    pending: Option<Pending>,
    /// Tables that were disturbed since the look that is pending.
    disturbed: BTreeSet<TableName>,
    /// Partitions that no look has shown and that were met since the look that is pending, each with its root.
    strangers: BTreeSet<(TableName, u32)>,
    /// What the message before this one described.
    described: Option<TableName>,
    /// Transactions below this number had ended at the last look.
    ended_below: u64,
    gone_since: Option<Instant>,
}

impl Catalog {
    /// What is kept of the catalog; none where nothing is kept.
    ///
    /// # Errors
    /// When the state is out of reach.
    pub(super) async fn load(
        config: &PostgresSourceConfig,
        version: i32,
        watched: &[TableName],
    ) -> Result<Option<Self>, CaptureError> {
        let Some(store) = config.state.as_ref().map(Arc::clone) else { return Ok(None) };
        let kept = store.note(NOTE).await?;
        let nothing = Fingerprint { publication: None, tables: Vec::new() };
        // Of what cannot be read any more nothing is known, and everything is copied again.
        let known = kept.map(|kept| serde_json::from_str(&kept).unwrap_or(nothing));
        Ok(Some(Catalog {
            store,
            publication: config.slot.clone(),
            version,
            watched: watched.to_vec(),
            known,
            unkept: false,
            digest: String::new(),
            look_at: Instant::now(),
            looked_at: Instant::now(),
            pending: None,
            disturbed: BTreeSet::new(),
            strangers: BTreeSet::new(),
            described: None,
            ended_below: 0,
            gone_since: None,
        }))
    }

    /// Looks for the first time: true if the catalog is as it was known to be. Where capture begins `anew`, or nothing
    /// was kept yet, what is found is what is known.
    ///
    /// # Errors
    /// As those of [`Catalog::look`].
    pub(super) async fn begin(&mut self, client: &Client, anew: bool) -> Result<bool, CaptureError> {
        if anew {
            self.known = None;
        }
        self.look(client).await?;
        // A table that has just gone, or that was just published, has not been judged.
        let is_seen = !self.digest.is_empty() && self.gone_since.is_none();
        let is_as_known = is_seen && self.pending.is_none() && !self.unkept;
        self.keep().await?;
        Ok(is_as_known)
    }

    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.look_at
    }

    /// Keeps what is known, once what it asked for has been noted.
    ///
    /// # Errors
    /// When the state is out of reach.
    pub(super) async fn keep(&mut self) -> Result<(), CaptureError> {
        let (true, Some(known)) = (self.unkept, &self.known) else { return Ok(()) };
        let text = serde_json::to_string(known).map_err(|error| CaptureError::Unreachable(error.to_string()))?;
        self.store.set_note(NOTE, &text).await?;
        self.unkept = false;
        Ok(())
    }

    /// Takes what the stream says of the catalog.
    ///
    /// # Errors
    /// When the state is out of reach.
    pub(super) async fn hear(&mut self, message: &Message<'_>) -> Result<(), CaptureError> {
        match message {
            Message::Relation(relation) => return self.met(relation).await,
            // Comes between a root and its partition.
            Message::Type { .. } => return Ok(()),
            Message::Logical { prefix, .. } if *prefix == ddl::PREFIX => {
                tracing::debug!("the source says that it was altered; its catalog is asked");
                self.look_at = self.look_at.min(self.looked_at + PAUSE_MIN);
            }
            Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Origin { .. }
            | Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate { .. }
            | Message::Logical { .. } => {}
        }
        self.described = None;
        Ok(())
    }

    /// The stream describes a table before its first change after an alteration, and a partition right behind its root.
    /// A number and a name that do not belong together, and a partition that nobody has seen, are kept at once: the
    /// place of the log where they were met may be passed before the next look.
    async fn met(&mut self, relation: &Relation) -> Result<(), CaptureError> {
        let name = TableName::new(&relation.schema, &relation.table);
        let root = self.described.replace(name.clone());
        let stranger = root.filter(|root| !self.watched.contains(&name) && !self.has_shown(root, relation.id));
        let mut is_new = false;
        if let Some(root) = stranger {
            let mut tables = self.known.iter_mut().flat_map(|known| &mut known.tables);
            if let Some(mark) = tables.find(|mark| mark.table() == root) {
                is_new |= self.strangers.insert((root, relation.id)) | mark.strangers.insert(relation.id);
            }
        }
        let tables = self.known.iter_mut().flat_map(|known| &mut known.tables);
        for mark in tables.filter(|mark| (mark.oid == relation.id) != (mark.table() == name)) {
            is_new |= self.disturbed.insert(mark.table()) | !mark.disturbed;
            mark.disturbed = true;
        }
        if is_new {
            self.digest.clear();
            self.look_at = Instant::now();
            self.unkept = true;
            self.keep().await?;
        }
        Ok(())
    }

    /// Whether a look has shown this partition of the table, or that it has none.
    fn has_shown(&self, root: &TableName, oid: u32) -> bool {
        let looks = self.known.iter().chain(self.pending.as_ref().map(|pending| &pending.found));
        let mut marks = looks.filter_map(|look| look.named(root));
        marks.any(|mark| !mark.partitioned || mark.has_partition(oid))
    }

    /// Looks at the catalog. A difference is acted upon later ([`Catalog::judge`]); a publication that does not send a
    /// table is completed at once.
    ///
    /// # Errors
    /// When the source is out of reach; when a table, or the publication, is gone or cannot be captured as it is.
    pub(super) async fn look(&mut self, client: &Client) -> Result<(), CaptureError> {
        let began = Instant::now();
        self.looked_at = began;
        let look = self.ask(client).await?;
        self.look_at = Instant::now() + LOOK_EVERY.max((began.elapsed() * PAUSE_LOOKS).min(PAUSE_MAX));
        self.ended_below = look.ended_below;
        let Some(found) = look.found else { return Ok(()) };
        self.digest = look.digest;
        let Some(known) = &self.known else {
            self.known = Some(self.pruned(found));
            self.unkept = true;
            return Ok(());
        };
        self.pending = None;
        if *known == found {
            self.gone_since = None;
            return Ok(());
        }
        // It is looked at again until it has been acted upon.
        let digest = std::mem::take(&mut self.digest);
        match judgement::obstacle(known, &found, &self.watched) {
            None => {}
            Some(Obstacle::Lost(problem)) => return Err(CaptureError::Lost(problem)),
            Some(Obstacle::Unlogged(problem)) => return Err(CaptureError::Halt(problem)),
            Some(Obstacle::Gone(problem)) => {
                if self.gone_since.get_or_insert(began).elapsed() < GONE_MAX {
                    return Ok(());
                }
                return Err(CaptureError::Halt(problem));
            }
        }
        let present = match present_tables(client, &self.watched).await {
            // Between the two statements of a change, such as another primary key, a table cannot be captured.
            Err(CaptureError::Halt(_)) if self.gone_since.get_or_insert(began).elapsed() < GONE_MAX => return Ok(()),
            present => present?,
        };
        self.gone_since = None;
        let attached = judgement::attached(known, &found);
        let empty = fingerprint::empty(client, &attached).await.map_err(server_error)?;
        let sent_otherwise = judgement::is_sent_otherwise(known, &found, &self.watched);
        if sent_otherwise {
            let ensured = publication::ensure(client, &self.publication, &present).await;
            if ensured.map_err(publication_error)? {
                self.look_at = Instant::now();
                return Ok(());
            }
        }
        let xid = fingerprint::push(client).await.map_err(server_error)?;
        self.digest = digest;
        self.disturbed.clear();
        self.strangers.clear();
        self.pending = Some(Pending { found, present, empty, lsn: look.lsn, ended: sent_otherwise.then_some(xid) });
        Ok(())
    }

    async fn ask(&self, client: &Client) -> Result<fingerprint::Look, CaptureError> {
        let schema = self.watched.first().map_or("", |table| &table.schema);
        let names: Vec<String> = self.watched.iter().map(|table| table.table.clone()).collect();
        let oids: Vec<u32> = self.known.iter().flat_map(|known| &known.tables).map(|mark| mark.oid).collect();
        let wanted = (schema, names.as_slice(), oids.as_slice());
        fingerprint::look(client, self.version, &self.publication, wanted, &self.digest).await.map_err(server_error)
    }

    /// What the pending look means, once the stream has passed what it shows: tables to be copied again, and how all of
    /// them look. What it showed is known from then on.
    pub(super) fn judge(&mut self, reached: Lsn) -> Option<(Vec<Copy>, Vec<TableSchema>)> {
        let ended_below = self.ended_below;
        let is_passed =
            |pending: &mut Pending| reached >= pending.lsn && pending.ended.is_none_or(|ended| ended_below > ended);
        let Pending { found, present, empty, .. } = self.pending.take_if(is_passed)?;
        let copies = match &self.known {
            Some(known) => judgement::copies(known, &found, &self.watched, &empty),
            None => Vec::new(),
        };
        let mut known = self.pruned(found);
        for mark in &mut known.tables {
            mark.disturbed = self.disturbed.contains(&mark.table());
            let met = self.strangers.iter().filter(|(root, _)| *root == mark.table());
            mark.strangers = met.map(|(_, stranger)| *stranger).collect();
        }
        if !self.disturbed.is_empty() || !self.strangers.is_empty() {
            self.digest.clear();
        }
        self.known = Some(known);
        self.unkept = true;
        Some((copies, present.into_iter().map(|table| table.schema).collect()))
    }

    /// Without what was looked for by its number and has another name.
    fn pruned(&self, mut found: Fingerprint) -> Fingerprint {
        found.tables.retain(|mark| self.watched.contains(&mark.table()));
        found
    }
}
