//! The `walkeep` program: parse, dispatch, exit code.

fn main() {}
