//! From a moment to what leads there: a snapshot, and the stream behind it up to a place where it may be cut.
//!
//! What the stream had brought by a time is told by its marks, in the order of the stream: the target is the last mark before the first one that
//! is later than the time asked for. So a clock that was set back makes the target earlier, never one that holds what came after.
//! A time counts as covered only if something shows that the stream was followed at that time ([`unrecorded_intervals`]) and beyond it. Every stretch on the
//! way is looked at: a hole between two of them, or one that is damaged, ends the way there.

pub mod last_command;
pub(crate) mod offset_target;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use super::snapshot::missing_parts::MissingParts;
use super::snapshot::{SnapshotManifest, SnapshotOrigin};
use super::stream::spool::{Spool, SpooledStretch};
use super::stream::{ArrivalMark, StreamStretch};
use super::{Archive, Gap, UnreachableRepositories};
use crate::redis::format::resp::StreamCut;
use crate::redis::wire::ReplicationId;
use crate::vault::VaultError;

/// Stretches asked about at once.
const MAX_PARALLEL_STRETCH_READS: usize = 16;
/// Stretches that may begin within another one: as many as a second receiver cuts whose connection breaks four times a second, in the half minute
/// that a stretch with writes takes.
const MAX_OVERLAPPING_STRETCHES: usize = 128;
/// A server that has nothing to say says so every ten seconds (`repl-ping-replica-period`).
const MAX_SERVER_SILENCE: SignedDuration = SignedDuration::from_secs(15);

/// What a server has kept is sent as soon as it is asked for.
const BACKLOG_TRANSFER_TIME: SignedDuration = SignedDuration::from_secs(3);

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
    /// For how long at most what had come lay unread around the target: it may lack so much more than the time since `at`.
    pub late: Duration,
    /// What is missing behind the newest moment that can be reached, if more of the stream is archived than leads there.
    pub hole: Option<StreamHole>,
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
}

impl UnreachableState {
    /// The same, with the snapshots that could not be used.
    fn explain_missing_parts(mut self, lacking: &MissingParts) -> UnreachableState {
        for (label, what) in lacking {
            self.reason.push_str(&format!("; snapshot {label} cannot be used, for {what}"));
        }
        self
    }
}

/// What this machine's spool has, by name.
type SpooledStretches = BTreeMap<(ReplicationId, u64), StreamStretch>;

/// All stretches by name, and what this machine's spool adds.
#[derive(Clone, Debug)]
pub struct KnownStretches {
    stretch_firsts: BTreeMap<ReplicationId, Vec<u64>>,
    spooled: SpooledStretches,
    unreachable: UnreachableRepositories,
}

impl KnownStretches {
    /// The histories, each with the offsets before the first bytes of its stretches, in order.
    pub fn histories(&self) -> impl Iterator<Item = (ReplicationId, &[u64])> {
        self.stretch_firsts.iter().map(|(replid, firsts)| (*replid, firsts.as_slice()))
    }

    /// The repositories that may have more.
    #[must_use]
    pub fn unreachable(&self) -> &UnreachableRepositories {
        &self.unreachable
    }

