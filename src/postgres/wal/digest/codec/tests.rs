use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{collection, option, proptest};

use super::{DigestFormatError, RecordFragment, SegmentDigest, SegmentState, fuzz, note_after_digest, with_note};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize, SystemId};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::catalog::{Catalog, CatalogChange, CatalogRow, RelationRow, RowCounts, TupleChange, TupleId};
use crate::postgres::wal::event::{
    CheckpointRecord, DroppedObject, DroppedObjectKind, RelFileLocator, RemovedObjects, TransactionEnd,
    TransactionEndKind, WalEvent, WalEventKind, WalLevel, WalParameters, Xid,
};

const SIZE: u64 = 16 << 20;
const SEGMENT: u64 = 0xA3;

fn lsn() -> impl Strategy<Value = Lsn> {
    (0..SIZE / 8).prop_map(|units| Lsn::new(SEGMENT * SIZE + units * 8))
}

fn time() -> impl Strategy<Value = PgTime> {
    any::<i64>().prop_map(PgTime::from_pg_micros)
}

fn timeline() -> impl Strategy<Value = TimelineId> {
    (1..=u32::MAX).prop_map(|number| TimelineId::new(number).unwrap())
}

fn ending() -> impl Strategy<Value = TransactionEnd> {
    let kind = prop_oneof![
        Just(TransactionEndKind::Commit),
        Just(TransactionEndKind::Abort),
        Just(TransactionEndKind::CommitPrepared),
        Just(TransactionEndKind::AbortPrepared)
    ];
    (lsn(), 0_u64..1000, any::<u32>(), time(), kind).prop_map(|(lsn, units, xid, time, kind)| TransactionEnd {
        lsn,
        end_lsn: lsn.saturating_add(units * 8),
        xid: Xid::new(xid),
        time,
        kind,
    })
}

fn relation() -> impl Strategy<Value = RelFileLocator> {
    any::<(u32, u32, u32)>().prop_map(|(tablespace, database, filenode)| RelFileLocator {
        tablespace,
        database,
        filenode,
    })
}

fn removal() -> impl Strategy<Value = RemovedObjects> {
    let kind = prop_oneof![
        Just(DroppedObjectKind::Database),
        Just(DroppedObjectKind::Relation),
        Just(DroppedObjectKind::Function),
        Just(DroppedObjectKind::Subscription),
        (6_u32..).prop_map(DroppedObjectKind::Other)
    ];
    let object = (kind, any::<u32>(), any::<u64>()).prop_map(|(kind, database, object)| DroppedObject {
        kind,
        database,
        object,
    });
    (
        time(),
        option::of(any::<u32>()),
        collection::vec(object, 0..4),
        collection::vec(relation(), 0..4),
        any::<(u32, u32)>(),
    )
        .prop_map(|(time, database, objects, files, (objects_total, files_total))| RemovedObjects {
            time,
            database,
            objects,
            objects_total,
            files,
            files_total,
        })
}

fn kind() -> impl Strategy<Value = WalEventKind> {
    let checkpoint = (any::<(bool, bool)>(), lsn(), timeline(), timeline(), time()).prop_map(
        |((shutdown, full_page_writes), redo, timeline, previous_timeline, time)| {
            WalEventKind::Checkpoint(CheckpointRecord {
                shutdown,
                redo,
                timeline,
                previous_timeline,
                time,
                full_page_writes,
            })
        },
    );
    let level = prop_oneof![Just(WalLevel::Minimal), Just(WalLevel::Replica), Just(WalLevel::Logical)];
    let parameters =
        (any::<[u32; 5]>(), level, any::<bool>(), any::<bool>()).prop_map(|(n, wal_level, wal_log_hints, track)| {
            WalEventKind::Parameters(WalParameters {
                max_connections: n[0],
                max_worker_processes: n[1],
                max_wal_senders: n[2],
                max_prepared_transactions: n[3],
                max_locks_per_transaction: n[4],
                wal_level,
                wal_log_hints,
                track_commit_timestamp: track,
            })
        });
    prop_oneof![
        checkpoint,
        parameters,
        ("[a-zé]{0,20}", time()).prop_map(|(name, time)| WalEventKind::RestorePoint { name, time }),
        (time(), timeline(), timeline()).prop_map(|(time, timeline, previous)| WalEventKind::EndOfRecovery {
            time,
            timeline,
            previous
        }),
        lsn().prop_map(|start| WalEventKind::BackupEnd { start }),
        Just(WalEventKind::Switch),
        any::<bool>().prop_map(|on| WalEventKind::FullPageWrites { on }),
        (lsn(), time()).prop_map(|(overwritten, time)| WalEventKind::OverwriteContrecord { overwritten, time }),
        removal().prop_map(WalEventKind::Drop),
        removal().prop_map(WalEventKind::Rewrite),
        (any::<(u32, u32, bool, bool)>(), collection::vec(any::<u32>(), 0..4)).prop_map(
            |((database, total, cascade, restart_identity), relations)| WalEventKind::Truncate {
                database,
                relations,
                total,
                cascade,
                restart_identity
            }
        ),
        relation().prop_map(|file| WalEventKind::FileEmptied { file }),
        any::<u32>().prop_map(|database| WalEventKind::DropDatabase { database }),
        any::<u32>().prop_map(|database| WalEventKind::CreateDatabase { database }),
        (any::<u32>(), "[a-zé/]{0,20}")
            .prop_map(|(tablespace, location)| WalEventKind::CreateTablespace { tablespace, location }),
        (relation(), any::<[u64; 4]>(), any::<bool>()).prop_map(|(file, n, ended)| WalEventKind::Rows {
            file,
            counts: RowCounts { inserted: n[0], updated: n[1], deleted: n[2], pages: n[3] },
            ended
        }),
        collection::vec(any::<u32>().prop_map(Xid::new), 0..4).prop_map(|of| WalEventKind::Subtransactions { of }),
        change().prop_map(|change| WalEventKind::Catalog(Box::new(change))),
    ]
}

