//! What PostgreSQL is told about files that are there, at the end, in a hole, damaged or out of reach.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::prefetch::{PREFETCHED_SEGMENTS, Prefetch, fill_directory};
use super::{
    ArchiveGetError, ArchiveGetOutcome, ArchiveGetRequest, EXIT_ABSENT, WalFileSource, archive_get, failure_exit_code,
};
use crate::base::error_kind::{ErrorKind, HasKind as _};
use crate::postgres::archive::Archive;
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::tests::{create, open, segment_on};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize, WalFileName};

/// `main/pg_wal` of a server, and a repository beside it.
struct Scene {
    dir: TempDir,
    archive: Arc<Archive>,
}

impl Scene {
    async fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("main/pg_wal")).unwrap();
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        let archive = create(&[&dir], None).await;
        Scene { dir, archive }
    }

    async fn archive(&self, timeline: u32, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let (name, bytes) = segment_on(timeline, number, &[timeline.to_le_bytes()[0]], 9);
            self.archive.put_segment(name, bytes).await.unwrap();
        }
    }

    async fn history(&self, name: &str, text: &'static str) {
        self.archive.put_wal_file(&WalFileName::parse(name).unwrap(), text.into()).await.unwrap();
    }

    fn dest(&self) -> std::path::PathBuf {
        self.dir.path().join("main/pg_wal/RECOVERYXLOG")
    }

    fn request(&self, name: &str) -> ArchiveGetRequest {
        ArchiveGetRequest { name: name.to_owned(), dest: self.dest(), standby: false, has_target: false }
    }

    async fn get(&self, name: &str) -> Result<ArchiveGetOutcome, ArchiveGetError> {
        let got = archive_get(&self.archive, &self.request(name), None, None).await;
        let names: Vec<_> = std::fs::read_dir(self.dir.path().join("main/pg_wal")).unwrap().collect();
        assert_eq!(names.len(), usize::from(self.dest().exists()), "{names:?}");
        assert_eq!(matches!(got, Ok(ArchiveGetOutcome::Placed(_))), self.dest().exists());
        got
    }

    fn taken(&self) -> Vec<u8> {
        let bytes = std::fs::read(self.dest()).unwrap();
        std::fs::remove_file(self.dest()).unwrap();
        bytes
    }
}

fn name(timeline: u32, number: u64) -> String {
    segment_on(timeline, number, b"", 0).0.to_string()
}

#[tokio::test]
async fn what_is_there_is_placed_and_the_end_is_the_end() {
    let scene = Scene::new().await;
    assert!(matches!(scene.get(&name(1, 3)).await, Ok(ArchiveGetOutcome::Absent)), "an empty archive");
    scene.archive(1, 3..=5).await;
    assert!(matches!(scene.get(&name(1, 5)).await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Archive))));
    assert_eq!(scene.taken(), segment_on(1, 5, &[1], 9).1);
    assert!(matches!(scene.get(&name(1, 6)).await, Ok(ArchiveGetOutcome::Absent)));
    assert!(matches!(scene.get("00000002.history").await, Ok(ArchiveGetOutcome::Absent)));
    scene.history("00000002.history", "1\t0/580000\tno recovery target specified\n").await;
    assert!(matches!(scene.get("00000002.history").await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Archive))));
    assert_eq!(scene.taken(), b"1\t0/580000\tno recovery target specified\n");
    assert!(matches!(scene.get("../../etc/passwd").await, Err(ArchiveGetError::Name(_))));
}

#[tokio::test]
async fn a_hole_is_not_the_end() {
    let scene = Scene::new().await;
    // 4096 segments of 1 MiB a log file: the next one is far away.
    scene.archive(1, [3, 5, 5000]).await;
    for missing in [4, 6, 4095, 4999] {
        let error = scene.get(&name(1, missing)).await.unwrap_err();
        assert!(matches!(&error, ArchiveGetError::Hole { later, .. } if later.to_string() == name(1, 5000)), "{error}");
    }
    assert!(matches!(scene.get(&name(1, 5001)).await, Ok(ArchiveGetOutcome::Absent)));
}

