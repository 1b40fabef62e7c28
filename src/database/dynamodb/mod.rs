//! DynamoDB: connecting, what its tables are, and reading items.
//!
//! What enters: `dynamodb://region?endpoint=…` and, from the usual places, credentials of AWS. What leaves: items as
//! rows of a relation that has the table's key attributes and the whole item as JSON. Invariant: a value is the same
//! text however it was read, by Scan, by key or from the stream. Deliberately absent: writing, and secondary indexes.

pub(crate) mod attribute;
pub(crate) mod catalog;
pub(crate) mod connect;
pub(crate) mod scan;

pub use attribute::{Attribute, Item};
pub use connect::{Connector, DynamoError, Service, ServiceDate};
