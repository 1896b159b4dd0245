//! Tests of the whole against real servers, one binary. `tests/setup.sh` puts the servers there; each test starts its
//! own, on free ports, in a scratch directory, and they are gone when it ends.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test says what it expects by panicking"
)]

#[allow(dead_code, unused_imports, reason = "each test takes the parts of the support that it needs")]
mod support;

/// The support itself: servers of every major start, crash, promote and end.
mod servers;
/// The command line as users and scripts meet it.
mod cli;
/// PostgreSQL: from the bytes of its WAL to the restored server.
mod postgres;
/// Redis and Valkey: the same flows under the same names.
mod redis;
/// Both stores restored to one moment.
mod joint;
