//! Which segments of the server's timeline path are archived, and the first one that is not.
//!
//! While the receiver catches up it uploads several segments at once, and they finish in any order. A kill at that
//! moment leaves holes below the last archived segment, whatever the slot holds, and also without one. So each start
//! looks for the first hole, by listing keys only. It looks after the newest recorded gap, because what is before a gap
//! was looked for already.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::error::ReceiveError;
use super::resume_context::ResumeContext;
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, inventory};
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::postgres::format::timeline::{TimelineId, TimelineSpan};

/// The archived segments of one span of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ArchivedSpan {
    timeline: TimelineId,
    /// The segment in which the next timeline begins: of it and what follows, the next timeline has its own.
    end: Option<SegmentNo>,
    /// Whether the timeline ends in the middle of that segment.
    ends_within: bool,
    archived: BTreeSet<SegmentNo>,
    /// The first segment of which something is spooled.
    spooled: Option<SegmentNo>,
}

impl ArchivedSpan {
    fn is_empty(&self) -> bool {
        self.archived.is_empty() && self.spooled.is_none()
    }
}

/// The first segment that is missing, or the one after everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstMissing {
    /// A hole: later segments are archived.
    Hole(TimelineId, SegmentNo),
    /// The end of what is archived.
    End(TimelineId, SegmentNo),
}

/// The timeline to continue with, and its first segment that the repository does not have; `None` if there is neither
/// archived nor spooled WAL, nor a gap.
pub(super) async fn first_missing(
    archive: &Arc<Archive>,
    known: &ResumeContext,
    spool: &Spool,
    listed: &[SegmentName],
) -> Result<Option<(TimelineId, SegmentNo)>, ReceiveError> {
    let from = newest_gap_end(archive, known).await?;
    let mut spans = Vec::new();
    for span in known.path.spans() {
        spans.push(read_span(archive, known, span, spool, listed, from).await?);
    }
    let found = match find_first_missing(&spans, from, None) {
        // An unreachable repository may have it. The next start with all of them looks again.
        Some(FirstMissing::Hole(..)) if archive.ensure_all_reachable().is_err() => {
            find_first_missing(&spans, from, Some(SegmentNo::new(u64::MAX)))
        }
        // Only now are backups of interest: what is before the oldest one is needed by nothing, and cleanup may have
        // made a hole there.
        Some(FirstMissing::Hole(..)) => find_first_missing(&spans, from, oldest_needed(archive, known).await?),
        found => found,
    };
    Ok(found.map(|found| match found {
        FirstMissing::Hole(timeline, segment) => {
            tracing::warn!(%timeline, at = %segment.start(known.size), "a hole in the archive: asking the server for \
                the WAL from here on");
            (timeline, segment)
        }
        FirstMissing::End(timeline, segment) => (timeline, segment),
    }))
}

/// The first archived segment on the path from `from` on, `from` included.
pub(super) async fn next_archived(
    archive: &Archive,
    known: &ResumeContext,
    from: SegmentNo,
) -> Result<Option<(TimelineId, SegmentNo)>, ReceiveError> {
    for span in known.path.spans() {
        let archived = list_span(archive, known.size, span, Some(from)).await?;
        if let Some(first) = archived.first() {
            return Ok(Some((span.timeline, *first)));
        }
    }
    Ok(None)
}

/// Where the newest gap on the path ends.
async fn newest_gap_end(archive: &Archive, known: &ResumeContext) -> Result<Option<SegmentNo>, ReceiveError> {
    let gaps = archive.gaps().await?;
    let on_path = gaps.iter().filter(|gap| known.path.contains(gap.timeline, gap.start));
    Ok(on_path.map(|gap| known.size.segment_of(gap.end)).max())
}

/// The first segment of the oldest backup on the path.
async fn oldest_needed(archive: &Archive, known: &ResumeContext) -> Result<Option<SegmentNo>, ReceiveError> {
    let backups = inventory::backup_summaries(archive).await?;
    let on_path = backups.iter().filter(|backup| known.path.contains(backup.timeline, backup.start_lsn));
    Ok(on_path.map(|backup| known.size.segment_of(backup.start_lsn)).min())
}

