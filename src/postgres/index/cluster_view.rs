//! What the index holds of one cluster, read key by key and range by range.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::event::Event;

use super::continuity::Sum;
use super::error::Error;
use super::key_value_store::{Family, Order, Store};
use super::keys::{BlockAt, Cluster, Place, block_of};
use super::segment_update::{Facts, facts, read_mark};
use super::summary::{Block, Summary};

/// One cluster's part of an index.
pub struct View<'a> {
    store: Box<dyn Store + 'a>,
    cluster: Cluster,
    facts: Option<Facts>,
    /// What stretches of segments came to that were walked over already.
    sums: RefCell<BTreeMap<Run, Option<Rc<Sum>>>>,
}

/// The segments of a timeline from one to before another.
type Run = (TimelineId, SegmentNo, SegmentNo);

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("cluster", &self.cluster).field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// How a walk goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Onward {
    /// With what follows.
    Next,
    /// With what the block is made of.
    Into,
}

/// What a visitor says: to stop, or how to go on.
pub type Visited = Result<ControlFlow<(), Onward>, Error>;

const GO_ON: ControlFlow<(), Onward> = ControlFlow::Continue(Onward::Next);

/// Summaries with their places, in the order asked for.
pub type Summaries<'a> = Box<dyn Iterator<Item = Result<(Place, Summary), Error>> + 'a>;

