//! Why no server can be started from what was to be written.

use std::path::PathBuf;

use crate::base::blocking::WorkerLostError;
use crate::base::durable;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::redis::format::{rdb, resp};
use crate::redis::wire;
use crate::vault;

/// Why no server can be started from what was to be written.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something where the files are to be.
    #[error(
        "{} is not empty ({found} is there), and a server may load that instead: empty it, or name another folder",
        dir.display()
    )]
    FolderNotEmpty {
        /// The folder.
        dir: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// The files don't fit.
    #[error(
        "{} has {free} bytes free, and the files take {needed} bytes: make room, or name another folder; nothing was \
         touched",
        dir.display()
    )]
    NotEnoughSpace {
        /// The folder, or the one above it that exists.
        dir: PathBuf,
        /// What the files take.
        needed: u64,
        /// What is free.
        free: u64,
    },
    /// A folder can't be made or looked at.
    #[error("cannot use the folder {}: {source}", path.display())]
    OpenFolder {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] durable::DurableError),
    /// The snapshot is no RDB, or a damaged one.
    #[error("the snapshot cannot be restored: {0}")]
    Rdb(#[from] rdb::RdbError),
    /// The commands are none.
    #[error("the commands behind the snapshot cannot be restored: {0}")]
    Stream(#[from] resp::RespError),
    /// There are commands, and the form chosen has no place for them.
    #[error("a plain dump holds no commands; this is a bug in walkeep")]
    NoCutInStream,
    /// A server can't be started.
    #[error("cannot start {}: {source}; name another with --redis-server", program.display())]
    StartServer {
        /// The program.
        program: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It does not say what it is.
    #[error("{} does not say that it is a redis-server: {output:?}", program.display())]
    NotAServerProgram {
        /// The program.
        program: PathBuf,
        /// What it printed instead of its version.
        output: String,
    },
    /// It ended instead of loading.
    #[error("{program} does not start on the restored files: {}", last_log_lines(log), program = program.display())]
    ServerExited {
        /// The program.
        program: PathBuf,
        /// The last of what it said.
        log: String,
    },
    /// It doesn't answer.
    #[error(transparent)]
    Server(#[from] wire::RedisError),
    /// The archive does not give what is needed.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    /// The commands end elsewhere than at the target.
    #[error("the commands end at offset {end} instead of {target}: the archive has changed meanwhile; plan again")]
    StreamTooShort {
        /// Where they end.
        end: u64,
        /// Where they should.
        target: u64,
    },
    /// A worker thread panicked.
    #[error("a worker thread gave up; this is a bug in walkeep, and its message is in the log above")]
    WorkerPanicked,
    /// It has other keys.
    #[error("the server that was started has not the keys of the snapshot: {0}")]
    ContentDiffers(String),
}

/// The reason stands right before the end; what is above it is the server's banner.
fn last_log_lines(log: &str) -> String {
    let mut lines: Vec<&str> = log.lines().rev().take(3).collect();
    lines.reverse();
    lines.join("; ")
}

impl HasKind for RestoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            RestoreError::Server(error) => error.kind(),
            RestoreError::Vault(error) => error.kind(),
            RestoreError::Rdb(_) | RestoreError::Stream(_) | RestoreError::ContentDiffers(_) => ErrorKind::Integrity,
            RestoreError::FolderNotEmpty { .. } | RestoreError::NotAServerProgram { .. } => ErrorKind::Usage,
            RestoreError::NotEnoughSpace { .. }
            | RestoreError::OpenFolder { .. }
            | RestoreError::Write(_)
            | RestoreError::NoCutInStream
            | RestoreError::StartServer { .. }
            | RestoreError::ServerExited { .. }
            | RestoreError::StreamTooShort { .. }
            | RestoreError::WorkerPanicked => ErrorKind::Failed,
        }
    }
}

impl From<WorkerLostError> for RestoreError {
    fn from(_lost: WorkerLostError) -> RestoreError {
        RestoreError::WorkerPanicked
    }
}
