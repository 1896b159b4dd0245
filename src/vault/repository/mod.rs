//! The repository: where everything that must survive is kept, as objects that are created once and never changed. The only user of
//! `object_store`.
//!
//! In go a key and the parts of an object; out comes whether it was created or something stands there already. What an object means, how it
//! is sealed and whether two of them are the same is not known here.
//!
//! [`layout`] says where each object stands. [`Repository`] opens a URL: `file:///path`, `s3://bucket/path`, `gs://…`, `az://…`, or
//! `memory://` for tests. Opening costs one small read and lists nothing, since `archive-push` does it for every segment.

#[cfg(test)]
mod conformance;
pub mod key;
mod local_folder;
mod connect;
mod error;
mod retrying_store;
#[cfg(test)]
pub(crate) mod fault_store;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::clock::{SharedClock, SystemClock};
use crate::base::retry::RetryPolicy;

pub use error::RepositoryError;
use key::{KeyPrefix, ObjectKey};
use retrying_store::RetryingStore;

/// The layout that this program writes. It reads this one and older ones; there are none older yet.
pub const REPOSITORY_FORMAT: u32 = 1;

/// What a repository is opened with.
#[derive(Clone)]
pub struct RepositoryOptions {
    /// The process's environment, of which only the chosen store's own variables are used: `AWS_*`, `GOOGLE_*` or `AZURE_*`.
    pub environment: BTreeMap<String, String>,
    /// Settings from the configuration, by `object_store`'s names (`endpoint`, `region`, …). They go before the environment.
    pub settings: BTreeMap<String, String>,
    /// Where time comes from.
    pub clock: SharedClock,
    /// How long things may take.
    pub limits: RepositoryLimits,
}

impl RepositoryOptions {
    /// No settings, the machine's clock and the ordinary limits.
    #[must_use]
    pub fn new() -> RepositoryOptions {
        RepositoryOptions {
            environment: BTreeMap::new(),
            settings: BTreeMap::new(),
            clock: SystemClock::shared(),
            limits: RepositoryLimits::default(),
        }
    }
}

impl Default for RepositoryOptions {
    fn default() -> RepositoryOptions {
        RepositoryOptions::new()
    }
}

impl fmt::Debug for RepositoryOptions {
    /// Names only: the values hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.settings.keys().collect();
        f.debug_struct("Options").field("settings", &names).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// How long a call may take, and how long it is tried.
#[derive(Clone, Copy, Debug)]
pub struct RepositoryLimits {
    /// One attempt may take this long, and the time that its bytes need at `slowest` besides. A minute: twice what a store's own front end
    /// waits before it answers with an error, so that the error is seen rather than guessed.
    pub attempt: Duration,
    /// The slowest link that is worth waiting for, in bytes a second. At 1 MiB a 16 MiB segment takes the 16 seconds in which a small
    /// server writes the next one; whoever is slower falls behind for ever.
    pub slowest: u64,
    /// How a call over the network is tried again; local files are not, as their errors don't pass. Two minutes in all, so
    /// that an attempt that hung is followed by another: every caller that can wait longer has a loop of its own, with its own log line.
    pub network_retry: RetryPolicy,
    /// No object is larger: a 1 GiB segment that would not compress, and its frame table. A length beyond this is damage or not ours.
    pub largest_object: u64,
}

impl Default for RepositoryLimits {
    fn default() -> RepositoryLimits {
        RepositoryLimits {
            attempt: Duration::from_secs(60),
            slowest: 1 << 20,
            network_retry: RetryPolicy {
                first: Duration::from_millis(200),
                longest: Duration::from_secs(5),
                total: Some(Duration::from_secs(120)),
            },
            largest_object: (1 << 30) + (64 << 20),
        }
    }
}

/// The random number that tells repositories apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryId(u128);

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<RepositoryId> for String {
    fn from(id: RepositoryId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for RepositoryId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<RepositoryId, std::num::ParseIntError> {
        u128::from_str_radix(&text, 16).map(RepositoryId)
    }
}

/// What `walkeep.json` holds.
#[derive(Serialize, Deserialize)]
struct RepositoryMarker {
    format: u32,
    repository_id: RepositoryId,
    created_at: Timestamp,
}

/// The one field of `walkeep.json` that every format will have.
#[derive(Deserialize)]
struct RepositoryMarkerFormat {
    format: u32,
}

/// What came of a [`Repository::put_new`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    /// The object is new, whole and durable.
    Created,
    /// Something stands under this key already, durable and untouched. Whether it is the same is for the caller to find out.
    Exists,
}

/// An object as a listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// Its name.
    pub key: ObjectKey,
    /// Its bytes.
    pub len: u64,
    /// When it was created, by the store's clock.
    pub modified: Timestamp,
}

