//! What the index holds of one cluster, read key by key and range by range.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::event::WalEvent;

use super::error::IndexError;
use super::key_value_store::{KeyFamily, KeyValueStore, ScanOrder};
use super::keys::{BlockId, ClusterKeys, SegmentId, block_number};
use super::segment_update::{ClusterFacts, read_facts, read_mark};
use super::summary::{BlockSummary, SegmentSummary};
use super::walk::{SegmentRunSum, WalkNext};

/// One cluster's part of an index.
pub struct IndexView<'a> {
    store: Box<dyn KeyValueStore + 'a>,
    cluster: ClusterKeys,
    facts: Option<ClusterFacts>,
    /// What stretches of segments came to that were walked over already.
    sums: RefCell<BTreeMap<SegmentRun, Option<Rc<SegmentRunSum>>>>,
}

/// The segments of a timeline from one to before another.
type SegmentRun = (TimelineId, SegmentNo, SegmentNo);

impl std::fmt::Debug for IndexView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("cluster", &self.cluster).field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What a visitor says: to stop, or how to go on.
pub type VisitResult = Result<ControlFlow<(), WalkNext>, IndexError>;

const CONTINUE: ControlFlow<(), WalkNext> = ControlFlow::Continue(WalkNext::Next);

/// Summaries with their places, in the order asked for.
pub type SegmentSummaries<'a> = Box<dyn Iterator<Item = Result<(SegmentId, SegmentSummary), IndexError>> + 'a>;

impl<'a> IndexView<'a> {
    /// The part of `store` that is about `cluster`.
    ///
    /// # Errors
    /// [`IndexError::Cluster`] for a name that cannot be, or what the store says.
    pub fn new(store: impl KeyValueStore + 'a, cluster: &str) -> Result<IndexView<'a>, IndexError> {
        let cluster = ClusterKeys::new(cluster)?;
        let facts = read_facts(&store, &cluster)?;
        Ok(IndexView { store: Box::new(store), cluster, facts, sums: RefCell::default() })
    }

    /// The size of the cluster's segments; `None` while there is none.
    #[must_use]
    pub fn segment_size(&self) -> Option<SegmentSize> {
        self.facts.as_ref().map(|facts| facts.segment_size)
    }

    /// The timelines that have segments here, ascending.
    #[must_use]
    pub fn timelines(&self) -> &[TimelineId] {
        self.facts.as_ref().map_or(&[], |facts| facts.timelines.as_slice())
    }

    /// One segment.
    ///
    /// # Errors
    /// What the store says.
    pub fn summary(&self, place: SegmentId) -> Result<Option<SegmentSummary>, IndexError> {
        let found = self.store.get(KeyFamily::Segments, &self.cluster.segment(place))?;
        found.map(|bytes| SegmentSummary::from_bytes(&bytes)).transpose()
    }

    /// Whether a segment is there.
    ///
    /// # Errors
    /// What the store says.
    pub fn contains(&self, place: SegmentId) -> Result<bool, IndexError> {
        Ok(self.store.get(KeyFamily::Segments, &self.cluster.segment(place))?.is_some())
    }

    /// The segments `from..to` of a timeline.
    pub fn summaries(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        to: SegmentNo,
        order: ScanOrder,
    ) -> SegmentSummaries<'_> {
        let pairs = self.store.scan(KeyFamily::Segments, &self.cluster.segments(timeline, from, to), order);
        Box::new(pairs.map(|pair| {
            let (key, value) = pair?;
            let place = self.cluster.parse_segment(&key).ok_or(IndexError::MalformedValue("segment key"))?;
            Ok((place, SegmentSummary::from_bytes(&value)?))
        }))
    }

    /// One block.
    ///
    /// # Errors
    /// What the store says.
    pub fn block(&self, timeline: TimelineId, at: BlockId) -> Result<Option<BlockSummary>, IndexError> {
        let found = self.store.get(KeyFamily::Blocks, &self.cluster.block(timeline, at))?;
        found.map(|bytes| BlockSummary::from_bytes(&bytes)).transpose()
    }

    /// The lowest blocks `from..=to` of a timeline.
    fn blocks(
        &self,
        timeline: TimelineId,
        from: u64,
        to: u64,
        order: ScanOrder,
    ) -> impl Iterator<Item = Result<(BlockId, BlockSummary), IndexError>> {
        self.store.scan(KeyFamily::Blocks, &self.cluster.blocks(timeline, from, to), order).map(|pair| {
            let (key, value) = pair?;
            let (_, at) = self.cluster.parse_block(&key).ok_or(IndexError::MalformedValue("block key"))?;
            Ok((at, BlockSummary::from_bytes(&value)?))
        })
    }

