#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cutover::source::postgres::pgoutput::fuzz::message(bytes));
