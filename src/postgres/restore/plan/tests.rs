use proptest::prelude::*;

use super::{
    PlanBackup, PlanInput, PlanOutcome, ProvedRestore, RestorePlan, RestorePlanDocument, TargetPlace, make_plan,
};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::restore::RestoreError;
use crate::postgres::restore::archived_log::{
    ArchivedLog, CreatedTablespace, RecordSpan, ReplayChain, ReplayObstacle, WalRequirements,
};
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::restore::target::{RecoveryTarget, RestoreRequest, TargetTimeline};
use crate::postgres::wal::event::{TransactionEnd, TransactionEndKind, Xid};

/// Every record of a small log takes this many bytes, a whole segment.
const STEP: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum What {
    Commit(u32, i64),
    Abort(u32, i64),
    Point(&'static str),
    Settings(u32),
    Minimal,
    Tablespace(u32),
    Other,
}

/// A log that is small enough to look through, record by record: what [`ArchivedLog`] answers, done the slow and
/// obvious way. Timelines don't matter to it but for where the log of each is.
#[derive(Clone, Debug, Default)]
struct Log {
    records: Vec<(Lsn, What)>,
    missing: Vec<(Lsn, Lsn)>,
    /// A record whose key is gone.
    no_key: Option<Lsn>,
}

impl Log {
    fn of(whats: impl IntoIterator<Item = What>) -> Log {
        Log { records: (1..).map(at).zip(whats).collect(), ..Log::default() }
    }

    fn end(&self) -> Lsn {
        self.records.last().map_or(Lsn::INVALID, |(lsn, _)| lsn.saturating_add(STEP))
    }

    fn endings(&self, from: Lsn) -> impl Iterator<Item = TransactionEnd> + '_ {
        self.records.iter().filter(move |(lsn, _)| *lsn >= from).filter_map(|(lsn, what)| {
            let (xid, time, kind) = match what {
                What::Commit(xid, time) => (xid, time, TransactionEndKind::Commit),
                What::Abort(xid, time) => (xid, time, TransactionEndKind::Abort),
                _ => return None,
            };
            let (xid, time) = (Xid::new(*xid), PgTime::from_pg_micros(*time));
            Some(TransactionEnd { lsn: *lsn, end_lsn: lsn.saturating_add(STEP), xid, time, kind })
        })
    }
}

fn span(lsn: Lsn) -> RecordSpan {
    RecordSpan { lsn, end: lsn.saturating_add(STEP) }
}

