//! How protected a Redis instance is.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::base::clock;
use crate::base::findings::{
    DiskSpace, Finding, FindingLevel, Findings, MAX_UNPROTECTED, SERVER_QUERY_TIMEOUT, disk_spaces,
};
use crate::base::units::{format_age, format_bytes_roughly, whole_seconds};
use crate::redis::archive::coverage::{CoverageScope, InstanceContents, InstanceCoverage, RepositoryCoverage};
use crate::redis::archive::{
    Archive, Gap, RedisTarget, RestoreRoute, SPOOL_ADVICE, SnapshotManifest, remove_foreign_snapshots,
};
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::wire::{RedisSource, ServerInfo};
use crate::vault::VaultError;

/// The newest moment that can be restored to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct NewestMoment {
    /// Up to when everything is here, by the receiver's clock.
    pub time: Timestamp,
    /// The history; `None` if the snapshot is not known to be part of one.
    pub replid: Option<ReplicationId>,
    /// How far it is here.
    pub offset: Option<u64>,
}

/// What the server says.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct InstanceServerStatus {
    /// What it is, and where.
    pub about: String,
    /// Its history.
    pub replid: Option<ReplicationId>,
    /// How far it is in it.
    pub offset: Option<u64>,
    /// What is wrong with its own persistence, which it says nowhere else.
    pub trouble: Option<String>,
}

/// What there is to judge by.
#[derive(Clone, PartialEq, Debug)]
pub struct HealthFacts {
    /// Its name.
    pub name: String,
    /// Why nothing of the archive could be looked at. Then only the server and the disks are judged.
    pub archive_failure: Option<String>,
    /// The newest moment, or why there is none.
    pub newest: Result<NewestMoment, String>,
    /// Whether its stream of commands is, or was, received.
    pub streamed: bool,
    /// The newest snapshot.
    pub backup: Option<SnapshotManifest>,
    /// The newest snapshot, if it cannot be restored, and why.
    pub lack: Option<(String, String)>,
    /// What is missing behind the newest moment, though it was received.
    pub hole: Option<String>,
    /// Breaks in the stream, oldest first.
    pub gaps: Vec<Gap>,
    /// The server, or why it could not be asked.
    pub server: Result<InstanceServerStatus, String>,
    /// What each repository has by itself, where there are several.
    pub repositories: Vec<RepositoryCoverage>,
    /// Repositories that could not be reached, with what was in the way.
    pub unreachable: Vec<(String, String)>,
    /// Why the spool, or a part of it, could not be read.
    pub unread_spool: Option<String>,
    /// Damaged files of the spool that were set aside, one sentence each.
    pub set_aside: Vec<String>,
    /// Local disks.
    pub disks: Vec<DiskSpace>,
    /// When snapshots are due, as a cron line in UTC.
    pub schedule: Option<String>,
    /// Now.
    pub now: Timestamp,
}

/// How protected an instance is.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct HealthReport {
    /// Its name.
    pub instance: String,
    /// Whether nothing is bad.
    pub healthy: bool,
    /// The newest moment that can be restored to.
    pub newest: Option<NewestMoment>,
    /// For how long what was written is not protected: nothing if all is. The most it can be, where the server cannot
    /// be asked.
    pub unprotected_seconds: Option<u64>,
    /// Bytes of commands that the server has and nobody else, where server and archive are in the same history.
    pub unprotected_bytes: Option<u64>,
    /// The newest snapshot.
    pub backup: Option<String>,
    /// Its age.
    pub backup_age_seconds: Option<u64>,
    /// What the server says.
    pub server: Option<InstanceServerStatus>,
    /// What each repository has by itself, where there are several.
    pub repositories: Vec<RepositoryCoverage>,
    /// Local disks.
    pub disks: Vec<DiskSpace>,
    /// Everything that was looked at, worst first.
    pub findings: Vec<Finding>,
}

/// Where to look besides the archive.
#[derive(Clone, Debug)]
pub struct InstanceHealthSources {
    /// The server, or why it is not known how to get in.
    pub server: Result<RedisSource, String>,
    /// When snapshots are due.
    pub schedule: Option<String>,
    /// Directories whose disks matter, with what is in them.
    pub disks: Vec<(String, PathBuf)>,
}

