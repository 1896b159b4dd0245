//! WAL of real servers, one pair of segments for each major, beside what that major's own `pg_waldump` printed of it.

use super::super::decode::WalDecoder;
use super::super::digest::{SegmentDigest, SegmentState, digest_segment, join_record, scan_segment};
use super::super::event::{TransactionEnd, WalEvent, WalEventKind};
use super::super::page::MajorVersion;
use crate::postgres::format::segment::{SegmentName, SegmentSize};

type Segment = (SegmentName, Vec<u8>);

fn segment(name: &str, packed: &[u8]) -> Segment {
    (SegmentName::parse(name).unwrap(), zstd::decode_all(packed).unwrap())
}

macro_rules! fixture {
    ($major:literal, $first:literal, $second:literal) => {
        (
            [
                segment(
                    $first,
                    include_bytes!(concat!("../../../../tests/fixtures/wal/", $major, "/", $first, ".zst")),
                ),
                segment(
                    $second,
                    include_bytes!(concat!("../../../../tests/fixtures/wal/", $major, "/", $second, ".zst")),
                ),
            ],
            include_str!(concat!("../../../../tests/fixtures/wal/", $major, "/waldump.txt")),
        )
    };
}

fn fixtures() -> [([Segment; 2], &'static str); 6] {
    [
        fixture!("13", "000000010000000000000007", "000000010000000000000008"),
        fixture!("14", "000000010000000000000008", "000000010000000000000009"),
        fixture!("15", "000000010000000000000007", "000000010000000000000008"),
        fixture!("16", "000000010000000000000006", "000000010000000000000007"),
        fixture!("17", "000000010000000000000006", "000000010000000000000007"),
        fixture!("18", "000000010000000000000008", "000000010000000000000009"),
    ]
}

/// Endings and the events whose description says all, in `pg_waldump`'s words.
fn told(endings: &[TransactionEnd], events: &[WalEvent]) -> Vec<(u64, String)> {
    let mut told: Vec<(u64, String)> = endings
        .iter()
        .map(|ending| {
            let kind = format!("{:?}", ending.kind).to_uppercase().replace("PREPARED", "_PREPARED");
            let time = ending.time.to_timestamp().unwrap().strftime("%Y-%m-%d %H:%M:%S.%6f UTC");
            let text = match kind.ends_with("PREPARED") {
                true => format!("0 Transaction {kind} {}: {time}", ending.xid),
                false => format!("{} Transaction {kind} {time}", ending.xid),
            };
            (ending.lsn.get(), text)
        })
        .collect();
    for event in events {
        let xid = event.xid;
        let text = match &event.kind {
            WalEventKind::RestorePoint { name, .. } => format!("{xid} XLOG RESTORE_POINT {name}"),
            WalEventKind::Switch => format!("{xid} XLOG SWITCH"),
            WalEventKind::DropDatabase { database } => format!("{xid} Database DROP dir 1663/{database}"),
            WalEventKind::Checkpoint(checkpoint) => format!("{xid} XLOG CHECKPOINT_ONLINE redo {}", checkpoint.redo),
            WalEventKind::Drop(removal) | WalEventKind::Rewrite(removal) => {
                let (_, commit) = told.iter_mut().find(|(lsn, _)| *lsn == event.lsn.get()).unwrap();
                *commit += &format!("; {} files, {} objects", removal.files.len(), removal.objects.len());
                continue;
            }
            _ => continue,
        };
        told.push((event.lsn.get(), text));
    }
    told.sort();
    told
}

/// The same from `pg_waldump`'s lines: `LSN XID RMGR DESCRIPTION`.
fn expected(waldump: &str) -> Vec<(u64, String)> {
    let lines = waldump.lines().skip(1).filter_map(|line| {
        let (lsn, text) = line.split_once(' ')?;
        let (high, low) = lsn.split_once('/')?;
        let part = |digits| u64::from_str_radix(digits, 16).unwrap();
        let items = |name: &str| {
            text.split("; ").find_map(|part| part.strip_prefix(name)).map_or(0, |items| items.trim().split(' ').count())
        };
        let (files, objects) = (items("rels:"), items("dropped stats:"));
        let mut kept = text.split(';').next()?.trim().to_owned();
        if kept.contains("COMMIT") && files + objects > 0 {
            kept += &format!("; {files} files, {objects} objects");
        }
        Some((part(high) << 32 | part(low), kept))
    });
    lines.filter(|(_, text)| !["CHECKPOINT_REDO", "Storage"].iter().any(|other| text.contains(other))).collect()
}

#[test]
fn every_major_is_read_as_its_own_pg_waldump_reads_it() {
    for ((segments, waldump), major) in fixtures().into_iter().zip(MajorVersion::ALL) {
        let size = SegmentSize::new(1 << 20).unwrap();
        let digests: Vec<SegmentDigest> =
            segments.iter().map(|(name, bytes)| digest_segment(bytes, *name, size).unwrap()).collect();
        let [first, second] = digests.as_slice() else { panic!("two segments") };
        assert_eq!(
            (MajorVersion::from_magic(first.page_magic), &first.state, &second.state),
            (Some(major), &SegmentState::Checked, &SegmentState::Checked)
        );
        let joined = join_record(&[first, second]).unwrap();
        let records = first.records + second.records + u64::from(joined.is_some());
        assert_eq!(format!("{records} records"), waldump.lines().next().unwrap(), "{major:?}");

        let meaning = joined.map(|joined| joined.meaning).unwrap_or_default();
        let endings: Vec<TransactionEnd> =
            first.endings.iter().chain(&meaning.ending).chain(&second.endings).copied().collect();
        let events: Vec<WalEvent> = first.events.iter().chain(&meaning.event).chain(&second.events).cloned().collect();
        assert_eq!(told(&endings, &events), expected(waldump), "{major:?}");
        assert!(second.switched && !first.switched);
        for ((name, bytes), digest) in segments.iter().zip(&digests) {
            let meaningful = usize::try_from(digest.valid_until.bytes_since(digest.start())).unwrap();
            assert_eq!(digest.content, *blake3::hash(&bytes[..meaningful]).as_bytes());
            let hash = *blake3::hash(bytes).as_bytes();
            assert_eq!(scan_segment(bytes, *name, size).unwrap().with_hash_of_all(hash), *digest, "{major:?}");
        }

        let mut decoder = WalDecoder::new(first.start(), first.timeline, size);
        let mut decoded = 0;
        for (_, bytes) in &segments {
            for piece in bytes.chunks(5_003) {
                let mut feed = decoder.feed_bytes(piece);
                while feed.next_record().unwrap().is_some() {
                    decoded += 1;
                }
            }
        }
        assert_eq!(decoded, records, "in pieces");
    }
}