fn change() -> impl Strategy<Value = CatalogChange> {
    let catalog = prop_oneof![Just(Catalog::Class), Just(Catalog::Database), Just(Catalog::Namespace)];
    let place = || option::of(any::<(u32, u16)>().prop_map(|(page, item)| TupleId { page, item }));
    let row = (any::<u32>(), "[a-zé]{0,20}", any::<(u32, u32, u8, u8)>());
    let made = prop_oneof![
        row.prop_map(|(oid, name, (namespace, filenode, persistence, kind))| {
            TupleChange::Row(CatalogRow {
                oid,
                name,
                relation: Some(RelationRow { namespace, filenode, persistence, kind }),
            })
        }),
        (any::<u16>(), collection::vec(any::<u8>(), 0..120)).prop_map(|(at, bytes)| TupleChange::Changed { at, bytes }),
        Just(TupleChange::Nothing),
    ];
    (catalog, any::<u32>(), place(), place(), made, any::<bool>()).prop_map(
        |(catalog, database, old, new, mut made, committed)| {
            if let TupleChange::Row(row) = &mut made
                && catalog != Catalog::Class
            {
                row.relation = None;
            }
            CatalogChange { catalog, database, old, new, made, committed }
        },
    )
}

fn event() -> impl Strategy<Value = WalEvent> {
    (lsn(), 0_u64..1000, any::<u32>(), kind()).prop_map(|(lsn, units, xid, kind)| WalEvent {
        lsn,
        end_lsn: lsn.saturating_add(units * 8),
        xid: Xid::new(xid),
        kind,
    })
}

fn fragment() -> impl Strategy<Value = RecordFragment> {
    (lsn(), any::<u32>(), collection::vec(any::<u8>(), 0..40), 0_u32..1000, 0_u32..1000).prop_map(
        |(start, rest_crc, bytes, more, after)| {
            let held = u32::try_from(bytes.len()).unwrap() + more;
            RecordFragment {
                start,
                end: start.saturating_add(u64::from(held)),
                total: held + after,
                held,
                bytes,
                rest_crc,
            }
        },
    )
}

fn state() -> impl Strategy<Value = SegmentState> {
    prop_oneof![
        Just(SegmentState::Checked),
        Just(SegmentState::Opaque),
        (lsn(), "[a-z ]{0,20}").prop_map(|(at, why)| SegmentState::Broken { at, why }),
    ]
}

