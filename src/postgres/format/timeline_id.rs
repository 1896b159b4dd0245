//! The number of a timeline.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// The number of a timeline (`TimeLineID`), 1 for a cluster that was never promoted. Prints in decimal, as PostgreSQL's
/// messages do; file names use eight hexadecimal digits ([`TimelineId::hex`]), so timeline 16 is `00000010` there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline every new cluster starts on.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// The timeline of this number; `None` for zero, which PostgreSQL never uses.
    #[must_use]
    pub const fn new(number: u32) -> Option<TimelineId> {
        match NonZeroU32::new(number) {
            Some(number) => Some(TimelineId(number)),
            None => None,
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Eight hexadecimal digits, as file names have it.
    #[must_use]
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What was given is not the number of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a timeline; timelines are numbered from 1")]
pub struct ParseTimelineIdError(String);

impl FromStr for TimelineId {
    type Err = ParseTimelineIdError;

    fn from_str(s: &str) -> Result<TimelineId, ParseTimelineIdError> {
        s.parse().ok().and_then(TimelineId::new).ok_or_else(|| ParseTimelineIdError(s.to_owned()))
    }
}
