//! The keys that objects are sealed under: random, wrapped by the user's key, one small object each in `keys/` of every
//! repository.
//!
//! All repositories of an archive have the same keys, so that a segment is sealed once; each wraps them for itself.
//! Nothing here ever falls back to "no key": a repository whose keys are gone is an error, not an unencrypted one.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;

use super::error::VaultError;
use super::vault_repository::VaultRepository;
use crate::base::clock::Clock;
use crate::vault::repository::key::{self, ObjectKey};
use crate::vault::repository::{PutOutcome, Repository};
use crate::vault::seal::ObjectEncryption;
use crate::vault::seal::keys::{
    EpochKey, EpochKeyId, KeyEncryptionKey, KeyRing, SealKeyError, unwrap_epoch_key, wrap_epoch_key,
};
use crate::vault::seal::wrapped_keys::{WrappedKeys, parse_key_object_name};

/// The keys of all places that can be reached.
pub(crate) async fn load_keys(
    places: &[VaultRepository],
    key: Option<&KeyEncryptionKey>,
) -> Result<ObjectEncryption, VaultError> {
    let found = join_all(places.iter().map(|place| read_keys(place, key))).await;
    let mut ring: Option<KeyRing> = None;
    let mut held: Vec<(&VaultRepository, Vec<EpochKeyId>)> = Vec::new();
    for (place, found) in places.iter().zip(found) {
        if place.repository.is_err() {
            continue;
        }
        let found = found?;
        match (key.is_some(), found.is_empty()) {
            (true, true) => return Err(VaultError::KeysMissing { name: place.name.clone() }),
            (false, false) => return Err(VaultError::KeyNotConfigured { name: place.name.clone() }),
            _ => {}
        }
        held.push((place, found.iter().filter(|(_, key)| key.is_some()).map(|(id, _)| *id).collect()));
        for (id, key) in found {
            let Some(key) = key else { continue };
            match &mut ring {
                Some(ring) => ring.add(id, key),
                None => ring = Some(KeyRing::new(id, key)),
            }
        }
    }
    let Some(ring) = ring else { return Ok(ObjectEncryption::None) };
    let current = ring.current().0;
    match held.iter().find(|(_, ids)| !ids.contains(&current)) {
        Some((place, _)) => Err(VaultError::KeyMissing { name: place.name.clone(), key: current }),
        None => Ok(ObjectEncryption::Encrypted(ring)),
    }
}

/// Sees to it that all places have the same keys, and at least one, if a key is given; and none if not.
pub(crate) async fn provide_keys(
    places: &[VaultRepository],
    key: Option<&KeyEncryptionKey>,
    clock: &dyn Clock,
) -> Result<(), VaultError> {
    let Some(by) = key else { return Ok(()) };
    let mut all: BTreeMap<EpochKeyId, EpochKey> = BTreeMap::new();
    for place in places {
        all.extend(read_keys(place, key).await?.into_iter().filter_map(|(id, key)| Some((id, key?))));
    }
    if all.is_empty() {
        for place in places {
            // Objects sealed under keys that are gone must not be hidden behind a new one.
            refuse_if_used(place).await?;
        }
        let random = |source: crate::vault::seal::keys::RandomnessError| VaultError::Key {
            name: String::new(),
            key: "a new key".to_owned(),
            source: source.into(),
        };
        all.insert(EpochKeyId::new(clock.now()).map_err(random)?, EpochKey::generate().map_err(random)?);
    }
    for place in places {
        let repository = place.repository()?;
        let there: Vec<EpochKeyId> = read_keys(place, key).await?.into_keys().collect();
        for (id, epoch) in all.iter().filter(|(id, _)| !there.contains(id)) {
            put_key(place, repository, *id, epoch, by).await?;
        }
    }
    Ok(())
}

/// Writes a key and proves it by reading it back.
async fn put_key(
    place: &VaultRepository,
    repository: &Repository,
    id: EpochKeyId,
    epoch: &EpochKey,
    by: &KeyEncryptionKey,
) -> Result<(), VaultError> {
    let name = repository.id().to_string();
    let wrong = |source: SealKeyError| VaultError::Key { name: place.name.clone(), key: id.to_string(), source };
    let wrapped = wrap_epoch_key(id, epoch, by, &name).map_err(|e| wrong(e.into()))?;
    let key = key::epoch_key_object(&id.to_string(), 0).map_err(|_name| wrong(SealKeyError::Damaged))?;
    let put = repository.put_new(&key, vec![Bytes::copy_from_slice(&wrapped)]).await;
    let (PutOutcome::Created | PutOutcome::Exists) = put.map_err(|e| place.repository_error(e))?;
    let stored = repository.get(&key).await.map_err(|e| place.repository_error(e))?;
    unwrap_epoch_key(&stored, by, &name).map(drop).map_err(wrong)
}

async fn refuse_if_used(place: &VaultRepository) -> Result<(), VaultError> {
    let level = place.repository()?.list_level(&key::KeyPrefix::all()).await.map_err(|e| place.repository_error(e))?;
    if level.prefixes.iter().all(|prefix| *prefix == key::keys_prefix()) {
        return Ok(());
    }
    Err(VaultError::KeysMissing { name: place.name.clone() })
}

/// The keys of one place, unwrapped if `by` is given; of each the latest wrapping that `by` opens.
async fn read_keys(
    place: &VaultRepository,
    by: Option<&KeyEncryptionKey>,
) -> Result<BTreeMap<EpochKeyId, Option<EpochKey>>, VaultError> {
    let Ok(repository) = &place.repository else { return Ok(BTreeMap::new()) };
    let listed = repository.list_level(&key::keys_prefix()).await.map_err(|e| place.repository_error(e))?;
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
            let stored = repository.get(&key).await.map_err(|e| place.repository_error(e))?;
            wrapped.unwrap_object(id, key, &stored);
        }
    }
    let found = wrapped.finish().map_err(|(key, source)| VaultError::Key {
        name: place.name.clone(),
        key: key.to_string(),
        source,
    })?;
    Ok(found.into_iter().map(|(id, key)| (id, Some(key))).collect())
}