#[tokio::test]
async fn a_younger_timeline_needs_the_older_one_up_to_where_it_left_it() {
    let scene = Scene::new().await;
    scene.archive(1, 3..=4).await;
    scene.archive(2, 6..=8).await;
    // Nobody knows yet where timeline 2 came from.
    assert!(matches!(scene.get(&name(1, 5)).await, Err(ArchiveGetError::Hole { .. })));
    scene.history("00000002.history", "1\t0/680000\tno recovery target specified\n").await;
    assert!(matches!(scene.get(&name(1, 5)).await, Err(ArchiveGetError::Hole { .. })));
    assert!(matches!(scene.get(&name(1, 7)).await, Ok(ArchiveGetOutcome::Absent)), "beyond the fork");
    assert!(matches!(scene.get(&name(2, 9)).await, Ok(ArchiveGetOutcome::Absent)));
    assert!(matches!(scene.get(&name(2, 5)).await, Err(ArchiveGetError::Hole { .. })));
    // A timeline that left before does not need it.
    scene.archive(1, 5..=5).await;
    scene.archive(3, 5..=20).await;
    scene.history("00000003.history", "1\t0/580000\tbefore\n").await;
    assert!(matches!(scene.get(&name(1, 7)).await, Ok(ArchiveGetOutcome::Absent)));
}

#[tokio::test]
async fn the_tail_of_a_timeline_comes_from_where_the_promotion_left_it() {
    let scene = Scene::new().await;
    scene.archive(1, 3..=5).await;
    scene.archive(2, 6..=6).await;
    scene.history("00000002.history", "1\t0/600100\tno recovery target specified\n").await;
    let copy = segment_on(2, 6, &[2], 9).1;
    let expected = |copy: &[u8]| [&copy[..0x100], &vec![0; (1 << 20) - 0x100]].concat();
    assert!(matches!(scene.get(&name(1, 6)).await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Tail))));
    assert_eq!(scene.taken(), expected(&copy));
    // A standby would wait for more of timeline 1 instead.
    let standby = ArchiveGetRequest { standby: true, ..scene.request(&name(1, 6)) };
    assert!(matches!(archive_get(&scene.archive, &standby, None, None).await, Ok(ArchiveGetOutcome::Absent)));
    // What the old timeline's own copy says after the switch point is another story; what it says before it must be the
    // same.
    let (segment, _) = segment_on(1, 6, b"", 9);
    let mut partial = copy.to_vec();
    partial[0x100] ^= 1;
    scene.archive.put_wal_file(&WalFileName::Partial(segment), partial.clone().into()).await.unwrap();
    assert!(matches!(scene.get(&name(1, 6)).await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Tail))));
    assert_eq!(scene.taken(), expected(&copy));
    // Only a `.partial`, since the new timeline has not completed its first segment.
    let alone = Scene::new().await;
    alone.archive(1, 3..=5).await;
    alone.history("00000002.history", "1\t0/600100\tno recovery target specified\n").await;
    assert!(matches!(alone.get(&name(1, 6)).await, Ok(ArchiveGetOutcome::Absent)));
    partial[0xFF] ^= 1;
    alone.archive.put_wal_file(&WalFileName::Partial(segment), partial.clone().into()).await.unwrap();
    assert!(matches!(alone.get(&name(1, 6)).await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Tail))));
    assert_eq!(alone.taken(), expected(&partial));
    alone.archive(2, 6..=6).await;
    let torn = alone.get(&name(1, 6)).await.unwrap_err();
    assert!(matches!(&torn, ArchiveGetError::Archive(error) if error.is_integrity()), "{torn}");
}

