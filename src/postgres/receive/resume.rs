//! Where receiving continues: at the first segment that the repository and the spool do not have ([`archived_path`]).
//! If both are empty, where the slot begins, or else at the server's own position.
//!
//! `IDENTIFY_SYSTEM` alone would skip whatever the server wrote while nobody listened, so it is asked only where there
//! is no archive yet.

use std::sync::Arc;

use bytes::Bytes;

use super::archived_path;
use super::error::ReceiveError;
use super::intake::IntakeStart;
use super::resume_context::ResumeContext;
use super::segment_uploads::SegmentUploads;
use crate::base::clock::ClockMeasurement;
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, ArchiveError};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
use crate::postgres::format::timeline::{TimelineId, TimelinePath};
use crate::postgres::wire::ReplicationConnection;

/// Archives the history of every timeline on the server's path that has one and is not archived yet, and gives the
/// path.
///
/// A history comes before any WAL of its timeline: without it that WAL can't be placed.
pub(super) async fn learn_path(
    connection: &mut ReplicationConnection,
    archive: &Archive,
    timeline: TimelineId,
) -> Result<TimelinePath, ReceiveError> {
    if timeline == TimelineId::FIRST {
        return Ok(TimelinePath::first());
    }
    let (_, text) = connection.timeline_history(timeline).await?;
    let history = parse_history(timeline, &text)?;
    for ancestor in history.path().spans().iter().map(|span| span.timeline) {
        if ancestor == timeline || ancestor == TimelineId::FIRST {
            continue;
        }
        match archive.history(ancestor).await {
            Ok(Some(_)) => continue,
            // Stored again if an unreachable repository alone has it.
            Ok(None) => {}
            Err(ArchiveError::Vault(error)) if error.may_pass() => {}
            Err(error) => return Err(error.into()),
        }
        // A server that was made from a backup may lack the files of its ancestors; its own names them all.
        match connection.timeline_history(ancestor).await {
            Ok((_, text)) => drop(archive.put_file(&WalFileName::History(ancestor), text).await?),
            Err(error) if error.is_no_history() => {
                tracing::info!(%ancestor, error = &error as &dyn std::error::Error, "the server has no history of an ancestor");
            }
            Err(error) => return Err(error.into()),
        }
    }
    archive.put_file(&WalFileName::History(timeline), text).await?;
    Ok(history.path())
}

fn parse_history(
    timeline: TimelineId,
    text: &Bytes,
) -> Result<crate::postgres::format::timeline::TimelineHistory, ReceiveError> {
    let text = std::str::from_utf8(text).map_err(|_binary| ReceiveError::WrongHistory(timeline))?;
    Ok(crate::postgres::format::timeline::TimelineHistory::parse(timeline, text)?)
}

/// Finds where to go on, sends whole spooled segments on their way, and puts what is spooled of other timelines where
/// it belongs.
pub(super) async fn find_start(
    archive: &Arc<Archive>,
    spool: &Spool,
    known: &ResumeContext,
    uploads: &mut SegmentUploads,
) -> Result<IntakeStart, ReceiveError> {
    let listed = {
        let spool = spool.clone();
        tokio::task::spawn_blocking(move || spool.list_segments())
            .await
            .map_err(|_panic| ReceiveError::WorkerLost)??
    };
    let (timeline, first) = match archived_path::first_missing(archive, known, spool, &listed).await? {
        Some(found) => found,
        None => {
            let position = known.slot.and_then(|slot| slot.restart).unwrap_or(known.identity.flushed);
            (known.path.timeline_at(position), known.size.segment_of(position))
        }
    };
    let missing = FirstMissing { timeline, segment: first };
    let mut next = first;
    while let Some(name) = SegmentName::new(timeline, next, known.size).filter(|name| listed.contains(name)) {
        let (of_task, size) = (spool.clone(), known.size);
        let opened = tokio::task::spawn_blocking(move || of_task.open_for_append(name, size)).await;
        let (tail, bytes) = opened.map_err(|_panic| ReceiveError::WorkerLost)??;
        if bytes.len() < known.size.len() {
            settle_leftovers(archive, spool, known, &listed, missing, Some(name)).await?;
            return Ok(IntakeStart { timeline, segment: next, unarchived: first, spooled: Some((tail, bytes)) });
        }
        uploads.push_spooled(name);
        next = next.next();
    }
    settle_leftovers(archive, spool, known, &listed, missing, None).await?;
    // Whole segments that are only spooled yet are durable here; the stream goes on after them.
    Ok(IntakeStart { timeline, segment: next, unarchived: first, spooled: None })
}

/// What was measured of the server's clock for the segment under way, as far as its pieces tell. Nothing depends on it
/// that could not wait.
pub(super) async fn read_clock_measurements(
    archive: &Archive,
    beginning: &IntakeStart,
    size: SegmentSize,
) -> Vec<ClockMeasurement> {
    let Some(name) = SegmentName::new(beginning.timeline, beginning.segment, size) else { return Vec::new() };
    let found = archive.clock_measurements(name).await;
    found
        .inspect_err(|error| tracing::debug!(%error, "what was measured of the server's clock is not read"))
        .unwrap_or_default()
}

