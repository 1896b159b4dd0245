use std::convert::Infallible;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::facts::unknown_archive;
use super::unprotected_wal::confirm_late;
use super::{HealthFacts, HealthReport, ServerWalStatus, SlotStatus, judge_facts};
use crate::base::clock::{Clock, ManualClock};
use crate::base::findings::{DiskSpace, Finding, FindingLevel};
use crate::postgres::archive::coverage::RepositoryCoverage;
use crate::postgres::archive::inventory::{ArchiveInventory, InventoryBackup, MissingWal, RecoveryWindow};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{HistoryEntry, TimelineHistory, TimelineId, TimelinePath};

fn now() -> Timestamp {
    "2026-11-22T14:00:00Z".parse().unwrap()
}

fn ago(hours: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_hours(hours)).unwrap()
}

/// A cluster of which everything is as it should be.
fn facts() -> HealthFacts {
    let backup = InventoryBackup {
        label: "20261122T020000Z-F".into(),
        started_at: ago(12),
        finished_at: ago(11),
        start_lsn: Lsn::new(0x100),
        stop_lsn: Lsn::new(0x200),
        timeline: TimelineId::FIRST,
        logical_bytes: 1,
        stored_bytes: 1,
        server_version: "15.12".into(),
        restorable: true,
        defects: None,
    };
    let window = RecoveryWindow {
        from_time: None,
        to_time: Some(PgTime::from_timestamp(ago(1))),
        from_lsn: Lsn::new(0x200),
        to_lsn: Lsn::new(0xA00),
        timeline: TimelineId::FIRST,
        backups: vec![backup.label.clone()],
    };
    let slot = SlotStatus {
        name: "walkeep".into(),
        active: true,
        wal_status: Some("reserved".into()),
        invalidation: None,
        lag_bytes: Some(0),
    };
    let server = ServerWalStatus {
        lsn: Some(Lsn::new(0xA00)),
        timeline: Some(TimelineId::FIRST),
        slot: Some(slot),
        ..ServerWalStatus::default()
    };
    HealthFacts {
        overview: ArchiveInventory {
            system_id: Some(SystemId::new(7)),
            backups: vec![backup],
            windows: vec![window],
            ..unknown_archive("main")
        },
        repositories: Vec::new(),
        archive_failure: None,
        server: Some(Ok(server)),
        unreachable: Vec::new(),
        set_aside: Vec::new(),
        disks: vec![DiskSpace { what: "the state".into(), path: "/".into(), free: 50 << 30, total: 100 << 30 }],
        schedule: Some("0 2 * * *".into()),
        now: now(),
    }
}

fn server(facts: &mut HealthFacts) -> &mut ServerWalStatus {
    facts.server.as_mut().unwrap().as_mut().unwrap()
}

fn set_slot(slot: &mut SlotStatus, status: &str, active: bool) {
    (slot.wal_status, slot.active) = (Some(status.to_owned()), active);
}

fn found<'h>(health: &'h HealthReport, subject: &str) -> &'h Finding {
    health.findings.iter().find(|finding| finding.subject == subject).unwrap()
}

#[test]
fn an_idle_cluster_is_healthy_however_old_its_last_commit() {
    let health = judge_facts(&facts());
    assert!(health.healthy, "{:?}", health.findings);
    assert!(health.findings.iter().all(|finding| finding.level == FindingLevel::Good), "{:?}", health.findings);
    assert_eq!((health.unprotected_seconds, health.unprotected_bytes), (Some(0), Some(0)));
    assert_eq!(health.backup_age_seconds, Some(11 * 3600));
}

