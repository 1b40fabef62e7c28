//! Transactions that the pipeline's other direction wrote here.
//!
//! A target that is MySQL or MariaDB changes a row of the database `cutover` first in each transaction, which says
//! whose it is. Behind it the transaction has what was written, and what triggers made of that.

use super::binlog::{Rows, TableMap, first_text};

const DATABASE: &str = "cutover";
/// The tables whose rows are marks. The first column of both is the pipeline.
const MARKS: [&str; 2] = ["lanes", "pipeline_marks"];

/// Whether a transaction whose first rows are these was written by this pipeline.
pub(super) fn is_of(peer: &str, map: &TableMap, rows: &Rows<'_>) -> bool {
    map.schema == DATABASE && MARKS.contains(&map.table.as_str()) && first_text(map, rows) == Some(peer.as_bytes())
}
