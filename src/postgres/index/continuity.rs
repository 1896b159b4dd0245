//! Whether a stretch of log is whole: every segment there, every record checked, and each segment tied to the one
//! before.

use std::fmt;
use std::ops::ControlFlow;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::digest::{JoinError, SegmentDigest, SegmentState, check_follows};

use super::error::IndexError;
use super::keys::SegmentId;
use super::summary::{ContrecordState, FullBlock, SegmentSummary};
use super::walk::{PathSegment, WalkNext, WalkStep, WholeBlock};

/// Holes that are listed; a longer list helps nobody, and the rest is counted.
const MAX_LISTED_HOLES: usize = 1000;

/// A stretch of log that cannot be replayed.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct WalHole {
    /// The timeline it is looked for on.
    pub timeline: TimelineId,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
    /// What is wrong.
    pub why: WalDefect,
}

/// What is wrong with a stretch of log.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WalDefect {
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

impl fmt::Display for WalHole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} on timeline {}: {}", self.from, self.to, self.timeline, self.why)
    }
}

impl fmt::Display for WalDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalDefect::Missing => f.write_str("not archived"),
            WalDefect::Broken(why) => write!(f, "damaged: {why}"),
            WalDefect::Torn(why) => write!(f, "the log does not go on here as it should: {why}"),
            WalDefect::Unlinked { last, points_to } => {
                write!(f, "the last record before is at {last}, but the first one after points to {points_to}")
            }
        }
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WalContinuity {
    /// What cannot be replayed, in log order, the first [`MAX_LISTED_HOLES`].
    pub holes: Vec<WalHole>,
    /// How many holes there are.
    pub holes_total: u64,
    /// Segments seen.
    pub segments: u64,
    /// Records that start and end in them.
    pub records: u64,
    /// Bytes of their objects, as far as known.
    pub stored: u64,
    /// Segments of a release whose records cannot be checked.
    pub opaque: u64,
    /// Where the log that is there ends: the end of the last segment, or of what means anything in it.
    pub end: Option<Lsn>,
}

impl WalContinuity {
    /// Whether everything can be replayed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.holes_total == 0
    }
}

/// What the check knows so far.
pub(super) struct ContinuityCheck {
    pub(super) found: WalContinuity,
    /// Everything before is accounted for.
    pub(super) reached: Lsn,
    /// The segment before, if its log is whole to its end.
    pub(super) before: Option<SegmentDigest>,
}

/// What all segments of a block are together.
pub(super) fn sum_of_block(segments: Vec<(SegmentId, SegmentSummary)>) -> FullBlock {
    let begin = segments.first().map_or(Lsn::INVALID, |(_, summary)| summary.digest.start());
    let mut check = ContinuityCheck { found: WalContinuity::default(), reached: begin, before: None };
    for (place, summary) in segments {
        let (from, to) = (summary.digest.start(), summary.digest.end());
        check.add_segment(&PathSegment { place, from, to, summary }, Lsn::MAX);
    }
    let WalContinuity { records, stored, opaque, .. } = check.found;
    FullBlock { whole: check.found.is_whole() && opaque == 0, records, stored }
}

/// Whether the log of neighbouring blocks, of each of which the first and the last segment are given, hangs together.
pub(super) fn is_connected(blocks: Vec<(FullBlock, BlockEnds)>) -> Result<bool, IndexError> {
    let begin = blocks.first().map_or(Lsn::INVALID, |(_, (first, _))| first.1.digest.start());
    let mut check = ContinuityCheck { found: WalContinuity::default(), reached: begin, before: None };
    for (full, (first, last)) in blocks {
        let of = |(place, summary): &(SegmentId, SegmentSummary)| {
            let (from, to) = (summary.digest.start(), summary.digest.end());
            PathSegment { place: *place, from, to, summary: summary.clone() }
        };
        let ends = &|| Ok(Some((of(&first), of(&last))));
        let block = WholeBlock { segments: 0, full, latest: None, ends };
        if check.add_block(&block, Lsn::MAX)? == WalkNext::Into {
            return Ok(false);
        }
    }
    Ok(check.found.is_whole())
}

/// The first and the last segment of a block.
pub(super) type BlockEnds = ((SegmentId, SegmentSummary), (SegmentId, SegmentSummary));

