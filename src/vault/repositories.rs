//! The vault: the configured repositories, open or with the reason why they are not, and the keys of their objects.

use std::sync::Arc;

use futures_util::future::join_all;

use super::error::VaultError;
use super::key_objects::{load_keys, provide_keys};
use super::vault_repository::VaultRepository;
use crate::base::clock::SharedClock;
use crate::vault::repository::{Repository, RepositoryError, RepositoryOptions};
use crate::vault::seal::keys::KeyEncryptionKey;
use crate::vault::seal::{CompressionLevel, ObjectEncryption};

/// A configured repository.
#[derive(Clone, Debug)]
pub struct RepositoryLocation {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// How to get there.
    pub options: RepositoryOptions,
}

/// What a vault is opened with.
#[derive(Debug)]
pub struct VaultSettings {
    /// The repositories, at least one; each gets everything.
    pub places: Vec<RepositoryLocation>,
    /// The key that wraps the repositories' keys; `None` if encryption is off.
    pub key: Option<KeyEncryptionKey>,
    /// How hard to compress.
    pub level: CompressionLevel,
    /// How many threads may work on one segment.
    pub threads: usize,
    /// Where time comes from.
    pub clock: SharedClock,
}

/// Sealed objects in all configured repositories.
pub struct Vault {
    pub(crate) places: Vec<VaultRepository>,
    pub(super) protection: Arc<ObjectEncryption>,
    /// The user's key, which wraps the spool's keys too.
    pub(super) key: Option<KeyEncryptionKey>,
    pub(super) level: CompressionLevel,
    pub(super) threads: usize,
    pub(super) clock: SharedClock,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the repositories and their keys. Costs, for each repository and all of them at once, one small read, one
    /// listing of `keys/` and one read a key.
    ///
    /// A repository that cannot be reached is remembered: reading goes on without it, and every write fails. If none
    /// can be reached that is an error now.
    ///
    /// # Errors
    /// No repository could be opened, or the key does not fit one.
    pub async fn open(settings: VaultSettings) -> Result<Vault, VaultError> {
        let opened = join_all(settings.places.iter().map(|place| Repository::open(&place.url, &place.options))).await;
        let mut places = Vec::with_capacity(opened.len());
        for (place, repository) in settings.places.iter().zip(opened) {
            places.push(VaultRepository { name: place.name.clone(), repository: repository.map_err(Arc::new) });
        }
        Vault::from_repositories(places, settings).await
    }

    /// Makes those of the repositories that are not there yet, and their keys, then opens the vault. What exists stays
    /// as it is.
    ///
    /// # Errors
    /// A repository cannot be made or opened, or the key does not fit one that exists.
    pub async fn create(settings: VaultSettings) -> Result<Vault, VaultError> {
        let mut places = Vec::with_capacity(settings.places.len());
        for place in &settings.places {
            let repository = match Repository::open(&place.url, &place.options).await {
                Err(RepositoryError::NoRepository { .. }) => Repository::create(&place.url, &place.options).await,
                opened => opened,
            };
            let repository = repository
                .map_err(|source| VaultError::Repository { name: place.name.clone(), source: Arc::new(source) })?;
            places.push(VaultRepository { name: place.name.clone(), repository: Ok(repository) });
        }
        provide_keys(&places, settings.key.as_ref(), &*settings.clock).await?;
        Vault::from_repositories(places, settings).await
    }

    pub(super) async fn from_repositories(
        places: Vec<VaultRepository>,
        settings: VaultSettings,
    ) -> Result<Vault, VaultError> {
        let Some(first) = places.first() else { return Err(VaultError::NoRepository) };
        if places.iter().all(|place| place.repository.is_err()) {
            first.repository()?;
        }
        let protection = load_keys(&places, settings.key.as_ref()).await?;
        Ok(Vault {
            places,
            protection: Arc::new(protection),
            key: settings.key,
            level: settings.level,
            threads: settings.threads.max(1),
            clock: settings.clock,
        })
    }

    /// How objects are protected.
    #[must_use]
    pub fn protection(&self) -> &Arc<ObjectEncryption> {
        &self.protection
    }

    /// The configured key-encryption key; `None` if encryption is off.
    #[must_use]
    pub const fn key_encryption_key(&self) -> Option<&KeyEncryptionKey> {
        self.key.as_ref()
    }

    /// How hard to compress unless the caller knows better.
    #[must_use]
    pub const fn level(&self) -> CompressionLevel {
        self.level
    }

    /// How many threads may work on one object.
    #[must_use]
    pub const fn threads(&self) -> usize {
        self.threads
    }

    /// Where time comes from.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// The repositories that could be opened, with their names.
    pub fn repositories(&self) -> impl Iterator<Item = (&str, &Repository)> {
        self.places.iter().filter_map(|place| Some((place.name.as_str(), place.repository.as_ref().ok()?)))
    }

    /// The repositories that could not be opened, with what was in the way.
    pub fn unreachable(&self) -> impl Iterator<Item = (&str, &Arc<RepositoryError>)> {
        self.places.iter().filter_map(|place| Some((place.name.as_str(), place.repository.as_ref().err()?)))
    }
}
