//! What an instance is, and whether anything is archived of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::instance::Archive;
use crate::redis::format::flavour::ServerFlavour;
use crate::vault::seal::SealedKind;
use crate::vault::{SkippedRepositories, VaultError};

/// What an instance is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchiveIdentity {
    /// Whose server it was at first.
    pub flavour: ServerFlavour,
    /// When it was first seen.
    pub created_at: Timestamp,
}

impl Archive {
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
}
