//! The searches against the obvious answer over the whole archive, and RocksDB against the sorted map in memory.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::cluster_view::IndexView;
use super::key_value_store::{IndexBatch, KeyFamily, KeyValueStore, LayeredStore, MemoryStore, ScanOrder};
use super::keys::SegmentId;
use super::path_search::{PathSearch, SegmentFilter};
use super::test_archive::{CLUSTER_NAME, FIRST_SEGMENT, TestArchive, any_recipe};
use super::{IndexEntry, IndexError, WalDefect, WalIndex};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{HistoryEntry, TimelineHistory, TimelineId};
use crate::postgres::wal::event::WalEvent;

/// The segments that hold what is wanted, by looking into every one.
fn naive(world: &TestArchive, want: SegmentFilter) -> Vec<SegmentId> {
    let holds = |place: &SegmentId| {
        let endings = &world.digest(*place).unwrap().endings;
        match want {
            SegmentFilter::Any => true,
            SegmentFilter::Ending => !endings.is_empty(),
            SegmentFilter::EndingAfter(time) => endings.iter().any(|ending| ending.time > time),
            SegmentFilter::Xid(xid) => endings.iter().any(|ending| ending.xid.get() == xid),
        }
    };
    world.segments().into_iter().map(|(place, _)| place).filter(holds).collect()
}

pub(super) fn everything(store: &dyn KeyValueStore) -> Vec<(KeyFamily, Vec<u8>, Vec<u8>)> {
    let all = super::keys::KeyRange { from: Vec::new(), to: vec![0xFF; 300] };
    let pairs = |family| {
        store.scan(family, &all, ScanOrder::Forward).map(move |pair| pair.map(|(key, value)| (family, key, value)))
    };
    KeyFamily::ALL.into_iter().flat_map(pairs).collect::<Result<_, _>>().unwrap()
}

