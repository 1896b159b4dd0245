//! `walkeep cleanup`: what goes, what stays restorable, and that it can be stopped anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::pg_control::RequiredSettings;
use walkeep::postgres::format::segment::{SegmentNo, SegmentSize};
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::format::timeline::{HistoryEntry, TimelineHistory, TimelineId, TimelinePath};
use walkeep::postgres::restore::RestoreError;
use walkeep::postgres::restore::archived_log::{
    ArchivedLog, CreatedTablespace, RecordSpan, ReplayChain, ReplayObstacle, WalRequirements,
};
use walkeep::postgres::restore::plan::{self, ProvedRestore};
use walkeep::postgres::restore::target::{RecoveryTarget, RestoreRequest, TargetTimeline};
use walkeep::postgres::retention::policy::{self, RetentionBackup};
use walkeep::postgres::wal::event::{TransactionEnd, TransactionEndKind, Xid};

use crate::support::process::{self, Finished, Orphan, until};
use crate::support::waldump::lsn;
use crate::support::{Cluster, Options, QUICK, Running, Site};

/// A log with one commit in each segment, on one timeline or two.
#[derive(Clone, Debug)]
struct Log {
    /// When the commit in each segment was, by timeline.
    commits: BTreeMap<(u32, u64), Timestamp>,
    missing: BTreeSet<(u32, u64)>,
    histories: Vec<TimelineHistory>,
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn record(segment: u64) -> Lsn {
    Lsn::new((segment << 20) + 0x1000)
}

impl Log {
    fn there(&self, path: &TimelinePath, segment: u64) -> Option<(u32, Timestamp)> {
        let timeline = path.timeline_at(record(segment)).get();
        let time = self.commits.get(&(timeline, segment))?;
        (!self.missing.contains(&(timeline, segment))).then_some((timeline, *time))
    }

    fn endings<'a>(&'a self, path: &'a TimelinePath) -> impl DoubleEndedIterator<Item = TransactionEnd> + 'a {
        (0..200_u64).filter_map(|segment| {
            let (_, time) = self.there(path, segment)?;
            let (lsn, end_lsn) = (record(segment), Lsn::new((segment << 20) + 0x1040));
            let (xid, time) = (Xid::new(u32::try_from(segment).unwrap() + 700), PgTime::from_timestamp(time));
            Some(TransactionEnd { lsn, end_lsn, xid, time, kind: TransactionEndKind::Commit })
        })
    }
}

impl ArchivedLog for Log {
    fn segment_size(&self) -> SegmentSize {
        size()
    }

    fn ending_after(
        &self,
        path: &TimelinePath,
        from: Lsn,
        time: PgTime,
    ) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(path).find(|ending| ending.lsn >= from && ending.time > time))
    }

    fn ending_of(&self, path: &TimelinePath, from: Lsn, xid: Xid) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(path).find(|ending| ending.lsn >= from && ending.xid == xid))
    }

    fn effect_of(&self, path: &TimelinePath, at: Lsn) -> Result<Option<RecordSpan>, RestoreError> {
        self.record_from(path, at)
    }

    fn restore_points(&self, _: &TimelinePath, _: Lsn, _: &str) -> Result<Vec<RecordSpan>, RestoreError> {
        Ok(Vec::new())
    }

    fn record_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<RecordSpan>, RestoreError> {
        let found = self.endings(path).find(|ending| ending.lsn >= from);
        Ok(found.map(|ending| RecordSpan { lsn: ending.lsn, end: ending.end_lsn }))
    }

    fn record_until(&self, path: &TimelinePath, end: Lsn) -> Result<Option<Lsn>, RestoreError> {
        Ok(self.endings(path).rev().find(|ending| ending.end_lsn <= end).map(|ending| ending.lsn))
    }

    fn commit_before(&self, path: &TimelinePath, before: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(path).rev().find(|ending| ending.lsn < before))
    }

    fn commit_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(path).find(|ending| ending.lsn >= from))
    }

    fn replay_chain(&self, path: &TimelinePath, from: Lsn, to: Option<Lsn>) -> Result<ReplayChain, RestoreError> {
        let (first, last) = (from.get() >> 20, to.map_or(200, |to| to.get() >> 20));
        let gone = (first..=last).find(|segment| self.there(path, *segment).is_none());
        let end = gone.map_or(Lsn::new((last + 1) << 20), |segment| Lsn::new(segment << 20));
        let why = "not archived".to_owned();
        let obstacle = gone.map(|segment| ReplayObstacle {
            timeline: path.timeline_at(record(segment)),
            from: Lsn::new(segment << 20),
            to: Lsn::new((segment + 1) << 20),
            why,
        });
        let reached = if obstacle.is_none() { to.unwrap_or(end) } else { end };
        Ok(ReplayChain { obstacle: obstacle.filter(|_| to.is_some()), segments: 1, bytes: 1, records: 1, end: reached })
    }

    fn created_tablespaces(&self, _: &TimelinePath, _: Lsn, _: Lsn) -> Result<Vec<CreatedTablespace>, RestoreError> {
        Ok(Vec::new())
    }

    fn unreadable_end(&self, _: &TimelinePath, _: Lsn, _: Lsn) -> Result<Option<ReplayObstacle>, RestoreError> {
        Ok(None)
    }

    fn wal_requirements(&self, _: &TimelinePath, _: Lsn, _: Lsn) -> Result<WalRequirements, RestoreError> {
        Ok(WalRequirements::default())
    }
}