    /// Where stretches begin that may hold the byte after `offset`, in order.
    fn firsts_up_to(&self, replid: ReplicationId, offset: u64) -> std::slice::Iter<'_, u64> {
        let firsts = self.stretch_firsts.get(&replid).map(Vec::as_slice).unwrap_or_default();
        let end = firsts.partition_point(|first| *first <= offset);
        firsts.get(..end).unwrap_or_default().iter()
    }

    /// Whether all of that is in this machine's spool: on its way to a repository that was away.
    #[must_use]
    pub fn is_spooled(&self, hole: &StreamHole) -> bool {
        let Some(to) = hole.to else { return false };
        let mut at = hole.from;
        while at < to {
            let before = self.spooled.range(..=(hole.replid, at)).next_back();
            match before.filter(|((replid, _), stretch)| *replid == hole.replid && stretch.last > at) {
                Some((_, stretch)) => at = stretch.last,
                None => return false,
            }
        }
        true
    }

    /// What is missing where a way ends; nothing if nothing of that history comes after it.
    fn find_hole_after(&self, snapshot: &SnapshotManifest, way: &StretchChain) -> Option<StreamHole> {
        let end = way.stretches.last().map(|stretch| (stretch.replid, stretch.last));
        let (replid, from) = end.or(snapshot.replid.zip(snapshot.offset))?;
        if way.damaged {
            return Some(StreamHole { replid, from, to: None });
        }
        let next = self.stretch_firsts.get(&replid)?.iter().find(|first| **first > from)?;
        Some(StreamHole { replid, from, to: Some(*next) })
    }
}

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
    /// Whether it is known how it came about: a break was recorded there, or receiving began only behind it, with a snapshot of its own.
    #[must_use]
    pub fn is_explained(&self, snapshots: &[SnapshotManifest], gaps: &[Gap]) -> bool {
        let begun = |snapshot: &SnapshotManifest| snapshot.replid == Some(self.replid) && snapshot.offset == self.to;
        let broken = |gap: &Gap| (gap.replid, gap.offset) == (self.replid, self.from);
        self.to.is_some() && (snapshots.iter().any(begun) || gaps.iter().any(broken))
    }
}

/// How far the stream leads from a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct StretchChain {
    pub(super) stretches: Vec<StreamStretch>,
    /// The stretch behind the last one does not open.
    pub(super) damaged: bool,
}

/// How far a way is followed.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChainLimit {
    End,
    /// Until a stretch begins later.
    Time(Timestamp),
    /// Until a stretch ends beyond it.
    Offset(u64),
}

impl ChainLimit {
    fn is_beyond(self, stretch: &StreamStretch) -> bool {
        match self {
            ChainLimit::End => false,
            ChainLimit::Time(time) => stretch.started_at > time,
            ChainLimit::Offset(offset) => stretch.last > offset,
        }
    }
}

impl StretchChain {
    /// The marks behind an offset. Where a stretch begins before the one ahead of it ends, those of that one count.
    fn marks(&self, from: u64) -> impl Iterator<Item = (usize, &ArrivalMark)> {
        let led_to = std::iter::once(from).chain(self.stretches.iter().map(|stretch| stretch.last));
        self.stretches.iter().zip(led_to).enumerate().flat_map(move |(nth, (stretch, led_to))| {
            let new = stretch.marks.iter().filter(move |mark| mark.offset > led_to.max(from));
            new.map(move |mark| (nth, mark))
        })
    }
}

impl Archive {
    /// [`Archive::resolve_target`] as far as the repositories tell that answer. Notes the others.
    pub(super) async fn find_route(
        &self,
        wanted: RedisTarget,
        from: Option<&str>,
        unasked: &mut UnreachableRepositories,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let (mut snapshots, damaged) = self.read_snapshots_and_damaged(unasked).await?;
        snapshots.retain(|snapshot| from.is_none_or(|label| snapshot.label == label));
        for snapshot in &mut snapshots {
            // Times are written and read to the microsecond, and a time that is named must be one that is reached.
            snapshot.at = Timestamp::from_microsecond(snapshot.at.as_microsecond()).unwrap_or(snapshot.at);
        }
        let newest_damaged = damaged.keys().next_back().filter(|label| from.is_none_or(|from| from == *label));
        // As it is, the newest one is meant and no other.
        let passed_over = newest_damaged > snapshots.iter().map(|snapshot| &snapshot.label).max();
        if from.is_none() {
            remove_foreign_snapshots(&mut snapshots);
        }
        snapshots.sort_by_key(|snapshot| snapshot.at);
        let mut lacking = self.find_missing_parts_in_reachable(&snapshots, unasked).await?;
        let unfit = |snapshot: &SnapshotManifest| lacking.contains_key(&snapshot.label);
        let meant = wanted == RedisTarget::Snapshot && (passed_over || snapshots.last().is_some_and(unfit));
        let none = !snapshots.is_empty() && snapshots.iter().all(unfit);
        snapshots.retain(|snapshot| !unfit(snapshot));
        let found = if meant || none {
            let nearest_before = snapshots.last().map(|snapshot| snapshot.at);
            let reason = "a snapshot is not whole".to_owned();
            Err(UnreachableState { reason, nearest_before, nearest_after: None })
        } else {
            self.find_route_from(&snapshots, (wanted, from), unasked).await?
        };
        lacking.extend(damaged);
        Ok(found.map_err(|not| not.explain_missing_parts(&lacking)))
    }

