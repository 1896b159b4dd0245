//! A small archive with a backup, whole and with each of its objects damaged in turn.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;

use super::{ClusterVerifyError, RepositoryVerifier, StrandedBackup, VerifyReport, is_bridged, verify_cluster};
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{self, CHUNK_BYTES, ChunkNamer, PackBuilder};
use crate::postgres::archive::inventory::{InventoryBackup, MissingWal};
use crate::postgres::archive::manifest::{
    BackupSummary, EntryContent, Manifest, ManifestChunk, ManifestEntry, sample_summary,
};
use crate::postgres::archive::tests::{create, segment};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize, WalFileName};
use crate::postgres::format::timeline::TimelineId;
use crate::vault::seal::SealedKind;
use crate::vault::seal::keys::KeyEncryptionKey;
use crate::vault::verify::{VerifyOptions, VerifyProgress};

const LABEL: &str = "20261122T020000Z-F";

/// A file of two chunks and one of a single chunk, in one pack; log from segment 3 to 6, of which the backup needs 4
/// and 5.
async fn archive(dir: &TempDir) -> Arc<Archive> {
    let archive = create(&[dir], Some(&KeyEncryptionKey::generate().unwrap())).await;
    fill(&archive).await;
    archive
}

async fn fill(archive: &Arc<Archive>) {
    for number in 3..=6 {
        let (name, bytes) = segment(7, number, b"a", 9);
        archive.put_segment(name, bytes).await.unwrap();
    }
    let history = WalFileName::parse("00000002.history").unwrap();
    archive.put_file(&history, Bytes::from_static(b"1\t0/700000\tno recovery target specified\n")).await.unwrap();
    put_backup(archive, |_| {}).await;
}

/// Two repositories with the same. All their objects are old enough not to be on their way.
async fn two_repositories(a: &TempDir, b: &TempDir) -> Arc<Archive> {
    let archive = create(&[a, b], None).await;
    fill(&archive).await;
    for path in objects(a).into_iter().chain(objects(b)) {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
    archive
}

/// What each repository lacks, in words.
fn lacking(report: &VerifyReport) -> Vec<String> {
    report.lacking.iter().map(|lacking| format!("{}: {lacking}", lacking.repository)).collect()
}

async fn put_backup(archive: &Archive, change: impl FnOnce(&mut Manifest)) {
    let size = SegmentSize::new(1 << 20).unwrap();
    let namer = ChunkNamer::for_current_key(archive.vault().protection());
    let mut pack = PackBuilder::new().unwrap();
    let (mut chunks_listed, mut entries) = (Vec::new(), Vec::new());
    for (path, len) in [("base/1", CHUNK_BYTES as usize + 8192), ("base/2", 8192)] {
        let content: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        let (mut values, mut indexes) = (Vec::new(), Vec::new());
        for (number, piece) in content.chunks(CHUNK_BYTES as usize).enumerate() {
            let value = chunks::chunk_subtree_hash(&[piece], number as u64 * u64::from(CHUNK_BYTES), len as u64);
            let name = namer.name(&value);
            let offset = pack.push(name, &[Bytes::copy_from_slice(piece)]);
            indexes.push(u32::try_from(chunks_listed.len()).unwrap());
            chunks_listed.push(ManifestChunk { name, pack: 0, offset, len: u32::try_from(piece.len()).unwrap() });
            values.push(value);
        }
        let content =
            EntryContent::File { len: len as u64, hash: chunks::file_hash(&values, len as u64), chunks: indexes };
        entries.push(ManifestEntry { path: path.into(), mode: 0o600, modified: 0, content });
    }
    let start = SegmentNo::new(4).start(size).saturating_add(40);
    let summary = BackupSummary {
        label: LABEL.to_owned(),
        segment_size: size,
        start_lsn: start,
        checkpoint_lsn: start,
        stop_lsn: SegmentNo::new(6).start(size),
        naming_key: namer.id(),
        ..sample_summary()
    };
    let mut manifest = Manifest {
        summary,
        packs: vec![pack.id()],
        chunks: chunks_listed,
        entries,
        backup_label: b"START WAL LOCATION: 0/400028\n".to_vec(),
        tablespace_map: None,
    };
    change(&mut manifest);
    let sealed = pack.seal(archive.layout(), archive.vault().protection(), archive.vault().level(), 1).unwrap();
    for (_, repository) in archive.vault().repositories() {
        repository.put_new(&sealed.key, sealed.object.parts.clone()).await.unwrap();
    }
    let key = archive.layout().backup(LABEL).unwrap();
    let plain = vec![Bytes::from(manifest.to_bytes())];
    archive.vault().put_object(SealedKind::Manifest, &key, plain, manifest.summary.to_bytes()).await.unwrap();
}

async fn check(archive: &Arc<Archive>) -> VerifyReport {
    verify_cluster(archive, &VerifyOptions::default(), &VerifyProgress::default()).await.unwrap()
}

fn objects(dir: &TempDir) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.path().join("repository/main")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_whole_archive_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(&dir).await;
    let progress = VerifyProgress::default();
    let report = verify_cluster(&archive, &VerifyOptions::default(), &progress).await.unwrap();
    assert!(report.is_whole(), "{report:?}");
    let counts = &report.repositories[0];
    let counted = (counts.segments, counts.files, counts.backups, counts.packs, counts.chunks);
    assert_eq!(counted, (4, 2, 1, 1, 3), "cluster.json and the history are files");
    assert_eq!(progress.objects(), 8);
    let stored: u64 = objects(&dir).iter().map(|path| std::fs::metadata(path).unwrap().len()).sum();
    assert_eq!((progress.bytes(), counts.bytes), (stored, stored), "every byte is read, and once");
}

