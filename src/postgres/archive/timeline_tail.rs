//! The tail of a timeline that ended in the middle of a segment.
//!
//! On promotion PostgreSQL renames the old timeline's last segment to `.partial` and copies it, up to the switch point,
//! into the first segment of the new timeline (`CleanupAfterArchiveRecovery`, `XLogInitNewTimeline` in `xlog.c`).
//! Recovery along the old timeline asks for neither, and so loses the transactions in that tail. Here is where both
//! copies are and how far they are of use; [`super::unfinished`] reads them.

use std::collections::BTreeMap;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::index::{self, IndexView, SegmentId};

/// A copy of a timeline's end.
pub(super) struct CopiedTail {
    /// The timeline whose first segment begins with it.
    pub(super) child: TimelineId,
    /// The switch point, where it ends.
    pub(super) end: Lsn,
}

/// The segments in which a timeline was left and that `view` has neither under their own name nor as the first segment
/// of one that left it.
///
/// # Errors
/// What the index says.
pub fn unfinished_tails(
    view: &IndexView<'_>,
    histories: &[TimelineHistory],
) -> Result<Vec<SegmentName>, index::IndexError> {
    let Some(size) = view.segment_size() else { return Ok(Vec::new()) };
    let mut names = BTreeMap::new();
    for history in histories {
        for (timeline, end) in history.copied_tails(size) {
            let segment = size.segment_of(end);
            let known = |on| view.contains(SegmentId { timeline: on, segment });
            let had = known(timeline)? || known(history.timeline)?;
            *names.entry((timeline, segment)).or_insert(false) |= had;
        }
    }
    let missing = names.into_iter().filter(|(_, had)| !had);
    Ok(missing.filter_map(|((timeline, segment), _)| SegmentName::new(timeline, segment, size)).collect())
}

/// The copies of a segment's beginning that timelines took along which left its timeline within the segment.
pub(super) fn copied_tails_of(histories: &[TimelineHistory], name: SegmentName, size: SegmentSize) -> Vec<CopiedTail> {
    let Some(number) = name.number(size) else { return Vec::new() };
    histories
        .iter()
        .flat_map(|history| history.copied_tails(size).map(move |(parent, end)| (parent, history.timeline, end)))
        .filter(|(parent, _, end)| *parent == name.timeline() && size.segment_of(*end) == number)
        .map(|(_, child, end)| CopiedTail { child, end })
        .collect()
}

/// Where the segment's timeline begins, if it begins in the middle of this segment.
pub(super) fn fork_within(histories: &[TimelineHistory], name: SegmentName, size: SegmentSize) -> Option<Lsn> {
    let history = histories.iter().find(|history| history.timeline == name.timeline())?;
    let fork = history.entries.last()?.end;
    Some(fork).filter(|fork| name.number(size) == Some(size.segment_of(*fork)))
}
