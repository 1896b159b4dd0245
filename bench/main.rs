//! Micro-benchmarks, each beside the limit it is measured against.

fn main() {
    divan::main();
}
