//! What a retention leaves: pure. Backups, histories and the window's beginning in, verdicts out.
//!
//! Every moment from the window's beginning on stays as restorable as it was. So of the backups that ended before it,
//! the newest that can be restored stays on each way to a timeline that is still alive; whatever else is older goes. Of
//! the log everything stays that follows a kept backup on any living way, and whatever is younger than the window
//! itself.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::vault::retention::{KeepReason, before_window};

/// A backup, as far as retention cares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetentionBackup {
    /// Its name.
    pub label: String,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start: Lsn,
    /// From where on it is consistent.
    pub stop: Lsn,
    /// When its last byte had been read.
    pub finished_at: Timestamp,
    /// Whether the log it needs to become consistent is there.
    pub restorable: bool,
}

/// What is decided from.
#[derive(Clone, Copy, Debug)]
pub struct RetentionInput<'a> {
    /// All backups.
    pub bases: &'a [RetentionBackup],
    /// The archived histories; timeline 1 has none.
    pub histories: &'a [TimelineHistory],
    /// The timelines that log is archived of, each with the moment its newest segment arrived.
    pub alive: &'a BTreeMap<TimelineId, Timestamp>,
    /// The size of a segment.
    pub size: SegmentSize,
    /// Where the window begins.
    pub since: Timestamp,
    /// Backups that are pinned, by label.
    pub pinned: &'a BTreeSet<String>,
    /// Backups that can be restored, of which at least so many stay, the newest ones.
    pub minimum: usize,
    /// Backups that were taken away a short time ago, whose WAL stays for as long as their packs.
    pub leaving: &'a [RetentionBackup],
    /// Whether WAL of what goes now stays for a while.
    pub grace: bool,
    /// WAL that arrived since this moment stays: a backup under way may need it.
    pub wal_since: Timestamp,
}

/// What stays and what goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RetentionDecision {
    /// Backups that stay.
    pub keep: BTreeMap<String, KeepReason>,
    /// Backups that go, oldest first.
    pub expire: Vec<String>,
    /// WAL that arrived since this moment stays.
    wal_since: Timestamp,
    /// Of each timeline, the stretches of segments that kept backups need, first and last.
    needed: BTreeMap<TimelineId, Vec<(SegmentNo, SegmentNo)>>,
    /// Timelines of which nothing may go.
    unknown: BTreeSet<TimelineId>,
}

impl RetentionDecision {
    /// Whether a segment, or a file about it, may go.
    #[must_use]
    pub fn may_remove(&self, timeline: TimelineId, number: SegmentNo, arrived: Timestamp) -> bool {
        // Without a backup there is no telling what somebody restores from.
        let any = !self.keep.is_empty();
        let young = arrived >= self.wal_since;
        let needed = self.needed.get(&timeline).into_iter().flatten();
        let is_needed = needed.into_iter().any(|(first, last)| (*first..=*last).contains(&number));
        any && !young && !is_needed && !self.unknown.contains(&timeline)
    }
}

/// Decides.
#[must_use]
pub fn decide(world: RetentionInput<'_>) -> RetentionDecision {
    let known = known_paths(world);
    let living = living_paths(world, &known);
    let anchors: Vec<Option<&RetentionBackup>> = living.iter().map(|path| anchor_backup(world, path)).collect();
    let wal_since = before_window(world.since).min(world.wal_since);
    let mut verdict = RetentionDecision { wal_since, ..RetentionDecision::default() };
    verdict.unknown = world.alive.keys().copied().filter(|timeline| !known.contains_key(timeline)).collect();
    let mut gone: Vec<&RetentionBackup> = Vec::new();
    for base in world.bases {
        let reason = keep_reason(world, base, &living, &anchors, known.contains_key(&base.timeline));
        match reason.or_else(|| world.pinned.contains(&base.label).then_some(KeepReason::Pinned)) {
            Some(why) => drop(verdict.keep.insert(base.label.clone(), why)),
            None => gone.push(base),
        }
    }
    gone.sort_by(|a, b| a.finished_at.cmp(&b.finished_at).then_with(|| a.label.cmp(&b.label)));
    let is_kept = |base: &&RetentionBackup| base.restorable && verdict.keep.contains_key(&base.label);
    let mut lacking = world.minimum.saturating_sub(world.bases.iter().filter(is_kept).count());
    while lacking > 0
        && let Some(newest) = gone.iter().rposition(|base| base.restorable)
    {
        verdict.keep.insert(gone.remove(newest).label.clone(), KeepReason::Minimum);
        lacking = lacking.saturating_sub(1);
    }
    verdict.expire = gone.into_iter().map(|base| base.label.clone()).collect();
    let stays = |base: &&RetentionBackup| world.grace || verdict.keep.contains_key(&base.label);
    let with_wal: Vec<&RetentionBackup> = world.bases.iter().filter(stays).chain(world.leaving).collect();
    for base in with_wal {
        if let Some(own) = known.get(&base.timeline) {
            add_needed_segments(&mut verdict.needed, own, world.size, base.start, base.stop);
        } else {
            verdict.unknown.insert(base.timeline);
        }
        for path in living.iter().filter(|path| is_on_path(base, path)) {
            add_needed_segments(&mut verdict.needed, path, world.size, base.start, Lsn::MAX);
        }
    }
    verdict
}

