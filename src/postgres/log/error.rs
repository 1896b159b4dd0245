//! Why there is no answer.

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::archive;
use crate::postgres::archive::lookup::LookupError;
use crate::postgres::archive::reindex::ReindexError;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::index;
use crate::vault;

/// Why there is nothing to tell.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Nothing of the cluster is archived.
    #[error("nothing of {cluster} is archived yet; walkeep check {cluster} tells what is in the way")]
    EmptyArchive {
        /// The cluster.
        cluster: String,
    },
    /// A timeline that was named has no history in the archive.
    #[error("the history of timeline {timeline} is not archived; walkeep list shows which timelines there are")]
    UnknownTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// The index.
    #[error(transparent)]
    Index(#[from] index::IndexError),
    /// The repositories.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// A worker thread panicked, or the program is ending.
    #[error("the work was interrupted")]
    WorkerLost,
}

impl From<vault::VaultError> for LogError {
    fn from(error: vault::VaultError) -> LogError {
        LogError::Archive(error.into())
    }
}

impl From<ReindexError> for LogError {
    fn from(error: ReindexError) -> LogError {
        match error {
            ReindexError::Index(error) => LogError::Index(error),
            ReindexError::Archive(error) => LogError::Archive(error),
        }
    }
}

impl HasKind for LogError {
    fn kind(&self) -> ErrorKind {
        match self {
            LogError::EmptyArchive { .. } | LogError::UnknownTimeline { .. } => ErrorKind::NotFound,
            LogError::Index(error) => error.kind(),
            LogError::Archive(error) => error.kind(),
            LogError::WorkerLost => ErrorKind::Failed,
        }
    }
}

impl From<LookupError<archive::ArchiveError>> for LogError {
    fn from(error: LookupError<archive::ArchiveError>) -> LogError {
        match error {
            LookupError::Index(error) => LogError::Index(error),
            LookupError::Segments(error) => LogError::Archive(error),
        }
    }
}

impl From<WorkerLostError> for LogError {
    fn from(_lost: WorkerLostError) -> LogError {
        LogError::WorkerLost
    }
}