/// Up to where two ways through the timelines are one, if ours has come to `position`.
pub(super) fn common_end(ours: &TimelinePath, position: Lsn, theirs: &TimelinePath) -> Lsn {
    let shared =
        ours.spans().iter().zip(theirs.spans()).take_while(|(our, their)| our.timeline == their.timeline).last();
    let Some((our, their)) = shared else { return Lsn::INVALID };
    let end = |span: Option<Lsn>| span.unwrap_or(Lsn::MAX);
    position.min(end(our.end)).min(end(their.end))
}

/// The first segment that no repository has, on the timeline that is received.
#[derive(Clone, Copy)]
struct FirstMissing {
    timeline: TimelineId,
    segment: SegmentNo,
}

/// What is spooled and is not going to be continued: archived segments are removed from the spool, anything else is
/// archived first.
async fn settle_leftovers(
    archive: &Arc<Archive>,
    spool: &Spool,
    known: &ResumeContext,
    listed: &[SegmentName],
    missing: FirstMissing,
    kept: Option<SegmentName>,
) -> Result<(), ReceiveError> {
    for name in listed.iter().copied().filter(|name| Some(*name) != kept) {
        let number = name.number(known.size);
        if name.timeline() == missing.timeline && number.is_some_and(|number| number >= missing.segment) {
            let contiguous = kept.and_then(|kept| kept.number(known.size)).is_none_or(|end| number < Some(end));
            if contiguous {
                continue;
            }
        }
        let (of_task, size) = (spool.clone(), known.size);
        let read = tokio::task::spawn_blocking(move || of_task.read_leftover(name, size)).await;
        let bytes = read.map_err(|_panic| ReceiveError::WorkerLost)??;
        archive_tail(archive, name, bytes, known.size).await?;
        let of_task = spool.clone();
        tokio::task::spawn_blocking(move || of_task.remove_segment(name))
            .await
            .map_err(|_panic| ReceiveError::WorkerLost)??;
    }
    Ok(())
}

/// Archives what has come of a segment that will not be continued. A whole one goes under its own name; a part of one
/// under the segment's name and its own length, `….00A2B0C8.tail`: PostgreSQL may archive a `.partial` of the same
/// segment with other bytes behind the end, so that name is left to it.
pub(super) async fn archive_tail(
    archive: &Arc<Archive>,
    name: SegmentName,
    bytes: Bytes,
    size: SegmentSize,
) -> Result<(), ReceiveError> {
    if bytes.is_empty() {
        return Ok(());
    }
    if bytes.len() == size.len() {
        archive.put_segment(name, bytes).await?;
        return Ok(());
    }
    let file = WalFileName::Tail { segment: name, len: u32::try_from(bytes.len()).unwrap_or(u32::MAX) };
    tracing::info!(
        segment = %name, bytes = bytes.len(), file = %file,
        "archiving the beginning of a segment whose rest will not be received"
    );
    archive.put_file(&file, bytes).await?;
    Ok(())
}

/// Where a gap ends, and how to continue after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GapEnd {
    /// The server still has the WAL from the start of this segment on.
    OnServer(TimelineId, SegmentNo),
    /// This segment is archived: the gap was a hole.
    Archived(SegmentNo),
}

/// Where a gap that begins at `lost_from` ends: at the first segment that is archived, or that the server can still
/// send. That is what the slot holds, or, without one, where the server is now.
pub(super) async fn find_gap_end(
    archive: &Archive,
    known: &ResumeContext,
    lost_from: Lsn,
) -> Result<GapEnd, ReceiveError> {
    let restart = known.slot.and_then(|slot| slot.restart).filter(|restart| *restart > lost_from);
    let position = restart.unwrap_or(known.identity.flushed);
    let (timeline, segment) = (known.path.timeline_at(position), known.size.segment_of(position));
    let archived = archived_path::next_archived(archive, known, known.size.segment_of(lost_from)).await?;
    Ok(match archived {
        Some((_, archived)) if archived <= segment => GapEnd::Archived(archived),
        _ => GapEnd::OnServer(timeline, segment),
    })
}

#[cfg(test)]
mod tests {
    use super::common_end;
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};

    fn path(timeline: u32, forks: &str) -> TimelinePath {
        TimelineHistory::parse(TimelineId::new(timeline).unwrap(), forks).unwrap().path()
    }

    #[test]
    fn two_ways_part_at_the_earlier_fork() {
        let one = TimelinePath::first();
        let two = path(2, "1\t0/3000\tx\n");
        let three = path(3, "1\t0/2000\tx\n");
        let four = path(4, "1\t0/3000\tx\n2\t0/5000\tx\n");
        for (ours, position, theirs, expected) in [
            (&one, 0x1000, &one, 0x1000),
            (&one, 0x1000, &two, 0x1000),
            (&one, 0x4000, &two, 0x3000),
            (&two, 0x4000, &three, 0x2000),
            (&two, 0x4000, &four, 0x4000),
            (&two, 0x6000, &four, 0x5000),
            (&four, 0x9000, &two, 0x5000),
            (&two, 0x2800, &two, 0x2800),
        ] {
            assert_eq!(common_end(ours, Lsn::new(position), theirs), Lsn::new(expected));
        }
    }
}