/// What stands right under a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PrefixListing {
    /// The prefixes one part longer, sorted.
    pub prefixes: Vec<KeyPrefix>,
    /// The objects, sorted by key.
    pub objects: Vec<ObjectInfo>,
}

/// An open repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    store: Arc<RetryingStore>,
    id: RepositoryId,
}

impl Repository {
    /// Makes a new repository at `url`.
    ///
    /// # Errors
    /// [`RepositoryError::RepositoryExists`] if there is one, and whatever stands in the way of writing.
    pub async fn create(url: &str, options: &RepositoryOptions) -> Result<Repository, RepositoryError> {
        let store = connect::connect(url, options, connect::ConnectIntent::Create)?;
        Repository::create_in(store, &options.clock).await
    }

    /// Opens the repository at `url`.
    ///
    /// # Errors
    /// [`RepositoryError::NoRepository`] if there is none, [`RepositoryError::NewerFormat`] if this program is too old for it, and whatever stands in the way
    /// of reading.
    pub async fn open(url: &str, options: &RepositoryOptions) -> Result<Repository, RepositoryError> {
        Repository::open_in(connect::connect(url, options, connect::ConnectIntent::Open)?).await
    }

    /// An empty repository in memory, gone when its last clone is dropped. For tests.
    ///
    /// # Errors
    /// None in practice.
    pub async fn in_memory(options: &RepositoryOptions) -> Result<Repository, RepositoryError> {
        Repository::create("memory://", options).await
    }

    /// A new repository in a store that a test has made.
    #[cfg(test)]
    pub(crate) async fn create_in_store(
        inner: Arc<dyn object_store::ObjectStore>,
        options: &RepositoryOptions,
    ) -> Result<Repository, RepositoryError> {
        let kind = retrying_store::ObjectStoreKind::Remote { suffix_ranges: true };
        let store = RetryingStore::new(inner, object_store::path::Path::default(), kind, "test://".into(), options);
        match Repository::create_in(store, &options.clock).await {
            Err(RepositoryError::RepositoryExists { .. }) => unreachable!("a test's store is empty"),
            created => created,
        }
    }

    async fn create_in(store: RetryingStore, clock: &SharedClock) -> Result<Repository, RepositoryError> {
        let id = RepositoryId(rand::random());
        let marker = RepositoryMarker { format: REPOSITORY_FORMAT, repository_id: id, created_at: clock.now() };
        let mut text = serde_json::to_vec_pretty(&marker).map_err(|e| store.corrupt(&key::marker_key(), &e))?;
        text.push(b'\n');
        match store.put_new(&key::marker_key(), vec![Bytes::from(text)]).await? {
            PutOutcome::Created => Ok(Repository { store: Arc::new(store), id }),
            PutOutcome::Exists => Err(RepositoryError::RepositoryExists { url: store.url() }),
        }
    }

    async fn open_in(store: RetryingStore) -> Result<Repository, RepositoryError> {
        let text = match store.get(&key::marker_key()).await {
            Err(RepositoryError::NotFound { url, .. }) => return Err(RepositoryError::NoRepository { url }),
            other => other?,
        };
        let corrupt = |e: serde_json::Error| store.corrupt(&key::marker_key(), &e);
        let RepositoryMarkerFormat { format } = serde_json::from_slice(&text).map_err(corrupt)?;
        if format > REPOSITORY_FORMAT {
            return Err(RepositoryError::NewerFormat { url: store.url(), found: format });
        }
        let marker: RepositoryMarker = serde_json::from_slice(&text).map_err(corrupt)?;
        Ok(Repository { store: Arc::new(store), id: marker.repository_id })
    }

