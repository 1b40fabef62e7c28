#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cutover::config::fuzz::config(bytes));
