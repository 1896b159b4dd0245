//! Why a snapshot or a stream did not come about.

use std::path::PathBuf;

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::format::{rdb, resp};
use crate::redis::wire;
use crate::vault;
use crate::vault::seal::SealError;
use crate::vault::spool::SpoolError;

/// Why a snapshot or a stream did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The server.
    #[error(transparent)]
    Server(#[from] wire::RedisError),
    /// The repositories.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    /// A part could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// What came is no RDB, or a damaged one.
    #[error("what {origin} sent is not stored: {source}")]
    Rdb {
        /// Who.
        origin: String,
        /// What is wrong with it.
        source: rdb::RdbError,
    },
    /// What came as the stream of commands is none.
    #[error("the stream of commands cannot be followed: {0}")]
    Stream(#[from] resp::RespError),
    /// A file to import can't be read.
    #[error("cannot read {}: {source}", path.display())]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The server does not do what a replica needs.
    #[error("Redis at {server} {why}")]
    UnsuitableServer {
        /// Which server.
        server: String,
        /// What is in the way, and what to do.
        why: String,
    },
    /// A stretch cannot be received: one of its name is on its way from the spool to the repositories.
    #[error(
        "the stream from offset {first} of history {replid} on is still in the spool, on its way to the repositories; \
            it is gone on with after that"
    )]
    StillUploading {
        /// The history.
        replid: ReplicationId,
        /// Where it begins.
        first: u64,
    },
    /// A file of the spool is not what it was.
    #[error(
        "the spool file of the stream from offset {first} of history {replid} on was changed or removed by another process before all repositories had it; \
         let nothing else work in the state-dir"
    )]
    SpoolFileChanged {
        /// The history.
        replid: ReplicationId,
        /// Where it begins.
        first: u64,
    },
    /// A worker thread panicked.
    #[error("a worker thread gave up; this is a bug in walkeep, and its message is in the log above")]
    WorkerPanicked,
}

impl HasKind for SnapshotError {
    fn kind(&self) -> ErrorKind {
        match self {
            SnapshotError::Server(error) => error.kind(),
            SnapshotError::Vault(error) => error.kind(),
            SnapshotError::Spool(error @ (SpoolError::InUse { .. } | SpoolError::Key(_))) => error.kind(),
            // A full disk may be cleared, and an unsuitable server may be reconfigured. Asking again loses nothing.
            SnapshotError::Spool(
                SpoolError::Io { .. } | SpoolError::Durable(_) | SpoolError::Seal(_) | SpoolError::NotContiguous { .. },
            )
            | SnapshotError::UnsuitableServer { .. }
            | SnapshotError::StillUploading { .. } => ErrorKind::Unavailable,
            // The next transfer may arrive undamaged, but a user must see this one.
            SnapshotError::Rdb { .. } | SnapshotError::Stream(_) => ErrorKind::Integrity,
            SnapshotError::ReadFile { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            SnapshotError::ReadFile { .. }
            | SnapshotError::Seal(_)
            | SnapshotError::SpoolFileChanged { .. }
            | SnapshotError::WorkerPanicked => ErrorKind::Failed,
        }
    }
}

impl SnapshotError {
    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }

    /// Whether bytes are damaged: somebody must look at where they come from.
    #[must_use]
    pub fn is_integrity(&self) -> bool {
        self.kind() == ErrorKind::Integrity
    }
}

impl From<WorkerLostError> for SnapshotError {
    fn from(_lost: WorkerLostError) -> SnapshotError {
        SnapshotError::WorkerPanicked
    }
}
