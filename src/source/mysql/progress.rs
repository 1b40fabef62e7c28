//! How far the log has been read: file, offset and GTIDs, at transaction ends.

use crate::model::{GtidSet, InvalidGtidSet, MariadbGtids, MysqlPosition};

/// Half of the range of an event's 32-bit end position: an end that is behind by more has wrapped around.
const WRAP: u64 = 1 << 31;

/// The running position of a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    server: String,
    file: String,
    offset: u64,
    gtids: Gtids,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Gtids {
    None,
    Mysql(GtidSet),
    Mariadb(MariadbGtids),
}

/// What identifies a transaction of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GroupId {
    Anonymous,
    Mysql { source: String, number: u64 },
    Mariadb { domain: u32, server: u32, sequence: u64 },
}

impl Progress {
    pub(super) fn new(position: &MysqlPosition, mariadb: bool) -> Result<Self, InvalidGtidSet> {
        let gtids = match &position.gtids {
            None => Gtids::None,
            Some(text) if mariadb => Gtids::Mariadb(text.parse()?),
            Some(text) => Gtids::Mysql(text.parse()?),
        };
        Ok(Progress { server: position.server.clone(), file: position.file.clone(), offset: position.offset, gtids })
    }

    /// The events now come from this server's files.
    pub(super) fn moved_to(&mut self, server: &str) {
        server.clone_into(&mut self.server);
    }

    pub(super) fn position(&self) -> MysqlPosition {
        let gtids = match &self.gtids {
            Gtids::None => None,
            Gtids::Mysql(set) => Some(set.to_string()),
            Gtids::Mariadb(domains) => Some(domains.to_string()),
        };
        MysqlPosition { file: self.file.clone(), offset: self.offset, server: self.server.clone(), gtids }
    }

    /// `file:offset`, for messages.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.file, self.offset)
    }

    /// An event ended at `log_pos`, the low 32 bits of the offset: a transaction may be larger than 4 GiB.
    pub(super) fn event_ended(&mut self, log_pos: u32) {
        if log_pos == 0 {
            return;
        }
        let near = (self.offset & !u64::from(u32::MAX)) | u64::from(log_pos);
        let wrapped = near + WRAP < self.offset;
        self.offset = if wrapped { near + (1 << 32) } else { near };
    }

    pub(super) fn rotated(&mut self, file: &str, offset: u64) {
        file.clone_into(&mut self.file);
        self.offset = offset;
    }

    /// A heartbeat's place, behind which nothing of ours is.
    pub(super) fn idle_at(&mut self, file: &str, position: u64) {
        if file == self.file {
            self.event_ended(u32::try_from(position & u64::from(u32::MAX)).unwrap_or_default());
        } else {
            self.rotated(file, position);
        }
    }

    pub(super) fn committed(&mut self, id: &GroupId) {
        match (&mut self.gtids, id) {
            (Gtids::Mysql(set), GroupId::Mysql { source, number }) => set.add(source, *number),
            (Gtids::Mariadb(domains), GroupId::Mariadb { domain, server, sequence }) => {
                domains.reach(*domain, *server, *sequence);
            }
            (
                Gtids::None | Gtids::Mysql(_) | Gtids::Mariadb(_),
                GroupId::Anonymous | GroupId::Mysql { .. } | GroupId::Mariadb { .. },
            ) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(gtids: Option<&str>, mariadb: bool) -> Progress {
        let position =
            MysqlPosition { file: "bin.000001".into(), offset: 4, server: "s".into(), gtids: gtids.map(Into::into) };
        Progress::new(&position, mariadb).expect("valid")
    }

    #[test]
    fn offsets_go_on_past_four_gibibytes() {
        let mut progress = at(None, false);
        for log_pos in [1 << 30, 3 << 30, 5_u32, 1 << 30] {
            progress.event_ended(log_pos);
        }
        assert_eq!(progress.position().offset, (1 << 32) + (1 << 30));
    }

    #[test]
    fn an_event_without_a_place_of_its_own_moves_nothing() {
        let mut progress = at(None, false);
        progress.event_ended(900);
        progress.event_ended(0);
        assert_eq!(progress.place(), "bin.000001:900");
        progress.rotated("bin.000002", 4);
        assert_eq!(progress.place(), "bin.000002:4");
    }

    #[test]
    fn committed_transactions_join_the_set_of_their_family() {
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        let mut mysql = at(Some(&format!("{uuid}:1-4")), false);
        let id = GroupId::Mysql { source: uuid.into(), number: 5 };
        mysql.committed(&id);
        assert_eq!(mysql.position().gtids, Some(format!("{uuid}:1-5")));
        let mut mariadb = at(Some("0-1-57,2-1-3"), true);
        mariadb.committed(&GroupId::Mariadb { domain: 0, server: 9, sequence: 58 });
        assert_eq!(mariadb.position().gtids.as_deref(), Some("0-9-58,2-1-3"));
        let mut files = at(None, false);
        files.committed(&GroupId::Anonymous);
        assert_eq!(files.position().gtids, None);
    }

    #[test]
    fn a_position_that_is_none_of_mariadb_is_refused() {
        let refused = |text: &str| text.parse::<MariadbGtids>().is_err();
        assert!(refused("0-1") && refused("a-b-c") && refused("0-1-2-3"));
        assert_eq!("".parse::<MariadbGtids>().expect("empty"), MariadbGtids::default());
    }
}
