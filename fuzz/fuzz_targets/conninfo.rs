#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walkeep::postgres::wire::conninfo::fuzz(data));