impl ArchivedLog for Log {
    fn segment_size(&self) -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    fn ending_after(&self, _: &TimelinePath, from: Lsn, time: PgTime) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(from).find(|ending| ending.time > time))
    }

    fn ending_of(&self, _: &TimelinePath, from: Lsn, xid: Xid) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(from).find(|ending| ending.xid == xid))
    }

    fn restore_points(&self, _: &TimelinePath, from: Lsn, name: &str) -> Result<Vec<RecordSpan>, RestoreError> {
        let point = |what: &What| matches!(what, What::Point(found) if *found == name);
        Ok(self.records.iter().filter(|(lsn, what)| *lsn >= from && point(what)).map(|(lsn, _)| span(*lsn)).collect())
    }

    fn effect_of(&self, path: &TimelinePath, lsn: Lsn) -> Result<Option<RecordSpan>, RestoreError> {
        self.record_from(path, lsn)
    }

    fn record_from(&self, _: &TimelinePath, from: Lsn) -> Result<Option<RecordSpan>, RestoreError> {
        Ok(self.records.iter().find(|(lsn, _)| *lsn >= from).map(|(lsn, _)| span(*lsn)))
    }

    fn record_until(&self, _: &TimelinePath, end: Lsn) -> Result<Option<Lsn>, RestoreError> {
        Ok(self.records.iter().map(|(lsn, _)| *lsn).rfind(|lsn| span(*lsn).end <= end))
    }

    fn commit_before(&self, _: &TimelinePath, before: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(Lsn::INVALID).filter(|ending| ending.lsn < before && ending.kind.is_commit()).last())
    }

    fn commit_from(&self, _: &TimelinePath, from: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(self.endings(from).find(|ending| ending.kind.is_commit()))
    }

    fn replay_chain(&self, path: &TimelinePath, from: Lsn, to: Option<Lsn>) -> Result<ReplayChain, RestoreError> {
        let end = to.unwrap_or(Lsn::MAX).min(self.end());
        let hole = self.missing.iter().find(|(begin, stop)| *begin < end && from < *stop).copied();
        let past = to.filter(|to| *to > self.end()).map(|to| (self.end(), to));
        let obstacle = hole.or(past).map(|(from, to)| ReplayObstacle {
            timeline: path.timeline_at(from),
            from,
            to,
            why: "not archived".to_owned(),
        });
        let end = obstacle.as_ref().map_or(end, |obstacle| obstacle.from);
        Ok(ReplayChain { end, segments: 1, records: 1, bytes: end.bytes_since(from), obstacle })
    }

    fn wal_requirements(&self, _: &TimelinePath, from: Lsn, to: Lsn) -> Result<WalRequirements, RestoreError> {
        let mut demands = WalRequirements::default();
        for (lsn, what) in self.records.iter().filter(|(lsn, _)| *lsn >= from && *lsn < to) {
            match what {
                What::Settings(max_connections) => {
                    let seen = RequiredSettings { max_connections: *max_connections, ..RequiredSettings::default() };
                    demands.largest = demands.largest.max(seen);
                }
                What::Minimal => demands.minimal_at = demands.minimal_at.or(Some(*lsn)),
                _ => {}
            }
        }
        Ok(demands)
    }

    fn created_tablespaces(
        &self,
        _: &TimelinePath,
        from: Lsn,
        to: Lsn,
    ) -> Result<Vec<CreatedTablespace>, RestoreError> {
        let within = self.records.iter().filter(|(lsn, _)| *lsn >= from && *lsn < to);
        let made = |(lsn, what): &(Lsn, What)| match what {
            What::Tablespace(tablespace) => {
                let location = format!("/spaces/{tablespace}");
                Some(CreatedTablespace { lsn: *lsn, tablespace: *tablespace, location, time: None })
            }
            _ => None,
        };
        Ok(within.filter_map(made).collect())
    }

    fn unreadable_end(&self, path: &TimelinePath, from: Lsn, to: Lsn) -> Result<Option<ReplayObstacle>, RestoreError> {
        let sealed = self.no_key.filter(|lsn| *lsn == from || span(*lsn).end == to);
        let timeline = path.timeline_at(from);
        Ok(sealed.map(|lsn| ReplayObstacle { timeline, from: lsn, to, why: "its key is gone".to_owned() }))
    }
}

