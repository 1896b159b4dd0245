//! A digest into the index: the segment's summary, its block, its events, and the records that straddle its ends.
//!
//! Segments may come in any order, more than once, and on several timelines; the index ends up the same. Pure: it reads
//! a [`KeyValueStore`] and makes a [`IndexBatch`].

use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::digest::{self, SegmentDigest};
use crate::postgres::wal::event::{MAX_SUBTRANSACTIONS, WalEvent, WalEventKind};

use super::continuity;
use super::error::IndexError;
use super::key_value_store::{IndexBatch, KeyChange, KeyFamily, KeyValueStore, ScanOrder};
use super::keys::{BLOCK_SEGMENTS, BlockId, ClusterKeys, RESTORE_POINT_TAG, SegmentId, block_number};
use super::summary::{BlockSummary, ContrecordState, FullBlock, SegmentSummary};
use super::value_codec::{ValueReader, ValueWriter};

/// A digest on its way into the index.
#[derive(Clone, Copy, Debug)]
pub struct IndexEntry<'a> {
    /// What is in the segment.
    pub digest: &'a SegmentDigest,
    /// Bytes of its object in the repository, 0 if not known.
    pub stored: u64,
}

/// What the index knows of a cluster as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterFacts {
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// Its timelines, ascending.
    pub timelines: Vec<TimelineId>,
}

impl ClusterFacts {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = ValueWriter::default();
        writer.number(self.segment_size.get());
        writer.number(self.timelines.len() as u64);
        for timeline in &self.timelines {
            writer.number(u64::from(timeline.get()));
        }
        writer.finish()
    }

    fn from_bytes(bytes: &[u8]) -> Result<ClusterFacts, IndexError> {
        let read = || {
            let mut reader = ValueReader::new(bytes);
            let segment_size = SegmentSize::new(reader.number()?).ok()?;
            let mut timelines = Vec::new();
            for _ in 0..reader.number()? {
                timelines.push(TimelineId::new(u32::try_from(reader.number()?).ok()?)?);
            }
            reader.is_finished().then_some(ClusterFacts { segment_size, timelines })
        };
        read().ok_or(IndexError::MalformedValue("cluster's facts"))
    }
}

/// Reads the facts about a cluster; none before its first segment.
pub(super) fn read_facts(store: &dyn KeyValueStore, cluster: &ClusterKeys) -> Result<Option<ClusterFacts>, IndexError> {
    store.get(KeyFamily::Meta, &cluster.facts())?.map(|bytes| ClusterFacts::from_bytes(&bytes)).transpose()
}

/// Changes under way for one cluster: what is read through it is as if the batch had been applied.
pub(super) struct IndexUpdate<'a> {
    store: &'a dyn KeyValueStore,
    cluster: &'a ClusterKeys,
    batch: IndexBatch,
    facts: Option<ClusterFacts>,
}

