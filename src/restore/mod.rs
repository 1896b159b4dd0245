//! Restores: a target is resolved to the record where PostgreSQL stops, everything that this needs is proved to be there, and only then is
//! the disk touched.
//!
//! [`target`] says what is wanted. [`plan`] chooses the backup and resolves the target ([`resolve`]) from [`facts`] about the archived log; its
//! result is a value. [`settings`] are what the restored server is told.

pub mod target;
pub mod facts;
pub mod resolve;
pub mod plan;
pub mod settings;

use crate::postgres::timeline::TimelineId;
use crate::retry::Class;

/// Why there is no plan, or no restore.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backup that was named is not in the repository.
    #[error("there is no backup {label:?}; walkeep list shows which there are")]
    UnknownBackup {
        /// What was asked for.
        label: String,
    },
    /// A timeline that was named, or that a backup is on, has no history in the archive.
    #[error("the history of timeline {timeline} is not archived, so there is no telling what it descends from")]
    UnknownTimeline {
        /// Which.
        timeline: TimelineId,
    },
}

impl Error {
    /// What the caller can do about it.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Error::UnknownBackup { .. } | Error::UnknownTimeline { .. } => Class::Permanent,
        }
    }
}
