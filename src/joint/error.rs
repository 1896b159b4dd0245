//! Why there is no joint plan, or no joint restore.

use std::path::PathBuf;

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::restore::destination::DestinationError;
use crate::redis::archive::history::last_command::LastCommandError;
use crate::vault::VaultError;
use crate::{postgres, redis};

/// Why a cluster and an instance are not planned or restored together. A moment that cannot be reached is no error.
#[derive(Debug, thiserror::Error)]
pub enum JointError {
    /// The cluster cannot be planned.
    #[error("cannot plan a restore of {cluster}")]
    PlanPostgres {
        /// The cluster.
        cluster: String,
        /// The reason.
        source: Box<postgres::restore::RestoreError>,
    },
    /// The instance cannot be planned.
    #[error("cannot plan a restore of {instance}")]
    PlanRedis {
        /// The instance.
        instance: String,
        /// The reason.
        source: VaultError,
    },
    /// The free space for the data directory is not known.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The commands up to the moment cannot be read.
    #[error(transparent)]
    LastCommand(#[from] LastCommandError),
    /// One folder is within the other.
    #[error("{} and {} lie within each other; name two folders apart", pgdata.display(), redis_dir.display())]
    NestedFolders {
        /// The folder for PostgreSQL.
        pgdata: PathBuf,
        /// The folder for Redis.
        redis_dir: PathBuf,
    },
    /// A folder has something in it.
    #[error(
        "{option} {} is not empty, it has {found}; nothing was touched, name another folder",
        dir.display()
    )]
    FolderNotEmpty {
        /// The option that names the folder.
        option: &'static str,
        /// The folder.
        dir: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// A folder cannot be read.
    #[error("cannot read {}", path.display())]
    ReadFolder {
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Each of the two fits on the file system, and both do not.
    #[error("{cluster} and {instance} go to one file system")]
    SharedFileSystem {
        /// The cluster.
        cluster: String,
        /// The instance.
        instance: String,
        /// How much is missing.
        source: Box<redis::restore::RestoreError>,
    },
}

impl HasKind for JointError {
    fn kind(&self) -> ErrorKind {
        match self {
            JointError::PlanPostgres { source, .. } => source.kind(),
            JointError::PlanRedis { source, .. } => source.kind(),
            JointError::Destination(error) => error.kind(),
            JointError::LastCommand(error) => error.kind(),
            JointError::NestedFolders { .. } | JointError::FolderNotEmpty { .. } => ErrorKind::Usage,
            JointError::ReadFolder { .. } => ErrorKind::Failed,
            JointError::SharedFileSystem { source, .. } => source.kind(),
        }
    }
}
