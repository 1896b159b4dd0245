//! A Redis instance in all its repositories: snapshots, the stream of commands between them, and the breaks in it.
//!
//! A snapshot is an RDB file in parts and a manifest that names them, put last ([`SnapshotManifest`]). The stream is kept in stretches, each with
//! the offsets it covers and marks that tie offsets to the time at which they had come ([`stream`]). [`Archive::resolve_target`] finds from these what
//! leads to a moment: a snapshot, and the offset behind it up to which the stream is to be replayed ([`history`]).
//!
//! Not known here: sockets, who writes, and how a server is started from it.

pub mod stream;
pub mod snapshot;
pub mod layout;
mod unreachable_repositories;
pub mod history;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::redis::format::flavour::ServerFlavour;
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::repository::PutOutcome;
use crate::vault::repository::key::{ObjectKey, ObjectKeyError};
use crate::vault::seal::SealedKind;
use crate::vault::{SkippedRepositories, Vault, VaultError};
use layout::{InstanceName, Layout};

pub use crate::redis::format::position::{BadStreamPosition, StreamPosition};
pub use history::{
    KnownStretches, RedisTarget, RestoreRoute, StreamHole, UnreachableState, remove_foreign_snapshots,
    unrecorded_intervals,
};
pub use snapshot::{SNAPSHOT_PART_BYTES, SnapshotManifest, SnapshotOrigin, SnapshotPart, fuzz};
pub use stream::{ArrivalMark, ReadDelays, ServerRun, StreamStretch, UntimedBacklog};
pub use unreachable_repositories::UnreachableRepositories;

/// What an instance is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchiveIdentity {
    /// Whose server it was at first.
    pub flavour: ServerFlavour,
    /// When it was first seen.
    pub created_at: Timestamp,
}

/// A break in the stream: what came between is known to no one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// The history that broke off.
    pub replid: ReplicationId,
    /// The offset up to which it is whole.
    pub offset: u64,
    /// When its last byte had come.
    pub until: Option<Timestamp>,
    /// When the break was noticed.
    pub noticed_at: Timestamp,
    /// What happened, for people.
    pub reason: String,
}

/// One Redis instance in all its repositories. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Archive {
    vault: Arc<Vault>,
    layout: Layout,
    state_dir: Option<PathBuf>,
}

impl Archive {
    /// The archive of the instance of this name in a vault. Reads nothing yet.
    #[must_use]
    pub const fn new(vault: Arc<Vault>, name: InstanceName) -> Archive {
        Archive { vault, layout: Layout::new(name), state_dir: None }
    }

    /// The same, with what this machine's receiver has and no repository yet: its spool under `state_dir`.
    #[must_use]
    pub fn with_spool(self, state_dir: PathBuf) -> Archive {
        Archive { state_dir: Some(state_dir), ..self }
    }

    /// Where this machine's receiver keeps what it has, if that is known.
    #[must_use]
    pub fn state_dir(&self) -> Option<&Path> {
        self.state_dir.as_deref()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &InstanceName {
        self.layout.name()
    }

    /// The repositories.
    #[must_use]
    pub fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Where its objects stand.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the instance is; `None` if nothing was stored of it yet.
    ///
    /// # Errors
    /// No repository could be asked, or the object does not open.
    pub async fn identity(&self) -> Result<Option<ArchiveIdentity>, VaultError> {
        self.get(SealedKind::Instance, &self.layout.identity()).await
    }

    /// Whether anything is archived of it.
    ///
    /// # Errors
    /// No repository could be asked, or its identity does not open.
    pub async fn is_archived(&self) -> Result<bool, VaultError> {
        Ok(self.identity().await?.is_some() || !self.list_snapshot_labels().await?.is_empty())
    }

    /// Says what the instance is, unless that was said before.
    ///
    /// # Errors
    /// No repository that is not absent took it.
    pub async fn put_identity(&self, flavour: ServerFlavour, absent: &SkippedRepositories) -> Result<(), VaultError> {
        let key = self.layout.identity();
        let identity = ArchiveIdentity { flavour, created_at: self.vault.clock().now() };
        self.put(SealedKind::Instance, &key, &identity, absent).await.map(drop)
    }

    /// Records a break in the stream. The same break recorded again is the same break.
    ///
    /// # Errors
    /// No repository that is not absent took it.
    pub async fn record_gap(&self, gap: &Gap, absent: &SkippedRepositories) -> Result<(), VaultError> {
        let key = self.layout.gap(&gap.replid.to_string(), gap.offset).map_err(|bad| self.bad_key_error(&bad))?;
        self.put(SealedKind::Gap, &key, gap, absent).await.map(drop)
    }

    /// All recorded breaks.
    ///
    /// # Errors
    /// No repository could be asked, or a record does not open.
    pub async fn gaps(&self) -> Result<Vec<Gap>, VaultError> {
        let mut gaps = Vec::new();
        for object in self.vault.list(&self.layout.gaps(), None).await?.objects {
            gaps.extend(self.get::<Gap>(SealedKind::Gap, &object.key).await?);
        }
        gaps.sort_by_key(|gap| gap.noticed_at);
        Ok(gaps)
    }

    /// Records a break in the repository of this number.
    ///
    /// # Errors
    /// It did not take it.
    pub async fn record_gap_in(&self, place: usize, gap: &Gap) -> Result<(), VaultError> {
        let others = (0..self.place_count()).filter(|other| *other != place);
        let absent = SkippedRepositories::new(others.map(|other| (other, VaultError::NoRepository)).collect());
        self.record_gap(gap, &absent).await
    }

    /// Puts a value as sealed JSON.
    async fn put<T: Serialize>(
        &self,
        kind: SealedKind,
        key: &ObjectKey,
        value: &T,
        absent: &SkippedRepositories,
    ) -> Result<PutOutcome, VaultError> {
        let text = serde_json::to_vec(value).map_err(|error| self.unreadable_error(key, error.to_string()))?;
        let sealed = self.vault.seal_object(kind, key, vec![Bytes::from(text)], Vec::new()).await?;
        self.vault.put_where_not_skipped(key, &sealed, absent).await
    }

    async fn get<T: DeserializeOwned>(&self, kind: SealedKind, key: &ObjectKey) -> Result<Option<T>, VaultError> {
        let Some(opened) = self.vault.get_object(kind, key).await? else { return Ok(None) };
        serde_json::from_slice(&opened.plain).map(Some).map_err(|error| self.unreadable_error(key, error.to_string()))
    }

    fn unreadable_error(&self, key: &ObjectKey, why: String) -> VaultError {
        VaultError::MalformedContent { name: self.name().to_string(), key: key.clone(), why }
    }

    fn bad_key_error(&self, bad: &ObjectKeyError) -> VaultError {
        self.unreadable_error(&self.layout.identity(), bad.to_string())
    }
}
