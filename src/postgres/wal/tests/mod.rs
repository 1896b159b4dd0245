//! Tests of the modules together, on WAL written here and on WAL that real servers wrote (`tests/fixtures/wal`).

mod digests;
mod splits;
mod writer;
mod fixtures;