/// Two repositories: what `second` lacks is in `local` for an hour.
fn repositories(facts: &mut HealthFacts) -> &mut RepositoryCoverage {
    let coverage = |name: &str, newest_lsn| RepositoryCoverage {
        repository: name.to_owned(),
        newest_lsn: Some(Lsn::new(newest_lsn)),
        ..RepositoryCoverage::default()
    };
    facts.repositories = vec![coverage("local", 0xA00), coverage("second", 0x900)];
    let second = &mut facts.repositories[1];
    second.lacking.segments = 2;
    second.lacking.first_segment = Some("A".to_owned());
    second.lacking.last_segment = Some("B".to_owned());
    second.lacking.since = Some(ago(1));
    second
}

#[test]
fn a_repository_that_lacks_something_is_bad_unless_it_is_on_its_way() {
    let mut facts = facts();
    repositories(&mut facts);
    let health = judge_facts(&facts);
    let bad = found(&health, "repository");
    assert!(!health.healthy && bad.level == FindingLevel::Bad, "{bad:?}");
    for part in [
        "second has WAL up to 0/900, 256 bytes less than another one,",
        "lacks 2 segments (A to B)",
        "for 60 min",
        "sync",
    ] {
        assert!(bad.text.contains(part), "{part}: {}", bad.text);
    }
    repositories(&mut facts).lacking.since = Some(now());
    assert!(judge_facts(&facts).healthy, "{:?}", judge_facts(&facts).findings);
    repositories(&mut facts).lacking.backups = vec!["20261122T020000Z-F".to_owned()];
    assert!(!judge_facts(&facts).healthy, "a backup is stored in all repositories at once");
    let second = repositories(&mut facts);
    *second =
        RepositoryCoverage { repository: "second".into(), unreachable: Some("no route".into()), ..Default::default() };
    let health = judge_facts(&facts);
    assert_eq!(health.findings[0].text, "second cannot be reached: no route");
}

#[test]
fn another_cluster_is_not_compared_by_its_positions() {
    let mut facts = facts();
    server(&mut facts).system_id = Some(SystemId::new(8));
    let health = judge_facts(&facts);
    let bad = &health.findings[0];
    assert!(!health.healthy && bad.text.contains("another cluster (system identifier 8)"), "{bad:?}");
    assert_eq!((health.unprotected_seconds, health.unprotected_bytes), (None, None));
    server(&mut facts).system_id = Some(SystemId::new(7));
    assert!(judge_facts(&facts).healthy);
}

#[test]
fn the_server_is_judged_without_the_archive() {
    let mut facts = facts();
    facts.overview = unknown_archive("main");
    facts.archive_failure = Some("no route".to_owned());
    let health = judge_facts(&facts);
    assert!(!health.healthy);
    let subjects: Vec<(&str, FindingLevel)> =
        health.findings.iter().map(|found| (found.subject, found.level)).collect();
    assert_eq!(
        subjects,
        [("archive", FindingLevel::Bad), ("receiver", FindingLevel::Good), ("disk", FindingLevel::Good)]
    );
}