#[tokio::test]
async fn each_object_with_one_bit_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(&dir).await;
    let objects = objects(&dir);
    assert_eq!(objects.len(), 8);
    for path in objects {
        let whole = std::fs::read(&path).unwrap();
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut wrong = whole.clone();
            wrong[at] ^= 4;
            std::fs::write(&path, &wrong).unwrap();
            let report = check(&archive).await;
            let key = path.strip_prefix(dir.path().join("repository")).unwrap().to_str().unwrap();
            assert!(report.damage.iter().any(|damage| damage.object == key), "{key} at {at}: {report:?}");
            assert!(!report.is_whole());
        }
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(check(&archive).await.is_whole(), "put right again");
}

#[tokio::test]
async fn what_is_missing_is_a_gap_and_strands_the_backup_that_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(&dir).await;
    let key = |number| archive.layout().segment(segment(7, number, b"a", 9).0);
    let five = std::fs::read(dir.path().join("repository").join(key(5).as_str())).unwrap();
    archive.vault().delete(&key(5)).await.unwrap();
    // Old enough not to have overtaken it.
    let six = dir.path().join("repository").join(key(6).as_str());
    let six = std::fs::File::options().write(true).open(six).unwrap();
    six.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let report = check(&archive).await;
    assert_eq!(report.gaps.iter().map(|gap| gap.wal.from_lsn.to_string()).collect::<Vec<_>>(), ["0/500000"]);
    let stranded = StrandedBackup { repository: "place0".to_owned(), label: LABEL.to_owned(), defects: None };
    assert_eq!(report.stranded, std::slice::from_ref(&stranded));
    let one = VerifyOptions { backup: Some(LABEL.to_owned()) };
    let report = verify_cluster(&archive, &one, &VerifyProgress::default()).await.unwrap();
    assert_eq!(report.stranded, [stranded]);

    std::fs::write(dir.path().join("repository").join(key(5).as_str()), five).unwrap();
    archive.vault().delete(&key(3)).await.unwrap();
    archive.vault().delete(&key(6)).await.unwrap();
    let report = verify_cluster(&archive, &one, &VerifyProgress::default()).await.unwrap();
    assert!(report.is_whole(), "neither 3 nor 6 is this backup's: {report:?}");
    assert_eq!(report.repositories[0].segments, 2);
    let none = VerifyOptions { backup: Some("20200101T000000Z-F".to_owned()) };
    let error = verify_cluster(&archive, &none, &VerifyProgress::default()).await.unwrap_err();
    assert!(
        matches!(error, ClusterVerifyError::Objects(crate::vault::verify::VerifyError::UnknownBackup { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn what_one_of_two_repositories_lacks_is_named() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = two_repositories(&a, &b).await;
    assert!(check(&archive).await.is_whole());
    let stored = |key: &str| b.path().join("repository").join(key);
    let segment_key = |number| archive.layout().segment(segment(7, number, b"a", 9).0).as_str().to_owned();
    let manifest = archive.layout().backup(LABEL).unwrap().as_str().to_owned();
    let take = |keys: &[&String]| {
        keys.iter()
            .for_each(|key| crate::base::durable::rename(&stored(key), &b.path().join(key.replace('/', "_"))).unwrap());
    };
    let put_back = |keys: &[&String]| {
        keys.iter()
            .for_each(|key| crate::base::durable::rename(&b.path().join(key.replace('/', "_")), &stored(key)).unwrap());
    };

    let name = |number| segment(7, number, b"a", 9).0.to_string();
    take(&[&segment_key(4), &manifest]);
    let report = check(&archive).await;
    assert_eq!(lacking(&report), [format!("place1: segment {}", name(4)), format!("place1: backup {LABEL}")]);
    assert_eq!(report.gaps.iter().map(|gap| gap.repository.as_str()).collect::<Vec<_>>(), ["place1"]);
    assert!(!report.is_whole() && report.is_complete() && report.damage.is_empty() && report.stranded.is_empty());
    let one = VerifyOptions { backup: Some(LABEL.to_owned()) };
    let report = verify_cluster(&archive, &one, &VerifyProgress::default()).await.unwrap();
    assert_eq!(lacking(&report), [format!("place1: backup {LABEL}")]);
    put_back(&[&manifest]);
    let report = check(&archive).await;
    let stranded = StrandedBackup { repository: "place1".to_owned(), label: LABEL.to_owned(), defects: None };
    assert_eq!(report.stranded, [stranded], "the other repository has what it needs");
    put_back(&[&segment_key(4)]);

    // No hole in either, and one ends earlier.
    take(&[&segment_key(5), &segment_key(6)]);
    let report = check(&archive).await;
    assert_eq!(lacking(&report), [format!("place1: 2 segments, {} to {}", name(5), name(6))]);
    assert_eq!(report.gaps, []);
    put_back(&[&segment_key(5), &segment_key(6)]);
    let report = check(&archive).await;
    assert!(report.is_whole() && report.is_complete(), "{report:?}");
}

#[tokio::test]
async fn the_others_are_verified_while_a_repository_is_unreachable() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(two_repositories(&a, &b).await);
    crate::base::durable::rename(&b.path().join("repository"), &b.path().join("away")).unwrap();
    let archive = crate::postgres::archive::tests::open(&[&a, &b], None).await.unwrap();
    let report = check(&archive).await;
    assert!(report.is_whole() && !report.is_complete(), "{report:?}");
    assert_eq!(report.unreachable.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["place1"]);
    assert_eq!(report.repositories.iter().map(|counts| counts.segments).collect::<Vec<_>>(), [4]);
    let none = VerifyOptions { backup: Some("20200101T000000Z-F".to_owned()) };
    let error = verify_cluster(&archive, &none, &VerifyProgress::default()).await.unwrap_err();
    assert!(error.to_string().contains("place1"), "it may be in the other one: {error}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["unreachable"][0]["repository"], "place1");
}

#[tokio::test]
async fn a_segment_that_the_next_one_overtook_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(&dir).await;
    let path = dir.path().join("repository").join(archive.layout().segment(segment(7, 5, b"a", 9).0).as_str());
    let five = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let comes = async {
        // By then the listing is done and 5 was not in it.
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        std::fs::write(&path, five).unwrap();
    };
    let (report, ()) = tokio::join!(check(&archive), comes);
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.repositories[0].segments, 4);
}

#[tokio::test]
async fn what_retention_takes_meanwhile_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(&dir).await;
    let (name, repository) = archive.vault().repositories().next().unwrap();
    let progress = VerifyProgress::default();
    let subject = || RepositoryVerifier {
        archive: &archive,
        name: name.to_owned(),
        repository: repository.clone(),
        size: Some(SegmentSize::new(1 << 20).unwrap()),
        memory: Arc::new(tokio::sync::Semaphore::new(super::MEMORY_BUDGET_MIB as usize)),
        progress: &progress,
        found: std::sync::Mutex::default(),
    };
    let listed = repository.list(&archive.layout().all()).await.unwrap();
    let first = archive.layout().segment(segment(7, 3, b"a", 9).0);
    archive.vault().delete(&first).await.unwrap();
    archive.vault().delete(&archive.layout().backup(LABEL).unwrap()).await.unwrap();
    let here = subject();
    here.verify_objects(listed.clone(), None).await.unwrap();
    here.settle_removed_objects().await.unwrap();
    let found = here.found.into_inner().unwrap();
    assert_eq!((found.damage, found.summaries.len(), found.counts.segments), (vec![], 0, 3));

    // Read while it was there, gone when the log it needs was looked for.
    put_backup(&archive, |_| {}).await;
    let here = subject();
    here.verify_objects(listed, None).await.unwrap();
    archive.vault().delete(&archive.layout().backup(LABEL).unwrap()).await.unwrap();
    here.settle_removed_objects().await.unwrap();
    assert_eq!(here.found.into_inner().unwrap().summaries.len(), 0);
}

