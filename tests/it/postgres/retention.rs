//! `walkeep cleanup`: what goes, what stays restorable, and that it can be stopped anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rustix::process::Signal;
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
use crate::support::redis::give_all;
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
        let verdict = policy::decide(policy::RetentionInput {
            bases: &bases,
            histories: &log.histories,
            alive: &alive,
            size: size(),
            since,
            pinned: &BTreeSet::new(),
            minimum: 0,
            leaving: &[],
            grace: false,
            wal_since: Timestamp::MAX,
        });
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
        Self::start_with(|_| {})
    }

    /// The same after a change to the configuration.
    fn start_with(change: impl FnOnce(&Site)) -> Self {
        let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let site = Site::for_cluster(&cluster);
        change(&site);
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
        process::run(self.later(days, &[&["cleanup", "1", "--trust-this-clock"], more].concat()))
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

    let list = rig.site.walkeep(&["list", "--json"]).json();
    let start = lsn(list["clusters"][0]["backups"][0]["start_lsn"].as_str().unwrap()) >> 20;
    let first_needed = format!("00000001{:08X}{:08X}", start >> 12, start & 0xFFF);
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
    let wal: BTreeSet<PathBuf> =
        before.iter().filter(|path| path.to_string_lossy().contains("/wal/")).cloned().collect();
    let from_first = wal.iter().filter(|path| *path.file_name().unwrap().to_string_lossy() >= *first_needed);
    let from_first: BTreeSet<PathBuf> = from_first.cloned().collect();
    assert!(from_first.len() < wal.len());
    assert_eq!(rig.objects("wal"), from_first, "a restore of what went may be under way");
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
    assert!(!rig.objects("wal").is_superset(&from_first), "their WAL goes, too");
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
            rig.later(10, &["cleanup", "1", "--grace", "0", "--trust-this-clock"]),
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

/// A machine whose clock is days ahead takes everything for old.
#[test]
fn a_clock_that_is_wrong_stops_the_cleanup() {
    let rig = Rig::start();
    for n in 0..3 {
        rig.step(n);
        rig.backup();
    }
    let before = rig.objects("");
    let refused = process::run(rig.later(40, &["cleanup", "1"])).expect_code(1);
    for words in ["its clock shows", "nothing is removed", "--trust-this-clock"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    assert_eq!(rig.objects(""), before);
    let said = process::run(rig.later(40, &["cleanup", "1", "--trust-this-clock"])).expect_ok();
    assert!(said.contains("went") && rig.objects("backup").len() == 1, "{said}");
}

#[test]
fn a_pinned_backup_stays_and_one_is_removed_by_its_label() {
    let rig = Rig::start();
    let mut labels = Vec::new();
    let mut rows = Vec::new();
    for n in 0..4 {
        rig.step(n);
        rows.push(rig.cluster.sql(ROWS));
        labels.push(rig.backup());
    }
    rig.settle();
    let names = |rig: &Rig| -> Vec<String> {
        rig.objects("backup").iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    rig.site.walkeep(&["backup", "keep", &labels[1]]).expect_ok();
    rig.site.walkeep(&["backup", "keep", "20200101T000000Z-F"]).expect_code(4);
    rig.site.walkeep(&["backup", "delete", &labels[1]]).expect_code(2);
    for days in [10, 20] {
        rig.cleanup(days, &[]).expect_ok();
    }
    assert_eq!(names(&rig), [labels[1].clone(), labels[3].clone()]);
    rig.site.walkeep(&["verify"]).expect_ok();
    // PostgreSQL itself starts from it: its packs and its WAL are there.
    let data = rig.site.path().join("pinned");
    let into = data.to_string_lossy().into_owned();
    let pinned = ["restore", "postgres", "main", "--backup", &labels[1], "--target-immediate", "--pgdata", &into];
    rig.site.walkeep(&pinned).expect_ok();
    let mut restored = Cluster::adopt(QUICK, &data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    assert_eq!(restored.sql(ROWS), rows[1]);
    drop(restored);

    rig.site.walkeep(&["backup", "unkeep", &labels[1]]).expect_ok();
    rig.site.walkeep(&["backup", "delete", &labels[1]]).expect_ok();
    assert_eq!(names(&rig), [labels[3].clone()]);
    let only = rig.site.walkeep(&["backup", "delete", &labels[3]]).expect_code(2);
    assert!(only.stderr.contains("the only one that can be restored"), "{}", only.stderr);
    rig.site.walkeep(&["verify"]).expect_ok();
    rig.cleanup(30, &["--grace", "0"]).expect_ok();
    assert_eq!(rig.restored("last"), rig.cluster.sql(ROWS));
    rig.site.walkeep(&["backup", "delete", &labels[3], "--force"]).expect_ok();
    assert!(names(&rig).is_empty());
}

/// A backup that takes longer than any grace: it stands still while cleanups without one run beside it.
#[test]
fn a_backup_under_way_keeps_what_it_uses_from_cleanups_without_a_grace() {
    let rig = Rig::start();
    for n in 0..3 {
        rig.step(n);
        rig.backup();
    }
    rig.settle();
    // More than one pack holds.
    rig.cluster.sql(
        "insert into t select 7, (select string_agg(md5(random()::text || i || j), '') from generate_series(1, 30) j) \
         from generate_series(1, 60000) i",
    );
    let (rows, packs, manifests) = (rig.cluster.sql(ROWS), rig.objects("pack"), rig.objects("backup"));
    let mut slow = rig.site.command();
    slow.args(["backup", "postgres", "main"]);
    let mut backup = Running::start(slow, &rig.site.path().join("backup.log"));
    let new_pack = || rig.objects("pack").difference(&packs).find(|path| !is_staged(path)).cloned();
    let new_pack = until(Duration::from_secs(60), new_pack).expect("a pack");
    backup.signal(Signal::STOP);
    assert_eq!(rig.objects("running").len(), 1, "it is not over yet");
    assert_eq!(rig.objects("backup"), manifests);
    for days in [10, 20] {
        let said = rig.cleanup(days, &["--grace", "0"]).expect_ok();
        assert!(said.contains("is under way"), "{said}");
    }
    assert_eq!(rig.objects("backup").len(), 1, "the others went");
    assert!(rig.objects("pack").contains(&new_pack), "nothing names it but the backup under way");
    backup.signal(Signal::CONT);
    assert_eq!(backup.wait(Duration::from_secs(120)).code(), Some(0), "{}", backup.output());
    assert_eq!(rig.objects("running"), BTreeSet::new());
    rig.settle();
    for days in [30, 40] {
        rig.cleanup(days, &["--grace", "0"]).expect_ok();
    }
    assert!(rig.objects("pack").len() < packs.len() + 4 && rig.objects("backup").len() == 1);
    rig.site.walkeep(&["verify"]).expect_ok();
    assert_eq!(rig.restored("slow"), rows);
}

/// A pack that something removed after it was put: the manifest would name what is not there.
#[test]
fn a_backup_that_lost_a_pack_is_not_stored() {
    let rig = Rig::start();
    rig.cluster.sql(
        "insert into t select 7, (select string_agg(md5(random()::text || i || j), '') from generate_series(1, 30) j) \
         from generate_series(1, 60000) i",
    );
    let mut command = rig.site.command();
    command.args(["backup", "postgres", "main"]);
    let mut backup = Running::start(command, &rig.site.path().join("backup.log"));
    let pack = || rig.objects("pack").into_iter().find(|path| !is_staged(path));
    let pack = until(Duration::from_secs(60), pack).expect("a pack");
    backup.signal(Signal::STOP);
    fs::remove_file(&pack).unwrap();
    backup.signal(Signal::CONT);
    assert_eq!(backup.wait(Duration::from_secs(120)).code(), Some(5), "{}", backup.output());
    assert!(backup.output().contains("are no longer there"), "{}", backup.output());
    assert_eq!(rig.objects("backup"), BTreeSet::new());
    rig.backup();
    rig.settle();
    rig.site.walkeep(&["verify"]).expect_ok();
}

/// What another repository has helps nobody who has only this one.
#[test]
fn each_repository_keeps_what_it_restores_by_itself() {
    let rig = Rig::start_with(|site| {
        let second = site.scratch().directory("second");
        site.add_repository("second", &format!("file://{}", second.display()));
    });
    let mut labels = Vec::new();
    for n in 0..3 {
        rig.step(n);
        labels.push(rig.backup());
    }
    rig.settle();
    // The newest backup lacks WAL in the second one.
    let list = rig.site.walkeep(&["list", "--json"]).json();
    let start = lsn(list["clusters"][0]["backups"][2]["start_lsn"].as_str().unwrap()) >> 20;
    let name = format!("00000001{:08X}{:08X}", start >> 12, start & 0xFFF);
    let second = rig.site.path().join("second/main");
    let segment = files(&second.join("wal")).into_iter().find(|path| path.ends_with(&name)).expect("the segment");
    fs::remove_file(segment).unwrap();
    for days in [10, 20] {
        rig.cleanup(days, &[]).expect_ok();
    }
    let names = |folder: &Path| -> Vec<String> {
        files(folder).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names(&rig.site.repository().join("main/backup")), labels[2..]);
    assert_eq!(names(&second.join("backup")), labels[1..], "the newest one cannot be restored from here");
}

/// The mark of a backup whose process ended is not honoured for ever.
#[test]
fn the_mark_of_a_dead_backup_expires() {
    let rig = Rig::start();
    rig.step(0);
    rig.backup();
    rig.settle();
    let mark = rig.site.repository().join("main/running/20200101T000000Z-F-12345678/000000");
    fs::create_dir_all(mark.parent().unwrap()).unwrap();
    let pack = rig.site.repository().join("main/pack/00/000102030405060708090a0b0c0d0e0f");
    fs::create_dir_all(pack.parent().unwrap()).unwrap();
    for (path, age) in [(&mark, 50), (&pack, 3)] {
        fs::write(path, "x").unwrap();
        let time = SystemTime::now() - Duration::from_secs(age * 60);
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
    give_all(&rig.site.repository());
    rig.site.walkeep(&["cleanup", "1", "--grace", "0"]).expect_ok();
    assert!(mark.exists() && pack.exists(), "the pack came after the mark");
    let time = SystemTime::now() - Duration::from_secs(61 * 60);
    fs::File::options().write(true).open(&mark).unwrap().set_modified(time).unwrap();
    rig.site.walkeep(&["cleanup", "1", "--grace", "0"]).expect_ok();
    assert!(!mark.exists() && !pack.exists());
    rig.site.walkeep(&["verify"]).expect_ok();
}
