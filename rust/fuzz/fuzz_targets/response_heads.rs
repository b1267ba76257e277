#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fetchbox_engine::fuzzing::response_heads(data));
