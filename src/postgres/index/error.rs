//! What can go wrong with the index, and what its user should do then.

use std::path::PathBuf;

use super::keys::ClusterKeyError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::postgres::format::segment::SegmentSize;

/// An index that cannot be opened, read or written. Nothing is ever lost with it: it can always be rebuilt from the
/// repository.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// There is no index yet.
    #[error("no index in {}; `walkeep index rebuild` makes one from the repository", .0.display())]
    Absent(PathBuf),
    /// Another process writes it.
    #[error(
        "the index in {} is being written by another walkeep process; let one `walkeep receive` follow all clusters",
        .0.display()
    )]
    Locked(PathBuf),
    /// RocksDB finds it damaged, or a value makes no sense.
    #[error("the index in {} is damaged ({what}); `walkeep index rebuild` makes it anew from the repository", .dir.display())]
    Damaged {
        /// The index's directory.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// It belongs to another repository.
    #[error(
        "the index in {} belongs to repository {found}, not to {expected}; give each repository a state-dir of its own, or run \
         `walkeep index rebuild` to replace it", .dir.display()
    )]
    OtherRepository {
        /// The index's directory.
        dir: PathBuf,
        /// The repository it was made for.
        found: String,
        /// The repository at hand.
        expected: String,
    },
    /// Another version of walkeep wrote it.
    #[error(
        "the index in {} has format {found}, this walkeep reads format {expected}; `walkeep index rebuild` makes it \
            anew", .dir.display()
    )]
    OtherFormat {
        /// The index's directory.
        dir: PathBuf,
        /// The format it says it has.
        found: u32,
        /// The format this program reads.
        expected: u32,
    },
    /// A value read back makes no sense.
    #[error("the index holds a {0} that cannot be read; `walkeep index rebuild` makes it anew from the repository")]
    MalformedValue(&'static str),
    /// A segment of another size than the cluster's.
    #[error("cluster {cluster} has segments of {} bytes, and this one has {}; it belongs to another cluster", .ours.get(), .theirs.get())]
    SegmentSize {
        /// The cluster.
        cluster: String,
        /// The size of those in the index.
        ours: SegmentSize,
        /// The size of the new one.
        theirs: SegmentSize,
    },
    /// The cluster's name does not fit in a key.
    #[error(transparent)]
    Cluster(#[from] ClusterKeyError),
    /// A directory or file beside the database.
    #[error("{what} {}", .path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// RocksDB refuses for another reason: a full disk, a missing permission.
    #[error("RocksDB on the index in {}", .dir.display())]
    Database {
        /// The index's directory.
        dir: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
}

impl HasKind for IndexError {
    fn kind(&self) -> ErrorKind {
        match self {
            IndexError::Absent(_) => ErrorKind::NotFound,
            IndexError::Locked(_) | IndexError::File { .. } | IndexError::Database { .. } => ErrorKind::Unavailable,
            IndexError::Damaged { .. } | IndexError::MalformedValue(_) => ErrorKind::Integrity,
            IndexError::OtherRepository { .. }
            | IndexError::OtherFormat { .. }
            | IndexError::SegmentSize { .. }
            | IndexError::Cluster(_) => ErrorKind::Failed,
        }
    }
}

impl IndexError {
    /// What a caller can do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }

    /// Whether throwing the index away and building it anew is the way out.
    #[must_use]
    pub fn calls_for_rebuild(&self) -> bool {
        matches!(
            self,
            IndexError::Absent(_)
                | IndexError::Damaged { .. }
                | IndexError::OtherFormat { .. }
                | IndexError::MalformedValue(_)
        )
    }
}