#[test]
fn each_thing_that_is_wrong_makes_it_unhealthy_and_is_said() {
    let check = |wrong: &dyn Fn(&mut HealthFacts), words: &str| {
        let mut facts = facts();
        wrong(&mut facts);
        let health = judge_facts(&facts);
        assert!(!health.healthy, "{words}");
        let worst = &health.findings[0];
        assert!(worst.level == FindingLevel::Bad && worst.text.contains(words), "{words}: {worst:?}");
    };
    check(&|facts| server(facts).lsn = Some(Lsn::new(0xB00)), "256 bytes of WAL are on the server alone");
    check(&|facts| facts.overview.windows.clear(), "nothing can be restored");
    check(&|facts| facts.overview.backups[0].restorable = false, "cannot be restored");
    check(
        &|facts| {
            let backup = &mut facts.overview.backups[0];
            (backup.started_at, backup.finished_at) = (ago(37), ago(36));
        },
        "one was due 12 h 0 min ago",
    );
    check(&|facts| facts.overview.backups.clear(), "there is none that can be restored");
    check(
        &|facts| facts.unreachable.push(("offsite".into(), "no route".into())),
        "offsite cannot be reached: no route",
    );
    check(&|facts| facts.disks[0].free = 5 << 20, "free for the state");
    check(&|facts| facts.server = Some(Err("refused".into())), "cannot be asked: refused");
    check(&|facts| server(facts).failing = Some("0001".into()), "archive_command fails for 0001");
    check(&|facts| server(facts).slot = None, "no replication slot");
    let slot = |change: &'static dyn Fn(&mut SlotStatus)| {
        move |facts: &mut HealthFacts| change(server(facts).slot.as_mut().unwrap())
    };
    check(&slot(&|slot| slot.active = false), "not connected to slot walkeep");
    check(&slot(&|slot| set_slot(slot, "lost", false)), "Start walkeep receive");
    check(&slot(&|slot| set_slot(slot, "lost", true)), "the receiver is connected, but the server keeps no WAL for it");
    // Of a slot that is streamed from, the server shows the status that it had.
    check(&slot(&|slot| slot.invalidation = Some("wal_removed".into())), "slot walkeep is invalidated");
    check(&slot(&|slot| set_slot(slot, "unreserved", false)), "start walkeep receive now");
    check(&slot(&|slot| set_slot(slot, "unreserved", true)), "but the slot is about to lose WAL, or has lost it");
}

#[test]
fn a_gap_matters_until_a_backup_is_behind_it() {
    let gap = |from, to| gap_on(1, from, to);
    let level = |from, to| {
        let mut facts = facts();
        facts.overview.gaps.push(gap(from, to));
        found(&judge_facts(&facts), "gaps").level
    };
    assert_eq!(level(0x300, 0x400), FindingLevel::Bad);
    assert_eq!(level(0x10, 0x20), FindingLevel::Good, "before every backup that is kept");
    let mut facts = facts();
    facts.overview.gaps.push(gap(0x300, 0x400));
    let mut later = facts.overview.backups[0].clone();
    (later.label, later.start_lsn, later.stop_lsn) = ("later".into(), Lsn::new(0x500), Lsn::new(0x600));
    facts.overview.backups.push(later);
    assert!(judge_facts(&facts).healthy);
}

#[test]
fn without_a_connection_the_archive_alone_is_judged() {
    let mut facts = facts();
    facts.server = None;
    let health = judge_facts(&facts);
    assert!(health.healthy);
    assert_eq!(health.unprotected_seconds, Some(3600));
}

/// A gap, on the timeline of this number.
fn gap_on(timeline: u32, from: u64, to: u64) -> MissingWal {
    MissingWal {
        timeline: TimelineId::new(timeline).unwrap(),
        from_lsn: Lsn::new(from),
        to_lsn: Lsn::new(to),
        reason: "slot lost".into(),
        noticed_at: None,
    }
}

/// Timeline 2 left timeline 1 at 0/500.
fn forked() -> TimelinePath {
    let left = HistoryEntry { timeline: TimelineId::FIRST, end: Lsn::new(0x500), reason: String::new() };
    TimelineHistory { timeline: TimelineId::new(2).unwrap(), entries: vec![left] }.path()
}

