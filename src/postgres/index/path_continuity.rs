//! The continuity of the log along a path, and of neighbouring segments of a timeline.

use super::continuity::{ContinuityCheck, WalContinuity, WalDefect};
use super::error::IndexError;
use super::path_search::PathSearch;
use super::summary::FullBlock;
use super::walk::{SegmentRunSum, WalkStep};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::timeline::TimelineId;

impl PathSearch<'_> {
    /// Checks the log in `from..to`. It is read from the summaries alone.
    ///
    /// # Errors
    /// What the store says.
    pub fn continuity(&self, from: Lsn, to: Lsn) -> Result<WalContinuity, IndexError> {
        self.check(from, to, u64::MAX)
    }

    /// As [`PathSearch::continuity`], but no further than the first hole.
    ///
    /// # Errors
    /// What the store says.
    pub fn first_hole(&self, from: Lsn, to: Lsn) -> Result<WalContinuity, IndexError> {
        self.check(from, to, 1)
    }

    fn check(&self, from: Lsn, to: Lsn, enough: u64) -> Result<WalContinuity, IndexError> {
        let mut check = ContinuityCheck { found: WalContinuity::default(), reached: from, before: None };
        let mut failed = None;
        self.walk_blocks(from, to, |step| check.visit(&step, to, enough, &mut failed))?;
        if let Some(error) = failed {
            return Err(error);
        }
        if check.reached < to && check.found.holes_total < enough {
            check.add_hole(self.timeline_at(check.reached), check.reached, to, WalDefect::Missing);
        }
        // It is missing on the timeline that the path follows there, not on that of the segment after it.
        for hole in check.found.holes.iter_mut().filter(|hole| hole.why == WalDefect::Missing) {
            hole.timeline = self.timeline_at(hole.from);
        }
        Ok(check.found)
    }

    /// What the segments `from..to` of a timeline are together, if all of them are there and the log in them can be
    /// read from the first to the last.
    pub(super) fn sum_segments(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        to: SegmentNo,
    ) -> Result<Option<SegmentRunSum>, IndexError> {
        let begin = from.start(self.segment_size());
        let mut check = ContinuityCheck { found: WalContinuity::default(), reached: begin, before: None };
        let (mut latest, mut failed) = (None, None);
        let _seen = self.walk_timeline_blocks(timeline, from, to, &mut |step| {
            latest = latest.max(match &step {
                WalkStep::Segment(stretch) => stretch.summary.latest,
                WalkStep::Block(block) => block.latest,
            });
            check.visit(&step, Lsn::MAX, 1, &mut failed)
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let WalContinuity { segments, records, stored, opaque, .. } = check.found;
        let all_there = to.get().checked_sub(from.get()) == Some(segments) && segments > 0;
        if !all_there || !check.found.is_whole() || opaque > 0 {
            return Ok(None);
        }
        let last = to.previous().unwrap_or(from);
        let ends = self.segment_on(timeline, from)?.zip(self.segment_on(timeline, last)?);
        Ok(ends.map(|ends| SegmentRunSum { segments, full: FullBlock { whole: true, records, stored }, latest, ends }))
    }
}
