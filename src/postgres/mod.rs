//! The PostgreSQL wing: WAL and base backups in, exact restores out.
//!
//! `format` and `wal` are pure: bytes in, values out. `wire`, `sql` and `index` each own one foreign system. `archive`
//! joins them with the vault, and `fork_check` compares a server with it; the flows after it are the verbs of the
//! command line, and never import one another.

pub mod format;
pub mod wal;
pub mod wire;
pub mod session_settings;
pub mod sql;
pub mod index;
pub mod archive;
pub mod fork_check;
pub mod receive;
pub mod archive_push;
pub mod archive_get;
pub mod backup;
pub mod restore;
pub mod log;
pub mod retention;
pub mod verify;
pub mod health;
pub mod check;
