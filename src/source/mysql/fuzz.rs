//! What the fuzz target of stored texts runs of capture: a stored position is resumed from or refused.

use super::progress::Progress;
use crate::model::MysqlPosition;

/// The first byte is the family of servers, the rest a set of GTIDs.
pub fn position(bytes: &[u8]) {
    let Some((family, Ok(gtids))) = bytes.split_first().map(|(family, rest)| (family, str::from_utf8(rest))) else {
        return;
    };
    let (file, server, gtids) = ("bin.000001".to_owned(), "a".to_owned(), Some(gtids.to_owned()));
    let is_mariadb = family & 1 == 1;
    let Ok(progress) = Progress::new(&MysqlPosition { file, offset: 4, server, gtids }, is_mariadb) else { return };
    assert_eq!(
        Progress::new(&progress.position(), is_mariadb).as_ref(),
        Ok(&progress),
        "a position is stored as it was read"
    );
}
