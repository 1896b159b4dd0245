//! The index of a busy cluster's year: 2 million segments, which is 32 TB of log, each hundredth from a peak of 10,000
//! commits a second.
//!
//! Says how large it is, how long it takes to make, and how long to find a moment, a transaction and a position in it,
//! at once and after it was opened anew with nothing of it in memory; and what `list` and `plan` ask of the whole. The
//! log itself is made up: what the repository takes to give a digest comes on top, one small read for each answer. What
//! the limit of taking in is: a core decodes about 1 GB/s of log, which is 64 segments.
//!
//! Then the same with the program itself and a repository of real objects ([`objects`]): `index rebuild`, `list`,
//! `plan`.
//!
//! `cargo bench --bench scale -- 100000 5000` makes smaller ones; 0 leaves one out. Needs a gigabyte of disk for 2
//! million, and removes it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures, prints and may stop at the first surprise"
)]

mod objects;

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walkeep::postgres::archive::inventory::{self, ArchiveInventory, InventoryInput};
use walkeep::postgres::archive::lookup::{SegmentSource, WalLookup};
use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::segment::{SegmentNo, SegmentSize, SystemId};
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::format::timeline::{HistoryEntry, TimelineHistory, TimelineId, TimelinePath};
use walkeep::postgres::index::{IndexEntry, PathSearch, SegmentId, WalIndex};
use walkeep::postgres::wal::digest::{SegmentDigest, SegmentState};
use walkeep::postgres::wal::event::{TransactionEnd, TransactionEndKind, Xid};

/// A year of a cluster that writes a megabyte a second.
const YEAR: u64 = 2_000_000;
/// Objects in a repository.
const OBJECTS: u64 = 20_000;
/// Segments of an ordinary day's commits, and of a peak's: a second and a half at 10,000 commits a second fills one.
const QUIET: u64 = 40;
const PEAK: u64 = 8000;
const EVERY: u64 = 100;
/// Microseconds that a segment takes.
const SPAN: u64 = 15_750_000;
const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// Commits before a segment.
fn commits_before(number: u64) -> u64 {
    let peaks = number.saturating_sub(1) / EVERY;
    peaks * PEAK + (number - 1 - peaks) * QUIET
}

fn commits_in(number: u64) -> u64 {
    if number.is_multiple_of(EVERY) { PEAK } else { QUIET }
}

fn ending(number: u64, at: u64) -> TransactionEnd {
    let (commits, no) = (commits_in(number), SegmentNo::new(number));
    let lsn = no.start(SIZE).saturating_add(64 + at * (SIZE.get() / (commits + 1) / 8 * 8));
    // Neighbours change places, as they do.
    let micros = number * SPAN + (at ^ 1) * SPAN / (commits + 1);
    TransactionEnd {
        lsn,
        end_lsn: lsn.saturating_add(40),
        xid: Xid::new((commits_before(number) + at + 3) as u32),
        time: PgTime::from_pg_micros(micros as i64),
        kind: TransactionEndKind::Commit,
    }
}

