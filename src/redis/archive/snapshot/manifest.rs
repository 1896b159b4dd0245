//! The manifest of a snapshot: what makes its parts one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::redis::format::flavour::ServerFlavour;
use crate::redis::format::rdb::RdbSummary;
use crate::redis::format::replication_id::ReplicationId;

/// The plaintext bytes of each part but the last: large enough for a store's throughput, small enough to hold a few in
/// memory.
pub const SNAPSHOT_PART_BYTES: usize = 32 << 20;

/// Where a snapshot came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotOrigin {
    /// From a server, as a replica gets it.
    Replication {
        /// The server's address.
        server: String,
        /// `master` or `slave`.
        role: String,
    },
    /// From a file.
    File {
        /// Its name.
        path: String,
    },
}

/// A part of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotPart {
    /// Its plaintext bytes.
    pub len: u64,
    /// The BLAKE3 of them, in hexadecimal.
    pub content: String,
    /// The bytes of its object.
    pub stored: u64,
}

/// What a snapshot's manifest holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// The version of this form, 1.
    pub format: u32,
    /// Its name.
    pub label: String,
    /// When it was asked for.
    pub started_at: Timestamp,
    /// When all of it was stored.
    pub finished_at: Timestamp,
    /// The moment whose state it holds, as nearly as is known: when the server said at which offset it stands.
    pub at: Timestamp,
    /// Where it came from.
    pub origin: SnapshotOrigin,
    /// Whose server it was.
    pub flavour: ServerFlavour,
    /// The server's version.
    pub version: String,
    /// The server's run.
    pub run_id: Option<String>,
    /// The history of which it is a state; a file may not say.
    pub replid: Option<ReplicationId>,
    /// The offset in that history: everything up to it is in the snapshot, and nothing after.
    pub offset: Option<u64>,
    /// The database in which the command stream stood at that offset.
    pub db: u32,
    /// What is in it.
    pub walk: RdbSummary,
    /// Its parts, in order.
    pub parts: Vec<SnapshotPart>,
    /// Bytes of the RDB file.
    pub logical_bytes: u64,
    /// Bytes of the parts' objects, in each repository.
    pub stored_bytes: u64,
}

/// A digest as the manifest writes it.
#[must_use]
pub(super) fn format_hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

impl SnapshotPart {
    /// A part that was sealed.
    #[must_use]
    pub fn from_sealed(sealed: &crate::vault::seal::SealedObject) -> SnapshotPart {
        SnapshotPart { len: sealed.plain_len, content: format_hex(&sealed.content), stored: sealed.len }
    }
}

/// The body of a fuzz target: any bytes as a snapshot's manifest. What reads is written the same, and can be told of.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Ok(snapshot) = serde_json::from_slice::<SnapshotManifest>(data) else { return };
    let again = serde_json::to_vec(&snapshot).unwrap_or_default();
    assert_eq!(serde_json::from_slice(&again).ok().as_ref(), Some(&snapshot), "another manifest when written again");
    let walk = &snapshot.walk;
    assert!(walk.databases.values().all(|database| database.keys <= walk.keys()), "fewer keys than in one database");
    assert!(walk.warnings().len() <= 4);
    assert!(walk.stream_database().is_none() || walk.aux.contains_key("repl-stream-db"));
}

#[cfg(test)]
mod tests {
    use super::SnapshotManifest;
    use crate::redis::archive::StreamStretch;

    /// What the fuzzers begin with is read.
    #[test]
    fn the_seeds_are_what_they_are_meant_to_be() {
        let seed: &[u8] = include_bytes!("../../../../fuzz/corpus/snapshot_manifest/replicated");
        let snapshot: SnapshotManifest = serde_json::from_slice(seed).unwrap();
        assert_eq!((snapshot.walk.keys(), snapshot.parts.len()), (3, 1));
        let seed: &[u8] = include_bytes!("../../../../fuzz/corpus/stored_stretch/commands");
        let (len, rest) = seed.split_first_chunk::<2>().unwrap();
        let (metadata, plain) = rest.split_at(usize::from(u16::from_le_bytes(*len)));
        let stretch: StreamStretch = serde_json::from_slice(metadata).unwrap();
        let found = stretch.scan_deletions(plain, 1).unwrap().found;
        assert_eq!((stretch.last - stretch.first, found.len()), (plain.len() as u64, 2));
    }
}
