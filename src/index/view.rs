//! What the index holds of one cluster, read key by key and range by range.

use crate::postgres::lsn::Lsn;
use crate::postgres::segment::{SegmentNo, SegmentSize};
use crate::postgres::timeline::TimelineId;
use crate::wal::event::Event;

use super::error::Error;
use super::ingest::{Facts, facts, read_mark};
use super::keys::{Cluster, Place};
use super::store::{Family, Order, Store};
use super::summary::{Block, Summary};

/// One cluster's part of an index.
pub struct View<'a> {
    store: Box<dyn Store + 'a>,
    cluster: Cluster,
    facts: Option<Facts>,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("cluster", &self.cluster).field("facts", &self.facts).finish_non_exhaustive()
    }
}

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
        Ok(View { store: Box::new(store), cluster, facts })
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

    /// The blocks `from..=to` of a timeline.
    pub fn blocks(
        &self,
        timeline: TimelineId,
        from: u64,
        to: u64,
        order: Order,
    ) -> impl Iterator<Item = Result<(u64, Block), Error>> {
        self.store.scan(Family::Blocks, &self.cluster.blocks(timeline, from, to), order).map(|pair| {
            let (key, value) = pair?;
            let (_, number) = self.cluster.parse_block(&key).ok_or(Error::Value("block key"))?;
            Ok((number, Block::from_bytes(&value)?))
        })
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
