//! Sealed objects of any kind, in all places at once.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;

use super::error::VaultError;
use super::repositories::Vault;
use super::vault_repository::VaultRepository;
use crate::base::blocking::run_blocking;
use crate::vault::repository::key::{KeyPrefix, ObjectKey};
use crate::vault::repository::{self, ObjectInfo, PrefixListing, PutOutcome};
use crate::vault::seal::{
    self, ObjectBinding, OpenedObject, SealSpec, SealedKind, SealedObject, SuffixOutcome, Trailer,
};

/// How much of an object's end is read at first to find its trailer: the digest of a busy 16 MiB segment and its frame
/// table fit.
const TRAILER_GUESS_BYTES: u64 = 128 << 10;

/// What a listing found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ObjectListing {
    /// The objects that any place has, sorted by key.
    pub objects: Vec<ObjectInfo>,
    /// Places that could not be asked, with what they said: what is missing above may be there.
    pub unasked: Vec<(String, String)>,
}

impl Vault {
    /// Seals `plain` as an object of this kind under this key, and puts it into every place. [`PutOutcome::Created`] if
    /// any place did not have it; in the others it may have another content.
    ///
    /// # Errors
    /// Any place did not take it, or it cannot be sealed.
    pub async fn put_object(
        &self,
        kind: SealedKind,
        key: &ObjectKey,
        plain: Vec<Bytes>,
        metadata: Vec<u8>,
    ) -> Result<PutOutcome, VaultError> {
        let sealed = self.seal_object(kind, key, plain, metadata).await?;
        self.put_sealed(key, &sealed).await
    }

    /// Seals `plain` as an object of this kind under this key.
    pub(crate) async fn seal_object(
        &self,
        kind: SealedKind,
        key: &ObjectKey,
        plain: Vec<Bytes>,
        metadata: Vec<u8>,
    ) -> Result<SealedObject, VaultError> {
        let (binding, protection) = (object_binding(kind, key), std::sync::Arc::clone(&self.protection));
        let (level, threads) = (self.level, self.threads);
        let sealed = run_blocking(move || {
            let pieces: Vec<&[u8]> = plain.iter().map(AsRef::as_ref).collect();
            let spec = SealSpec { level, metadata: &metadata, threads, ..SealSpec::new(&binding) };
            seal::seal_object(&pieces, &spec, &protection)
        });
        Ok(sealed.await??)
    }

    /// Puts a sealed object into every place.
    ///
    /// # Errors
    /// Any place did not take it; the others may have.
    pub async fn put_sealed(&self, key: &ObjectKey, sealed: &SealedObject) -> Result<PutOutcome, VaultError> {
        let puts = join_all(self.places.iter().map(|place| place.put(key, sealed))).await;
        let mut all = PutOutcome::Exists;
        for put in puts {
            if put? == PutOutcome::Created {
                all = PutOutcome::Created;
            }
        }
        Ok(all)
    }

