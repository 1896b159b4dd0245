//! The vault: the configured repositories, open or with the reason why they are not, and the keys of their objects.

use std::sync::Arc;

use futures_util::future::join_all;

use super::error::VaultError;
use super::key_objects::{VaultKeys, provide_keys, read_keys};
use super::opened_ids::OpenedIds;
use super::repository_location::RepositoryLocation;
use super::unreachable_notes::HeldOffRepository;
use super::vault_repository::VaultRepository;
use crate::base::clock::SharedClock;
use crate::base::retry::ErrorClass;
use crate::vault::repository::{Repository, RepositoryError, RepositoryId, RepositoryLimits};
use crate::vault::seal::keys::KeyEncryptionKey;
use crate::vault::seal::{CompressionLevel, ObjectEncryption};

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
#[derive(Clone)]
pub struct Vault {
    pub(crate) places: Vec<Arc<VaultRepository>>,
    pub(crate) keys: Arc<VaultKeys>,
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
    /// A repository that cannot be opened is remembered with the reason. Everything goes on without it, and it is
    /// opened again when it is due. If none can be opened that is an error now.
    ///
    /// # Errors
    /// No repository could be opened, or the key fits none.
    pub async fn open(settings: VaultSettings) -> Result<Vault, VaultError> {
        Vault::open_except(settings, &[]).await
    }

    /// [`Vault::open`], without asking those that were unreachable a moment ago. If no other can be opened, they are
    /// asked all the same.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub async fn open_except(settings: VaultSettings, held_off: &[HeldOffRepository]) -> Result<Vault, VaultError> {
        let replaceable = settings.places.len() > 1;
        let ids = Arc::<OpenedIds>::default();
        let places: Vec<Arc<VaultRepository>> = settings
            .places
            .iter()
            .map(|place| {
                let mut place = place.clone();
                if replaceable {
                    place.options.limits = RepositoryLimits::replaceable();
                }
                Arc::new(VaultRepository::new(place, &settings.clock, replaceable, &ids))
            })
            .collect();
        let held = |place: &VaultRepository| held_off.iter().find(|held| held.name == place.name);
        join_all(places.iter().map(async |place| match held(place) {
            Some(held) => place.hold_off(held),
            None => place.connect().await,
        }))
        .await;
        if places.iter().all(|place| place.failure().is_some()) {
            join_all(places.iter().filter(|place| held(place).is_some()).map(|place| place.connect())).await;
        }
        // In the order of the configuration, so that it is always the same one that is left out.
        places.iter().for_each(|place| place.refuse_if_twin());
        Vault::from_repositories(places, settings).await
    }

    /// Makes those of the repositories that are not there yet, and their keys, then opens the vault. What exists stays
    /// as it is.
    ///
    /// # Errors
    /// A repository cannot be made or opened, or the key does not fit one that exists.
    pub async fn create(settings: VaultSettings) -> Result<Vault, VaultError> {
        let mut created = Vec::with_capacity(settings.places.len());
        for place in &settings.places {
            let repository = match Repository::open(&place.url, &place.options).await {
                Err(RepositoryError::NoRepository { .. }) => Repository::create(&place.url, &place.options).await,
                opened => opened,
            };
            let repository = repository
                .map_err(|source| VaultError::Repository { name: place.name.clone(), source: Arc::new(source) })?;
            created.push((place.name.clone(), repository));
        }
        provide_keys(&created, settings.key.as_ref(), &*settings.clock).await?;
        Vault::open(settings).await
    }

    pub(super) async fn from_repositories(
        places: Vec<Arc<VaultRepository>>,
        settings: VaultSettings,
    ) -> Result<Vault, VaultError> {
        if places.is_empty() {
            return Err(VaultError::NoRepository);
        }
        let keys = load_keys(&places, settings.key).await;
        if let Some(worst) = worst_failure(&places) {
            return Err(worst);
        }
        Ok(Vault {
            places,
            keys: Arc::new(keys),
            level: settings.level,
            threads: settings.threads.max(1),
            clock: settings.clock,
        })
    }

    /// The same vault as if these were its only repositories: what each of them has is judged by itself.
    #[must_use]
    pub fn view(&self, wanted: impl Fn(&str) -> bool) -> Vault {
        let places = self.places.iter().filter(|place| wanted(&place.name)).cloned().collect();
        Vault { places, ..self.clone() }
    }

    /// A view of each repository, with its name, in the order of the configuration.
    pub fn single_views(&self) -> impl Iterator<Item = (&str, Vault)> {
        self.places.iter().map(|place| (place.name.as_str(), Vault { places: vec![Arc::clone(place)], ..self.clone() }))
    }

    /// How objects are protected.
    #[must_use]
    pub fn protection(&self) -> &Arc<ObjectEncryption> {
        self.keys.protection()
    }

    /// The configured key-encryption key; `None` if encryption is off.
    #[must_use]
    pub fn key_encryption_key(&self) -> Option<&KeyEncryptionKey> {
        self.keys.key_encryption_key()
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

    /// The repositories that are open now, with their names.
    pub fn repositories(&self) -> impl Iterator<Item = (&str, Repository)> {
        self.places.iter().filter_map(|place| Some((place.name.as_str(), place.repository().ok()?)))
    }

    /// The id of the repository of this name, which is opened first if it is unreachable and it is time.
    ///
    /// # Errors
    /// It is unreachable, or none is configured under this name.
    pub async fn reopened_id(&self, name: &str) -> Result<RepositoryId, VaultError> {
        let place = self.places.iter().find(|place| place.name == name).ok_or(VaultError::NoRepository)?;
        Ok(place.reopened(&self.keys).await?.id())
    }

    /// The names of all repositories, in the order of the configuration.
    pub fn repository_names(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| place.name.as_str())
    }

    /// The repositories that are unreachable now, with what was in the way.
    pub fn unreachable(&self) -> impl Iterator<Item = (&str, VaultError)> {
        self.places.iter().filter_map(|place| Some((place.name.as_str(), place.failure()?.0)))
    }
}

/// The keys of all repositories that could be opened. One whose keys are not right counts as unreachable, and gives the
/// reason.
async fn load_keys(places: &[Arc<VaultRepository>], by: Option<KeyEncryptionKey>) -> VaultKeys {
    let found = join_all(places.iter().map(|place| async {
        let repository = place.repository().ok()?;
        Some((read_keys(&place.name, &repository, by.as_ref()).await, repository))
    }))
    .await;
    let keys = VaultKeys::new(by, found.iter().flatten().filter_map(|(found, _)| found.as_ref().ok()));
    for (place, found) in places.iter().zip(found) {
        let Some((found, repository)) = found else { continue };
        let proved = match &found {
            Ok(found) => keys.bring(&place.name, &repository, found).await,
            Err(error) => Err(error.clone()),
        };
        place.settle(proved.map(|()| repository));
    }
    keys
}

/// What is in the way of a vault none of whose repositories is open: wrong keys or a wrong configuration before a
/// network that may come back.
fn worst_failure(places: &[Arc<VaultRepository>]) -> Option<VaultError> {
    let mut failures = Vec::with_capacity(places.len());
    for place in places {
        failures.push(place.failure()?.0);
    }
    let worst = failures.iter().position(VaultError::is_integrity);
    let worst = worst.or_else(|| failures.iter().position(|failure| failure.class() != ErrorClass::Transient));
    Some(failures.swap_remove(worst.unwrap_or(0)))
}
