#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walkeep::rdb::fuzz(data));
