//! A Redis instance in all its repositories: snapshots, the stream of commands between them, and the breaks in it.
//!
//! A snapshot is an RDB file in parts and a manifest that names them, put last ([`SnapshotManifest`]). The stream is
//! kept in stretches, each with the offsets it covers and marks that tie offsets to the time at which they had come
//! ([`stream`]). [`Archive::resolve_target`] finds from these what leads to a moment: a snapshot, and the offset behind
//! it up to which the stream is to be replayed ([`history`]).
//!
//! Not known here: sockets, who writes, and how a server is started from it.

pub mod coverage;
mod gaps;
pub mod history;
mod identity;
mod instance;
mod lacking;
pub mod layout;
pub mod snapshot;
pub mod stream;
mod unseen_sources;

pub use crate::redis::format::position::{BadStreamPosition, StreamPosition};
pub use gaps::Gap;
pub use history::{
    KnownStretches, RedisTarget, RestoreRoute, StreamHole, UnreachableState, remove_foreign_snapshots,
    unrecorded_intervals,
};
pub use identity::ArchiveIdentity;
pub use instance::Archive;
pub use snapshot::{SNAPSHOT_PART_BYTES, SnapshotManifest, SnapshotOrigin, SnapshotPart, fuzz};
pub use stream::{ArrivalMark, ReadDelays, ServerRun, StreamStretch, UntimedBacklog};
pub use unseen_sources::{SPOOL_ADVICE, UnseenSources};