#[tokio::test]
async fn damage_and_absence_of_a_repository_are_never_the_end() {
    let scene = Scene::new().await;
    scene.archive(1, 3..=4).await;
    let log = scene.dir.path().join("repository/main/wal/00000001/00000000");
    let last = log.join(name(1, 4));
    let stored = std::fs::read(&last).unwrap();
    for cut in [0, 10, stored.len() / 2, stored.len() - 1] {
        std::fs::write(&last, &stored[..cut]).unwrap();
        let error = scene.get(&name(1, 4)).await.unwrap_err();
        assert!(matches!(&error, ArchiveGetError::Archive(error) if error.is_integrity()), "{cut}: {error}");
    }
    std::fs::rename(scene.dir.path().join("repository"), scene.dir.path().join("away")).unwrap();
    assert!(open(&[&scene.dir], None).await.is_err());
    assert_eq!(
        (failure_exit_code(6, false), failure_exit_code(5, false), failure_exit_code(1, true)),
        (206, 205, EXIT_ABSENT)
    );
    assert!((0..=6).all(|code| failure_exit_code(code, false) > 125));
}

#[tokio::test]
async fn a_file_that_cannot_be_placed_is_an_error() {
    let scene = Scene::new().await;
    scene.archive(1, 3..=3).await;
    let request = ArchiveGetRequest { dest: "/proc/nowhere/RECOVERYXLOG".into(), ..scene.request(&name(1, 3)) };
    assert!(matches!(archive_get(&scene.archive, &request, None, None).await, Err(ArchiveGetError::Write(_))));
}

#[tokio::test]
async fn what_lies_ready_is_taken_and_the_rest_is_cleaned_up() {
    let scene = Scene::new().await;
    scene.archive(1, 3..=30).await;
    let started: Arc<Mutex<Vec<(std::path::PathBuf, SegmentName)>>> = Arc::default();
    let record = Arc::clone(&started);
    let start = move |dir: &Path, after: SegmentName| {
        record.lock().unwrap().push((dir.to_owned(), after));
        Ok(())
    };
    let prefetch = Prefetch::for_destination(&scene.dest(), &scene.dir.path().join("state"), Box::new(start)).unwrap();
    let ask = async |number| {
        archive_get(&scene.archive, &scene.request(&name(1, number)), Some(&prefetch), None).await.unwrap()
    };

    assert_eq!(ask(3).await, ArchiveGetOutcome::Placed(WalFileSource::Archive));
    let (dir, after) = started.lock().unwrap().pop().unwrap();
    assert_eq!((dir.parent().unwrap(), after.to_string()), (scene.dir.path(), name(1, 3)));
    fill_directory(&scene.archive, &dir, after).await.unwrap();
    let ready =
        || std::fs::read_dir(&dir).unwrap().filter(|e| e.as_ref().unwrap().file_name().len() == 24).count() as u64;
    assert_eq!(ready(), PREFETCHED_SEGMENTS);
    for number in 4..4 + PREFETCHED_SEGMENTS {
        assert_eq!(ask(number).await, ArchiveGetOutcome::Placed(WalFileSource::Prefetched));
        assert_eq!(scene.taken(), segment_on(1, number, &[1], 9).1);
    }
    assert!(started.lock().unwrap().len() as u64 <= PREFETCHED_SEGMENTS / 2 + 1, "only once enough has been taken");
    assert_eq!(ready(), 0);
    // Recovery begins again, elsewhere: what lies there of no use goes away.
    fill_directory(&scene.archive, &dir, after).await.unwrap();
    fill_directory(&scene.archive, &dir, segment_on(1, 7, b"", 0).0).await.unwrap();
    assert_eq!(
        (ready(), dir.join(name(1, 8)).exists(), dir.join(name(1, 7)).exists()),
        (PREFETCHED_SEGMENTS, true, false)
    );
    // At the archive's end, and whenever a history is asked for, nothing is left.
    assert_eq!(ask(31).await, ArchiveGetOutcome::Absent);
    assert!(!dir.exists());
    let again =
        Prefetch::for_destination(&scene.dest(), &scene.dir.path().join("state"), Box::new(|_, _| Ok(()))).unwrap();
    assert!(dir.exists());
    assert_eq!(
        archive_get(&scene.archive, &scene.request("00000002.history"), Some(&again), None).await.unwrap(),
        ArchiveGetOutcome::Absent
    );
    assert!(!dir.exists());
}

