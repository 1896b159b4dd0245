//! Searches along a timeline path: which segments may answer, and whether the log is whole.
//!
//! The index says which segment to look into; the record itself is in the segment's dense list of endings, which the
//! caller fetches. Commit times go back and forth in log order, so nothing here bisects them: a search passes over
//! blocks and segments by their largest time and looks into the first that may hold what is wanted.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineDeparture, TimelineId, TimelinePath, TimelineSpan};
use crate::postgres::wal::event::{WalEvent, WalEventKind, WalLevel, WalParameters};

use super::cluster_view::IndexView;
use super::error::IndexError;
use super::key_value_store::ScanOrder;
use super::keys::{PARAMETERS_TAG, RESTORE_POINT_TAG, SegmentId};
use super::summary::{BlockSummary, SegmentSummary};
use super::walk::{PathSegment, StepVisitor, WalkNext, WalkStep, WholeBlock};

/// What a segment must hold to be looked into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentFilter {
    /// Anything.
    Any,
    /// An ending.
    Ending,
    /// An ending later than this.
    EndingAfter(PgTime),
    /// The ending of this transaction.
    Xid(u32),
}

impl SegmentFilter {
    fn may_match_block(self, block: &BlockSummary) -> bool {
        match self {
            SegmentFilter::Any => true,
            SegmentFilter::Ending => block.endings,
            SegmentFilter::EndingAfter(time) => block.latest.is_some_and(|latest| latest > time),
            SegmentFilter::Xid(xid) => block.xids.may_hold(xid),
        }
    }

    /// Whether it may be in the segment; if not, it certainly is not.
    #[must_use]
    fn may_match(self, summary: &SegmentSummary) -> bool {
        match self {
            SegmentFilter::Any => true,
            SegmentFilter::Ending => summary.endings > 0,
            SegmentFilter::EndingAfter(time) => summary.latest.is_some_and(|latest| latest > time),
            SegmentFilter::Xid(xid) => summary.xids.may_hold(xid),
        }
    }
}

/// A search along one path of one cluster.
#[derive(Debug)]
pub struct PathSearch<'a> {
    view: &'a IndexView<'a>,
    path: &'a TimelinePath,
    size: SegmentSize,
}

/// The segments `from..to` whose first choice is one span's timeline.
struct SpanSegments {
    span: TimelineSpan,
    from: SegmentNo,
    to: SegmentNo,
}

impl<'a> PathSearch<'a> {
    /// Searches of `view` along `path`. `None` while the index has nothing of the cluster.
    #[must_use]
    pub fn new(view: &'a IndexView<'a>, path: &'a TimelinePath) -> Option<PathSearch<'a>> {
        Some(PathSearch { view, path, size: view.segment_size()? })
    }

    /// The size of the cluster's segments.
    #[must_use]
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// The timeline that the byte at `lsn` is read from.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.path.timeline_at(lsn)
    }

    /// For each timeline of the path the segments that are looked for on it first.
    fn span_segments(&self) -> Vec<SpanSegments> {
        let spans = self.path.spans();
        let begins = |span: &TimelineSpan| self.size.segment_of(span.begin);
        let ends = spans.iter().skip(1).map(begins).chain([SegmentNo::new(u64::MAX)]);
        spans.iter().zip(ends).map(|(span, to)| SpanSegments { span: *span, from: begins(span), to }).collect()
    }

    fn path_segment(&self, place: SegmentId, summary: SegmentSummary) -> PathSegment {
        let end = self.path.switch_point(place.timeline).unwrap_or(Lsn::MAX);
        PathSegment { place, from: place.segment.start(self.size), to: place.segment.end(self.size).min(end), summary }
    }

    /// The segment of this number as recovery along the path would find it: on the newest timeline that has it.
    ///
    /// # Errors
    /// What the store says.
    pub fn segment_by_number(&self, number: SegmentNo) -> Result<Option<PathSegment>, IndexError> {
        for timeline in self.path.candidates(number, self.size) {
            let place = SegmentId { timeline, segment: number };
            if self.path.switch_point(timeline).is_some_and(|end| end <= number.start(self.size)) {
                return Ok(None);
            }
            if let Some(summary) = self.view.summary(place)? {
                return Ok(Some(self.path_segment(place, summary)));
            }
            let tail = if timeline == self.path.target() { self.tail_segment()? } else { None };
            if let Some(tail) = tail.filter(|tail| tail.place.segment == number) {
                return Ok(Some(tail));
            }
        }
        Ok(None)
    }

