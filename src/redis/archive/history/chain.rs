//! The stretches after a snapshot, one after the other, as far as they lead.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use jiff::Timestamp;

use super::holes::StreamHole;
use super::known_stretches::{KnownStretches, MAX_PARALLEL_STRETCH_READS};
use crate::redis::archive::instance::Archive;
use crate::redis::archive::snapshot::SnapshotManifest;
use crate::redis::archive::stream::{ArrivalMark, StreamStretch};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::VaultError;

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
    pub(super) fn marks(&self, from: u64) -> impl Iterator<Item = (usize, &ArrivalMark)> {
        let led_to = std::iter::once(from).chain(self.stretches.iter().map(|stretch| stretch.last));
        self.stretches.iter().zip(led_to).enumerate().flat_map(move |(nth, (stretch, led_to))| {
            let new = stretch.marks.iter().filter(move |mark| mark.offset > led_to.max(from));
            new.map(move |mark| (nth, mark))
        })
    }
}

impl KnownStretches {
    /// What is missing where a way ends; nothing if nothing of that history comes after it.
    pub(super) fn find_hole_after(&self, snapshot: &SnapshotManifest, way: &StretchChain) -> Option<StreamHole> {
        let end = way.stretches.last().map(|stretch| (stretch.replid, stretch.last));
        let (replid, from) = end.or(snapshot.replid.zip(snapshot.offset))?;
        if way.damaged {
            return Some(StreamHole { replid, from, to: None });
        }
        let next = self.stretch_firsts.get(&replid)?.iter().find(|first| **first > from)?;
        Some(StreamHole { replid, from, to: Some(*next) })
    }
}

impl Archive {
    /// The stretches after a snapshot, as far as they are connected, and the hole after them if more of the stream is
    /// archived.
    ///
    /// # Errors
    /// As [`Archive::resolve_target`].
    pub async fn stretches_and_hole_after(
        &self,
        snapshot: &SnapshotManifest,
        known: &KnownStretches,
    ) -> Result<(Vec<StreamStretch>, Option<StreamHole>), VaultError> {
        let way = self.collect_chain(snapshot, known, ChainLimit::End).await?;
        let hole = known.find_hole_after(snapshot, &way);
        Ok((way.stretches, hole))
    }

    /// Whether the stream behind a snapshot comes to that offset, or goes on from it under another name. Nothing is
    /// kept of what lies between.
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

/// What the stretches of a way say of themselves, asked for several at once: each is a request of its own to a store
/// far away.
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
