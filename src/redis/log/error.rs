//! Why there is nothing to show of a Redis instance.

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::vault;

/// Why the log of an instance could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Nothing of the instance is archived.
    #[error("nothing of {instance} is archived yet; walkeep check {instance} tells what is in the way")]
    Nothing {
        /// The instance.
        instance: String,
    },
    /// Objects could not be read or listed.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    /// A worker thread panicked, or the program is ending.
    #[error("the work was interrupted")]
    Stopped,
}

impl HasKind for LogError {
    fn kind(&self) -> ErrorKind {
        match self {
            LogError::Vault(error) => error.kind(),
            LogError::Nothing { .. } => ErrorKind::NotFound,
            LogError::Stopped => ErrorKind::Failed,
        }
    }
}

impl From<WorkerLostError> for LogError {
    fn from(_lost: WorkerLostError) -> LogError {
        LogError::Stopped
    }
}