    /// The end of the path's last timeline, where a promotion cut it in the middle of a segment that was never archived
    /// under its name: the first segment of a timeline that left it there begins with a copy.
    fn tail_segment(&self) -> Result<Option<PathSegment>, IndexError> {
        let (target, departures) = (self.path.target(), self.path.departures());
        let (Some(span), false) = (self.path.spans().last(), departures.is_empty()) else { return Ok(None) };
        let (first, last) = (SegmentNo::new(0), SegmentNo::new(u64::MAX));
        let number = match self.view.summaries(target, first, last, ScanOrder::Backward).next().transpose()? {
            Some((place, _)) => place.segment.next(),
            None => self.size.segment_of(span.begin),
        };
        let here = |at: Lsn| self.size.segment_of(at) == number;
        let mut copies: Vec<&TimelineDeparture> = departures
            .iter()
            .filter(|left| self.size.offset_of(left.at) > 0 && here(left.at) && here(left.begin))
            .collect();
        copies.sort_by_key(|left| (std::cmp::Reverse(left.at), left.by));
        for left in copies {
            let place = SegmentId { timeline: left.by, segment: number };
            if let Some(summary) = self.view.summary(place)? {
                return Ok(Some(PathSegment { place, from: number.start(self.size), to: left.at, summary }));
            }
        }
        Ok(None)
    }

    /// The segment with the byte at `lsn`.
    ///
    /// # Errors
    /// What the store says.
    pub fn segment_containing(&self, lsn: Lsn) -> Result<Option<PathSegment>, IndexError> {
        Ok(self.segment_by_number(self.size.segment_of(lsn))?.filter(|stretch| lsn < stretch.to))
    }

    /// The segment in which `run` hands over to the next timeline, where that timeline's own copy of it is missing.
    fn handover_segment(&self, run: &SpanSegments) -> Result<Option<PathSegment>, IndexError> {
        if run.span.end.is_none() || run.from >= run.to {
            return Ok(None);
        }
        let first_choice = self.path.candidates(run.to, self.size).next();
        let other = |on: TimelineId| Some(on) != first_choice && self.path.contains_timeline(on);
        Ok(self.segment_by_number(run.to)?.filter(|stretch| other(stretch.place.timeline)))
    }

    /// The first segment from `from` on that may hold what is wanted.
    ///
    /// # Errors
    /// What the store says.
    pub fn next_segment(&self, from: SegmentNo, want: SegmentFilter) -> Result<Option<PathSegment>, IndexError> {
        for run in self.span_segments() {
            let found =
                self.nearest_segment(run.span.timeline, run.from.max(from), run.to, want, ScanOrder::Forward)?;
            if found.is_some() {
                return Ok(found);
            }
            if run.to >= from
                && let Some(stretch) = self.handover_segment(&run)?
                && want.may_match(&stretch.summary)
            {
                return Ok(Some(stretch));
            }
        }
        Ok(self.tail_segment()?.filter(|tail| tail.place.segment >= from && want.may_match(&tail.summary)))
    }

