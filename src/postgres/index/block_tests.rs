//! Blocks of blocks against a look into every segment: over an archive in which segments come, go and change at random,
//! what a search or a walk finds with them is what it would find without.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};

use super::cluster_view::IndexView;
use super::key_value_store::MemoryStore;
use super::keys::{BlockId, ClusterKeys, block_number};
use super::path_search::{PathSearch, SegmentFilter};
use super::segment_update::{self, IndexUpdate};
use super::test_archive::{CLUSTER_NAME, TestArchive};
use super::tests::everything;
use super::walk::{WalkNext, WalkStep};
use super::{IndexEntry, WalDefect};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineId, TimelinePath};
use crate::postgres::wal::digest::SegmentDigest;
use crate::postgres::wal::event::{TransactionEnd, TransactionEndKind, Xid};

/// Segments that are there at first: eight blocks of four blocks are full, and one of four of those.
const FIRST: u64 = 900;
const END: u64 = 9400;

/// A segment, as the test remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kept {
    records: u64,
    /// Whether its first record points back to the last one before.
    linked: bool,
    /// When its one transaction ended, if there is one; its number is that of the segment.
    time: Option<i64>,
}

fn at_first(number: u64) -> Kept {
    // Times go up, and back at every seventh; every third segment has none.
    let time = i64::try_from(number).unwrap() - if number.is_multiple_of(7) { 40 } else { 0 };
    Kept { records: number % 11, linked: true, time: (!number.is_multiple_of(3)).then_some(time) }
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn digest(number: u64, kept: Kept) -> SegmentDigest {
    let segment = SegmentNo::new(number);
    let ending = |time| TransactionEnd {
        lsn: segment.start(size()).saturating_add(80),
        end_lsn: segment.start(size()).saturating_add(120),
        xid: Xid::new(u32::try_from(number).unwrap()),
        time: PgTime::from_pg_micros(time),
        kind: TransactionEndKind::Commit,
    };
    let mut digest =
        super::test_archive::digest(TimelineId::FIRST, segment, size(), kept.time.into_iter().map(ending).collect());
    digest.events.clear();
    digest.records = kept.records;
    if !kept.linked {
        digest.first_prev = Some(Lsn::new(8));
    }
    digest
}

/// The archive as it is at first, and its index.
static BASE: LazyLock<(BTreeMap<u64, Kept>, MemoryStore)> = LazyLock::new(|| {
    let kept: BTreeMap<u64, Kept> = (FIRST..END).map(|number| (number, at_first(number))).collect();
    let digests = kept.iter().map(|(number, kept)| digest(*number, *kept)).collect();
    (kept, TestArchive { digests, path: TimelinePath::first(), size: size() }.index(0))
});

/// What happens to the archive.
#[derive(Clone, Debug)]
enum Change {
    /// Retention or a loss: these go.
    Forget(u64, u64),
    /// A segment comes, anew or again.
    Put(u64, Kept),
    /// Those that are missing around here come, from the last to the first.
    Fill(u64, u64),
}

fn kept() -> impl Strategy<Value = Kept> {
    let time = prop_oneof![Just(None), (0..12_000_i64).prop_map(Some)];
    (0..9_u64, prop_oneof![3 => Just(true), 1 => Just(false)], time).prop_map(|(records, linked, time)| Kept {
        records,
        linked,
        time,
    })
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let number =
        || prop_oneof![FIRST..END, (3..36_u64).prop_map(|block| block * 256), (4..36_u64).prop_map(|b| b * 256 - 1)];
    let length = prop_oneof![4 => 1..4_u64, 2 => 1..600_u64, 1 => 1..5000_u64];
    let fill = (number(), 1..3000_u64).prop_map(|(from, len)| Change::Fill(from.saturating_sub(len), from + len));
    let change = prop_oneof![
        (number(), length).prop_map(|(from, len)| Change::Forget(from, len)),
        (number(), kept()).prop_map(|(number, kept)| Change::Put(number, kept)),
        fill,
    ];
    proptest::collection::vec(change, 0..6)
}

fn put(memory: &mut MemoryStore, archive: &mut BTreeMap<u64, Kept>, number: u64, kept: Kept) {
    let cluster = ClusterKeys::new(CLUSTER_NAME).unwrap();
    let mut ingest = IndexUpdate::new(memory, &cluster).unwrap();
    ingest.add_segment(IndexEntry { digest: &digest(number, kept), stored: 10 }).unwrap();
    let batch = ingest.finish();
    memory.apply(&batch);
    archive.insert(number, kept);
}

/// Makes the change in the index and in what the test remembers.
fn make(memory: &mut MemoryStore, archive: &mut BTreeMap<u64, Kept>, change: &Change) {
    let cluster = ClusterKeys::new(CLUSTER_NAME).unwrap();
    match change {
        Change::Put(number, kept) => put(memory, archive, *number, *kept),
        Change::Fill(from, to) => {
            let missing: Vec<u64> = (*from.max(&FIRST)..*to.min(&END)).filter(|at| !archive.contains_key(at)).collect();
            missing.into_iter().rev().for_each(|number| put(memory, archive, number, at_first(number)));
        }
        Change::Forget(from, len) => {
            let gone: Vec<SegmentNo> = (*from..from + len).map(SegmentNo::new).collect();
            let batch = segment_update::forget_segments(memory, &cluster, TimelineId::FIRST, &gone).unwrap();
            memory.apply(&batch);
            archive.retain(|number, _| !(*from..from + len).contains(number));
        }
    }
}

/// The holes in `from..to`, by looking at every segment: where each begins and ends, and whether log is missing there.
fn holes(archive: &BTreeMap<u64, Kept>, from: u64, to: u64) -> Vec<(Lsn, Lsn, bool)> {
    let start = |number| SegmentNo::new(number).start(size());
    let mut found: Vec<(Lsn, Lsn, bool)> = Vec::new();
    for number in from..to {
        let tied = number == from || !archive.contains_key(&(number - 1));
        match (archive.get(&number), found.last_mut()) {
            (Some(kept), _) if kept.linked || tied => {}
            (Some(_), _) => found.push((start(number), start(number).saturating_add(40), false)),
            (None, Some((_, end, true))) if *end == start(number) => *end = start(number + 1),
            (None, _) => found.push((start(number), start(number + 1), true)),
        }
    }
    found
}

/// Each larger block is there exactly if all of its segments are, and then says what they are together.
fn blocks_are_right(view: &IndexView<'_>, archive: &BTreeMap<u64, Kept>) {
    for level in 0..4 {
        let room = BlockId { level, number: 0 }.capacity();
        for number in 0..=END / room {
            let at = BlockId { level, number };
            let (first, end) = (at.first().get(), at.end().get());
            let there: Vec<(&u64, &Kept)> = archive.range(first..end).collect();
            let found = view.block(TimelineId::FIRST, at).unwrap();
            let is_full = there.len() as u64 == room;
            assert_eq!(found.is_some(), if level == 0 { !there.is_empty() } else { is_full }, "{at:?}");
            let Some(block) = found else { continue };
            assert_eq!(block.segments, there.len() as u64, "{at:?}");
            assert_eq!(block.full.is_some(), is_full, "{at:?}");
            for (number, kept) in &there {
                assert!(block.latest >= kept.time.map(PgTime::from_pg_micros), "{at:?}: a later time at {number}");
                assert!(kept.time.is_none() || block.endings, "{at:?}: an ending at {number}");
                assert!(kept.time.is_none() || block.xids.may_hold(u32::try_from(**number).unwrap()), "{at:?}");
            }
            let Some(full) = block.full else { continue };
            assert_eq!(full.records, there.iter().map(|(_, kept)| kept.records).sum::<u64>(), "{at:?}");
            assert_eq!(full.stored, room * 10, "{at:?}");
            assert_eq!(full.whole, holes(archive, first, end).is_empty(), "{at:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_passed_over_in_blocks_is_what_a_look_into_each_segment_finds(
        changes in changes(), from in FIRST - 3..END + 3, to in FIRST - 3..END + 3, time in -50..12_000_i64, xid in FIRST..END,
    ) {
        let (mut archive, mut memory) = BASE.clone();
        changes.iter().for_each(|change| make(&mut memory, &mut archive, change));
        let (view, path) = (IndexView::new(&memory, CLUSTER_NAME).unwrap(), TimelinePath::first());
        blocks_are_right(&view, &archive);
        let along = PathSearch::new(&view, &path).unwrap();

        let (from, to) = (from.min(to), from.max(to));
        let start = |number| SegmentNo::new(number).start(size());
        let found = along.continuity(start(from), start(to)).unwrap();
        let told: Vec<_> = found.holes.iter().map(|hole| (hole.from, hole.to, hole.why == WalDefect::Missing)).collect();
        let expected = holes(&archive, from, to);
        prop_assert_eq!(&told, &expected);
        prop_assert_eq!(found.holes_total, expected.len() as u64);
        let there: Vec<(&u64, &Kept)> = archive.range(from..to).collect();
        let records: u64 = there.iter().map(|(_, kept)| kept.records).sum();
        prop_assert_eq!((found.segments, found.records, found.stored), (there.len() as u64, records, there.len() as u64 * 10));

        for want in [SegmentFilter::Any, SegmentFilter::Ending, SegmentFilter::EndingAfter(PgTime::from_pg_micros(time)), SegmentFilter::Xid(u32::try_from(xid).unwrap())] {
            let holds = |(number, kept): &(&u64, &Kept)| match want {
                SegmentFilter::Any => true,
                SegmentFilter::Ending => kept.time.is_some(),
                SegmentFilter::EndingAfter(_) => kept.time.is_some_and(|of| of > time),
                SegmentFilter::Xid(_) => kept.time.is_some() && **number == xid,
            };
            let at = |number: Option<(&u64, &Kept)>| number.map(|(number, _)| *number);
            let next = along.next_segment(SegmentNo::new(from), want).unwrap().map(|stretch| stretch.place.segment.get());
            prop_assert_eq!(next, at(archive.range(from..).find(holds)), "{:?}", want);
            let previous = along.previous_segment(SegmentNo::new(to), want).unwrap().map(|stretch| stretch.place.segment.get());
            prop_assert_eq!(previous, at(archive.range(..to).rfind(holds)), "{:?}", want);
        }
    }

    #[test]
    fn a_walk_takes_each_segment_once_and_the_largest_blocks_there_are(
        changes in changes(), from in FIRST - 3..END + 3, to in FIRST - 3..END + 3, into in any::<u64>(),
    ) {
        let (mut archive, mut memory) = BASE.clone();
        changes.iter().for_each(|change| make(&mut memory, &mut archive, change));
        let (view, path) = (IndexView::new(&memory, CLUSTER_NAME).unwrap(), TimelinePath::first());
        let along = PathSearch::new(&view, &path).unwrap();
        let (from, to) = (from.min(to), from.max(to));
        let (begin, end) = (SegmentNo::new(from).start(size()), SegmentNo::new(to).start(size()));
        let (mut seen, mut asked) = (Vec::new(), into);
        along.walk_blocks(begin, end, |step| {
            match step {
                WalkStep::Segment(stretch) => seen.push(stretch.place.segment.get()),
                WalkStep::Block(block) => {
                    // Some are looked into.
                    asked = asked.rotate_left(1);
                    if asked % 2 == 1 {
                        return ControlFlow::Continue(WalkNext::Into);
                    }
                    let (first, last) = (block.ends)().unwrap().unwrap();
                    let (first, last) = (first.place.segment.get(), last.place.segment.get());
                    assert_eq!(last - first + 1, block.segments);
                    seen.extend(first..=last);
                }
            }
            ControlFlow::Continue(WalkNext::Next)
        }).unwrap();
        let expected: Vec<u64> = archive.range(from..to).map(|(number, _)| *number).collect();
        prop_assert_eq!(seen, expected);

        // Without looking into any, no segment of a full block that lies within, and no block of a larger one that
        // does.
        let mut steps = 0;
        along.walk_blocks(begin, end, |_| { steps += 1; ControlFlow::Continue(WalkNext::Next) }).unwrap();
        let whole = |at: BlockId| from <= at.first().get() && at.end().get() <= to
            && archive.range(at.first().get()..at.end().get()).count() as u64 == at.capacity();
        let (mut number, mut fewest) = (from, 0);
        while number < to {
            let mut at = BlockId::at_level_zero(block_number(SegmentNo::new(number)));
            if at.first().get() != number || !whole(at) {
                fewest += u64::from(archive.contains_key(&number));
                number += 1;
                continue;
            }
            while let Some(parent) = at.parent().filter(|parent| parent.first() == at.first() && whole(*parent)) {
                at = parent;
            }
            fewest += 1;
            number = at.end().get();
        }
        prop_assert_eq!(steps, fewest);
    }
}

#[test]
fn blocks_of_blocks_are_the_same_in_whatever_order_segments_come() {
    // One run of transactions: where they are many ranges, which of them are joined depends on the order.
    let kept = |number| Kept { time: Some(i64::try_from(number).unwrap()), ..at_first(number) };
    let digests = |range: std::ops::Range<u64>| range.map(|number| digest(number, kept(number))).collect();
    let world = |digests| TestArchive { digests, path: TimelinePath::first(), size: size() };
    let in_order = everything(&world(digests(3000..6000)).index(0));
    for shuffle in [3, 0x9E37_79B9_7F4A_7C15] {
        assert!(everything(&world(digests(3000..6000)).index(shuffle)) == in_order, "{shuffle}");
    }
    // Gone and come again, they leave nothing behind.
    let (_, mut memory) = BASE.clone();
    let cluster = ClusterKeys::new(CLUSTER_NAME).unwrap();
    let gone: Vec<SegmentNo> =
        (FIRST..END).filter(|number| !(3000..6000).contains(number)).map(SegmentNo::new).collect();
    let batch = segment_update::forget_segments(&memory, &cluster, TimelineId::FIRST, &gone).unwrap();
    memory.apply(&batch);
    let (view, mut archive) = (IndexView::new(&memory, CLUSTER_NAME).unwrap(), BASE.0.clone());
    archive.retain(|number, _| (3000..6000).contains(number));
    blocks_are_right(&view, &archive);
}
