//! Micro-benchmarks, each beside the limit it is measured against.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a benchmark may stop at the first surprise"
)]

mod page;
mod rdb;
mod seal;
mod wal;

fn main() {
    divan::main();
}
