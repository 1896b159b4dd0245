//! One store with its limits: every call has a time-out, what may pass is tried again, lost answers are settled.

use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use object_store::path::Path as StorePath;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload};

use super::error::{RepositoryError, StoreCall, StoreFailure};
use super::key::{self, KeyPrefix, ObjectKey};
use super::listing::{ObjectInfo, PrefixListing, PutOutcome};
use super::local_folder::{self, SyncedFolders};
use super::options::{RepositoryLimits, RepositoryOptions};
use crate::base::blocking::run_blocking;
use crate::base::clock::{SharedClock, timeout};
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy, retry};

/// What of a store's nature matters here.
#[derive(Debug)]
pub(super) enum ObjectStoreKind {
    /// A folder. Its answers are never lost, and its errors don't pass by waiting.
    Local { root: PathBuf },
    /// Tests.
    Memory,
    /// Over the network, through a client that may itself repeat a request.
    Remote { suffix_ranges: bool },
}

/// A store and the path in it where the repository begins.
#[derive(Debug)]
pub(super) struct RetryingStore {
    inner: Arc<dyn ObjectStore>,
    base: StorePath,
    kind: ObjectStoreKind,
    url: Arc<str>,
    clock: SharedClock,
    limits: RepositoryLimits,
    synced: Arc<SyncedFolders>,
}

/// How much of the end of an object is compared before all of it: enough to hold a trailer's tag, small enough to be
/// one packet or two.
const COMPARED_SUFFIX_BYTES: u64 = 4096;

impl RetryingStore {
    pub(super) fn new(
        inner: Arc<dyn ObjectStore>,
        base: StorePath,
        kind: ObjectStoreKind,
        url: Arc<str>,
        options: &RepositoryOptions,
    ) -> RetryingStore {
        let (clock, limits) = (Arc::clone(&options.clock), options.limits);
        RetryingStore { inner, base, kind, url, clock, limits, synced: Arc::default() }
    }

    pub(super) fn url(&self) -> Arc<str> {
        Arc::clone(&self.url)
    }

    pub(super) fn corrupt(&self, key: &ObjectKey, why: &dyn std::fmt::Display) -> RepositoryError {
        RepositoryError::Corrupt { key: key.clone(), url: self.url(), why: why.to_string() }
    }

    pub(super) async fn put_new(&self, key: &ObjectKey, parts: Vec<Bytes>) -> Result<PutOutcome, RepositoryError> {
        let payload = PutPayload::from_iter(parts);
        let call = self.call("write", key);
        // Whether a "there is something already" may mean our own bytes: after a lost answer, or when the client itself
        // may have repeated a request whose first answer was lost.
        let mut may_be_ours = matches!(self.kind, ObjectStoreKind::Remote { .. });
        let mut backoff = self.backoff();
        loop {
            let error = match self.create(&call, key, &payload).await {
                Ok(()) => {
                    self.sync_local_object(&call, key, false).await?;
                    return Ok(PutOutcome::Created);
                }
                Err(CreateRefusal::Exists) => {
                    self.sync_local_object(&call, key, true).await?;
                    if !may_be_ours {
                        return Ok(PutOutcome::Exists);
                    }
                    match self.has_same_bytes(key, &payload).await {
                        Ok(true) => return Ok(PutOutcome::Created),
                        Ok(false) => return Ok(PutOutcome::Exists),
                        // A store also refuses a create while another request for the same object is under way (409
                        // ConditionalRequestConflict of S3). If nothing is there afterwards, that one did not succeed.
                        Err(RepositoryError::NotFound { .. }) => call.unavailable_error(StoreFailure::ConflictPassed),
                        Err(error) => return Err(error),
                    }
                }
                Err(CreateRefusal::Error(error)) => error,
            };
            may_be_ours = true;
            match backoff.next_pause(self.clock.elapsed()) {
                Some(pause) if error.class() == ErrorClass::Transient => self.clock.sleep(pause).await,
                _ => return Err(error),
            }
        }
    }

