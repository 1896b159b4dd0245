//! What a base backup consists of: its files, the chunks they are made of, and the packs the chunks are in.
//!
//! A manifest is a sealed object whose metadata is the [`BackupSummary`], so that listing backups and planning a
//! restore read the object's end alone. Its plaintext is the rest ([`Manifest::to_bytes`]). It is written last: that it
//! exists is what makes a backup one, and everything it names existed before it. The bytes are in
//! `docs/format/backup.md`.

#[cfg(test)]
mod tests;
mod codec;
mod contents;

#[doc(hidden)]
pub use codec::fuzz;
pub use contents::{
    BackupDefects, BackupSummary, DamagedPage, EntryContent, MANIFEST_FORMAT, Manifest, ManifestEntry, ManifestError,
    ManifestTablespace,
};

pub use super::chunks::ManifestChunk;

/// A summary for the tests of others.
#[cfg(test)]
pub(crate) fn sample_summary() -> BackupSummary {
    BackupSummary::from_bytes(codec::FUZZ_SUMMARY.as_bytes()).unwrap()
}
