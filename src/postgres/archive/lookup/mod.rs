//! From a time, a transaction, a name or a position to the exact record, along one timeline path.
//!
//! The index says which segment to look into, and the segment's own digest, fetched once and kept, has the record.
//! Every answer is the one that a scan of the whole log would give, which is what the tests compare it with. The calls
//! block, on RocksDB and on what [`SegmentSource`] fetches: from async code the whole lookup goes through
//! `spawn_blocking`.

mod record_effect;

use std::sync::Arc;

use bytes::Bytes;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::index::path_search::{PathSearch, SegmentFilter};
use crate::postgres::index::{
    self, ContrecordState, IndexView, ParameterMaxima, PathSegment, SegmentId, WalDefect, WalHole,
};
use crate::postgres::wal::decode::WalDecoder;
use crate::postgres::wal::digest::{SegmentDigest, SegmentState};
use crate::postgres::wal::event::{TransactionEnd, WalEvent, Xid};
use crate::postgres::wal::page::MajorVersion;
use crate::postgres::wal::record::WalRecord;

/// Where the dense part of a segment comes from.
pub trait SegmentSource {
    /// Why it could not be had.
    type Error;

    /// The whole digest of a segment that is in the index.
    ///
    /// # Errors
    /// What keeps it from being read.
    fn digest(&self, place: SegmentId) -> Result<Arc<SegmentDigest>, Self::Error>;

    /// The bytes of a segment that is in the index.
    ///
    /// # Errors
    /// What keeps them from being read.
    fn segment(&self, place: SegmentId) -> Result<Bytes, Self::Error>;
}

/// A lookup that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LookupError<E> {
    /// The index could not be read.
    #[error(transparent)]
    Index(#[from] index::IndexError),
    /// A segment could not be read.
    #[error("cannot look into a segment")]
    Segments(#[source] E),
}

/// The log of a stretch, whole or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalChain {
    /// The first stretch that is missing or damaged. Where the archive just ends, there is none.
    pub hole: Option<WalHole>,
    /// Segments that replay reads.
    pub segments: u64,
    /// Records in them, those before and after the stretch included.
    pub records: u64,
    /// Where the log that can be read ends.
    pub end: Lsn,
}

/// Where a record starts and ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordSpan {
    /// Its first byte.
    pub lsn: Lsn,
    /// The position after its last byte.
    pub end: Lsn,
}

/// The record that reaches into a segment from the one before, where both parts are there.
fn contrecord_span(stretch: &PathSegment) -> Option<RecordSpan> {
    match (&stretch.summary.contrecord, &stretch.summary.digest.head) {
        (ContrecordState::Whole { start, .. }, Some(head)) => Some(RecordSpan { lsn: *start, end: head.end }),
        _ => None,
    }
}

/// Lookups in one cluster's log.
#[derive(Debug)]
pub struct WalLookup<'a, S> {
    view: IndexView<'a>,
    source: S,
}

