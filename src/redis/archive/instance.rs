//! One Redis instance in all its repositories: where its objects are, and how they are put and read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layout::{InstanceName, Layout};
use crate::vault::repository::key::{KeyPrefix, ObjectKey, ObjectKeyError};
use crate::vault::repository::{ObjectInfo, PutOutcome};
use crate::vault::seal::SealedKind;
use crate::vault::{SkippedRepositories, UnreachableRepositories, Vault, VaultError};

/// One Redis instance in all its repositories. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Archive {
    pub(super) vault: Arc<Vault>,
    pub(super) layout: Layout,
    pub(super) state_dir: Option<PathBuf>,
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

    /// The same instance as these repositories alone have it, without this machine's spool.
    #[must_use]
    pub(super) fn view(&self, wanted: impl Fn(&str) -> bool) -> Archive {
        Archive::new(Arc::new(self.vault.view(wanted)), self.name().clone())
    }

    /// A view of each repository, with its name, in the order of the configuration.
    #[must_use]
    pub fn single_views(&self) -> Vec<(String, Archive)> {
        let view = |(name, vault): (&str, Vault)| (name.to_owned(), Archive::new(Arc::new(vault), self.name().clone()));
        self.vault.single_views().map(view).collect()
    }

    /// The same instance without the repositories that are unreachable now, so that none of them is waited for. If all
    /// are, all are asked.
    #[must_use]
    pub(super) fn reachable(&self) -> Archive {
        let unreachable: Vec<&str> = self.vault.unreachable().map(|(name, _)| name).collect();
        if unreachable.is_empty() || unreachable.len() == self.vault.repository_names().count() {
            return self.clone();
        }
        let vault = Arc::new(self.vault.view(|name| !unreachable.contains(&name)));
        Archive { vault, ..self.clone() }
    }

    /// What is under a prefix in the repositories that answer; the others are noted.
    pub(super) async fn list_reachable(
        &self,
        prefix: &KeyPrefix,
        unasked: &mut UnreachableRepositories,
    ) -> Result<Vec<ObjectInfo>, VaultError> {
        let listing = self.vault.list(prefix, None).await?;
        unasked.insert(listing.unasked);
        Ok(listing.objects)
    }

    /// Puts a value as sealed JSON.
    pub(super) async fn put<T: Serialize>(
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

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        kind: SealedKind,
        key: &ObjectKey,
    ) -> Result<Option<T>, VaultError> {
        let Some(opened) = self.vault.get_object(kind, key).await? else { return Ok(None) };
        serde_json::from_slice(&opened.plain).map(Some).map_err(|error| self.unreadable_error(key, error.to_string()))
    }

    pub(super) fn unreadable_error(&self, key: &ObjectKey, why: String) -> VaultError {
        VaultError::MalformedContent { name: self.name().to_string(), key: key.clone(), why }
    }

    pub(super) fn bad_key_error(&self, bad: &ObjectKeyError) -> VaultError {
        self.unreadable_error(&self.layout.identity(), bad.to_string())
    }
}
