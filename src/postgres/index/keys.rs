//! The index's keys: byte strings whose order is the logical order, so that a range of segments or events is one range
//! of keys.
//!
//! Each key begins with the cluster's name and a zero byte, then big-endian numbers. Pure: no RocksDB here. The layout
//! is described in `docs/format/index.md`; a change here is a new [`FORMAT`](super::FORMAT).

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::timeline::TimelineId;

/// The kind of parameter changes, as keys have it ([`crate::postgres::wal::event::WalEventKind::tag`]).
pub const PARAMETERS_TAG: u8 = 2;
/// The kind of restore points.
pub const RESTORE_POINT_TAG: u8 = 3;

/// Segments in one block ([`block_number`]): large enough that a year of WAL is a few hundred blocks, small enough to
/// be read in one go.
pub const BLOCK_SEGMENTS: u64 = 256;

/// Blocks of one level that make one of the next: few, so that a stretch of log is a few blocks of each level wherever
/// it begins and ends.
const BLOCK_CHILDREN: u64 = 4;

/// The highest level: one block of it holds every segment there can be (2^64 bytes of log in segments of a megabyte).
const MAX_BLOCK_LEVEL: u8 = 18;

/// The longest cluster name a key can hold; the configuration allows less.
const MAX_CLUSTER_NAME_BYTES: usize = 255;

/// The lowest block that a segment belongs to.
#[must_use]
pub const fn block_number(segment: SegmentNo) -> u64 {
    segment.get() / BLOCK_SEGMENTS
}

/// Which block: of 256 segments on level 0, of four blocks of the level below on every other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockId {
    /// Its level.
    pub level: u8,
    /// Its number among those of its level.
    pub number: u64,
}

impl BlockId {
    /// The block of level 0 of this number.
    #[must_use]
    pub const fn at_level_zero(number: u64) -> BlockId {
        BlockId { level: 0, number }
    }

    /// Segments that such a block has room for.
    #[must_use]
    pub const fn capacity(self) -> u64 {
        BLOCK_SEGMENTS.saturating_mul(BLOCK_CHILDREN.saturating_pow(self.level as u32))
    }

    /// Its first segment.
    #[must_use]
    pub const fn first(self) -> SegmentNo {
        SegmentNo::new(self.number.saturating_mul(self.capacity()))
    }

    /// The segment after its last one.
    #[must_use]
    pub const fn end(self) -> SegmentNo {
        SegmentNo::new(self.number.saturating_add(1).saturating_mul(self.capacity()))
    }

    /// The block of the next level that it is a part of.
    #[must_use]
    pub const fn parent(self) -> Option<BlockId> {
        if self.level < MAX_BLOCK_LEVEL {
            Some(BlockId { level: self.level + 1, number: self.number / BLOCK_CHILDREN })
        } else {
            None
        }
    }

    /// The blocks that it is made of; none on the lowest level.
    pub fn children(self) -> impl DoubleEndedIterator<Item = BlockId> {
        let first = self.number.saturating_mul(BLOCK_CHILDREN);
        let below = self.level.checked_sub(1).map(|level| (0..BLOCK_CHILDREN).map(move |nth| (level, nth)));
        below.into_iter().flatten().map(move |(level, nth)| BlockId { level, number: first.saturating_add(nth) })
    }
}

/// The part of every key that says whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterKeys(Vec<u8>);

/// A name no cluster can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot name a cluster: a name has 1 to {MAX_CLUSTER_NAME_BYTES} bytes, none of them zero")]
pub struct ClusterKeyError(String);

/// Where a segment stands: its timeline and its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SegmentId {
    /// The timeline in the segment's name.
    pub timeline: TimelineId,
    /// Its number.
    pub segment: SegmentNo,
}

/// A half-open range of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    /// The first key within.
    pub from: Vec<u8>,
    /// The first key past the end.
    pub to: Vec<u8>,
}