#[test]
fn a_gap_is_bridged_by_a_backup_on_the_way_to_the_newest_timeline_alone() {
    let gaps = |(timeline, start): (u32, u64), gap: MissingWal| {
        let mut facts = facts();
        facts.overview.path = forked();
        let mut later = facts.overview.backups[0].clone();
        later.timeline = TimelineId::new(timeline).unwrap();
        (later.label, later.start_lsn, later.stop_lsn) = ("later".into(), Lsn::new(start), Lsn::new(start + 0x10));
        facts.overview.backups.push(later);
        facts.overview.gaps.push(gap);
        let health = judge_facts(&facts);
        let finding = found(&health, "gaps");
        (finding.level, finding.text.clone())
    };
    let (level, text) = gaps((1, 0x800), gap_on(2, 0x550, 0x560));
    assert!(
        level == FindingLevel::Bad && text.contains("0/550 to 0/560 on timeline 2"),
        "a backup of a timeline left: {text}"
    );
    assert_eq!(gaps((2, 0x600), gap_on(2, 0x550, 0x560)).0, FindingLevel::Warning);
    assert_eq!(gaps((2, 0x510), gap_on(1, 0x300, 0x400)).0, FindingLevel::Warning, "before the fork");
    assert_eq!(
        gaps((1, 0x800), gap_on(1, 0x300, 0x400)).0,
        FindingLevel::Bad,
        "before the fork, and no backup behind it"
    );
    // What timeline 1 misses behind the fork is missed by nobody on timeline 2.
    let (level, text) = gaps((2, 0x600), gap_on(1, 0x700, 0x900));
    assert_eq!(
        (level, text.as_str()),
        (FindingLevel::Good, "none on the way to timeline 2, 1 on timelines that were left")
    );
    assert_eq!(gaps((2, 0x600), gap_on(1, 0x480, 0x900)).0, FindingLevel::Warning, "it ends with the fork");
    assert_eq!(gaps((1, 0x800), gap_on(1, 0x480, 0x900)).0, FindingLevel::Bad);
}

#[test]
fn a_gap_on_a_way_without_any_backup_is_bad() {
    let mut facts = facts();
    facts.overview.path = forked();
    (facts.overview.backups[0].start_lsn, facts.overview.backups[0].stop_lsn) = (Lsn::new(0x800), Lsn::new(0x810));
    facts.overview.gaps.push(gap_on(2, 0x550, 0x560));
    assert_eq!(found(&judge_facts(&facts), "gaps").level, FindingLevel::Bad);
}

#[test]
fn what_lies_behind_a_gap_is_not_said_to_be_on_the_server_alone() {
    let mut facts = facts();
    server(&mut facts).lsn = Some(Lsn::new(0xB00));
    facts.overview.gaps.push(gap_on(1, 0xA00, 0xA80));
    let health = judge_facts(&facts);
    let finding = found(&health, "protection");
    assert!(finding.level == FindingLevel::Bad && finding.text.contains("cannot be restored"), "{finding:?}");
}

#[test]
fn positions_of_two_timelines_are_not_compared() {
    // Promoted before it had what the archive has.
    let promoted = |last_commit: Option<i64>| {
        let mut facts = facts();
        (server(&mut facts).timeline, server(&mut facts).lsn) = (TimelineId::new(2), Some(Lsn::new(0x980)));
        let minutes = |minutes| now().checked_sub(SignedDuration::from_mins(minutes)).unwrap();
        facts.overview.windows[0].to_time = last_commit.map(|ago| PgTime::from_timestamp(minutes(ago)));
        judge_facts(&facts)
    };
    let late = promoted(Some(6));
    let finding = found(&late, "protection");
    assert!(finding.text.contains("on timeline 2, what can be restored on timeline 1"), "{finding:?}");
    assert!(!late.healthy && finding.level == FindingLevel::Bad, "{finding:?}");
    assert_eq!((late.unprotected_bytes, late.unprotected_seconds), (None, Some(360)));
    assert_eq!(found(&promoted(Some(2)), "protection").level, FindingLevel::Warning, "walkeep may be following");
    assert_eq!(found(&promoted(None), "protection").level, FindingLevel::Bad, "nothing says that it is recent");
    // Where timeline 2 is archived, its positions count.
    let mut followed = facts();
    followed.overview.windows[0].timeline = TimelineId::new(2).unwrap();
    server(&mut followed).timeline = TimelineId::new(2);
    assert_eq!(found(&judge_facts(&followed), "protection").level, FindingLevel::Good);
}

