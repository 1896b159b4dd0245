//! Why a file cannot be read as a whole.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a file cannot be read as a whole.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalFileError {
    /// Not a name PostgreSQL uses.
    #[error("{0:?} is not a name that PostgreSQL gives to a file of pg_wal")]
    Name(String),
    /// The operating system refused.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: Arc<io::Error>,
    },
    /// A directory, a device.
    #[error("{path} is not a plain file", path = .0.display())]
    NotAFile(PathBuf),
    /// It changed while it was read, or it is longer than any WAL file.
    #[error("{path} is not a finished file: it changed while it was read, or is longer than any segment", path = .0.display())]
    StillWritten(PathBuf),
}
