//! Micro-benchmarks, each beside the limit it is measured against.

mod page;

fn main() {
    divan::main();
}