#[test]
fn a_standby_does_not_know_what_is_protected() {
    let standby = |lsn: Option<u64>| {
        let mut facts = facts();
        let server = server(&mut facts);
        (server.standby, server.timeline, server.lsn) = (true, None, lsn.map(Lsn::new));
        judge_facts(&facts)
    };
    for lsn in [Some(0xA00), Some(0x900), None] {
        let health = standby(lsn);
        let finding = found(&health, "protection");
        assert!(
            finding.level == FindingLevel::Warning && finding.text.contains("is a standby"),
            "{lsn:?}: {finding:?}"
        );
        assert_eq!((health.healthy, health.unprotected_bytes), (true, None), "{lsn:?}");
        assert_eq!(health.unprotected_seconds, Some(3600), "{lsn:?}");
    }
    let ahead = standby(Some(0xB00));
    assert_eq!((ahead.healthy, ahead.unprotected_bytes), (false, Some(0x100)));
}

#[test]
fn the_segment_under_way_is_no_older_than_archive_timeout() {
    let judged = |change: &dyn Fn(&mut HealthFacts)| {
        let mut facts = facts();
        facts.overview.segment_size = Some(SegmentSize::DEFAULT);
        let server = server(&mut facts);
        (server.lsn, server.archives, server.archive_timeout_seconds) = (Some(Lsn::new(0xB00)), true, Some(60));
        change(&mut facts);
        judge_facts(&facts)
    };
    let well = judged(&|_| {});
    assert!(well.healthy, "{:?}", well.findings);
    assert_eq!((well.unprotected_bytes, well.unprotected_seconds), (Some(0x100), Some(60)));
    let level = |change: &dyn Fn(&mut HealthFacts)| found(&judged(change), "protection").level;
    assert_eq!(level(&|facts| server(facts).archive_timeout_seconds = None), FindingLevel::Bad);
    assert_eq!(
        level(&|facts| server(facts).archive_timeout_seconds = Some(600)),
        FindingLevel::Bad,
        "longer than we wait"
    );
    assert_eq!(level(&|facts| server(facts).failing = Some("0001".into())), FindingLevel::Bad);
    let next = Some(Lsn::new(SegmentSize::DEFAULT.get()));
    assert_eq!(level(&|facts| server(facts).lsn = next), FindingLevel::Bad, "a whole segment waits");
}

#[tokio::test]
async fn what_was_written_a_moment_ago_is_waited_for() {
    let late = || {
        let mut facts = facts();
        server(&mut facts).lsn = Some(Lsn::new(0xB00));
        facts
    };
    let clock = ManualClock::jumping_from(now());
    let mut arrived = late().overview;
    arrived.windows[0].to_lsn = Lsn::new(0xB00);
    let settled_facts = confirm_late(&clock, late(), async { Ok::<_, Infallible>(arrived) }).await.unwrap();
    assert!(judge_facts(&settled_facts).healthy, "{:?}", judge_facts(&settled_facts).findings);
    assert_eq!((clock.elapsed(), settled_facts.now), (Duration::from_secs(15), clock.now()));
    // What is still missing is late.
    let missing = confirm_late(&clock, late(), async { Ok::<_, Infallible>(late().overview) }).await.unwrap();
    assert_eq!(found(&judge_facts(&missing), "protection").level, FindingLevel::Bad);
}

#[tokio::test]
async fn nothing_is_waited_for_where_all_is_well_or_time_brings_nothing() {
    let clock = ManualClock::jumping_from(now());
    let recent = {
        let mut facts = facts();
        server(&mut facts).lsn = Some(Lsn::new(0xB00));
        facts.overview.windows[0].to_time = Some(PgTime::from_timestamp(now()));
        facts
    };
    let away = HealthFacts { server: Some(Err("refused".into())), ..facts() };
    for seen in [facts(), recent, away] {
        let again = std::future::pending::<Result<ArchiveInventory, Infallible>>();
        assert_eq!(confirm_late(&clock, seen.clone(), again).await.unwrap(), seen);
        assert_eq!(clock.elapsed(), Duration::ZERO);
    }
}
