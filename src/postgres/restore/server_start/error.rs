//! Why a restored server is not where it should be.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::log_excerpt::LogExcerpt;
use crate::base::blocking::WorkerLostError;
use crate::postgres::format::lsn::Lsn;

/// A restored server that did not get where it should.
#[derive(Debug, thiserror::Error)]
pub enum ServerStartError {
    /// There are no programs of this major version.
    #[error("no PostgreSQL {major} was found in {looked}; name its directory with --pg-bindir")]
    NoPrograms {
        /// The version of the data directory.
        major: u32,
        /// Where was looked.
        looked: String,
    },
    /// PostgreSQL refuses to be root.
    #[error(
        "PostgreSQL refuses to run as root, and {pgdata} belongs to root; give it to the server's user and start it as that user"
    )]
    Root {
        /// The data directory.
        pgdata: PathBuf,
    },
    /// A program or file could not be used.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The server's configuration cannot be read.
    #[error("the server does not accept its configuration: {answer}")]
    Configuration {
        /// What `postgres -C` printed.
        answer: String,
    },
    /// The server ended before its target.
    #[error("the server (process {pid}) ended before it reached its target, with {how}; {log}")]
    ServerEnded {
        /// The postmaster.
        pid: u32,
        /// Its exit status, or the signal that ended it.
        how: String,
        /// What it logged.
        log: LogExcerpt,
    },
    /// It waits until it is shut down.
    #[error(
        "the server (process {pid}) cannot continue: {why}. Stop it, raise that in postgresql.auto.conf and start it \
            again; {log}"
    )]
    ServerStuck {
        /// The postmaster.
        pid: u32,
        /// Which setting is too low, and how high it must be.
        why: String,
        /// What it logged.
        log: LogExcerpt,
    },
    /// It does nothing any more.
    #[error(
        "the server (process {pid}) has made no progress for {seconds} s{reached}. It still runs; give it more time \
            with --start-timeout; {log}",
        seconds = waited.as_secs()
    )]
    NoProgress {
        /// The postmaster.
        pid: u32,
        /// How long nothing happened.
        waited: Duration,
        /// How far it got, in words; empty if that is not known.
        reached: String,
        /// What it logged.
        log: LogExcerpt,
    },
    /// It cannot be asked whether it pauses.
    #[error(
        "the server (process {pid}) is up, but it does not let walkeep ask whether it pauses at its target: {why}. \
            Ask it yourself: {connect} -c 'SELECT pg_is_wal_replay_paused(), pg_last_wal_replay_lsn()'"
    )]
    Silent {
        /// The postmaster.
        pid: u32,
        /// Why it cannot be asked.
        why: String,
        /// The start of a command that connects to it.
        connect: String,
    },
    /// It stopped elsewhere.
    #[error("the server stopped replay at {reached}, but the plan says {planned}; don't use it, and report this")]
    StoppedElsewhere {
        /// Where it stopped.
        reached: Lsn,
        /// Where it should have.
        planned: String,
    },
    /// The program is ending.
    #[error("the start was interrupted")]
    WorkerLost,
}

impl ServerStartError {
    /// What the server logged, if it was started.
    #[must_use]
    pub const fn log(&self) -> Option<&LogExcerpt> {
        match self {
            ServerStartError::ServerEnded { log, .. }
            | ServerStartError::ServerStuck { log, .. }
            | ServerStartError::NoProgress { log, .. } => Some(log),
            ServerStartError::NoPrograms { .. }
            | ServerStartError::Root { .. }
            | ServerStartError::Io { .. }
            | ServerStartError::Configuration { .. }
            | ServerStartError::Silent { .. }
            | ServerStartError::StoppedElsewhere { .. }
            | ServerStartError::WorkerLost => None,
        }
    }
}

impl ServerStartError {
    /// As [`ServerStartError::log`], to name another place of it.
    pub(in crate::postgres::restore) const fn log_mut(&mut self) -> Option<&mut LogExcerpt> {
        match self {
            ServerStartError::ServerEnded { log, .. }
            | ServerStartError::ServerStuck { log, .. }
            | ServerStartError::NoProgress { log, .. } => Some(log),
            _ => None,
        }
    }
}

impl From<WorkerLostError> for ServerStartError {
    fn from(_lost: WorkerLostError) -> ServerStartError {
        ServerStartError::WorkerLost
    }
}

/// Names the file in an operating system's error.
pub(super) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ServerStartError + 'a {
    move |source| ServerStartError::Io { what, path: path.to_owned(), source }
}
