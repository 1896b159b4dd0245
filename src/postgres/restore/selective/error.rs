//! Why a part did not come back, in words that say what to do next.

use std::path::{Path, PathBuf};

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::units::format_megabytes_needed;
use crate::postgres::archive::chunks::PackError;
use crate::postgres::sql::{self, quote_identifier};
use crate::vault;

use super::super::server_start::ServerStartError;
use super::table_name::TableName;

/// Why a part did not come back.
#[derive(Debug, thiserror::Error)]
pub enum SelectiveRestoreError {
    /// The name is in use.
    #[error("{what} {name} exists already on {server}; give another name with --as")]
    Exists {
        /// A database or a relation.
        what: &'static str,
        /// Its name.
        name: String,
        /// The running server.
        server: String,
    },
    /// There is no such database at the target.
    #[error("there was no database {name:?} at that moment; {hint}")]
    AbsentDatabase {
        /// Its name.
        name: String,
        /// What there was instead.
        hint: String,
    },
    /// There is no such table at the target.
    #[error("there was no table {name} in database {database} at that moment; {hint}")]
    AbsentTable {
        /// Its name.
        name: TableName,
        /// The database looked in.
        database: String,
        /// What there was instead.
        hint: String,
    },
    /// The name is something else's.
    #[error("{name} was {what} at that moment; only tables can be brought back alone")]
    NotATable {
        /// Its name.
        name: TableName,
        /// What it is.
        what: &'static str,
    },
    /// The running server has no place for it.
    #[error("{server} has no {what} {name}; {advice}")]
    MissingInServer {
        /// The running server.
        server: String,
        /// A database or a schema.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do.
        advice: &'static str,
    },
    /// The running server cannot take it.
    #[error("{server} {why}")]
    UnusableServer {
        /// The running server.
        server: String,
        /// Why.
        why: String,
    },
    /// Replay would write outside the scratch directory.
    #[error(
        "tablespace {path} was made at {at}, after backup {backup}: replaying that would write to {path} itself, which may be in use; \
         give --backup with a later one, or restore the whole cluster on another machine"
    )]
    Tablespace {
        /// Where it is.
        path: String,
        /// The record.
        at: crate::postgres::format::lsn::Lsn,
        /// The backup.
        backup: String,
    },
    /// Too little room.
    #[error(
        "{dir} has room for {}, and this takes up to {}: {} of files and as much for the copy on its way; name another place with --scratch-dir",
        format_megabytes_needed(*free), format_megabytes_needed(*needed), format_megabytes_needed(*files)
    )]
    NoSpace {
        /// The scratch directory's parent.
        dir: PathBuf,
        /// What is free.
        free: u64,
        /// What is needed.
        needed: u64,
        /// Of that, files.
        files: u64,
    },
    /// Nobody to run the scratch server as.
    #[error(
        "PostgreSQL refuses to run as root, and {parent} belongs to root; run this as the server's user, or name a \
            --scratch-dir that belongs to it"
    )]
    Root {
        /// Where the scratch directory would be.
        parent: PathBuf,
    },
    /// The tools are not there.
    #[error(
        "no pg_dump and pg_restore of PostgreSQL {major} or later were found; name their directory with --pg-bindir"
    )]
    NoTools {
        /// The least version.
        major: u32,
    },
    /// Sessions that could not be ended.
    #[error(
        "database {name} is complete, but is still called {staged}, because sessions are connected to it: {sessions}; \
         end them, then run: ALTER DATABASE {staged} RENAME TO {}",
        quote_identifier(name)
    )]
    Held {
        /// What it is called.
        staged: String,
        /// What it was to be called.
        name: String,
        /// Who they are.
        sessions: String,
    },
    /// A tool ended with an error.
    #[error("{name} failed: {said}")]
    Tool {
        /// The tool.
        name: String,
        /// What it said.
        said: String,
    },
    /// The log contradicts itself.
    #[error("the log cannot be read: {0}; walkeep verify shows where")]
    WalUnusable(String),
    /// What the scratch server said of pages that must be there.
    #[error(
        "the scratch server complains of its own pages: {0}; don't trust this backup before walkeep verify has read it"
    )]
    Pages(String),
    /// A way to connect that makes no sense.
    #[error("{0}")]
    Conninfo(String),
    /// No role could connect to the scratch server.
    #[error("no superuser of the scratch server is known; tried {0}")]
    NoSuperuser(String),
    /// The system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
    /// The operating system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The running server, or the scratch server.
    #[error(transparent)]
    Sql(#[from] sql::SqlError),
    /// The scratch server did not get to its target.
    #[error("the scratch server did not get to its target: {0}")]
    Start(#[from] ServerStartError),
    /// A pack of the backup.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Everything that a whole restore may meet.
    #[error(transparent)]
    Restore(#[from] super::super::RestoreError),
}

impl HasKind for SelectiveRestoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            SelectiveRestoreError::Exists { .. }
            | SelectiveRestoreError::NotATable { .. }
            | SelectiveRestoreError::Conninfo(_) => ErrorKind::Usage,
            SelectiveRestoreError::AbsentDatabase { .. }
            | SelectiveRestoreError::AbsentTable { .. }
            | SelectiveRestoreError::MissingInServer { .. } => ErrorKind::NotFound,
            SelectiveRestoreError::Tablespace { .. } => ErrorKind::TargetUnreachable,
            SelectiveRestoreError::WalUnusable(_)
            | SelectiveRestoreError::Pages(_)
            | SelectiveRestoreError::Pack(_) => ErrorKind::Integrity,
            SelectiveRestoreError::Restore(error) => error.kind(),
            SelectiveRestoreError::Sql(error) => error.kind(),
            SelectiveRestoreError::UnusableServer { .. }
            | SelectiveRestoreError::NoSpace { .. }
            | SelectiveRestoreError::Root { .. }
            | SelectiveRestoreError::NoTools { .. }
            | SelectiveRestoreError::Tool { .. }
            | SelectiveRestoreError::Held { .. }
            | SelectiveRestoreError::NoSuperuser(_)
            | SelectiveRestoreError::NoRandomness
            | SelectiveRestoreError::Io { .. }
            | SelectiveRestoreError::Start(_) => ErrorKind::Failed,
        }
    }
}

impl From<super::super::placement::PlacementError> for SelectiveRestoreError {
    fn from(error: super::super::placement::PlacementError) -> SelectiveRestoreError {
        SelectiveRestoreError::Restore(error.into())
    }
}

impl From<super::super::destination::DestinationError> for SelectiveRestoreError {
    fn from(error: super::super::destination::DestinationError) -> SelectiveRestoreError {
        SelectiveRestoreError::Restore(error.into())
    }
}

impl From<crate::postgres::archive::ArchiveError> for SelectiveRestoreError {
    fn from(error: crate::postgres::archive::ArchiveError) -> SelectiveRestoreError {
        SelectiveRestoreError::Restore(error.into())
    }
}

impl From<vault::VaultError> for SelectiveRestoreError {
    fn from(error: vault::VaultError) -> SelectiveRestoreError {
        SelectiveRestoreError::Restore(crate::postgres::archive::ArchiveError::from(error).into())
    }
}

pub(super) fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> SelectiveRestoreError + 'a {
    move |source| SelectiveRestoreError::Io { what, path: path.to_owned(), source }
}

impl From<WorkerLostError> for SelectiveRestoreError {
    fn from(lost: WorkerLostError) -> SelectiveRestoreError {
        SelectiveRestoreError::Restore(lost.into())
    }
}
