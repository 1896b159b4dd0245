//! Segments made by hand, as `xlog_internal.h` and `xlogrecord.h` lay them out, through archives of one and two
//! repositories and through every fault.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use tempfile::TempDir;

use super::Archive;
use super::gap::Gap;
use super::ingest::{IngestAlarm, IngestError, IngestOutcome, prepare_segment};
use crate::base::retry::ErrorClass;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
use crate::postgres::format::timeline::TimelineId;
use crate::vault::repository::fault_store::{FaultStore, InjectedFault};
use crate::vault::seal::CompressionLevel;
use crate::vault::seal::keys::{KeyEncryptionKey, SealKeyError};
use crate::vault::{self, RequiredCopies, testing};

const MIB: usize = 1 << 20;

/// A 1 MiB segment of PostgreSQL 15 that holds one record with this text, then a switch, then rubbish.
pub(crate) fn segment(system_id: u64, number: u64, text: &[u8], rubbish: u8) -> (SegmentName, Bytes) {
    let (name, bytes) = segment_on(1, number, text, rubbish);
    let mut bytes = bytes.to_vec();
    bytes[24..32].copy_from_slice(&system_id.to_le_bytes());
    (name, bytes.into())
}

/// The same on any timeline, of the cluster 7.
pub(crate) fn segment_on(timeline: u32, number: u64, text: &[u8], rubbish: u8) -> (SegmentName, Bytes) {
    let size = SegmentSize::new(MIB as u64).unwrap();
    let start = SegmentNo::new(number).start(size).get();
    let mut bytes = Vec::new();
    bytes.extend(0xD110_u16.to_le_bytes());
    bytes.extend(2_u16.to_le_bytes()); // XLP_LONG_HEADER
    bytes.extend(timeline.to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes()); // xlp_rem_len and padding
    bytes.extend(7_u64.to_le_bytes());
    bytes.extend((MIB as u32).to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    let noop = [&[0xFF, text.len() as u8], text].concat();
    // The segment before is like this one, and its switch is its last record.
    record(&mut bytes, start - MIB as u64 + 40 + (24 + noop.len() as u64).next_multiple_of(8), 0x20, &noop);
    let noop_at = start + 40;
    record(&mut bytes, noop_at, 0x40, &[]);
    bytes.resize(8192, rubbish);
    bytes.resize(MIB, rubbish.wrapping_mul(3));
    (SegmentName::new(TimelineId::new(timeline).unwrap(), SegmentNo::new(number), size).unwrap(), bytes.into())
}

/// A record of the resource manager XLOG (`XLogRecord`), its CRC over the body and then the header.
fn record(bytes: &mut Vec<u8>, previous: u64, info: u8, body: &[u8]) {
    let mut header = Vec::new();
    header.extend((24 + body.len() as u32).to_le_bytes());
    header.extend(0_u32.to_le_bytes());
    header.extend(previous.to_le_bytes());
    header.extend([info, 0, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(body), &header);
    header.extend(crc.to_le_bytes());
    bytes.extend(header);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// The archive of `main` in a new vault in these directories.
pub(crate) async fn create(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> Arc<Archive> {
    Arc::new(Archive::new(testing::create(dirs, key).await, "main".parse().unwrap()))
}

/// The archive of `main` in the vault in these directories.
pub(crate) async fn open(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> Result<Arc<Archive>, vault::VaultError> {
    Ok(Arc::new(Archive::new(testing::open(dirs, key).await?, "main".parse().unwrap())))
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn key() -> KeyEncryptionKey {
    KeyEncryptionKey::generate().unwrap()
}

/// Every file under a directory with its content.
fn files(dir: &TempDir) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.clone(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn what_goes_in_comes_out_and_the_second_time_changes_nothing() {
    let (dir, key) = (dir(), key());
    let archive = create(&[&dir], Some(&key)).await;
    let (name, bytes) = segment(7, 3, b"a", 9);
    let first = archive.put_segment(name, bytes.clone()).await.unwrap();
    assert_eq!((first.outcome, first.alarm), (IngestOutcome::Created, None));
    assert!(first.digest.unwrap().switched);
    let before = files(&dir);
    assert!(before.iter().all(|(_, stored)| !stored.windows(100).any(|window| window == &bytes[9000..9100])));
    for archive in [archive, open(&[&dir], Some(&key)).await.unwrap()] {
        let again = archive.put_segment(name, bytes.clone()).await.unwrap();
        assert_eq!(again.outcome, IngestOutcome::Identical);
        let prepared = prepare_segment(&archive, name, &bytes, CompressionLevel::Fixed(3), 1).unwrap();
        assert_eq!(archive.commit_segment(prepared).await.unwrap().outcome, IngestOutcome::Identical);
        assert_eq!(archive.segment(name).await.unwrap().unwrap(), bytes);
        assert_eq!(archive.digest(name).await.unwrap().unwrap().system_id.get(), 7);
    }
    assert_eq!(files(&dir), before);
}

#[tokio::test]
async fn what_follows_the_switch_does_not_count_and_what_precedes_it_does() {
    let (dir, key) = (dir(), key());
    let archive = create(&[&dir], Some(&key)).await;
    let (name, bytes) = segment(7, 3, b"a", 9);
    archive.put_segment(name, bytes.clone()).await.unwrap();
    let rubbish = segment(7, 3, b"a", 200).1;
    assert_eq!(archive.put_segment(name, rubbish.clone()).await.unwrap().outcome, IngestOutcome::Identical);
    let prepared = prepare_segment(&archive, name, &rubbish, CompressionLevel::Auto, 2).unwrap();
    assert_eq!(archive.commit_segment(prepared).await.unwrap().outcome, IngestOutcome::Identical);
    assert!(matches!(archive.put_segment(name, rubbish.slice(..MIB - 1)).await, Err(IngestError::NotWhole { .. })));
    let other = segment(7, 3, b"b", 9).1;
    let before = files(&dir);
    let error = archive.put_segment(name, other.clone()).await.unwrap_err();
    assert!(matches!(error, IngestError::ContentDiffers { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Conflict);
    let prepared = prepare_segment(&archive, name, &other, CompressionLevel::Auto, 2).unwrap();
    assert!(matches!(archive.commit_segment(prepared).await, Err(IngestError::ContentDiffers { .. })));
    assert_eq!(files(&dir), before);
    assert_eq!(archive.segment(name).await.unwrap().unwrap(), bytes);
}

#[tokio::test]
async fn the_wal_of_another_cluster_is_refused() {
    let (dir, key) = (dir(), key());
    let archive = create(&[&dir], Some(&key)).await;
    assert_eq!(archive.identity().await.unwrap(), None);
    let (name, bytes) = segment(7, 3, b"a", 9);
    archive.put_segment(name, bytes).await.unwrap();
    for archive in [archive, open(&[&dir], Some(&key)).await.unwrap()] {
        let (name, bytes) = segment(8, 4, b"a", 9);
        let error = archive.put_segment(name, bytes.clone()).await.unwrap_err();
        assert!(matches!(error, IngestError::WrongSystem { .. }), "{error}");
        let prepared = prepare_segment(&archive, name, &bytes, CompressionLevel::Auto, 1).unwrap();
        assert!(matches!(archive.commit_segment(prepared).await, Err(IngestError::WrongSystem { .. })));
        let partial = WalFileName::Partial(name);
        assert!(matches!(archive.put_wal_file(&partial, bytes).await, Err(IngestError::WrongSystem { .. })));
        assert_eq!(archive.segment(name).await.unwrap(), None);
        let size = archive.identity().await.unwrap().unwrap().segment_size;
        assert_eq!(size.len(), MIB);
        let other_size = archive.put_segment(name, Bytes::from(vec![0; 2 * MIB])).await.unwrap_err();
        assert!(!matches!(other_size, IngestError::Archive(_)), "{other_size}");
    }
}

#[tokio::test]
async fn what_is_no_segment_is_refused_and_what_is_damaged_is_kept_and_marked() {
    let dir = dir();
    let archive = create(&[&dir], None).await;
    let (name, bytes) = segment(7, 3, b"a", 9);
    for len in [0, 1, MIB - 1, MIB + 1] {
        let cut = Bytes::from([bytes.as_ref(), b"x"].concat()).slice(..len);
        assert!(matches!(archive.put_segment(name, cut).await, Err(IngestError::NotWhole { .. })), "{len}");
    }
    let elsewhere = segment(7, 4, b"a", 9).1;
    assert!(matches!(archive.put_segment(name, elsewhere).await, Err(IngestError::NotTheSegment(_))));
    assert_eq!(archive.identity().await.unwrap(), None, "a cluster is not known by what was refused");

    let mut broken = bytes.to_vec();
    broken[66] ^= 1;
    let marked = archive.put_segment(name, broken.clone().into()).await.unwrap();
    assert!(matches!(marked.alarm, Some(IngestAlarm::Broken { .. })), "{:?}", marked.alarm);
    assert_eq!(archive.segment(name).await.unwrap().unwrap(), broken);
    let again = archive.put_segment(name, broken.into()).await.unwrap();
    assert!(matches!((again.outcome, again.alarm), (IngestOutcome::Identical, Some(IngestAlarm::Broken { .. }))));

    let (name, bytes) = segment(7, 5, b"a", 9);
    let mut unknown = bytes.to_vec();
    unknown[0] = 0x77;
    let opaque = archive.put_segment(name, unknown.into()).await.unwrap();
    assert_eq!(opaque.alarm, Some(IngestAlarm::Opaque { magic: 0xD177 }));
}

#[tokio::test]
async fn other_files_are_kept_as_they_are_and_never_replaced() {
    let (dir, key) = (dir(), key());
    let archive = create(&[&dir], Some(&key)).await;
    for name in ["00000002.history", "000000010000000000000003.00000028.backup", "custom.file.1"] {
        let name = WalFileName::parse(name).unwrap();
        assert_eq!(archive.file(&name).await.unwrap(), None);
        assert_eq!(
            archive.put_wal_file(&name, "1\t0/3000000\tx\n".into()).await.unwrap().outcome,
            IngestOutcome::Created
        );
        assert_eq!(
            archive.put_wal_file(&name, "1\t0/3000000\tx\n".into()).await.unwrap().outcome,
            IngestOutcome::Identical
        );
        assert!(
            matches!(archive.put_wal_file(&name, "other".into()).await, Err(IngestError::ContentDiffers { .. })),
            "{name}"
        );
        assert_eq!(archive.file(&name).await.unwrap().unwrap(), "1\t0/3000000\tx\n");
    }
    let (segment_name, bytes) = segment(7, 3, b"a", 9);
    let partial = WalFileName::Partial(segment_name);
    archive.put_wal_file(&partial, bytes.clone()).await.unwrap();
    assert_eq!(archive.segment(segment_name).await.unwrap(), None, "a partial segment is no segment");
    assert_eq!(archive.file(&partial).await.unwrap().unwrap(), bytes);
    let history = archive.history(TimelineId::new(2).unwrap()).await.unwrap().unwrap();
    assert_eq!(history.entries[0].end, Lsn::new(0x300_0000));
}

#[tokio::test]
async fn every_place_gets_everything_and_reading_does_with_one() {
    let (a, b, key) = (dir(), dir(), key());
    let archive = create(&[&a, &b], Some(&key)).await;
    let (name, bytes) = segment(7, 3, b"a", 9);
    archive.put_segment(name, bytes.clone()).await.unwrap();
    let path = "repository/main/wal/00000001/00000000/000000010000000000000003";
    let stored = std::fs::read(a.path().join(path)).unwrap();
    assert_eq!(stored, std::fs::read(b.path().join(path)).unwrap(), "sealed once");

    // Damage in one is no loss; an object missing in one is put back by the next push.
    let mut damaged = stored.clone();
    damaged[200] ^= 1;
    std::fs::write(a.path().join(path), damaged).unwrap();
    assert_eq!(archive.segment(name).await.unwrap().unwrap(), bytes);
    std::fs::remove_file(a.path().join(path)).unwrap();
    assert_eq!(archive.segment(name).await.unwrap().unwrap(), bytes);
    assert_eq!(archive.put_segment(name, bytes.clone()).await.unwrap().outcome, IngestOutcome::Created);

    // One is gone: what is found is found, and what is not is not reported to be absent.
    std::fs::rename(a.path().join("repository"), a.path().join("away")).unwrap();
    let archive = open(&[&a, &b], Some(&key)).await.unwrap();
    assert_eq!(archive.segment(name).await.unwrap().unwrap(), bytes);
    let (other, other_bytes) = segment(7, 4, b"a", 9);
    assert!(archive.segment(other).await.is_err());
    assert!(archive.ensure_all_reachable().is_err());
    let listed = archive.list_segments(TimelineId::FIRST, None).await.unwrap();
    assert_eq!((listed.found.len(), listed.unasked.len()), (1, 1));
    // Whether the one that is left is enough is for the policy to decide.
    let strict =
        Archive::new(Arc::clone(archive.vault()), archive.cluster().clone()).with_required(RequiredCopies::All);
    let strict = Arc::new(strict);
    assert!(strict.put_segment(name, bytes.clone()).await.is_err());
    assert!(strict.put_segment(other, other_bytes.clone()).await.is_err());
    let lacking = archive.put_segment(name, bytes.clone()).await.unwrap().lacking;
    assert_eq!(lacking.iter().map(|lacking| lacking.name.as_str()).collect::<Vec<_>>(), ["place0"]);
    assert_eq!(archive.put_segment(other, other_bytes).await.unwrap().lacking, lacking);
    std::fs::rename(b.path().join("repository"), b.path().join("away")).unwrap();
    assert!(open(&[&a, &b], Some(&key)).await.is_err());
}

#[tokio::test]
async fn a_new_place_gets_the_keys_of_the_old() {
    let (a, b, key) = (dir(), dir(), key());
    let (name, bytes) = segment(7, 3, b"a", 9);
    create(&[&a], Some(&key)).await.put_segment(name, bytes.clone()).await.unwrap();
    assert!(open(&[&b], Some(&key)).await.is_err());
    let both = create(&[&a, &b], Some(&key)).await;
    assert_eq!(both.put_segment(name, bytes.clone()).await.unwrap().outcome, IngestOutcome::Created);
    assert_eq!(open(&[&b], Some(&key)).await.unwrap().segment(name).await.unwrap().unwrap(), bytes);
    // Put side by side though each was made with keys of its own: each gets the other's, and opens what it is given.
    let c = dir();
    create(&[&c], Some(&key)).await;
    let both = open(&[&a, &c], Some(&key)).await.unwrap();
    let (next, next_bytes) = segment(7, 4, b"b", 9);
    both.put_segment(next, next_bytes.clone()).await.unwrap();
    for alone in [&a, &c] {
        assert_eq!(open(&[alone], Some(&key)).await.unwrap().segment(next).await.unwrap().unwrap(), next_bytes);
    }
}

#[tokio::test]
async fn without_the_right_key_nothing_opens_and_nothing_is_made_up() {
    let (dir, key) = (dir(), key());
    let (name, bytes) = segment(7, 3, b"a", 9);
    create(&[&dir], Some(&key)).await.put_segment(name, bytes).await.unwrap();
    assert!(matches!(open(&[&dir], None).await, Err(vault::VaultError::KeyNotConfigured { .. })));
    let error = open(&[&dir], Some(&KeyEncryptionKey::generate().unwrap())).await.unwrap_err();
    assert!(matches!(error, vault::VaultError::Key { source: SealKeyError::WrongKey { .. }, .. }), "{error}");
    let keys = dir.path().join("repository/keys");
    std::fs::rename(&keys, dir.path().join("keys")).unwrap();
    assert!(matches!(open(&[&dir], Some(&key)).await, Err(vault::VaultError::KeysMissing { .. })));
    let again = vault::Vault::create(testing::settings(&[&dir], Some(&key))).await;
    assert!(matches!(again, Err(vault::VaultError::KeysMissing { .. })), "no new key over objects of a lost one");
    std::fs::rename(dir.path().join("keys"), keys).unwrap();
    assert!(open(&[&dir], Some(&key)).await.is_ok());
}

#[tokio::test]
async fn a_moved_or_damaged_object_is_never_given_out() {
    let (dir, key) = (dir(), key());
    let archive = create(&[&dir], Some(&key)).await;
    let (name, bytes) = segment(7, 3, b"a", 9);
    archive.put_segment(name, bytes.clone()).await.unwrap();
    let log = dir.path().join("repository/main/wal/00000001/00000000");
    std::fs::copy(log.join("000000010000000000000003"), log.join("000000010000000000000004")).unwrap();
    let (moved, moved_bytes) = segment(7, 4, b"a", 9);
    assert!(archive.segment(moved).await.unwrap_err().is_integrity());
    assert!(archive.digest(moved).await.unwrap_err().is_integrity());
    // And what stands in the way of a push is not taken for the same.
    let error = archive.put_segment(moved, moved_bytes).await.unwrap_err();
    assert!(matches!(&error, IngestError::Archive(error) if error.is_integrity()), "{error}");
}

#[tokio::test]
async fn lists_what_there_is_in_order() {
    let dir = dir();
    let archive = create(&[&dir], None).await;
    assert_eq!(archive.timelines().await.unwrap(), []);
    assert_eq!(archive.last_segment(TimelineId::FIRST).await.unwrap(), None);
    // 1 MiB segments: 4096 of them a log file.
    let numbers = [1, 2, 4095, 4096, 4097, 9000];
    for number in numbers {
        let (name, bytes) = segment(7, number, b"a", 9);
        archive.put_segment(name, bytes).await.unwrap();
    }
    archive.put_wal_file(&WalFileName::parse("00000003.history").unwrap(), "".into()).await.unwrap();
    let list = async |after: Option<u64>| {
        let segments = archive.list_segments(TimelineId::FIRST, after.map(|n| segment(7, n, b"a", 9).0)).await.unwrap();
        let size = SegmentSize::new(MIB as u64).unwrap();
        segments.found.iter().map(|(name, _)| name.number(size).unwrap().get()).collect::<Vec<_>>()
    };
    assert_eq!(list(None).await, numbers);
    assert_eq!(list(Some(2)).await, [4095, 4096, 4097, 9000]);
    assert_eq!(list(Some(4096)).await, [4097, 9000]);
    assert_eq!(list(Some(9000)).await, [0_u64; 0]);
    assert_eq!(archive.last_segment(TimelineId::FIRST).await.unwrap().unwrap(), segment(7, 9000, b"a", 9).0);
    assert_eq!(archive.timelines().await.unwrap(), [TimelineId::FIRST, TimelineId::new(3).unwrap()]);
}

#[tokio::test]
async fn gaps_are_kept() {
    let dir = dir();
    let archive = create(&[&dir], Some(&key())).await;
    let gap = |start| Gap {
        timeline: TimelineId::FIRST,
        start: Lsn::new(start),
        end: Lsn::new(start + 100),
        noticed_at: Timestamp::UNIX_EPOCH,
        reason: "the slot was lost".into(),
    };
    for start in [5000, 200, 5000] {
        archive.record_gap(&gap(start)).await.unwrap();
    }
    assert_eq!(archive.gaps().await.unwrap(), [gap(200), gap(5000)]);
}

/// An archive in one store whose faults are scripted.
pub(crate) async fn faulty() -> (Arc<Archive>, FaultStore) {
    let (vault, store) = testing::faulty().await;
    (Arc::new(Archive::new(vault, "main".parse().unwrap())), store)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// I1 and I3 under faults: a push that is told "archived" finds its own segment there, then and ever after; one
    /// that is told "conflict" finds another; and after any error the same push, tried again over a store that works,
    /// is settled.
    #[test]
    fn what_was_acknowledged_is_there_and_stays(
        pushes in proptest::collection::vec((1..4_u64, 0..2_u8, any::<bool>()), 1..8),
        script in proptest::collection::vec(
            prop_oneof![4 => Just(None), 1 => Just(Some(InjectedFault::Refuse)), 1 => Just(Some(InjectedFault::LoseAnswer)), 1 => Just(Some(InjectedFault::Hang))],
            0..60,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (archive, store) = faulty().await;
            store.set_script(script);
            let mut acknowledged = std::collections::BTreeMap::new();
            for (number, text, prepared) in pushes {
                let (name, bytes) = segment(7, number, &[text], 9);
                let told = if prepared {
                    archive.commit_segment(prepare_segment(&archive, name, &bytes, CompressionLevel::Auto, 1).unwrap()).await
                } else {
                    archive.put_segment(name, bytes.clone()).await
                };
                match told {
                    Ok(_) => assert_eq!(*acknowledged.entry(number).or_insert(text), text, "both were acknowledged"),
                    Err(IngestError::ContentDiffers { .. }) => assert_ne!(acknowledged.get(&number), Some(&text)),
                    Err(error) => assert_eq!(error.class(), ErrorClass::Transient, "{error}"),
                }
            }
            store.set_script([]);
            for (number, text) in acknowledged {
                let (name, bytes) = segment(7, number, &[text], 9);
                assert_eq!(archive.segment(name).await.unwrap().unwrap(), bytes);
                assert_eq!(archive.put_segment(name, bytes).await.unwrap().outcome, IngestOutcome::Identical);
            }
        });
    }
}

/// A command that comes while another process is just making the index waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_index_in_the_making_is_waited_for() {
    let home = dir();
    let archive = create(&[&home], None).await;
    for round in 0..20 {
        let index = home.path().join(format!("index{round}"));
        let open = || {
            let (archive, index) = (Arc::clone(&archive), index.clone());
            tokio::spawn(async move { super::reindex::open_index(&archive, &index).await.map(|_opened| ()) })
        };
        let opened = futures_util::future::join_all((0..6).map(|_| open())).await;
        for result in opened {
            result.unwrap().unwrap();
        }
    }
}
