//! Snapshots: an RDB file in sealed parts, and the manifest that makes them one.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Error, Instance};
use crate::rdb::Walk;
use crate::redis::{Flavour, ReplicationId};
use crate::repository::Put;
use crate::seal::Kind;

/// The plaintext bytes of each part but the last: large enough for a store's throughput, small enough to hold a few in memory.
pub const PART: usize = 32 << 20;

/// Where a snapshot came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
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
pub struct Part {
    /// Its plaintext bytes.
    pub len: u64,
    /// The BLAKE3 of them, in hexadecimal.
    pub content: String,
    /// The bytes of its object.
    pub stored: u64,
}

/// What a snapshot's manifest holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
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
    pub origin: Origin,
    /// Whose server it was.
    pub flavour: Flavour,
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
    pub walk: Walk,
    /// Its parts, in order.
    pub parts: Vec<Part>,
    /// Bytes of the RDB file.
    pub logical_bytes: u64,
    /// Bytes of the parts' objects, in each repository.
    pub stored_bytes: u64,
}

impl Instance {
    /// Makes a snapshot visible. Its parts are there.
    ///
    /// # Errors
    /// A repository did not take it, or another snapshot has this label.
    pub async fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let key = self.layout.snapshot(&snapshot.label).map_err(|bad| self.unnamed(&bad))?;
        match self.put(Kind::Snapshot, &key, snapshot).await? {
            Put::Created => Ok(()),
            Put::Exists => Err(self.unreadable(&key, "another snapshot of the same second stands there".to_owned())),
        }
    }

    /// The labels of all snapshots, oldest first.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn labels(&self) -> Result<Vec<String>, Error> {
        let listing = self.archive.list(&self.layout.snapshots(), None).await?;
        Ok(listing.objects.iter().map(|object| object.key.file_name().to_owned()).collect())
    }

    /// A snapshot's manifest; `None` if there is no such snapshot.
    ///
    /// # Errors
    /// No repository could be asked, or the manifest does not open.
    pub async fn snapshot(&self, label: &str) -> Result<Option<Snapshot>, Error> {
        let Ok(key) = self.layout.snapshot(label) else { return Ok(None) };
        self.get(Kind::Snapshot, &key).await
    }

    /// All snapshots, oldest first.
    ///
    /// # Errors
    /// As [`Instance::snapshot`].
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        let mut snapshots = Vec::new();
        for label in self.labels().await? {
            snapshots.extend(self.snapshot(&label).await?);
        }
        Ok(snapshots)
    }

    /// A part's plaintext, authenticated and of the content that the manifest names. All parts in turn are the RDB file.
    ///
    /// # Errors
    /// No repository gave it, or it is not the part that the manifest names.
    pub async fn part(&self, snapshot: &Snapshot, number: usize) -> Result<Bytes, Error> {
        let label = &snapshot.label;
        let numbered = u32::try_from(number).unwrap_or(u32::MAX);
        let key = self.layout.part(label, numbered).map_err(|bad| self.unnamed(&bad))?;
        let Some(part) = snapshot.parts.get(number) else {
            return Err(self.unreadable(&key, format!("the manifest of {label} names no such part")));
        };
        let Some(opened) = self.archive.get_object(Kind::RdbPart, &key).await? else {
            return Err(Error::Gone { name: key.to_string() });
        };
        if opened.plain.len() as u64 != part.len || hex(&opened.content) != part.content {
            return Err(self.unreadable(&key, format!("it is not the part that the manifest of {label} names")));
        }
        Ok(opened.plain)
    }
}

/// A digest as the manifest writes it.
#[must_use]
pub(super) fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

impl Part {
    /// A part that was sealed.
    #[must_use]
    pub fn of(sealed: &crate::seal::SealedObject) -> Part {
        Part { len: sealed.plain_len, content: hex(&sealed.content), stored: sealed.len }
    }
}
