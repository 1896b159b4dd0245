//! PostgreSQL's own formats, as values: positions, timelines, names, `pg_control`, labels, data directory, pages.
//!
//! Pure: bytes in, values out. Nothing here reads a file, a socket or a clock.

pub mod lsn;
pub mod time;
pub mod timeline;
pub mod segment;
pub mod control;
pub mod label;
pub mod datadir;
pub mod page;
