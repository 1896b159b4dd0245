//! Redis out: the files that a stock `redis-server` starts from.
//!
//! ```text
//! RDB, no commands behind it                  dump.rdb
//! RDB and commands, Redis 6                   appendonly.aof: the RDB as its preamble, then the commands
//! RDB and commands, Redis 7 on, and Valkey    appendonlydir/: appendonly.aof.1.base.rdb, appendonly.aof.1.incr.aof, appendonly.aof.manifest
//! ```
//!
//! [`DataFileWriter`] writes them from bytes, walking the RDB and following the commands while they pass;
//! [`server_start`] starts a server on them and compares. A server loads one of these and ignores the others, by its
//! configuration and not by what is there: [`server_options`] says what must be set, and what in a configuration found
//! would have it ignored.
//!
//! # The order of durable effects
//!
//! Every file is written under another name, synced, and renamed to its own when it is whole; the manifest, without
//! which the parts are nothing, comes last. A folder that is not empty is refused: a stray file may be the one that the
//! server loads.

mod append_only_file;
mod error;
#[cfg(test)]
mod tests;
mod placement;
pub mod plan;
pub mod destination;
pub mod checked_restore;
pub mod redis_conf;
pub mod server_start;
mod write;
pub mod server_options;
mod absolute_expiry;

pub use crate::redis::format::server_version::RedisVersion;
pub use absolute_expiry::CommandArrivals;
pub use error::RestoreError;
pub use placement::{DataFileForm, DataFileWriter, PlacedFiles};
pub use redis_conf::{DataFileNames, RedisConf};
pub use write::{RestoreOptions, check_free_space, restore_instance};
