//! cutover moves a live system from one database to another: it copies, follows, verifies, switches,
//! and switches back. ARCHITECTURE.md is the map.

pub mod cli;
pub mod config;
pub mod control;
pub mod database;
pub mod log;
pub mod model;
pub mod observe;
pub mod pipeline;
pub mod snapshot;
pub mod source;
pub mod state;
pub mod target;
pub mod transform;
pub mod verify;