    async fn find_route_from(
        &self,
        snapshots: &[SnapshotManifest],
        (wanted, from): (RedisTarget, Option<&str>),
        unasked: &mut UnreachableRepositories,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let Some(newest) = snapshots.last() else {
            let reason = match from {
                Some(label) => format!("there is no snapshot {label}"),
                None => "there is no snapshot yet; take one with walkeep backup redis".to_owned(),
            };
            return Ok(Err(UnreachableState { reason, nearest_before: None, nearest_after: None }));
        };
        if wanted == RedisTarget::Snapshot {
            return Ok(Ok(route_to_snapshot(newest)));
        }
        let known = self.list_known_stretches().await?;
        unasked.merge(known.unreachable());
        let time = match wanted {
            RedisTarget::Time(time) => Some(time),
            RedisTarget::Newest | RedisTarget::Snapshot => None,
            RedisTarget::Offset(replid, offset) => return self.resolve_offset(snapshots, &known, replid, offset).await,
        };
        let after = snapshots.iter().map(|snapshot| snapshot.at).filter(|at| time.is_some_and(|time| *at > time)).min();
        let mut failed: Option<UnreachableState> = None;
        for snapshot in snapshots.iter().rev().filter(|snapshot| time.is_none_or(|time| snapshot.at <= time)) {
            let way = self.collect_chain(snapshot, &known, time.map_or(ChainLimit::End, ChainLimit::Time)).await?;
            let hole = known.find_hole_after(snapshot, &way);
            match cut_chain_at(snapshot, way, time) {
                Ok(reach) => {
                    let hole = hole.filter(|_| wanted == RedisTarget::Newest);
                    return Ok(Ok(RestoreRoute { hole, ..reach }));
                }
                Err(short) if failed.as_ref().is_none_or(|failed| failed.nearest_before < Some(short.followed_to)) => {
                    let reason = match (short.followed_from, hole) {
                        (Some(_), _) => {
                            "nobody received the stream at that time, and what was written meanwhile came all at \
                                         once when it was received again"
                                .to_owned()
                        }
                        (None, Some(hole)) => {
                            format!("the stream of commands behind snapshot {} ends before it: {hole}", snapshot.label)
                        }
                        (None, None) => {
                            format!("the stream of commands behind snapshot {} ends before it", snapshot.label)
                        }
                    };
                    let nearest_before = Some(short.followed_to);
                    failed =
                        Some(UnreachableState { reason, nearest_before, nearest_after: short.followed_from.or(after) });
                }
                Err(_) => {}
            }
        }
        Ok(Err(failed.unwrap_or_else(|| UnreachableState {
            reason: "it lies before the first snapshot".to_owned(),
            nearest_before: None,
            nearest_after: after,
        })))
    }

    /// The bytes of the stretch of this number on the way, as far as they lie on it. All in turn are the commands to replay; the first acts on
    /// database `from.db`.
    ///
    /// # Errors
    /// Neither the spool nor a repository gave them.
    pub async fn read_route_commands(&self, reach: &RestoreRoute, number: usize) -> Result<Bytes, VaultError> {
        let (Some(stretch), Some(_), Some(to)) = (reach.stretches.get(number), reach.from, reach.to) else {
            return Ok(Bytes::new());
        };
        let bytes = self.read_stretch_bytes(stretch).await?;
        let at = |offset: u64| usize::try_from(offset.saturating_sub(stretch.first)).unwrap_or(usize::MAX);
        let (begin, end) = (at(reach.stretch_start_offset(number).max(stretch.first)), at(to.offset.min(stretch.last)));
        if begin > end || end > bytes.len() {
            let what = format!("what leads to offset {} of history {}", to.offset, stretch.replid);
            return Err(VaultError::Vanished { what });
        }
        Ok(bytes.slice(begin..end))
    }