proptest! {
    #[test]
    fn the_first_and_the_last_segment_are_those_of_a_full_scan(
        recipe in any_recipe(), shuffle in any::<u64>(), from in FIRST_SEGMENT - 1..FIRST_SEGMENT + 24, time in -60..4000_i64, pick in any::<usize>(),
    ) {
        let world = recipe.build();
        let memory = world.index(shuffle);
        let view = IndexView::new(&memory, CLUSTER_NAME).unwrap();
        let Some(along) = PathSearch::new(&view, &world.path) else {
            prop_assert!(world.digests.is_empty());
            return Ok(());
        };
        let endings = world.endings();
        let xid = endings.get(pick % endings.len().max(1)).map_or(5, |ending| ending.xid.get());
        for want in [SegmentFilter::Any, SegmentFilter::Ending, SegmentFilter::EndingAfter(PgTime::from_pg_micros(time)), SegmentFilter::Xid(xid)] {
            let expected = naive(&world, want);
            let from = SegmentNo::new(from);
            let next = along.next_segment(from, want).unwrap().map(|stretch| stretch.place);
            let previous = along.previous_segment(from, want).unwrap().map(|stretch| stretch.place);
            // With so few transactions a segment the filter of ids is exact.
            prop_assert_eq!(next, expected.iter().copied().find(|place| place.segment >= from), "{:?}", want);
            prop_assert_eq!(previous, expected.iter().copied().rfind(|place| place.segment < from), "{:?}", want);
        }
    }

    #[test]
    fn a_walk_sees_each_segment_of_the_path_once_and_holes_are_what_is_missing(
        recipe in any_recipe(), shuffle in any::<u64>(), from in 0..24_u64, len in 0..24_u64,
    ) {
        let world = recipe.build();
        let memory = world.index(shuffle);
        let view = IndexView::new(&memory, CLUSTER_NAME).unwrap();
        let Some(along) = PathSearch::new(&view, &world.path) else { return Ok(()) };
        let (from, to) = (SegmentNo::new(FIRST_SEGMENT - 1 + from).start(world.size), SegmentNo::new(FIRST_SEGMENT - 1 + from + len).start(world.size));
        let mut seen = Vec::new();
        along.walk_segments(from, to, |stretch| { seen.push((stretch.place, stretch.to)); ControlFlow::Continue(()) }).unwrap();
        let inside = |(place, _): &(SegmentId, Lsn)| place.segment.start(world.size) >= from && place.segment.start(world.size) < to;
        let expected: Vec<(SegmentId, Lsn)> = world.segments().into_iter().filter(inside).collect();
        prop_assert_eq!(&seen, &expected);
        // Every byte of the range is in a segment or in a hole, and in one only.
        let continuity = along.continuity(from, to).unwrap();
        let mut parts: Vec<(Lsn, Lsn)> = expected.iter().map(|(place, end)| (place.segment.start(world.size), *end)).collect();
        for hole in &continuity.holes {
            prop_assert_eq!(&hole.why, &WalDefect::Missing);
            parts.push((hole.from, hole.to));
        }
        parts.sort();
        let mut reached = from;
        for (begin, end) in parts {
            prop_assert_eq!(begin, reached);
            reached = end;
        }
        prop_assert!(reached >= to);
        let records: u64 = expected.iter().map(|(place, _)| world.digest(*place).unwrap().records).sum();
        let told = (continuity.segments, continuity.records, continuity.stored);
        prop_assert_eq!(told, (expected.len() as u64, records, 10 * expected.len() as u64));
        // And once more, with what is remembered of it.
        prop_assert_eq!(along.continuity(from, to).unwrap(), continuity);
    }

    #[test]
    fn restore_points_and_events_are_those_on_the_path(recipe in any_recipe(), shuffle in any::<u64>(), from in 0..24_u64) {
        let world = recipe.build();
        let memory = world.index(shuffle);
        let view = IndexView::new(&memory, CLUSTER_NAME).unwrap();
        let Some(along) = PathSearch::new(&view, &world.path) else { return Ok(()) };
        let from = SegmentNo::new(FIRST_SEGMENT - 1 + from).start(world.size);
        let mut expected: Vec<WalEvent> = Vec::new();
        for digest in &world.digests {
            for event in &digest.events {
                let on = |lsn: Lsn| world.path.spans().iter().any(|span| {
                    span.timeline == digest.timeline
                        && world.size.segment_of(span.begin) <= world.size.segment_of(lsn)
                        && span.end.is_none_or(|end| lsn < end)
                });
                if event.lsn >= from && on(event.lsn) && !expected.contains(event) {
                    expected.push(event.clone());
                }
            }
        }
        expected.sort_by_key(|event| event.lsn);
        prop_assert_eq!(along.events(&[super::RESTORE_POINT_TAG], from, Lsn::MAX, 10_000).unwrap(), expected.clone());
        let named = |event: &WalEvent| matches!(&event.kind, crate::postgres::wal::event::WalEventKind::RestorePoint { name, .. } if name == "point 3");
        let expected: Vec<WalEvent> = expected.into_iter().filter(named).collect();
        prop_assert_eq!(along.restore_points("point 3", from).unwrap(), expected);
    }

    #[test]
    fn what_lies_on_top_of_a_store_reads_as_if_it_had_been_applied(
        recipe in any_recipe(), base in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..20),
        over in proptest::collection::vec((any::<u8>(), proptest::option::of(any::<u8>())), 0..20), from in any::<u8>(), to in any::<u8>(),
    ) {
        let mut memory = MemoryStore::default();
        let mut batch = IndexBatch::default();
        base.iter().for_each(|(key, value)| batch.put(KeyFamily::Events, vec![*key], vec![*value]));
        memory.apply(&batch);
        let mut batch = IndexBatch::default();
        for (key, value) in &over {
            match value {
                Some(value) => batch.put(KeyFamily::Events, vec![*key], vec![*value]),
                None => batch.delete(KeyFamily::Events, vec![*key]),
            }
        }
        let layered = LayeredStore::new(memory.clone(), Arc::new(batch.clone()));
        memory.apply(&batch);
        let range = super::keys::KeyRange { from: vec![from], to: vec![to] };
        for order in [ScanOrder::Forward, ScanOrder::Backward] {
            let pairs = |store: &dyn KeyValueStore| store.scan(KeyFamily::Events, &range, order).collect::<Result<Vec<_>, _>>().unwrap();
            prop_assert_eq!(pairs(&layered), pairs(&memory));
        }
        for key in 0..=u8::MAX {
            prop_assert_eq!(layered.get(KeyFamily::Events, &[key]).unwrap(), memory.get(KeyFamily::Events, &[key]).unwrap());
        }
        // The same for a whole index of which one half lies on top of the other.
        let world = recipe.build();
        let (first, second) = world.digests.split_at(world.digests.len() / 2);
        let below = TestArchive { digests: first.to_vec(), ..world.clone() }.index(1);
        let cluster = super::keys::ClusterKeys::new(CLUSTER_NAME).unwrap();
        let mut ingest = super::segment_update::IndexUpdate::new(&below, &cluster).unwrap();
        second.iter().for_each(|digest| ingest.add_segment(IndexEntry { digest, stored: 10 }).unwrap());
        let layered = LayeredStore::new(&below, Arc::new(ingest.finish()));
        prop_assert_eq!(everything(&layered), everything(&world.index(1)));
    }

    #[test]
    fn the_order_and_number_of_arrivals_make_no_difference(recipe in any_recipe(), one in any::<u64>(), other in any::<u64>()) {
        let world = recipe.build();
        let mut twice = world.clone();
        twice.digests.extend(world.digests.iter().cloned());
        prop_assert_eq!(everything(&world.index(one)), everything(&world.index(other)));
        prop_assert_eq!(everything(&world.index(one)), everything(&twice.index(other)));
    }
}