#[tokio::test]
async fn only_one_fetches_ahead_and_damage_ends_it() {
    let scene = Scene::new().await;
    scene.archive(1, 3..=9).await;
    let dir = scene.dir.path().join("ready");
    std::fs::create_dir(&dir).unwrap();
    let after = segment_on(1, 3, b"", 0).0;
    let held = std::fs::File::create(dir.join("lock")).unwrap();
    held.lock().unwrap();
    fill_directory(&scene.archive, &dir, after).await.unwrap();
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    drop(held);
    std::fs::write(scene.dir.path().join("repository/main/wal/00000001/00000000").join(name(1, 6)), "rot").unwrap();
    fill_directory(&scene.archive, &dir, after).await.unwrap();
    let mut ready: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    ready.sort();
    assert_eq!(ready, [name(1, 4), name(1, 5), "lock".to_owned()]);
}

/// A `.tail` before a hole is given to a server with a target, and to no other: it would end recovery there.
#[tokio::test]
async fn the_beginning_before_a_hole_is_for_servers_with_a_target() {
    let scene = Scene::new().await;
    scene.archive(1, [3, 6]).await;
    let (segment, whole) = segment_on(1, 4, &[1], 9);
    let tail = WalFileName::Tail { segment, len: 5000 };
    scene.archive.put_wal_file(&tail, whole.slice(..5000)).await.unwrap();
    assert!(matches!(scene.get(&name(1, 4)).await, Err(ArchiveGetError::Hole { .. })));
    let with_target = |number| ArchiveGetRequest { has_target: true, ..scene.request(&name(1, number)) };
    let get = async |number| archive_get(&scene.archive, &with_target(number), None, None).await;
    assert!(matches!(get(4).await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Tail))));
    assert_eq!(scene.taken(), [&whole[..5000], &vec![0; (1 << 20) - 5000]].concat());
    assert!(matches!(get(5).await, Err(ArchiveGetError::Hole { .. })));
    let standby = ArchiveGetRequest { standby: true, ..with_target(4) };
    assert!(archive_get(&scene.archive, &standby, None, None).await.is_err());

    // Pieces that go further have the same bytes, or one of both is wrong.
    let start = Lsn::new(4 << 20);
    scene.archive.put_piece(segment.timeline(), start, whole.slice(..8000)).await.unwrap();
    assert!(matches!(get(4).await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Received))));
    assert_eq!(scene.taken(), [&whole[..8000], &vec![0; (1 << 20) - 8000]].concat());
    let mut other = whole.slice(..6000).to_vec();
    other[4321] ^= 1;
    let tail = WalFileName::Tail { segment, len: 6000 };
    scene.archive.put_wal_file(&tail, other.into()).await.unwrap();
    let differ = get(4).await.unwrap_err();
    assert_eq!(differ.kind(), ErrorKind::Integrity, "{differ}");
    assert!(differ.to_string().contains("0/4010E1"), "{differ}");
}

/// The repositories have nothing yet, not even which cluster it is; the spool has acknowledged WAL.
#[tokio::test]
async fn the_spool_counts_before_the_repository_knows_the_cluster() {
    let scene = Scene::new().await;
    let (segment, whole) = segment_on(1, 3, &[1], 9);
    let spool = Spool::open(&scene.dir.path().join("state"), &scene.archive).unwrap();
    let (mut file, _) = spool.open_for_append(segment, SegmentSize::new(1 << 20).unwrap()).unwrap();
    file.append(0, &whole[..5000]).unwrap();
    file.sync().unwrap();
    let get = async |number| archive_get(&scene.archive, &scene.request(&name(1, number)), None, Some(&spool)).await;
    assert!(matches!(get(3).await, Ok(ArchiveGetOutcome::Placed(WalFileSource::Received))));
    assert_eq!(scene.taken(), [&whole[..5000], &vec![0; (1 << 20) - 5000]].concat());
    assert!(matches!(get(4).await, Ok(ArchiveGetOutcome::Absent)));
}
