//! Any split gives the same records; no flipped bit that means anything goes unnoticed.

use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof};
use proptest::{collection, proptest};

use super::writer::{PAGE, Writer, Written};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::wal::decode::{DecodeError, LogEnd, WalDecoder, fuzz};

const MIB: u64 = 1 << 20;

struct Decoded {
    records: Vec<Written>,
    error: Option<DecodeError>,
    end: Option<LogEnd>,
    pending: Option<(Lsn, Vec<u8>)>,
}

fn decode(writer: &Writer, log: &[u8], pieces: &[usize]) -> Decoded {
    let mut decoder = WalDecoder::new(Lsn::new(writer.start), writer.timeline_id(), writer.segment_size());
    let (mut records, mut error, mut rest) = (Vec::new(), None, log);
    let mut pieces = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(pieces.next().unwrap().clamp(1, rest.len()));
        rest = after;
        let mut feed = decoder.feed_bytes(piece);
        loop {
            match feed.next_record() {
                Ok(Some(record)) => {
                    assert_eq!(record.bytes.len(), record.header.total_len as usize);
                    let (lsn, end) = (record.lsn.get(), record.end_lsn.get());
                    records.push(Written { lsn, end, bytes: record.bytes.to_vec() });
                }
                Ok(None) => break,
                Err(found) => {
                    error = Some(found);
                    assert!(
                        matches!(feed.next_record(), Err(again) if again == found),
                        "the first error is the last word"
                    );
                    break;
                }
            }
        }
    }
    let pending = decoder.pending().map(|pending| (pending.start, pending.bytes.to_vec()));
    Decoded { records, error, end: decoder.end(), pending }
}

/// A log that begins at most some pages before a segment's end, so that both kinds of page header are in it.
fn log() -> impl Strategy<Value = Writer> {
    let bodies = lengths();
    (0_u64..4, collection::vec(bodies, 1..25), any::<bool>()).prop_map(|(pages, bodies, switch)| {
        let mut writer = Writer::new(3 * MIB - pages * PAGE);
        for (n, body) in bodies.iter().enumerate() {
            let xid = u32::try_from(n).unwrap();
            writer.record(10, 0, xid, &vec![xid.to_le_bytes()[0] | 1; *body]);
        }
        if switch {
            writer.record(0, 0x40, 0, &[]);
        }
        writer
    })
}

/// Lengths that end at, before and after page ends more often than chance would have it.
fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0_usize..200,
        2 => 8100_usize..8200,
        1 => 0_usize..20_000,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_split_gives_the_same_records(writer in log(), pieces in collection::vec(1_usize..3000, 1..20)) {
        let mut expected = writer.written.clone();
        if let Some(last) = expected.last_mut() && last.bytes[16..18] == [0x40, 0] {
            last.end = last.end.next_multiple_of(MIB);
        }
        for pieces in [&[usize::MAX][..], &pieces, &[1]] {
            let decoded = decode(&writer, &writer.out, pieces);
            prop_assert_eq!(&decoded.records, &expected);
            prop_assert_eq!((decoded.error, decoded.end, decoded.pending), (None, None, None));
        }
    }

    /// Cut anywhere, the log gives the records that are whole, and what is there of the next.
    #[test]
    fn a_cut_log_gives_what_is_whole(writer in log(), cut in any::<proptest::sample::Index>()) {
        let cut = cut.index(writer.out.len());
        let decoded = decode(&writer, &writer.out[..cut], &[700, 3, 9000]);
        let at = writer.start + cut as u64;
        let whole = writer.written.iter().take_while(|record| record.end - padding(record) <= at).count();
        prop_assert_eq!(decoded.records.len(), whole);
        prop_assert_eq!((decoded.error, decoded.end), (None, None));
        if let Some((start, bytes)) = decoded.pending {
            prop_assert_eq!(start.get(), writer.written[whole].lsn);
            prop_assert!(writer.written[whole].bytes.starts_with(&bytes));
        } else if let Some(next) = writer.written.get(whole) {
            prop_assert!(next.lsn >= at, "a record under way is pending");
        }
    }

    /// One flipped bit is an error, or the end of the log at a zero length, or lies where no bit means anything.
    #[test]
    fn a_flipped_bit_is_noticed(writer in log(), at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
        let at = at.index(writer.out.len());
        let mut log = writer.out.clone();
        log[at] ^= 1_u8 << bit;
        let decoded = decode(&writer, &log, &[5000, 17]);
        let whole = decode(&writer, &writer.out, &[usize::MAX]);
        if decoded.error.is_none() && decoded.end.is_none() && decoded.records == whole.records {
            prop_assert!(means_nothing(&writer, at), "bit {bit} of byte {at} ({}) was not noticed", Lsn::new(writer.start + at as u64));
        } else {
            prop_assert!(decoded.error.is_some() || decoded.end.is_some() || decoded.pending.is_some(), "other records, and no error");
        }
        for (record, original) in decoded.records.iter().zip(&whole.records) {
            prop_assert_eq!(&record.bytes, &original.bytes, "a damaged record was handed out");
        }
    }

    #[test]
    fn anything_ends(bytes in collection::vec(any::<u8>(), 0..2000)) {
        fuzz(&bytes);
    }
}