#[test]
fn paths_that_leave_a_timeline_at_different_places_are_not_mixed_up() {
    let size = crate::postgres::format::segment::SegmentSize::new(1 << 20).unwrap();
    let timeline = |number| TimelineId::new(number).unwrap();
    let segments = |on, numbers: std::ops::RangeInclusive<u64>| {
        numbers.map(move |number| super::test_archive::digest(timeline(on), SegmentNo::new(number), size, Vec::new()))
    };
    let digests = segments(1, 3..=9).chain(segments(2, 5..=6)).chain(segments(3, 8..=8)).collect();
    let path_to = |number, left_at| {
        let end = SegmentNo::new(left_at).start(size);
        let entry = HistoryEntry { timeline: TimelineId::FIRST, end, reason: String::new() };
        TimelineHistory { timeline: timeline(number), entries: vec![entry] }.path()
    };
    let (second, third) = (path_to(2, 5), path_to(3, 8));
    let memory = TestArchive { digests, path: second.clone(), size }.index(1);
    let view = IndexView::new(&memory, CLUSTER_NAME).unwrap();
    let start = |number| SegmentNo::new(number).start(size);
    let whole = |path, end| {
        let found = PathSearch::new(&view, path).unwrap().continuity(start(3), start(end)).unwrap();
        assert!(found.is_whole(), "{:?}", found.holes);
        found.segments
    };
    // Twice, as the second time it is remembered.
    for _ in 0..2 {
        assert_eq!((whole(&second, 7), whole(&third, 9)), (4, 6));
    }
}

#[test]
fn rocksdb_holds_what_the_map_in_memory_holds() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..5 {
        let world = proptest::strategy::ValueTree::current(
            &proptest::strategy::Strategy::new_tree(&any_recipe(), &mut runner).unwrap(),
        )
        .build();
        let dir = tempfile::tempdir().unwrap();
        let index = WalIndex::open_writer(dir.path(), &["r".to_owned()]).unwrap();
        index.ingest(CLUSTER_NAME, world.digests.iter().map(|digest| IndexEntry { digest, stored: 10 })).unwrap();
        let memory: MemoryStore = world.index(1);
        let meta_of_the_index =
            |found: &(KeyFamily, Vec<u8>, Vec<u8>)| found.1 != super::FORMAT_KEY && found.1 != super::REPOSITORY_KEY;
        let found: Vec<_> = everything(&index.rocks).into_iter().filter(meta_of_the_index).collect();
        assert_eq!(found, everything(&memory));
        let back: Vec<_> = index
            .rocks
            .scan(KeyFamily::Segments, &super::keys::ClusterKeys::new(CLUSTER_NAME).unwrap().all(), ScanOrder::Backward)
            .collect();
        let forward: Vec<_> = index
            .rocks
            .scan(KeyFamily::Segments, &super::keys::ClusterKeys::new(CLUSTER_NAME).unwrap().all(), ScanOrder::Forward)
            .collect();
        assert!(
            back.iter().rev().zip(&forward).all(|(a, b)| a.as_ref().unwrap() == b.as_ref().unwrap())
                && back.len() == forward.len()
        );
    }
}

