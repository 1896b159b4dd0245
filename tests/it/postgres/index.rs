//! The index over a real server's WAL: every search, against what `pg_waldump` reads in the same files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng};

use crate::support::waldump;
use crate::support::workload::Workload;
use crate::support::{Cluster, Options, QUICK, Scratch, Site};
use walkeep::postgres::archive::lookup::{SegmentSource, WalLookup};
use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::segment::{SegmentName, SegmentSize};
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::format::timeline::{TimelineId, TimelinePath};
use walkeep::postgres::index::{ContrecordState, IndexEntry, PathSearch, SegmentId, WalIndex};
use walkeep::postgres::wal::digest::{SegmentDigest, digest_segment};
use walkeep::postgres::wal::event::Xid;

const NAME: &str = "main";

/// The segments of a server, as they were on disk.
struct Wal {
    size: SegmentSize,
    segments: BTreeMap<SegmentName, (Bytes, Arc<SegmentDigest>)>,
}

impl Wal {
    /// All segments of `pg_wal` up to and with `last`.
    fn read(cluster: &Cluster, last: &str) -> Wal {
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut segments = BTreeMap::new();
        for entry in std::fs::read_dir(cluster.pg_wal()).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().into_string().unwrap();
            let Some(name) = SegmentName::parse(&file).filter(|_| file.as_str() <= last) else { continue };
            let bytes = Bytes::from(std::fs::read(entry.path()).unwrap());
            let digest = digest_segment(&bytes, name, size).unwrap();
            segments.insert(name, (bytes, Arc::new(digest)));
        }
        Wal { size, segments }
    }

    fn name(&self, place: SegmentId) -> SegmentName {
        SegmentName::new(place.timeline, place.segment, self.size).unwrap()
    }
}

impl SegmentSource for &Wal {
    type Error = std::convert::Infallible;

    fn digest(&self, place: SegmentId) -> Result<Arc<SegmentDigest>, Self::Error> {
        Ok(Arc::clone(&self.segments[&self.name(place)].1))
    }

    fn segment(&self, place: SegmentId) -> Result<Bytes, Self::Error> {
        Ok(self.segments[&self.name(place)].0.clone())
    }
}

fn ingest(index: &WalIndex, wal: &Wal, random: &mut SmallRng) {
    let mut digests: Vec<&Arc<SegmentDigest>> = wal.segments.values().map(|(_, digest)| digest).collect();
    digests.shuffle(random);
    for some in digests.chunks(7) {
        index.ingest(NAME, some.iter().map(|digest| IndexEntry { digest, stored: 1 })).unwrap();
    }
}

/// A server's WAL, as `pg_waldump` reads it.
struct Oracle {
    records: Vec<waldump::Record>,
    endings: Vec<waldump::Ending>,
    begin: Lsn,
    end: Lsn,
}

/// Sessions that do all kinds of things at once, then one that does hardly anything but commit, so that commits lie on
/// segments' borders.
fn busy(random: &mut SmallRng) -> (Cluster, Wal) {
    let options =
        Options::default().segment_size_mb(1).set("max_prepared_transactions", 20).set("wal_keep_size", "4GB");
    let cluster = Cluster::start(QUICK, options.set("synchronous_commit", "off").set("autovacuum_naptime", "1s"));
    let workload = Workload::start(&cluster, 4, random.random());
    std::thread::sleep(Duration::from_secs(1));
    cluster.sql("select pg_create_restore_point('halfway')");
    workload.stop();
    cluster.sql("do $$ begin for i in 1..250000 loop perform txid_current(); commit; end loop; end $$");
    let last = cluster.sql("select pg_walfile_name(pg_switch_wal())");
    let wal = Wal::read(&cluster, last.trim());
    (cluster, wal)
}

impl Oracle {
    fn read(cluster: &Cluster, wal: &Wal) -> Oracle {
        let begin = wal.segments.values().next().unwrap().1.start();
        let end = wal.segments.values().last().unwrap().1.end();
        let records = waldump::records(cluster, &cluster.pg_wal(), 1, &begin.to_string());
        let records: Vec<_> = records.into_iter().filter(|record| record.lsn < end.get()).collect();
        Oracle { endings: waldump::endings(&records), records, begin, end }
    }

    /// The endings on both sides of each border between segments, and some others.
    fn picked(&self, size: SegmentSize, random: &mut SmallRng) -> Vec<usize> {
        let segment = |ending: &waldump::Ending| ending.lsn / size.get();
        let borders =
            (1..self.endings.len()).filter(|&at| segment(&self.endings[at - 1]) != segment(&self.endings[at]));
        let mut picked: Vec<usize> = borders.flat_map(|at| [at - 1, at]).collect();
        picked.extend((0..100).map(|_| random.random_range(0..self.endings.len())));
        picked
    }
}