    async fn create(&self, call: &StoreCall<'_>, key: &ObjectKey, payload: &PutPayload) -> Result<(), CreateRefusal> {
        if matches!(self.kind, ObjectStoreKind::Local { .. }) && *key != key::marker_key() {
            self.check_repository_present(call).await.map_err(CreateRefusal::Error)?;
        }
        let path = self.path(key);
        let limit = self.call_timeout(payload.content_length() as u64);
        let options = PutOptions::from(PutMode::Create);
        let put = self.inner.put_opts(&path, payload.clone(), options);
        match timeout(&*self.clock, limit, put).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(object_store::Error::AlreadyExists { .. })) => Err(CreateRefusal::Exists),
            // Azure says so when two creates race.
            Some(Err(object_store::Error::Precondition { .. })) => Err(CreateRefusal::Exists),
            Some(Err(error)) => Err(CreateRefusal::Error(match call.store_error(error) {
                // A write that finds nothing: the bucket itself is missing.
                RepositoryError::NotFound { url, .. } => RepositoryError::NoRepository { url },
                error => error,
            })),
            None => Err(CreateRefusal::Error(call.unavailable_error(StoreFailure::TimedOut(limit.as_secs())))),
        }
    }

    /// Proves that the repository is in its folder. A disk that was unmounted leaves the empty folder it was mounted
    /// on, in which the client would make all folders anew; what is put there is hidden when the disk is back.
    async fn check_repository_present(&self, call: &StoreCall<'_>) -> Result<(), RepositoryError> {
        let marker = self.path(&key::marker_key());
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.call_with_limit(call, 0, self.inner.get_opts(&marker, options)).await {
            Err(RepositoryError::NotFound { url, .. }) => Err(RepositoryError::NoRepository { url }),
            looked => looked.map(drop),
        }
    }

    /// Whether the object holds exactly these bytes. The end is compared first: there a sealed object differs from
    /// every other.
    async fn has_same_bytes(&self, key: &ObjectKey, payload: &PutPayload) -> Result<bool, RepositoryError> {
        let expected_len = payload.content_length() as u64;
        let (suffix, len) = self.get_suffix(key, COMPARED_SUFFIX_BYTES).await?;
        let from = usize::try_from(len.saturating_sub(suffix.len() as u64)).unwrap_or(usize::MAX);
        if len != expected_len || !payload_equals(payload, from, &suffix) {
            return Ok(false);
        }
        Ok(from == 0 || payload_equals(payload, 0, &self.get(key).await?))
    }

    pub(super) async fn make_durable(&self, key: &ObjectKey) -> Result<(), RepositoryError> {
        self.sync_local_object(&self.call("sync", key), key, true).await
    }

    /// Makes what a put found or made in a local folder durable under its name.
    async fn sync_local_object(
        &self,
        call: &StoreCall<'_>,
        key: &ObjectKey,
        by_another: bool,
    ) -> Result<(), RepositoryError> {
        let ObjectStoreKind::Local { root } = &self.kind else { return Ok(()) };
        let (root, path, synced) = (root.clone(), root.join(key.as_str()), Arc::clone(&self.synced));
        let now = self.clock.now().into();
        let sync = move || {
            if by_another { synced.sync_file(&root, &path, now) } else { synced.sync_folders(&root, &path, now) }
        };
        self.run_blocking(call, sync).await?.map_err(|e| call.file_error(e))
    }

    pub(super) async fn get(&self, key: &ObjectKey) -> Result<Bytes, RepositoryError> {
        self.read(key, None).await.map(|(bytes, _)| bytes)
    }

    pub(super) async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, RepositoryError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end.saturating_sub(range.start);
        let (bytes, _) = self.read(key, Some(GetRange::Bounded(range))).await?;
        // A store answers a range that reaches past the end with what there is.
        if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(self.corrupt(key, &"it ends before it should")) }
    }

    pub(super) async fn get_suffix(&self, key: &ObjectKey, len: u64) -> Result<(Bytes, u64), RepositoryError> {
        if matches!(self.kind, ObjectStoreKind::Remote { suffix_ranges: false }) || len == 0 {
            let info = self.head(key).await?;
            let whole = info.ok_or_else(|| RepositoryError::NotFound { key: key.clone(), url: self.url() })?.len;
            return Ok((self.get_range(key, whole.saturating_sub(len)..whole).await?, whole));
        }
        self.read(key, Some(GetRange::Suffix(len))).await
    }

    /// Bytes and the length of the whole object.
    async fn read(&self, key: &ObjectKey, range: Option<GetRange>) -> Result<(Bytes, u64), RepositoryError> {
        let call = self.call("read", key);
        let path = self.path(key);
        let attempt = || async {
            let options = GetOptions { range: range.clone(), ..GetOptions::default() };
            let found: GetResult = self.call_with_limit(&call, 0, self.inner.get_opts(&path, options)).await?;
            let (whole, asked) = (found.meta.size, found.range.end.saturating_sub(found.range.start));
            if asked > self.limits.largest_object {
                return Err(self.corrupt(key, &format_args!("{whole} bytes are more than any object has")));
            }
            let bytes = self.call_with_limit(&call, asked, found.bytes()).await?;
            Ok((bytes, whole))
        };
        retry(&*self.clock, self.backoff(), RepositoryError::class, attempt).await
    }

    pub(super) async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>, RepositoryError> {
        let call = self.call("look at", key);
        let path = self.path(key);
        let attempt = || async {
            let options = GetOptions { head: true, ..GetOptions::default() };
            self.call_with_limit(&call, 0, self.inner.get_opts(&path, options)).await
        };
        match retry(&*self.clock, self.backoff(), RepositoryError::class, attempt).await {
            Ok(found) => {
                Ok(Some(ObjectInfo { key: key.clone(), len: found.meta.size, modified: modified_at(&found.meta) }))
            }
            Err(RepositoryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn list(
        &self,
        prefix: &KeyPrefix,
        after: Option<&ObjectKey>,
    ) -> Result<Vec<ObjectInfo>, RepositoryError> {
        if let (ObjectStoreKind::Local { .. }, Some(after)) = (&self.kind, after) {
            return self.list_folders_after(prefix, after).await;
        }
        let call = StoreCall { action: "list", key: prefix.as_str(), url: &self.url };
        let base = self.prefix_path(prefix);
        let attempt = || async {
            let mut found = match after {
                Some(after) => self.inner.list_with_offset(Some(&base), &self.path(after)),
                None => self.inner.list(Some(&base)),
            };
            let mut objects = Vec::new();
            while let Some(meta) = self.with_deadline(&call, found.next()).await? {
                match meta {
                    Ok(meta) => objects.extend(self.info(&meta)),
                    // The folder does not exist yet, or its last object has just been removed.
                    Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(call.store_error(error)),
                }
            }
            Ok(objects)
        };
        let mut objects = retry(&*self.clock, self.backoff(), RepositoryError::class, attempt).await?;
        // Local folders are listed in the order of their hash tables.
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// What sorts after `after` in local folders, without looking into those that lie before it: a folder's files
    /// cannot be listed from the middle, as a bucket's objects can.
    async fn list_folders_after(
        &self,
        prefix: &KeyPrefix,
        after: &ObjectKey,
    ) -> Result<Vec<ObjectInfo>, RepositoryError> {
        let (mut objects, mut folders) = (Vec::new(), vec![prefix.clone()]);
        while let Some(folder) = folders.pop() {
            let level = self.list_level(&folder).await?;
            objects.extend(level.objects.into_iter().filter(|object| object.key > *after));
            // Every key in a folder begins with its path and a slash.
            let later = |below: &KeyPrefix| {
                let path = format!("{}/", below.as_str().trim_end_matches('/'));
                path.as_str() > after.as_str() || after.as_str().starts_with(&path)
            };
            folders.extend(level.prefixes.into_iter().filter(later));
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    pub(super) async fn list_level(&self, prefix: &KeyPrefix) -> Result<PrefixListing, RepositoryError> {
        let call = StoreCall { action: "list", key: prefix.as_str(), url: &self.url };
        let base = self.prefix_path(prefix);
        let attempt = || async {
            match self.with_deadline(&call, self.inner.list_with_delimiter(Some(&base))).await? {
                Ok(found) => Ok(Some(found)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(call.store_error(error)),
            }
        };
        let Some(found) = retry(&*self.clock, self.backoff(), RepositoryError::class, attempt).await? else {
            return Ok(PrefixListing::default());
        };
        let part = |path: &StorePath| prefix.child(path.filename()?).ok();
        let mut prefixes: Vec<KeyPrefix> = found.common_prefixes.iter().filter_map(part).collect();
        let mut objects: Vec<ObjectInfo> = found.objects.iter().filter_map(|meta| self.info(meta)).collect();
        prefixes.sort_unstable();
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(PrefixListing { prefixes, objects })
    }

    pub(super) async fn delete(&self, key: &ObjectKey) -> Result<(), RepositoryError> {
        let call = self.call("remove", key);
        let path = self.path(key);
        let attempt = || async {
            let one = futures_util::stream::iter([Ok(path.clone())]).boxed();
            let mut removed = self.inner.delete_stream(one);
            match self.with_deadline(&call, removed.next()).await? {
                None | Some(Ok(_) | Err(object_store::Error::NotFound { .. })) => Ok(()),
                Some(Err(error)) => Err(call.store_error(error)),
            }
        };
        retry(&*self.clock, self.backoff(), RepositoryError::class, attempt).await?;
        let ObjectStoreKind::Local { root } = &self.kind else { return Ok(()) };
        // What is removed next may be what this object needed: the order must survive a power cut.
        let folder = root.join(key.parent().as_str());
        self.run_blocking(&call, move || crate::base::durable::sync_dir(&folder)).await?.map_err(|e| call.file_error(e))
    }

    pub(super) async fn sweep_orphans(&self, age: Duration) -> Result<u64, RepositoryError> {
        let ObjectStoreKind::Local { root } = &self.kind else { return Ok(0) };
        let call = StoreCall { action: "sweep", key: "", url: &self.url };
        let (root, now) = (root.clone(), self.clock.now().into());
        let swept = self.run_blocking(&call, move || local_folder::sweep_orphans(&root, now, age)).await?;
        swept
            .map_err(|source| call.store_error(object_store::Error::Generic { store: "folder", source: source.into() }))
    }

    fn call<'a>(&'a self, action: &'static str, key: &'a ObjectKey) -> StoreCall<'a> {
        StoreCall { action, key: key.as_str(), url: &self.url }
    }

    fn path(&self, key: &ObjectKey) -> StorePath {
        key.as_str().split('/').fold(self.base.clone(), |path, part| path.join(part))
    }

    fn prefix_path(&self, prefix: &KeyPrefix) -> StorePath {
        prefix.as_str().split('/').filter(|part| !part.is_empty()).fold(self.base.clone(), |path, part| path.join(part))
    }

    /// What a listing says of an object of ours; `None` for somebody else's file.
    fn info(&self, meta: &ObjectMeta) -> Option<ObjectInfo> {
        let path = meta.location.as_ref();
        let key = match self.base.as_ref() {
            "" => path,
            base => path.strip_prefix(base)?.strip_prefix('/')?,
        };
        Some(ObjectInfo { key: ObjectKey::parse(key).ok()?, len: meta.size, modified: modified_at(meta) })
    }

    fn call_timeout(&self, bytes: u64) -> Duration {
        self.limits.attempt.saturating_add(Duration::from_secs(bytes / self.limits.slowest.max(1)))
    }

    fn backoff(&self) -> Backoff {
        let none = RetryPolicy { total: Some(Duration::ZERO), ..self.limits.network_retry };
        let policy = if matches!(self.kind, ObjectStoreKind::Local { .. }) { none } else { self.limits.network_retry };
        Backoff::new(policy, self.clock.elapsed(), rand::random())
    }

    async fn with_deadline<F: Future>(&self, call: &StoreCall<'_>, future: F) -> Result<F::Output, RepositoryError> {
        let limit = self.call_timeout(0);
        timeout(&*self.clock, limit, future)
            .await
            .ok_or_else(|| call.unavailable_error(StoreFailure::TimedOut(limit.as_secs())))
    }

    async fn call_with_limit<T>(
        &self,
        call: &StoreCall<'_>,
        bytes: u64,
        future: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, RepositoryError> {
        let limit = self.call_timeout(bytes);
        match timeout(&*self.clock, limit, future).await {
            Some(result) => result.map_err(|e| call.store_error(e)),
            None => Err(call.unavailable_error(StoreFailure::TimedOut(limit.as_secs()))),
        }
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        call: &StoreCall<'_>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RepositoryError> {
        run_blocking(work).await.map_err(|_lost| call.unavailable_error(StoreFailure::GivenUp))
    }
}

/// Why a create did not create.
enum CreateRefusal {
    Exists,
    Error(RepositoryError),
}

/// Whether `payload` from the byte `from` on is exactly `expected`.
fn payload_equals(payload: &PutPayload, from: usize, expected: &[u8]) -> bool {
    let (mut skip, mut rest) = (from, expected);
    for part in payload.iter() {
        let cut = skip.min(part.len());
        skip = skip.saturating_sub(cut);
        let Some(tail) = part.get(cut..).and_then(|part| rest.strip_prefix(part)) else { return false };
        rest = tail;
    }
    rest.is_empty()
}

fn modified_at(meta: &ObjectMeta) -> Timestamp {
    Timestamp::from_microsecond(meta.last_modified.timestamp_micros()).unwrap_or(Timestamp::UNIX_EPOCH)
}