fn sample() -> crate::postgres::wal::digest::SegmentDigest {
    super::test_archive::digest(
        TimelineId::FIRST,
        SegmentNo::new(4),
        crate::postgres::format::segment::SegmentSize::DEFAULT,
        Vec::new(),
    )
}

#[test]
fn one_writes_and_others_read_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(WalIndex::open_reader(dir.path(), &["r".to_owned()]), Err(IndexError::Absent(_))));
    let writer = WalIndex::open_writer(dir.path(), &["r".to_owned()]).unwrap();
    assert!(matches!(WalIndex::open_writer(dir.path(), &["r".to_owned()]), Err(IndexError::Locked(_))));
    assert!(matches!(WalIndex::recreate(dir.path(), &["r".to_owned()]), Err(IndexError::Locked(_))));
    let reader = WalIndex::open_reader(dir.path(), &["r".to_owned()]).unwrap();
    let place = SegmentId { timeline: TimelineId::FIRST, segment: SegmentNo::new(4) };
    assert!(!reader.view(CLUSTER_NAME).unwrap().contains(place).unwrap());
    writer.ingest(CLUSTER_NAME, [IndexEntry { digest: &sample(), stored: 1 }]).unwrap();
    reader.refresh().unwrap();
    assert!(reader.view(CLUSTER_NAME).unwrap().contains(place).unwrap());
    drop(reader);
    assert_eq!(std::fs::read_dir(dir.path().join("readers")).unwrap().count(), 0, "a reader leaves nothing behind");
    drop(writer);
    assert!(
        WalIndex::open_writer(dir.path(), &["r".to_owned()])
            .unwrap()
            .view(CLUSTER_NAME)
            .unwrap()
            .contains(place)
            .unwrap()
    );
}

#[test]
fn a_foreign_or_newer_or_damaged_index_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let index = WalIndex::open_writer(dir.path(), &["ours".to_owned()]).unwrap();
    index.ingest(CLUSTER_NAME, [IndexEntry { digest: &sample(), stored: 1 }]).unwrap();
    drop(index);
    let foreign = WalIndex::open_writer(dir.path(), &["theirs".to_owned()]).unwrap_err();
    assert!(foreign.to_string().contains("belongs to repository ours, not to theirs"), "{foreign}");
    assert!(!foreign.calls_for_rebuild(), "another repository's index is not thrown away unasked");

    let index = WalIndex::open_writer(dir.path(), &["ours".to_owned()]).unwrap();
    let mut batch = super::key_value_store::IndexBatch::default();
    batch.put(KeyFamily::Meta, super::FORMAT_KEY.to_vec(), 9_u32.to_be_bytes().to_vec());
    index.rocks.apply(&batch).unwrap();
    drop(index);
    let newer = WalIndex::open_reader(dir.path(), &["ours".to_owned()]).unwrap_err();
    assert!(matches!(newer, IndexError::OtherFormat { found: 9, .. }) && newer.calls_for_rebuild());

    let index = WalIndex::recreate(dir.path(), &["ours".to_owned()]).unwrap();
    index.ingest(CLUSTER_NAME, [IndexEntry { digest: &sample(), stored: 1 }]).unwrap();
    index.flush().unwrap();
    drop(index);
    for file in std::fs::read_dir(dir.path().join("db")).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("MANIFEST") {
            std::fs::write(&path, b"nonsense").unwrap();
        }
    }
    let damaged = WalIndex::open_writer(dir.path(), &["ours".to_owned()]).unwrap_err();
    assert!(matches!(damaged, IndexError::Damaged { .. }) && damaged.calls_for_rebuild(), "{damaged}");
    assert!(damaged.to_string().contains("index rebuild"));
    let healed = WalIndex::recreate(dir.path(), &["ours".to_owned()]).unwrap();
    assert_eq!(healed.view(CLUSTER_NAME).unwrap().timelines(), []);
}

