//! The tail of a timeline that ended in the middle of a segment.
//!
//! On promotion PostgreSQL renames the old timeline's last segment to `.partial` and copies it, up to the switch point, into the first segment
//! of the new timeline (`CleanupAfterArchiveRecovery`, `XLogInitNewTimeline` in `xlog.c`). Recovery along the old timeline asks for
//! neither, and so loses the transactions in that tail. Here the segment is put together under its old name: the bytes up to the switch
//! point, then zeros, where replay ends.

use bytes::Bytes;

use super::GetError;
use crate::archive::Archive;
use crate::postgres::lsn::Lsn;
use crate::postgres::segment::{SegmentName, SegmentSize, WalFileName};
use crate::postgres::timeline::TimelineId;

/// The tail under the name `missing`; `None` if no archived timeline left its timeline within that segment, or its bytes are not there.
pub(super) async fn of(archive: &Archive, missing: SegmentName) -> Result<Option<Bytes>, GetError> {
    let Some(identity) = archive.identity().await? else { return Ok(None) };
    let size = identity.segment_size;
    let Some((child, end)) = left_by(archive, missing, size).await? else { return Ok(None) };
    let copy = match archive.file(&WalFileName::Partial(missing)).await? {
        Some(partial) => Some(partial),
        None => match missing.number(size).and_then(|number| SegmentName::new(child, number, size)) {
            Some(first) => archive.segment(first).await?,
            None => None,
        },
    };
    let kept = usize::try_from(size.offset_of(end)).unwrap_or(0);
    let Some(kept) = copy.as_ref().and_then(|copy| copy.get(..kept)) else { return Ok(None) };
    let mut segment = vec![0; size.len()];
    for (to, from) in segment.iter_mut().zip(kept) {
        *to = *from;
    }
    Ok(Some(segment.into()))
}

/// The latest point within the segment at which an archived timeline left its timeline, and that timeline.
async fn left_by(
    archive: &Archive,
    missing: SegmentName,
    size: SegmentSize,
) -> Result<Option<(TimelineId, Lsn)>, GetError> {
    let Some(number) = missing.number(size) else { return Ok(None) };
    let mut latest: Option<(TimelineId, Lsn)> = None;
    for timeline in archive.timelines().await? {
        if timeline <= missing.timeline() {
            continue;
        }
        let Some(history) = archive.history(timeline).await? else { continue };
        let here = |end: Lsn| size.offset_of(end) > 0 && size.segment_of(end) == number;
        // The timeline's own parent is its last entry; earlier ones are in their own histories.
        if let Some(parent) = history.entries.last()
            && parent.timeline == missing.timeline()
            && here(parent.end)
            && latest.is_none_or(|(_, end)| parent.end > end)
        {
            latest = Some((timeline, parent.end));
        }
    }
    Ok(latest)
}
