//! Why files are not in their places.

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use std::path::PathBuf;

use crate::base::durable;
use crate::postgres::archive;
use crate::postgres::archive::chunks::{PackError, PackId};
use crate::postgres::format::pg_control::PgControlError;
use crate::postgres::restore::destination_error::DestinationError;
use crate::vault;

/// Why files are not in their places.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// Where they should go.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// A file could not be made durable or renamed.
    #[error(transparent)]
    Durable(#[from] durable::DurableError),
    /// The repository did not give a pack.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// A pack makes no sense.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A pack that the backup needs is in no repository.
    #[error("pack {0} is in no repository, and the backup needs it; walkeep verify shows which backups are whole")]
    PackMissing(PackId),
    /// The manifest contradicts itself.
    #[error("the manifest of {label} names {what} that it does not have; it was written by a faulty program")]
    Manifest {
        /// The backup.
        label: String,
        /// What is missing.
        what: &'static str,
    },
    /// What was written is not what was backed up.
    #[error(
        "{path} was restored, and its content is not what was backed up: the disk or the memory of this machine is at \
            fault"
    )]
    HashDiffers {
        /// The file.
        path: PathBuf,
    },
    /// The backup's `pg_control` is not one, or of another cluster.
    #[error("pg_control of the backup cannot be used: {0}")]
    Control(#[from] PgControlError),
    /// The program is ending.
    #[error("the restore was interrupted; what it left cannot be started")]
    WorkerLost,
}

impl HasKind for PlacementError {
    fn kind(&self) -> ErrorKind {
        match self {
            PlacementError::Destination(error) => error.kind(),
            PlacementError::Archive(error) => error.kind(),
            PlacementError::Pack(_)
            | PlacementError::PackMissing(_)
            | PlacementError::Manifest { .. }
            | PlacementError::HashDiffers { .. }
            | PlacementError::Control(_) => ErrorKind::Integrity,
            PlacementError::Durable(_) | PlacementError::WorkerLost => ErrorKind::Failed,
        }
    }
}

impl From<vault::VaultError> for PlacementError {
    fn from(error: vault::VaultError) -> PlacementError {
        PlacementError::Archive(error.into())
    }
}

impl From<WorkerLostError> for PlacementError {
    fn from(_lost: WorkerLostError) -> PlacementError {
        PlacementError::WorkerLost
    }
}