    /// The repository's identity.
    #[must_use]
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// Where it is, without credentials. For messages.
    #[must_use]
    pub fn url(&self) -> Arc<str> {
        self.store.url()
    }

    /// Creates an object from its parts, which are not copied. When this returns, the object under `key`, new or old, is durable.
    ///
    /// An answer that was lost on the way is settled here: if the object turns out to hold exactly these bytes, it was ours and counts as
    /// created. Not cancel safe in the sense that a dropped call may still create the object; calling again is safe.
    ///
    /// # Errors
    /// Any but [`RepositoryError::NotFound`]. After [`RepositoryError::Unavailable`] the object may exist or not.
    pub async fn put_new(&self, key: &ObjectKey, parts: Vec<Bytes>) -> Result<PutOutcome, RepositoryError> {
        self.store.put_new(key, parts).await
    }

    /// Makes an object that is there durable under its name, whoever put it: a writer of the same moment may not have got so far.
    ///
    /// # Errors
    /// What stood in the way.
    pub async fn make_durable(&self, key: &ObjectKey) -> Result<(), RepositoryError> {
        self.store.make_durable(key).await
    }

    /// A whole object.
    ///
    /// # Errors
    /// [`RepositoryError::NotFound`] if there is none; else what stood in the way.
    pub async fn get(&self, key: &ObjectKey) -> Result<Bytes, RepositoryError> {
        self.store.get(key).await
    }

    /// The bytes in `range` of an object, which must lie within it.
    ///
    /// # Errors
    /// [`RepositoryError::NotFound`] if there is no such object; else what stood in the way.
    pub async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes, RepositoryError> {
        self.store.get_range(key, range).await
    }

    /// The last `len` bytes of an object, or all if it has fewer; and its whole length. Not for empty objects, which have no range over the
    /// network.
    ///
    /// # Errors
    /// [`RepositoryError::NotFound`] if there is no such object; else what stood in the way.
    pub async fn get_suffix(&self, key: &ObjectKey, len: u64) -> Result<(Bytes, u64), RepositoryError> {
        self.store.get_suffix(key, len).await
    }

    /// What a listing would show of one object; `None` if there is none.
    ///
    /// # Errors
    /// What stood in the way.
    pub async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectInfo>, RepositoryError> {
        self.store.head(key).await
    }

    /// All objects under a prefix, sorted by key. Files that cannot be ours are left out.
    ///
    /// # Errors
    /// What stood in the way. A prefix under which nothing stands is not an error.
    pub async fn list(&self, prefix: &KeyPrefix) -> Result<Vec<ObjectInfo>, RepositoryError> {
        self.store.list(prefix, None).await
    }

    /// As [`Repository::list`], but only the objects that sort after `after`, whether that exists or not.
    ///
    /// # Errors
    /// As [`Repository::list`].
    pub async fn list_after(&self, prefix: &KeyPrefix, after: &ObjectKey) -> Result<Vec<ObjectInfo>, RepositoryError> {
        self.store.list(prefix, Some(after)).await
    }

    /// What stands right under a prefix, without looking deeper. A local folder in which nothing is left may show as a prefix.
    ///
    /// # Errors
    /// As [`Repository::list`].
    pub async fn list_level(&self, prefix: &KeyPrefix) -> Result<PrefixListing, RepositoryError> {
        self.store.list_level(prefix).await
    }

    /// Removes an object, durably; one that is not there counts as removed.
    ///
    /// # Errors
    /// What stood in the way.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), RepositoryError> {
        self.store.delete(key).await
    }

    /// Removes what writers that crashed have left half-written for longer than `age`, and counts it. Only local folders have such.
    ///
    /// # Errors
    /// What stood in the way.
    pub async fn sweep_orphans(&self, age: Duration) -> Result<u64, RepositoryError> {
        self.store.sweep_orphans(age).await
    }
}

