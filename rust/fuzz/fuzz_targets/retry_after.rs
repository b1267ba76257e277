#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fetchbox_engine::fuzzing::retry_after(data));
