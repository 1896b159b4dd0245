//! What can go wrong with a repository, by what the caller can do about it.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use super::key::ObjectKey;
use super::marker::REPOSITORY_FORMAT;
use super::store_words::{StoreWords, is_refusal};
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;

/// Why a call to a repository did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// There is no such object.
    #[error("{key} is not in the repository {url}")]
    NotFound {
        /// The object asked for.
        key: ObjectKey,
        /// The repository.
        url: Arc<str>,
    },
    /// The network, the server or the disk did not do it now. After a write: it may have been done or not.
    #[error("cannot {action} {key} in the repository {url}: {why}; this may pass")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// The object it was about.
        key: String,
        /// The repository.
        url: Arc<str>,
        /// What was said.
        why: StoreFailure,
    },
    /// Missing rights or wrong credentials.
    #[error(
        "no permission to {action} {key} in the repository {url}: {why}; check the credentials or the owner of the folder"
    )]
    Denied {
        /// What was tried.
        action: &'static str,
        /// The object it was about.
        key: String,
        /// The repository.
        url: Arc<str>,
        /// What was said.
        why: StoreFailure,
    },
    /// The store refuses the request itself, so that it would refuse it again.
    #[error(
        "the store refuses to {action} {key} in the repository {url}: {why}; correct the repository's settings, or the \
            store's"
    )]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The object it was about.
        key: String,
        /// The repository.
        url: Arc<str>,
        /// The reason.
        why: StoreFailure,
    },
    /// No room.
    #[error("the repository {url} is full: cannot {action} {key}; free some space or remove old backups")]
    Full {
        /// What was tried.
        action: &'static str,
        /// The object it was about.
        key: String,
        /// The repository.
        url: Arc<str>,
    },
    /// An object that cannot be what its name says.
    #[error("{key} in the repository {url} is damaged: {why}")]
    Corrupt {
        /// The object.
        key: ObjectKey,
        /// The repository.
        url: Arc<str>,
        /// What is wrong with it.
        why: String,
    },
    /// There is no repository there.
    #[error(
        "there is no repository at {url}: is its disk mounted, or its bucket there? If it is lost and you have another \
         one, run `walkeep repository remove NAME --force`, then `walkeep repository add`"
    )]
    NoRepository {
        /// Where it was looked for.
        url: Arc<str>,
    },
    /// There is a repository already.
    #[error("there is a repository at {url} already")]
    RepositoryExists {
        /// Where it is.
        url: Arc<str>,
    },
    /// The repository was made by a newer program.
    #[error(
        "the repository {url} has format {found} and this program knows formats up to {REPOSITORY_FORMAT}; use a \
            newer walkeep"
    )]
    NewerFormat {
        /// Where it is.
        url: Arc<str>,
        /// Its format.
        found: u32,
    },
    /// Not a URL of a repository, or settings that don't fit it.
    #[error("{url} cannot be used as a repository: {why}")]
    BadUrl {
        /// What was given, without credentials.
        url: Arc<str>,
        /// What is wrong with it.
        why: String,
    },
}

impl HasKind for RepositoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            RepositoryError::NotFound { .. } | RepositoryError::NoRepository { .. } => ErrorKind::NotFound,
            // A user empties a full store while the receiver waits. Nothing else can be done about it.
            RepositoryError::Unavailable { .. } | RepositoryError::Full { .. } => ErrorKind::Unavailable,
            RepositoryError::Corrupt { .. } => ErrorKind::Integrity,
            RepositoryError::RepositoryExists { .. } => ErrorKind::AlreadyExists,
            RepositoryError::BadUrl { .. } => ErrorKind::Usage,
            RepositoryError::Denied { .. } | RepositoryError::Refused { .. } | RepositoryError::NewerFormat { .. } => {
                ErrorKind::Failed
            }
        }
    }
}

/// What a store said, when that is all there is to know.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// The store's client said it.
    #[error("{}", StoreWords(.0))]
    Store(#[source] Box<object_store::Error>),
    /// The file system said it.
    #[error(transparent)]
    File(#[from] crate::base::durable::DurableError),
    /// It took too long.
    #[error("no answer within {0} seconds")]
    TimedOut(u64),
    /// The store refused a create because of another request, and there is no object.
    #[error("another request for the same object was under way, and there is no object now")]
    ConflictPassed,
    /// The program is ending, or a worker died.
    #[error("the call was given up")]
    GivenUp,
}

impl RepositoryError {
    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }
}

/// What a call was about, to be said if it fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreCall<'a> {
    pub(super) action: &'static str,
    pub(super) key: &'a str,
    pub(super) url: &'a Arc<str>,
}

impl StoreCall<'_> {
    /// The error of a call about which nothing but `why` is known.
    pub(super) fn unavailable_error(&self, why: StoreFailure) -> RepositoryError {
        RepositoryError::Unavailable { action: self.action, key: self.key.to_owned(), url: Arc::clone(self.url), why }
    }

    /// Sorts a store's error. [`object_store::Error::AlreadyExists`] is not expected here.
    pub(super) fn store_error(&self, error: object_store::Error) -> RepositoryError {
        use object_store::Error as Store;
        let kind = io_kind(&error);
        let why = StoreFailure::Store(Box::new(error));
        match (&why, kind) {
            (StoreFailure::Store(error), _) if matches!(**error, Store::NotFound { .. }) => self.not_found_error(),
            (_, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => self.full_error(),
            (_, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)) => self.denied_error(why),
            (StoreFailure::Store(error), _)
                if matches!(**error, Store::PermissionDenied { .. } | Store::Unauthenticated { .. }) =>
            {
                self.denied_error(why)
            }
            (StoreFailure::Store(error), _) if is_refusal(error) => RepositoryError::Refused {
                action: self.action,
                key: self.key.to_owned(),
                url: Arc::clone(self.url),
                why,
            },
            _ => self.unavailable_error(why),
        }
    }

    /// Sorts a file system's error.
    pub(super) fn file_error(&self, error: crate::base::durable::DurableError) -> RepositoryError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full_error(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => self.denied_error(error.into()),
            _ => self.unavailable_error(error.into()),
        }
    }

    fn full_error(&self) -> RepositoryError {
        RepositoryError::Full { action: self.action, key: self.key.to_owned(), url: Arc::clone(self.url) }
    }

    fn denied_error(&self, why: StoreFailure) -> RepositoryError {
        RepositoryError::Denied { action: self.action, key: self.key.to_owned(), url: Arc::clone(self.url), why }
    }

    fn not_found_error(&self) -> RepositoryError {
        match ObjectKey::parse(self.key) {
            Ok(key) => RepositoryError::NotFound { key, url: Arc::clone(self.url) },
            Err(_prefix) => RepositoryError::NoRepository { url: Arc::clone(self.url) },
        }
    }
}

/// The operating system's word, if one is at the bottom of it: the local store wraps it in a private type.
fn io_kind(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        source = error.source();
    }
    None
}
