//! Digests of single segments, and what they say together.

use super::writer::{PAGE, SYSTEM, Writer};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentName;
use crate::postgres::format::time::PgTime;
use crate::postgres::wal::digest::{
    DigestError, JoinError, MAX_FRAGMENT_BYTES, SegmentDigest, SegmentState, check_follows, digest_segment, join_record,
};
use crate::postgres::wal::event::{TransactionEndKind, WalEventKind, Xid};

const MIB: u64 = 1 << 20;

fn digests(writer: &Writer) -> Vec<SegmentDigest> {
    let digest = |(name, bytes): &(SegmentName, Vec<u8>)| digest_segment(bytes, *name, writer.segment_size()).unwrap();
    writer.segments().iter().map(digest).collect()
}

/// A commit that lies over the end of the segment at `2 * MIB`, `before` bytes of it in the earlier one.
fn commit_over_the_border(before: u64, main: &[u8], info: u8) -> (Writer, Lsn) {
    let mut writer = Writer::new(MIB);
    writer.commit(1, 1000);
    let target = 2 * MIB - before;
    while writer.position() + 6000 < target {
        writer.record(10, 0, 7, &[9; 2000]);
    }
    let rest = usize::try_from(target - writer.position()).unwrap() - 24;
    let pages = writer.position() / PAGE != (target - 1) / PAGE;
    writer.record(10, 0, 7, &vec![9; rest - if pages { 24 } else { 0 }]);
    assert_eq!(writer.position(), target);
    let lsn = writer.data(1, info, 42, main);
    writer.fill_with_records(30_000);
    writer.switch();
    (writer, lsn)
}

#[test]
fn a_commit_over_the_border_is_joined_wherever_it_is_cut() {
    for before in (8..=48).step_by(8) {
        let (writer, lsn) = commit_over_the_border(before, &[&77_i64.to_le_bytes()[..], &[0; 80]].concat(), 0);
        let digests = digests(&writer);
        let [first, second, ..] = digests.as_slice() else { panic!("two segments") };
        assert_eq!((&first.state, &second.state), (&SegmentState::Checked, &SegmentState::Checked));
        assert_eq!(
            first.tail.as_ref().map(|tail| (tail.start, tail.held)),
            Some((lsn, u32::try_from(before).unwrap()))
        );
        check_follows(first, second).unwrap();
        let joined = join_record(&[first, second]).unwrap().unwrap();
        let ending = joined.meaning.ending.unwrap();
        assert_eq!((ending.lsn, ending.xid, ending.time), (lsn, Xid::new(42), PgTime::from_pg_micros(77)));
        assert_eq!(ending.end_lsn, second.first_record.unwrap());
        assert_eq!(joined.prev, first.last_record.unwrap());
        assert!(digests.iter().all(|digest| digest.endings.iter().all(|ending| ending.lsn != lsn)));
        for digest in &digests {
            assert_eq!(SegmentDigest::from_bytes(&digest.to_bytes()).as_ref(), Ok(digest));
        }
    }
}

#[test]
fn a_damaged_part_does_not_join() {
    let (writer, lsn) = commit_over_the_border(32, &[&77_i64.to_le_bytes()[..], &[0; 80]].concat(), 0);
    let digests = digests(&writer);
    for (part, byte) in [(0, 26), (0, 5), (1, 0), (1, 40)] {
        let mut damaged = digests.clone();
        let fragment = if part == 0 { damaged[0].tail.as_mut() } else { damaged[1].head.as_mut() };
        fragment.unwrap().bytes[byte] ^= 1;
        let error = join_record(&[&damaged[0], &damaged[1]]).unwrap_err();
        assert!(matches!(error, JoinError::Crc { at, .. } if at == lsn), "{error}");
    }
    let mut other = digests.clone();
    other[1].head.as_mut().unwrap().total += 1;
    assert!(matches!(join_record(&[&other[0], &other[1]]), Err(JoinError::Parts { .. })));
    assert!(matches!(join_record(&[&digests[0]]), Err(JoinError::Unfinished { at, .. }) if at == lsn));
    assert!(matches!(join_record(&[&digests[0], &digests[0]]), Err(JoinError::NotNeighbours { .. })));
}

