//! What can go wrong with objects in the repositories.

use std::sync::Arc;

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::vault::repository;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::{OpenError, SealError, keys};

/// Why a vault did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VaultError {
    /// A repository said no, or nothing.
    #[error("repository {name}: {source}")]
    Repository {
        /// Its name in the configuration.
        name: String,
        /// What it said.
        source: Arc<repository::RepositoryError>,
    },
    /// An object that does not open: damaged, forged, or of another key.
    #[error("repository {name}: {source}")]
    CannotOpen {
        /// The repository's name in the configuration.
        name: String,
        /// What is wrong with the object.
        source: OpenError,
    },
    /// An object that opens and makes no sense inside.
    #[error("repository {name}: {key} opens, but {why}; was it written by a newer walkeep?")]
    MalformedContent {
        /// The repository's name in the configuration.
        name: String,
        /// The object.
        key: ObjectKey,
        /// What is wrong with it.
        why: String,
    },
    /// Something else stands where an object is to be put.
    #[error("repository {name}: {key} {why}")]
    NameTaken {
        /// The repository's name in the configuration.
        name: String,
        /// The object.
        key: ObjectKey,
        /// What stands there, and what to do.
        why: String,
    },
    /// Something could not be sealed.
    #[error(transparent)]
    Seal(#[from] Arc<SealError>),
    /// A repository's key cannot be used.
    #[error("repository {name}: {key}: {source}")]
    Key {
        /// The repository's name in the configuration.
        name: String,
        /// The key object.
        key: String,
        /// What is wrong.
        source: keys::SealKeyError,
    },
    /// No key is configured, and the repository is encrypted.
    #[error("repository {name} is encrypted and no key is configured; name its key in the section [encryption]")]
    KeyNotConfigured {
        /// The repository's name in the configuration.
        name: String,
    },
    /// A key is configured, and the repository has none of its own.
    #[error(
        "repository {name} has no key objects in keys/, though a key is configured: it was made without encryption, or they were removed; \
         restore them from a copy, and nothing else may be put in their place"
    )]
    KeysMissing {
        /// The repository's name in the configuration.
        name: String,
    },
    /// Something is not in the repositories that answered, and not all did.
    #[error(
        "not every repository answers, so nothing can be said about what is missing: {why}; if the others are to do, take its section out of the \
         configuration"
    )]
    NotAllAnswered {
        /// Who didn't, and why.
        why: String,
    },
    /// It was listed, and no repository has it.
    #[error(
        "{what} is in no repository any more: retention may have taken it meanwhile, and `walkeep verify` tells \
            whether more is missing"
    )]
    Vanished {
        /// What was looked for.
        what: String,
    },
    /// What this machine has received and not archived yet can't be read.
    #[error(transparent)]
    Spool(Arc<crate::vault::spool::error::SpoolError>),
    /// Two sections of the configuration name one repository.
    #[error(
        "[repository.{name}] and [repository.{other}] are one repository, which counts as one copy: \
         they name the same place, or one is a copy that another program made; remove one of the sections"
    )]
    SameRepository {
        /// The later one, which is left out.
        name: String,
        /// The one that is used.
        other: String,
    },
    /// It was unreachable a moment ago, and is not asked again yet.
    #[error("repository {name} has been unreachable since {since} and is not asked again yet: {why}")]
    HeldOff {
        /// Its name in the configuration.
        name: String,
        /// Since when.
        since: jiff::Timestamp,
        /// What was in the way.
        why: String,
    },
    /// A backup could not renew its mark, so a cleanup may have taken it for dead.
    #[error(
        "repository {name}: the backup could not renew its mark in running/ for half an hour, so a cleanup may have \
            removed what it needs; take the backup again"
    )]
    MarkExpired {
        /// The repository's name in the configuration.
        name: String,
    },
    /// Objects that a backup needs are no longer there.
    #[error(
        "repository {name}: {count} objects that the backup has put or used again are no longer there, such as \
            {example}; find out what removes them, and take the backup again"
    )]
    ObjectsGone {
        /// The repository's name in the configuration.
        name: String,
        /// How many.
        count: usize,
        /// The first one.
        example: String,
    },
    /// No repository is configured.
    #[error("no repository is configured; add a section [repository.NAME] with a url")]
    NoRepository,
    /// A worker thread panicked.
    #[error("a worker thread gave up; this is a bug in walkeep, and its message is in the log above")]
    WorkerLost,
}

impl HasKind for VaultError {
    fn kind(&self) -> ErrorKind {
        match self {
            VaultError::Repository { source, .. } => source.kind(),
            VaultError::CannotOpen { .. }
            | VaultError::MalformedContent { .. }
            | VaultError::NameTaken { .. }
            | VaultError::Key { .. }
            | VaultError::KeysMissing { .. } => ErrorKind::Integrity,
            VaultError::KeyNotConfigured { .. } | VaultError::SameRepository { .. } | VaultError::NoRepository => {
                ErrorKind::Usage
            }
            // The next backup puts the objects again.
            VaultError::NotAllAnswered { .. }
            | VaultError::HeldOff { .. }
            | VaultError::MarkExpired { .. }
            | VaultError::ObjectsGone { .. } => ErrorKind::Unavailable,
            VaultError::Spool(error) => error.kind(),
            VaultError::Seal(_) | VaultError::Vanished { .. } | VaultError::WorkerLost => ErrorKind::Failed,
        }
    }
}

impl VaultError {
    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }

    /// Whether it is a repository's, and may pass, or somebody may mend it: a right that was taken away also.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        use repository::RepositoryError as Fault;
        let source = match self {
            VaultError::Repository { source, .. } => source,
            // It is left out like one that is unreachable, until the user removes a section.
            VaultError::SameRepository { .. } | VaultError::HeldOff { .. } => return true,
            _ => return false,
        };
        source.class() == ErrorClass::Transient
            || matches!(**source, Fault::Denied { .. } | Fault::Refused { .. } | Fault::NoRepository { .. })
    }

    /// Whether something stored is damaged, forged or of another key: what a user must look at before anything is tried
    /// again.
    #[must_use]
    pub fn is_integrity(&self) -> bool {
        self.kind() == ErrorKind::Integrity
    }
}

impl From<SealError> for VaultError {
    fn from(error: SealError) -> VaultError {
        VaultError::Seal(Arc::new(error))
    }
}

impl From<WorkerLostError> for VaultError {
    fn from(_lost: WorkerLostError) -> VaultError {
        VaultError::WorkerLost
    }
}