    /// All bytes of a stretch, from the repositories or the spool; perhaps more than the stretch was seen to have.
    ///
    /// # Errors
    /// Neither gave them.
    pub async fn read_stretch_bytes(&self, stretch: &StreamStretch) -> Result<Bytes, VaultError> {
        if let Some(bytes) = self.stored_commands(stretch.replid, stretch.first).await? {
            return Ok(bytes);
        }
        let what = format!("the stream behind offset {} of history {}", stretch.first, stretch.replid);
        Ok(self.read_spooled((stretch.replid, stretch.first)).await?.ok_or(VaultError::Vanished { what })?.bytes)
    }

    /// The way behind a snapshot, as far as it leads.
    ///
    /// # Errors
    /// As [`Archive::resolve_target`].
    pub async fn stretches_after(&self, snapshot: &SnapshotManifest) -> Result<Vec<StreamStretch>, VaultError> {
        Ok(self.stretches_and_hole_after(snapshot).await?.0)
    }

    /// [`Archive::stretches_after`], and what is missing there if more of the stream is archived.
    ///
    /// # Errors
    /// As [`Archive::resolve_target`].
    pub async fn stretches_and_hole_after(
        &self,
        snapshot: &SnapshotManifest,
    ) -> Result<(Vec<StreamStretch>, Option<StreamHole>), VaultError> {
        let known = self.list_known_stretches().await?;
        let way = self.collect_chain(snapshot, &known, ChainLimit::End).await?;
        let hole = known.find_hole_after(snapshot, &way);
        Ok((way.stretches, hole))
    }

    /// Which stretches there are, in the repositories and the spool.
    ///
    /// # Errors
    /// No repository could be asked, or the spool can't be read.
    pub async fn list_known_stretches(&self) -> Result<KnownStretches, VaultError> {
        let mut names: BTreeMap<ReplicationId, Vec<u64>> = BTreeMap::new();
        let mut spooled = SpooledStretches::new();
        // The spool first: what is uploaded in between is then found in both, not in neither.
        if let Some(spool) = self.state_dir.as_deref().and_then(|dir| Spool::open_existing(dir, self)) {
            let read = move || -> Result<Vec<StreamStretch>, crate::postgres::archive::spool::SpoolError> {
                let mut all = Vec::new();
                for name in spool.list()? {
                    // One after the other: while a repository is away, there may be more of them than memory.
                    match spool.read(name) {
                        Ok(spooled) => all.extend(spooled.map(|spooled| spooled.into_stretch().0)),
                        // What the others hold is told without it.
                        Err(error) => {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "going on without this part of the spool"
                            );
                        }
                    }
                }
                Ok(all)
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(|_panic| VaultError::WorkerLost)?;
            for stretch in read.map_err(|error| VaultError::Spool(Arc::new(error)))? {
                if stretch.last > stretch.first {
                    names.entry(stretch.replid).or_default().push(stretch.first);
                    spooled.insert((stretch.replid, stretch.first), stretch);
                }
            }
        }
        let mut unasked = UnreachableRepositories::default();
        for (replid, first, _) in self.list_stored_stretches(&mut unasked).await? {
            names.entry(replid).or_default().push(first);
        }
        for firsts in names.values_mut() {
            firsts.sort_unstable();
            firsts.dedup();
        }
        Ok(KnownStretches { stretch_firsts: names, spooled, unreachable: unasked })
    }

    async fn read_spooled(&self, name: (ReplicationId, u64)) -> Result<Option<SpooledStretch>, VaultError> {
        let Some(spool) = self.state_dir.as_deref().and_then(|dir| Spool::open_existing(dir, self)) else {
            return Ok(None);
        };
        let read =
            tokio::task::spawn_blocking(move || spool.read(name)).await.map_err(|_panic| VaultError::WorkerLost)?;
        read.map_err(|error| VaultError::Spool(Arc::new(error)))
    }

    /// A stretch by its name.
    ///
    /// # Errors
    /// No repository gave it, or it does not open.
    pub async fn stretch(
        &self,
        known: &KnownStretches,
        replid: ReplicationId,
        first: u64,
    ) -> Result<Option<StreamStretch>, VaultError> {
        match self.stored_stretch(replid, first).await? {
            Some(stretch) => Ok(Some(stretch)),
            None => Ok(known.spooled.get(&(replid, first)).cloned()),
        }
    }