impl<'a> View<'a> {
    /// The part of `store` that is about `cluster`.
    ///
    /// # Errors
    /// [`Error::Cluster`] for a name that cannot be, or what the store says.
    pub fn new(store: impl Store + 'a, cluster: &str) -> Result<View<'a>, Error> {
        let cluster = Cluster::new(cluster)?;
        let facts = facts(&store, &cluster)?;
        Ok(View { store: Box::new(store), cluster, facts, sums: RefCell::default() })
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
    pub fn summary(&self, place: Place) -> Result<Option<Summary>, Error> {
        let found = self.store.get(Family::Segments, &self.cluster.segment(place))?;
        found.map(|bytes| Summary::from_bytes(&bytes)).transpose()
    }

    /// Whether a segment is there.
    ///
    /// # Errors
    /// What the store says.
    pub fn contains(&self, place: Place) -> Result<bool, Error> {
        Ok(self.store.get(Family::Segments, &self.cluster.segment(place))?.is_some())
    }

    /// The segments `from..to` of a timeline.
    pub fn summaries(&self, timeline: TimelineId, from: SegmentNo, to: SegmentNo, order: Order) -> Summaries<'_> {
        let pairs = self.store.scan(Family::Segments, &self.cluster.segments(timeline, from, to), order);
        Box::new(pairs.map(|pair| {
            let (key, value) = pair?;
            let place = self.cluster.parse_segment(&key).ok_or(Error::Value("segment key"))?;
            Ok((place, Summary::from_bytes(&value)?))
        }))
    }

    /// One block.
    ///
    /// # Errors
    /// What the store says.
    pub fn block(&self, timeline: TimelineId, at: BlockAt) -> Result<Option<Block>, Error> {
        let found = self.store.get(Family::Blocks, &self.cluster.block(timeline, at))?;
        found.map(|bytes| Block::from_bytes(&bytes)).transpose()
    }

    /// The lowest blocks `from..=to` of a timeline.
    fn blocks(
        &self,
        timeline: TimelineId,
        from: u64,
        to: u64,
        order: Order,
    ) -> impl Iterator<Item = Result<(BlockAt, Block), Error>> {
        self.store.scan(Family::Blocks, &self.cluster.blocks(timeline, from, to), order).map(|pair| {
            let (key, value) = pair?;
            let (_, at) = self.cluster.parse_block(&key).ok_or(Error::Value("block key"))?;
            Ok((at, Block::from_bytes(&value)?))
        })
    }

    /// Shows the blocks in which the segments `from..to` of a timeline lie, each segment in one block only and in as few blocks as can be; the
    /// lowest ones at either end may reach beyond. A visitor that answers [`Onward::Into`] is shown what the block is made of; of a lowest block
    /// it has to look into the segments by itself.
    ///
    /// # Errors
    /// What the store or the visitor says.
    pub fn stride(
        &self,
        timeline: TimelineId,
        (from, to): (SegmentNo, SegmentNo),
        order: Order,
        visit: &mut dyn FnMut(BlockAt, Block) -> Visited,
    ) -> Result<(), Error> {
        let Some(last) = to.previous().filter(|last| *last >= from) else { return Ok(()) };
        let within = |at: BlockAt| from <= at.first() && at.end() <= to;
        // The lowest blocks not seen yet, both ends included.
        let mut left = Some((block_of(from), block_of(last)));
        while let Some((first, last)) = left.take() {
            for lowest in self.blocks(timeline, first, last, order) {
                let (at, block) = lowest?;
                let (at, block) = match self.largest(timeline, at, order, &within)? {
                    Some(larger) => larger,
                    None => (at, block),
                };
                if self.visited(timeline, (at, block), order, visit)?.is_break() {
                    return Ok(());
                }
                if at.level > 0 {
                    left = match order {
                        Order::Forward => Some((block_of(at.end()), last)).filter(|(first, last)| first <= last),
                        Order::Backward => at.first().previous().map(|before| (first, block_of(before))),
                    };
                    break;
                }
            }
        }
        Ok(())
    }

    /// What the segments of a run are together; `made` finds it out the first time.
    pub(super) fn kept_sum(
        &self,
        run: Run,
        made: impl FnOnce() -> Result<Option<Sum>, Error>,
    ) -> Result<Option<Rc<Sum>>, Error> {
        if let Some(known) = self.sums.borrow().get(&run) {
            return Ok(known.clone());
        }
        let sum = made()?.map(Rc::new);
        self.sums.borrow_mut().insert(run, sum.clone());
        Ok(sum)
    }

    /// The largest block that begins with this one, or ends with it, and is `within` what is asked for; a larger one is there only if the smaller
    /// ones in it are.
    fn largest(
        &self,
        timeline: TimelineId,
        lowest: BlockAt,
        order: Order,
        within: &dyn Fn(BlockAt) -> bool,
    ) -> Result<Option<(BlockAt, Block)>, Error> {
        let (mut at, mut found) = (lowest, None);
        while let Some(parent) = at.parent() {
            let joins = match order {
                Order::Forward => parent.first() == lowest.first(),
                Order::Backward => parent.end() == lowest.end(),
            };
            let Some(block) = (if joins && within(parent) { self.block(timeline, parent)? } else { None }) else {
                break;
            };
            found = Some((parent, block));
            at = parent;
        }
        Ok(found)
    }

    fn visited(
        &self,
        timeline: TimelineId,
        (at, block): (BlockAt, Block),
        order: Order,
        visit: &mut dyn FnMut(BlockAt, Block) -> Visited,
    ) -> Visited {
        let onward = visit(at, block)?;
        if onward != ControlFlow::Continue(Onward::Into) {
            return Ok(onward);
        }
        let mut children: Vec<BlockAt> = at.children().collect();
        if order == Order::Backward {
            children.reverse();
        }
        for child in children {
            // One that is gone by now has no segments any more.
            if let Some(block) = self.block(timeline, child)?
                && self.visited(timeline, (child, block), order, visit)?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(GO_ON)
    }

    /// The events of one kind and timeline whose records start in `from..to`, in log order.
    pub fn events(
        &self,
        kind: u8,
        timeline: TimelineId,
        from: Lsn,
        to: Lsn,
    ) -> impl Iterator<Item = Result<Event, Error>> {
        let range = self.cluster.events(kind, timeline, from, to);
        self.store.scan(Family::Events, &range, Order::Forward).map(|pair| {
            let (_, value) = pair?;
            Event::from_bytes(&value).ok_or(Error::Value("event"))
        })
    }

    /// One event.
    ///
    /// # Errors
    /// What the store says.
    pub fn event(&self, kind: u8, timeline: TimelineId, lsn: Lsn) -> Result<Option<Event>, Error> {
        let found = self.store.get(Family::Events, &self.cluster.event(kind, timeline, lsn, 0))?;
        found.map(|bytes| Event::from_bytes(&bytes).ok_or(Error::Value("event"))).transpose()
    }

    /// Where restore points of this name are, by timeline, then position.
    ///
    /// # Errors
    /// What the store says.
    pub fn restore_points(&self, name: &str) -> Result<Vec<(TimelineId, Lsn)>, Error> {
        let pairs = self.store.scan(Family::Names, &self.cluster.names(name.as_bytes()), Order::Forward);
        pairs.map(|pair| self.cluster.parse_name(&pair?.0).ok_or(Error::Value("restore point"))).collect()
    }

    /// The timeline's mark: everything that was archived up to it, when it was set, is here.
    ///
    /// # Errors
    /// What the store says.
    pub fn mark(&self, timeline: TimelineId) -> Result<Option<SegmentNo>, Error> {
        self.store.get(Family::Meta, &self.cluster.mark(timeline))?.map(|bytes| read_mark(&bytes)).transpose()
    }
}