#[test]
fn every_search_finds_what_pg_waldump_reads() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (cluster, wal) = busy(&mut random);
    let oracle = Oracle::read(&cluster, &wal);
    let scratch = Scratch::new();
    let index = WalIndex::open_writer(&scratch.join("index"), &["r".to_owned()]).unwrap();
    ingest(&index, &wal, &mut random);

    let path = TimelinePath::first();
    let view = index.view(NAME).unwrap();
    let along = PathSearch::new(&view, &path).unwrap();
    let continuity = along.continuity(oracle.begin, oracle.end).unwrap();
    assert!(continuity.is_whole(), "{:?}", continuity.holes);
    assert_eq!(continuity.segments, wal.segments.len() as u64);
    let (mut counted, mut straddling) = (0, 0);
    let count = |stretch: walkeep::postgres::index::PathSegment| {
        counted += stretch.summary.endings;
        straddling += u32::from(matches!(stretch.summary.contrecord, ContrecordState::Whole { ending: Some(_), .. }));
        std::ops::ControlFlow::Continue(())
    };
    along.walk_segments(oracle.begin, oracle.end, count).unwrap();
    println!("{} segments, {counted} endings, {straddling} of them in two segments", wal.segments.len());
    assert_eq!(counted, oracle.endings.len() as u64);
    assert!(straddling > 0, "a commit lies in two segments");

    let lookup = WalLookup::new(index.view(NAME).unwrap(), &wal);
    endings_are_found(&lookup, &oracle, wal.size, &mut random);
    records_are_found(&lookup, &oracle, &mut random);
    let point = lookup.restore_points(&path, Lsn::INVALID, "halfway").unwrap().remove(0);
    let expected = oracle.records.iter().find(|record| record.description.contains("halfway")).unwrap();
    assert_eq!(point.lsn.get(), expected.lsn);
    assert_eq!(lookup.restore_points(&path, point.lsn.saturating_add(1), "halfway").unwrap(), []);
    drop((lookup, view));
    forgets_and_recovers(index, &wal, &scratch, &mut random);
}

fn endings_are_found(lookup: &WalLookup<'_, &Wal>, oracle: &Oracle, size: SegmentSize, random: &mut SmallRng) {
    let (path, endings) = (TimelinePath::first(), &oracle.endings);
    let long_ago = PgTime::from_pg_micros(i64::MIN);
    for at in oracle.picked(size, random) {
        let (near, next) = (&endings[at], endings.get(at + 1));
        let found = lookup.ending_after(&path, Lsn::new(near.lsn), long_ago).unwrap().unwrap();
        let expected = (near.lsn, near.xid, PgTime::from_timestamp(near.time), near.commit);
        assert_eq!((found.lsn.get(), found.xid.get(), found.time, found.kind.is_commit()), expected);
        let found = lookup.ending_after(&path, Lsn::new(near.lsn + 1), long_ago).unwrap();
        assert_eq!(found.map(|ending| ending.lsn.get()), next.map(|ending| ending.lsn));

        let from =
            Lsn::new(oracle.records[random.random_range(0..oracle.records.len())].lsn + random.random_range(0..2));
        let time = near.time + jiff::SignedDuration::from_micros(random.random_range(-3000..3000));
        let later =
            endings.iter().find(|ending| ending.lsn >= from.get() && ending.time > time).map(|ending| ending.lsn);
        let found = lookup.ending_after(&path, from, PgTime::from_timestamp(time)).unwrap();
        assert_eq!(found.map(|ending| ending.lsn.get()), later, "from {from}, {time}");
        if near.xid != 0 {
            let found = lookup.ending_of(&path, Lsn::INVALID, Xid::new(near.xid)).unwrap().unwrap();
            assert_eq!(found.lsn.get(), near.lsn);
        }
        let commit = endings.iter().find(|ending| ending.lsn >= from.get() && ending.commit).map(|ending| ending.lsn);
        assert_eq!(lookup.commit_from(&path, from).unwrap().map(|ending| ending.lsn.get()), commit);
        let commit = endings.iter().rfind(|ending| ending.lsn < from.get() && ending.commit).map(|ending| ending.lsn);
        assert_eq!(lookup.commit_before(&path, from).unwrap().map(|ending| ending.lsn.get()), commit);
    }
}

fn records_are_found(lookup: &WalLookup<'_, &Wal>, oracle: &Oracle, random: &mut SmallRng) {
    let (path, records) = (TimelinePath::first(), &oracle.records);
    for _ in 0..100 {
        let at = random.random_range(0..records.len() - 1);
        let found = lookup.record_from(&path, Lsn::new(records[at].lsn + 1)).unwrap().unwrap();
        assert_eq!(found.lsn.get(), records[at + 1].lsn);
        assert_eq!(lookup.record_from(&path, found.lsn).unwrap(), Some(found));
        assert_eq!(lookup.record_until(&path, found.end).unwrap(), Some(found.lsn));
        let before = Lsn::new(found.end.get() - 1);
        assert_eq!(lookup.record_until(&path, before).unwrap(), Some(Lsn::new(records[at].lsn)));
    }
    assert_eq!(lookup.record_from(&path, oracle.end).unwrap(), None);
    assert_eq!(lookup.record_until(&path, Lsn::MAX).unwrap().map(Lsn::get), records.last().map(|record| record.lsn));
}