/// A commit of so many subtransactions that it fills whole segments. Fragments keep its front; its CRC is checked over
/// all of it all the same.
#[test]
fn a_record_of_several_segments_is_joined_from_all_of_them() {
    let subxacts = 300_000_u32;
    let mut main = Vec::new();
    main.extend(77_i64.to_le_bytes());
    main.extend(2_u32.to_le_bytes());
    main.extend(subxacts.to_le_bytes());
    (0..subxacts).for_each(|xid| main.extend(xid.to_le_bytes()));
    for before in [8, 16, 24, 4000] {
        let (writer, lsn) = commit_over_the_border(before, &main, 0x80);
        let digests = digests(&writer);
        assert!(digests.len() >= 3);
        assert!(digests.iter().all(|digest| digest.state == SegmentState::Checked), "{:?}", digests[1].state);
        assert_eq!((digests[1].first_record, digests[1].records, digests[1].tail.is_some()), (None, 0, false));
        assert!(
            digests
                .iter()
                .flat_map(|d| [&d.head, &d.tail])
                .flatten()
                .all(|part| part.bytes.len() <= MAX_FRAGMENT_BYTES)
        );
        digests.windows(2).for_each(|pair| check_follows(&pair[0], &pair[1]).unwrap());
        let parts: Vec<&SegmentDigest> = digests.iter().collect();
        let joined = join_record(&parts).unwrap().unwrap();
        let ending = joined.meaning.ending.unwrap();
        assert_eq!((joined.lsn, ending.time, ending.xid), (lsn, PgTime::from_pg_micros(77), Xid::new(42)));
        assert_eq!(join_record(&parts[..3]).unwrap().unwrap(), joined, "no more parts than it needs");
        assert!(matches!(join_record(&parts[..2]), Err(JoinError::Unfinished { .. })));
        let mut damaged = digests.clone();
        damaged[2].head.as_mut().unwrap().rest_crc ^= 1;
        assert!(matches!(join_record(&damaged.iter().collect::<Vec<_>>()), Err(JoinError::Crc { .. })));
    }
}

#[test]
fn what_follows_a_switch_is_not_content() {
    let mut writer = Writer::new(MIB);
    writer.commit(1, 1000);
    let mut other = writer.clone();
    writer.switch();
    other.record(0, 0x40, 0, &[]);
    let end = other.position();
    other.fill(0xAA);
    let (one, two) = (&digests(&writer)[0], &digests(&other)[0]);
    assert_eq!((one.switched, one.valid_until, one.ends_early()), (true, Lsn::new(end), false));
    assert_eq!(one, two, "recycled bytes after the switch");

    let mut third = writer.segments();
    third[0].1[0x40] ^= 1;
    let broken = digest_segment(&third[0].1, third[0].0, writer.segment_size()).unwrap();
    assert!(matches!(broken.state, SegmentState::Broken { .. }));
    assert_ne!(broken.content, one.content);
}

#[test]
fn a_log_that_stops_is_told_from_one_with_a_hole() {
    let mut writer = Writer::new(MIB);
    writer.commit(1, 1000);
    writer.commit(2, 900);
    let end = writer.position();
    writer.fill(0);
    let found = &digests(&writer)[0];
    assert_eq!((&found.state, found.ends_early(), found.valid_until), (&SegmentState::Checked, true, Lsn::new(end)));
    assert_eq!((found.earliest, found.latest), (Some(PgTime::from_pg_micros(900)), Some(PgTime::from_pg_micros(1000))));

    // Zeros in the middle: the pages after them are in their place.
    let mut whole = Writer::new(MIB);
    whole.fill_with_records(1000);
    whole.fill_with_records(1000);
    let mut segments = whole.segments();
    let page = usize::try_from(PAGE).unwrap();
    segments[0].1[3 * page..4 * page].fill(0);
    let hole = digest_segment(&segments[0].1, segments[0].0, whole.segment_size()).unwrap();
    assert!(matches!(hole.state, SegmentState::Broken { .. }), "{:?}", hole.state);
    assert!(hole.records > 0, "what stands before the hole is listed");

    // Something else than zeros in the rest of the last page.
    let mut garbage = writer.segments();
    garbage[0].1[usize::try_from(end - MIB).unwrap() + 100] = 1;
    let found = digest_segment(&garbage[0].1, garbage[0].0, writer.segment_size()).unwrap();
    assert!(matches!(found.state, SegmentState::Broken { .. }));
}

/// The crash may have cut the record at the border, pages after it, or a whole segment after it.
#[test]
fn a_void_record_at_the_border_is_no_part_of_the_log() {
    for pages in [0, 1, 3, MIB / PAGE, MIB / PAGE + 2] {
        let mut writer = Writer::new(MIB);
        while writer.position() < 2 * MIB - 3000 {
            writer.record(10, 0, 7, &[9; 2000]);
        }
        assert!(writer.position() < 2 * MIB);
        let cut = writer.cut_by_a_crash(&vec![1; 3 << 20], pages);
        writer.fill_with_records(1000);
        writer.switch();
        let digests = digests(&writer);
        assert_eq!(digests[0].tail.as_ref().map(|tail| tail.start), Some(cut));
        digests.windows(2).for_each(|pair| check_follows(&pair[0], &pair[1]).unwrap());
        let parts: Vec<&SegmentDigest> = digests.iter().collect();
        assert_eq!(join_record(&parts), Ok(None), "{pages} pages after the border");
        let after = &digests[if pages < MIB / PAGE { 1 } else { 2 }];
        assert!(after.overwrites && after.head.is_none(), "{pages} pages after the border");
        let event = &after.events[0];
        assert_eq!(
            event.kind,
            WalEventKind::OverwriteContrecord { overwritten: cut, time: PgTime::from_pg_micros(55) }
        );
    }
}

