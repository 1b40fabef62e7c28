#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cutover::log::fuzz::stored(bytes);
    cutover::source::mysql::fuzz::position(bytes);
});
