//! The tail of a timeline that ended in the middle of a segment.
//!
//! On promotion PostgreSQL renames the old timeline's last segment to `.partial` and copies it, up to the switch point,
//! into the first segment of the new timeline (`CleanupAfterArchiveRecovery`, `XLogInitNewTimeline` in `xlog.c`).
//! Recovery along the old timeline asks for neither, and so loses the transactions in that tail. Here the segment is
//! put together under its old name: the bytes up to the switch point, then zeros, where replay ends. Where both copies
//! are there they must be equal.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::unfinished::UnfinishedSegment;
use super::{Archive, ArchiveError};
use crate::base::blocking::run_blocking;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize, SystemId, WalFileName};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::index::{self, IndexView, SegmentId};
use crate::postgres::wal::digest::digest_segment;

/// The end of a timeline, under the name of the segment that it never completed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineTail {
    /// Its bytes, filled up with zeros.
    pub bytes: Bytes,
    /// Where it ends: the switch point.
    pub end: Lsn,
}

/// Where a timeline was left, and the timelines whose first segments hold a copy up to there.
struct SwitchPoint {
    end: Lsn,
    copies: Vec<TimelineId>,
}

impl Archive {
    /// The tail under the name `missing`; `None` if no archived timeline left its timeline within that segment, or its
    /// bytes are not there.
    ///
    /// # Errors
    /// The repositories could not say; [`ArchiveError::TailsDiffer`] where the two copies differ.
    pub async fn timeline_tail(&self, missing: SegmentName) -> Result<Option<TimelineTail>, ArchiveError> {
        let Some(identity) = self.identity().await? else { return Ok(None) };
        let mut histories = Vec::new();
        for timeline in self.timelines().await?.into_iter().filter(|timeline| *timeline > missing.timeline()) {
            histories.extend(self.history(timeline).await?);
        }
        let Some(left) = switch_point_in(&histories, missing, identity.segment_size) else {
            self.ensure_all_reachable()?;
            return Ok(None);
        };
        let partial = self.file(&WalFileName::Partial(missing)).await?;
        let copy = self.read_copy_of_tail(&left, missing, identity.segment_size).await?;
        let kept = |bytes: &Bytes| zeroed_from(bytes, left.end, identity.segment_size);
        let bytes = match (partial.as_ref().and_then(kept), copy.as_ref().and_then(kept)) {
            (Some(partial), Some(copy)) if partial != copy => {
                return Err(ArchiveError::TailsDiffer { name: missing.to_string(), end: left.end });
            }
            (Some(bytes), _) | (None, Some(bytes)) => bytes,
            (None, None) => return Ok(None),
        };
        Ok(Some(TimelineTail { bytes, end: left.end }))
    }

    /// The first segment, of the timelines that begin with a copy, that is there.
    async fn read_copy_of_tail(
        &self,
        left: &SwitchPoint,
        missing: SegmentName,
        size: SegmentSize,
    ) -> Result<Option<Bytes>, ArchiveError> {
        for child in &left.copies {
            let first = missing.number(size).and_then(|number| SegmentName::new(*child, number, size));
            if let Some(first) = first
                && let Some(bytes) = self.segment(first).await?
            {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The tails that are archived as `.partial` alone, because no timeline with a copy has completed its first segment
    /// yet: after a promotion that is so for a while. They are read and digested, as those that still grow are
    /// ([`super::unfinished`]).
    ///
    /// # Errors
    /// The repositories could not say. What can't be understood is left out with a warning.
    pub async fn tails_in_partial(
        &self,
        names: &[SegmentName],
        system: SystemId,
    ) -> Result<Vec<UnfinishedSegment>, ArchiveError> {
        let Some(identity) = self.identity().await? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for name in names {
            let Some(tail) = self.timeline_tail(*name).await? else { continue };
            let (bytes, of) = (tail.bytes.clone(), *name);
            match run_blocking(move || digest_segment(&bytes, of, identity.segment_size)).await? {
                Ok(digest) if digest.system_id == system => {
                    found.push(UnfinishedSegment { name: of, bytes: tail.bytes, digest })
                }
                Ok(_foreign) => tracing::warn!(segment = %name, "the .partial is another cluster's"),
                Err(error) => tracing::warn!(segment = %name, %error, "the .partial cannot be understood"),
            }
        }
        Ok(found)
    }
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

/// The latest point within the segment at which its timeline was left.
fn switch_point_in(histories: &[TimelineHistory], missing: SegmentName, size: SegmentSize) -> Option<SwitchPoint> {
    let number = missing.number(size)?;
    let copies: Vec<(TimelineId, Lsn)> = histories
        .iter()
        .flat_map(|history| history.copied_tails(size).map(move |(parent, end)| (parent, history.timeline, end)))
        .filter(|(parent, _, end)| *parent == missing.timeline() && size.segment_of(*end) == number)
        .map(|(_, child, end)| (child, end))
        .collect();
    let end = copies.iter().map(|(_, end)| *end).max()?;
    Some(SwitchPoint { end, copies: copies.into_iter().filter(|(_, at)| *at == end).map(|(child, _)| child).collect() })
}

/// The bytes before `end`, then zeros.
fn zeroed_from(bytes: &Bytes, end: Lsn, size: SegmentSize) -> Option<Bytes> {
    let kept = bytes.get(..usize::try_from(size.offset_of(end)).ok()?)?;
    let mut segment = BytesMut::from(kept);
    segment.resize(size.len(), 0);
    Some(segment.freeze())
}
