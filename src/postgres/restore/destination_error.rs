//! Why a place cannot be restored into.

use crate::base::error_kind::{ErrorKind, HasKind};
use std::io;
use std::path::{Path, PathBuf};

use crate::postgres::format::lsn::Lsn;

/// What stands in a data directory while it is being filled. Where it is found, a restore did not get to its end.
pub const RESTORE_MARKER: &str = "walkeep.restoring";

/// A place that cannot be restored into.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// There is something in it.
    #[error(
        "{path} is not empty: it has {found}; give an empty or a new directory, or --delta if it is an old one of this cluster"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// An earlier restore into it did not get to its end.
    #[error(
        "{path} has what an unfinished restore left; if no other restore is running there, go on with --delta, or \
            empty it and try again"
    )]
    UnfinishedRestore {
        /// The directory.
        path: PathBuf,
    },
    /// Not a data directory of the cluster that the backup is of.
    #[error("{path} {found}; --delta wants an old data directory of the same cluster, or an empty one")]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// What it is, or has.
        found: String,
    },
    /// A server runs in it.
    #[error(
        "a server seems to run in {path}: postmaster.pid names process {pid}, which is alive; stop it first, or remove that file if it is no server"
    )]
    Running {
        /// The directory.
        path: PathBuf,
        /// The process.
        pid: i32,
    },
    /// A server may run in it that this process cannot see.
    #[error(
        "a server may run in {path}: {why}. If it certainly does not, give --force, or remove postmaster.pid as \
            PostgreSQL's manual says"
    )]
    MayRun {
        /// The directory.
        path: PathBuf,
        /// Why that is not ruled out.
        why: String,
    },
    /// Something there cannot be replaced by this user.
    #[error(
        "{path} {what}, so --delta cannot replace it, and nothing was touched; run walkeep as root or as the \
            owner of the files, or change their owner"
    )]
    NotOurs {
        /// The file or directory.
        path: PathBuf,
        /// What about it, such as whose it is.
        what: String,
    },
    /// Another restore works there.
    #[error("another restore is running in {path}; wait until it has ended")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A tablespace's files are there already.
    #[error(
        "tablespace {oid} would go to {path}, where {found} is already; map it elsewhere with --tablespace-mapping \
            {location}=NEW"
    )]
    TablespaceOccupied {
        /// The tablespace.
        oid: u32,
        /// The directory.
        path: PathBuf,
        /// What is there.
        found: String,
        /// Where the tablespace was.
        location: String,
    },
    /// A mapping of what is not there.
    #[error("no tablespace of the backup was in {old}; it has {known}")]
    UnknownMapping {
        /// What was to be mapped.
        old: PathBuf,
        /// What could be.
        known: String,
    },
    /// A path that is not absolute, or climbs.
    #[error("{path} is no place for a tablespace: it must be an absolute path without . and ..")]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// Two things in one place.
    #[error("{first} and {second} would lie in one another; map them apart with --tablespace-mapping")]
    Overlap {
        /// One of them.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A place that `pg_wal` cannot be in.
    #[error("--waldir {path}: {why}")]
    BadWaldir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Replay would work in a directory that is in use.
    #[error(
        "tablespace {tablespace} was made after the backup, at {lsn}{when}, and replaying that works in {location} itself, where there is {found}: \
         a running server may own it, and no --tablespace-mapping changes what PostgreSQL replays; restore on another \
         machine, give --backup with a \
         later one, or stop before it with --target-lsn {lsn} --target-exclusive"
    )]
    WouldBeReplayedInto {
        /// The tablespace.
        tablespace: u32,
        /// The record that makes it.
        lsn: Lsn,
        /// When, in words; empty if unknown.
        when: String,
        /// Its directory.
        location: String,
        /// What is there.
        found: String,
    },
    /// Too little room.
    #[error("{path} has room for {free} bytes, and the backup needs {needed} there")]
    NoSpace {
        /// A directory on the file system.
        path: PathBuf,
        /// What it needs.
        needed: u64,
        /// What is free.
        free: u64,
    },
    /// The operating system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl HasKind for DestinationError {
    fn kind(&self) -> ErrorKind {
        match self {
            DestinationError::NotEmpty { .. }
            | DestinationError::UnfinishedRestore { .. }
            | DestinationError::OtherCluster { .. }
            | DestinationError::Running { .. }
            | DestinationError::MayRun { .. }
            | DestinationError::NotOurs { .. }
            | DestinationError::Busy { .. }
            | DestinationError::TablespaceOccupied { .. }
            | DestinationError::UnknownMapping { .. }
            | DestinationError::BadPath { .. }
            | DestinationError::BadWaldir { .. }
            | DestinationError::Overlap { .. } => ErrorKind::Usage,
            DestinationError::WouldBeReplayedInto { .. } => ErrorKind::TargetUnreachable,
            DestinationError::NoSpace { .. } | DestinationError::Io { .. } => ErrorKind::Failed,
        }
    }
}

/// Names the file in an operating system's error.
pub(super) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DestinationError + 'a {
    move |source| DestinationError::Io { what, path: path.to_owned(), source }
}
