//! Why a backup did not come about.

use std::time::Duration;

use super::tar::TarError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::pipeline::StageLostError;
use crate::postgres::archive;
use crate::postgres::archive::chunks::PackError;
use crate::postgres::archive::ingest::IngestError;
use crate::postgres::fork_check::ComparisonError;
use crate::postgres::format::backup_label::BackupLabelError;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::PgControlError;
use crate::postgres::format::segment::{SegmentName, SystemId};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::assemble::AssembleError;
use crate::postgres::wire;
use crate::vault;
use crate::vault::repository::key::ObjectKeyError;
use crate::vault::seal::keys::RandomnessError;

/// Why a backup did not come about. Whatever was stored for it is harmless: without a manifest it is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The server.
    #[error(transparent)]
    Server(#[from] wire::ReplicationError),
    /// The archive.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// A pack could not be made.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// WAL of the backup, fetched by itself, could not be archived.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// WAL of the backup, fetched by itself, does not fit together.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// The stream of the server makes no sense.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// Another cluster than the archive is of.
    #[error(
        "the server is cluster {server}, but this archive is of cluster {archived}; check the connection, or give the \
            new cluster a name of its own"
    )]
    WrongCluster {
        /// The server's.
        server: SystemId,
        /// The archive's.
        archived: SystemId,
    },
    /// A file that every backup has did not come.
    #[error("the server sent no {0}; without it the backup is worth nothing")]
    FileMissing(&'static str),
    /// A file that the backup needs makes no sense.
    #[error("{file} as the server sent it cannot be used: {why}")]
    UnusableFile {
        /// Which.
        file: String,
        /// Why.
        why: String,
    },
    /// The server was promoted meanwhile.
    #[error(
        "the server changed from timeline {from} to {to} during the backup: it was promoted; take the backup again"
    )]
    Promoted {
        /// At the start.
        from: TimelineId,
        /// At the end.
        to: TimelineId,
    },
    /// The WAL that the backup needs did not get into the archive.
    #[error(
        "segment {missing} is not in the archive {waited:?} after the backup ended at {stop}, and without it the \
            backup cannot be used; {advice}"
    )]
    WalMissing {
        /// The first one that is missing.
        missing: SegmentName,
        /// Where the backup ended.
        stop: Lsn,
        /// How long it was waited for.
        waited: Duration,
        /// What to do.
        advice: &'static str,
    },
    /// WAL that the backup needs is damaged.
    #[error("segment {segment}, which the backup needs, is damaged at {at}: {why}; take the backup again")]
    BrokenWal {
        /// Which.
        segment: SegmentName,
        /// Where.
        at: Lsn,
        /// How.
        why: String,
    },
    /// The server's WAL is not the archive's.
    #[error("no backup is taken: {0}")]
    Forked(String),
    /// The server could not be compared with the archive.
    #[error(transparent)]
    Comparison(#[from] ComparisonError),
    /// A name that cannot be.
    #[error(transparent)]
    Name(#[from] ObjectKeyError),
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] RandomnessError),
    /// No thread.
    #[error("the operating system gives no thread: {0}")]
    WorkerStart(#[from] std::io::Error),
    /// A bug.
    #[error(transparent)]
    WorkerLost(#[from] StageLostError),
}

impl HasKind for BackupError {
    fn kind(&self) -> ErrorKind {
        match self {
            BackupError::Server(error) => error.kind(),
            BackupError::Archive(error) => error.kind(),
            BackupError::Ingest(error) => error.kind(),
            BackupError::Comparison(error) => error.kind(),
            BackupError::BrokenWal { .. } | BackupError::Forked(_) => ErrorKind::Integrity,
            // The next backup begins on the new timeline.
            BackupError::Promoted { .. } => ErrorKind::Unavailable,
            BackupError::Pack(_)
            | BackupError::Assemble(_)
            | BackupError::Tar(_)
            | BackupError::WrongCluster { .. }
            | BackupError::FileMissing(_)
            | BackupError::UnusableFile { .. }
            | BackupError::WalMissing { .. }
            | BackupError::Name(_)
            | BackupError::Random(_)
            | BackupError::WorkerStart(_)
            | BackupError::WorkerLost(_) => ErrorKind::Failed,
        }
    }
}

impl From<BackupLabelError> for BackupError {
    fn from(error: BackupLabelError) -> BackupError {
        BackupError::UnusableFile { file: "backup_label".to_owned(), why: error.to_string() }
    }
}

impl From<PgControlError> for BackupError {
    fn from(error: PgControlError) -> BackupError {
        BackupError::UnusableFile { file: "pg_control".to_owned(), why: error.to_string() }
    }
}

impl From<vault::VaultError> for BackupError {
    fn from(error: vault::VaultError) -> BackupError {
        BackupError::Archive(error.into())
    }
}