    /// Shows the blocks in which the segments `from..to` of a timeline lie, each segment in one block only and in as
    /// few blocks as can be; the lowest ones at either end may reach beyond. A visitor that answers [`WalkNext::Into`]
    /// is shown what the block is made of; of a lowest block it has to look into the segments by itself.
    ///
    /// # Errors
    /// What the store or the visitor says.
    pub fn walk_blocks(
        &self,
        timeline: TimelineId,
        from: SegmentNo,
        to: SegmentNo,
        order: ScanOrder,
        visit: &mut dyn FnMut(BlockId, BlockSummary) -> VisitResult,
    ) -> Result<(), IndexError> {
        let Some(last) = to.previous().filter(|last| *last >= from) else { return Ok(()) };
        let within = |at: BlockId| from <= at.first() && at.end() <= to;
        // The lowest blocks not seen yet, both ends included.
        let mut left = Some((block_number(from), block_number(last)));
        while let Some((first, last)) = left.take() {
            for lowest in self.blocks(timeline, first, last, order) {
                let (at, block) = lowest?;
                let (at, block) = match self.largest_block(timeline, at, order, &within)? {
                    Some(larger) => larger,
                    None => (at, block),
                };
                if self.visit_block(timeline, at, block, order, visit)?.is_break() {
                    return Ok(());
                }
                if at.level > 0 {
                    left = match order {
                        ScanOrder::Forward => {
                            Some((block_number(at.end()), last)).filter(|(first, last)| first <= last)
                        }
                        ScanOrder::Backward => at.first().previous().map(|before| (first, block_number(before))),
                    };
                    break;
                }
            }
        }
        Ok(())
    }

    /// What the segments of a run are together; `made` finds it out the first time.
    pub(super) fn cached_sum(
        &self,
        run: SegmentRun,
        made: impl FnOnce() -> Result<Option<SegmentRunSum>, IndexError>,
    ) -> Result<Option<Rc<SegmentRunSum>>, IndexError> {
        if let Some(known) = self.sums.borrow().get(&run) {
            return Ok(known.clone());
        }
        let sum = made()?.map(Rc::new);
        self.sums.borrow_mut().insert(run, sum.clone());
        Ok(sum)
    }

    /// The largest block that begins with this one, or ends with it, and is `within` what is asked for; a larger one is
    /// there only if the smaller ones in it are.
    fn largest_block(
        &self,
        timeline: TimelineId,
        lowest: BlockId,
        order: ScanOrder,
        within: &dyn Fn(BlockId) -> bool,
    ) -> Result<Option<(BlockId, BlockSummary)>, IndexError> {
        let (mut at, mut found) = (lowest, None);
        while let Some(parent) = at.parent() {
            let joins = match order {
                ScanOrder::Forward => parent.first() == lowest.first(),
                ScanOrder::Backward => parent.end() == lowest.end(),
            };
            let Some(block) = (if joins && within(parent) { self.block(timeline, parent)? } else { None }) else {
                break;
            };
            found = Some((parent, block));
            at = parent;
        }
        Ok(found)
    }

    fn visit_block(
        &self,
        timeline: TimelineId,
        at: BlockId,
        block: BlockSummary,
        order: ScanOrder,
        visit: &mut dyn FnMut(BlockId, BlockSummary) -> VisitResult,
    ) -> VisitResult {
        let onward = visit(at, block)?;
        if onward != ControlFlow::Continue(WalkNext::Into) {
            return Ok(onward);
        }
        let mut children: Vec<BlockId> = at.children().collect();
        if order == ScanOrder::Backward {
            children.reverse();
        }
        for child in children {
            // One that is gone by now has no segments any more.
            if let Some(block) = self.block(timeline, child)?
                && self.visit_block(timeline, child, block, order, visit)?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(CONTINUE)
    }

    /// The events of one kind and timeline whose records start in `from..to`, in log order.
    pub fn events(
        &self,
        kind: u8,
        timeline: TimelineId,
        from: Lsn,
        to: Lsn,
    ) -> impl Iterator<Item = Result<WalEvent, IndexError>> {
        let range = self.cluster.events(kind, timeline, from, to);
        self.store.scan(KeyFamily::Events, &range, ScanOrder::Forward).map(|pair| {
            let (_, value) = pair?;
            WalEvent::from_bytes(&value).ok_or(IndexError::MalformedValue("event"))
        })
    }

    /// One event.
    ///
    /// # Errors
    /// What the store says.
    pub fn event(&self, kind: u8, timeline: TimelineId, lsn: Lsn) -> Result<Option<WalEvent>, IndexError> {
        let found = self.store.get(KeyFamily::Events, &self.cluster.event(kind, timeline, lsn, 0))?;
        found.map(|bytes| WalEvent::from_bytes(&bytes).ok_or(IndexError::MalformedValue("event"))).transpose()
    }

    /// Where restore points of this name are, by timeline, then position.
    ///
    /// # Errors
    /// What the store says.
    pub fn restore_points(&self, name: &str) -> Result<Vec<(TimelineId, Lsn)>, IndexError> {
        let pairs = self.store.scan(KeyFamily::Names, &self.cluster.names(name.as_bytes()), ScanOrder::Forward);
        pairs.map(|pair| self.cluster.parse_name(&pair?.0).ok_or(IndexError::MalformedValue("restore point"))).collect()
    }

    /// The timeline's mark: everything that was archived up to it, when it was set, is here.
    ///
    /// # Errors
    /// What the store says.
    pub fn timeline_mark(&self, timeline: TimelineId) -> Result<Option<SegmentNo>, IndexError> {
        self.store.get(KeyFamily::Meta, &self.cluster.mark(timeline))?.map(|bytes| read_mark(&bytes)).transpose()
    }
}
