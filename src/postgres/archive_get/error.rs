//! Why a file could not be had, nor proved absent.

use crate::base::blocking::WorkerLostError;
use crate::base::durable;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::archive;
use crate::postgres::format::segment::SegmentName;
use crate::vault;

/// Why a file could not be had, nor proved absent.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveGetError {
    /// Not a name PostgreSQL uses.
    #[error("{0:?} is not a name that PostgreSQL gives to a file of pg_wal")]
    Name(String),
    /// The file is missing and what comes after it is not.
    #[error("{name} is missing from the archive, though {later} is there: recovery cannot go past this hole")]
    Hole {
        /// The missing segment.
        name: SegmentName,
        /// A later one that is there.
        later: SegmentName,
    },
    /// The archive could not give it.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// It could not be put into its place.
    #[error(transparent)]
    Write(#[from] durable::DurableError),
    /// A worker thread panicked.
    #[error("a worker thread gave up; this is a bug in walkeep, and its message is in the log above")]
    WorkerLost,
}

impl From<vault::VaultError> for ArchiveGetError {
    fn from(error: vault::VaultError) -> ArchiveGetError {
        ArchiveGetError::Archive(error.into())
    }
}

impl HasKind for ArchiveGetError {
    fn kind(&self) -> ErrorKind {
        match self {
            ArchiveGetError::Name(_) => ErrorKind::Usage,
            ArchiveGetError::Hole { .. } => ErrorKind::Integrity,
            ArchiveGetError::Archive(error) => error.kind(),
            ArchiveGetError::Write(_) | ArchiveGetError::WorkerLost => ErrorKind::Failed,
        }
    }
}

impl From<WorkerLostError> for ArchiveGetError {
    fn from(_lost: WorkerLostError) -> ArchiveGetError {
        ArchiveGetError::WorkerLost
    }
}
