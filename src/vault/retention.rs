//! What retention of both stores shares: what is wanted, why something stays, and what was removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::vault::repository::{self, ObjectInfo};
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
    /// Objects could not be read or listed.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
}

impl HasKind for RetentionError {
    fn kind(&self) -> ErrorKind {
        match self {
            RetentionError::Repository { source, .. } => source.kind(),
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
    /// Only say what would be done.
    pub dry_run: bool,
    /// For how long packs outlive the last manifest that names them. It must be longer than any backup takes.
    pub grace: SignedDuration,
}

/// Why a backup stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepReason {
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