impl<'a> IndexUpdate<'a> {
    pub(super) fn new(store: &'a dyn KeyValueStore, cluster: &'a ClusterKeys) -> Result<IndexUpdate<'a>, IndexError> {
        Ok(IndexUpdate { store, cluster, batch: IndexBatch::default(), facts: read_facts(store, cluster)? })
    }

    /// What is to be applied.
    pub(super) fn finish(self) -> IndexBatch {
        self.batch
    }

    /// Bytes gathered so far.
    pub(super) fn batch_bytes(&self) -> usize {
        self.batch.size_bytes()
    }

    fn get(&self, family: KeyFamily, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        match self.batch.change(family, key) {
            Some(KeyChange::Put(value)) => Ok(Some(value.clone())),
            Some(KeyChange::Delete) => Ok(None),
            None => self.store.get(family, key),
        }
    }

    fn summary(&self, place: SegmentId) -> Result<Option<SegmentSummary>, IndexError> {
        let found = self.get(KeyFamily::Segments, &self.cluster.segment(place))?;
        found.map(|bytes| SegmentSummary::from_bytes(&bytes)).transpose()
    }

    /// Takes a digest in.
    pub(super) fn add_segment(&mut self, entry: IndexEntry<'_>) -> Result<(), IndexError> {
        let digest = entry.digest;
        let place = SegmentId { timeline: digest.timeline, segment: digest.segment };
        self.note_timeline(digest)?;
        self.put_events(place.timeline, &digest.events);
        self.put_events(place.timeline, &digest.changes);
        let summary = self.join_contrecord(place, SegmentSummary::from_digest(digest, entry.stored))?;
        self.put_summary(place, &summary)?;
        self.join_following(place)?;
        self.advance_mark(place)
    }

    /// Notes the segment's timeline, and refuses one whose size is not that of the others: their numbers would not
    /// compare.
    fn note_timeline(&mut self, digest: &SegmentDigest) -> Result<(), IndexError> {
        let (size, timeline) = (digest.segment_size, digest.timeline);
        let mut facts = self.facts.take().unwrap_or(ClusterFacts { segment_size: size, timelines: Vec::new() });
        if facts.segment_size != size {
            let error =
                IndexError::SegmentSize { cluster: self.cluster.name(), ours: facts.segment_size, theirs: size };
            self.facts = Some(facts);
            return Err(error);
        }
        if let Err(position) = facts.timelines.binary_search(&timeline) {
            facts.timelines.insert(position, timeline);
            self.batch.put(KeyFamily::Meta, self.cluster.facts(), facts.to_bytes());
        }
        self.facts = Some(facts);
        Ok(())
    }

    fn put_summary(&mut self, place: SegmentId, summary: &SegmentSummary) -> Result<(), IndexError> {
        let at = self.cluster.segment(place);
        let new = self.get(KeyFamily::Segments, &at)?.is_none();
        self.batch.put(KeyFamily::Segments, at, summary.to_bytes());
        let lowest = BlockId::at_level_zero(block_number(place.segment));
        let mut block = self.block(place.timeline, lowest)?.unwrap_or_default().with_segment(summary, new);
        if block.segments == BLOCK_SEGMENTS {
            block.full = self.full_block(place)?;
        }
        let is_full = block.full.is_some();
        self.batch.put(KeyFamily::Blocks, self.cluster.block(place.timeline, lowest), block.to_bytes());
        if is_full { self.update_parent_blocks(place.timeline, lowest) } else { Ok(()) }
    }

    fn block(&self, timeline: TimelineId, at: BlockId) -> Result<Option<BlockSummary>, IndexError> {
        let found = self.get(KeyFamily::Blocks, &self.cluster.block(timeline, at))?;
        found.map(|bytes| BlockSummary::from_bytes(&bytes)).transpose()
    }

    /// The larger blocks around a full block that has changed. One is there where all that it is made of is full, and
    /// only there.
    fn update_parent_blocks(&mut self, timeline: TimelineId, mut changed: BlockId) -> Result<(), IndexError> {
        while let Some(parent) = changed.parent() {
            let key = self.cluster.block(timeline, parent);
            match self.merge_children(timeline, parent)? {
                Some(block) => self.batch.put(KeyFamily::Blocks, key, block.to_bytes()),
                None if self.get(KeyFamily::Blocks, &key)?.is_none() => break,
                None => self.batch.delete(KeyFamily::Blocks, key),
            }
            changed = parent;
        }
        Ok(())
    }

    /// What a block is made of, in one, if it is all there.
    fn merge_children(&self, timeline: TimelineId, at: BlockId) -> Result<Option<BlockSummary>, IndexError> {
        let mut children = Vec::new();
        for child in at.children() {
            let Some(block) = self.block(timeline, child)?.filter(|block| block.full.is_some()) else {
                return Ok(None);
            };
            children.push(block);
        }
        let Some(mut block) = BlockSummary::from_children(&children) else { return Ok(None) };
        if children.iter().all(|child| child.full.is_some_and(|full| full.whole)) {
            let mut ends = Vec::new();
            for (child, at) in children.iter().zip(at.children()) {
                let (first, last) = (at.first(), at.end().previous().unwrap_or(at.first()));
                let [first, last] = [first, last].map(|segment| SegmentId { timeline, segment });
                let (Some(full), Some(begin), Some(end)) = (child.full, self.summary(first)?, self.summary(last)?)
                else {
                    return Ok(None);
                };
                ends.push((full, ((first, begin), (last, end))));
            }
            let whole = continuity::is_connected(ends)?;
            block.full = block.full.map(|full| FullBlock { whole, ..full });
        }
        Ok(Some(block))
    }

    /// What all segments of the lowest block around `place` are together.
    fn full_block(&self, place: SegmentId) -> Result<Option<FullBlock>, IndexError> {
        let first = BlockId::at_level_zero(block_number(place.segment)).first().get();
        let mut segments = Vec::new();
        for number in first..first.saturating_add(BLOCK_SEGMENTS) {
            let place = SegmentId { timeline: place.timeline, segment: SegmentNo::new(number) };
            let Some(summary) = self.summary(place)? else { return Ok(None) };
            segments.push((place, summary));
        }
        Ok(Some(continuity::sum_of_block(segments)))
    }

    fn put_events(&mut self, timeline: TimelineId, events: &[WalEvent]) {
        let mut before: Option<(u8, crate::postgres::format::lsn::Lsn, u16)> = None;
        for event in events {
            let kind = event.kind.tag();
            let ordinal = match before {
                Some((last, lsn, ordinal)) if last == kind && lsn == event.lsn => ordinal.saturating_add(1),
                _ => 0,
            };
            before = Some((kind, event.lsn, ordinal));
            self.batch.put(KeyFamily::Events, self.cluster.event(kind, timeline, event.lsn, ordinal), event.to_bytes());
            if let WalEventKind::RestorePoint { name, .. } = &event.kind {
                self.batch.put(
                    KeyFamily::Names,
                    self.cluster.name_at(name.as_bytes(), timeline, event.lsn),
                    Vec::new(),
                );
            }
        }
    }

    /// Joins the record that reaches into `summary`'s segment, if its other parts are known.
    fn join_contrecord(&mut self, place: SegmentId, summary: SegmentSummary) -> Result<SegmentSummary, IndexError> {
        if summary.contrecord != ContrecordState::Open {
            return Ok(summary);
        }
        let Some(previous) = place.segment.previous() else { return Ok(summary) };
        let own = SegmentId { timeline: place.timeline, segment: previous };
        if let Some(parts) = self.parts_before(own)? {
            return Ok(self.join_parts(own.timeline, &parts, summary, true));
        }
        // The first segment of a timeline: the record begins on the timeline it forked from, whichever that is. The CRC
        // says.
        let older: Vec<TimelineId> = self.facts.iter().flat_map(|facts| &facts.timelines).rev().copied().collect();
        for timeline in older.into_iter().filter(|&older| older < place.timeline) {
            if let Some(parts) = self.parts_before(SegmentId { timeline, segment: previous })? {
                let joined = self.join_parts(timeline, &parts, summary.clone(), false);
                if joined.contrecord != ContrecordState::Open {
                    return Ok(joined);
                }
            }
        }
        Ok(summary)
    }

    /// The segments that hold the beginning of the record that reaches beyond `last`, first one first; `None` if one is
    /// missing.
    fn parts_before(&self, last: SegmentId) -> Result<Option<Vec<SegmentSummary>>, IndexError> {
        let (mut parts, mut place) = (Vec::new(), last);
        loop {
            let Some(summary) = self.summary(place)? else { return Ok(None) };
            let through = summary.contrecord == ContrecordState::Through && summary.digest.tail.is_none();
            parts.push(summary);
            match place.segment.previous() {
                Some(segment) if through => place.segment = segment,
                Some(_) | None => break,
            }
        }
        parts.reverse();
        Ok(Some(parts))
    }

    /// Makes the record of its parts, which begin on `timeline`. Where `certain`, the parts belong together, and that
    /// they don't fit is damage.
    fn join_parts(
        &mut self,
        timeline: TimelineId,
        parts: &[SegmentSummary],
        summary: SegmentSummary,
        certain: bool,
    ) -> SegmentSummary {
        let digests: Vec<&SegmentDigest> = parts.iter().chain([&summary]).map(|part| &part.digest).collect();
        let certain = certain && parts.iter().all(SegmentSummary::is_checked);
        let joint = match digest::join_record(&digests) {
            Ok(Some(joined)) => {
                self.put_events(timeline, joined.meaning.event.as_slice());
                if let Some(ending) = joined.meaning.ending.filter(|_| !joined.meaning.subtransactions.is_empty()) {
                    let of = joined.meaning.subtransactions.iter().take(MAX_SUBTRANSACTIONS).copied().collect();
                    let kind = WalEventKind::Subtransactions { of };
                    let (lsn, end_lsn) = (ending.lsn, ending.end_lsn);
                    self.put_events(timeline, &[WalEvent { lsn, end_lsn, xid: ending.xid, kind }]);
                }
                ContrecordState::Whole { start: joined.lsn, ending: joined.meaning.ending }
            }
            Ok(None) if certain => ContrecordState::Torn("nothing in the segment before goes on here".to_owned()),
            Err(error) if certain => ContrecordState::Torn(error.to_string()),
            Ok(None) | Err(_) => return summary,
        };
        summary.with_contrecord(joint)
    }

    /// Joins what waited for the segment at `place`: on its own timeline, and on those that forked off right after it.
    fn join_following(&mut self, place: SegmentId) -> Result<(), IndexError> {
        let timelines: Vec<TimelineId> = self.facts.iter().flat_map(|facts| &facts.timelines).copied().collect();
        for timeline in timelines.into_iter().filter(|&timeline| timeline >= place.timeline) {
            let alone =
                timeline == place.timeline || self.summary(SegmentId { timeline, segment: place.segment })?.is_none();
            if alone {
                self.join_first_from(SegmentId { timeline, segment: place.segment.next() })?;
            }
        }
        Ok(())
    }

    /// Settles the first segment from `place` on in which a record ends, passing over those that lie wholly within it.
    fn join_first_from(&mut self, mut place: SegmentId) -> Result<(), IndexError> {
        while let Some(summary) = self.summary(place)? {
            match summary.contrecord {
                ContrecordState::Through => place.segment = place.segment.next(),
                ContrecordState::Open => {
                    let settled = self.join_contrecord(place, summary.clone())?;
                    if settled != summary {
                        self.put_summary(place, &settled)?;
                    }
                    return Ok(());
                }
                ContrecordState::None | ContrecordState::Whole { .. } | ContrecordState::Torn(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Moves the timeline's mark over what follows it without a hole.
    fn advance_mark(&mut self, place: SegmentId) -> Result<(), IndexError> {
        let Some(mark) = self.timeline_mark(place.timeline)? else { return Ok(()) };
        if mark.next() == place.segment {
            self.set_mark(place.timeline, place.segment)?;
        }
        Ok(())
    }

    fn timeline_mark(&self, timeline: TimelineId) -> Result<Option<SegmentNo>, IndexError> {
        let found = self.get(KeyFamily::Meta, &self.cluster.mark(timeline))?;
        found.map(|bytes| read_mark(&bytes)).transpose()
    }

    /// Sets the mark at `at`, where everything up to it is known to be in the index, and moves it on as far as there is
    /// no hole.
    pub(super) fn set_mark(&mut self, timeline: TimelineId, at: SegmentNo) -> Result<(), IndexError> {
        let mut mark = at;
        while self
            .get(KeyFamily::Segments, &self.cluster.segment(SegmentId { timeline, segment: mark.next() }))?
            .is_some()
        {
            mark = mark.next();
        }
        self.batch.put(KeyFamily::Meta, self.cluster.mark(timeline), mark.get().to_be_bytes().to_vec());
        Ok(())
    }
}

/// The removal of segments and their events.
pub(super) fn forget_segments(
    store: &dyn KeyValueStore,
    cluster: &ClusterKeys,
    timeline: TimelineId,
    segments: &[SegmentNo],
) -> Result<IndexBatch, IndexError> {
    let mut batch = IndexBatch::default();
    let Some(facts) = read_facts(store, cluster)? else { return Ok(batch) };
    for &segment in segments {
        let (from, to) = (segment.start(facts.segment_size), segment.end(facts.segment_size));
        let place = SegmentId { timeline, segment };
        let key = cluster.segment(place);
        if store.get(KeyFamily::Segments, &key)?.is_some() && batch.change(KeyFamily::Segments, &key).is_none() {
            forget_in_block(store, cluster, &mut batch, place)?;
        }
        batch.delete(KeyFamily::Segments, key);
        for pair in
            store.scan(KeyFamily::Events, &cluster.events(RESTORE_POINT_TAG, timeline, from, to), ScanOrder::Forward)
        {
            let event = WalEvent::from_bytes(&pair?.1).ok_or(IndexError::MalformedValue("event"))?;
            if let WalEventKind::RestorePoint { name, .. } = &event.kind {
                batch.delete(KeyFamily::Names, cluster.name_at(name.as_bytes(), timeline, event.lsn));
            }
        }
        for kind in EVENT_TAGS {
            for pair in store.scan(KeyFamily::Events, &cluster.events(kind, timeline, from, to), ScanOrder::Forward) {
                batch.delete(KeyFamily::Events, pair?.0);
            }
        }
    }
    Ok(batch)
}

/// The lowest block around `place`, which has one segment less, and those around it, which are full no longer. An empty
/// one claims nothing.
fn forget_in_block(
    store: &dyn KeyValueStore,
    cluster: &ClusterKeys,
    batch: &mut IndexBatch,
    place: SegmentId,
) -> Result<(), IndexError> {
    let read = |batch: &IndexBatch, key: &[u8]| match batch.change(KeyFamily::Blocks, key) {
        Some(KeyChange::Put(bytes)) => Ok(Some(bytes.clone())),
        Some(KeyChange::Delete) => Ok(None),
        None => store.get(KeyFamily::Blocks, key),
    };
    let mut at = BlockId::at_level_zero(block_number(place.segment));
    let key = cluster.block(place.timeline, at);
    let Some(bytes) = read(batch, &key)? else { return Ok(()) };
    let block = BlockSummary::from_bytes(&bytes)?;
    match block.segments.saturating_sub(1) {
        0 => batch.delete(KeyFamily::Blocks, key),
        segments => batch.put(KeyFamily::Blocks, key, BlockSummary { segments, full: None, ..block }.to_bytes()),
    }
    while let Some(parent) = at.parent() {
        let key = cluster.block(place.timeline, parent);
        if read(batch, &key)?.is_none() {
            break;
        }
        batch.delete(KeyFamily::Blocks, key);
        at = parent;
    }
    Ok(())
}

/// Every kind of event ([`WalEventKind::tag`]).
const EVENT_TAGS: std::ops::RangeInclusive<u8> = 1..=18;

/// Reads a mark.
pub(super) fn read_mark(bytes: &[u8]) -> Result<SegmentNo, IndexError> {
    let number: [u8; 8] =
        bytes.try_into().map_err(|_error: std::array::TryFromSliceError| IndexError::MalformedValue("mark"))?;
    Ok(SegmentNo::new(u64::from_be_bytes(number)))
}