fn known_paths(world: RetentionInput<'_>) -> BTreeMap<TimelineId, TimelinePath> {
    let mut paths: BTreeMap<TimelineId, TimelinePath> =
        world.histories.iter().map(|history| (history.timeline, history.path())).collect();
    paths.insert(TimelineId::FIRST, TimelinePath::first());
    paths
}

/// The ways to timelines that may have a moment of the window. One that has a history and no log has just begun.
fn living_paths(world: RetentionInput<'_>, known: &BTreeMap<TimelineId, TimelinePath>) -> Vec<TimelinePath> {
    let newest = world.alive.values().max();
    let lives = |timeline: &TimelineId| match world.alive.get(timeline) {
        Some(arrived) => *arrived >= before_window(world.since) || Some(arrived) == newest,
        None => *timeline != TimelineId::FIRST || world.alive.is_empty(),
    };
    known.iter().filter(|(timeline, _)| lives(timeline)).map(|(_, path)| path.clone()).collect()
}

fn is_on_path(base: &RetentionBackup, path: &TimelinePath) -> bool {
    path.contains(base.timeline, base.start) && path.contains(base.timeline, base.stop)
}

fn ended_before_window(world: RetentionInput<'_>, base: &RetentionBackup) -> bool {
    base.finished_at <= before_window(world.since)
}

/// The newest backup on a way that ended before the window and can be restored.
fn anchor_backup<'a>(world: RetentionInput<'a>, path: &TimelinePath) -> Option<&'a RetentionBackup> {
    let fits = |base: &&RetentionBackup| base.restorable && ended_before_window(world, base) && is_on_path(base, path);
    world.bases.iter().filter(fits).max_by_key(|base| (base.stop, base.start))
}

/// Why a backup stays; `None` if it goes.
fn keep_reason(
    world: RetentionInput<'_>,
    base: &RetentionBackup,
    living: &[TimelinePath],
    anchors: &[Option<&RetentionBackup>],
    known: bool,
) -> Option<KeepReason> {
    if !known {
        return Some(KeepReason::Unknown);
    }
    if !ended_before_window(world, base) {
        return Some(KeepReason::Young);
    }
    let mut why = None;
    for (_, anchor) in living.iter().zip(anchors).filter(|(path, _)| is_on_path(base, path)) {
        match anchor {
            Some(anchor) if anchor.label == base.label => return Some(KeepReason::Anchor),
            Some(anchor) if anchor.stop >= base.stop => {}
            _ => why = Some(KeepReason::Irreplaceable),
        }
    }
    why
}