/// The newest moment that can be restored to, or why there is none.
///
/// # Errors
/// No repository could be asked, or something in one does not open.
pub async fn find_newest_moment(instance: &Archive) -> Result<Result<NewestMoment, String>, VaultError> {
    Ok(instance
        .resolve_target_for_report(RedisTarget::Newest, None)
        .await?
        .map_err(|not| not.reason)
        .map(|reach| NewestMoment::from_route(&reach)))
}

impl NewestMoment {
    fn from_route(reach: &RestoreRoute) -> NewestMoment {
        let last = reach.stretches.last();
        NewestMoment {
            time: last.map_or(reach.at, |last| last.ended_at.max(reach.at)),
            replid: reach.replid(),
            offset: last.map(|last| last.last).or(reach.snapshot.offset),
        }
    }
}

/// Looks at everything once.
///
/// # Errors
/// No repository could be asked, or something in one does not open.
pub async fn check_instance_health(
    instance: &Archive,
    places: &InstanceHealthSources,
) -> Result<HealthReport, VaultError> {
    let vault = instance.vault();
    // What is here is looked at first: what the server writes meanwhile then counts as unprotected, not the other way
    // round.
    let reach = instance.resolve_target_for_report(RedisTarget::Newest, None).await?;
    let InstanceCoverage { together, repositories, unseen, streamed, .. } =
        instance.coverage(CoverageScope::SinceNewestSnapshot).await?;
    let labels = instance.list_snapshot_labels().await?;
    let InstanceContents { mut snapshots, mut gaps, mut lacking_parts, .. } = together;
    let hole = reach.as_ref().ok().and_then(|reach| reach.hole).filter(|hole| !hole.is_explained(&snapshots, &gaps));
    // A break before the oldest snapshot is no moment's any more.
    let oldest = snapshots.iter().map(|snapshot| snapshot.at).min();
    gaps.retain(|gap| oldest.is_none_or(|oldest| gap.noticed_at >= oldest));
    let opens = |label: &String| snapshots.iter().any(|snapshot| snapshot.label == *label);
    let closed = labels.into_iter().max().filter(|label| !opens(label));
    remove_foreign_snapshots(&mut snapshots);
    let backup = snapshots.pop();
    let set_aside = match &unseen.unread_spool {
        None => instance.spool().map(|spool| spool.set_aside_report()).unwrap_or_default(),
        Some(_unread) => Vec::new(),
    };
    let facts = HealthFacts {
        name: instance.name().to_string(),
        archive_failure: None,
        newest: reach.as_ref().map(NewestMoment::from_route).map_err(|not| not.reason.clone()),
        streamed,
        lack: match closed {
            Some(label) => Some((label, "its manifest does not open".into())),
            None => backup.as_ref().and_then(|backup| lacking_parts.remove_entry(&backup.label)),
        },
        backup,
        hole: hole.map(|hole| hole.to_string()),
        gaps,
        server: ask_server(places, &**vault.clock()).await,
        repositories,
        unreachable: unseen.unreachable.iter().map(|(name, why)| (name.to_owned(), why.to_owned())).collect(),
        unread_spool: unseen.unread_spool,
        set_aside,
        disks: disk_spaces(&places.disks),
        schedule: places.schedule.clone(),
        now: vault.clock().now(),
    };
    Ok(judge_instance(&facts))
}

/// Looks at everything but the archive, which could not be looked at because of `why`.
pub async fn check_instance_health_without_archive(
    instance: &str,
    why: String,
    places: &InstanceHealthSources,
    clock: &dyn clock::Clock,
) -> HealthReport {
    judge_instance(&HealthFacts {
        name: instance.to_owned(),
        newest: Err(why.clone()),
        archive_failure: Some(why),
        streamed: false,
        backup: None,
        lack: None,
        hole: None,
        gaps: Vec::new(),
        server: ask_server(places, clock).await,
        repositories: Vec::new(),
        unreachable: Vec::new(),
        unread_spool: None,
        set_aside: Vec::new(),
        disks: disk_spaces(&places.disks),
        schedule: places.schedule.clone(),
        now: clock.now(),
    })
}

