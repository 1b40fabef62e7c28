//! MySQL and MariaDB: connecting, the catalog, scans.
