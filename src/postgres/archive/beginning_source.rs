//! The places in which the beginning of a segment may be that no repository has whole.

use crate::postgres::format::timeline::TimelineId;

/// Where the beginning of a segment was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BeginningSource {
    /// In the spool of this machine.
    Spool,
    /// In the repositories, in pieces.
    Pieces,
    /// In a `.tail` that the receiver archived.
    Tail,
    /// In the `.partial` that PostgreSQL archived on a promotion.
    Partial,
    /// In the first segment of a timeline that left this one.
    Child(TimelineId),
}

impl std::fmt::Display for BeginningSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BeginningSource::Spool => f.write_str("the spool"),
            BeginningSource::Pieces => f.write_str("the pieces in the repositories"),
            BeginningSource::Tail => f.write_str("the archived .tail"),
            BeginningSource::Partial => f.write_str("the archived .partial"),
            BeginningSource::Child(timeline) => write!(f, "the first segment of timeline {timeline}"),
        }
    }
}
