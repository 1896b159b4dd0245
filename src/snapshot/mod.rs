//! Redis in: snapshots, and the stream of commands behind them.
//!
//! ```text
//! (a) snapshot   redis --RDB--> parts of 32 MiB -> seal -> put;  and beside it -> rdb::Walker;  manifest last      [`take`]
//! (b) stream     redis --commands--> spool -> fsync -> acknowledge;  stretch by stretch -> archive::instance       [`receive`]
//! ```
//!
//! A snapshot is taken as a replica gets it, over a connection of its own that asks for nothing after it (`REPLCONF rdb-only`), so the server
//! keeps no output for it and cannot cut it off for reading slowly. The server's own persistence is never touched: no `SAVE`, no `CONFIG`.
//!
//! # The order of durable effects
//!
//! A snapshot: every part is put; the walk has come to its end and the checksum is right; the manifest is put. Whatever fails before leaves
//! parts that no manifest names, and no snapshot. The stream: [`receive`] says.

mod aside;
mod base;
mod error;
mod clock;
mod follow;
pub mod out;
pub mod receive;
mod resume;
pub mod take;
mod upload;

pub use error::Error;
pub use take::{Begun, Input, Progress, take};