/// When a segment's commit was: one each hour, not always in order.
fn moment(segment: u64, jitter: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + i64::try_from(segment).unwrap() * 3600 + jitter).unwrap()
}

fn path_of(log: &Log, timeline: TimelineId) -> TimelinePath {
    log.histories
        .iter()
        .find(|history| history.timeline == timeline)
        .map_or_else(TimelinePath::first, TimelineHistory::path)
}

fn planned(log: &Log, bases: &[RetentionBackup], request: &RestoreRequest) -> Option<ProvedRestore> {
    let bases: Vec<plan::PlanBackup> = bases
        .iter()
        .map(|base| plan::PlanBackup {
            label: base.label.clone(),
            start: base.start,
            start_timeline: base.timeline,
            stop: base.stop,
            stop_timeline: base.timeline,
            started_at: PgTime::from_timestamp(base.finished_at),
            required: RequiredSettings::default(),
            logical_bytes: 1,
        })
        .collect();
    let world = plan::PlanInput { cluster: "main", bases: &bases, histories: &log.histories, facts: log };
    plan::make_plan(world, request).ok()?.restore().cloned()
}

fn world() -> impl Strategy<Value = (Log, Vec<RetentionBackup>, u64)> {
    let backups = proptest::collection::vec((1..140_u64, 0..6_u64, 0..50_i64), 0..8);
    let missing = proptest::collection::btree_set((1..3_u32, 0..160_u64), 0..3);
    let jitter = proptest::collection::vec(-4000..4000_i64, 160);
    let fork = proptest::option::of((20..150_u64, 0..30_u64));
    (backups, missing, jitter, fork, 10..160_u64).prop_map(|(backups, missing, jitter, fork, since)| {
        let mut log = Log { commits: BTreeMap::new(), missing, histories: Vec::new() };
        let late = |segment: u64| jitter[usize::try_from(segment).unwrap() % jitter.len()];
        for segment in 0..160 {
            // After a fork the old timeline goes on for a while, and the new one from the same segment.
            if fork.is_none_or(|(at, longer)| segment <= at + longer) {
                log.commits.insert((1, segment), moment(segment, late(segment)));
            }
            if fork.is_some_and(|(at, _)| segment >= at) {
                log.commits.insert((2, segment), moment(segment, late(segment + 1)));
            }
        }
        if let Some((at, _)) = fork {
            let end = Lsn::new((at << 20) + 0x800);
            let entries = vec![HistoryEntry { timeline: tli(1), end, reason: String::new() }];
            log.histories.push(TimelineHistory { timeline: tli(2), entries });
        }
        let mut bases = Vec::new();
        for (number, (start, len, skew)) in backups.into_iter().enumerate() {
            for timeline in [1, 2] {
                let stop = start + len + 1;
                let Some(ended) = log.commits.get(&(timeline, stop)) else { continue };
                if !log.commits.contains_key(&(timeline, start)) {
                    continue;
                }
                let path = path_of(&log, tli(timeline));
                let (start, stop) = (record(start), record(stop).saturating_add(0x40));
                if !path.contains(tli(timeline), start) || !path.contains(tli(timeline), stop) {
                    continue;
                }
                let whole = log.replay_chain(&path, start, Some(stop)).unwrap().obstacle.is_none();
                let finished_at = ended.checked_add(SignedDuration::from_mins(skew)).unwrap();
                let label = format!("b{number}-{timeline}");
                bases.push(RetentionBackup {
                    label,
                    timeline: tli(timeline),
                    start,
                    stop,
                    finished_at,
                    restorable: whole,
                });
            }
        }
        (log, bases, since)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the plan promised of the window before, it promises after, with the same stop.
    #[test]
    fn retention_never_makes_a_promised_target_unreachable((log, bases, since) in world()) {
        let since = moment(since, 0);
        let mut alive: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
        for ((timeline, _), time) in &log.commits {
            let newest = alive.entry(tli(*timeline)).or_insert(*time);
            *newest = (*newest).max(*time);
        }
        let verdict = policy::decide(policy::RetentionInput { bases: &bases, histories: &log.histories, alive: &alive, size: size(), since });
        let kept: Vec<RetentionBackup> = bases.iter().filter(|base| verdict.keep.contains_key(&base.label)).cloned().collect();
        prop_assert_eq!(kept.len() + verdict.expire.len(), bases.len());
        let mut less = log.clone();
        less.commits.retain(|(timeline, segment), time| !verdict.may_remove(tli(*timeline), SegmentNo::new(*segment), *time));
        for ((timeline, segment), time) in log.commits.iter().filter(|(_, time)| **time >= since) {
            for target in [RecoveryTarget::Lsn(record(*segment)), RecoveryTarget::Time(PgTime::from_timestamp(*time))] {
                for choice in [TargetTimeline::Latest, TargetTimeline::Id(tli(*timeline))] {
                    let request = RestoreRequest::new(target.clone(), false).unwrap().on_timeline(choice);
                    let Some(before) = planned(&log, &bases, &request) else { continue };
                    let after = planned(&less, &kept, &request);
                    prop_assert_eq!(after.map(|restore| restore.stop), Some(before.stop), "{:?}", request);
                }
            }
        }
    }
}

/// A server with its receiver, and three backups of a table that changes.
pub(super) struct Rig {
    pub(super) cluster: Cluster,
    pub(super) site: Site,
    pub(super) receiver: Running,
}

impl Rig {
    pub(super) fn start() -> Self {
        let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let site = Site::for_cluster(&cluster);
        // One piece of the segment under way, right at the beginning: what changes in the repository shall be what a
        // test does.
        let mut config = fs::File::options().append(true).open(site.config()).unwrap();
        config.write_all(b"copy-every = \"1h\"\n").unwrap();
        let receiver = site.spawn("receive", &["receive", "main"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        cluster.sql("create table t (n int, filler text)");
        Self { cluster, site, receiver }
    }

    fn step(&self, n: u32) {
        self.cluster.sql(&format!(
            "insert into t select {n}, md5(random()::text) || repeat(md5(i::text), 20) from generate_series(1, 4000) i"
        ));
    }

    fn backup(&self) -> String {
        self.site.walkeep(&["backup", "postgres", "main"]).expect_ok().trim().to_owned()
    }

    /// Until every segment before the server's current one is in the repository; what `list` shows reaches into the
    /// spool.
    fn settle(&self) {
        self.cluster.switch_wal();
        let current = lsn(&self.cluster.sql("select pg_current_wal_lsn()")) >> 20;
        let last = format!("00000001{:08X}{:08X}", (current - 1) >> 12, (current - 1) & 0xFFF);
        let there = until(Duration::from_secs(60), || {
            let last_is = files(&self.site.repository().join("main/wal")).iter().any(|path| path.ends_with(&last));
            (last_is && self.site.walkeep(&["verify"]).code == Some(0)).then_some(())
        });
        assert!(there.is_some(), "{last}: {}", self.site.walkeep(&["verify"]).stdout);
    }

    /// As many days from now. Not by the program `faketime`, which would stand between us and the one that is to be
    /// killed.
    fn later(&self, days: u32, arguments: &[&str]) -> Command {
        let mut command = process::command("env", Orphan::Kill);
        command.args(["LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME_DISABLE_SHM=1"]);
        command.arg(format!("FAKETIME=+{days}d")).arg(env!("CARGO_BIN_EXE_walkeep")).args(arguments);
        command.env("WALKEEP_CONFIG", self.site.config());
        command
    }

    fn cleanup(&self, days: u32, more: &[&str]) -> Finished {
        process::run(self.later(days, &[&["cleanup", "1"], more].concat()))
    }

    fn objects(&self, folder: &str) -> BTreeSet<PathBuf> {
        files(&self.site.repository().join("main").join(folder))
    }

    /// What a restore of the newest moment shows.
    fn restored(&self, name: &str) -> String {
        let data = self.site.path().join(name);
        self.site.walkeep(&["restore", "postgres", "main", "--pgdata", &data.to_string_lossy()]).expect_ok();
        let mut restored = Cluster::adopt(QUICK, &data);
        restored.start_again();
        restored.wait_for("select not pg_is_in_recovery()");
        let rows = restored.sql(ROWS);
        restored.stop_immediately();
        drop(restored);
        fs::remove_dir_all(data).unwrap();
        rows
    }
}

const ROWS: &str = "select count(*), md5(string_agg(n || filler, ',' order by n, filler)) from t";

/// What the store writes before it gives it its name.
fn is_staged(path: &Path) -> bool {
    path.to_string_lossy().contains('#')
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { [path].into() }).collect()
}

#[test]
fn what_is_not_needed_goes_in_its_time_and_the_rest_is_whole() {
    let rig = Rig::start();
    let piece = until(Duration::from_secs(30), || rig.objects("piece").pop_first().filter(|path| !is_staged(path)));
    let piece = piece.map(|path| (fs::read(&path).unwrap(), path)).unwrap();
    let mut labels = Vec::new();
    for n in 0..3 {
        rig.step(n);
        labels.push(rig.backup());
    }
    rig.step(3);
    rig.cluster.sql("delete from t where n = 0");
    rig.cluster.sql("vacuum full t");
    labels.push(rig.backup());
    rig.settle();
    until(Duration::from_secs(60), || rig.objects("piece").is_empty().then_some(())).unwrap();
    let (rows, before) = (rig.cluster.sql(ROWS), rig.objects(""));

    let young = rig.site.walkeep(&["cleanup", "30"]).expect_ok();
    assert!(young.contains("made within the window"), "{young}");
    assert_eq!(rig.objects(""), before, "everything is young");
    let none = rig.site.walkeep(&["cleanup"]).expect_code(2);
    assert!(none.stderr.contains("retention = \"30d\""), "{}", none.stderr);

    let said = rig.cleanup(10, &["--dry-run"]).expect_ok();
    for words in ["would go", "serves the window's beginning", labels[0].as_str()] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(rig.objects(""), before, "it was only said");

    let packs = rig.objects("pack");
    // As a receiver leaves it that is killed before it has swept.
    fs::write(&piece.1, &piece.0).unwrap();
    rig.cleanup(10, &[]).expect_ok();
    assert_eq!(rig.objects("piece"), BTreeSet::new());
    let names: BTreeSet<String> =
        rig.objects("backup").iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, [labels[3].clone()].into());
    assert_eq!(rig.objects("pack"), packs, "a backup under way may count on them");
    assert_eq!(
        rig.objects("history"),
        before.iter().filter(|path| path.to_string_lossy().contains("/history/")).cloned().collect()
    );
    assert!(rig.objects("wal").len() < before.iter().filter(|path| path.to_string_lossy().contains("/wal/")).count());
    rig.site.walkeep(&["verify"]).expect_ok();
    assert_eq!(rig.restored("first"), rows);

    // A backup that was begun before the manifests went uses what they named; it must not lose it.
    rig.step(5);
    rig.backup();
    rig.settle();
    let rows = rig.cluster.sql(ROWS);
    rig.cleanup(20, &[]).expect_ok();
    assert!(rig.objects("pack").len() < packs.len(), "packs of the first backups go when their time is up");
    assert!(rig.objects("expired").len() < 4);
    rig.site.walkeep(&["verify"]).expect_ok();
    assert_eq!(rig.restored("second"), rows);
    let list = rig.site.walkeep(&["list", "--json"]).json();
    assert_eq!(list["clusters"][0]["gaps"].as_array().unwrap().len(), 0, "{list}");
}

/// Killed at any moment and run again, it ends where one run would have.
#[test]
fn a_cleanup_can_be_killed_anywhere() {
    let rig = Rig::start();
    for n in 0..4 {
        rig.step(n);
        rig.backup();
    }
    rig.settle();
    let rows = rig.cluster.sql(ROWS);
    let mut killed = 0;
    for n in 0..15_u64 {
        let mut run = Running::start(
            rig.later(10, &["cleanup", "1", "--grace", "0"]),
            &rig.site.path().join(format!("run{n}.log")),
        );
        std::thread::sleep(Duration::from_millis(40 * n));
        if run.ended().is_none() {
            run.kill9();
            killed += 1;
        }
        let verified = rig.site.walkeep(&["verify"]);
        assert_eq!(verified.code, Some(0), "after {n}: {}{}", verified.stdout, verified.stderr);
    }
    println!("{killed} of 15 killed");
    for days in [10, 11, 12] {
        rig.cleanup(days, &["--grace", "0"]).expect_ok();
    }
    assert_eq!(rig.objects("backup").len(), 1);
    let left = rig.objects("");
    rig.cleanup(13, &["--grace", "0"]).expect_ok();
    assert_eq!(rig.objects(""), left, "nothing more to do");
    rig.site.walkeep(&["verify"]).expect_ok();
    assert_eq!(rig.restored("again"), rows);
}
