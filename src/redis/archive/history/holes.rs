//! Where commands are missing: parts of the stream that are not archived, and times that nobody recorded.

use jiff::{SignedDuration, Timestamp};

use super::known_stretches::KnownStretches;
use crate::redis::archive::gaps::Gap;
use crate::redis::archive::snapshot::SnapshotManifest;
use crate::redis::archive::stream::{StreamStretch, StretchName};
use crate::redis::format::replication_id::ReplicationId;

/// A server that has nothing to say says so every ten seconds (`repl-ping-replica-period`).
const MAX_SERVER_SILENCE: SignedDuration = SignedDuration::from_secs(15);

/// What a server has kept is sent as soon as it is asked for.
const BACKLOG_TRANSFER_TIME: SignedDuration = SignedDuration::from_secs(3);

/// A part of the stream that is missing between what is archived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamHole {
    /// The history.
    pub replid: ReplicationId,
    /// The offset up to which it is whole.
    pub from: u64,
    /// The offset from which on it is archived again; `None` if the stretch there does not open.
    pub to: Option<u64>,
}

impl std::fmt::Display for StreamHole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let StreamHole { replid, from, to } = self;
        match to {
            Some(to) => write!(f, "what lies between offset {from} and {to} of history {replid} is missing"),
            None => write!(f, "the stretch behind offset {from} of history {replid} is damaged"),
        }
    }
}

impl StreamHole {
    /// Whether it is known how it came about: a break was recorded there, or receiving began only behind it, with a
    /// snapshot of its own.
    #[must_use]
    pub fn is_explained(&self, snapshots: &[SnapshotManifest], gaps: &[Gap]) -> bool {
        let begun = |snapshot: &SnapshotManifest| snapshot.replid == Some(self.replid) && snapshot.offset == self.to;
        let broken = |gap: &Gap| (gap.replid, gap.offset) == (self.replid, self.from);
        self.to.is_some() && (snapshots.iter().any(begun) || gaps.iter().any(broken))
    }
}

impl KnownStretches {
    /// Whether all of that is in this machine's spool: on its way to a repository that was away.
    #[must_use]
    pub fn is_spooled(&self, hole: &StreamHole) -> bool {
        let Some(to) = hole.to else { return false };
        let mut at = hole.from;
        while at < to {
            let before = self.spooled.range(..=StretchName { replid: hole.replid, first: at }).next_back();
            match before.filter(|(name, stretch)| name.replid == hole.replid && stretch.last > at) {
                Some((_, stretch)) => at = stretch.last,
                None => return false,
            }
        }
        true
    }
}

/// Times at which nobody can say what was there, in order, each with when it was known again: what had been written
/// meanwhile came all at once when the stream was followed again, or read again by a receiver that was held up.
#[must_use]
pub fn unrecorded_intervals(snapshot: &SnapshotManifest, stretches: &[StreamStretch]) -> Vec<(Timestamp, Timestamp)> {
    let mut all = Vec::new();
    let (mut before, mut led_to) = (snapshot.at, snapshot.offset.unwrap_or(0));
    for stretch in stretches {
        all.extend(untimed_interval(stretch, before, led_to));
        let held_up = stretch.reading.as_ref().filter(|_| stretch.writes > 0);
        all.extend(held_up.into_iter().flat_map(|reading| reading.held_up.iter().copied()));
        (before, led_to) = (stretch.ended_at, stretch.last);
    }
    all.sort_unstable();
    let mut apart: Vec<(Timestamp, Timestamp)> = Vec::new();
    for (to, again) in all.into_iter().map(|(to, again)| (to.max(snapshot.at), again)).filter(|(to, again)| to < again)
    {
        match apart.last_mut().filter(|(_, end)| to <= *end) {
            Some((_, end)) => *end = again.max(*end),
            None => apart.push((to, again)),
        }
    }
    apart
}

/// The time that lies between a stretch and what is there before it, which leads to an offset, if anything was written
/// in it.
fn untimed_interval(stretch: &StreamStretch, before: Timestamp, led_to: u64) -> Option<(Timestamp, Timestamp)> {
    let began = stretch.started_at;
    match stretch.missed {
        // The first versions did not say how far the server had come.
        None => {
            let at_once =
                || stretch.marks.first().is_none_or(|mark| mark.time.duration_since(began) <= BACKLOG_TRANSFER_TIME);
            (began.duration_since(before) > MAX_SERVER_SILENCE && stretch.writes > 0 && at_once())
                .then_some((before, began))
        }
        Some(missed) if missed.writes > 0 && missed.until > led_to => {
            let caught_up = stretch.marks.iter().find(|mark| mark.offset >= missed.until);
            Some((before, caught_up.map_or(stretch.ended_at, |mark| mark.time)))
        }
        Some(_) => None,
    }
}