async fn read_span(
    archive: &Arc<Archive>,
    known: &ResumeContext,
    span: &TimelineSpan,
    spool: &Spool,
    listed: &[SegmentName],
    from: Option<SegmentNo>,
) -> Result<ArchivedSpan, ReceiveError> {
    let size = known.size;
    let mut archived = list_span(archive, size, span, from).await?;
    let spooled: BTreeSet<SegmentNo> = listed
        .iter()
        .filter(|name| name.timeline() == span.timeline)
        .filter_map(|name| name.number(size))
        .filter(|number| from.is_none_or(|from| *number >= from))
        .collect();
    let last = archived.last().copied();
    for number in spooled.iter().copied().filter(|number| last.is_some_and(|last| *number < last)) {
        if !archived.contains(&number) && archive_spooled(archive, spool, span.timeline, number, size).await? {
            archived.insert(number);
        }
    }
    let end = span.end.map(|fork| size.segment_of(fork));
    let ends_within = span.end.is_some_and(|fork| size.offset_of(fork) > 0);
    Ok(ArchivedSpan { timeline: span.timeline, end, ends_within, archived, spooled: spooled.first().copied() })
}

/// The archived segments of a span from `from` on.
async fn list_span(
    archive: &Archive,
    size: SegmentSize,
    span: &TimelineSpan,
    from: Option<SegmentNo>,
) -> Result<BTreeSet<SegmentNo>, ReceiveError> {
    let end = span.end.map(|fork| size.segment_of(fork));
    if from.zip(end).is_some_and(|(from, end)| from >= end) {
        return Ok(BTreeSet::new());
    }
    let begin = size.segment_of(span.begin);
    let before = from.map_or(begin, |from| from.max(begin)).previous();
    let after = before.and_then(|before| SegmentName::new(span.timeline, before, size));
    let listed = archive.list_segments(span.timeline, after).await?.found;
    Ok(listed
        .into_iter()
        .filter_map(|(name, _)| name.number(size))
        .filter(|number| end.is_none_or(|end| *number < end))
        .collect())
}

/// Archives a segment that is whole in the spool; later ones are archived already. Whether it was whole.
async fn archive_spooled(
    archive: &Arc<Archive>,
    spool: &Spool,
    timeline: TimelineId,
    number: SegmentNo,
    size: SegmentSize,
) -> Result<bool, ReceiveError> {
    let Some(name) = SegmentName::new(timeline, number, size) else { return Ok(false) };
    let spool = spool.clone();
    let read = tokio::task::spawn_blocking(move || spool.read_segment(name, size)).await;
    let bytes = read.map_err(|_panic| ReceiveError::WorkerLost)??;
    if bytes.len() < size.len() {
        return Ok(false);
    }
    archive.put_segment(name, bytes).await?;
    Ok(true)
}

