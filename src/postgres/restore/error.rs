//! Why there is no plan, or no restore.

use super::destination_error::DestinationError;
use super::placement::error::PlacementError;
use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::archive;
use crate::postgres::archive::manifest::ManifestError;
use crate::postgres::archive::reindex::ReindexError;
use crate::postgres::format::backup_label::BackupLabelError;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::index;
use crate::vault;

/// Why there is no plan, or no restore.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup that was named is not in the repository.
    #[error("there is no backup {label:?}; walkeep list shows which there are")]
    UnknownBackup {
        /// What was asked for.
        label: String,
    },
    /// The backup that was named is not whole.
    #[error("backup {label} is not whole: {defects}; to restore from it all the same, add {options}")]
    DefectiveBackup {
        /// The backup.
        label: String,
        /// What is wrong with it.
        defects: String,
        /// The options that accept it.
        options: String,
    },
    /// Several restore points have the name.
    #[error(
        "{} restore points are called {name:?}, at {}; choose one by its position, for example with --target-lsn {}, \
            or name a backup between them with --backup",
        .positions.len(), positions_in_words(.positions), .positions.last().copied().unwrap_or(Lsn::INVALID)
    )]
    AmbiguousName {
        /// Their name.
        name: String,
        /// Where they are.
        positions: Vec<Lsn>,
    },
    /// A timeline that was named, or that a backup is on, has no history in the archive.
    #[error("the history of timeline {timeline} is not archived, so there is no telling what it descends from")]
    UnknownTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// Nothing of the cluster is archived.
    #[error(
        "nothing of {cluster} is archived yet: no WAL and no backup; walkeep check {cluster} tells what is in the way"
    )]
    EmptyArchive {
        /// The cluster.
        cluster: String,
    },
    /// The index.
    #[error(transparent)]
    Index(#[from] index::IndexError),
    /// The repositories.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// A manifest that opens and makes no sense.
    #[error("backup {label}: {source}")]
    Manifest {
        /// The backup.
        label: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A tablespace map that opens and makes no sense.
    #[error("backup {label}: {source}")]
    Label {
        /// The backup.
        label: String,
        /// What is wrong with it.
        source: BackupLabelError,
    },
    /// The files.
    #[error(transparent)]
    Place(#[from] PlacementError),
    /// A worker thread panicked, or the program is ending.
    #[error("the work was interrupted")]
    WorkerLost,
}

fn positions_in_words(positions: &[Lsn]) -> String {
    positions.iter().map(Lsn::to_string).collect::<Vec<_>>().join(", ")
}

impl From<vault::VaultError> for RestoreError {
    fn from(error: vault::VaultError) -> RestoreError {
        RestoreError::Archive(error.into())
    }
}

impl HasKind for RestoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            RestoreError::UnknownBackup { .. }
            | RestoreError::UnknownTimeline { .. }
            | RestoreError::EmptyArchive { .. } => ErrorKind::NotFound,
            RestoreError::AmbiguousName { .. } => ErrorKind::Usage,
            RestoreError::Index(error) => error.kind(),
            RestoreError::Archive(error) => error.kind(),
            RestoreError::DefectiveBackup { .. } | RestoreError::Manifest { .. } | RestoreError::Label { .. } => {
                ErrorKind::Integrity
            }
            RestoreError::Place(error) => error.kind(),
            RestoreError::WorkerLost => ErrorKind::Failed,
        }
    }
}

impl From<ReindexError> for RestoreError {
    fn from(error: ReindexError) -> RestoreError {
        match error {
            ReindexError::Index(error) => RestoreError::Index(error),
            ReindexError::Archive(error) => RestoreError::Archive(error),
        }
    }
}

impl From<DestinationError> for RestoreError {
    fn from(error: DestinationError) -> RestoreError {
        RestoreError::Place(PlacementError::Destination(error))
    }
}

impl From<WorkerLostError> for RestoreError {
    fn from(_lost: WorkerLostError) -> RestoreError {
        RestoreError::WorkerLost
    }
}
