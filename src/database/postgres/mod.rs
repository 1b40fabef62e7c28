//! PostgreSQL: connecting, the catalog.