#[cfg(test)]
mod tests {
    use super::{PutOutcome, Repository, RepositoryError, RepositoryOptions, key};
    use bytes::Bytes;

    fn url(dir: &tempfile::TempDir) -> String {
        format!("file://{}", dir.path().join("new/repo").display())
    }

    #[tokio::test]
    async fn a_repository_is_created_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let options = RepositoryOptions::new();
        assert!(matches!(Repository::open(&url(&dir), &options).await, Err(RepositoryError::NoRepository { .. })));
        let created = Repository::create(&url(&dir), &options).await.unwrap();
        assert!(matches!(
            Repository::create(&url(&dir), &options).await,
            Err(RepositoryError::RepositoryExists { .. })
        ));
        let opened = Repository::open(&url(&dir), &options).await.unwrap();
        assert_eq!(created.id(), opened.id());
        let path = dir.path().join("new/repo");
        let by_path = Repository::open(path.to_str().unwrap(), &options).await.unwrap();
        assert_eq!(created.id(), by_path.id());
    }

    #[tokio::test]
    async fn a_newer_format_is_refused_and_a_damaged_marker_too() {
        let dir = tempfile::tempdir().unwrap();
        let options = RepositoryOptions::new();
        Repository::create(&url(&dir), &options).await.unwrap();
        let marker = dir.path().join("new/repo/walkeep.json");
        std::fs::write(&marker, r#"{"format": 2, "shape": "unknown to us"}"#).unwrap();
        let error = Repository::open(&url(&dir), &options).await.unwrap_err();
        assert!(matches!(error, RepositoryError::NewerFormat { found: 2, .. }), "{error}");
        assert!(error.to_string().contains("newer walkeep"), "{error}");
        std::fs::write(&marker, "{").unwrap();
        assert!(matches!(Repository::open(&url(&dir), &options).await, Err(RepositoryError::Corrupt { .. })));
    }

    #[tokio::test]
    async fn a_folder_of_something_else_is_not_made_a_repository() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("PG_VERSION"), "15").unwrap();
        let error = Repository::create(dir.path().to_str().unwrap(), &RepositoryOptions::new()).await.unwrap_err();
        assert!(matches!(error, RepositoryError::BadUrl { .. }), "{error}");
    }

    #[tokio::test]
    async fn urls_that_lead_nowhere_are_named_without_their_secrets() {
        for wrong in ["", "repo", "ftp://host/x", "file://host/x", "file://", "s3://", "s3:bucket", "http://host/x"] {
            let error = Repository::open(wrong, &RepositoryOptions::new()).await.unwrap_err();
            assert!(matches!(error, RepositoryError::BadUrl { .. }), "{wrong}: {error}");
        }
        let error = Repository::open("ftp://user:hunter2@host/x", &RepositoryOptions::new()).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        let mut options = RepositoryOptions::new();
        options.settings.insert("secret_access_key".into(), "hunter2".into());
        assert!(!format!("{options:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_setting_that_no_store_knows_is_refused() {
        let mut options = RepositoryOptions::new();
        options.settings.insert("endpiont".into(), "http://127.0.0.1:1".into());
        let error = Repository::open("s3://bucket/x", &options).await.unwrap_err();
        assert!(error.to_string().contains("endpiont"), "{error}");
    }

    #[tokio::test]
    async fn a_repository_that_cannot_be_written_says_so() {
        let options = RepositoryOptions::new();
        let error = Repository::create("file:///proc/walkeep/repo", &options).await.unwrap_err();
        assert!(!matches!(error, RepositoryError::NotFound { .. }), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::create(&url(&dir), &options).await.unwrap();
        // A file where a folder should be.
        std::fs::write(dir.path().join("new/repo/main"), "").unwrap();
        let key = key::ObjectKey::parse("main/cluster").unwrap();
        let error = repository.put_new(&key, vec![Bytes::from_static(b"x")]).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Unavailable { .. }), "{error}");
        assert_ne!(repository.put_new(&key::marker_key(), vec![]).await.unwrap(), PutOutcome::Created);
    }
}