fn digest() -> impl Strategy<Value = SegmentDigest> {
    (
        (timeline(), any::<u16>(), any::<u64>(), state(), option::of(lsn()), option::of(lsn()), option::of(lsn())),
        (lsn(), any::<bool>(), any::<bool>(), any::<u64>(), option::of(time()), option::of(time()), any::<u64>()),
        (
            collection::vec(ending(), 0..20),
            collection::vec(event(), 0..8),
            collection::vec(event(), 0..8),
            option::of(fragment()),
            option::of(fragment()),
            any::<[u8; 32]>(),
        ),
    )
        .prop_map(|(a, b, (mut endings, mut events, mut changes, head, tail, content))| {
            endings.sort_by_key(|ending| ending.lsn);
            events.sort_by_key(|event| event.lsn);
            changes.sort_by_key(|event| event.lsn);
            SegmentDigest {
                timeline: a.0,
                segment: SegmentNo::new(SEGMENT),
                segment_size: SegmentSize::new(SIZE).unwrap(),
                page_magic: a.1,
                system_id: SystemId::new(a.2),
                state: a.3,
                first_record: a.4,
                last_record: a.5,
                first_prev: a.6,
                valid_until: b.0,
                switched: b.1,
                overwrites: b.2,
                records: b.3,
                earliest: b.4,
                latest: b.5,
                endings,
                events,
                changes,
                omitted_events: b.6,
                head,
                tail,
                content,
            }
        })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(digest in digest()) {
        let bytes = digest.to_bytes();
        assert_eq!(SegmentDigest::from_bytes(&bytes), Ok(digest.clone()));
        let (head, tail, endings, events, changes) = Default::default();
        assert_eq!(SegmentDigest::outline(&bytes), Ok(SegmentDigest { head, tail, endings, events, changes, ..digest }));
    }

    #[test]
    fn a_note_behind_a_digest_is_no_part_of_it(digest in digest(), text in collection::vec(any::<u8>(), 1..300)) {
        let plain = digest.to_bytes();
        let noted = with_note(plain.clone(), &text);
        assert_eq!((note_after_digest(&noted), note_after_digest(&plain)), (text.as_slice(), [].as_slice()));
        assert_eq!(SegmentDigest::from_bytes(&noted), Ok(digest.clone()));
        assert_eq!(SegmentDigest::outline(&noted), SegmentDigest::outline(&plain));
        assert_eq!(with_note(plain.clone(), &[]), plain);
    }

    #[test]
    fn a_cut_digest_is_refused(digest in digest(), cut in any::<proptest::sample::Index>()) {
        let bytes = digest.to_bytes();
        assert!(SegmentDigest::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn a_damaged_digest_never_panics(digest in digest(), at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = digest.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        fuzz(&bytes);
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in collection::vec(any::<u8>(), 0..300)) {
        fuzz(&bytes);
        for known in [1, 2, 4] {
            if let Some(version) = bytes.first_mut() {
                *version = known;
            }
            fuzz(&bytes);
        }
    }
}

#[test]
fn a_newer_version_is_named_and_what_follows_the_end_is_refused() {
    assert_eq!(SegmentDigest::from_bytes(&[9, 1, 2]), Err(DigestFormatError::Version(9)));
    assert_eq!(SegmentDigest::from_bytes(&[]), Err(DigestFormatError::Damaged("version")));
}

#[test]
fn a_count_that_the_bytes_cannot_hold_allocates_nothing() {
    let digest = SegmentDigest {
        timeline: TimelineId::FIRST,
        segment: SegmentNo::new(1),
        segment_size: SegmentSize::DEFAULT,
        page_magic: 0xD110,
        system_id: SystemId::new(7),
        state: SegmentState::Checked,
        first_record: None,
        last_record: None,
        first_prev: None,
        valid_until: Lsn::new(SIZE),
        switched: false,
        overwrites: false,
        records: 0,
        earliest: None,
        latest: None,
        endings: Vec::new(),
        events: Vec::new(),
        changes: Vec::new(),
        omitted_events: 0,
        head: None,
        tail: None,
        content: [0; 32],
    };
    let mut bytes = digest.to_bytes();
    assert_eq!(bytes.split_off(bytes.len() - 3), [0, 0, 0], "no endings, no events, no changes");
    bytes.extend_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0, 0, 0]);
    assert_eq!(SegmentDigest::from_bytes(&bytes), Err(DigestFormatError::Damaged("endings")));
}

/// What was stored before there were changes in digests, as it was then.
#[test]
fn a_digest_of_the_first_version_is_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/wal_digest");
    for name in ["13-07", "14-08", "15-07", "16-06", "17-06", "18-08"] {
        let bytes = std::fs::read(format!("{folder}/{name}")).unwrap();
        assert_eq!(bytes[0], 1, "a golden file of version 1");
        let digest = SegmentDigest::from_bytes(&bytes).unwrap();
        assert!(digest.changes.is_empty() && !digest.endings.is_empty());
        let again = digest.to_bytes();
        assert_eq!((again[0], &again[1..again.len() - 1]), (3, &bytes[1..]), "all that is new stands at the end");
    }
}
