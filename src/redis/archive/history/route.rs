//! The way to a state: a snapshot, and the stretches after it up to a place where the stream may be cut.

use std::time::Duration;

use jiff::Timestamp;

use super::chain::StretchChain;
use super::holes::{StreamHole, unrecorded_intervals};
use crate::redis::archive::snapshot::SnapshotManifest;
use crate::redis::archive::snapshot::missing_parts::MissingParts;
use crate::redis::archive::stream::{ArrivalMark, StreamStretch};
use crate::redis::archive::unseen_sources::UnseenSources;
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::format::resp::StreamCut;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RedisTarget {
    /// The state at a time: everything that had come by then, and nothing after.
    Time(Timestamp),
    /// The state before whatever comes after so many bytes of a history.
    Offset(ReplicationId, u64),
    /// All there is.
    Newest,
    /// A snapshot as it is.
    Snapshot,
}

/// The way to a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreRoute {
    /// The snapshot to begin with.
    pub snapshot: SnapshotManifest,
    /// The stretches to replay, in order; the first and the last perhaps in part. None if the snapshot is the target.
    pub stretches: Vec<StreamStretch>,
    /// Where the snapshot stands in the stream; `None` if it is not known to be part of one.
    pub from: Option<StreamCut>,
    /// Where the target stands.
    pub to: Option<StreamCut>,
    /// When the target's last command had come, as the receiver's clock said.
    pub at: Timestamp,
    /// When the next commands had come, if there are any: the target holds for every time before.
    pub before: Option<Timestamp>,
    /// For how long at most what had come lay unread around the target: it may lack so much more than the time since
    /// `at`.
    pub late: Duration,
    /// What is missing behind the newest moment that can be reached, if more of the stream is archived than leads
    /// there.
    pub hole: Option<StreamHole>,
    /// What could not be looked at, and may lead further.
    pub unseen: UnseenSources,
}

impl RestoreRoute {
    /// The history in which the target stands.
    #[must_use]
    pub fn replid(&self) -> Option<ReplicationId> {
        self.stretches.last().map(|stretch| stretch.replid).or(self.snapshot.replid)
    }

    /// The offset up to which the stretches before this one lead: what it has before is there already.
    #[must_use]
    pub fn stretch_start_offset(&self, number: usize) -> u64 {
        let before = number.checked_sub(1).and_then(|before| self.stretches.get(before)).map(|stretch| stretch.last);
        before.or(self.from.map(|from| from.offset)).unwrap_or_default()
    }

    /// Bytes of commands to replay.
    #[must_use]
    pub fn command_bytes(&self) -> u64 {
        self.from.zip(self.to).map_or(0, |(from, to)| to.offset.saturating_sub(from.offset))
    }
}

/// Why a state cannot be reached, and what can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnreachableState {
    /// Why, for people.
    pub reason: String,
    /// The newest reachable moment before.
    pub nearest_before: Option<Timestamp>,
    /// The oldest reachable moment after.
    pub nearest_after: Option<Timestamp>,
    /// What could not be looked at, and may lead there.
    pub unseen: UnseenSources,
}

impl UnreachableState {
    /// Nothing near it is known to be reachable.
    pub(super) fn because(reason: String) -> UnreachableState {
        UnreachableState { reason, nearest_before: None, nearest_after: None, unseen: UnseenSources::default() }
    }

    /// The same, with the snapshots that could not be used.
    pub(super) fn explain_missing_parts(mut self, lacking: &MissingParts) -> UnreachableState {
        for (label, what) in lacking {
            self.reason.push_str(&format!("; snapshot {label} cannot be used, for {what}"));
        }
        self
    }
}

pub(super) fn route_to_snapshot(snapshot: &SnapshotManifest) -> RestoreRoute {
    let cut = snapshot.offset.map(|offset| StreamCut { offset, db: snapshot.db });
    let (at, stretches) = (snapshot.at, Vec::new());
    let late = Duration::ZERO;
    let unseen = UnseenSources::default();
    RestoreRoute {
        snapshot: snapshot.clone(),
        stretches,
        from: cut,
        to: cut,
        at,
        before: None,
        late,
        hole: None,
        unseen,
    }
}

/// Where a way ends before the time that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChainTooShort {
    /// The last moment before that is known.
    pub(super) followed_to: Timestamp,
    /// The first moment after, if the stream was only paused.
    pub(super) followed_from: Option<Timestamp>,
}

/// The target on the way: at a time, or at its end.
pub(super) fn cut_chain_at(
    snapshot: &SnapshotManifest,
    way: StretchChain,
    time: Option<Timestamp>,
) -> Result<RestoreRoute, ChainTooShort> {
    let base = route_to_snapshot(snapshot);
    let ends = |followed_to| ChainTooShort { followed_to, followed_from: None };
    let Some(from) = base.from else {
        return if time.is_none_or(|time| time == snapshot.at) { Ok(base) } else { Err(ends(snapshot.at)) };
    };
    if let Some(time) = time
        && let Some((to, again)) = unrecorded_intervals(snapshot, &way.stretches)
            .into_iter()
            .find(|(to, again)| (*to < time) && (time < *again))
    {
        // The first microsecond that is not before.
        let again = Timestamp::from_microsecond(again.as_microsecond().saturating_add(1)).unwrap_or(again);
        return Err(ChainTooShort { followed_to: to, followed_from: Some(again) });
    }
    let ended_at = way.stretches.iter().map(|stretch| stretch.ended_at).max().unwrap_or(snapshot.at).max(snapshot.at);
    let mut best: Option<(usize, ArrivalMark)> = None;
    let mut before = None;
    let mut next = way.stretches.len();
    for (nth, mark) in way.marks(from.offset) {
        if time.is_some_and(|time| mark.time > time) {
            (before, next) = (Some(mark.time), nth);
            break;
        }
        best = Some((nth, *mark));
    }
    // What lay unread at the target stands in what was read next.
    let around = way.stretches.iter().take(next.saturating_add(1)).skip(best.map_or(0, |(nth, _)| nth));
    let late = around.filter_map(|stretch| stretch.reading.as_ref()).map(|reading| reading.late_ms).max();
    let late = Duration::from_millis(u64::from(late.unwrap_or(0)));
    if let (Some(time), None) = (time, before)
        && ended_at < time
    {
        return Err(ends(ended_at));
    }
    let Some((nth, mark)) = best else { return Ok(RestoreRoute { before, late, ..base }) };
    let mut stretches = way.stretches;
    stretches.truncate(nth.saturating_add(1));
    let to = Some(StreamCut { offset: mark.offset, db: mark.db });
    Ok(RestoreRoute { stretches, to, at: mark.time, before, late, ..base })
}
