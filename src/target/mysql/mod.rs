//! A target that is MySQL or MariaDB.
//!
//! What enters is the facts that PostgreSQL makes of a batch ([`super::rows`]); what leaves is one transaction of the
//! target: the lane's mark, then what the facts remove and write. The user's tables get nothing of ours, no column and
//! no trigger: the version of each row, and of each key that is gone, stands in a side table of the database `cutover`,
//! and a row that has none there has version 0. The invariant is the PostgreSQL sink's: of every key the row or the
//! delete with the highest version stays. What keeps writers apart is the side table's primary key: who writes a key
//! has its row there locked, or inserts it.
//!
//! Never `REPLACE`, and `ON DUPLICATE KEY UPDATE` for rows alone that are known to be there and are locked: else it
//! silently takes another row whose secondary unique value is the same. Every warning of the server is an error, since
//! strict mode still rounds and cuts in silence. Deliberately absent: the transforms, and all state that is not needed
//! to decide which fact is newer; both are PostgreSQL's.

mod comparer;
mod comparison;
mod doubts;
mod errors;
mod facts;
mod keys;
mod literal;
mod own;
mod rows;
mod session;
mod survey;
mod tables;
mod target;

pub use errors::MysqlError;
pub use survey::Survey;
pub use target::MysqlTarget;
