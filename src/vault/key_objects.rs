//! The keys that objects are sealed under: random, wrapped by the user's key, one small object each in `keys/` of every
//! repository.
//!
//! All repositories of an archive have the same keys, so that a segment is sealed once; each wraps them for itself.
//! Nothing here ever falls back to "no key": a repository whose keys are gone is an error, not an unencrypted one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::VaultError;
use crate::base::clock::Clock;
use crate::vault::repository::key::{self, ObjectKey};
use crate::vault::repository::{PutOutcome, Repository, RepositoryError};
use crate::vault::seal::ObjectEncryption;
use crate::vault::seal::keys::{
    EpochKey, EpochKeyId, KeyEncryptionKey, KeyRing, SealKeyError, unwrap_epoch_key, wrap_epoch_key,
};
use crate::vault::seal::wrapped_keys::{WrappedKeys, parse_key_object_name};
use bytes::Bytes;

/// What a vault knows of keys: the user's, and the repositories' that it wraps.
#[derive(Debug)]
pub(crate) struct VaultKeys {
    by: Option<KeyEncryptionKey>,
    protection: Arc<ObjectEncryption>,
}

/// The keys of one repository by name; `None` instead of a key if no user's key was given.
pub(super) type FoundKeys = BTreeMap<EpochKeyId, Option<EpochKey>>;

impl VaultKeys {
    /// The user's key, and all keys of all repositories.
    pub(super) fn new<'k>(by: Option<KeyEncryptionKey>, found: impl IntoIterator<Item = &'k FoundKeys>) -> VaultKeys {
        let mut ring: Option<KeyRing> = None;
        for (id, key) in found.into_iter().flatten() {
            let Some(key) = key else { continue };
            match &mut ring {
                Some(ring) => ring.add(*id, key.clone()),
                None => ring = Some(KeyRing::new(*id, key.clone())),
            }
        }
        VaultKeys { by, protection: Arc::new(ring.map_or(ObjectEncryption::None, ObjectEncryption::Encrypted)) }
    }

    /// How objects are protected.
    pub(super) fn protection(&self) -> &Arc<ObjectEncryption> {
        &self.protection
    }

    /// The user's key.
    pub(super) fn key_encryption_key(&self) -> Option<&KeyEncryptionKey> {
        self.by.as_ref()
    }

    /// Proves that this repository can take what is sealed under the current key: that it has the key, wrapped by the
    /// user's. A repository that lacks keys of the others gets them.
    ///
    /// # Errors
    /// It is encrypted and no key is configured, or the other way round; or the key does not open its keys.
    pub(super) async fn prove(&self, name: &str, repository: &Repository) -> Result<(), VaultError> {
        let found = read_keys(name, repository, self.by.as_ref()).await?;
        self.bring(name, repository, &found).await
    }

    /// Brings the keys to a repository that has these.
    ///
    /// # Errors
    /// As [`VaultKeys::prove`].
    pub(super) async fn bring(&self, name: &str, repository: &Repository, found: &FoundKeys) -> Result<(), VaultError> {
        let (by, ring) = match (&self.by, &*self.protection) {
            (None, _) if found.is_empty() => return Ok(()),
            (None, _) => return Err(VaultError::KeyNotConfigured { name: name.to_owned() }),
            (Some(by), ObjectEncryption::Encrypted(ring)) => (by, ring),
            (Some(_), ObjectEncryption::None) => return Err(VaultError::KeysMissing { name: name.to_owned() }),
        };
        if found.is_empty() {
            // Objects sealed under keys that are gone must not be hidden behind a new one.
            refuse_if_used(name, repository).await?;
        }
        for id in ring.ids().filter(|id| !found.contains_key(id)) {
            let Some(epoch) = ring.get(id) else { continue };
            tracing::info!(repository = name, key = %id, "the repository gets a key that the others have");
            put_key(name, repository, id, epoch, by).await?;
        }
        if let Some(unknown) = found.keys().find(|id| ring.get(**id).is_none()) {
            tracing::warn!(
                repository = name, key = %unknown,
                "the repository has a key that was not known at the start; start again to read what is sealed under it"
            );
        }
        Ok(())
    }
}