fn padding(record: &Written) -> u64 {
    record.bytes.len().wrapping_neg() as u64 % 8
}

/// Padding after a record; the padding in a page header; on a page whose header only says how much remains, nothing
/// else.
fn means_nothing(writer: &Writer, at: usize) -> bool {
    let lsn = writer.start + at as u64;
    let in_page = lsn % PAGE;
    let covered = |record: &&Written| (record.lsn..record.end).contains(&lsn);
    if in_page < 2 && writer.out.len() as u64 <= PAGE {
        // One bit makes the magic of 13 that of 17, and that of 15 that of 18; this log has no other page to compare it
        // with.
        return true;
    }
    if in_page < 24 {
        // The header's own padding; the number of remaining bytes, on a page where none remain; and two flags: that
        // full-page images may be left out, and on a page that begins with a record, that it stands in the place of a
        // lost one.
        return in_page >= 16 || in_page == 2;
    }
    if lsn % MIB < 40 {
        // The cluster's identity: this log has no other page to compare it with.
        return lsn % MIB < 32;
    }
    writer.written.iter().find(covered).is_some_and(|record| lsn >= record.end - padding(record))
}

/// The decoder starts within a record: its rest is passed over, and the chain begins with the next.
#[test]
fn the_rest_of_an_earlier_record_is_passed_over() {
    for body in [3000, 30_000] {
        let mut writer = Writer::new(MIB - PAGE);
        writer.record(10, 0, 1, &vec![1; 6000]);
        writer.record(10, 0, 1, &vec![2; body]);
        let next = writer.commit(5, 77);
        let skipped = usize::try_from(PAGE).unwrap();
        let mut later = writer.clone();
        later.start += PAGE;
        let decoded = decode(&later, &writer.out[skipped..], &[100]);
        assert_eq!(decoded.error, None);
        assert_eq!(decoded.records.first().map(|record| record.lsn), Some(next.get()), "{body}");
    }
}

/// A record of nothing but a header, which ends with its page: it is whole before the next page is seen.
#[test]
fn the_shortest_record_ends_with_its_page() {
    let mut writer = Writer::new(3 * MIB - PAGE);
    writer.record(10, 0, 1, &vec![1; usize::try_from(PAGE).unwrap() - 24 - 24 - 24]);
    writer.record(10, 0, 1, &[]);
    assert_eq!(writer.position(), 3 * MIB);
    for pieces in [&[usize::MAX][..], &[1], &[8191, 1]] {
        assert_eq!(decode(&writer, &writer.out, pieces).records, writer.written);
    }
}

#[test]
fn a_record_cut_by_a_crash_is_void() {
    for pieces in [&[usize::MAX][..], &[1], &[8192], &[8191, 3]] {
        let mut writer = Writer::new(MIB - PAGE);
        writer.record(10, 0, 1, &[1; 4000]);
        let cut = writer.cut_by_a_crash(&[2; 30_000], 0);
        writer.commit(5, 77);
        let decoded = decode(&writer, &writer.out, pieces);
        assert_eq!(decoded.error, None);
        assert_eq!(decoded.records, writer.written);
        assert!(decoded.records.iter().all(|record| record.lsn != cut.get()));
    }
}

/// Without the flag, the same is damage.
#[test]
fn a_record_that_does_not_go_on_is_an_error() {
    let mut writer = Writer::new(MIB);
    writer.record(10, 0, 1, &[1; 4000]);
    writer.cut_by_a_crash(&[2; 30_000], 0);
    let page = usize::try_from(PAGE).unwrap();
    writer.out[page + 2] = 0;
    let decoded = decode(&writer, &writer.out, &[usize::MAX]);
    assert!(
        matches!(decoded.error, Some(DecodeError::Continuation { at, .. }) if at.get() == MIB + PAGE),
        "{:?}",
        decoded.error
    );
    writer.out[page + 2] = 1;
    writer.out[page + 16..page + 20].copy_from_slice(&5_u32.to_le_bytes());
    let decoded = decode(&writer, &writer.out, &[usize::MAX]);
    assert!(matches!(decoded.error, Some(DecodeError::Continuation { .. })), "another length: {:?}", decoded.error);
}

