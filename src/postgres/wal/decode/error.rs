//! Why the log cannot be read on, with the place.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SystemId;

/// Why the log cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No release known here writes such pages, or not the one that wrote the pages before.
    #[error(
        "the page at {at} has the magic {found:04X}, which is not that of the log before it or of any release known \
            here"
    )]
    Magic {
        /// The page.
        at: Lsn,
        /// Its magic.
        found: u16,
    },
    /// A page that says it belongs elsewhere, further on in the log.
    #[error("the page at {at} says that it belongs at {found}")]
    Address {
        /// The page.
        at: Lsn,
        /// Where it says it belongs.
        found: Lsn,
    },
    /// Timelines in page headers never go back, and never beyond that of the log they are in.
    #[error("the page at {at} is of timeline {found}, which cannot follow timeline {before}")]
    Timeline {
        /// The page.
        at: Lsn,
        /// Its timeline.
        found: u32,
        /// That of the page before.
        before: u32,
    },
    /// Another cluster's log.
    #[error("the page at {at} belongs to the cluster {found}, the log before it to {expected}")]
    SystemId {
        /// The page.
        at: Lsn,
        /// The cluster it names.
        found: SystemId,
        /// The cluster it should name.
        expected: SystemId,
    },
    /// A page header that cannot be.
    #[error("the header of the page at {at} is damaged: {problem}")]
    Page {
        /// The page.
        at: Lsn,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A record header that cannot be.
    #[error("the header of the record at {at} is damaged: {problem}")]
    Header {
        /// The record.
        at: Lsn,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A record that names another predecessor than the one it has.
    #[error("the record at {at} says that it follows the one at {found}, but the one before it is at {expected}")]
    Chain {
        /// The record.
        at: Lsn,
        /// The predecessor it names (`xl_prev`).
        found: Lsn,
        /// The predecessor it has.
        expected: Lsn,
    },
    /// A record whose bytes are not those that were written.
    #[error("the record at {at} has the checksum {computed:08X} where {stored:08X} was written")]
    Crc {
        /// The record.
        at: Lsn,
        /// What its header holds.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A record that does not go on where it should, or goes on where it should not.
    #[error("the page at {at} does not go on with the record before it: {problem}")]
    Continuation {
        /// The page.
        at: Lsn,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl DecodeError {
    /// The page or record that cannot be read.
    #[must_use]
    pub const fn at(&self) -> Lsn {
        match self {
            DecodeError::Magic { at, .. }
            | DecodeError::Address { at, .. }
            | DecodeError::Timeline { at, .. }
            | DecodeError::SystemId { at, .. }
            | DecodeError::Page { at, .. }
            | DecodeError::Header { at, .. }
            | DecodeError::Chain { at, .. }
            | DecodeError::Crc { at, .. }
            | DecodeError::Continuation { at, .. } => *at,
        }
    }
}