/// Walks the spans in order. `from` is the first segment that counts. A hole that ends at or before `oldest_needed`
/// does not count.
fn find_first_missing(
    spans: &[ArchivedSpan],
    from: Option<SegmentNo>,
    oldest_needed: Option<SegmentNo>,
) -> Option<FirstMissing> {
    let mut next = from;
    let mut rest = spans.iter();
    while let Some(span) = rest.next() {
        if let (Some(expected), Some(end)) = (next, span.end)
            && expected > end
        {
            continue;
        }
        for number in span.archived.iter().copied() {
            if let Some(expected) = next.filter(|expected| number > *expected)
                && oldest_needed.is_none_or(|oldest| number > oldest)
            {
                return Some(FirstMissing::Hole(span.timeline, expected));
            }
            next = next.max(Some(number.next()));
        }
        next = next.or(span.spooled);
        let Some(expected) = next else { continue };
        let Some(end) = span.end else { return Some(FirstMissing::End(span.timeline, expected)) };
        let is_last = rest.as_slice().iter().all(ArchivedSpan::is_empty);
        if is_last && (expected < end || (expected == end && span.ends_within)) {
            return Some(FirstMissing::End(span.timeline, expected));
        }
        if expected < end {
            let needed = rest.as_slice().iter().find_map(|later| later.archived.first().copied().or(later.spooled));
            if oldest_needed.zip(needed).is_none_or(|(oldest, needed)| needed > oldest) {
                return Some(FirstMissing::Hole(span.timeline, expected));
            }
            next = None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{ArchivedSpan, FirstMissing, find_first_missing};
    use crate::postgres::format::segment::SegmentNo;
    use crate::postgres::format::timeline::TimelineId;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn span(number: u32, end: Option<u64>, archived: &[u64], spooled: Option<u64>) -> ArchivedSpan {
        ArchivedSpan {
            timeline: timeline(number),
            end: end.map(SegmentNo::new),
            ends_within: end.is_some(),
            archived: archived.iter().copied().map(SegmentNo::new).collect(),
            spooled: spooled.map(SegmentNo::new),
        }
    }

    fn check(spans: &[ArchivedSpan], from: Option<u64>, needed: Option<u64>, expected: Option<FirstMissing>) {
        let found = find_first_missing(spans, from.map(SegmentNo::new), needed.map(SegmentNo::new));
        assert_eq!(found, expected, "{spans:?} from {from:?}, needed from {needed:?}");
    }

    #[test]
    fn the_first_hole_is_found_or_the_end() {
        let hole = |of, number| Some(FirstMissing::Hole(timeline(of), SegmentNo::new(number)));
        let end = |of, number| Some(FirstMissing::End(timeline(of), SegmentNo::new(number)));
        check(&[span(1, None, &[], None)], None, None, None);
        check(&[span(1, None, &[], Some(7))], None, None, end(1, 7));
        check(&[span(1, None, &[4, 5, 6], Some(7))], None, None, end(1, 7));
        check(&[span(1, None, &[4, 6, 8], None)], None, None, hole(1, 5));
        // After a gap that ends at 7, what is before it does not count, and 7 does.
        check(&[span(1, None, &[8, 9], None)], Some(7), None, hole(1, 7));
        check(&[span(1, None, &[7, 8, 10], None)], Some(7), None, hole(1, 9));
        check(&[span(1, None, &[], None)], Some(7), None, end(1, 7));
        // The oldest backup begins in 8: cleanup may have made the first hole.
        check(&[span(1, None, &[4, 8, 9], None)], None, Some(8), end(1, 10));
        check(&[span(1, None, &[4, 8, 10], None)], None, Some(8), hole(1, 9));
        check(&[span(1, None, &[4, 9, 10], None)], None, Some(8), hole(1, 5));
    }

    #[test]
    fn a_path_over_several_timelines_has_no_hole_between_them() {
        let hole = |of, number| Some(FirstMissing::Hole(timeline(of), SegmentNo::new(number)));
        let end = |of, number| Some(FirstMissing::End(timeline(of), SegmentNo::new(number)));
        let second = |archived: &[u64], spooled| span(2, None, archived, spooled);
        check(&[span(1, Some(6), &[4, 5], None), second(&[6, 7], None)], None, None, end(2, 8));
        check(&[span(1, Some(6), &[4, 5], None), second(&[7], None)], None, None, hole(2, 6));
        check(&[span(1, Some(6), &[3, 5], None), second(&[6], None)], None, None, hole(1, 4));
        check(&[span(1, Some(6), &[3], None), second(&[6], None)], None, None, hole(1, 4));
        // The first timeline is not finished, and nothing is known of the second.
        check(&[span(1, Some(6), &[3, 4], Some(5)), second(&[], None)], None, None, end(1, 5));
        check(&[span(1, Some(6), &[4, 5], Some(6)), second(&[], None)], None, None, end(1, 6));
        check(&[span(1, Some(6), &[4, 5], None), second(&[], Some(6))], None, None, end(2, 6));
        // The archive begins on the second timeline.
        check(&[span(1, Some(6), &[], None), second(&[8, 9], None)], None, None, end(2, 10));
        // A gap that ends on the second.
        check(&[span(1, Some(6), &[], None), second(&[9], None)], Some(8), None, hole(2, 8));
        // What is before the oldest backup, over a timeline's end.
        check(&[span(1, Some(6), &[3], None), second(&[6, 7], None)], None, Some(6), end(2, 8));
    }
}