#[test]
fn neighbours_that_are_not_one_log_are_told_apart() {
    let mut writer = Writer::new(MIB);
    writer.fill_with_records(1000);
    writer.fill_with_records(1000);
    writer.switch();
    let digests = digests(&writer);
    let (first, second) = (&digests[0], &digests[1]);
    check_follows(first, second).unwrap();
    let other = SegmentDigest { first_prev: Some(Lsn::new(64)), ..second.clone() };
    assert!(matches!(check_follows(first, &other), Err(JoinError::Chain { .. })));
    let other = SegmentDigest { head: None, ..second.clone() };
    assert!(matches!(check_follows(first, &other), Err(JoinError::Parts { .. })));
    let other = SegmentDigest { page_magic: 0xD106, ..second.clone() };
    assert!(matches!(check_follows(first, &other), Err(JoinError::OtherCluster { .. })));
    let other = SegmentDigest { valid_until: first.last_record.unwrap(), ..first.clone() };
    assert!(matches!(check_follows(&other, second), Err(JoinError::EndsEarly { .. })));
}

#[test]
fn what_is_not_the_named_segment_is_refused() {
    let mut writer = Writer::new(MIB);
    writer.commit(1, 1);
    writer.switch();
    let (name, bytes) = writer.segments().remove(0);
    let size = writer.segment_size();
    let named = |text: &str| SegmentName::parse(text).unwrap();
    assert_eq!(digest_segment(&bytes, name, size).unwrap().system_id.get(), SYSTEM);
    assert!(matches!(digest_segment(&bytes[1..], name, size), Err(DigestError::Length { .. })));
    assert!(matches!(
        digest_segment(&bytes, named("000000010000000000000002"), size),
        Err(DigestError::Address { .. })
    ));
    assert!(matches!(digest_segment(&bytes, named("000000010000000000001000"), size), Err(DigestError::Name { .. })));
    assert!(matches!(digest_segment(&vec![0; bytes.len()], name, size), Err(DigestError::NotWal { magic: 0, .. })));
    let mut later = Writer::new(MIB);
    later.timeline = 2;
    later.commit(1, 1);
    later.switch();
    let refused = digest_segment(&later.segments()[0].1, name, size);
    assert!(matches!(refused, Err(DigestError::Timeline { found: 2, .. })), "{refused:?}");
    let mut big = Writer::new(0);
    big.size = 2 * MIB;
    big.commit(1, 1);
    big.switch();
    let refused = digest_segment(&big.out[..bytes.len()], named("000000010000000000000000"), size);
    assert!(matches!(refused, Err(DigestError::SegmentSize { .. })), "{refused:?}");
}

/// A release of tomorrow: kept as it is, not refused.
#[test]
fn an_unknown_magic_is_opaque() {
    let mut writer = Writer::new(MIB);
    writer.commit(1, 1);
    writer.switch();
    let (name, mut bytes) = writer.segments().remove(0);
    bytes[0] = 0x20;
    let found = digest_segment(&bytes, name, writer.segment_size()).unwrap();
    assert_eq!((&found.state, found.page_magic, found.system_id.get()), (&SegmentState::Opaque, 0xD120, SYSTEM));
    assert_eq!((found.records, found.valid_until), (0, found.end()));
    assert_eq!(SegmentDigest::from_bytes(&found.to_bytes()), Ok(found));
}

#[test]
fn a_commit_that_is_shorter_than_its_flags_say_is_damage() {
    let mut writer = Writer::new(MIB);
    let at = writer.data(1, 0x80, 9, &[&5_i64.to_le_bytes()[..], &2_u32.to_le_bytes(), &9_u32.to_le_bytes()].concat());
    writer.switch();
    let found = &digests(&writer)[0];
    assert!(matches!(&found.state, SegmentState::Broken { at: broken, .. } if *broken == at), "{:?}", found.state);
}

/// An abort's list names what the transaction had created; only a commit's names what was dropped.
#[test]
fn only_commits_drop() {
    let mut main = Vec::new();
    main.extend(5_i64.to_le_bytes());
    main.extend((1_u32 << 8 | 1 << 4).to_le_bytes());
    main.extend(1_u32.to_le_bytes());
    [2_u32, 5, 16_384].iter().for_each(|field| main.extend(field.to_le_bytes()));
    main.extend(99_u32.to_le_bytes());
    let mut writer = Writer::new(MIB);
    writer.data(1, 0xB0, 0, &main);
    writer.data(1, 0xC0, 0, &main);
    writer.switch();
    let found = &digests(&writer)[0];
    let endings: Vec<_> = found.endings.iter().map(|ending| (ending.kind, ending.xid.get())).collect();
    assert_eq!(endings, [(TransactionEndKind::CommitPrepared, 99), (TransactionEndKind::AbortPrepared, 99)]);
    let drops: Vec<_> = found.events.iter().filter(|event| matches!(event.kind, WalEventKind::Drop(_))).collect();
    assert_eq!(drops.len(), 1);
    assert_eq!((drops[0].lsn, drops[0].xid), (found.endings[0].lsn, Xid::new(99)));
}
