//! Tests of the decoder as a whole: recorded from real servers, built by hand, and arbitrary bytes.

#![allow(clippy::panic)]

mod build;
mod events;
mod recorded;
mod robust;
mod values;
