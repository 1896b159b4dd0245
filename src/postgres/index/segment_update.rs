//! A digest into the index: the segment's summary, its block, its events, and the records that straddle its ends.
//!
//! Segments may come in any order, more than once, and on several timelines; the index ends up the same. Pure: it reads a [`Store`] and makes a
//! [`Batch`].

use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::digest::{self, Digest};
use crate::postgres::wal::event::{Event, EventKind, MAX_SUBTRANSACTIONS};

use super::continuity;
use super::error::Error;
use super::key_value_store::{Batch, Change, Family, Order, Store};
use super::keys::{BLOCK_SEGMENTS, BlockAt, Cluster, Place, block_of};
use super::summary::{Block, Full, Joint, Summary};
use super::value_codec::{Reader, Writer};

/// A digest on its way into the index.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What is in the segment.
    pub digest: &'a Digest,
    /// Bytes of its object in the repository, 0 if not known.
    pub stored: u64,
}

/// What the index knows of a cluster as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// Its timelines, ascending.
    pub timelines: Vec<TimelineId>,
}

impl Facts {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.number(self.segment_size.get());
        writer.number(self.timelines.len() as u64);
        for timeline in &self.timelines {
            writer.number(u64::from(timeline.get()));
        }
        writer.finish()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Facts, Error> {
        let read = || {
            let mut reader = Reader::new(bytes);
            let segment_size = SegmentSize::new(reader.number()?).ok()?;
            let mut timelines = Vec::new();
            for _ in 0..reader.number()? {
                timelines.push(TimelineId::new(u32::try_from(reader.number()?).ok()?)?);
            }
            reader.finished().then_some(Facts { segment_size, timelines })
        };
        read().ok_or(Error::Value("cluster's facts"))
    }
}

/// Reads the facts about a cluster; none before its first segment.
pub(super) fn facts(store: &dyn Store, cluster: &Cluster) -> Result<Option<Facts>, Error> {
    store.get(Family::Meta, &cluster.facts())?.map(|bytes| Facts::from_bytes(&bytes)).transpose()
}

/// Changes under way for one cluster: what is read through it is as if the batch had been applied.
pub(super) struct Ingest<'a> {
    store: &'a dyn Store,
    cluster: &'a Cluster,
    batch: Batch,
    facts: Option<Facts>,
}