#[test]
fn a_segment_of_another_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let index = WalIndex::open_writer(dir.path(), &["r".to_owned()]).unwrap();
    index.ingest(CLUSTER_NAME, [IndexEntry { digest: &sample(), stored: 1 }]).unwrap();
    let size = crate::postgres::format::segment::SegmentSize::new(1 << 20).unwrap();
    let other = super::test_archive::digest(TimelineId::FIRST, SegmentNo::new(4), size, Vec::new());
    assert!(matches!(
        index.ingest(CLUSTER_NAME, [IndexEntry { digest: &other, stored: 1 }]),
        Err(IndexError::SegmentSize { .. })
    ));
}

#[test]
fn the_mark_moves_over_what_has_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let index = WalIndex::open_writer(dir.path(), &["r".to_owned()]).unwrap();
    let segment = |number| {
        super::test_archive::digest(
            TimelineId::FIRST,
            SegmentNo::new(number),
            crate::postgres::format::segment::SegmentSize::DEFAULT,
            Vec::new(),
        )
    };
    let add = |number| index.ingest(CLUSTER_NAME, [IndexEntry { digest: &segment(number), stored: 1 }]).unwrap();
    let mark = || index.view(CLUSTER_NAME).unwrap().timeline_mark(TimelineId::FIRST).unwrap().map(SegmentNo::get);
    add(4);
    assert_eq!(mark(), None, "only a listing knows that nothing is older");
    add(5);
    index.set_mark(CLUSTER_NAME, TimelineId::FIRST, SegmentNo::new(4)).unwrap();
    assert_eq!(mark(), Some(5));
    add(7);
    assert_eq!(mark(), Some(5), "6 may still come");
    add(6);
    assert_eq!(mark(), Some(7));
    let seen: BTreeSet<u64> = index
        .view(CLUSTER_NAME)
        .unwrap()
        .summaries(TimelineId::FIRST, SegmentNo::new(0), SegmentNo::new(9), ScanOrder::Forward)
        .map(|found| found.unwrap().0.segment.get())
        .collect();
    assert_eq!(seen, BTreeSet::from([4, 5, 6, 7]));
}

#[test]
fn a_busy_segment_costs_little_room_and_rocksdb_little_memory() {
    const SEGMENTS: u64 = 3000;
    let size = crate::postgres::format::segment::SegmentSize::DEFAULT;
    let dir = tempfile::tempdir().unwrap();
    let index = WalIndex::open_writer(dir.path(), &["r".to_owned()]).unwrap();
    let mut memory = 0;
    for number in 1..=SEGMENTS {
        let start = SegmentNo::new(number).start(size);
        let ending = |at: u64| crate::postgres::wal::event::TransactionEnd {
            lsn: start.saturating_add(64 + at * 40_000),
            end_lsn: start.saturating_add(64 + at * 40_000 + 40),
            // About in order, with a straggler now and then.
            xid: crate::postgres::wal::event::Xid::new(u32::try_from(number * 400 + (at * 7919) % 400).unwrap()),
            time: PgTime::from_pg_micros(i64::try_from(number * 1_000_000 + at).unwrap()),
            kind: crate::postgres::wal::event::TransactionEndKind::Commit,
        };
        let mut digest = super::test_archive::digest(
            TimelineId::FIRST,
            SegmentNo::new(number),
            size,
            (0..400).map(ending).collect(),
        );
        digest.events.clear();
        digest.content = *blake3::hash(&number.to_le_bytes()).as_bytes();
        index.ingest(CLUSTER_NAME, [IndexEntry { digest: &digest, stored: 5 << 20 }]).unwrap();
        memory = memory.max(index.stats().unwrap().memory);
    }
    index.flush().unwrap();
    assert!(everything(&index.rocks).len() > 3000);
    let stats = index.stats().unwrap();
    let bytes: u64 = stats.families.iter().map(|family| family.bytes).sum();
    println!("{} bytes a segment, {} KiB of memory", bytes / SEGMENTS, memory.max(stats.memory) >> 10);
    assert!(bytes / SEGMENTS < 250, "{stats:?}");
    assert!(memory.max(stats.memory) < 24 << 20, "{stats:?}");
}
