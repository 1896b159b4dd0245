//! Where commands are missing: a stretch that goes on neither from the one before nor from a snapshot, and no break is
//! recorded that says why.

use jiff::Timestamp;

use crate::redis::archive::{SnapshotManifest, StreamStretch};
use crate::redis::format::replication_id::ReplicationId;

/// Where a stretch ended, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct StretchEnd {
    pub(super) replid: ReplicationId,
    pub(super) offset: u64,
    pub(super) at: Timestamp,
}

/// A recorded break: the history, and the offset up to which it is whole.
pub(super) type GapPosition = (ReplicationId, u64);

/// Commands that are in no repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MissingCommands {
    pub(super) replid: ReplicationId,
    /// The offset after what comes before; `None` if nothing of that history does.
    pub(super) from: Option<u64>,
    /// The offset before what comes after.
    pub(super) to: u64,
    /// When what comes before had come.
    pub(super) since: Timestamp,
}

/// What is missing before a stretch that does not go on from the one before. `is_first` says that it is the first there
/// is of its history.
pub(super) fn find_missing_before(
    stretch: &StreamStretch,
    is_first: bool,
    before: Option<StretchEnd>,
    snapshots: &[SnapshotManifest],
    breaks: &[GapPosition],
) -> Option<MissingCommands> {
    let (replid, first) = (stretch.replid, stretch.first);
    let is_recorded = |end: &StretchEnd| {
        let follows = |offset: u64| offset >= end.offset && (end.replid != replid || offset <= first);
        breaks.iter().any(|(broken, offset)| *broken == end.replid && follows(*offset))
    };
    // The stream is followed from a snapshot on.
    let based = snapshots.iter().filter(|snapshot| snapshot.replid == Some(replid)).filter_map(|snapshot| {
        let offset = snapshot.offset.filter(|offset| *offset <= first)?;
        Some(StretchEnd { replid, offset, at: snapshot.at })
    });
    let based = based.max_by_key(|base| base.offset);
    let between = |end: StretchEnd, to| {
        (end.offset < to).then_some(MissingCommands { replid: end.replid, from: Some(end.offset), to, since: end.at })
    };
    let beginning = |end: StretchEnd, replid, to| MissingCommands { replid, from: None, to, since: end.at };
    match (before, stretch.follows) {
        (Some(end), _) if end.replid == replid && is_recorded(&end) => {
            between(based.filter(|base| base.offset > end.offset)?, first)
        }
        (Some(end), _) if end.replid == replid => between(end, first),
        (Some(end), Some(follows)) if !is_recorded(&end) => {
            if end.replid == follows.replid {
                between(end, follows.offset)
            } else {
                Some(beginning(end, follows.replid, follows.offset))
            }
        }
        (end, None) if is_first => match based {
            Some(base) => between(base, first),
            None => end.filter(|end| !is_recorded(end)).map(|end| beginning(end, replid, first)),
        },
        _ => None,
    }
}
