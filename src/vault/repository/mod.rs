//! The repository: where everything that must survive is kept, as objects that are created once and never changed. The
//! only user of `object_store`.
//!
//! In go a key and the parts of an object; out comes whether it was created or something stands there already. What an
//! object means, how it is sealed and whether two of them are the same is not known here.
//!
//! [`layout`] says where each object stands. [`Repository`] opens a URL: `file:///path`, `s3://bucket/path`, `gs://…`,
//! `az://…`, or `memory://` for tests. Opening costs one small read and lists nothing, since `archive-push` does it for
//! every segment.

#[cfg(test)]
mod conformance;
pub mod key;
mod listing;
mod local_folder;
mod marker;
mod options;
mod connect;
mod error;
mod retrying_store;
mod store_words;
#[cfg(test)]
pub(crate) mod fault_store;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::key::{KeyPrefix, ObjectKey};
use self::marker::{RepositoryMarker, RepositoryMarkerFormat};
use self::retrying_store::RetryingStore;
use crate::base::clock::SharedClock;

pub use self::error::RepositoryError;
pub use self::listing::{ObjectInfo, PrefixListing, PutOutcome};
pub use self::marker::{REPOSITORY_FORMAT, RepositoryId};
pub use self::options::{RepositoryLimits, RepositoryOptions};

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
    /// [`RepositoryError::NoRepository`] if there is none, [`RepositoryError::NewerFormat`] if this program is too old
    /// for it, and whatever stands in the way of reading.
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
        let id = RepositoryId::random();
        let marker = RepositoryMarker { format: REPOSITORY_FORMAT, repository_id: id, created_at: clock.now() };
        let mut text = serde_json::to_vec_pretty(&marker).map_err(|e| store.corrupt(&key::marker_key(), &e))?;
        text.push(b'\n');
        let put = match store.put_new(&key::marker_key(), vec![Bytes::from(text)]).await {
            // Nothing can be put where there is no bucket.
            Err(RepositoryError::NotFound { url, .. } | RepositoryError::NoRepository { url }) => {
                let why = "there is no such bucket or container; create it first".to_owned();
                return Err(RepositoryError::BadUrl { url, why });
            }
            put => put?,
        };
        match put {
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

    /// Creates an object from its parts, which are not copied. When this returns, the object under `key`, new or old,
    /// is durable.
    ///
    /// An answer that was lost on the way is settled here: if the object turns out to hold exactly these bytes, it was
    /// ours and counts as created. Not cancel safe in the sense that a dropped call may still create the object;
    /// calling again is safe.
    ///
    /// # Errors
    /// Any but [`RepositoryError::NotFound`]. After [`RepositoryError::Unavailable`] the object may exist or not.
    pub async fn put_new(&self, key: &ObjectKey, parts: Vec<Bytes>) -> Result<PutOutcome, RepositoryError> {
        self.store.put_new(key, parts).await
    }

    /// Makes an object that is there durable under its name, whoever put it: a writer of the same moment may not have
    /// got so far.
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

    /// The last `len` bytes of an object, or all if it has fewer; and its whole length. Not for empty objects, which
    /// have no range over the network.
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

    /// What stands right under a prefix, without looking deeper. A local folder in which nothing is left may show as a
    /// prefix.
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

    /// Removes what writers that crashed have left half-written for longer than `age`, and counts it. Only local
    /// folders have such.
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