#[test]
fn zeros_and_recycled_pages_end_the_log() {
    let mut writer = Writer::new(MIB);
    writer.record(10, 0, 1, &[1; 4000]);
    let end = writer.position();
    let mut zeros = writer.out.clone();
    zeros.resize(30_000, 0);
    let decoded = decode(&writer, &zeros, &[1000]);
    let expected = LogEnd { at: Lsn::new(end), seen_at: Lsn::new(end) };
    assert_eq!((decoded.records.len(), decoded.error, decoded.end), (1, None, Some(expected)));

    // A record under way when an old page comes: it was never finished.
    let partial = writer.record(10, 0, 1, &[2; 9000]);
    let mut old = Writer::new(0);
    old.record(10, 0, 1, &[3; 20_000]);
    let page = usize::try_from(PAGE).unwrap();
    let recycled = [&writer.out[..page], &old.out[page..]].concat();
    let decoded = decode(&writer, &recycled, &[1000]);
    let expected = LogEnd { at: partial, seen_at: Lsn::new(MIB + PAGE) };
    assert_eq!((decoded.records.len(), decoded.error, decoded.end, decoded.pending), (1, None, Some(expected), None));
}

#[test]
fn headers_that_cannot_be_are_errors() {
    let mut writer = Writer::new(MIB);
    for _ in 0..10 {
        writer.record(10, 0, 1, &[1; 2000]);
    }
    let page = usize::try_from(PAGE).unwrap();
    let check = |name: &str, at: usize, bytes: &[u8], is: fn(&DecodeError) -> bool| {
        let mut log = writer.out.clone();
        log[at..at + bytes.len()].copy_from_slice(bytes);
        let error = decode(&writer, &log, &[usize::MAX]).error.unwrap_or_else(|| panic!("{name}: accepted"));
        assert!(is(&error), "{name}: {error}");
    };
    check("an unknown magic", page, &[0x19, 0xD1], |e| matches!(e, DecodeError::Magic { found: 0xD119, .. }));
    check("another release's magic", page, &[0x16, 0xD1], |e| matches!(e, DecodeError::Magic { found: 0xD116, .. }));
    check("a flag that does not exist", page + 2, &[0x11], |e| matches!(e, DecodeError::Page { .. }));
    check("a later timeline", page + 4, &[2], |e| matches!(e, DecodeError::Timeline { found: 2, .. }));
    check("no timeline", page + 4, &[0], |e| matches!(e, DecodeError::Timeline { found: 0, .. }));
    check("a later address", page + 8, &[0, 0, 0x50], |e| matches!(e, DecodeError::Address { .. }));
    check("another segment size", 32, &[0, 0, 0, 1], |e| matches!(e, DecodeError::Page { .. }));
    check("a short header first", 2, &[0], |e| matches!(e, DecodeError::Page { .. }));
    check("a page size that is none", 36, &[1], |e| matches!(e, DecodeError::Page { .. }));
    check("a length too short", 40, &[23, 0, 0, 0], |e| matches!(e, DecodeError::Header { .. }));
    check("a length too long", 40, &[0, 0, 0, 0x41], |e| matches!(e, DecodeError::Header { .. }));
    check("no such resource manager", 40 + 17, &[22], |e| matches!(e, DecodeError::Header { .. }));
    let second = usize::try_from(writer.written[1].lsn - MIB).unwrap();
    check("another predecessor", second + 8, &[1], |e| matches!(e, DecodeError::Chain { .. }));
    check("a body that was not written", second + 100, &[9], |e| matches!(e, DecodeError::Crc { .. }));
    let mut two = writer.clone();
    two.fill_with_records(5000);
    let at = usize::try_from(MIB).unwrap();
    let mut log = two.out.clone();
    log[at + 24] ^= 1;
    assert!(matches!(decode(&two, &log, &[usize::MAX]).error, Some(DecodeError::SystemId { .. })));
}

/// Positions next to the end of the 64-bit space: no overflow, no endless loop.
#[test]
fn the_last_segment_of_all_is_decoded_to_its_end() {
    let mut writer = Writer::new(u64::MAX - PAGE + 1);
    writer.out.clear();
    let mut log = Vec::new();
    log.extend_from_slice(&writer.major.magic().to_le_bytes());
    log.resize(8192, 0);
    log[4] = 1;
    log[8..16].copy_from_slice(&writer.start.to_le_bytes());
    log[24..28].copy_from_slice(&0xFFFF_u32.to_le_bytes());
    let decoded = decode(&writer, &log, &[100]);
    assert!(decoded.error.is_some() || decoded.pending.is_some());
}
