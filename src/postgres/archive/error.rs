//! What can go wrong with the archive of a cluster, apart from what is wrong with the WAL that is put in.

use super::beginning_source::BeginningSource;
use crate::base::blocking::WorkerLostError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::postgres::format::lsn::Lsn;
use crate::vault;

/// Why an archive did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ArchiveError {
    /// An object could not be put, read or listed.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    /// The index has a segment, and no repository.
    #[error("{name} is in the index and in no repository any more; `walkeep index rebuild` makes the index anew")]
    SegmentGone {
        /// The segment's name.
        name: String,
    },
    /// Two copies of a segment's beginning are not equal.
    #[error(
        "segment {name} is not archived whole, and two copies of its beginning differ at {at}: {one}, and {other}. One \
         of them is not of this cluster's past, and walkeep cannot tell which. Move the wrong one away"
    )]
    CopiesDiffer {
        /// The segment.
        name: String,
        /// The first byte in which they differ.
        at: Lsn,
        /// Where one of them is.
        one: BeginningSource,
        /// Where the other is.
        other: BeginningSource,
    },
}

impl HasKind for ArchiveError {
    fn kind(&self) -> ErrorKind {
        match self {
            ArchiveError::Vault(error) => error.kind(),
            ArchiveError::CopiesDiffer { .. } => ErrorKind::Integrity,
            ArchiveError::SegmentGone { .. } => ErrorKind::Failed,
        }
    }
}

impl ArchiveError {
    /// Whether trying again helps.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }

    /// Whether it is a repository's, and may pass, or an operator may fix it: also a right that was taken away.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, ArchiveError::Vault(error) if error.may_pass())
    }

    /// Whether something stored is damaged, forged or of another key: what a user must look at before anything is tried
    /// again.
    #[must_use]
    pub fn is_integrity(&self) -> bool {
        self.kind() == ErrorKind::Integrity
    }
}

impl From<WorkerLostError> for ArchiveError {
    fn from(lost: WorkerLostError) -> ArchiveError {
        ArchiveError::Vault(lost.into())
    }
}
