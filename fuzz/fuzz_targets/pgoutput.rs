#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cutover::capture::postgres::pgoutput::fuzz::message(bytes));