/// Notes every segment that recovery may ask for along a way from one position to another.
fn add_needed_segments(
    needed: &mut BTreeMap<TimelineId, Vec<(SegmentNo, SegmentNo)>>,
    path: &TimelinePath,
    size: SegmentSize,
    from: Lsn,
    to: Lsn,
) {
    for span in path.spans() {
        let end = span.end.map_or(to, |end| end.min(to));
        let begin = span.begin.max(from);
        // The segment in which a timeline begins may be asked for in the name of either.
        if size.segment_of(begin) <= size.segment_of(end) && span.end.is_none_or(|end| from <= end) && span.begin <= to
        {
            needed.entry(span.timeline).or_default().push((size.segment_of(begin), size.segment_of(end)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use jiff::{SignedDuration, Timestamp};

    use super::{RetentionBackup, RetentionInput, decide};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::{SegmentNo, SegmentSize};
    use crate::postgres::format::timeline::{HistoryEntry, TimelineHistory, TimelineId};
    use crate::vault::retention::KeepReason;

    const DAY: i64 = 86_400;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + day * DAY).unwrap()
    }

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).unwrap()
    }

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    /// A backup of a day, whose log begins in segment `day * 10`.
    fn base(day: i64, timeline: u32) -> RetentionBackup {
        let start = Lsn::new((u64::try_from(day).unwrap() * 10) << 20);
        let stop = start.saturating_add(1 << 20);
        RetentionBackup {
            label: format!("day{day}"),
            timeline: tli(timeline),
            start,
            stop,
            finished_at: at(day),
            restorable: true,
        }
    }

    fn kept(
        bases: &[RetentionBackup],
        histories: &[TimelineHistory],
        alive: &[(u32, i64)],
        since: i64,
    ) -> super::RetentionDecision {
        let alive: BTreeMap<TimelineId, Timestamp> = alive.iter().map(|(t, day)| (tli(*t), at(*day))).collect();
        decide(RetentionInput { since: at(since), ..input(bases, histories, &alive) })
    }

    /// Without pins, grace or backups under way.
    fn input<'a>(
        bases: &'a [RetentionBackup],
        histories: &'a [TimelineHistory],
        alive: &'a BTreeMap<TimelineId, Timestamp>,
    ) -> RetentionInput<'a> {
        static NO_PINS: BTreeSet<String> = BTreeSet::new();
        RetentionInput {
            bases,
            histories,
            alive,
            size: size(),
            since: Timestamp::MAX,
            pinned: &NO_PINS,
            minimum: 0,
            leaving: &[],
            grace: false,
            wal_since: Timestamp::MAX,
        }
    }

    #[test]
    fn a_pinned_backup_stays_with_the_wal_from_it_on() {
        let bases: Vec<RetentionBackup> = (1..=10).map(|day| base(day, 1)).collect();
        let (alive, pinned) = (BTreeMap::from([(tli(1), at(10))]), BTreeSet::from(["day2".to_owned()]));
        let verdict = decide(RetentionInput { since: at(7), pinned: &pinned, ..input(&bases, &[], &alive) });
        assert_eq!(verdict.keep["day2"], KeepReason::Pinned);
        assert_eq!(verdict.expire, ["day1", "day3", "day4", "day5"]);
        let goes = |number| verdict.may_remove(tli(1), SegmentNo::new(number), at(1));
        assert!(goes(19) && !goes(20) && !goes(22) && !goes(60), "no gap between it and the next one");
    }

    #[test]
    fn no_fewer_than_the_minimum_stay() {
        let mut bases: Vec<RetentionBackup> = (1..=5).map(|day| base(day, 1)).collect();
        bases[3].restorable = false;
        let alive = BTreeMap::from([(tli(1), at(5))]);
        let verdict = decide(RetentionInput { since: at(40), minimum: 3, ..input(&bases, &[], &alive) });
        assert_eq!(verdict.keep.keys().collect::<Vec<_>>(), ["day2", "day3", "day5"]);
        assert_eq!((verdict.keep["day5"], verdict.keep["day3"]), (KeepReason::Anchor, KeepReason::Minimum));
        assert!(!verdict.may_remove(tli(1), SegmentNo::new(20), at(1)), "to every moment");
        assert_eq!(decide(RetentionInput { minimum: 9, since: at(40), ..input(&bases, &[], &alive) }).expire, ["day4"]);
    }

    #[test]
    fn wal_of_what_goes_and_of_backups_under_way_stays_for_a_while() {
        let bases: Vec<RetentionBackup> = (1..=10).map(|day| base(day, 1)).collect();
        let alive = BTreeMap::from([(tli(1), at(10))]);
        let world = RetentionInput { since: at(7), ..input(&bases, &[], &alive) };
        let goes = |verdict: &super::RetentionDecision, number, day| {
            verdict.may_remove(tli(1), SegmentNo::new(number), at(day))
        };
        let graced = decide(RetentionInput { grace: true, ..world });
        assert_eq!(graced.expire.len(), 5, "the backups go");
        assert!(goes(&graced, 9, 1) && !goes(&graced, 10, 1), "their WAL stays");
        let leaving = decide(RetentionInput { bases: &bases[5..], leaving: &bases[3..5], ..world });
        assert!(goes(&leaving, 39, 1) && !goes(&leaving, 40, 1));
        let running = decide(RetentionInput { wal_since: at(3), ..world });
        assert!(goes(&running, 30, 2) && !goes(&running, 30, 3));
    }

    #[test]
    fn the_newest_backup_before_the_window_stays_and_older_ones_go() {
        let bases: Vec<RetentionBackup> = (1..=10).map(|day| base(day, 1)).collect();
        let verdict = kept(&bases, &[], &[(1, 10)], 7);
        assert_eq!(verdict.expire, ["day1", "day2", "day3", "day4", "day5"]);
        assert_eq!(verdict.keep["day6"], KeepReason::Anchor, "day7 ended less than an hour before");
        assert_eq!(verdict.keep["day7"], KeepReason::Young);
        let goes = |number, day| verdict.may_remove(tli(1), SegmentNo::new(number), at(day));
        assert!(goes(59, 1) && !goes(60, 1) && !goes(99, 1), "log from the anchor's start on");
        assert!(!goes(5, 8), "what arrived in the window");
    }

    #[test]
    fn a_stranded_backup_is_no_anchor() {
        let mut bases: Vec<RetentionBackup> = (1..=3).map(|day| base(day, 1)).collect();
        bases[2].restorable = false;
        let verdict = kept(&bases, &[], &[(1, 10)], 7);
        assert_eq!(verdict.expire, ["day1"]);
        assert_eq!((verdict.keep["day2"], verdict.keep["day3"]), (KeepReason::Anchor, KeepReason::Irreplaceable));
    }

    #[test]
    fn the_only_backup_stays_however_old_and_without_one_no_log_goes() {
        let verdict = kept(&[base(1, 1)], &[], &[(1, 1)], 300);
        assert_eq!(verdict.keep["day1"], KeepReason::Anchor);
        assert!(verdict.may_remove(tli(1), SegmentNo::new(3), at(1)));
        assert!(!verdict.may_remove(tli(1), SegmentNo::new(10), at(1)));
        assert!(!kept(&[], &[], &[(1, 1)], 300).may_remove(tli(1), SegmentNo::new(3), at(1)));
    }

    #[test]
    fn ancestors_stay_as_far_as_they_are_needed_and_dead_branches_go() {
        let fork = Lsn::new(45 << 20);
        let history = TimelineHistory {
            timeline: tli(2),
            entries: vec![HistoryEntry { timeline: tli(1), end: fork, reason: String::new() }],
        };
        // Day 5's backup is on the branch that was left; the cluster went on as timeline 2 from before it.
        let bases = [base(3, 1), base(4, 1), base(5, 1), base(8, 2)];
        let verdict = kept(&bases, std::slice::from_ref(&history), &[(1, 5), (2, 10)], 7);
        assert_eq!(verdict.expire, ["day3", "day5"]);
        assert_eq!(verdict.keep["day4"], KeepReason::Anchor);
        let goes = |timeline, number| verdict.may_remove(tli(timeline), SegmentNo::new(number), at(1));
        assert!(goes(1, 39) && !goes(1, 40) && !goes(1, 45) && goes(1, 46));
        assert!(!goes(2, 45) && goes(2, 44));
        // While the branch is young it stays restorable.
        let verdict = kept(&bases, std::slice::from_ref(&history), &[(1, 9), (2, 10)], 7);
        assert_eq!(verdict.expire, ["day3"]);
    }

    #[test]
    fn of_a_timeline_without_its_history_nothing_goes() {
        let verdict = kept(&[base(3, 7), base(8, 1)], &[], &[(1, 10), (7, 3)], 7);
        assert_eq!(verdict.keep["day3"], KeepReason::Unknown);
        assert!(!verdict.may_remove(tli(7), SegmentNo::new(1), at(1)));
    }

    #[test]
    fn the_window_may_begin_before_the_calendar() {
        let verdict = decide(RetentionInput {
            since: Timestamp::MIN.checked_add(SignedDuration::from_secs(1)).unwrap(),
            ..input(&[base(3, 1)], &[], &BTreeMap::new())
        });
        assert_eq!(verdict.keep["day3"], KeepReason::Young);
    }
}
