//! Why receiving ends.

use std::path::PathBuf;

use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::postgres::archive;
use crate::postgres::archive::fork::{Fork, RecordedFork};
use crate::postgres::archive::ingest::IngestError;
use crate::postgres::fork_check::ComparisonError;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::postgres::format::timeline::{TimelineHistoryError, TimelineId};
use crate::postgres::wal::assemble::AssembleError;
use crate::postgres::wire;
use crate::vault;
use crate::vault::spool::SpoolError;

/// A failure of the receiver, or of one attempt at it.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The server or the way to it.
    #[error(transparent)]
    Replication(#[from] wire::ReplicationError),
    /// The archive, when read.
    #[error(transparent)]
    Archive(#[from] archive::ArchiveError),
    /// The archive, when written.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Another cluster answers.
    #[error(
        "the server at {host} is the cluster with system identifier {found}, and this archive belongs to {expected}; correct the connection, or give this \
         cluster an archive of its own"
    )]
    WrongSystem {
        /// Which server.
        host: String,
        /// Its identifier.
        found: SystemId,
        /// The archive's.
        expected: SystemId,
    },
    /// The segment size has changed.
    #[error("the server's WAL segments have {} bytes, and this archive's {}; after a change of the segment size begin \
        a new archive", found.get(), expected.get())]
    WrongSize {
        /// The server's.
        found: SegmentSize,
        /// The archive's.
        expected: SegmentSize,
    },
    /// The stream does not fit what came before.
    #[error("the WAL of timeline {timeline} does not continue where it was: {source}")]
    Assemble {
        /// On which timeline.
        timeline: TimelineId,
        /// What is wrong.
        source: AssembleError,
    },
    /// The server sends other bytes than it sent before for the segment in the spool.
    #[error(
        "the WAL at {at} on timeline {timeline} is not what this server sent before: the server has lost its last WAL \
            or was set back to an older state, or another server answers. Nothing was removed. If it is the right \
            server, move {} away, start walkeep receive again, and take a new backup", spool_file.display()
    )]
    Diverged {
        /// On which timeline.
        timeline: TimelineId,
        /// The first byte that differs.
        at: Lsn,
        /// The only copy of what was received before.
        spool_file: PathBuf,
    },
    /// The server's WAL on this timeline is not the archive's.
    #[error(
        "the server at {server} is a fork of the archive: its WAL on timeline {timeline} leaves the archive at {at}, \
            and the archive reaches {archived_until}. Nothing was archived or acknowledged. {}",
        if *.resolved {
            "The fork is resolved in favour of the archive: give this server another archive name, or a new timeline"
        } else {
            "See walkeep fork list, and \"A server that was set back\" in the guide"
        }
    )]
    Forked {
        /// Which server.
        server: String,
        /// On which timeline.
        timeline: TimelineId,
        /// Where it leaves the archive.
        at: Lsn,
        /// How far the archive reaches.
        archived_until: Lsn,
        /// Whether an operator has decided.
        resolved: bool,
    },
    /// The server has less WAL than we do.
    #[error(
        "the server ends before {at} on timeline {timeline}, which was received from it earlier: it was set back to an older state, or another server \
         answers"
    )]
    ServerBehind {
        /// On which timeline.
        timeline: TimelineId,
        /// What is wanted.
        at: Lsn,
    },
    /// The server's timelines make no sense.
    #[error(transparent)]
    History(#[from] TimelineHistoryError),
    /// A history that is not text.
    #[error("the server's history of timeline {0} is not a history file")]
    WrongHistory(TimelineId),
    /// A worker panicked.
    #[error("a worker gave up; this is a bug in walkeep, and its message is in the log above")]
    WorkerLost,
}

impl HasKind for ReceiveError {
    fn kind(&self) -> ErrorKind {
        match self {
            ReceiveError::Replication(error) => error.kind(),
            ReceiveError::Archive(error) => error.kind(),
            ReceiveError::Ingest(error) => error.kind(),
            // A standby that lags catches up.
            ReceiveError::ServerBehind { .. } => ErrorKind::Unavailable,
            // After a failed fsync the content of the disk is unknown: this process must not continue with it.
            ReceiveError::Spool(error) => error.kind(),
            ReceiveError::Forked { .. } | ReceiveError::Diverged { .. } => ErrorKind::Integrity,
            ReceiveError::WrongSystem { .. }
            | ReceiveError::WrongSize { .. }
            | ReceiveError::Assemble { .. }
            | ReceiveError::History(_)
            | ReceiveError::WrongHistory(_)
            | ReceiveError::WorkerLost => ErrorKind::Failed,
        }
    }
}

impl From<ComparisonError> for ReceiveError {
    fn from(error: ComparisonError) -> ReceiveError {
        match error {
            ComparisonError::Server(error) => error.into(),
            ComparisonError::Archive(error) => error.into(),
            ComparisonError::Spool(error) => error.into(),
            ComparisonError::WorkerLost => ReceiveError::WorkerLost,
        }
    }
}

impl From<vault::VaultError> for ReceiveError {
    fn from(error: vault::VaultError) -> ReceiveError {
        ReceiveError::Archive(error.into())
    }
}

impl ReceiveError {
    pub(super) fn forked(server: String, recorded: &RecordedFork) -> ReceiveError {
        let Fork { timeline, at, archived_until, .. } = recorded.fork;
        ReceiveError::Forked { server, timeline, at, archived_until, resolved: recorded.resolution.is_some() }
    }

    /// Whether connecting again may help.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }
}

impl From<WorkerLostError> for ReceiveError {
    fn from(_lost: WorkerLostError) -> ReceiveError {
        ReceiveError::WorkerLost
    }
}
