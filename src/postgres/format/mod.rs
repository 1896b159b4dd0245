//! PostgreSQL's own formats, as values: positions, timelines, names, `pg_control`, labels, data directory, pages.
//!
//! Pure: bytes in, values out. Nothing here reads a file, a socket or a clock.

pub mod segment;
pub mod page;
pub mod lsn;
pub mod datadir;
pub mod pg_control;
pub mod timeline;
mod timeline_id;
pub mod backup_label;
pub mod time;