fn segment(number: u64) -> SegmentDigest {
    let no = SegmentNo::new(number);
    let endings: Vec<TransactionEnd> = (0..commits_in(number)).map(|at| ending(number, at)).collect();
    SegmentDigest {
        timeline: TimelineId::FIRST,
        segment: no,
        segment_size: SIZE,
        page_magic: 0xD110,
        system_id: SystemId::new(7),
        state: SegmentState::Checked,
        first_record: Some(no.start(SIZE).saturating_add(40)),
        last_record: Some(Lsn::new(no.end(SIZE).get() - 64)),
        first_prev: Some(Lsn::new(no.start(SIZE).get() - 64)),
        valid_until: no.end(SIZE),
        switched: false,
        overwrites: false,
        records: 100_000,
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

impl SegmentSource for Made {
    type Error = Infallible;

    fn digest(&self, place: SegmentId) -> Result<Arc<SegmentDigest>, Infallible> {
        Ok(Arc::new(segment(place.segment.get())))
    }

    fn segment(&self, _: SegmentId) -> Result<Bytes, Infallible> {
        Ok(Bytes::new())
    }
}

fn main() {
    let asked: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (segments, objects) = (asked.first().copied().unwrap_or(YEAR), asked.get(1).copied().unwrap_or(OBJECTS));
    println!("load average {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    if segments > 0 {
        index_of(segments.max(2000));
        many_timelines((segments / 1000).clamp(2, 100));
    }
    if objects > 0 {
        objects::measure(objects);
    }
}

fn index_of(segments: u64) {
    let dir = tempfile::tempdir().unwrap();
    println!("{segments} segments of 16 MiB, {} commits", commits_before(segments + 1));
    make(dir.path(), segments);
    let before = size_of(dir.path());
    println!("size      {:.0} MB, {} bytes a segment", before as f64 / 1e6, before / segments);
    let warm = measure(dir.path(), segments, 300, false);
    let cold = measure(dir.path(), segments, 12, true);
    println!("{:<34} {:>12} {:>12} {:>12} {:>12}", "", "warm", "worst", "cold", "worst");
    for ((name, warm), (_, cold)) in warm.into_iter().zip(cold) {
        let [warm, warm_worst, cold, cold_worst] =
            [middle(&warm), worst(&warm), middle(&cold), worst(&cold)].map(millis);
        println!("{name:<34} {warm:>12} {warm_worst:>12} {cold:>12} {cold_worst:>12}");
    }
}

/// What `list` asks where there were many promotions, each a thousand segments after the one before.
fn many_timelines(timelines: u64) {
    const EACH: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let timeline = |number: u64| TimelineId::new(number as u32).unwrap();
    let (mut entries, mut histories): (Vec<HistoryEntry>, Vec<TimelineHistory>) = (Vec::new(), Vec::new());
    for of in 1..=timelines {
        let numbers = (of - 1) * EACH + 1..=of * EACH;
        let digests: Vec<SegmentDigest> =
            numbers.map(|no| SegmentDigest { timeline: timeline(of), ..segment(no) }).collect();
        index.ingest("main", digests.iter().map(|digest| IndexEntry { digest, stored: 5 << 20 })).unwrap();
        if of > 1 {
            histories.push(TimelineHistory { timeline: timeline(of), entries: entries.clone() });
        }
        let end = SegmentNo::new(of * EACH).end(SIZE);
        entries.push(HistoryEntry { timeline: timeline(of), end, reason: String::new() });
    }
    index.flush().unwrap();
    let times: Vec<Duration> = (0..5)
        .map(|_| {
            let begun = Instant::now();
            let made = listed(&index, &histories);
            assert_eq!(made.timelines.len() as u64, timelines);
            assert!(made.gaps.is_empty());
            begun.elapsed()
        })
        .collect();
    println!("list, {timelines} timelines of {EACH} segments: {}", millis(middle(&times)));
}

fn listed(index: &WalIndex, histories: &[TimelineHistory]) -> ArchiveInventory {
    let contents = InventoryInput {
        cluster: "main",
        identity: None,
        backups: &[],
        histories,
        gaps: &[],
        latest_time_in_cut_segment: &inventory::no_time_in_cut_segment,
    };
    inventory::build_inventory(&index.view("main").unwrap(), contents).unwrap()
}

/// Takes all digests in, as a rebuild does; what it takes to make them up is not counted.
fn make(dir: &Path, segments: u64) {
    let index = open(dir);
    let mut took = Duration::ZERO;
    for first in (1..=segments).step_by(256) {
        let digests: Vec<SegmentDigest> = (first..(first + 256).min(segments + 1)).map(segment).collect();
        let begun = Instant::now();
        // As many at a time as a rebuild has in its hands.
        for some in digests.chunks(16) {
            index.ingest("main", some.iter().map(|digest| IndexEntry { digest, stored: 5 << 20 })).unwrap();
        }
        took += begun.elapsed();
    }
    let begun = Instant::now();
    index.flush().unwrap();
    took += begun.elapsed();
    println!(
        "made in   {:.0} s, {:.0} segments/s, on one core",
        took.as_secs_f64(),
        segments as f64 / took.as_secs_f64()
    );
}

fn open(dir: &Path) -> WalIndex {
    WalIndex::open_writer(dir, &["bench".to_owned()]).unwrap()
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = waiting.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { waiting.push(path) } else { found.push(path) }
        }
    }
    found
}