/// The position of the record of this number, from 1.
fn at(number: u64) -> Lsn {
    Lsn::new(number * STEP)
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// A backup whose replay starts with record `start` and is consistent before record `stop`.
fn base(label: &str, start: u64, stop: u64) -> PlanBackup {
    PlanBackup {
        label: label.to_owned(),
        start: at(start),
        start_timeline: tli(1),
        stop: at(stop),
        stop_timeline: tli(1),
        started_at: PgTime::from_pg_micros(0),
        required: RequiredSettings { max_connections: 100, ..RequiredSettings::default() },
        logical_bytes: 1 << 30,
    }
}

fn ask(log: &Log, bases: &[PlanBackup], target: RecoveryTarget, exclusive: bool) -> RestorePlan {
    asked(log, bases, &RestoreRequest::new(target, exclusive).unwrap())
}

fn asked(log: &Log, bases: &[PlanBackup], request: &RestoreRequest) -> RestorePlan {
    make_plan(PlanInput { cluster: "main", bases, histories: &[], facts: log }, request).unwrap()
}

/// The restore of a plan that has one.
fn proved(plan: &RestorePlan) -> &ProvedRestore {
    plan.restore().unwrap_or_else(|| panic!("{}", plan.reason()))
}

fn stop(plan: &RestorePlan) -> Option<RecoveryStop> {
    plan.restore().map(|restore| restore.stop)
}

fn backup(plan: &RestorePlan) -> Option<&str> {
    plan.restore().map(|restore| restore.backup.as_str())
}

/// Where the target of an unreachable plan is.
fn place(plan: &RestorePlan) -> &TargetPlace {
    match &plan.outcome {
        PlanOutcome::Unreachable(target) => &target.place,
        other => panic!("{other:?}"),
    }
}

fn time(micros: i64) -> RecoveryTarget {
    RecoveryTarget::Time(PgTime::from_pg_micros(micros))
}

fn nearest(target: RecoveryTarget) -> RestoreRequest {
    RestoreRequest::new(target, false).unwrap().or_nearest(true)
}

/// Records 1 to 8; the time of the fifth is ahead of the sixth's.
fn busy() -> Log {
    Log::of([
        What::Other,
        What::Commit(10, 100),
        What::Abort(11, 200),
        What::Other,
        What::Commit(12, 500),
        What::Commit(13, 400),
        What::Point("p"),
        What::Commit(14, 600),
    ])
}

#[test]
fn a_time_becomes_the_first_ending_beyond_it_in_log_order() {
    let (log, bases) = (busy(), [base("a", 1, 2)]);
    for (micros, exclusive, stop) in [
        (199, false, at(3)),
        (200, false, at(5)),
        (200, true, at(3)),
        (400, false, at(5)),
        (450, false, at(5)),
        (500, false, at(8)),
        (500, true, at(5)),
        (599, false, at(8)),
        (600, true, at(8)),
    ] {
        let plan = ask(&log, &bases, time(micros), exclusive);
        assert_eq!(proved(&plan).stop, RecoveryStop::Before(stop), "{micros} {exclusive}");
        assert!(matches!(plan.outcome, PlanOutcome::Target(_)), "{micros} {exclusive}");
    }
    let plan = ask(&log, &bases, time(450), false);
    assert_eq!(plan.commits().last.unwrap().xid, Xid::new(10), "an abort is no commit");
    assert_eq!(plan.commits().next.unwrap().xid, Xid::new(12));
}

#[test]
fn a_time_after_the_last_ending_is_said_at_once_and_the_newest_point_offered() {
    let (log, bases) = (busy(), [base("a", 1, 2)]);
    let plan = ask(&log, &bases, time(600), false);
    let TargetPlace::PastEnd { nearest_before: Some(near) } = place(&plan) else { panic!("{plan:?}") };
    assert!(plan.reason().contains("the last archived commit is transaction 14"), "{}", plan.reason());
    assert_eq!((near.lsn(), near.time), (at(8), Some(PgTime::from_pg_micros(600))));
    assert_eq!(near.options(), "--target-lsn 0/800000 --target-timeline 1");
    let plan = asked(&log, &bases, &nearest(time(600)));
    let PlanOutcome::OtherPoint { restore, missed } = &plan.outcome else { panic!("{plan:?}") };
    assert_eq!(restore.stop, RecoveryStop::After(at(8)));
    assert_eq!(plan.reason(), format!("{missed}; going to the newest point before it"));
    assert!(matches!(asked(&log, &bases, &nearest(time(599))).outcome, PlanOutcome::Target(_)));
}

#[test]
fn a_log_is_idle_only_if_nothing_is_missing_behind_its_last_commit() {
    let (log, bases) = (busy(), [base("a", 1, 2)]);
    let holed = Log { missing: vec![(at(6), at(7))], ..busy() };
    let idle = |log: &Log, micros| ask(log, &bases, time(micros), false).idle_since().map(PgTime::pg_micros);
    assert_eq!((idle(&log, 600), idle(&log, 9000), idle(&log, 599)), (Some(600), Some(600), None));
    assert_eq!((idle(&holed, 9000), idle(&holed, 599)), (None, None));
}

#[test]
fn an_old_time_from_a_clock_that_was_ahead_does_not_send_now_into_the_past() {
    let other = || What::Other;
    let log = Log::of([
        other(),
        What::Commit(10, 9000),
        What::Commit(11, 100),
        other(),
        other(),
        other(),
        What::Commit(12, 200),
    ]);
    let bases = [base("old", 1, 2), base("new", 6, 7)];
    let plan = asked(&log, &bases, &nearest(time(8000)));
    assert_eq!((backup(&plan), stop(&plan)), (Some("new"), Some(RecoveryStop::After(at(7)))));
    assert_eq!(stop(&ask(&log, &bases, time(150), false)), Some(RecoveryStop::Before(at(7))));
    assert_eq!(
        stop(&ask(&log, &bases, time(50), false)),
        Some(RecoveryStop::Before(at(2))),
        "the newer backup has a later commit"
    );
}

#[test]
fn a_backup_that_holds_a_later_commit_is_no_way_to_an_earlier_time() {
    let log = Log::of([
        What::Other,
        What::Commit(9, 90),
        What::Commit(10, 200),
        What::Commit(11, 199),
        What::Other,
        What::Commit(12, 300),
    ]);
    let bases = [base("old", 1, 2), base("new", 5, 6)];
    let chosen = |micros| backup(&ask(&log, &bases, time(micros), false)).map(str::to_owned);
    assert_eq!(chosen(198).as_deref(), Some("old"));
    assert_eq!(chosen(199).as_deref(), Some("old"), "transaction 10 got its place before 11 and its time after");
    assert_eq!(chosen(200).as_deref(), Some("new"));
    let bare = ask(&Log::of([What::Other, What::Other, What::Commit(9, 90)]), &[base("new", 1, 2)], time(-1), false);
    assert!(!bare.is_reachable(), "the backup was begun at 0: what had been committed by then is in it");
}

#[test]
fn transactions_names_and_positions_stop_at_their_record() {
    let (log, bases) = (busy(), [base("a", 1, 2)]);
    for (target, exclusive, stop) in [
        (RecoveryTarget::Xid(Xid::new(12)), false, RecoveryStop::After(at(5))),
        (RecoveryTarget::Xid(Xid::new(12)), true, RecoveryStop::Before(at(5))),
        (RecoveryTarget::Xid(Xid::new(11)), false, RecoveryStop::After(at(3))),
        (RecoveryTarget::Name("p".into()), false, RecoveryStop::After(at(7))),
        (RecoveryTarget::Name("p".into()), true, RecoveryStop::Before(at(7))),
        (RecoveryTarget::Lsn(at(4)), false, RecoveryStop::After(at(4))),
        (RecoveryTarget::Lsn(at(4)), true, RecoveryStop::Before(at(4))),
        (RecoveryTarget::Lsn(at(4).saturating_add(1)), false, RecoveryStop::After(at(5))),
        (RecoveryTarget::Latest, false, RecoveryStop::After(at(8))),
        (RecoveryTarget::Immediate, false, RecoveryStop::Consistent(at(2))),
    ] {
        let plan = ask(&log, &bases, target.clone(), exclusive);
        assert_eq!(proved(&plan).stop, stop, "{target:?} {exclusive}");
    }
    let inclusive = ask(&log, &bases, RecoveryTarget::Xid(Xid::new(12)), false);
    assert_eq!(inclusive.commits().last.unwrap().xid, Xid::new(12));
    assert_eq!(inclusive.commits().next.unwrap().xid, Xid::new(13));
    let mut twice = busy();
    twice.records.push((at(9), What::Point("p")));
    let request = RestoreRequest::new(RecoveryTarget::Name("p".into()), false).unwrap();
    let world = PlanInput { cluster: "main", bases: &bases, histories: &[], facts: &twice };
    let error = make_plan(world, &request).unwrap_err();
    assert!(matches!(&error, RestoreError::AmbiguousName { positions, .. } if positions.len() == 2), "{error}");
    for (target, reason) in [
        (RecoveryTarget::Xid(Xid::new(99)), "did not end"),
        (RecoveryTarget::Name("q".into()), "is not in the archived log"),
        (RecoveryTarget::Lsn(at(9)), "after the end of what is archived"),
    ] {
        let plan = ask(&log, &bases, target, false);
        assert!(!plan.is_reachable() && plan.reason().contains(reason), "{}", plan.reason());
    }
}

#[test]
fn the_base_is_the_newest_that_is_consistent_before_the_stop() {
    let log = busy();
    let bases = [base("b", 4, 6), base("a", 1, 2), base("c", 7, 8)];
    for (target, exclusive, label) in [
        (RecoveryTarget::Lsn(at(4)), false, Some("a")),
        (RecoveryTarget::Lsn(at(5)), false, Some("b")),
        (RecoveryTarget::Lsn(at(5)), true, Some("a")),
        (RecoveryTarget::Lsn(at(6)), true, Some("b")),
        (RecoveryTarget::Lsn(at(7)), false, Some("c")),
        (RecoveryTarget::Lsn(at(8)), false, Some("c")),
        (RecoveryTarget::Lsn(at(1)), true, None),
        (time(150), false, Some("a")),
        (time(599), false, Some("c")),
        (RecoveryTarget::Latest, false, Some("c")),
        (RecoveryTarget::Immediate, false, Some("c")),
    ] {
        let plan = ask(&log, &bases, target.clone(), exclusive);
        assert_eq!(backup(&plan), label, "{target:?} {exclusive}: {}", plan.reason());
    }
    let early = ask(&log, &bases, RecoveryTarget::Lsn(at(1)), true);
    assert_eq!(early.nearest_before(), None);
    assert_eq!(early.nearest_after().unwrap().options(), "--target-immediate --backup a");
    let forced = RestoreRequest::new(RecoveryTarget::Latest, false).unwrap().from_backup(Some("a".into()));
    assert_eq!(backup(&asked(&log, &bases, &forced)), Some("a"));
    let unknown = RestoreRequest::new(RecoveryTarget::Latest, false).unwrap().from_backup(Some("z".into()));
    let world = PlanInput { cluster: "main", bases: &bases, histories: &[], facts: &log };
    assert!(matches!(make_plan(world, &unknown), Err(RestoreError::UnknownBackup { .. })));
}

#[test]
fn a_hole_before_the_target_is_named_with_the_points_on_both_sides() {
    let mut log = busy();
    log.missing.push((at(4), at(5)));
    let bases = [base("a", 1, 2), base("b", 6, 7)];
    let plan = ask(&log, &bases, RecoveryTarget::Lsn(at(6)), true);
    assert!(!plan.is_reachable() && plan.reason().contains("0/400000 to 0/500000"), "{}", plan.reason());
    assert_eq!(place(&plan).stop(), Some(RecoveryStop::Before(at(6))), "it is resolved all the same");
    assert_eq!(plan.nearest_before().unwrap().lsn(), at(3));
    assert_eq!(plan.nearest_after().unwrap().lsn(), at(7));
    let latest = ask(&log, &bases[..1], RecoveryTarget::Latest, false);
    assert_eq!(stop(&latest), Some(RecoveryStop::After(at(3))));
    assert!(proved(&latest).hole_follows, "a server that reads ahead would fall into it");
    assert!(!proved(&ask(&log, &bases, RecoveryTarget::Latest, false)).hole_follows);
}

#[test]
fn a_stretch_of_minimal_wal_is_an_obstacle() {
    let log = Log::of([What::Other, What::Other, What::Minimal, What::Commit(9, 9), What::Commit(10, 10)]);
    let bases = [base("a", 1, 2)];
    let plan = ask(&log, &bases, RecoveryTarget::Xid(Xid::new(9)), false);
    assert!(plan.reason().contains("wal_level=minimal"), "{}", plan.reason());
    assert_eq!(stop(&ask(&log, &bases, RecoveryTarget::Latest, false)), Some(RecoveryStop::After(at(2))));
}

#[test]
fn settings_are_the_largest_of_the_backup_and_the_log_it_replays() {
    let log = Log::of([What::Other, What::Settings(300), What::Settings(200), What::Other, What::Settings(900)]);
    let settings = |start, target| {
        let plan = ask(&log, &[base("a", start, start + 1)], target, false);
        proved(&plan).required_settings.max_connections
    };
    assert_eq!(settings(1, RecoveryTarget::Lsn(at(4))), 300);
    assert_eq!(settings(1, RecoveryTarget::Lsn(at(5))), 900);
    assert_eq!(settings(3, RecoveryTarget::Lsn(at(4))), 200);
}

#[test]
fn without_any_backup_the_target_is_resolved_and_the_want_said() {
    let plan = ask(&busy(), &[], time(450), false);
    assert!(!plan.is_reachable() && plan.reason().contains("no backup"), "{}", plan.reason());
    assert_eq!(place(&plan).stop().map(RecoveryStop::lsn), Some(at(5)));
    assert_eq!(plan.commits().next.unwrap().xid, Xid::new(12));
}

#[test]
fn a_moment_before_every_backup_is_found_wherever_it_is() {
    // The moment is far before what a backup looks back on.
    let commits = (1..12).map(|n| What::Commit(n, i64::from(n) * 100));
    let log = Log::of(commits);
    let plan = ask(&log, &[base("a", 9, 10)], time(350), false);
    assert!(
        !plan.is_reachable() && plan.reason().contains("is at 0/400000, before the end of the oldest backup"),
        "{}",
        plan.reason()
    );
    let TargetPlace::WithoutBackup { stop, nearest_after: Some(after) } = place(&plan) else { panic!("{plan:?}") };
    assert_eq!((stop.lsn(), plan.commits().last.unwrap().xid), (at(4), Xid::new(3)));
    assert_eq!(plan.commits().next.unwrap().xid, Xid::new(4), "the very next, not one near the backup");
    assert_eq!(after.options(), "--target-immediate --backup a");
    let xid = ask(&log, &[base("a", 9, 10)], RecoveryTarget::Xid(Xid::new(5)), false);
    assert!(xid.reason().contains("is at 0/500000, before the end of the oldest backup"), "{}", xid.reason());
    assert!(xid.nearest_after().is_some());
}

#[test]
fn a_segment_whose_key_is_gone_is_an_obstacle() {
    let (log, bases) = (Log { no_key: Some(at(1)), ..busy() }, [base("a", 1, 2)]);
    let plan = ask(&log, &bases, RecoveryTarget::Lsn(at(4)), false);
    assert!(!plan.is_reachable() && plan.reason().contains("its key is gone"), "{}", plan.reason());
}

#[test]
fn a_place_without_room_is_no_place() {
    let (log, bases) = (busy(), [base("a", 1, 2)]);
    let plan = ask(&log, &bases, RecoveryTarget::Lsn(at(4)), false);
    let (size, needed) = (SegmentSize::new(1 << 20).unwrap(), (1 << 30) + (4 << 20));
    let tight = plan.clone().with_free_space(needed, size);
    assert!(proved(&tight).room.unwrap().is_enough());
    let full = plan.with_free_space(needed - 1, size);
    let PlanOutcome::Refused { restore, reason } = full.outcome else { panic!("{full:?}") };
    assert!(reason.contains("can be reached, but not there: ") && reason.ends_with("are free"), "{reason}");
    assert!(!restore.room.unwrap().is_enough());
}

#[test]
fn only_backups_on_the_way_to_the_timeline_count() {
    let log = busy();
    let history = TimelineHistory::parse(tli(2), "1\t0/400000\tno recovery target specified\n").unwrap();
    let ahead = PlanBackup { label: "ahead".into(), ..base("", 5, 6) };
    let bases = [base("a", 1, 2), ahead.clone()];
    let world = PlanInput { cluster: "main", bases: &bases, histories: std::slice::from_ref(&history), facts: &log };
    let on = |timeline| RestoreRequest::new(RecoveryTarget::Lsn(at(7)), false).unwrap().on_timeline(timeline);
    let latest = make_plan(world, &on(TargetTimeline::Latest)).unwrap();
    assert_eq!((latest.timeline(), backup(&latest)), (tli(2), Some("a")), "the other is after the fork");
    let first = make_plan(world, &on(TargetTimeline::Id(tli(1)))).unwrap();
    assert_eq!((first.timeline(), backup(&first)), (tli(1), Some("ahead")));
    let current = make_plan(world, &on(TargetTimeline::Current)).unwrap();
    assert_eq!((current.timeline(), backup(&current)), (tli(1), Some("ahead")));
    let unknown = make_plan(world, &on(TargetTimeline::Id(tli(7))));
    assert!(matches!(unknown, Err(RestoreError::UnknownTimeline { .. })), "{unknown:?}");
    let lonely = PlanInput { bases: std::slice::from_ref(&ahead), ..world };
    let none = make_plan(lonely, &on(TargetTimeline::Latest)).unwrap();
    assert!(none.reason().contains("no backup lies on the way to timeline 2"), "{}", none.reason());
}

#[test]
fn commits_on_a_timeline_that_is_not_followed_are_told_of() {
    let log = busy();
    let history = TimelineHistory::parse(tli(2), "1\t0/400000\tno recovery target specified\n").unwrap();
    let bases = [base("a", 1, 2)];
    let world = PlanInput { cluster: "main", bases: &bases, histories: std::slice::from_ref(&history), facts: &log };
    let on = |timeline| RestoreRequest::new(RecoveryTarget::Lsn(at(7)), false).unwrap().on_timeline(timeline);
    let latest = make_plan(world, &on(TargetTimeline::Latest)).unwrap();
    let [note] = latest.notes.as_slice() else { panic!("{:?}", latest.notes) };
    assert!(note.contains("timeline 1 has commits") && note.contains("from 0/400000 on"), "{note}");
    assert!(note.contains("--target-timeline 1"), "{note}");
    let alone = PlanInput { histories: &[], ..world };
    assert!(make_plan(alone, &on(TargetTimeline::Latest)).unwrap().notes.is_empty());
}

#[test]
fn the_document_shows_commits_and_positions_as_the_manual_does() {
    let plan = ask(&busy(), &[base("a", 1, 2)], time(450), false);
    let plan = serde_json::to_value(RestorePlanDocument::from(&plan)).unwrap();
    assert_eq!(plan["first_commit_after"]["xid"], 12);
    assert_eq!(plan["first_commit_after"]["lsn"], "0/500000");
    assert_eq!(plan["nearest_before"], serde_json::Value::Null);
}

/// The documents were printed by walkeep when a plan was one flat structure. Scripts read them.
#[test]
fn each_outcome_prints_the_document_that_scripts_know() {
    let holed = Log { missing: vec![(at(4), at(5))], ..busy() };
    let spaces = Log::of([What::Other, What::Other, What::Tablespace(7), What::Commit(3, 3)]);
    let (one, two) = ([base("a", 1, 2)], [base("a", 1, 2), base("b", 6, 7)]);
    let request = |target| RestoreRequest::new(target, false).unwrap();
    let (size, enough) = (SegmentSize::new(1 << 20).unwrap(), 1 << 40);
    let plans = [
        asked(&busy(), &one, &request(RecoveryTarget::Xid(Xid::new(12)))).with_free_space(enough, size),
        asked(&busy(), &one, &nearest(time(600))),
        asked(&spaces, &one, &request(RecoveryTarget::Latest)).with_free_space(1 << 20, size),
        asked(&spaces, &one, &nearest(time(9))).with_free_space(enough, size).refused(&"/spaces/7 is not empty"),
        asked(&holed, &two, &RestoreRequest::new(RecoveryTarget::Lsn(at(6)), true).unwrap()),
        asked(&busy(), &one, &request(time(600))),
        asked(&busy(), &one, &request(time(-1))),
        asked(&busy(), &one, &request(RecoveryTarget::Xid(Xid::new(99)))),
    ];
    let documents: Vec<RestorePlanDocument<'_>> = plans.iter().map(RestorePlanDocument::from).collect();
    let printed = serde_json::to_string_pretty(&documents).unwrap();
    assert_eq!(printed.trim_end(), include_str!("testdata/documents.json").trim_end());
}

/// What PostgreSQL does with a time, record by record from the redo position: consistency first, then
/// `recoveryStopsBefore`.
fn replay(log: &Log, base: &PlanBackup, time: i64, exclusive: bool) -> Option<Lsn> {
    for ending in log.endings(base.start) {
        let micros = ending.time.pg_micros();
        if if exclusive { micros >= time } else { micros > time } {
            return (ending.lsn >= base.stop).then_some(ending.lsn);
        }
    }
    None
}

proptest! {
    #[test]
    fn a_plan_for_a_time_stops_where_replay_from_its_base_does(
        times in proptest::collection::vec(0..40i64, 1..30),
        starts in proptest::collection::vec((1..30u64, 0..5u64), 1..4),
        wanted in 0..40i64,
        exclusive: bool,
    ) {
        let log = Log::of((3..).zip(&times).map(|(xid, time)| What::Commit(xid, *time)));
        let bases: Vec<PlanBackup> = starts.iter().enumerate().map(|(i, (start, len))| base(&i.to_string(), *start, start + len)).collect();
        let plan = ask(&log, &bases, time(wanted), exclusive);
        if let Some(restore) = plan.restore() {
            let base = bases.iter().find(|base| base.label == restore.backup).unwrap();
            prop_assert_eq!(Some(restore.stop.lsn()), replay(&log, base, wanted, exclusive));
            // No newer backup would do: its replay stops too early or never, or it holds a commit that is too late.
            let late = |time: i64| if exclusive { time >= wanted } else { time > wanted };
            for newer in bases.iter().filter(|newer| newer.stop > base.stop) {
                let held = log.endings(Lsn::INVALID).any(|ending| ending.lsn < newer.stop && late(ending.time.pg_micros()));
                prop_assert!(held || replay(&log, newer, wanted, exclusive).is_none());
            }
        }
    }
}

#[test]
fn tablespaces_made_between_the_backup_and_the_stop_are_named() {
    let log = Log::of([
        What::Tablespace(1),
        What::Tablespace(2),
        What::Commit(10, 100),
        What::Tablespace(3),
        What::Commit(11, 200),
    ]);
    let made = |target, exclusive| {
        let plan = ask(&log, &[base("a", 2, 3)], target, exclusive);
        let made: Vec<u32> = proved(&plan).tablespaces_made.iter().map(|made| made.tablespace).collect();
        assert_eq!(made.len(), plan.notes.iter().filter(|note| note.contains("/spaces/")).count());
        made
    };
    assert_eq!(made(RecoveryTarget::Latest, false), [2, 3]);
    assert_eq!(made(RecoveryTarget::Lsn(at(4)), false), [2, 3]);
    assert_eq!(made(RecoveryTarget::Lsn(at(4)), true), [2]);
}