/// What the server reports, or why it could not be asked.
async fn ask_server(places: &InstanceHealthSources, clock: &dyn clock::Clock) -> Result<InstanceServerStatus, String> {
    let source = places.server.as_ref().map_err(Clone::clone)?;
    let asked = clock::timeout(clock, SERVER_QUERY_TIMEOUT, query_server(source)).await;
    asked.unwrap_or_else(|| Err(format!("it did not answer within {} s", SERVER_QUERY_TIMEOUT.as_secs())))
}

async fn query_server(source: &RedisSource) -> Result<InstanceServerStatus, String> {
    let (connection, info) = source.connect().await.map_err(|error| error.to_string())?;
    Ok(server_status(&info, connection.peer()))
}

fn server_status(info: &ServerInfo, peer: &str) -> InstanceServerStatus {
    let role = if info.is_master() { "a master" } else { "a replica" };
    InstanceServerStatus {
        about: format!("{} {} at {peer}, {role}", info.flavour(), info.version()),
        replid: info.get("master_replid").and_then(|id| id.parse().ok()),
        offset: info.number("master_repl_offset"),
        trouble: info.persistence_trouble(),
    }
}

/// Makes findings of what was seen.
#[must_use]
fn judge_instance(facts: &HealthFacts) -> HealthReport {
    let newest = facts.newest.as_ref().ok().copied();
    let server = facts.server.as_ref().ok();
    let unprotected_bytes = newest.zip(server).and_then(|(newest, server)| unprotected_bytes(newest, server));
    let unprotected_seconds = match unprotected_bytes {
        Some(0) => Some(0),
        _ => newest.map(|newest| whole_seconds(facts.now.duration_since(newest.time))),
    };
    let mut findings = Findings::default();
    let unprotected = Unprotected { bytes: unprotected_bytes, seconds: unprotected_seconds };
    match &facts.archive_failure {
        Some(why) => findings.add(FindingLevel::Bad, "archive", why.clone()),
        None => judge_archive(facts, unprotected, &mut findings),
    }
    match &facts.server {
        Err(why) => findings.add(FindingLevel::Bad, "server", format!("cannot be asked: {why}")),
        Ok(server) => match &server.trouble {
            // Nobody else would say it, for months.
            Some(trouble) => findings.add(FindingLevel::Bad, "server", trouble.clone()),
            None => findings.add(FindingLevel::Good, "server", server.about.clone()),
        },
    }
    if let Some(why) = &facts.unread_spool {
        let text = format!(
            "cannot be read, so it is not known whether it has commands that no repository has: {why}; {SPOOL_ADVICE}"
        );
        findings.add(FindingLevel::Bad, "spool", text);
    }
    findings.add_set_aside(&facts.set_aside);
    judge_repositories(facts, &mut findings);
    findings.add_unreachable_repositories(&facts.unreachable);
    findings.add_disks(&facts.disks);
    let (healthy, findings) = findings.into_sorted();
    HealthReport {
        instance: facts.name.clone(),
        healthy,
        newest,
        unprotected_seconds,
        unprotected_bytes,
        backup: facts.backup.as_ref().map(|backup| backup.label.clone()),
        backup_age_seconds: facts
            .backup
            .as_ref()
            .map(|backup| whole_seconds(facts.now.duration_since(backup.finished_at))),
        server: server.cloned(),
        repositories: facts.repositories.clone(),
        disks: facts.disks.clone(),
        findings,
    }
}

fn judge_archive(facts: &HealthFacts, unprotected: Unprotected, findings: &mut Findings) {
    judge_protection(facts, unprotected, findings);
    if let Some(hole) = &facts.hole {
        let advice = "it cannot be had again; take a snapshot with walkeep backup redis";
        findings.add(FindingLevel::Bad, "stream", format!("{hole}, and nothing behind it can be restored: {advice}"));
    }
    if let Some((label, lack)) = &facts.lack {
        let advice = "take another one with walkeep backup redis";
        let text = format!("the newest snapshot, {label}, cannot be restored: {lack}; {advice}");
        findings.add(FindingLevel::Bad, "backup", text);
    } else if let Some(backup) = &facts.backup {
        let times = (backup.started_at, backup.finished_at);
        findings.add_backup_age(times, facts.schedule.as_deref(), facts.now, "walkeep backup redis");
    }
    judge_gaps(facts, findings);
}