fn size_of(dir: &Path) -> u64 {
    files(dir).iter().map(|path| path.metadata().unwrap().len()).sum()
}

/// Drops what the operating system keeps of the index in memory.
fn forget(dir: &Path) {
    for path in files(dir) {
        let file = fs::File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

type Times = Vec<(&'static str, Vec<Duration>)>;

/// Each question asked so many times of random places. `cold`: each time of an index that was just opened, of whose
/// files nothing is in memory.
fn measure(dir: &Path, segments: u64, times: u64, cold: bool) -> Times {
    let mut all: Times = QUESTIONS.iter().map(|(name, _)| (*name, Vec::new())).collect();
    let mut opening = Vec::new();
    let mut index = open(dir);
    for nth in 0..times {
        let number = 1 + (nth.wrapping_mul(6_364_136_223_846_793_005) >> 20) % (segments - 2);
        for (at, (_, question)) in QUESTIONS.iter().enumerate() {
            if cold {
                drop(index);
                forget(dir);
                let begun = Instant::now();
                index = open(dir);
                opening.push(begun.elapsed());
            }
            // What concerns the whole is asked less often.
            if !cold && at >= FEW && nth >= 5 {
                continue;
            }
            let begun = Instant::now();
            question(&index, number, segments);
            all[at].1.push(begun.elapsed());
        }
    }
    if !cold {
        for _ in 0..5 {
            drop(index);
            let begun = Instant::now();
            index = open(dir);
            opening.push(begun.elapsed());
        }
    }
    all.push(("open the index", opening));
    all
}

type Question = fn(&WalIndex, u64, u64);

/// From here on they concern the whole.
const FEW: usize = 5;
const QUESTIONS: [(&str, Question); 8] = [
    ("find a moment", |index, number, _| {
        let wanted = ending(number, 2);
        let found = lookup(index).ending_after(&TimelinePath::first(), Lsn::INVALID, wanted.time).unwrap();
        assert!(found.is_some_and(|found| found.time > wanted.time));
    }),
    ("find a transaction", |index, number, _| {
        let wanted = ending(number, 7);
        let found = lookup(index).ending_of(&TimelinePath::first(), Lsn::INVALID, wanted.xid).unwrap();
        assert_eq!(found, Some(wanted));
    }),
    ("find the commit at a position", |index, number, _| {
        let wanted = ending(number, 7);
        let found = lookup(index).commit_from(&TimelinePath::first(), wanted.lsn).unwrap();
        assert_eq!(found, Some(wanted));
    }),
    ("find the commit before a position", |index, number, _| {
        let wanted = ending(number, 7);
        let found = lookup(index).commit_before(&TimelinePath::first(), wanted.lsn.saturating_add(1)).unwrap();
        assert_eq!(found, Some(wanted));
    }),
    ("prove a day's log", |index, number, segments| {
        let from = SegmentNo::new(number.min(segments.saturating_sub(6000)).max(1));
        prove(index, from, SegmentNo::new((from.get() + 5486).min(segments)));
    }),
    ("prove all of the log", |index, _, segments| prove(index, SegmentNo::new(1), SegmentNo::new(segments))),
    ("find the newest point from the start", |index, _, segments| {
        let chain = lookup(index).wal_chain(&TimelinePath::first(), SegmentNo::new(1).start(SIZE), None).unwrap();
        assert_eq!(chain.end, SegmentNo::new(segments).end(SIZE));
    }),
    ("list", |index, _, segments| {
        let made = listed(index, &[]);
        assert_eq!(made.timelines[0].segments, segments);
        assert!(made.gaps.is_empty());
    }),
];

fn lookup(index: &WalIndex) -> WalLookup<'_, Made> {
    WalLookup::new(index.view("main").unwrap(), Made)
}

fn prove(index: &WalIndex, from: SegmentNo, to: SegmentNo) {
    let (view, path) = (index.view("main").unwrap(), TimelinePath::first());
    let found = PathSearch::new(&view, &path).unwrap().continuity(from.start(SIZE), to.end(SIZE)).unwrap();
    assert!(found.is_whole() && found.segments == to.get() - from.get() + 1);
}

fn middle(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn worst(times: &[Duration]) -> Duration {
    times.iter().max().copied().unwrap_or_default()
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
