//! One way in for WAL, one way out: what joins sealing, the repositories and the digests.
//!
//! An [`Archive`] is one cluster in all configured repositories. What goes in is checked, sealed once and put into
//! every one of them ([`ingest`]); only when all have it is it acknowledged. What comes out is opened and authenticated
//! ([`fetch`]), from whichever repository has it whole. An object is absent only if every repository says so: one that
//! cannot be asked is an error, never "not found".
//!
//! Not known here: RocksDB, PostgreSQL's sockets, and who asks.

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "small numbers; repositories moved away"
)]
pub(crate) mod tests;
pub mod pieces;
pub mod spool;
pub mod chunks;
pub mod reindex;
mod cluster_archive;
mod identity;
pub mod wal_file;
mod wal_file_error;
pub mod layout;
pub mod gap;
pub mod fork;
mod error;
pub mod clock_notes;
pub mod beginning_source;
pub mod coverage;
pub mod unfinished;
pub mod ingest;
pub mod lacking;
pub mod fetch;
pub mod inventory;
pub mod name_list;
pub mod timeline_tail;
pub mod manifest;
pub mod lookup;

pub use cluster_archive::{Archive, ArchiveIdentity, foreign_server};
pub use error::ArchiveError;
