//! Which snapshots stay and which go, and what of the stream they need. Pure: values in, values out.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::redis::archive::stream::PreviousHistory;
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::retention::{KeepReason, before_window};

/// A snapshot, as far as retention cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetentionSnapshot {
    /// Its name.
    pub label: String,
    /// The moment whose state it holds.
    pub at: Timestamp,
    /// Where in which history that is, if it is part of one.
    pub place: Option<(ReplicationId, u64)>,
    /// Whether all of it is there.
    pub whole: bool,
    /// Whether the instance sent it; what was read from a file may be another server's.
    pub own: bool,
}

/// What is decided from.
#[derive(Clone, Copy, Debug)]
pub struct RetentionInput<'a> {
    /// All snapshots.
    pub snapshots: &'a [RetentionSnapshot],
    /// Of each history the stretches, by the offset before their first byte, with the moment at which they arrived.
    pub stretches: &'a BTreeMap<ReplicationId, BTreeMap<u64, Timestamp>>,
    /// Which history goes on from which.
    pub follows: &'a BTreeMap<ReplicationId, PreviousHistory>,
    /// Histories of which it is not known from which they go on.
    pub unknown: &'a BTreeSet<ReplicationId>,
    /// Where the window begins.
    pub since: Timestamp,
}

impl RetentionInput<'_> {
    /// Whether the state at `from` is a state on the way to `to`.
    fn history_leads_to(&self, from: (ReplicationId, u64), to: (ReplicationId, u64)) -> bool {
        let (mut replid, mut offset) = to;
        // No history goes on from itself; should a record say so, this ends nevertheless.
        for _ in 0..=self.follows.len() {
            if replid == from.0 {
                return from.1 <= offset;
            }
            let Some(follows) = self.follows.get(&replid) else { return false };
            (replid, offset) = (follows.replid, follows.offset.min(offset));
        }
        false
    }
}

/// What stays and what goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RetentionDecision {
    /// Snapshots that stay.
    pub keep: BTreeMap<String, KeepReason>,
    /// Snapshots that go, oldest first.
    pub expire: Vec<String>,
    since: Timestamp,
    /// Of each history, the offset from which on everything is needed.
    floors: BTreeMap<ReplicationId, u64>,
    unknown: BTreeSet<ReplicationId>,
}

impl RetentionDecision {
    /// Whether a stretch may go that ends there, if it is known where.
    #[must_use]
    pub fn may_remove(&self, replid: ReplicationId, end: Option<u64>, arrived: Timestamp) -> bool {
        // Without a snapshot there is no telling what somebody restores from.
        let any = !self.keep.is_empty();
        let young = arrived >= before_window(self.since);
        let needed = match self.floors.get(&replid) {
            Some(floor) => end.is_none_or(|end| end > *floor),
            None => self.unknown.contains(&replid),
        };
        any && !young && !needed
    }
}

/// Decides.
#[must_use]
pub fn decide_instance_retention(world: RetentionInput<'_>) -> RetentionDecision {
    let begin = before_window(world.since);
    let mut old: Vec<&RetentionSnapshot> = world.snapshots.iter().filter(|base| base.at < begin).collect();
    old.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.label.cmp(&b.label)));
    let mut verdict =
        RetentionDecision { since: world.since, unknown: world.unknown.clone(), ..RetentionDecision::default() };
    for base in world.snapshots.iter().filter(|base| base.at >= begin) {
        verdict.keep.insert(base.label.clone(), KeepReason::Young);
    }
    // One that is not whole takes the place of none.
    let whole = || old.iter().rev().filter(|base| base.whole);
    let lives = |stretches: &BTreeMap<u64, Timestamp>| stretches.values().any(|arrived| *arrived >= begin);
    let living = world.stretches.iter().filter(|(_, stretches)| lives(stretches)).map(|(replid, _)| *replid);
    let anchor =
        |replid| whole().find(|base| base.place.is_some_and(|place| world.history_leads_to(place, (replid, u64::MAX))));
    let anchors: Vec<&&RetentionSnapshot> =
        living.filter_map(anchor).chain(whole().next()).chain(whole().find(|base| base.own)).collect();
    verdict.keep.extend(anchors.iter().map(|base| (base.label.clone(), KeepReason::Anchor)));
    if verdict.keep.is_empty() {
        // Nothing is whole: nobody knows what may be of use yet.
        verdict.keep.extend(old.iter().map(|base| (base.label.clone(), KeepReason::Irreplaceable)));
    }
    verdict.expire =
        old.iter().filter(|base| !verdict.keep.contains_key(&base.label)).map(|base| base.label.clone()).collect();
    for base in world.snapshots.iter().filter(|base| verdict.keep.contains_key(&base.label)) {
        let Some((replid, offset)) = base.place else { continue };
        let mut need = |replid: ReplicationId, from: u64| {
            verdict.floors.entry(replid).and_modify(|floor| *floor = from.min(*floor)).or_insert(from);
        };
        need(replid, offset);
        let behind = world.stretches.keys().filter(|history| **history != replid);
        for history in behind.filter(|history| world.history_leads_to((replid, offset), (**history, u64::MAX))) {
            need(*history, 0);
        }
    }
    verdict
}