    /// The segment nearest to one end of `from..to` on a timeline that may hold what is wanted; to which end says the
    /// order.
    fn nearest_segment(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        to: SegmentNo,
        want: SegmentFilter,
        order: ScanOrder,
    ) -> Result<Option<PathSegment>, IndexError> {
        let mut found = None;
        self.view.walk_blocks(timeline, from, to, order, &mut |at, block| {
            if !want.may_match_block(&block) {
                return Ok(ControlFlow::Continue(WalkNext::Next));
            }
            if at.level > 0 {
                return Ok(ControlFlow::Continue(WalkNext::Into));
            }
            for summary in self.view.summaries(timeline, at.first().max(from), at.end().min(to), order) {
                let (place, summary) = summary?;
                if want.may_match(&summary) {
                    found = Some(self.path_segment(place, summary));
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(WalkNext::Next))
        })?;
        Ok(found)
    }

    /// The last segment before `before` that may hold what is wanted.
    ///
    /// # Errors
    /// What the store says.
    pub fn previous_segment(&self, before: SegmentNo, want: SegmentFilter) -> Result<Option<PathSegment>, IndexError> {
        let tail = self.tail_segment()?.filter(|tail| tail.place.segment < before && want.may_match(&tail.summary));
        if tail.is_some() {
            return Ok(tail);
        }
        for run in self.span_segments().into_iter().rev() {
            if run.to < before
                && let Some(stretch) = self.handover_segment(&run)?
                && want.may_match(&stretch.summary)
            {
                return Ok(Some(stretch));
            }
            let to = run.to.min(before);
            let found = self.nearest_segment(run.span.timeline, run.from, to, want, ScanOrder::Backward)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Every segment of the path with a byte in `from..to`, in log order, one by one, until the visitor has seen
    /// enough.
    ///
    /// # Errors
    /// What the store says.
    pub fn walk_segments(
        &self,
        from: Lsn,
        to: Lsn,
        mut visit: impl FnMut(PathSegment) -> ControlFlow<()>,
    ) -> Result<(), IndexError> {
        self.walk_steps(from, to, false, &mut |step| match step {
            WalkStep::Segment(stretch) => visit(stretch).map_continue(|()| WalkNext::Next),
            WalkStep::Block(_) => ControlFlow::Continue(WalkNext::Into),
        })
    }

    /// As [`PathSearch::walk_segments`], but a block that is full and lies within the stretch is shown as one: its
    /// visitor may go on after it, or look into it. So is all that the path takes from a timeline that it leaves, if
    /// that is whole.
    ///
    /// # Errors
    /// What the store says.
    pub fn walk_blocks(
        &self,
        from: Lsn,
        to: Lsn,
        mut visit: impl FnMut(WalkStep<'_>) -> ControlFlow<(), WalkNext>,
    ) -> Result<(), IndexError> {
        self.walk_steps(from, to, true, &mut visit)
    }

    fn walk_steps(&self, from: Lsn, to: Lsn, sums: bool, visit: &mut StepVisitor<'_>) -> Result<(), IndexError> {
        let Some(last_byte) = to.get().checked_sub(1).filter(|_| from < to) else { return Ok(()) };
        let (first, end) = (self.size.segment_of(from), self.size.segment_of(Lsn::new(last_byte)).next());
        for run in self.span_segments() {
            let (begin, stop) = (run.from.max(first), run.to.min(end));
            let whole = sums && begin < stop && stop == run.to && run.span.end.is_some();
            let seen = match if whole { self.visit_run_as_block(run.span.timeline, begin, stop, visit)? } else { None }
            {
                Some(seen) => seen,
                None => self.walk_timeline_blocks(run.span.timeline, begin, stop, visit)?,
            };
            if seen.is_break() {
                return Ok(());
            }
            if run.to >= first
                && run.to < end
                && let Some(stretch) = self.handover_segment(&run)?
                // The path may leave it before `from`, in the same segment.
                && stretch.to > from
                && visit(WalkStep::Segment(stretch)).is_break()
            {
                return Ok(());
            }
        }
        if let Some(tail) = self.tail_segment()?
            && (first..end).contains(&tail.place.segment)
            && tail.to > from
        {
            let _last = visit(WalkStep::Segment(tail));
        }
        Ok(())
    }

    /// Shows the segments `from..to` of a timeline as one block, if their log is whole and the visitor does not look
    /// into it. Paths to many timelines have most of their way in common, so what such a stretch comes to is found out
    /// once.
    fn visit_run_as_block(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        to: SegmentNo,
        visit: &mut StepVisitor<'_>,
    ) -> Result<Option<ControlFlow<()>>, IndexError> {
        let Some(sum) = self.view.cached_sum((timeline, from, to), || self.sum_segments(timeline, from, to))? else {
            return Ok(None);
        };
        let ends = &|| Ok(Some(sum.ends.clone()));
        let block = WholeBlock { segments: sum.segments, full: sum.full, latest: sum.latest, ends };
        Ok(match visit(WalkStep::Block(block)) {
            ControlFlow::Break(()) => Some(ControlFlow::Break(())),
            ControlFlow::Continue(WalkNext::Next) => Some(ControlFlow::Continue(())),
            ControlFlow::Continue(WalkNext::Into) => None,
        })
    }

    /// A segment by its own timeline.
    pub(super) fn segment_on(
        &self,
        timeline: TimelineId,
        segment: SegmentNo,
    ) -> Result<Option<PathSegment>, IndexError> {
        let place = SegmentId { timeline, segment };
        Ok(self.view.summary(place)?.map(|summary| self.path_segment(place, summary)))
    }

    /// The segments `from..to` of a timeline, and the full blocks among them.
    pub(super) fn walk_timeline_blocks(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        to: SegmentNo,
        visit: &mut StepVisitor<'_>,
    ) -> Result<ControlFlow<()>, IndexError> {
        let mut seen_enough = false;
        self.view.walk_blocks(timeline, from, to, ScanOrder::Forward, &mut |at, block| {
            let (begin, end) = (at.first(), at.end());
            if let Some(full) = block.full.filter(|_| from <= begin && end <= to) {
                let last = end.previous().unwrap_or(begin);
                let ends = &|| Ok(self.segment_on(timeline, begin)?.zip(self.segment_on(timeline, last)?));
                let (segments, latest) = (block.segments, block.latest);
                let onward = visit(WalkStep::Block(WholeBlock { segments, full, latest, ends }));
                seen_enough = onward.is_break();
                if at.level > 0 || onward != ControlFlow::Continue(WalkNext::Into) {
                    return Ok(onward);
                }
            }
            for found in self.view.summaries(timeline, begin.max(from), end.min(to), ScanOrder::Forward) {
                let (place, summary) = found?;
                if visit(WalkStep::Segment(self.path_segment(place, summary))).is_break() {
                    seen_enough = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(WalkNext::Next))
        })?;
        Ok(if seen_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// On which timelines the path's events are kept, and between which positions.
    fn event_spans(&self) -> Result<Vec<(TimelineId, Lsn, Lsn)>, IndexError> {
        // A timeline's first segment begins with a copy of its parent's bytes, where the parent's own copy may never
        // have been archived.
        let begin = |span: &TimelineSpan| self.size.segment_of(span.begin).start(self.size);
        let own = |span: &TimelineSpan| (span.timeline, begin(span), span.end.unwrap_or(Lsn::MAX));
        let mut spans: Vec<_> = self.path.spans().iter().map(own).collect();
        spans.extend(self.tail_segment()?.map(|tail| (tail.place.timeline, tail.from, tail.to)));
        Ok(spans)
    }

    /// The events of the given kinds whose records start in `from..to` on the path, in log order. At most `limit`: the
    /// caller can go on from the last one.
    ///
    /// # Errors
    /// What the store says.
    pub fn events(&self, kinds: &[u8], from: Lsn, to: Lsn, limit: usize) -> Result<Vec<WalEvent>, IndexError> {
        let mut found: BTreeMap<(Lsn, u8, usize), WalEvent> = BTreeMap::new();
        for (timeline, first, end) in self.event_spans()? {
            let (begin, end) = (first.max(from), end.min(to));
            for &kind in kinds {
                let mut last = (Lsn::INVALID, 0_usize);
                for event in self.view.events(kind, timeline, begin, end).take(limit) {
                    let event = event?;
                    last = (event.lsn, if last.0 == event.lsn { last.1.saturating_add(1) } else { 0 });
                    found.insert((event.lsn, kind, last.1), event);
                }
            }
        }
        Ok(found.into_values().take(limit).collect())
    }

    /// The restore points of this name on the path from `from` on, in log order. Recovery stops at the first it meets.
    ///
    /// # Errors
    /// What the store says.
    pub fn restore_points(&self, name: &str, from: Lsn) -> Result<Vec<WalEvent>, IndexError> {
        let mut found: BTreeMap<Lsn, WalEvent> = BTreeMap::new();
        let spans = self.event_spans()?;
        for (timeline, lsn) in self.view.restore_points(name)? {
            let on_path = spans.iter().any(|(on, begin, end)| *on == timeline && *begin <= lsn && lsn < *end);
            if on_path
                && lsn >= from
                && let Some(event) = self.view.event(RESTORE_POINT_TAG, timeline, lsn)?
            {
                found.insert(lsn, event);
            }
        }
        Ok(found.into_values().collect())
    }

    /// What the settings that a restored server must match were at their largest in `from..to`.
    ///
    /// # Errors
    /// What the store says.
    pub fn parameter_maxima(&self, from: Lsn, to: Lsn) -> Result<ParameterMaxima, IndexError> {
        let mut maxima = ParameterMaxima::default();
        let mut begin = from;
        loop {
            let page = self.events(&[PARAMETERS_TAG], begin, to, EVENTS_PER_READ)?;
            for event in &page {
                if let WalEventKind::Parameters(parameters) = &event.kind {
                    maxima.include(event.lsn, parameters);
                }
            }
            match page.last() {
                Some(last) if page.len() == EVENTS_PER_READ => begin = last.lsn.saturating_add(1),
                Some(_) | None => return Ok(maxima),
            }
        }
    }
}

/// Events read at a time where all are wanted.
const EVENTS_PER_READ: usize = 1024;

/// The largest values of the settings that WAL carries, over a stretch of log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ParameterMaxima {
    /// The maxima; `None` where no record says anything. What held before the stretch is in the backup's `pg_control`.
    pub largest: Option<WalParameters>,
    /// The first record that says `wal_level = minimal`: no recovery gets past it.
    pub minimal_at: Option<Lsn>,
}

impl ParameterMaxima {
    fn include(&mut self, lsn: Lsn, new: &WalParameters) {
        if new.wal_level == WalLevel::Minimal && self.minimal_at.is_none() {
            self.minimal_at = Some(lsn);
        }
        let old = self.largest.unwrap_or(*new);
        self.largest = Some(WalParameters {
            max_connections: old.max_connections.max(new.max_connections),
            max_worker_processes: old.max_worker_processes.max(new.max_worker_processes),
            max_wal_senders: old.max_wal_senders.max(new.max_wal_senders),
            max_prepared_transactions: old.max_prepared_transactions.max(new.max_prepared_transactions),
            max_locks_per_transaction: old.max_locks_per_transaction.max(new.max_locks_per_transaction),
            wal_level: old.wal_level.max(new.wal_level),
            wal_log_hints: old.wal_log_hints || new.wal_log_hints,
            track_commit_timestamp: old.track_commit_timestamp || new.track_commit_timestamp,
        });
    }
}