/// Bytes that the server is ahead, if both are in one history.
fn unprotected_bytes(newest: NewestMoment, server: &InstanceServerStatus) -> Option<u64> {
    let same = newest.replid.is_some() && newest.replid == server.replid;
    server.offset.zip(newest.offset).filter(|_| same).map(|(server, here)| server.saturating_sub(here))
}

/// What is on the server alone, as far as it is known.
#[derive(Clone, Copy)]
struct Unprotected {
    bytes: Option<u64>,
    seconds: Option<u64>,
}

fn judge_protection(facts: &HealthFacts, unprotected: Unprotected, findings: &mut Findings) {
    let bytes = unprotected.bytes;
    let mut say = |level, text: String| findings.add(level, "protection", text);
    let age = match (&facts.newest, unprotected.seconds) {
        (Err(why), _) => return say(FindingLevel::Bad, format!("nothing can be restored: {why}")),
        (Ok(_), age) => age.unwrap_or(0),
    };
    let since = format_age(age);
    match bytes {
        Some(0) => return say(FindingLevel::Good, "everything that the server has written is protected".to_owned()),
        _ if !facts.streamed => {
            let text = format!(
                "by snapshots alone: what was written in the last {since} is on the server alone; walkeep receive keeps \
                 every second"
            );
            return say(FindingLevel::Good, text);
        }
        Some(_) | None => {}
    }
    let late = age > whole_seconds(MAX_UNPROTECTED);
    let advice = if late && facts.hole.is_none() { "; is walkeep receive running?" } else { "" };
    let what = match (bytes, &facts.server) {
        (Some(bytes), _) => format!("{} of commands are on the server alone", format_bytes_roughly(bytes)),
        (None, Ok(_)) => "the server is in another history, after a failover or a restart".to_owned(),
        (None, Err(_)) => "what the server has written since is not known".to_owned(),
    };
    let level = if late { FindingLevel::Bad } else { FindingLevel::Good };
    say(level, format!("{what}, the last protected moment is {since} ago{advice}"));
}

/// Whether each repository that could be looked at has what the others have.
fn judge_repositories(facts: &HealthFacts, findings: &mut Findings) {
    for coverage in facts.repositories.iter().filter(|coverage| coverage.unreachable.is_none()) {
        let (level, text) = judge_repository(coverage, facts.now);
        findings.add(level, "repository", format!("{} {text}", coverage.repository));
    }
}

fn judge_repository(coverage: &RepositoryCoverage, now: Timestamp) -> (FindingLevel, String) {
    let lacking = &coverage.lacking;
    let reach = match (coverage.newest_time, coverage.newest_offset) {
        (Some(time), Some(offset)) => {
            let age = format_age(whole_seconds(now.duration_since(time)));
            format!("alone restores up to offset {offset}, {age} ago,")
        }
        (Some(time), None) => format!("alone restores to {} ago", format_age(whole_seconds(now.duration_since(time)))),
        (None, _) => "alone restores nothing".to_owned(),
    };
    if lacking.is_empty() {
        return (FindingLevel::Good, format!("{reach} and lacks nothing that another one has"));
    }
    let mut what = Vec::new();
    if lacking.stretches > 0 {
        what.push(format_count(lacking.stretches, "stretch of commands", "stretches of commands"));
    }
    if let Some(newest) = lacking.backups.last() {
        what.push(match lacking.backups.len() {
            1 => format!("snapshot {newest}"),
            more => format!("{more} snapshots, the newest {newest}"),
        });
    }
    let what = what.join(" and ");
    let age = lacking.since.map(|since| now.duration_since(since));
    if lacking.backups.is_empty() && age.is_some_and(|age| age <= MAX_UNPROTECTED) {
        return (FindingLevel::Good, format!("{reach} and {what} of the last minutes are on their way"));
    }
    let since = age.map_or_else(String::new, |age| format!(", the oldest for {}", format_age(whole_seconds(age))));
    let text = format!(
        "{reach} and lacks {what}, which another repository has{since}; walkeep receive copies it while it runs, and \
         walkeep repository sync at once"
    );
    (FindingLevel::Bad, text)
}

fn format_count(count: u64, one: &str, several: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {several}") }
}

