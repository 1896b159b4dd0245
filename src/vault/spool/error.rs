//! What can go wrong with the spool.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::durable;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::vault::seal::SealError;
use crate::vault::seal::keys::{RandomnessError, SealKeyError};

/// Why WAL, or the commands of an instance, could not be spooled or read back.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The operating system refused it.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another receiver is at work.
    #[error(
        "another `walkeep receive`{} uses {}; {instead}",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), dir.display()
    )]
    InUse {
        /// The spool.
        dir: PathBuf,
        /// The other receiver's process, if the kernel reports it.
        pid: Option<u32>,
        /// What to do.
        instead: &'static str,
    },
    /// The spool's own key cannot be used.
    #[error(transparent)]
    Key(Arc<SpoolKeyError>),
    /// A directory could not be made or synced.
    #[error(transparent)]
    Durable(#[from] durable::DurableError),
    /// A frame could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Bytes that do not continue the file: a bug.
    #[error("the spool of {name} holds {held} bytes, and bytes from {offset} on were to be appended")]
    NotContiguous {
        /// The name of the file's content.
        name: String,
        /// How many bytes the file holds.
        held: u64,
        /// The position of the bytes that were given.
        offset: u64,
    },
}

impl SpoolError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
        move |source| SpoolError::Io { action, path: path.to_owned(), source }
    }
}

impl From<SpoolKeyError> for SpoolError {
    fn from(error: SpoolKeyError) -> SpoolError {
        SpoolError::Key(Arc::new(error))
    }
}

impl HasKind for SpoolError {
    fn kind(&self) -> ErrorKind {
        match self {
            SpoolError::Key(error) => error.kind(),
            SpoolError::Io { .. }
            | SpoolError::InUse { .. }
            | SpoolError::Durable(_)
            | SpoolError::Seal(_)
            | SpoolError::NotContiguous { .. } => ErrorKind::Failed,
        }
    }
}

/// Why the spool's own key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolKeyError {
    /// The key object does not unwrap.
    #[error(
        "cannot unwrap the key of the spool, {}: {source}; the spool is unchanged: configure the key-encryption key \
         that this state-dir was used with, or another state-dir",
        path.display()
    )]
    Unusable {
        /// The key object.
        path: PathBuf,
        /// What is wrong with it.
        source: SealKeyError,
    },
    /// The spool is encrypted, and no key-encryption key is configured.
    #[error(
        "the spool is encrypted with the keys in {}, and no key is configured; the spool is unchanged: name its key in \
         the section [encryption], or configure another state-dir",
        dir.display()
    )]
    NotConfigured {
        /// The folder of the spool's keys.
        dir: PathBuf,
    },
    /// The key objects cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The key object, or their folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A key object could not be written.
    #[error("cannot store a key for the spool: {0}")]
    Write(#[from] durable::DurableError),
    /// No key could be made.
    #[error(transparent)]
    Random(#[from] RandomnessError),
}

impl HasKind for SpoolKeyError {
    fn kind(&self) -> ErrorKind {
        match self {
            SpoolKeyError::Unusable { .. } => ErrorKind::Integrity,
            SpoolKeyError::NotConfigured { .. } => ErrorKind::Usage,
            SpoolKeyError::Read { .. } | SpoolKeyError::Write(_) | SpoolKeyError::Random(_) => ErrorKind::Failed,
        }
    }
}
