#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walkeep::redis::archive::fuzz(data));
