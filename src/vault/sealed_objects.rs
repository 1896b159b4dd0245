//! Sealed objects of any kind, in all places at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};

use super::error::VaultError;
use super::key_objects::VaultKeys;
use super::repositories::Vault;
use super::vault_repository::VaultRepository;
use crate::base::blocking::run_blocking;
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::vault::repository::key::{KeyPrefix, ObjectKey};
use crate::vault::repository::{self, ObjectInfo, PrefixListing, PutOutcome};
use crate::vault::seal::{
    self, ObjectBinding, OpenedObject, SealSpec, SealedKind, SealedObject, SuffixOutcome, Trailer,
};

/// How long a vault of several repositories waits for one of them, if none answers.
const PATIENCE: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(5),
    total: Some(Duration::from_secs(120)),
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
    /// Seals `plain` as an object of this kind under this key, and puts it into every repository that can be reached.
    /// [`PutOutcome::Created`] if any did not have it; in the others it may have another content.
    ///
    /// # Errors
    /// As [`Vault::put_sealed`], or it cannot be sealed.
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
        let (binding, protection) = (object_binding(kind, key), Arc::clone(self.protection()));
        let (level, threads) = (self.level, self.threads);
        let sealed = run_blocking(move || {
            let pieces: Vec<&[u8]> = plain.iter().map(AsRef::as_ref).collect();
            let spec = SealSpec { level, metadata: &metadata, threads, ..SealSpec::new(&binding) };
            seal::seal_object(&pieces, &spec, &protection)
        });
        Ok(sealed.await??)
    }

    /// Puts a sealed object into every repository that can be reached: one is enough, and the others are filled from it
    /// later.
    ///
    /// # Errors
    /// No repository took it, or one refused it for a reason that does not pass by itself.
    pub async fn put_sealed(&self, key: &ObjectKey, sealed: &SealedObject) -> Result<PutOutcome, VaultError> {
        let mut patience = Patience::new(self);
        loop {
            match self.try_put_sealed(key, sealed).await {
                Err(error) if patience.waits_after(&error).await => {}
                answer => return answer,
            }
        }
    }

    async fn try_put_sealed(&self, key: &ObjectKey, sealed: &SealedObject) -> Result<PutOutcome, VaultError> {
        let puts = join_all(self.places.iter().map(|place| place.put_when_open(key, sealed, &self.keys))).await;
        let (mut all, mut passing) = (None, None);
        for put in puts {
            match put {
                Ok(PutOutcome::Created) => all = Some(PutOutcome::Created),
                Ok(PutOutcome::Exists) => all = all.or(Some(PutOutcome::Exists)),
                Err(error) if error.may_pass() => passing = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (all, passing) {
            (None, passing) => Err(passing.unwrap_or(VaultError::NoRepository)),
            (Some(put), passing) => {
                if let Some(error) = passing {
                    tracing::warn!(%key, %error, "a repository does not take the object; it is filled later");
                }
                Ok(put)
            }
        }
    }

    /// The repositories in the order in which they are asked: those that are open first.
    fn in_asking_order(&self) -> impl Iterator<Item = &Arc<VaultRepository>> {
        let (open, unreachable): (Vec<_>, Vec<_>) = self.places.iter().partition(|place| place.failure().is_none());
        open.into_iter().chain(unreachable)
    }

    /// What the first repository gives that gives anything; `None` if each reports that it has nothing.
    async fn first_that_has<'a, T>(
        &'a self,
        key: &ObjectKey,
        read: impl Fn(&'a VaultRepository) -> BoxFuture<'a, Result<Option<T>, VaultError>>,
    ) -> Result<Option<T>, VaultError> {
        let mut patience = Patience::new(self);
        loop {
            let mut trouble = None;
            for place in self.in_asking_order() {
                let answer = match place.reopened(&self.keys).await {
                    Ok(_open) => read(place).await,
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    Err(error) => self.keep_worst_error(&mut trouble, place, key, error),
                }
            }
            match trouble {
                None => return Ok(None),
                Some(error) if patience.waits_after(&error).await => {}
                Some(error) => return Err(error),
            }
        }
    }

    /// An object opened, from the first place that has it whole; `None` if every place says that there is none.
    ///
    /// # Errors
    /// No place gave it, and not all said that they don't have it.
    pub async fn get_object(&self, kind: SealedKind, key: &ObjectKey) -> Result<Option<OpenedObject>, VaultError> {
        self.first_that_has(key, |place| place.get(kind, key, self).boxed()).await
    }

    /// An object's trailer alone, from the first place that has it; `None` if every place says that there is none.
    ///
    /// # Errors
    /// No place gave it, and not all said that they don't have it.
    pub async fn get_trailer(&self, kind: SealedKind, key: &ObjectKey) -> Result<Option<Box<Trailer>>, VaultError> {
        let found = self.first_that_has(key, |place| place.trailer(kind, key, self).boxed()).await?;
        Ok(found.map(|(trailer, _)| trailer))
    }

    /// Everything under a prefix in any place.
    ///
    /// # Errors
    /// No place could be asked.
    pub async fn list(&self, prefix: &KeyPrefix, after: Option<&ObjectKey>) -> Result<ObjectListing, VaultError> {
        let lists = join_all(self.places.iter().map(|place| async move {
            let repository = place.reopened(&self.keys).await?;
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
            let repository = place.reopened(&self.keys).await?;
            repository.list_level(prefix).await.map_err(|e| place.repository_error(e))
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
        // One that is unreachable was reported when it became so.
        if place.failure().is_some() {
            tracing::debug!(%key, repository = place.name, %error, "this repository does not give the object");
        } else {
            tracing::warn!(%key, repository = place.name, %error, "this repository does not give the object");
        }
        if trouble.as_ref().is_none_or(|before| error.is_integrity() && !before.is_integrity()) {
            *trouble = Some(error);
        }
    }
}

/// How often what failed is repeated because no repository answered. A vault of one repository does not repeat: its
/// calls are patient themselves.
struct Patience<'a> {
    vault: &'a Vault,
    backoff: Backoff,
}

impl Patience<'_> {
    fn new(vault: &Vault) -> Patience<'_> {
        Patience { vault, backoff: Backoff::new(PATIENCE, vault.clock.elapsed(), 1) }
    }

    /// Waits before another attempt; `false` if there is to be none.
    async fn waits_after(&mut self, error: &VaultError) -> bool {
        let (vault, clock) = (self.vault, &self.vault.clock);
        let none_answers = vault.places.len() > 1 && vault.repositories().next().is_none();
        if !none_answers || error.class() != ErrorClass::Transient {
            return false;
        }
        let Some(pause) = self.backoff.next_pause(clock.elapsed()) else { return false };
        clock.sleep(pause).await;
        true
    }
}

impl VaultRepository {
    /// Everything under a prefix.
    pub(crate) async fn list(&self, prefix: &KeyPrefix) -> Result<Vec<ObjectInfo>, VaultError> {
        self.repository()?.list(prefix).await.map_err(|e| self.repository_error(e))
    }

    /// Puts a sealed object; an unreachable repository is opened first, if it is time.
    pub(crate) async fn put_when_open(
        &self,
        key: &ObjectKey,
        sealed: &SealedObject,
        keys: &VaultKeys,
    ) -> Result<PutOutcome, VaultError> {
        self.reopened(keys).await?;
        self.put(key, sealed).await
    }

    pub(crate) async fn put(&self, key: &ObjectKey, sealed: &SealedObject) -> Result<PutOutcome, VaultError> {
        let put = self.repository()?.put_new(key, sealed.parts.clone()).await.map_err(|e| self.repository_error(e))?;
        self.note_success();
        Ok(put)
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
        let (binding, protection) = (object_binding(kind, key), Arc::clone(vault.protection()));
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
            match seal::read_trailer(&suffix, len, &binding, vault.protection()).map_err(|e| self.open_error(e))? {
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

    pub(crate) fn open_error(&self, source: seal::OpenError) -> VaultError {
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