impl<'a> Ingest<'a> {
    pub(super) fn new(store: &'a dyn Store, cluster: &'a Cluster) -> Result<Ingest<'a>, Error> {
        Ok(Ingest { store, cluster, batch: Batch::default(), facts: facts(store, cluster)? })
    }

    /// What is to be applied.
    pub(super) fn finish(self) -> Batch {
        self.batch
    }

    /// Bytes gathered so far.
    pub(super) fn weight(&self) -> usize {
        self.batch.weight()
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self.batch.change(family, key) {
            Some(Change::Put(value)) => Ok(Some(value.clone())),
            Some(Change::Delete) => Ok(None),
            None => self.store.get(family, key),
        }
    }

    fn summary(&self, place: Place) -> Result<Option<Summary>, Error> {
        let found = self.get(Family::Segments, &self.cluster.segment(place))?;
        found.map(|bytes| Summary::from_bytes(&bytes)).transpose()
    }

    /// Takes a digest in.
    pub(super) fn add(&mut self, entry: Entry<'_>) -> Result<(), Error> {
        let digest = entry.digest;
        let place = Place { timeline: digest.timeline, segment: digest.segment };
        self.note(digest)?;
        self.put_events(place.timeline, &digest.events);
        self.put_events(place.timeline, &digest.changes);
        let summary = self.settled(place, Summary::of(digest, entry.stored))?;
        self.put(place, &summary)?;
        self.settle_following(place)?;
        self.advance_mark(place)
    }

    /// Notes the segment's timeline, and refuses one whose size is not that of the others: their numbers would not compare.
    fn note(&mut self, digest: &Digest) -> Result<(), Error> {
        let (size, timeline) = (digest.segment_size, digest.timeline);
        let mut facts = self.facts.take().unwrap_or(Facts { segment_size: size, timelines: Vec::new() });
        if facts.segment_size != size {
            let error = Error::SegmentSize { cluster: self.cluster.name(), ours: facts.segment_size, theirs: size };
            self.facts = Some(facts);
            return Err(error);
        }
        if let Err(position) = facts.timelines.binary_search(&timeline) {
            facts.timelines.insert(position, timeline);
            self.batch.put(Family::Meta, self.cluster.facts(), facts.to_bytes());
        }
        self.facts = Some(facts);
        Ok(())
    }

    fn put(&mut self, place: Place, summary: &Summary) -> Result<(), Error> {
        let at = self.cluster.segment(place);
        let new = self.get(Family::Segments, &at)?.is_none();
        self.batch.put(Family::Segments, at, summary.to_bytes());
        let lowest = BlockAt::lowest(block_of(place.segment));
        let mut block = self.block(place.timeline, lowest)?.unwrap_or_default().with(summary, new);
        if block.segments == BLOCK_SEGMENTS {
            block.full = self.full(place)?;
        }
        let is_full = block.full.is_some();
        self.batch.put(Family::Blocks, self.cluster.block(place.timeline, lowest), block.to_bytes());
        if is_full { self.put_above(place.timeline, lowest) } else { Ok(()) }
    }

    fn block(&self, timeline: TimelineId, at: BlockAt) -> Result<Option<Block>, Error> {
        let found = self.get(Family::Blocks, &self.cluster.block(timeline, at))?;
        found.map(|bytes| Block::from_bytes(&bytes)).transpose()
    }

    /// The larger blocks around a full block that has changed. One is there where all that it is made of is full, and only there.
    fn put_above(&mut self, timeline: TimelineId, mut changed: BlockAt) -> Result<(), Error> {
        while let Some(parent) = changed.parent() {
            let key = self.cluster.block(timeline, parent);
            match self.together(timeline, parent)? {
                Some(block) => self.batch.put(Family::Blocks, key, block.to_bytes()),
                None if self.get(Family::Blocks, &key)?.is_none() => break,
                None => self.batch.delete(Family::Blocks, key),
            }
            changed = parent;
        }
        Ok(())
    }

    /// What a block is made of, in one, if it is all there.
    fn together(&self, timeline: TimelineId, at: BlockAt) -> Result<Option<Block>, Error> {
        let mut children = Vec::new();
        for child in at.children() {
            let Some(block) = self.block(timeline, child)?.filter(|block| block.full.is_some()) else {
                return Ok(None);
            };
            children.push(block);
        }
        let Some(mut block) = Block::of_children(&children) else { return Ok(None) };
        if children.iter().all(|child| child.full.is_some_and(|full| full.whole)) {
            let mut ends = Vec::new();
            for (child, at) in children.iter().zip(at.children()) {
                let (first, last) = (at.first(), at.end().previous().unwrap_or(at.first()));
                let [first, last] = [first, last].map(|segment| Place { timeline, segment });
                let (Some(full), Some(begin), Some(end)) = (child.full, self.summary(first)?, self.summary(last)?)
                else {
                    return Ok(None);
                };
                ends.push((full, ((first, begin), (last, end))));
            }
            let whole = continuity::hangs_together(ends)?;
            block.full = block.full.map(|full| Full { whole, ..full });
        }
        Ok(Some(block))
    }

    /// What all segments of the lowest block around `place` are together.
    fn full(&self, place: Place) -> Result<Option<Full>, Error> {
        let first = BlockAt::lowest(block_of(place.segment)).first().get();
        let mut segments = Vec::new();
        for number in first..first.saturating_add(BLOCK_SEGMENTS) {
            let place = Place { timeline: place.timeline, segment: SegmentNo::new(number) };
            let Some(summary) = self.summary(place)? else { return Ok(None) };
            segments.push((place, summary));
        }
        Ok(Some(continuity::full(segments)))
    }

    fn put_events(&mut self, timeline: TimelineId, events: &[Event]) {
        let mut before: Option<(u8, crate::postgres::format::lsn::Lsn, u16)> = None;
        for event in events {
            let kind = event.kind.tag();
            let ordinal = match before {
                Some((last, lsn, ordinal)) if last == kind && lsn == event.lsn => ordinal.saturating_add(1),
                _ => 0,
            };
            before = Some((kind, event.lsn, ordinal));
            self.batch.put(Family::Events, self.cluster.event(kind, timeline, event.lsn, ordinal), event.to_bytes());
            if let EventKind::RestorePoint { name, .. } = &event.kind {
                self.batch.put(Family::Names, self.cluster.name_at(name.as_bytes(), timeline, event.lsn), Vec::new());
            }
        }
    }

    /// Joins the record that reaches into `summary`'s segment, if its other parts are known.
    fn settled(&mut self, place: Place, summary: Summary) -> Result<Summary, Error> {
        if summary.joint != Joint::Open {
            return Ok(summary);
        }
        let Some(previous) = place.segment.previous() else { return Ok(summary) };
        let own = Place { timeline: place.timeline, segment: previous };
        if let Some(parts) = self.parts_before(own)? {
            return Ok(self.join(own.timeline, &parts, summary, true));
        }
        // The first segment of a timeline: the record begins on the timeline it forked from, whichever that is. The CRC says.
        let older: Vec<TimelineId> = self.facts.iter().flat_map(|facts| &facts.timelines).rev().copied().collect();
        for timeline in older.into_iter().filter(|&older| older < place.timeline) {
            if let Some(parts) = self.parts_before(Place { timeline, segment: previous })? {
                let joined = self.join(timeline, &parts, summary.clone(), false);
                if joined.joint != Joint::Open {
                    return Ok(joined);
                }
            }
        }
        Ok(summary)
    }

    /// The segments that hold the beginning of the record that reaches beyond `last`, first one first; `None` if one is missing.
    fn parts_before(&self, last: Place) -> Result<Option<Vec<Summary>>, Error> {
        let (mut parts, mut place) = (Vec::new(), last);
        loop {
            let Some(summary) = self.summary(place)? else { return Ok(None) };
            let through = summary.joint == Joint::Through && summary.digest.tail.is_none();
            parts.push(summary);
            match place.segment.previous() {
                Some(segment) if through => place.segment = segment,
                Some(_) | None => break,
            }
        }
        parts.reverse();
        Ok(Some(parts))
    }

    /// Makes the record of its parts, which begin on `timeline`. Where `certain`, the parts belong together, and that they don't fit is damage.
    fn join(&mut self, timeline: TimelineId, parts: &[Summary], summary: Summary, certain: bool) -> Summary {
        let digests: Vec<&Digest> = parts.iter().chain([&summary]).map(|part| &part.digest).collect();
        let certain = certain && parts.iter().all(Summary::is_checked);
        let joint = match digest::join(&digests) {
            Ok(Some(joined)) => {
                self.put_events(timeline, joined.meaning.event.as_slice());
                if let Some(ending) = joined.meaning.ending.filter(|_| !joined.meaning.subtransactions.is_empty()) {
                    let of = joined.meaning.subtransactions.iter().take(MAX_SUBTRANSACTIONS).copied().collect();
                    let kind = EventKind::Subtransactions { of };
                    let (lsn, end_lsn) = (ending.lsn, ending.end_lsn);
                    self.put_events(timeline, &[Event { lsn, end_lsn, xid: ending.xid, kind }]);
                }
                Joint::Whole { start: joined.lsn, ending: joined.meaning.ending }
            }
            Ok(None) if certain => Joint::Torn("nothing in the segment before goes on here".to_owned()),
            Err(error) if certain => Joint::Torn(error.to_string()),
            Ok(None) | Err(_) => return summary,
        };
        summary.joined(joint)
    }

    /// Joins what waited for the segment at `place`: on its own timeline, and on those that forked off right after it.
    fn settle_following(&mut self, place: Place) -> Result<(), Error> {
        let timelines: Vec<TimelineId> = self.facts.iter().flat_map(|facts| &facts.timelines).copied().collect();
        for timeline in timelines.into_iter().filter(|&timeline| timeline >= place.timeline) {
            let alone =
                timeline == place.timeline || self.summary(Place { timeline, segment: place.segment })?.is_none();
            if alone {
                self.settle_from(Place { timeline, segment: place.segment.next() })?;
            }
        }
        Ok(())
    }

    /// Settles the first segment from `place` on in which a record ends, passing over those that lie wholly within it.
    fn settle_from(&mut self, mut place: Place) -> Result<(), Error> {
        while let Some(summary) = self.summary(place)? {
            match summary.joint {
                Joint::Through => place.segment = place.segment.next(),
                Joint::Open => {
                    let settled = self.settled(place, summary.clone())?;
                    if settled != summary {
                        self.put(place, &settled)?;
                    }
                    return Ok(());
                }
                Joint::None | Joint::Whole { .. } | Joint::Torn(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Moves the timeline's mark over what follows it without a hole.
    fn advance_mark(&mut self, place: Place) -> Result<(), Error> {
        let Some(mark) = self.mark(place.timeline)? else { return Ok(()) };
        if mark.next() == place.segment {
            self.set_mark(place.timeline, place.segment)?;
        }
        Ok(())
    }

    fn mark(&self, timeline: TimelineId) -> Result<Option<SegmentNo>, Error> {
        let found = self.get(Family::Meta, &self.cluster.mark(timeline))?;
        found.map(|bytes| read_mark(&bytes)).transpose()
    }

    /// Sets the mark at `at`, where everything up to it is known to be in the index, and moves it on as far as there is no hole.
    pub(super) fn set_mark(&mut self, timeline: TimelineId, at: SegmentNo) -> Result<(), Error> {
        let mut mark = at;
        while self.get(Family::Segments, &self.cluster.segment(Place { timeline, segment: mark.next() }))?.is_some() {
            mark = mark.next();
        }
        self.batch.put(Family::Meta, self.cluster.mark(timeline), mark.get().to_be_bytes().to_vec());
        Ok(())
    }
}

/// The removal of segments and their events.
pub(super) fn forget(
    store: &dyn Store,
    cluster: &Cluster,
    timeline: TimelineId,
    segments: &[SegmentNo],
) -> Result<Batch, Error> {
    let mut batch = Batch::default();
    let Some(facts) = facts(store, cluster)? else { return Ok(batch) };
    for &segment in segments {
        let (from, to) = (segment.start(facts.segment_size), segment.end(facts.segment_size));
        let place = Place { timeline, segment };
        let key = cluster.segment(place);
        if store.get(Family::Segments, &key)?.is_some() && batch.change(Family::Segments, &key).is_none() {
            forget_in_block(store, cluster, &mut batch, place)?;
        }
        batch.delete(Family::Segments, key);
        for pair in
            store.scan(Family::Events, &cluster.events(super::RESTORE_POINT, timeline, from, to), Order::Forward)
        {
            let event = Event::from_bytes(&pair?.1).ok_or(Error::Value("event"))?;
            if let EventKind::RestorePoint { name, .. } = &event.kind {
                batch.delete(Family::Names, cluster.name_at(name.as_bytes(), timeline, event.lsn));
            }
        }
        for kind in EVENT_KINDS {
            for pair in store.scan(Family::Events, &cluster.events(kind, timeline, from, to), Order::Forward) {
                batch.delete(Family::Events, pair?.0);
            }
        }
    }
    Ok(batch)
}

/// The lowest block around `place`, which has one segment less, and those around it, which are full no longer. An empty one claims nothing.
fn forget_in_block(store: &dyn Store, cluster: &Cluster, batch: &mut Batch, place: Place) -> Result<(), Error> {
    let read = |batch: &Batch, key: &[u8]| match batch.change(Family::Blocks, key) {
        Some(Change::Put(bytes)) => Ok(Some(bytes.clone())),
        Some(Change::Delete) => Ok(None),
        None => store.get(Family::Blocks, key),
    };
    let mut at = BlockAt::lowest(block_of(place.segment));
    let key = cluster.block(place.timeline, at);
    let Some(bytes) = read(batch, &key)? else { return Ok(()) };
    let block = Block::from_bytes(&bytes)?;
    match block.segments.saturating_sub(1) {
        0 => batch.delete(Family::Blocks, key),
        segments => batch.put(Family::Blocks, key, Block { segments, full: None, ..block }.to_bytes()),
    }
    while let Some(parent) = at.parent() {
        let key = cluster.block(place.timeline, parent);
        if read(batch, &key)?.is_none() {
            break;
        }
        batch.delete(Family::Blocks, key);
        at = parent;
    }
    Ok(())
}

/// Every kind of event ([`EventKind::tag`]).
const EVENT_KINDS: std::ops::RangeInclusive<u8> = 1..=18;

/// Reads a mark.
pub(super) fn read_mark(bytes: &[u8]) -> Result<SegmentNo, Error> {
    let number: [u8; 8] = bytes.try_into().map_err(|_error: std::array::TryFromSliceError| Error::Value("mark"))?;
    Ok(SegmentNo::new(u64::from_be_bytes(number)))
}