    /// Of the last stretches that begin at or before `offset` one that reaches beyond it, or else the one that reaches furthest. Two receivers that
    /// run at once cut the same stream at places of their own, so that one stretch may lie within another; of [`MAX_OVERLAPPING_STRETCHES`] that begin later an
    /// older one is found behind. One that does not open is none.
    ///
    /// # Errors
    /// No repository could be asked.
    pub(super) async fn find_covering_stretch(
        &self,
        known: &KnownStretches,
        replid: ReplicationId,
        offset: u64,
    ) -> Result<Option<StreamStretch>, VaultError> {
        let last: Vec<u64> =
            known.firsts_up_to(replid, offset).rev().take(MAX_OVERLAPPING_STRETCHES).copied().collect();
        let mut found: Option<StreamStretch> = None;
        for some in last.chunks(MAX_PARALLEL_STRETCH_READS) {
            for stretch in join_all(some.iter().map(|first| self.stretch(known, replid, *first))).await {
                match stretch {
                    Ok(stretch) => found = found.into_iter().chain(stretch).max_by_key(|stretch| stretch.last),
                    Err(error) if error.is_integrity() => {}
                    Err(error) => return Err(error),
                }
            }
            if found.as_ref().is_some_and(|stretch| stretch.last > offset) {
                break;
            }
        }
        Ok(found)
    }

    /// Whether the stream behind a snapshot comes to that offset, or goes on from it under another name. Nothing is kept of what lies between.
    ///
    /// # Errors
    /// As [`Archive::resolve_target`].
    pub async fn chain_reaches(
        &self,
        snapshot: &SnapshotManifest,
        known: &KnownStretches,
        ends: &[(ReplicationId, u64)],
    ) -> Result<bool, VaultError> {
        let mut end = snapshot.replid.zip(snapshot.offset);
        let mut step = |stretch: StreamStretch| {
            end = Some((stretch.replid, stretch.last));
            true
        };
        let damaged = self.walk_chain(snapshot, known, &mut step).await?;
        Ok(!damaged && end.is_some_and(|end| ends.contains(&end)))
    }

    /// Stretch after stretch from a snapshot on, until one is beyond what is wanted, or there is none.
    pub(super) async fn collect_chain(
        &self,
        snapshot: &SnapshotManifest,
        known: &KnownStretches,
        until: ChainLimit,
    ) -> Result<StretchChain, VaultError> {
        let mut stretches = Vec::new();
        let mut step = |stretch| {
            let beyond = until.is_beyond(&stretch);
            stretches.push(stretch);
            !beyond
        };
        let damaged = self.walk_chain(snapshot, known, &mut step).await?;
        Ok(StretchChain { stretches, damaged })
    }

    /// Gives stretch after stretch, as long as they are wanted. Whether it ended because the next one does not open.
    async fn walk_chain(
        &self,
        snapshot: &SnapshotManifest,
        known: &KnownStretches,
        wanted: &mut (dyn FnMut(StreamStretch) -> bool + Send),
    ) -> Result<bool, VaultError> {
        let (Some(mut replid), Some(mut offset)) = (snapshot.replid, snapshot.offset) else { return Ok(false) };
        let mut ahead = StretchPrefetch { instance: self, known, fetched: BTreeMap::new() };
        loop {
            let next = match ahead.next_in_history(replid, offset).await {
                Ok(Some(next)) => Ok(Some(next)),
                Ok(None) => ahead.next_in_following_history(replid, offset).await,
                Err(error) => Err(error),
            };
            let next = match next {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(false),
                Err(error) if error.is_integrity() => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a stretch of the stream cannot be used; walkeep verify tells what else is damaged"
                    );
                    return Ok(true);
                }
                Err(error) => return Err(error),
            };
            (replid, offset) = (next.replid, next.last);
            if !wanted(next) {
                return Ok(false);
            }
        }
    }
}

