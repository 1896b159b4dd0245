#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walkeep::archive::instance::spool::fuzz(data));