    /// An object opened, from the first place that has it whole; `None` if every place says that there is none.
    ///
    /// # Errors
    /// No place gave it, and not all said that they don't have it.
    pub async fn get_object(&self, kind: SealedKind, key: &ObjectKey) -> Result<Option<OpenedObject>, VaultError> {
        let mut trouble = None;
        for place in &self.places {
            match place.get(kind, key, self).await {
                Ok(Some(opened)) => return Ok(Some(opened)),
                Ok(None) => {}
                Err(error) => self.keep_worst_error(&mut trouble, place, key, error),
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    /// An object's trailer alone, from the first place that has it; `None` if every place says that there is none.
    ///
    /// # Errors
    /// No place gave it, and not all said that they don't have it.
    pub async fn get_trailer(&self, kind: SealedKind, key: &ObjectKey) -> Result<Option<Box<Trailer>>, VaultError> {
        let mut trouble = None;
        for place in &self.places {
            match place.trailer(kind, key, self).await {
                Ok(Some((trailer, _))) => return Ok(Some(trailer)),
                Ok(None) => {}
                Err(error) => self.keep_worst_error(&mut trouble, place, key, error),
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    /// Everything under a prefix in any place.
    ///
    /// # Errors
    /// No place could be asked.
    pub async fn list(&self, prefix: &KeyPrefix, after: Option<&ObjectKey>) -> Result<ObjectListing, VaultError> {
        let lists = join_all(self.places.iter().map(|place| async move {
            let repository = place.repository()?;
            let listed = match after {
                Some(after) => repository.list_after(prefix, after).await,
                None => repository.list(prefix).await,
            };
            listed.map_err(|e| place.repository_error(e))
        }))
        .await;
        let (lists, unasked) = self.collect_answers(lists)?;
        let merged: BTreeMap<ObjectKey, ObjectInfo> =
            lists.into_iter().rev().flatten().map(|object| (object.key.clone(), object)).collect();
        Ok(ObjectListing { objects: merged.into_values().collect(), unasked })
    }

    /// What stands right under a prefix in any place, and the places that could not be asked.
    ///
    /// # Errors
    /// No place could be asked.
    pub(crate) async fn list_level(
        &self,
        prefix: &KeyPrefix,
    ) -> Result<(PrefixListing, Vec<(String, String)>), VaultError> {
        let levels = join_all(self.places.iter().map(|place| async move {
            place.repository()?.list_level(prefix).await.map_err(|e| place.repository_error(e))
        }))
        .await;
        let (levels, unasked) = self.collect_answers(levels)?;
        let mut merged = PrefixListing::default();
        for level in levels {
            merged.prefixes.extend(level.prefixes);
            merged.objects.extend(level.objects);
        }
        merged.prefixes.sort_unstable();
        merged.prefixes.dedup();
        merged.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        merged.objects.dedup_by(|a, b| a.key == b.key);
        Ok((merged, unasked))
    }

    /// The answers of the places that gave one, and what the others said.
    #[expect(clippy::type_complexity, reason = "used right here")]
    pub(crate) fn collect_answers<T>(
        &self,
        results: Vec<Result<T, VaultError>>,
    ) -> Result<(Vec<T>, Vec<(String, String)>), VaultError> {
        let (mut answers, mut unasked, mut last) = (Vec::new(), Vec::new(), None);
        for (place, result) in self.places.iter().zip(results) {
            match result {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    unasked.push((place.name.clone(), error.to_string()));
                    last = Some(error);
                }
            }
        }
        match last {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok((answers, unasked)),
        }
    }

    /// Removes an object from every place.
    ///
    /// # Errors
    /// Any place did not do it; the others may have.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), VaultError> {
        let deletes =
            join_all(self.places.iter().map(|place| async move {
                place.repository()?.delete(key).await.map_err(|e| place.repository_error(e))
            }))
            .await;
        deletes.into_iter().collect()
    }

    /// Keeps the trouble that says most: damage before a place that is not there.
    fn keep_worst_error(
        &self,
        trouble: &mut Option<VaultError>,
        place: &VaultRepository,
        key: &ObjectKey,
        error: VaultError,
    ) {
        tracing::warn!(%key, place = place.name, %error, "this repository does not give the object");
        if trouble.as_ref().is_none_or(|before| error.is_integrity() && !before.is_integrity()) {
            *trouble = Some(error);
        }
    }
}

impl VaultRepository {
    pub(crate) async fn put(&self, key: &ObjectKey, sealed: &SealedObject) -> Result<PutOutcome, VaultError> {
        self.repository()?.put_new(key, sealed.parts.clone()).await.map_err(|e| self.repository_error(e))
    }

    pub(crate) async fn get(
        &self,
        kind: SealedKind,
        key: &ObjectKey,
        vault: &Vault,
    ) -> Result<Option<OpenedObject>, VaultError> {
        let object = match self.repository()?.get(key).await {
            Ok(object) => object,
            Err(repository::RepositoryError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.repository_error(error)),
        };
        let (binding, protection) = (object_binding(kind, key), std::sync::Arc::clone(&vault.protection));
        let threads = vault.threads;
        let opened = run_blocking(move || seal::open_object(&object, &binding, &protection, threads)).await?;
        opened.map(Some).map_err(|e| self.open_error(e))
    }

    /// The trailer, and how many bytes the stored object has.
    pub(crate) async fn trailer(
        &self,
        kind: SealedKind,
        key: &ObjectKey,
        vault: &Vault,
    ) -> Result<Option<(Box<Trailer>, u64)>, VaultError> {
        let repository = self.repository()?;
        let binding = object_binding(kind, key);
        let mut wanted = TRAILER_GUESS_BYTES;
        // The footer says how long the trailer is: at most one more read.
        for _ in 0..3 {
            let (suffix, len) = match repository.get_suffix(key, wanted).await {
                Ok(read) => read,
                Err(repository::RepositoryError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(self.repository_error(error)),
            };
            match seal::read_trailer(&suffix, len, &binding, &vault.protection).map_err(|e| self.open_error(e))? {
                SuffixOutcome::Ready(trailer) => return Ok(Some((trailer, len))),
                SuffixOutcome::NeedMore(more) => wanted = more,
            }
        }
        let fault = seal::OpenFault::NoEnd;
        Err(self.open_error(seal::OpenError { binding, fault }))
    }

    /// Makes an object that is there durable, whoever put it.
    pub(crate) async fn make_durable(&self, key: &ObjectKey) -> Result<(), VaultError> {
        self.repository()?.make_durable(key).await.map_err(|e| self.repository_error(e))
    }

    fn open_error(&self, source: seal::OpenError) -> VaultError {
        VaultError::CannotOpen { name: self.name.clone(), source }
    }

    pub(crate) fn content_error(&self, key: &ObjectKey, why: impl ToString) -> VaultError {
        VaultError::MalformedContent { name: self.name.clone(), key: key.clone(), why: why.to_string() }
    }
}

/// What ties an object to its place: its kind and its key.
pub(crate) fn object_binding(kind: SealedKind, key: &ObjectKey) -> ObjectBinding {
    ObjectBinding::new(kind, key.as_str())
}
