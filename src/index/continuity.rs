//! Whether a stretch of log is whole: every segment there, every record checked, and each segment tied to the one before.

use std::fmt;
use std::ops::ControlFlow;

use crate::postgres::lsn::Lsn;
use crate::postgres::timeline::TimelineId;
use crate::wal::digest::State;

use super::error::Error;
use super::queries::{Along, Stretch};
use super::summary::Joint;

/// Holes that are listed; a longer list helps nobody, and the rest is counted.
pub const MAX_HOLES: usize = 1000;

/// A stretch of log that cannot be replayed.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Hole {
    /// The timeline it is looked for on.
    pub timeline: TimelineId,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
    /// What is wrong.
    pub why: Defect,
}

/// What is wrong with a stretch of log.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Defect {
    /// It is not in the archive.
    Missing,
    /// The segment's records are damaged.
    Broken(String),
    /// The record that straddles two segments doesn't come together.
    Torn(String),
    /// The first record of a segment points back to another record than the last one of the segment before.
    Unlinked {
        /// Where the last record before starts.
        last: Lsn,
        /// Where the first record says it starts.
        points_to: Lsn,
    },
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} on timeline {}: ", self.from, self.to, self.timeline)?;
        match &self.why {
            Defect::Missing => f.write_str("not archived"),
            Defect::Broken(why) => write!(f, "damaged: {why}"),
            Defect::Torn(why) => write!(f, "a record that straddles two segments is damaged: {why}"),
            Defect::Unlinked { last, points_to } => {
                write!(f, "the record before should be at {last}, but the segment's first record points to {points_to}")
            }
        }
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Continuity {
    /// What cannot be replayed, in log order, the first [`MAX_HOLES`].
    pub holes: Vec<Hole>,
    /// How many holes there are.
    pub holes_total: u64,
    /// Segments seen.
    pub segments: u64,
    /// Bytes of their objects, as far as known.
    pub stored: u64,
    /// Segments of a release whose records cannot be checked.
    pub opaque: u64,
    /// Where the log that is there ends: the end of the last segment, or of what means anything in it.
    pub end: Option<Lsn>,
}

impl Continuity {
    /// Whether everything can be replayed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.holes_total == 0
    }
}

/// What the check knows so far.
struct Check {
    found: Continuity,
    /// Everything before is accounted for.
    reached: Lsn,
    /// The last record start seen, if the log is whole since then.
    last_start: Option<Lsn>,
    /// The same, but without a record that may be void.
    last_record: Option<Lsn>,
}

impl Along<'_> {
    /// Checks the log in `from..to`. It is read from the summaries alone.
    ///
    /// # Errors
    /// What the store says.
    pub fn continuity(&self, from: Lsn, to: Lsn) -> Result<Continuity, Error> {
        self.check(from, to, u64::MAX)
    }

    /// As [`Along::continuity`], but no further than the first hole.
    ///
    /// # Errors
    /// What the store says.
    pub fn first_hole(&self, from: Lsn, to: Lsn) -> Result<Continuity, Error> {
        self.check(from, to, 1)
    }

    fn check(&self, from: Lsn, to: Lsn, enough: u64) -> Result<Continuity, Error> {
        let mut check = Check { found: Continuity::default(), reached: from, last_start: None, last_record: None };
        self.walk(from, to, |stretch| {
            check.take(&stretch, to);
            if check.found.holes_total < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if check.reached < to && check.found.holes_total < enough {
            check.hole(self.timeline_at(check.reached), check.reached, to, Defect::Missing);
        }
        Ok(check.found)
    }
}

impl Check {
    fn hole(&mut self, timeline: TimelineId, from: Lsn, to: Lsn, why: Defect) {
        self.found.holes_total = self.found.holes_total.saturating_add(1);
        if self.found.holes.len() < MAX_HOLES {
            self.found.holes.push(Hole { timeline, from, to, why });
        }
        (self.last_start, self.last_record) = (None, None);
    }

    fn take(&mut self, stretch: &Stretch, to: Lsn) {
        let (timeline, digest) = (stretch.place.timeline, &stretch.summary.digest);
        self.found.segments = self.found.segments.saturating_add(1);
        self.found.stored = self.found.stored.saturating_add(stretch.summary.stored);
        if stretch.from > self.reached {
            self.hole(timeline, self.reached, stretch.from, Defect::Missing);
        }
        match &digest.state {
            State::Checked => self.take_checked(stretch, to),
            State::Opaque => {
                self.found.opaque = self.found.opaque.saturating_add(1);
                (self.last_start, self.last_record) = (None, None);
            }
            State::Broken { at, why } if *at < stretch.to => {
                self.hole(timeline, *at, stretch.to, Defect::Broken(why.clone()));
            }
            State::Broken { .. } => self.take_checked(stretch, to),
        }
        self.reached = stretch.to;
        self.found.end = Some(if digest.switched { stretch.to } else { stretch.to.min(digest.valid_until) });
    }

    fn take_checked(&mut self, stretch: &Stretch, to: Lsn) {
        let (timeline, summary) = (stretch.place.timeline, &stretch.summary);
        if let Joint::Torn(why) = &summary.joint {
            let from = self.last_start.unwrap_or(stretch.from);
            self.hole(timeline, from, stretch.from, Defect::Torn(why.clone()));
        }
        let before = match summary.joint {
            Joint::Whole { start, .. } => Some(start),
            _ if summary.digest.overwrites => self.last_record,
            Joint::None | Joint::Open | Joint::Through | Joint::Torn(_) => self.last_start,
        };
        if let (Some(last), Some(points_to), Some(first)) =
            (before, summary.digest.first_prev, summary.digest.first_record)
            && last != points_to
            && first < stretch.to
        {
            self.hole(timeline, stretch.from, first, Defect::Unlinked { last, points_to });
        }
        let end = stretch.to.min(to);
        if !summary.digest.switched && summary.digest.valid_until < end {
            self.hole(timeline, summary.digest.valid_until, end, Defect::Missing);
        }
        if summary.last_start().is_some() {
            self.last_start = summary.last_start();
        }
        if summary.digest.last_record.is_some() {
            self.last_record = summary.digest.last_record;
        }
    }
}
