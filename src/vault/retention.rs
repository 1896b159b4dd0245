//! What retention of both stores shares: what is wanted, why something stays, and what was removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::vault::repository::key::{ObjectKey, ObjectKeyError};
use crate::vault::repository::{self, ObjectInfo, Repository};
use crate::vault::{self, Vault};

/// By how much clocks of servers and of this machine may differ: a backup ended before the window if it ended this much
/// before it.
const MAX_CLOCK_DIFFERENCE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Why the objects of a repository could not be listed or removed. What was done before does no harm; run again, the
/// cleanup continues.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// A repository refused, or did not answer.
    #[error("repository {name}: {source}")]
    Repository {
        /// Its name in the configuration.
        name: String,
        /// What it said.
        source: Arc<repository::RepositoryError>,
    },
    /// The store's clock and this machine's disagree.
    #[error(
        "repository {name}: its clock shows {store}, this machine's {ours}; nothing is removed, because ages are not \
            known. Set the wrong clock right; if only the store's is wrong, and only now, use --trust-this-clock"
    )]
    ClocksDisagree {
        /// The repository's name in the configuration.
        name: String,
        /// When the store created an object just now, by its clock.
        store: Timestamp,
        /// The time by this machine's clock.
        ours: Timestamp,
    },
    /// The probe of the store's clock cannot be named.
    #[error(transparent)]
    Key(#[from] ObjectKeyError),
    /// Objects could not be read or listed.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
}

impl HasKind for RetentionError {
    fn kind(&self) -> ErrorKind {
        match self {
            RetentionError::Repository { source, .. } => source.kind(),
            RetentionError::ClocksDisagree { .. } | RetentionError::Key(_) => ErrorKind::Failed,
            RetentionError::Vault(error) => error.kind(),
        }
    }
}

impl RetentionError {
    pub(crate) fn in_repository(repository: &str, source: repository::RepositoryError) -> RetentionError {
        RetentionError::Repository { name: repository.to_owned(), source: Arc::new(source) }
    }
}

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetentionOptions {
    /// For how long every moment stays restorable, by repository; one that is not named keeps everything.
    pub retention: BTreeMap<String, SignedDuration>,
    /// How many backups that can be restored stay at least, by repository.
    pub minimum: BTreeMap<String, usize>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// For how long packs outlive the last manifest that names them, and the WAL that the backup made restorable.
    pub grace: SignedDuration,
    /// Whether this machine's clock is right even if the store's shows another time.
    pub trust_clock: bool,
}

/// Why a backup stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepReason {
    /// It was pinned with `walkeep backup keep`.
    Pinned,
    /// Fewer than `minimum-backups` would be left.
    Minimum,
    /// It was made within the window.
    Young,
    /// The window's first moments are restored from it.
    Anchor,
    /// Nothing older and whole could take its place.
    Irreplaceable,
    /// The history of its timeline is not archived, so nothing is known of what follows from it.
    Unknown,
}

/// Where what is certainly older than the window ends.
pub(crate) fn before_window(since: Timestamp) -> Timestamp {
    since.checked_sub(MAX_CLOCK_DIFFERENCE).unwrap_or(Timestamp::MIN)
}

/// How far this machine's clock and the store's may be apart: more than a request takes, and less than anything that
/// retention decides by.
const MAX_STORE_DIFFERENCE: SignedDuration = SignedDuration::from_mins(5);

/// The store's time, as it dates an object that is created for this and removed again. An error if this machine's clock
/// is far from it, unless that is to be trusted.
pub(crate) async fn store_time(
    vault: &Vault,
    (name, repository): (&str, &Repository),
    probe: &ObjectKey,
    wish: &RetentionOptions,
) -> Result<Timestamp, RetentionError> {
    let failed = |source| RetentionError::in_repository(name, source);
    let before = vault.clock().now();
    repository.put_new(probe, vec![Bytes::from_static(b"what time is it\n")]).await.map_err(failed)?;
    let after = vault.clock().now();
    let created = repository.head(probe).await.map_err(failed)?;
    repository.delete(probe).await.map_err(failed)?;
    let Some(store) = created.map(|object| object.modified) else {
        return Err(vault::VaultError::Vanished { what: probe.to_string() }.into());
    };
    let apart = before.duration_since(store).max(store.duration_since(after));
    if apart > MAX_STORE_DIFFERENCE {
        if !wish.trust_clock {
            return Err(RetentionError::ClocksDisagree { name: name.to_owned(), store, ours: after });
        }
        tracing::warn!(repository = name, %store, ours = %after, "the store's clock is far from this machine's");
    }
    Ok(store)
}

/// Objects and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct ObjectTotals {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl ObjectTotals {
    pub(crate) fn add_object(&mut self, object: &ObjectInfo) {
        self.objects = self.objects.saturating_add(1);
        self.bytes = self.bytes.saturating_add(object.len);
    }
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct CleanupReport<C> {
    /// Whether it was only said.
    pub dry_run: bool,
    /// Each repository that has a retention.
    pub repositories: Vec<C>,
    /// Repositories that keep everything.
    pub without_retention: Vec<String>,
    /// Repositories that could not be reached, with what was in the way.
    pub unreachable: Vec<(String, String)>,
}

impl<C> CleanupReport<C> {
    pub(crate) fn new(vault: &Vault, wish: &RetentionOptions) -> CleanupReport<C> {
        CleanupReport {
            dry_run: wish.dry_run,
            repositories: Vec::new(),
            without_retention: Vec::new(),
            unreachable: vault.unreachable().map(|(name, error)| (name.to_owned(), error.to_string())).collect(),
        }
    }

    /// Since when every moment of a repository stays restorable, and since when an object is too young to be taken for
    /// one that nobody needs; `None`, which is noted, if it keeps everything.
    pub(crate) fn repository_window(
        &mut self,
        vault: &Vault,
        wish: &RetentionOptions,
        repository: &str,
    ) -> Option<(Timestamp, Timestamp)> {
        let Some(retention) = wish.retention.get(repository) else {
            self.without_retention.push(repository.to_owned());
            return None;
        };
        let before = |span: SignedDuration| vault.clock().now().checked_sub(span).unwrap_or(Timestamp::MIN);
        Some((before(*retention), before(wish.grace)))
    }
}
