//! Snapshots: an RDB file in sealed parts, and the manifest that makes them one.

pub(crate) mod error;
mod manifest;
pub(crate) mod missing_parts;
pub(crate) mod spill;
mod stored;
pub mod take;

pub use manifest::{SNAPSHOT_PART_BYTES, SnapshotManifest, SnapshotOrigin, SnapshotPart, fuzz};
