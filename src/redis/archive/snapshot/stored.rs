//! The snapshots in the repositories.

use bytes::Bytes;

use super::manifest::{SnapshotManifest, format_hex};
use super::missing_parts::MissingParts;
use crate::redis::archive::instance::Archive;
use crate::vault::repository::PutOutcome;
use crate::vault::seal::SealedKind;
use crate::vault::{SkippedRepositories, UnreachableRepositories, VaultError};

impl Archive {
    /// Makes a snapshot visible, but where it is absent. Its parts are there.
    ///
    /// # Errors
    /// No other repository took it, or another snapshot has this label.
    pub async fn put_snapshot(
        &self,
        snapshot: &SnapshotManifest,
        absent: &SkippedRepositories,
    ) -> Result<(), VaultError> {
        let key = self.layout.snapshot(&snapshot.label).map_err(|bad| self.bad_key_error(&bad))?;
        match self.put(SealedKind::Snapshot, &key, snapshot, absent).await? {
            PutOutcome::Created => Ok(()),
            PutOutcome::Exists => {
                let why = "holds another snapshot of the same moment; take this one again".to_owned();
                Err(VaultError::NameTaken { name: self.name().to_string(), key, why })
            }
        }
    }

    /// The labels of all snapshots, oldest first.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn list_snapshot_labels(&self) -> Result<Vec<String>, VaultError> {
        self.list_snapshot_labels_in_reachable(&mut UnreachableRepositories::default()).await
    }

    async fn list_snapshot_labels_in_reachable(
        &self,
        unasked: &mut UnreachableRepositories,
    ) -> Result<Vec<String>, VaultError> {
        let objects = self.list_reachable(&self.layout.snapshots(), unasked).await?;
        Ok(objects.iter().map(|object| object.key.file_name().to_owned()).collect())
    }

    /// A snapshot's manifest; `None` if there is no such snapshot.
    ///
    /// # Errors
    /// No repository could be asked, or the manifest does not open.
    pub async fn read_snapshot(&self, label: &str) -> Result<Option<SnapshotManifest>, VaultError> {
        let Ok(key) = self.layout.snapshot(label) else { return Ok(None) };
        self.get(SealedKind::Snapshot, &key).await
    }

    /// All snapshots, oldest first. One whose manifest is damaged is passed over with a warning, unless all are.
    ///
    /// # Errors
    /// As [`Archive::read_snapshot`].
    pub async fn read_snapshots(&self) -> Result<Vec<SnapshotManifest>, VaultError> {
        Ok(self.read_snapshots_and_damaged(&mut UnreachableRepositories::default()).await?.0)
    }

    /// [`Archive::read_snapshots`], and of those that were passed over the labels, each with what is wrong.
    pub(crate) async fn read_snapshots_and_damaged(
        &self,
        unasked: &mut UnreachableRepositories,
    ) -> Result<(Vec<SnapshotManifest>, MissingParts), VaultError> {
        let (mut snapshots, mut damaged, mut last) = (Vec::new(), MissingParts::new(), None);
        for label in self.list_snapshot_labels_in_reachable(unasked).await? {
            match self.read_snapshot(&label).await {
                Ok(snapshot) => snapshots.extend(snapshot),
                Err(error) if error.is_integrity() => {
                    tracing::warn!(
                        label,
                        error = &error as &dyn std::error::Error,
                        "a snapshot cannot be used; walkeep verify tells what else is damaged"
                    );
                    damaged.insert(label, "its manifest does not open".to_owned());
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match last {
            Some(error) if snapshots.is_empty() => Err(error),
            _ => Ok((snapshots, damaged)),
        }
    }

    /// A part's plaintext, authenticated and of the content that the manifest names. All parts in turn are the RDB
    /// file.
    ///
    /// # Errors
    /// No repository gave it, or it is not the part that the manifest names.
    pub async fn read_part(&self, snapshot: &SnapshotManifest, number: usize) -> Result<Bytes, VaultError> {
        let label = &snapshot.label;
        let numbered = u32::try_from(number).unwrap_or(u32::MAX);
        let key = self.layout.part(label, numbered).map_err(|bad| self.bad_key_error(&bad))?;
        let Some(part) = snapshot.parts.get(number) else {
            return Err(self.unreadable_error(&key, format!("the manifest of {label} names no such part")));
        };
        let Some(opened) = self.vault.get_object(SealedKind::RdbPart, &key).await? else {
            return Err(VaultError::Vanished { what: key.to_string() });
        };
        if opened.plain.len() as u64 != part.len || format_hex(&opened.content) != part.content {
            return Err(self.unreadable_error(&key, format!("it is not the part that the manifest of {label} names")));
        }
        Ok(opened.plain)
    }

    /// Whether any repository has a snapshot of this label, whole or not.
    ///
    /// # Errors
    /// [`VaultError::NotAllAnswered`] if none of those has that could be asked, and not all could.
    pub async fn has_snapshot(&self, label: &str) -> Result<bool, VaultError> {
        let mut unasked = UnreachableRepositories::default();
        let found = self.list_snapshot_labels_in_reachable(&mut unasked).await?.iter().any(|known| known == label);
        if !found {
            unasked.ensure_empty()?;
        }
        Ok(found)
    }
}
