#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cutover::transform::fuzz::transform(bytes));