/// Sees to it that all repositories have the same keys, and at least one, if a key is given; and none if not.
pub(crate) async fn provide_keys(
    places: &[(String, Repository)],
    key: Option<&KeyEncryptionKey>,
    clock: &dyn Clock,
) -> Result<(), VaultError> {
    let Some(by) = key else { return Ok(()) };
    let mut all: BTreeMap<EpochKeyId, EpochKey> = BTreeMap::new();
    for (name, repository) in places {
        all.extend(read_keys(name, repository, key).await?.into_iter().filter_map(|(id, key)| Some((id, key?))));
    }
    if all.is_empty() {
        for (name, repository) in places {
            // Objects sealed under keys that are gone must not be hidden behind a new one.
            refuse_if_used(name, repository).await?;
        }
        let random = |source: crate::vault::seal::keys::RandomnessError| VaultError::Key {
            name: String::new(),
            key: "a new key".to_owned(),
            source: source.into(),
        };
        all.insert(EpochKeyId::new(clock.now()).map_err(random)?, EpochKey::generate().map_err(random)?);
    }
    for (name, repository) in places {
        let there: Vec<EpochKeyId> = read_keys(name, repository, key).await?.into_keys().collect();
        for (id, epoch) in all.iter().filter(|(id, _)| !there.contains(id)) {
            put_key(name, repository, *id, epoch, by).await?;
        }
    }
    Ok(())
}

/// Writes a key and proves it by reading it back.
async fn put_key(
    name: &str,
    repository: &Repository,
    id: EpochKeyId,
    epoch: &EpochKey,
    by: &KeyEncryptionKey,
) -> Result<(), VaultError> {
    let repository_id = repository.id().to_string();
    let wrong = |source: SealKeyError| VaultError::Key { name: name.to_owned(), key: id.to_string(), source };
    let wrapped = wrap_epoch_key(id, epoch, by, &repository_id).map_err(|e| wrong(e.into()))?;
    let key = key::epoch_key_object(&id.to_string(), 0).map_err(|_name| wrong(SealKeyError::Damaged))?;
    let put = repository.put_new(&key, vec![Bytes::copy_from_slice(&wrapped)]).await;
    let (PutOutcome::Created | PutOutcome::Exists) = put.map_err(|e| in_repository(name, e))?;
    let stored = repository.get(&key).await.map_err(|e| in_repository(name, e))?;
    unwrap_epoch_key(&stored, by, &repository_id).map(drop).map_err(wrong)
}

fn in_repository(name: &str, source: RepositoryError) -> VaultError {
    VaultError::Repository { name: name.to_owned(), source: Arc::new(source) }
}

async fn refuse_if_used(name: &str, repository: &Repository) -> Result<(), VaultError> {
    let level = repository.list_level(&key::KeyPrefix::all()).await.map_err(|e| in_repository(name, e))?;
    if level.prefixes.iter().all(|prefix| *prefix == key::keys_prefix()) {
        return Ok(());
    }
    Err(VaultError::KeysMissing { name: name.to_owned() })
}

/// The keys of one repository, unwrapped if `by` is given; of each the latest wrapping that `by` opens.
pub(super) async fn read_keys(
    name: &str,
    repository: &Repository,
    by: Option<&KeyEncryptionKey>,
) -> Result<FoundKeys, VaultError> {
    let listed = repository.list_level(&key::keys_prefix()).await.map_err(|e| in_repository(name, e))?;
    let mut names: Vec<((EpochKeyId, u32), ObjectKey)> = listed
        .objects
        .into_iter()
        .filter_map(|object| Some((parse_key_object_name(object.key.file_name())?, object.key)))
        .collect();
    names.sort();
    let Some(by) = by else { return Ok(names.into_iter().map(|((id, _), _)| (id, None)).collect()) };
    let mut wrapped = WrappedKeys::new(by, &repository.id().to_string());
    for ((id, _), key) in names.into_iter().rev() {
        if wrapped.wants(id) {
            let stored = repository.get(&key).await.map_err(|e| in_repository(name, e))?;
            wrapped.unwrap_object(id, key, &stored);
        }
    }
    let found = wrapped.finish().map_err(|(key, source)| VaultError::Key {
        name: name.to_owned(),
        key: key.to_string(),
        source,
    })?;
    Ok(found.into_iter().map(|(id, key)| (id, Some(key))).collect())
}