#[tokio::test]
async fn a_manifest_that_misnames_a_chunk_or_a_file_is_found_out() {
    for (change, word) in [
        ((|m: &mut Manifest| m.chunks.swap(1, 2)) as fn(&mut Manifest), "base/1"),
        (
            |m| {
                if let EntryContent::File { hash, .. } = &mut m.entries[1].content {
                    hash[0] ^= 1
                }
            },
            "base/2",
        ),
        (|m| m.chunks[2].offset += 1, "does not have chunk"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        for number in 3..=6 {
            let (name, bytes) = segment(7, number, b"a", 9);
            archive.put_segment(name, bytes).await.unwrap();
        }
        put_backup(&archive, change).await;
        let report = check(&archive).await;
        assert!(report.damage.iter().any(|damage| damage.what.contains(word)), "{word}: {report:?}");
        assert_eq!(report.repositories[0].backups, 0);
    }
}

#[tokio::test]
async fn an_object_of_somebody_else_is_pointed_out() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(&dir).await;
    std::fs::write(dir.path().join("repository/main/notes.txt"), "hello").unwrap();
    let report = check(&archive).await;
    assert_eq!(report.damage.iter().map(|damage| damage.object.as_str()).collect::<Vec<_>>(), ["main/notes.txt"]);
}

#[test]
fn a_gap_is_bridged_by_a_backup_from_behind_it_if_it_was_recorded() {
    let gap = |noticed_at| MissingWal {
        timeline: TimelineId::FIRST,
        from_lsn: Lsn::new(0x500),
        to_lsn: Lsn::new(0x600),
        reason: "x".into(),
        noticed_at,
    };
    let backup = |start, restorable| InventoryBackup {
        label: "x".into(),
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        start_lsn: Lsn::new(start),
        stop_lsn: Lsn::new(start),
        timeline: TimelineId::FIRST,
        logical_bytes: 0,
        stored_bytes: 0,
        server_version: "15".into(),
        restorable,
        defects: None,
    };
    let recorded = gap(Some(Timestamp::UNIX_EPOCH));
    assert!(is_bridged(&recorded, &[backup(0x100, true), backup(0x600, true)]));
    assert!(!is_bridged(&recorded, &[backup(0x100, true), backup(0x5FF, true)]));
    assert!(!is_bridged(&recorded, &[backup(0x700, false)]));
    assert!(!is_bridged(&gap(None), &[backup(0x700, true)]), "nobody recorded it: it was there once");
}
