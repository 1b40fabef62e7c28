//! Arguments, output and exit codes.

pub mod init;