impl ContinuityCheck {
    /// Takes a step of a walk towards `to`, until there are enough holes.
    pub(super) fn visit(
        &mut self,
        step: &WalkStep<'_>,
        to: Lsn,
        enough: u64,
        failed: &mut Option<IndexError>,
    ) -> ControlFlow<(), WalkNext> {
        let onward = match step {
            WalkStep::Segment(stretch) => {
                self.add_segment(stretch, to);
                WalkNext::Next
            }
            WalkStep::Block(block) => match self.add_block(block, to) {
                Ok(onward) => onward,
                Err(error) => {
                    *failed = Some(error);
                    return ControlFlow::Break(());
                }
            },
        };
        if self.found.holes_total < enough { ControlFlow::Continue(onward) } else { ControlFlow::Break(()) }
    }

    /// Takes a block in by its ends, where all between is known to be whole.
    fn add_block(&mut self, block: &WholeBlock<'_>, to: Lsn) -> Result<WalkNext, IndexError> {
        let Some((first, last)) = (block.ends)()?.filter(|_| block.full.whole) else { return Ok(WalkNext::Into) };
        let (records, stored) = (self.found.records, self.found.stored);
        self.add_segment(&first, to);
        self.found.segments = self.found.segments.saturating_add(block.segments.saturating_sub(1));
        self.found.records = records.saturating_add(block.full.records);
        self.found.stored = stored.saturating_add(block.full.stored);
        self.reached = last.to;
        let digest = last.summary.digest;
        self.found.end = Some(if digest.switched { last.to } else { last.to.min(digest.valid_until) });
        self.before = Some(digest);
        Ok(WalkNext::Next)
    }

    pub(super) fn add_hole(&mut self, timeline: TimelineId, from: Lsn, to: Lsn, why: WalDefect) {
        self.found.holes_total = self.found.holes_total.saturating_add(1);
        if self.found.holes.len() < MAX_LISTED_HOLES {
            self.found.holes.push(WalHole { timeline, from, to, why });
        }
        self.before = None;
    }

    fn add_segment(&mut self, stretch: &PathSegment, to: Lsn) {
        let (timeline, digest) = (stretch.place.timeline, &stretch.summary.digest);
        self.found.segments = self.found.segments.saturating_add(1);
        self.found.records = self.found.records.saturating_add(digest.records);
        self.found.stored = self.found.stored.saturating_add(stretch.summary.stored);
        if stretch.from > self.reached {
            self.add_hole(timeline, self.reached, stretch.from, WalDefect::Missing);
        }
        match &digest.state {
            SegmentState::Checked => self.add_checked_segment(stretch, to),
            SegmentState::Opaque => {
                self.found.opaque = self.found.opaque.saturating_add(1);
                self.before = None;
            }
            SegmentState::Broken { at, why } if *at < stretch.to => {
                self.add_hole(timeline, *at, stretch.to, WalDefect::Broken(why.clone()));
            }
            SegmentState::Broken { .. } => self.add_checked_segment(stretch, to),
        }
        self.reached = stretch.to;
        self.found.end = Some(if digest.switched { stretch.to } else { stretch.to.min(digest.valid_until) });
    }

    fn add_checked_segment(&mut self, stretch: &PathSegment, to: Lsn) {
        let (timeline, summary) = (stretch.place.timeline, &stretch.summary);
        let digest = &summary.digest;
        let border = self.before.as_ref().and_then(|before| check_follows(before, digest).err());
        let torn = match (&summary.contrecord, border) {
            (_, Some(JoinError::Chain { expected, found, .. })) => {
                Some(WalDefect::Unlinked { last: expected, points_to: found })
            }
            (_, Some(error)) => Some(WalDefect::Torn(error.to_string())),
            (ContrecordState::Torn(why), None) => Some(WalDefect::Torn(why.clone())),
            (
                ContrecordState::None
                | ContrecordState::Open
                | ContrecordState::Through
                | ContrecordState::Whole { .. },
                None,
            ) => None,
        };
        if let Some(why) = torn {
            let last = self.before.as_ref().and_then(|before| before.tail.as_ref()).map(|tail| tail.start);
            let first = digest.first_record.unwrap_or(stretch.to).min(stretch.to);
            self.add_hole(timeline, last.unwrap_or(stretch.from), first, why);
        }
        let end = stretch.to.min(to);
        if !digest.switched && digest.valid_until < end {
            self.add_hole(timeline, digest.valid_until, end, WalDefect::Missing);
        } else {
            self.before = Some(digest.clone());
        }
    }
}