/// What the stretches of a way say of themselves, asked for several at once: each is a request of its own to a store far away.
struct StretchPrefetch<'i> {
    instance: &'i Archive,
    known: &'i KnownStretches,
    fetched: BTreeMap<(ReplicationId, u64), Result<Option<StreamStretch>, VaultError>>,
}

impl StretchPrefetch<'_> {
    async fn fetch(&mut self, replid: ReplicationId, first: u64) -> Result<Option<StreamStretch>, VaultError> {
        if !self.fetched.contains_key(&(replid, first)) {
            let (instance, known) = (self.instance, self.known);
            let firsts = known.stretch_firsts.get(&replid).map(Vec::as_slice).unwrap_or_default();
            let next = firsts.partition_point(|other| *other < first);
            let wanted = firsts.iter().skip(next).take(MAX_PARALLEL_STRETCH_READS).copied();
            let fetch = |first| async move { ((replid, first), instance.stretch(known, replid, first).await) };
            self.fetched = join_all(wanted.map(fetch)).await.into_iter().collect();
        }
        self.fetched.get(&(replid, first)).cloned().unwrap_or(Ok(None))
    }

    /// The stretch of the same history that holds the byte after `offset`.
    async fn next_in_history(
        &mut self,
        replid: ReplicationId,
        offset: u64,
    ) -> Result<Option<StreamStretch>, VaultError> {
        let Some(first) = self.known.firsts_up_to(replid, offset).next_back() else { return Ok(None) };
        let newest = self.fetch(replid, *first).await;
        if let Ok(Some(stretch)) = &newest
            && stretch.last > offset
        {
            return newest;
        }
        match self.instance.find_covering_stretch(self.known, replid, offset).await? {
            Some(stretch) if stretch.last > offset => Ok(Some(stretch)),
            _ => newest.map(|_short| None),
        }
    }

    /// The stretch that goes on from there under another name.
    async fn next_in_following_history(
        &mut self,
        replid: ReplicationId,
        offset: u64,
    ) -> Result<Option<StreamStretch>, VaultError> {
        let known = self.known;
        for (other, firsts) in known.stretch_firsts.iter().filter(|(other, _)| **other != replid) {
            if firsts.binary_search(&offset).is_err() {
                continue;
            }
            if let Some(stretch) = self.fetch(*other, offset).await?
                && stretch.follows.is_some_and(|follows| (follows.replid, follows.offset) == (replid, offset))
            {
                return Ok(Some(stretch));
            }
        }
        Ok(None)
    }
}

/// Leaves out what was read from a file and belongs to no history of this instance, if there is anything else: another server's dump may be
/// kept here, and is restored by its label, but it is not the state of this instance at any time.
pub fn remove_foreign_snapshots(snapshots: &mut Vec<SnapshotManifest>) {
    let own = |snapshot: &SnapshotManifest| matches!(snapshot.origin, SnapshotOrigin::Replication { .. });
    let histories: Vec<ReplicationId> = snapshots.iter().filter(|s| own(s)).filter_map(|s| s.replid).collect();
    if snapshots.iter().any(own) {
        snapshots.retain(|s| own(s) || s.replid.is_some_and(|replid| histories.contains(&replid)));
    }
}

/// Times at which nobody can say what was there, in order, each with when it was known again: what had been written meanwhile came all at once
/// when the stream was followed again, or read again by a receiver that was held up.
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

/// The time that lies between a stretch and what is there before it, which leads to an offset, if anything was written in it.
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

pub(super) fn route_to_snapshot(snapshot: &SnapshotManifest) -> RestoreRoute {
    let cut = snapshot.offset.map(|offset| StreamCut { offset, db: snapshot.db });
    let (at, stretches) = (snapshot.at, Vec::new());
    let late = Duration::ZERO;
    RestoreRoute { snapshot: snapshot.clone(), stretches, from: cut, to: cut, at, before: None, late, hole: None }
}

/// Where a way ends before the time that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ChainTooShort {
    /// The last moment before that is known.
    followed_to: Timestamp,
    /// The first moment after, if the stream was only paused.
    followed_from: Option<Timestamp>,
}

/// The target on the way: at a time, or at its end.
fn cut_chain_at(
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
