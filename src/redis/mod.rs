//! The Redis and Valkey wing: snapshots and the stream of commands in, restores to any second out.
//!
//! `format` is pure: bytes in, values out. `wire` is the only socket to Redis. `archive` joins them with the vault; the
//! flows after it are the verbs of the command line, and never import one another.

pub mod format;
pub mod wire;
pub mod archive;
pub mod receive;
pub mod restore;
pub mod log;
pub mod retention;
pub mod verify;
pub mod health;
pub mod check;