impl<'a, S: SegmentSource> WalLookup<'a, S> {
    /// Lookups by what the index knows of a cluster, and where its segments are.
    pub fn new(view: IndexView<'a>, source: S) -> WalLookup<'a, S> {
        WalLookup { view, source }
    }

    /// The size of the cluster's segments; the default while there is none.
    #[must_use]
    pub fn segment_size(&self) -> SegmentSize {
        self.view.segment_size().unwrap_or(SegmentSize::DEFAULT)
    }

    /// The first commit or abort from `from` on whose time is later than `time`: before it PostgreSQL stops
    /// (`recoveryStopsBefore`). Times are in no order, so that is not the one with the smallest time.
    ///
    /// # Errors
    /// What index or source say.
    pub fn ending_after(
        &self,
        path: &TimelinePath,
        from: Lsn,
        time: PgTime,
    ) -> Result<Option<TransactionEnd>, LookupError<S::Error>> {
        self.first_ending(path, from, SegmentFilter::EndingAfter(time), |ending| ending.time > time)
    }

    /// The first commit or abort of `xid` from `from` on (`recoveryStopsAfter`).
    ///
    /// # Errors
    /// What index or source say.
    pub fn ending_of(
        &self,
        path: &TimelinePath,
        from: Lsn,
        xid: Xid,
    ) -> Result<Option<TransactionEnd>, LookupError<S::Error>> {
        self.first_ending(path, from, SegmentFilter::Xid(xid.get()), |ending| ending.xid == xid)
    }

    /// The first commit from `from` on.
    ///
    /// # Errors
    /// What index or source say.
    pub fn commit_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<TransactionEnd>, LookupError<S::Error>> {
        self.first_ending(path, from, SegmentFilter::Ending, |ending| ending.kind.is_commit())
    }

    /// The last commit that starts before `before`.
    ///
    /// # Errors
    /// What index or source say.
    pub fn commit_before(
        &self,
        path: &TimelinePath,
        before: Lsn,
    ) -> Result<Option<TransactionEnd>, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(None) };
        // A record that starts before `before` may end in the next segment, and is found there.
        let mut limit = along.segment_size().segment_of(before).next().next();
        while let Some(stretch) = along.previous_segment(limit, SegmentFilter::Ending)? {
            let found = self
                .endings_in_segment(&stretch)?
                .into_iter()
                .rfind(|ending| ending.lsn < before && ending.kind.is_commit());
            if found.is_some() {
                return Ok(found);
            }
            limit = stretch.place.segment;
        }
        Ok(None)
    }

    fn first_ending(
        &self,
        path: &TimelinePath,
        from: Lsn,
        want: SegmentFilter,
        meets: impl Fn(&TransactionEnd) -> bool,
    ) -> Result<Option<TransactionEnd>, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(None) };
        let mut segment = along.segment_size().segment_of(from);
        while let Some(stretch) = along.next_segment(segment, want)? {
            let found =
                self.endings_in_segment(&stretch)?.into_iter().find(|ending| ending.lsn >= from && meets(ending));
            if found.is_some() {
                return Ok(found);
            }
            segment = stretch.place.segment.next();
        }
        Ok(None)
    }

    /// The endings that the path takes from a segment, in log order: first the one whose record began in the segment
    /// before.
    fn endings_in_segment(&self, stretch: &PathSegment) -> Result<Vec<TransactionEnd>, LookupError<S::Error>> {
        let joined = stretch.summary.contrecord_ending();
        let mut endings: Vec<TransactionEnd> = joined.into_iter().copied().collect();
        if stretch.summary.endings > endings.len() as u64 {
            let digest = self.source.digest(stretch.place).map_err(LookupError::Segments)?;
            endings.extend_from_slice(&digest.endings);
        }
        endings.retain(|ending| ending.end_lsn <= stretch.to);
        Ok(endings)
    }

    /// Where to begin to look for what happened after `time`: no transaction that ended before this ended later. The
    /// beginning of the path if there is no such place.
    ///
    /// # Errors
    /// What index or source say.
    pub fn search_start(&self, path: &TimelinePath, time: PgTime) -> Result<Lsn, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(Lsn::INVALID) };
        let first = along.next_segment(SegmentNo::new(0), SegmentFilter::EndingAfter(time))?;
        let limit = first.map_or(SegmentNo::new(u64::MAX), |stretch| stretch.place.segment);
        // What is no ending, a restore point say, may stand in segments without any.
        Ok(along.previous_segment(limit, SegmentFilter::Ending)?.map_or(Lsn::INVALID, |stretch| stretch.from))
    }

    /// Events of these kinds ([`crate::postgres::wal::event::WalEventKind::tag`]) whose records start from `from` on
    /// and before `to`, in log order, and no more than `limit`: what follows comes after the last one's position.
    ///
    /// # Errors
    /// What index or source say.
    pub fn events(
        &self,
        path: &TimelinePath,
        kinds: &[u8],
        from: Lsn,
        to: Lsn,
        limit: usize,
    ) -> Result<Vec<WalEvent>, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(Vec::new()) };
        Ok(along.events(kinds, from, to, limit)?)
    }

    /// The release that wrote the log at `lsn`, where it is known.
    ///
    /// # Errors
    /// What index or source say.
    pub fn major_at(&self, path: &TimelinePath, lsn: Lsn) -> Result<Option<MajorVersion>, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(None) };
        Ok(along
            .segment_containing(lsn)?
            .and_then(|stretch| MajorVersion::from_magic(stretch.summary.digest.page_magic)))
    }

    /// The restore points called `name` from `from` on, in their order.
    ///
    /// # Errors
    /// What index or source say.
    pub fn restore_points(
        &self,
        path: &TimelinePath,
        from: Lsn,
        name: &str,
    ) -> Result<Vec<WalEvent>, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(Vec::new()) };
        Ok(along.restore_points(name, from)?)
    }

    /// The first record that starts at `from` or later, whatever it is. Looks into the segment's bytes.
    ///
    /// # Errors
    /// What index or source say.
    pub fn record_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<RecordSpan>, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(None) };
        let mut segment = along.segment_size().segment_of(from);
        while let Some(stretch) = along.next_segment(segment, SegmentFilter::Any)? {
            if let Some(record) =
                contrecord_span(&stretch).filter(|record| record.lsn >= from && record.end <= stretch.to)
            {
                return Ok(Some(record));
            }
            if stretch.summary.digest.last_record.is_some_and(|last| last >= from) {
                let found = self.find_record(&stretch, |record| record.lsn >= from)?;
                if found.is_some_and(|record| record.end <= stretch.to) {
                    return Ok(found);
                }
            }
            segment = stretch.place.segment.next();
        }
        Ok(None)
    }

    /// The last record that ends at `end` or before.
    ///
    /// # Errors
    /// What index or source say.
    pub fn record_until(&self, path: &TimelinePath, end: Lsn) -> Result<Option<Lsn>, LookupError<S::Error>> {
        let (Some(along), Some(last_byte)) = (PathSearch::new(&self.view, path), end.get().checked_sub(1)) else {
            return Ok(None);
        };
        let mut limit = along.segment_size().segment_of(Lsn::new(last_byte)).next();
        while let Some(stretch) = along.previous_segment(limit, SegmentFilter::Any)? {
            let bound = end.min(stretch.to);
            let found = match self.last_record_within(&stretch, bound)? {
                Some(lsn) => Some(lsn),
                None => contrecord_span(&stretch).filter(|record| record.end <= bound).map(|record| record.lsn),
            };
            if found.is_some() {
                return Ok(found);
            }
            limit = stretch.place.segment;
        }
        Ok(None)
    }

    /// The last record that starts in the segment and ends at `bound` or before.
    fn last_record_within(&self, stretch: &PathSegment, bound: Lsn) -> Result<Option<Lsn>, LookupError<S::Error>> {
        let digest = &stretch.summary.digest;
        let (Some(first), Some(last)) = (digest.first_record, digest.last_record) else { return Ok(None) };
        let whole = match &digest.state {
            SegmentState::Broken { at, .. } => bound >= *at,
            SegmentState::Checked | SegmentState::Opaque => bound >= digest.valid_until,
        };
        if whole || bound <= first {
            return Ok(whole.then_some(last));
        }
        let mut before = None;
        self.find_record(stretch, |record| {
            if record.end_lsn <= bound {
                before = Some(record.lsn);
            }
            record.end_lsn > bound
        })?;
        Ok(before)
    }

    /// The first record of a segment that `stop` says yes to. Damage ends the search: what is before it was
    /// looked at.
    fn find_record(
        &self,
        stretch: &PathSegment,
        mut stop: impl FnMut(&WalRecord<'_>) -> bool,
    ) -> Result<Option<RecordSpan>, LookupError<S::Error>> {
        let bytes = self.source.segment(stretch.place).map_err(LookupError::Segments)?;
        let mut decoder = WalDecoder::new(stretch.from, stretch.place.timeline, self.segment_size());
        let mut feed = decoder.feed_bytes(&bytes);
        while let Ok(Some(record)) = feed.next_record() {
            if stop(&record) {
                return Ok(Some(RecordSpan { lsn: record.lsn, end: record.end_lsn }));
            }
        }
        Ok(None)
    }

    /// The log from `from` to `to`, or to the end of what is archived.
    ///
    /// # Errors
    /// What index or source say.
    pub fn wal_chain(
        &self,
        path: &TimelinePath,
        from: Lsn,
        to: Option<Lsn>,
    ) -> Result<WalChain, LookupError<S::Error>> {
        let limit = to.unwrap_or(Lsn::MAX);
        let Some(along) = PathSearch::new(&self.view, path) else {
            let hole = WalHole { timeline: path.timeline_at(from), from, to: limit, why: WalDefect::Missing };
            return Ok(WalChain { hole: to.map(|_| hole), segments: 0, records: 0, end: from });
        };
        let found = along.first_hole(from, limit)?;
        let Some(mut hole) = found.holes.into_iter().next() else {
            return Ok(WalChain { hole: None, segments: found.segments, records: found.records, end: limit });
        };
        // Where the segment that holds `from` is there only for a timeline left before `from`, the hole begins before
        // what was asked for.
        hole.from = hole.from.max(from);
        let end = hole.from;
        // Without a limit the last hole reaches to the end of all positions, and is none.
        let is_end = to.is_none() && hole.why == WalDefect::Missing && !self.has_next_segment(&along, hole.from)?;
        Ok(WalChain { hole: Some(hole).filter(|_| !is_end), segments: found.segments, records: found.records, end })
    }

    /// Opens the end of the object with the byte at `lsn`, if it is there: a proof that its key is at hand.
    ///
    /// # Errors
    /// What index or source say.
    pub fn check_opens(&self, path: &TimelinePath, lsn: Lsn) -> Result<(), LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(()) };
        let Some(stretch) = along.segment_containing(lsn)? else { return Ok(()) };
        self.source.digest(stretch.place).map(drop).map_err(LookupError::Segments)
    }

    /// Whether the path has a segment after the one with the byte before `lsn`.
    fn has_next_segment(&self, along: &PathSearch<'_>, lsn: Lsn) -> Result<bool, LookupError<S::Error>> {
        let last =
            lsn.get().checked_sub(1).map_or(SegmentNo::new(0), |byte| along.segment_size().segment_of(Lsn::new(byte)));
        let mut more = false;
        along.walk_segments(last.end(along.segment_size()), Lsn::MAX, |_| {
            more = true;
            std::ops::ControlFlow::Break(())
        })?;
        Ok(more)
    }

    /// The largest values of the settings that a restored server must match, as the log from `from` to `to` has them.
    ///
    /// # Errors
    /// What index or source say.
    pub fn parameter_maxima(
        &self,
        path: &TimelinePath,
        from: Lsn,
        to: Lsn,
    ) -> Result<ParameterMaxima, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(ParameterMaxima::default()) };
        Ok(along.parameter_maxima(from, to)?)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{SegmentSource, WalLookup};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::SegmentNo;
    use crate::postgres::format::time::PgTime;
    use crate::postgres::index::test_archive::{CLUSTER_NAME, FIRST_SEGMENT, TestArchive, any_recipe};
    use crate::postgres::index::{IndexView, SegmentId, WalDefect};
    use crate::postgres::wal::digest::SegmentDigest;
    use crate::postgres::wal::event::{TransactionEnd, WalEventKind, Xid};

    /// The archive itself, counting how often it is asked.
    struct Archive<'a>(&'a TestArchive, Cell<usize>);

    impl SegmentSource for Archive<'_> {
        type Error = std::convert::Infallible;

        fn digest(&self, place: SegmentId) -> Result<Arc<SegmentDigest>, Self::Error> {
            self.1.set(self.1.get() + 1);
            Ok(Arc::new(self.0.digest(place).expect("only segments in the index are asked for").clone()))
        }

        fn segment(&self, _: SegmentId) -> Result<Bytes, Self::Error> {
            unreachable!("nothing here needs the bytes")
        }
    }

    proptest! {
        #[test]
        fn every_answer_is_that_of_a_scan_of_the_whole_log(
            recipe in any_recipe(), shuffle in any::<u64>(), place in 0..400_u64, time in -60..4000_i64, pick in any::<usize>(),
        ) {
            let world = recipe.build();
            let memory = world.index(shuffle);
            let lookup = WalLookup::new(IndexView::new(&memory, CLUSTER_NAME).unwrap(), Archive(&world, Cell::new(0)));
            let all = world.endings();
            let (path, from) = (&world.path, SegmentNo::new(FIRST_SEGMENT).start(world.size).saturating_add(place * world.size.get() / 16 + 8));
            // Half of the times are those of an ending, where "after" and "not before" part.
            let exact = all.get(pick % all.len().max(1)).filter(|_| pick % 2 == 0).map(|ending| ending.time);
            let time = exact.unwrap_or(PgTime::from_pg_micros(time));
            let first = |meets: &dyn Fn(&TransactionEnd) -> bool| all.iter().copied().find(|ending| ending.lsn >= from && meets(ending));
            prop_assert_eq!(lookup.ending_after(path, from, time).unwrap(), first(&|ending| ending.time > time));
            prop_assert_eq!(lookup.commit_from(path, from).unwrap(), first(&|ending| ending.kind.is_commit()));
            let before = all.iter().copied().rfind(|ending| ending.lsn < from && ending.kind.is_commit());
            prop_assert_eq!(lookup.commit_before(path, from).unwrap(), before);
            let last = all.iter().copied().rfind(|ending| ending.kind.is_commit());
            prop_assert_eq!(lookup.commit_before(path, Lsn::MAX).unwrap(), last);
            let xid = all.get(pick % all.len().max(1)).map_or(Xid::new(9), |ending| ending.xid);
            prop_assert_eq!(lookup.ending_of(path, from, xid).unwrap(), first(&|ending| ending.xid == xid));
            prop_assert_eq!(lookup.ending_of(path, Lsn::INVALID, xid).unwrap(), all.iter().copied().find(|ending| ending.xid == xid));
        }

        #[test]
        fn a_timeline_that_was_left_goes_on_in_the_copy_of_those_that_left_it(recipe in any_recipe(), pick in any::<usize>(), shuffle in any::<u64>()) {
            let mut world = recipe.build();
            world.switch_path_to(pick);
            let memory = world.index(shuffle);
            let lookup = WalLookup::new(IndexView::new(&memory, CLUSTER_NAME).unwrap(), Archive(&world, Cell::new(0)));
            let (all, path) = (world.endings(), &world.path);
            let last = all.iter().copied().rfind(|ending| ending.kind.is_commit());
            prop_assert_eq!(lookup.commit_before(path, Lsn::MAX).unwrap(), last);
            for wanted in all.iter().rev().take(3) {
                let first = all.iter().copied().find(|ending| ending.xid == wanted.xid);
                prop_assert_eq!(lookup.ending_of(path, Lsn::INVALID, wanted.xid).unwrap(), first);
                let name = format!("point {}", wanted.xid.get() % 5);
                let points = world.segments().into_iter().flat_map(|(place, to)| {
                    let events = world.digest(place).map(|digest| digest.events.clone()).unwrap_or_default();
                    events.into_iter().filter(move |event| event.lsn < to)
                });
                let named = |event: &crate::postgres::wal::event::WalEvent| matches!(&event.kind, WalEventKind::RestorePoint { name: found, .. } if *found == name);
                let all: Vec<Lsn> = points.into_iter().filter(named).map(|event| event.lsn).collect();
                let found = lookup.restore_points(path, Lsn::INVALID, &name).unwrap();
                prop_assert_eq!(found.iter().map(|event| event.lsn).collect::<Vec<_>>(), all);
            }
            if let Some((first, _)) = world.segments().first() {
                let begin = first.segment.start(world.size);
                let mut reached = begin;
                while let Some((_, end)) = world.segments().iter().find(|(place, end)| place.segment.start(world.size) <= reached && reached < *end) {
                    reached = *end;
                }
                prop_assert_eq!(lookup.wal_chain(path, begin, None).unwrap().end, reached);
            }
        }

        #[test]
        fn a_chain_ends_at_the_first_hole_and_the_end_of_the_archive_is_none(
            recipe in any_recipe(), from in 0..20_u64, len in 1..20_u64, inside in 0..8_u64,
        ) {
            let world = recipe.build();
            let memory = world.index(1);
            let lookup = WalLookup::new(IndexView::new(&memory, CLUSTER_NAME).unwrap(), Archive(&world, Cell::new(0)));
            let from = SegmentNo::new(FIRST_SEGMENT + from).start(world.size).saturating_add(inside * world.size.get() / 8);
            let to = from.saturating_add(len * world.size.get());
            let mut reached = from;
            let segments = world.segments();
            while let Some((_, end)) = segments.iter().find(|(place, end)| place.segment.start(world.size) <= reached && reached < *end) {
                reached = *end;
            }
            let later = segments.iter().any(|(place, _)| place.segment.start(world.size) > reached);
            let open = lookup.wal_chain(&world.path, from, None).unwrap();
            prop_assert_eq!(open.end, reached);
            prop_assert_eq!(open.hole.map(|hole| (hole.from, hole.why)), later.then_some((reached, WalDefect::Missing)));
            let closed = lookup.wal_chain(&world.path, from, Some(to)).unwrap();
            prop_assert_eq!(closed.end, reached.min(to));
            prop_assert_eq!(closed.hole.is_none(), reached >= to);
        }
    }

    #[test]
    fn a_search_looks_into_few_segments() {
        let size = crate::postgres::format::segment::SegmentSize::DEFAULT;
        let ending = |segment: u64, time: i64| TransactionEnd {
            lsn: SegmentNo::new(segment).start(size).saturating_add(64),
            end_lsn: SegmentNo::new(segment).start(size).saturating_add(104),
            xid: Xid::new(u32::try_from(segment).unwrap() + 3),
            time: PgTime::from_pg_micros(time),
            kind: crate::postgres::wal::event::TransactionEndKind::Commit,
        };
        let timeline = crate::postgres::format::timeline::TimelineId::FIRST;
        let digests = (1..2000).map(|segment| {
            let endings = vec![ending(segment, i64::try_from(segment).unwrap() * 1000)];
            crate::postgres::index::test_archive::digest(timeline, SegmentNo::new(segment), size, endings)
        });
        let path = crate::postgres::format::timeline::TimelinePath::first();
        let world = TestArchive { digests: digests.collect(), path, size };
        let memory = world.index(1);
        let lookup = WalLookup::new(IndexView::new(&memory, CLUSTER_NAME).unwrap(), Archive(&world, Cell::new(0)));
        let found = lookup.ending_after(&world.path, Lsn::INVALID, PgTime::from_pg_micros(1_700_500)).unwrap();
        assert_eq!(found.map(|ending| ending.xid), Some(Xid::new(1704)));
        assert_eq!(lookup.source.1.get(), 1, "one segment is looked into");
    }
}