impl ClusterKeys {
    /// The keys of the cluster of this name.
    ///
    /// # Errors
    /// [`ClusterKeyError`] for an empty or overlong name, or one with a zero byte, which would let two clusters' keys
    /// mix.
    pub fn new(name: &str) -> Result<ClusterKeys, ClusterKeyError> {
        if name.is_empty() || name.len() > MAX_CLUSTER_NAME_BYTES || name.bytes().any(|b| b == 0) {
            return Err(ClusterKeyError(name.to_owned()));
        }
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        Ok(ClusterKeys(bytes))
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> String {
        String::from_utf8_lossy(self.0.strip_suffix(&[0]).unwrap_or(&self.0)).into_owned()
    }

    fn key(&self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = self.0.clone();
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    /// Every key of this cluster.
    #[must_use]
    pub fn all(&self) -> KeyRange {
        let mut to = self.0.clone();
        if let Some(last) = to.last_mut() {
            *last = 1;
        }
        KeyRange { from: self.0.clone(), to }
    }

    /// A segment's key; also that of its fragments and of what ends at its head.
    #[must_use]
    pub fn segment(&self, place: SegmentId) -> Vec<u8> {
        self.key(&[&place.timeline.get().to_be_bytes(), &place.segment.get().to_be_bytes()])
    }

    /// The segments `from..to` of a timeline.
    #[must_use]
    pub fn segments(&self, timeline: TimelineId, from: SegmentNo, to: SegmentNo) -> KeyRange {
        KeyRange {
            from: self.segment(SegmentId { timeline, segment: from }),
            to: self.segment(SegmentId { timeline, segment: to }),
        }
    }

    /// Reads [`ClusterKeys::segment`] back. `None` if the key is another cluster's or of another form.
    #[must_use]
    pub fn parse_segment(&self, key: &[u8]) -> Option<SegmentId> {
        let (timeline, rest) = key.strip_prefix(self.0.as_slice())?.split_first_chunk::<4>()?;
        let segment = SegmentNo::new(u64::from_be_bytes(rest.try_into().ok()?));
        Some(SegmentId { timeline: TimelineId::new(u32::from_be_bytes(*timeline))?, segment })
    }

    /// The key of a block of segments.
    #[must_use]
    pub fn block(&self, timeline: TimelineId, block: BlockId) -> Vec<u8> {
        self.key(&[&timeline.get().to_be_bytes(), &[block.level], &block.number.to_be_bytes()])
    }

    /// The lowest blocks `from..=to` of a timeline.
    #[must_use]
    pub fn blocks(&self, timeline: TimelineId, from: u64, to: u64) -> KeyRange {
        let key = |number| self.block(timeline, BlockId::at_level_zero(number));
        KeyRange { from: key(from), to: key(to.saturating_add(1)) }
    }

    /// Reads [`ClusterKeys::block`] back.
    #[must_use]
    pub fn parse_block(&self, key: &[u8]) -> Option<(TimelineId, BlockId)> {
        let (timeline, rest) = key.strip_prefix(self.0.as_slice())?.split_first_chunk::<4>()?;
        let (&level, number) = rest.split_first()?;
        let number = u64::from_be_bytes(number.try_into().ok()?);
        Some((TimelineId::new(u32::from_be_bytes(*timeline))?, BlockId { level, number }))
    }

    /// The key of an event: its kind, where its record starts, and its place among the events of that record.
    #[must_use]
    pub fn event(&self, kind: u8, timeline: TimelineId, lsn: Lsn, ordinal: u16) -> Vec<u8> {
        let (timeline, lsn) = (timeline.get().to_be_bytes(), lsn.get().to_be_bytes());
        self.key(&[&[kind], &timeline, &lsn, &ordinal.to_be_bytes()])
    }

    /// The events of one kind and timeline whose records start in `from..to`.
    #[must_use]
    pub fn events(&self, kind: u8, timeline: TimelineId, from: Lsn, to: Lsn) -> KeyRange {
        KeyRange { from: self.event(kind, timeline, from, 0), to: self.event(kind, timeline, to, 0) }
    }

    /// Reads [`ClusterKeys::event`] back.
    #[cfg(test)]
    fn parse_event(&self, key: &[u8]) -> Option<(u8, TimelineId, Lsn, u16)> {
        let (kind, rest) = key.strip_prefix(self.0.as_slice())?.split_first()?;
        let (timeline, rest) = rest.split_first_chunk::<4>()?;
        let (lsn, rest) = rest.split_first_chunk::<8>()?;
        let ordinal = u16::from_be_bytes(rest.try_into().ok()?);
        Some((*kind, TimelineId::new(u32::from_be_bytes(*timeline))?, Lsn::new(u64::from_be_bytes(*lsn)), ordinal))
    }

    /// The key under which a restore point is found by its name. PostgreSQL's names are C strings: they hold no zero
    /// byte.
    #[must_use]
    pub fn name_at(&self, name: &[u8], timeline: TimelineId, lsn: Lsn) -> Vec<u8> {
        self.key(&[name, &[0], &timeline.get().to_be_bytes(), &lsn.get().to_be_bytes()])
    }

    /// Every restore point of this name.
    #[must_use]
    pub fn names(&self, name: &[u8]) -> KeyRange {
        KeyRange { from: self.key(&[name, &[0]]), to: self.key(&[name, &[1]]) }
    }

    /// Reads the place of a restore point from [`ClusterKeys::name_at`].
    #[must_use]
    pub fn parse_name(&self, key: &[u8]) -> Option<(TimelineId, Lsn)> {
        let (rest, lsn) = key.strip_prefix(self.0.as_slice())?.split_last_chunk::<8>()?;
        let (_, timeline) = rest.split_last_chunk::<4>()?;
        Some((TimelineId::new(u32::from_be_bytes(*timeline))?, Lsn::new(u64::from_be_bytes(*lsn))))
    }

    /// The key of the facts about the cluster, in the family of the index's own facts. Those that concern no cluster
    /// have words as keys, without a zero byte.
    #[must_use]
    pub fn facts(&self) -> Vec<u8> {
        self.0.clone()
    }

    /// The key of a timeline's mark, in the same family.
    #[must_use]
    pub fn mark(&self, timeline: TimelineId) -> Vec<u8> {
        self.key(&[&timeline.get().to_be_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_SEGMENTS, BlockId, ClusterKeys, KeyRange, MAX_BLOCK_LEVEL, SegmentId, block_number};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::SegmentNo;
    use crate::postgres::format::timeline::TimelineId;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c]{1,3}", "[a-z0-9_-]{1,40}", "[a-c][\u{1}-\u{3}]{0,2}"]
    }

    fn timeline() -> impl Strategy<Value = TimelineId> {
        prop_oneof![1..4u32, any::<u32>()].prop_filter_map("zero", TimelineId::new)
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..4u64, any::<u64>(), any::<u32>().prop_map(u64::from)]
    }

    fn within(range: &KeyRange, key: &[u8]) -> bool {
        range.from.as_slice() <= key && key < range.to.as_slice()
    }

    proptest! {
        #[test]
        fn segments_sort_by_cluster_timeline_and_number(
            a in (name(), timeline(), number()), b in (name(), timeline(), number()),
        ) {
            let key = |(name, timeline, number): &(String, TimelineId, u64)| {
                ClusterKeys::new(name).unwrap().segment(SegmentId { timeline: *timeline, segment: SegmentNo::new(*number) })
            };
            // A shorter name sorts before one it begins, so the order of the names is that of their bytes.
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
            let cluster = ClusterKeys::new(&a.0).unwrap();
            let place = SegmentId { timeline: a.1, segment: SegmentNo::new(a.2) };
            prop_assert_eq!(cluster.parse_segment(&key(&a)), Some(place));
            prop_assert_eq!(cluster.parse_segment(&key(&b)).is_some(), a.0 == b.0);
            prop_assert_eq!(within(&cluster.all(), &key(&b)), a.0 == b.0);
        }

        #[test]
        fn events_sort_by_kind_timeline_position_and_ordinal(
            cluster in name(),
            a in (any::<u8>(), timeline(), number(), any::<u16>()), b in (any::<u8>(), timeline(), number(), any::<u16>()),
        ) {
            let cluster = ClusterKeys::new(&cluster).unwrap();
            let key = |(kind, timeline, lsn, ordinal): (u8, TimelineId, u64, u16)| cluster.event(kind, timeline, Lsn::new(lsn), ordinal);
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            prop_assert_eq!(cluster.parse_event(&key(a)), Some((a.0, a.1, Lsn::new(a.2), a.3)));
            let range = cluster.events(a.0, a.1, Lsn::new(a.2.min(b.2)), Lsn::new(a.2.max(b.2)));
            let inside = b.0 == a.0 && b.1 == a.1 && a.2.min(b.2) <= b.2 && b.2 < a.2.max(b.2);
            prop_assert_eq!(within(&range, &key(b)), inside);
        }

        #[test]
        fn a_name_finds_its_own_restore_points_only(
            cluster in name(), a in "[a-c]{0,3}", b in "[a-c]{0,3}", timeline in timeline(), lsn in number(),
        ) {
            let cluster = ClusterKeys::new(&cluster).unwrap();
            let key = cluster.name_at(b.as_bytes(), timeline, Lsn::new(lsn));
            prop_assert_eq!(within(&cluster.names(a.as_bytes()), &key), a == b);
            prop_assert_eq!(cluster.parse_name(&key), Some((timeline, Lsn::new(lsn))));
        }

        #[test]
        fn a_block_holds_what_it_should(number in 0..=u64::from(u32::MAX)) {
            let mut block = BlockId::at_level_zero(block_number(SegmentNo::new(number)));
            prop_assert_eq!(block.capacity(), BLOCK_SEGMENTS);
            loop {
                let (first, end) = (block.first().get(), block.end().get());
                prop_assert!(first <= number && number < end && end - first == block.capacity(), "{:?}", block);
                let Some(parent) = block.parent() else { break };
                prop_assert!(parent.children().filter(|child| *child == block).count() == 1);
                let ends: Vec<u64> = parent.children().map(|child| child.end().get()).collect();
                let begins: Vec<u64> = parent.children().map(|child| child.first().get()).collect();
                prop_assert_eq!(&begins[1..], &ends[..ends.len() - 1]);
                prop_assert_eq!((begins[0], ends[ends.len() - 1]), (parent.first().get(), parent.end().get()));
                block = parent;
            }
            prop_assert_eq!((block.level, block.number), (MAX_BLOCK_LEVEL, 0));
        }

        #[test]
        fn the_lowest_blocks_are_one_range_of_keys(
            timeline in timeline(), a in 0..1_u64 << 40, b in 0..1_u64 << 40, level in 0..3_u8, number in 0..1_u64 << 40,
        ) {
            let cluster = ClusterKeys::new("main").unwrap();
            let key = cluster.block(timeline, BlockId { level, number });
            prop_assert_eq!(cluster.parse_block(&key), Some((timeline, BlockId { level, number })));
            let (from, to) = (a.min(b), a.max(b));
            prop_assert_eq!(within(&cluster.blocks(timeline, from, to), &key), level == 0 && from <= number && number <= to);
        }
    }

    #[test]
    fn names_that_would_mix_clusters_are_refused() {
        for wrong in ["", "a\0b", "\0", &"x".repeat(256)] {
            assert!(ClusterKeys::new(wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