/// A break is bridged by a snapshot that was begun after it was noticed.
fn judge_gaps(facts: &HealthFacts, findings: &mut Findings) {
    let Some(last) = facts.gaps.last() else { return findings.add(FindingLevel::Good, "gaps", "none") };
    let breaks = match facts.gaps.len() {
        1 => "the stream broke once".to_owned(),
        several => format!("the stream broke {several} times, last"),
    };
    let text = format!(
        "{breaks} after offset {}, {} ago: {}",
        last.offset,
        format_age(whole_seconds(facts.now.duration_since(last.noticed_at))),
        last.reason
    );
    if facts.backup.as_ref().is_some_and(|backup| backup.at >= last.noticed_at) {
        findings.add(FindingLevel::Warning, "gaps", format!("{text}; the newest snapshot does without what was lost"));
    } else {
        let advice = "there is no snapshot since; take one with walkeep backup redis";
        findings.add(FindingLevel::Bad, "gaps", format!("{text}; {advice}"));
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::{HealthFacts, InstanceServerStatus, NewestMoment, judge_instance};
    use crate::base::findings::{DiskSpace, FindingLevel};
    use crate::redis::archive::coverage::{RepositoryCoverage, RepositoryLack};
    use crate::redis::archive::{Gap, SnapshotManifest, SnapshotOrigin};
    use crate::redis::format::rdb::{RdbLimits, RdbWalker};

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn ago(minutes: i64) -> Timestamp {
        let now: Timestamp = "2026-11-22T14:00:00Z".parse().unwrap();
        now.checked_sub(SignedDuration::from_mins(minutes)).unwrap()
    }

    /// An instance of which everything is as it should be.
    fn facts() -> HealthFacts {
        let mut walker = RdbWalker::new(RdbLimits::default());
        walker.push(b"REDIS0009\xff\0\0\0\0\0\0\0\0").unwrap();
        let replid = ID.parse().ok();
        let backup = SnapshotManifest {
            format: 1,
            label: "20261122T120000.000Z".into(),
            started_at: ago(120),
            finished_at: ago(119),
            at: ago(120),
            origin: SnapshotOrigin::File { path: "x".into() },
            flavour: crate::redis::format::flavour::ServerFlavour::Redis,
            version: "7".into(),
            run_id: None,
            replid,
            offset: Some(100),
            db: 0,
            walk: walker.finish().unwrap(),
            parts: Vec::new(),
            logical_bytes: 18,
            stored_bytes: 0,
        };
        HealthFacts {
            name: "cache".into(),
            archive_failure: None,
            newest: Ok(NewestMoment { time: ago(60), replid, offset: Some(500) }),
            streamed: true,
            backup: Some(backup),
            lack: None,
            hole: None,
            gaps: Vec::new(),
            server: Ok(InstanceServerStatus { about: "Redis 7".into(), replid, offset: Some(500), trouble: None }),
            repositories: Vec::new(),
            unreachable: Vec::new(),
            unread_spool: None,
            set_aside: Vec::new(),
            disks: vec![DiskSpace { what: "the state".into(), path: "/".into(), free: 50 << 30, total: 100 << 30 }],
            schedule: Some("0 */6 * * *".into()),
            now: ago(0),
        }
    }

    fn gap(minutes: i64) -> Gap {
        let noticed_at = ago(minutes);
        Gap { replid: ID.parse().unwrap(), offset: 7, until: None, noticed_at, reason: "backlog".into() }
    }

    #[test]
    fn an_idle_instance_is_healthy_however_long_nothing_came() {
        let health = judge_instance(&facts());
        assert!(health.findings.iter().all(|finding| finding.level == FindingLevel::Good), "{:?}", health.findings);
        assert_eq!((health.healthy, health.unprotected_seconds, health.unprotected_bytes), (true, Some(0), Some(0)));
        assert_eq!(health.backup_age_seconds, Some(119 * 60));
    }

    #[test]
    fn each_thing_that_is_wrong_makes_it_unhealthy_and_is_said() {
        let check = |wrong: &dyn Fn(&mut HealthFacts), words: &str| {
            let mut facts = facts();
            wrong(&mut facts);
            let health = judge_instance(&facts);
            assert!(!health.healthy, "{words}");
            let worst = &health.findings[0];
            assert!(worst.level == FindingLevel::Bad && worst.text.contains(words), "{words}: {worst:?}");
        };
        let server = |facts: &mut HealthFacts, change: &dyn Fn(&mut InstanceServerStatus)| {
            change(facts.server.as_mut().unwrap())
        };
        check(&|facts| facts.newest = Err("no snapshot".into()), "nothing can be restored: no snapshot");
        check(
            &|facts| server(facts, &|server| server.offset = Some(600)),
            "100 bytes of commands are on the server alone",
        );
        check(&|facts| server(facts, &|server| server.replid = None), "another history");
        check(
            &|facts| facts.lack = Some(("20261122T120000.000Z".into(), "part 3 is missing".into())),
            "20261122T120000.000Z, cannot be restored: part 3",
        );
        check(&|facts| facts.hole = Some("what lies between".into()), "nothing behind it can be restored");
        check(&|facts| server(facts, &|server| server.trouble = Some("BGSAVE fails".into())), "BGSAVE fails");
        check(&|facts| facts.gaps = vec![gap(300), gap(60)], "broke 2 times, last after offset 7, 60 min ago: backlog");
        check(
            &|facts| {
                let backup = facts.backup.as_mut().unwrap();
                (backup.started_at, backup.finished_at) = (ago(600), ago(600));
            },
            "the newest is 10 h 0 min old, and one was due 2 h 0 min ago",
        );
        check(&|facts| facts.archive_failure = Some("no repository".into()), "no repository");
        check(&|facts| facts.unread_spool = Some("permission denied".into()), "permission denied");
        let lacks = |backups: &[&str], minutes: Option<i64>| RepositoryCoverage {
            repository: "offsite".into(),
            newest_time: Some(ago(30)),
            newest_offset: Some(400),
            lacking: RepositoryLack {
                stretches: u64::from(minutes.is_some()),
                since: minutes.map(ago),
                backups: backups.iter().map(|label| (*label).to_owned()).collect(),
            },
            ..RepositoryCoverage::default()
        };
        check(&|facts| facts.repositories.push(lacks(&["b"], None)), "offset 400, 30 min ago, and lacks snapshot b");
        check(&|facts| facts.repositories.push(lacks(&[], Some(6))), "lacks 1 stretch of commands, which another");
        let mut fresh = facts();
        fresh.repositories = vec![lacks(&[], Some(4)), lacks(&[], None)];
        assert!(judge_instance(&fresh).healthy, "{:?}", judge_instance(&fresh).findings);
        check(&|facts| facts.unreachable.push(("offsite".into(), "no route".into())), "no route");
        check(&|facts| facts.set_aside.push("spool/cache/set-aside/x.commands.1".into()), "x.commands.1");
        check(&|facts| facts.disks[0].free = 5 << 20, "free for the state");
        check(
            &|facts| {
                facts.newest.as_mut().unwrap().time = ago(2);
                facts.server = Err("refused".into());
            },
            "cannot be asked: refused",
        );
    }

    #[test]
    fn what_was_written_a_moment_ago_may_be_on_its_way() {
        let level = |minutes| {
            let mut facts = facts();
            facts.newest.as_mut().unwrap().time = ago(minutes);
            facts.server.as_mut().unwrap().offset = Some(600);
            judge_instance(&facts).findings[0].level
        };
        assert_eq!((level(5), level(6)), (FindingLevel::Good, FindingLevel::Bad));
    }

    #[test]
    fn who_takes_snapshots_alone_is_judged_by_their_schedule() {
        let mut facts = facts();
        facts.streamed = false;
        facts.server.as_mut().unwrap().offset = Some(600);
        let health = judge_instance(&facts);
        assert!(health.healthy && health.unprotected_seconds == Some(3600), "{health:?}");
        assert!(health.findings.iter().any(|finding| finding.text.contains("by snapshots alone")), "{health:?}");
    }

    #[test]
    fn a_break_matters_until_a_snapshot_is_behind_it() {
        let mut facts = facts();
        facts.gaps = vec![gap(180)];
        let health = judge_instance(&facts);
        assert!(health.healthy && health.findings[0].level == FindingLevel::Warning, "{health:?}");
    }
}
