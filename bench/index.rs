//! The index: taking digests in, and finding a moment, a transaction and a position among 100,000 segments, which is 1.5 TB of log.
//!
//! The limit of taking in is how fast segments come: a core decodes about 1 GB/s, which is 64 digests. That of a lookup is the one read from the
//! repository which follows it, a millisecond at the very least.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use walkeep::archive::lookup::{Lookup, Source};
use walkeep::index::{Along, Entry, Index, Place};
use walkeep::postgres::lsn::Lsn;
use walkeep::postgres::segment::{SegmentNo, SegmentSize, SystemId};
use walkeep::postgres::time::PgTime;
use walkeep::postgres::timeline::{TimelineId, TimelinePath};
use walkeep::wal::digest::{Digest, State};
use walkeep::wal::event::{Ending, EndingKind, Xid};

/// Segments of the archive that is searched.
const SEGMENTS: u64 = 100_000;
/// Commits in a segment of steady pgbench.
const BUSY: u64 = 8000;

/// A segment with so many commits, each a millisecond after the one before.
fn segment(number: u64, commits: u64) -> Digest {
    let (size, no) = (SegmentSize::DEFAULT, SegmentNo::new(number));
    let ending = |at: u64| Ending {
        lsn: no.start(size).saturating_add(64 + at * 2048),
        end_lsn: no.start(size).saturating_add(64 + at * 2048 + 40),
        xid: Xid::new((number * commits + at) as u32),
        // Neighbours change places, as they do.
        time: PgTime::from_pg_micros(((number * commits + (at ^ 1)) * 1000) as i64),
        kind: EndingKind::Commit,
    };
    let endings: Vec<Ending> = (0..commits).map(ending).collect();
    Digest {
        timeline: TimelineId::FIRST,
        segment: no,
        segment_size: size,
        page_magic: 0xD110,
        system_id: SystemId::new(7),
        state: State::Checked,
        first_record: Some(no.start(size).saturating_add(40)),
        last_record: Some(Lsn::new(no.end(size).get() - 64)),
        first_prev: Some(Lsn::new(no.start(size).get() - 64)),
        valid_until: no.end(size),
        switched: false,
        overwrites: false,
        records: commits * 6,
        earliest: endings.iter().map(|ending| ending.time).min(),
        latest: endings.iter().map(|ending| ending.time).max(),
        endings,
        events: Vec::new(),
        changes: Vec::new(),
        omitted_events: 0,
        head: None,
        tail: None,
        content: *blake3::hash(&number.to_le_bytes()).as_bytes(),
    }
}

/// Makes the dense part when it is asked for, as if it were fetched.
struct Made;

impl Source for Made {
    type Error = std::convert::Infallible;

    fn digest(&self, place: Place) -> Result<Arc<Digest>, Self::Error> {
        Ok(Arc::new(segment(place.segment.get(), 4)))
    }

    fn segment(&self, _: Place) -> Result<Bytes, Self::Error> {
        Ok(Bytes::new())
    }
}

fn open(dir: &Path) -> Index {
    Index::open_writer(dir, &["bench".to_owned()]).unwrap()
}

/// The archive that is searched, made once.
static ARCHIVE: LazyLock<(tempfile::TempDir, Index)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    for batch in 0..SEGMENTS / 1000 {
        let digests: Vec<Digest> = (batch * 1000..(batch + 1) * 1000).map(|number| segment(number + 1, 4)).collect();
        index.ingest("main", digests.iter().map(|digest| Entry { digest, stored: 5 << 20 })).unwrap();
    }
    index.flush().unwrap();
    (dir, index)
});

/// Digests of busy segments, one by one as a receiver has them.
#[divan::bench(sample_count = 5)]
fn ingest_busy_segments(bencher: Bencher<'_, '_>) {
    let digests: Vec<Digest> = (1..=64).map(|number| segment(number, BUSY)).collect();
    bencher
        .counter(ItemsCount::new(digests.len()))
        .with_inputs(|| {
            let dir = tempfile::tempdir().unwrap();
            let index = open(dir.path());
            (dir, index)
        })
        .bench_refs(|(_, index)| {
            for digest in &digests {
                index.ingest("main", [Entry { digest, stored: 5 << 20 }]).unwrap();
            }
        });
}

fn lookup<T>(bencher: Bencher<'_, '_>, find: impl Fn(&Lookup<'_, Made>, &TimelinePath, u64) -> T + Sync) {
    let (_, index) = &*ARCHIVE;
    let lookup = Lookup::new(index.view("main").unwrap(), Made);
    let (path, mut seed) = (TimelinePath::first(), 1_u64);
    bencher
        .with_inputs(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            1 + (seed >> 33) % (SEGMENTS - 2)
        })
        .bench_local_values(|number| find(&lookup, &path, number));
}

#[divan::bench]
fn find_a_moment(bencher: Bencher<'_, '_>) {
    lookup(bencher, |lookup, path, number| {
        let time = PgTime::from_pg_micros((number * 4 * 1000) as i64);
        lookup.ending_after(path, Lsn::INVALID, time).unwrap().unwrap()
    });
}

#[divan::bench]
fn find_a_transaction(bencher: Bencher<'_, '_>) {
    lookup(bencher, |lookup, path, number| {
        lookup.ending_of(path, Lsn::INVALID, Xid::new((number * 4) as u32)).unwrap().unwrap()
    });
}

#[divan::bench]
fn find_the_commit_before_a_position(bencher: Bencher<'_, '_>) {
    lookup(bencher, |lookup, path, number| {
        lookup.commit_before(path, SegmentNo::new(number + 1).start(SegmentSize::DEFAULT)).unwrap().unwrap()
    });
}

/// Whether all 100,000 segments are there and tied together.
#[divan::bench(sample_count = 5)]
fn check_continuity_of_everything(bencher: Bencher<'_, '_>) {
    let (_, index) = &*ARCHIVE;
    let (view, path) = (index.view("main").unwrap(), TimelinePath::first());
    let (from, to) =
        (SegmentNo::new(1).start(SegmentSize::DEFAULT), SegmentNo::new(SEGMENTS).end(SegmentSize::DEFAULT));
    bencher.counter(ItemsCount::new(SEGMENTS)).bench_local(|| {
        let found = Along::new(&view, &path).unwrap().continuity(from, to).unwrap();
        assert!(found.is_whole());
    });
}
