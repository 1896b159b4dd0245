//! Which transactions may have ended in a segment: a few ranges of transaction ids that cover them all.
//!
//! Transactions end about in the order they began, so a segment's ids are one dense run with a few stragglers. A
//! handful of ranges says nearly exactly which they are; where there are too many, the nearest are joined, which only
//! ever claims too much. A wrap of the 32-bit counter needs no care: it makes two ranges.

use super::value_codec::{ValueReader, ValueWriter};

/// Ranges of transaction ids, sorted, apart from one another by at least one id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct XidRanges(Vec<(u32, u32)>);

impl XidRanges {
    /// Ranges kept for one segment; some 60 bytes of the index.
    pub const RANGES_PER_SEGMENT: usize = 16;
    /// Ranges kept for a block of segments.
    pub const RANGES_PER_BLOCK: usize = 64;

    /// At most `limit` ranges that hold all of `xids`.
    #[must_use]
    pub fn covering(xids: impl IntoIterator<Item = u32>, limit: usize) -> XidRanges {
        let mut single: Vec<(u32, u32)> = xids.into_iter().map(|xid| (xid, xid)).collect();
        single.sort_unstable();
        XidRanges(merge_ranges(single, limit))
    }

    /// Whether `xid` may be among them; if not, it certainly is not.
    #[must_use]
    pub fn may_hold(&self, xid: u32) -> bool {
        let after = self.0.partition_point(|range| range.0 <= xid);
        after.checked_sub(1).and_then(|last| self.0.get(last)).is_some_and(|range| xid <= range.1)
    }

    /// Covers what either covers, in at most `limit` ranges.
    #[must_use]
    pub fn union(&self, other: &XidRanges, limit: usize) -> XidRanges {
        let mut both: Vec<(u32, u32)> = self.0.iter().chain(&other.0).copied().collect();
        both.sort_unstable();
        XidRanges(merge_ranges(both, limit))
    }

    pub(super) fn write(&self, writer: &mut ValueWriter) {
        writer.number(self.0.len() as u64);
        let mut end = 0;
        for &(from, to) in &self.0 {
            writer.number(u64::from(from.wrapping_sub(end)));
            writer.number(u64::from(to.wrapping_sub(from)));
            end = to;
        }
    }

    pub(super) fn read(reader: &mut ValueReader<'_>) -> Option<XidRanges> {
        let count = reader.number()?;
        let (mut ranges, mut end) = (Vec::new(), 0u32);
        for _ in 0..count {
            let from = end.checked_add(u32::try_from(reader.number()?).ok()?)?;
            end = from.checked_add(u32::try_from(reader.number()?).ok()?)?;
            ranges.push((from, end));
        }
        Some(XidRanges(ranges))
    }
}

/// Joins sorted ranges that touch or overlap, then the nearest ones until `limit` are left.
fn merge_ranges(sorted: Vec<(u32, u32)>, limit: usize) -> Vec<(u32, u32)> {
    let ranges = merge_within(sorted, 1);
    let Some(excess) = ranges.len().checked_sub(limit.max(1)).filter(|&excess| excess > 0) else {
        return ranges;
    };
    let starts = ranges.iter().skip(1).map(|range| range.0);
    let mut gaps: Vec<u32> = ranges.iter().zip(starts).map(|(range, next)| next.saturating_sub(range.1)).collect();
    let (_, largest_closed, _) = gaps.select_nth_unstable(excess - 1);
    let largest_closed = *largest_closed;
    merge_within(ranges, largest_closed)
}

/// Joins neighbours that are at most `gap` apart.
fn merge_within(sorted: Vec<(u32, u32)>, gap: u32) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for (from, to) in sorted {
        match ranges.last_mut() {
            Some(last) if from.saturating_sub(last.1) <= gap => last.1 = last.1.max(to),
            _ => ranges.push((from, to)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::XidRanges;
    use crate::postgres::index::value_codec::{ValueReader, ValueWriter};
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    fn xids() -> impl Strategy<Value = Vec<u32>> {
        vec(prop_oneof![700..800u32, u32::MAX - 40..=u32::MAX, 0..9u32, any::<u32>()], 0..200)
    }

    proptest! {
        #[test]
        fn nothing_is_ever_missed(a in xids(), b in xids(), limit in 1..20usize) {
            let (first, second) = (XidRanges::covering(a.iter().copied(), limit), XidRanges::covering(b.iter().copied(), limit));
            let both = first.union(&second, limit);
            prop_assert!(first.0.len() <= limit && both.0.len() <= limit);
            for xid in &a {
                prop_assert!(first.may_hold(*xid) && both.may_hold(*xid));
            }
            for xid in &b {
                prop_assert!(both.may_hold(*xid));
            }
        }

        #[test]
        fn with_room_enough_nothing_is_claimed_in_vain(a in xids(), probe in any::<u32>(), near in 0..100usize) {
            let all = XidRanges::covering(a.iter().copied(), usize::MAX);
            let near = a.get(near).copied().unwrap_or(probe).wrapping_add(1);
            for xid in [probe, near] {
                prop_assert_eq!(all.may_hold(xid), a.contains(&xid));
            }
        }

        #[test]
        fn round_trips(a in xids(), limit in 1..40usize) {
            let filter = XidRanges::covering(a, limit);
            let mut writer = ValueWriter::default();
            filter.write(&mut writer);
            let bytes = writer.finish();
            let mut reader = ValueReader::new(&bytes);
            prop_assert_eq!(XidRanges::read(&mut reader), Some(filter));
            prop_assert!(reader.is_finished());
        }
    }

    #[test]
    fn a_straggler_does_not_make_the_filter_useless() {
        let filter = XidRanges::covering((50_000..60_000).chain([1_000]), XidRanges::RANGES_PER_SEGMENT);
        assert!(filter.may_hold(1_000) && filter.may_hold(55_555));
        assert!(!filter.may_hold(1_001) && !filter.may_hold(30_000) && !filter.may_hold(60_000));
    }
}
