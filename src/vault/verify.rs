//! What verification of both stores shares: what is asked for, how far it is, and what it finds of single objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::vault::repository;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::{self, ObjectBinding, ObjectEncryption, OpenedObject, SealedKind};
use crate::vault::{self, UnreachableRepositories, Vault, VaultError};

/// What to verify.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// This backup alone, and what it needs to be restored; everything, if none is named.
    pub backup: Option<String>,
}

/// What was read and is right.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl VerifyProgress {
    /// Objects read so far.
    pub fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    /// Bytes read from repositories so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn add_object(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// An object that is not what was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct DamagedObject {
    /// The repository's name in the configuration.
    pub repository: String,
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// Why a verification could not be made; damage is no such reason.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A repository did not answer, so that nothing can be said about what is in it.
    #[error("repository {name}: {source}")]
    Repository {
        /// Its name in the configuration.
        name: String,
        /// What was in the way.
        source: Arc<repository::RepositoryError>,
    },
    /// Objects could not be read or listed.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    /// No repository has this backup.
    #[error("there is no backup {label}; `walkeep list` shows those that there are")]
    UnknownBackup {
        /// What was asked for.
        label: String,
    },
}

impl VerifyError {
    /// Whether a repository does not answer, so that only the others can be verified.
    pub(crate) fn is_unreachable(&self) -> bool {
        match self {
            VerifyError::Repository { name, source } => {
                VaultError::Repository { name: name.clone(), source: Arc::clone(source) }.may_pass()
            }
            VerifyError::Vault(error) => error.may_pass(),
            VerifyError::UnknownBackup { .. } => false,
        }
    }
}

/// The repositories that are not open. One whose keys are damaged was reached, so it is damage.
pub(crate) fn sort_unopened(vault: &Vault) -> (UnreachableRepositories, Vec<DamagedObject>) {
    let (mut unreachable, mut damage) = (UnreachableRepositories::default(), Vec::new());
    for (name, error) in vault.unreachable() {
        if error.is_integrity() {
            let (repository, object) = (name.to_owned(), "keys".to_owned());
            damage.push(DamagedObject { repository, object, what: error.to_string() });
        } else {
            unreachable.insert_error(name, &error);
        }
    }
    (unreachable, damage)
}

impl HasKind for VerifyError {
    fn kind(&self) -> ErrorKind {
        match self {
            VerifyError::Repository { source, .. } => source.kind(),
            VerifyError::Vault(error) => error.kind(),
            VerifyError::UnknownBackup { .. } => ErrorKind::NotFound,
        }
    }
}

/// Opens an object's bytes.
///
/// # Errors
/// What is wrong with them, in words.
pub fn open_checked(
    kind: SealedKind,
    key: &ObjectKey,
    bytes: &[u8],
    protection: &ObjectEncryption,
) -> Result<OpenedObject, String> {
    seal::open_object(bytes, &ObjectBinding::new(kind, key.as_str()), protection, 1)
        .map_err(|error| error.fault.to_string())
}