/// A segment less is a hole exactly where it was; and an index made anew in another order answers as the old one did.
fn forgets_and_recovers(index: WalIndex, wal: &Wal, scratch: &Scratch, random: &mut SmallRng) {
    let path = TimelinePath::first();
    let all: Vec<&Arc<SegmentDigest>> = wal.segments.values().map(|(_, digest)| digest).collect();
    let (begin, end) = (all[0].start(), all[all.len() - 1].end());
    let lost = all[random.random_range(1..all.len() - 1)];
    index.forget(NAME, TimelineId::FIRST, &[lost.segment]).unwrap();
    let holes = {
        let view = index.view(NAME).unwrap();
        PathSearch::new(&view, &path).unwrap().continuity(begin, end).unwrap().holes
    };
    assert_eq!(holes.iter().map(|hole| (hole.from, hole.to)).collect::<Vec<_>>(), [(lost.start(), lost.end())]);
    index.ingest(NAME, [IndexEntry { digest: lost, stored: 1 }]).unwrap();
    let summaries = |index: &WalIndex| {
        let view = index.view(NAME).unwrap();
        let mut found = Vec::new();
        let along = PathSearch::new(&view, &path).unwrap();
        along
            .walk_segments(begin, end, |stretch| {
                found.push((
                    stretch.place,
                    stretch.summary.endings,
                    stretch.summary.latest,
                    stretch.summary.contrecord,
                ));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        found
    };
    let before = summaries(&index);
    drop(index);
    let dir = scratch.join("index");
    std::fs::remove_dir_all(&dir).unwrap();
    let index = WalIndex::recreate(&dir, &["r".to_owned()]).unwrap();
    ingest(&index, wal, random);
    assert_eq!(summaries(&index), before);
}

/// `plan` for some moments of the log, as JSON: what the index is for.
fn answers(site: &Site, times: &[String]) -> Vec<serde_json::Value> {
    let ask = |time: &String| {
        let plan = site.walkeep(&["plan", "postgres", "--target-time", time, "--json"]);
        let plan: serde_json::Value =
            serde_json::from_str(&plan.stdout).unwrap_or_else(|e| panic!("{e}: {}", plan.stderr));
        serde_json::json!([plan["target_lsn"], plan["last_commit_before"], plan["first_commit_after"]])
    };
    times.iter().map(ask).collect()
}

/// Killed at any moment, and thrown away, the index answers as before: it is made of the repository, and of nothing
/// else.
#[test]
fn an_index_that_was_killed_or_deleted_answers_as_before() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let (cluster, wal) = busy(&mut random);
    let oracle = Oracle::read(&cluster, &wal);
    drop(cluster);
    let site = Site::new();
    site.init(&[]).expect_ok();
    let folder = site.scratch().directory("wal");
    for (name, (bytes, _)) in &wal.segments {
        let path = folder.join(name.to_string());
        std::fs::write(&path, bytes).unwrap();
        site.walkeep(&["archive-push", &path.display().to_string()]).expect_ok();
    }
    let spell = |ending: &waldump::Ending| ending.time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string();
    let some = |_| spell(&oracle.endings[random.random_range(0..oracle.endings.len() - 1)]);
    let times: Vec<String> = (0..3).map(some).collect();
    let before = answers(&site, &times);
    for (time, answer) in times.iter().zip(&before) {
        // The oracle's word for one of them all, so that equal does not mean equally wrong.
        let first = oracle.endings.iter().find(|ending| spell(ending) > *time).map(|ending| waldump::spell(ending.lsn));
        assert_eq!(answer[0].as_str(), first.as_deref(), "{time}");
    }

    for round in 0..12 {
        std::fs::remove_dir_all(site.state_dir().join("index")).unwrap();
        let mut rebuild = site.spawn("rebuild", &["index", "rebuild"]);
        std::thread::sleep(Duration::from_millis(random.random_range(5..120)));
        rebuild.kill9();
        // Some rounds find a lock file and no database, some half an index, some all of it.
        assert_eq!(answers(&site, &times[..1]), before[..1], "round {round}");
    }
    assert_eq!(answers(&site, &times), before);
    site.walkeep(&["index", "rebuild"]).expect_ok();
    assert_eq!(answers(&site, &times), before);

    // A file of the database that is not what was written.
    let db = site.state_dir().join("index/db");
    for entry in std::fs::read_dir(&db).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("MANIFEST") {
            std::fs::write(&path, b"nonsense").unwrap();
        }
    }
    assert_eq!(answers(&site, &times[..1]), before[..1], "a damaged index is made anew");
}
