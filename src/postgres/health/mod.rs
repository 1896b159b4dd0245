//! How protected a cluster is.

pub(crate) mod unprotected_wal;
mod facts;
mod forks;
mod repositories;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use crate::base::clock;
use crate::base::findings::{DiskSpace, Finding, FindingLevel, Findings, SERVER_QUERY_TIMEOUT, disk_spaces};
use crate::base::units::{format_bytes_roughly, whole_seconds};
use crate::postgres::archive::coverage::{self, ArchiveCoverage, CoverageScope, RepositoryCoverage};
use crate::postgres::archive::inventory::{self, ArchiveInventory, MissingWal};
use crate::postgres::archive::reindex::{self, ReindexError};
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, foreign_server};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::sql::{self, ServerWalPosition, SqlSession};
use crate::postgres::wire::Conninfo;
use unprotected_wal::WalProtection;

use facts::unknown_archive;
pub use facts::{HealthFacts, NewestRestorable, ServerWalStatus, SlotStatus};

/// How protected a cluster is.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct HealthReport {
    /// Its name.
    pub cluster: String,
    /// Whether nothing is bad.
    pub healthy: bool,
    /// The newest moment that can be restored to.
    pub newest: Option<NewestRestorable>,
    /// For how long what was committed is not protected: nothing if all is. The most it can be, where the server cannot
    /// say.
    pub unprotected_seconds: Option<u64>,
    /// Bytes of log that the server has and nobody else, where server and archive are on the same timeline and the
    /// server is no standby that may be cut off.
    pub unprotected_bytes: Option<u64>,
    /// The newest backup that can be restored.
    pub backup: Option<String>,
    /// Its age.
    pub backup_age_seconds: Option<u64>,
    /// What the server says.
    pub server: Option<ServerWalStatus>,
    /// What each repository has by itself, where there are several.
    pub repositories: Vec<RepositoryCoverage>,
    /// Local disks.
    pub disks: Vec<DiskSpace>,
    /// Everything that was looked at, worst first.
    pub findings: Vec<Finding>,
}

impl HealthReport {
    /// Of one of which nothing can be looked at, with what is in the way.
    #[must_use]
    pub fn unknown(cluster: &str, why: String) -> HealthReport {
        let findings = vec![Finding { level: FindingLevel::Bad, subject: "archive", text: why }];
        HealthReport { cluster: cluster.to_owned(), findings, ..HealthReport::default() }
    }

    /// The same with bad findings, which are shown before all others.
    fn with_bad_findings(mut self, mut findings: Vec<Finding>) -> HealthReport {
        self.healthy &= findings.is_empty();
        findings.append(&mut self.findings);
        HealthReport { findings, ..self }
    }
}

/// Where to look besides the archive.
#[derive(Clone, Debug, Default)]
pub struct HealthSources {
    /// The index's directory.
    pub index: PathBuf,
    /// The server.
    pub server: Option<Conninfo>,
    /// The receiver's slot.
    pub slot: String,
    /// When backups are due.
    pub schedule: Option<String>,
    /// Directories whose disks matter, with what is in them.
    pub disks: Vec<(String, PathBuf)>,
}

/// Looks at everything once; at the archive twice, where WAL seems to be missing in it for too long. If the archive
/// cannot be looked at, that is a finding, and the rest is shown.
pub async fn check_health(archive: &Arc<Archive>, spool: Option<Spool>, places: &HealthSources) -> HealthReport {
    let clock = Arc::clone(archive.vault().clock());
    // The server is asked first: what it writes while we look at the archive is no concern of ours.
    let server = ask_server(places, &*clock).await;
    let cluster = archive.cluster().as_str();
    let ArchiveCoverage { together, repositories } = match current_coverage(archive, spool.clone(), places).await {
        Ok(coverage) => coverage,
        Err(error) => {
            let facts = facts_without_archive((cluster, error.to_string()), server, places, &*clock);
            return judge_facts(&HealthFacts { set_aside: set_aside(spool.as_ref(), None), ..facts });
        }
    };
    let facts = HealthFacts {
        set_aside: set_aside(spool.as_ref(), together.segment_size),
        overview: together,
        repositories,
        archive_failure: None,
        server,
        unreachable: archive.vault().unreachable().map(|(name, error)| (name.to_owned(), error.to_string())).collect(),
        disks: disk_spaces(&places.disks),
        schedule: places.schedule.clone(),
        now: clock.now(),
    };
    let before = facts.clone();
    let again = async { Ok::<_, ReindexError>(current_coverage(archive, spool, places).await?.together) };
    let report = match unprotected_wal::confirm_late(&*clock, facts, again).await {
        Ok(facts) => judge_facts(&facts),
        Err(error) => judge_facts(&HealthFacts { archive_failure: Some(error.to_string()), ..before }),
    };
    report.with_bad_findings(forks::find_unresolved_forks(archive).await)
}

/// Looks at everything but the archive, which could not be opened because of `why`.
pub async fn check_health_without_archive(
    cluster: &str,
    why: String,
    places: &HealthSources,
    clock: &dyn clock::Clock,
) -> HealthReport {
    let server = ask_server(places, clock).await;
    judge_facts(&facts_without_archive((cluster, why), server, places, clock))
}

fn facts_without_archive(
    (cluster, why): (&str, String),
    server: Option<Result<ServerWalStatus, String>>,
    places: &HealthSources,
    clock: &dyn clock::Clock,
) -> HealthFacts {
    HealthFacts {
        overview: unknown_archive(cluster),
        repositories: Vec::new(),
        archive_failure: Some(why),
        server,
        unreachable: Vec::new(),
        set_aside: Vec::new(),
        disks: disk_spaces(&places.disks),
        schedule: places.schedule.clone(),
        now: clock.now(),
    }
}

fn set_aside(spool: Option<&Spool>, size: Option<SegmentSize>) -> Vec<String> {
    spool.map(|spool| spool.set_aside_report(size)).unwrap_or_default()
}

/// What the server reports, or why it could not be asked; `None` if the cluster has no connection.
async fn ask_server(places: &HealthSources, clock: &dyn clock::Clock) -> Option<Result<ServerWalStatus, String>> {
    let info = places.server.as_ref()?;
    let asked = clock::timeout(clock, SERVER_QUERY_TIMEOUT, query_server(info, &places.slot)).await;
    let late = || format!("it did not answer within {} s", SERVER_QUERY_TIMEOUT.as_secs());
    Some(asked.map_or_else(|| Err(late()), |asked| asked.map_err(|error| error.to_string())))
}

/// The archive as it is now. The index is opened for that alone: a receiver that starts meanwhile wants to write it.
async fn current_coverage(
    archive: &Arc<Archive>,
    spool: Option<Spool>,
    places: &HealthSources,
) -> Result<ArchiveCoverage, ReindexError> {
    let (index, _) = reindex::open_index_or_scratch(archive, &places.index).await?;
    coverage::gather_coverage(archive, &index, spool, CoverageScope::SinceNewestBackup).await
}

async fn query_server(info: &Conninfo, slot: &str) -> Result<ServerWalStatus, sql::SqlError> {
    let sql = SqlSession::connect(info).await?;
    let ServerWalPosition { lsn, timeline, standby } = sql.wal_position().await?;
    let system_id = Some(sql.system_id().await?);
    let settings = sql.settings(&["archive_mode", "archive_command", "archive_library", "archive_timeout"]).await?;
    let setting = |name: &str| settings.get(name).map_or("", String::as_str);
    let archives = setting("archive_mode") != "off"
        && (setting("archive_command").contains("archive-push") || !setting("archive_library").is_empty());
    let query = "SELECT failed_count, CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') \
                 THEN last_failed_wal END FROM pg_catalog.pg_stat_archiver";
    let rows = sql.query("pg_stat_archiver", query).await?;
    let (failures, failing) = match rows.into_iter().next().as_deref() {
        Some([count, wal]) => (count.parse().unwrap_or(0), Some(wal.clone()).filter(|wal| !wal.is_empty())),
        _ => (0, None),
    };
    let slot = sql.slot(slot).await?.map(|state| SlotStatus {
        name: slot.to_owned(),
        active: state.active,
        wal_status: state.wal_status,
        invalidation: state.invalidation,
        lag_bytes: state.restart.zip(lsn).map(|(restart, lsn)| lsn.bytes_since(restart)),
    });
    Ok(ServerWalStatus {
        system_id,
        lsn,
        timeline,
        standby,
        archives,
        archive_timeout_seconds: setting("archive_timeout").parse().ok().filter(|seconds| *seconds > 0),
        archive_failures: failures,
        failing: failing.filter(|_| archives),
        slot,
    })
}

/// Makes findings of what was seen.
#[must_use]
pub fn judge_facts(facts: &HealthFacts) -> HealthReport {
    let server = facts.server.as_ref().and_then(|server| server.as_ref().ok()).cloned();
    let protection = WalProtection::from_facts(facts);
    let backup =
        facts.overview.backups.iter().filter(|backup| backup.restorable).max_by_key(|backup| backup.finished_at);
    let mut judge = HealthJudge { facts, findings: Findings::default() };
    let foreign = server.as_ref().and_then(|server| foreign_server(server.system_id?, facts.overview.system_id?));
    match (&facts.archive_failure, &foreign) {
        (Some(why), _) => judge.add_finding(FindingLevel::Bad, "archive", why),
        // Positions of two clusters have nothing to do with each other.
        (None, Some(foreign)) => judge.add_finding(FindingLevel::Bad, "server", foreign),
        (None, None) => protection.add_findings(&mut judge.findings),
    }
    if facts.archive_failure.is_none() {
        judge.judge_backups(backup);
        judge.judge_gaps();
        repositories::judge_repositories(facts, &mut judge.findings);
    }
    judge.judge_server(server.as_ref());
    judge.findings.add_set_aside(&facts.set_aside);
    judge.findings.add_unreachable_repositories(&facts.unreachable);
    judge.findings.add_disks(&facts.disks);
    let (healthy, findings) = judge.findings.into_sorted();
    let is_compared = foreign.is_none() && facts.archive_failure.is_none();
    HealthReport {
        cluster: facts.overview.cluster.clone(),
        healthy,
        newest: protection.newest,
        unprotected_seconds: protection.unprotected_seconds().filter(|_| is_compared),
        unprotected_bytes: protection.unprotected_bytes().filter(|_| is_compared),
        backup: backup.map(|backup| backup.label.clone()),
        backup_age_seconds: backup.map(|backup| whole_seconds(facts.now.duration_since(backup.finished_at))),
        server,
        repositories: facts.repositories.clone(),
        disks: facts.disks.clone(),
        findings,
    }
}

struct HealthJudge<'f> {
    facts: &'f HealthFacts,
    findings: Findings,
}

impl HealthJudge<'_> {
    fn add_finding(&mut self, level: FindingLevel, subject: &'static str, text: impl Into<String>) {
        self.findings.add(level, subject, text);
    }

    fn judge_backups(&mut self, newest: Option<&inventory::InventoryBackup>) {
        let backups = &self.facts.overview.backups;
        let last = backups.last().map(|backup| backup.label.as_str());
        // What concerns the newest backup is bad: the next one will most likely be no better.
        let level = |labels: &[&str]| match labels.last() == last.as_ref() {
            true => FindingLevel::Bad,
            false => FindingLevel::Warning,
        };
        let is_stranded = |backup: &&inventory::InventoryBackup| !backup.restorable && backup.defects.is_none();
        let stranded: Vec<&str> = backups.iter().filter(is_stranded).map(|backup| backup.label.as_str()).collect();
        if !stranded.is_empty() {
            let text = format!("{} cannot be restored, because WAL is missing", stranded.join(", "));
            self.add_finding(level(&stranded), "backup", text);
        }
        let defective: Vec<&str> =
            backups.iter().filter(|one| one.defects.is_some()).map(|backup| backup.label.as_str()).collect();
        let newest_defects = backups.iter().rev().find_map(|backup| backup.defects.as_ref());
        if let Some(defects) = newest_defects {
            let text = match defective.as_slice() {
                [only] => format!("{only} is not whole: {defects}"),
                several => format!("{} are not whole; of the newest of them, {defects}", several.join(", ")),
            };
            self.add_finding(level(&defective), "backup", text);
        }
        let Some(newest) = newest else {
            return self.add_finding(
                FindingLevel::Bad,
                "backup",
                "there is none that can be restored; take one with walkeep backup postgres",
            );
        };
        let times = (newest.started_at, newest.finished_at);
        self.findings.add_backup_age(times, self.facts.schedule.as_deref(), self.facts.now, "walkeep backup postgres");
    }

    /// Only what lies on the way to the newest timeline, behind the oldest backup on it, can be missed; and only a
    /// backup on that way bridges it.
    fn judge_gaps(&mut self) {
        let ArchiveInventory { path, backups, gaps, .. } = &self.facts.overview;
        let on_path: Vec<&inventory::InventoryBackup> = backups.iter().filter(|backup| is_on(path, backup)).collect();
        let oldest = on_path.iter().map(|backup| backup.start_lsn).min();
        let newest = on_path.iter().filter(|backup| backup.restorable).map(|backup| backup.start_lsn).max();
        let (passed, left): (Vec<&MissingWal>, Vec<&MissingWal>) =
            gaps.iter().partition(|gap| gap_end_on(path, gap).is_some());
        let missed = passed.into_iter().filter_map(|gap| {
            let end = gap_end_on(path, gap).filter(|end| oldest.is_none_or(|oldest| *end > oldest))?;
            Some((end, format!("{} to {} on timeline {} ({})", gap.from_lsn, gap.to_lsn, gap.timeline, gap.reason)))
        });
        let (ends, missed): (Vec<Lsn>, Vec<String>) = missed.unzip();
        let Some(last) = ends.into_iter().max() else {
            let text = match left.len() {
                0 => "none".to_owned(),
                some => format!("none on the way to timeline {}, {some} on timelines that were left", path.target()),
            };
            return self.add_finding(FindingLevel::Good, "gaps", text);
        };
        let text = format!("WAL is missing: {}", missed.join("; "));
        match newest.is_some_and(|newest| newest >= last) {
            true => self.add_finding(FindingLevel::Warning, "gaps", format!("{text}; newer backups do without it")),
            false => self.add_finding(
                FindingLevel::Bad,
                "gaps",
                format!("{text}; take a backup now, what follows a gap cannot be reached without one"),
            ),
        }
    }

    fn judge_server(&mut self, server: Option<&ServerWalStatus>) {
        let Some(server) = server else {
            if let Some(Err(why)) = &self.facts.server {
                self.add_finding(FindingLevel::Bad, "server", format!("cannot be asked: {why}"));
            }
            return;
        };
        if let Some(file) = &server.failing {
            let text = format!(
                "archive_command fails for {file}, {} times so far; the server's log says why",
                server.archive_failures
            );
            self.add_finding(FindingLevel::Bad, "archiver", text);
        } else if server.archives {
            self.add_finding(FindingLevel::Good, "archiver", "archive_command works");
        }
        match &server.slot {
            None if server.archives => {}
            None => self.add_finding(
                FindingLevel::Bad,
                "receiver",
                "there is no replication slot and no archive_command: start walkeep receive",
            ),
            Some(slot) => {
                let lag =
                    slot.lag_bytes.map_or_else(String::new, |lag| format!(", {} behind", format_bytes_roughly(lag)));
                let name = &slot.name;
                let is_lost = slot.invalidation.is_some() || slot.wal_status.as_deref() == Some("lost");
                match (slot.wal_status.as_deref(), slot.active) {
                    (_, true) if is_lost => self.add_finding(FindingLevel::Bad, "receiver", format!(
                        "slot {name} is invalidated: the receiver is connected, but the server keeps no WAL for it. \
                            Restart walkeep receive, which creates the slot again; then take a backup"
                    )),
                    (_, false) if is_lost => self.add_finding(FindingLevel::Bad, "receiver", format!(
                        "slot {name} is invalidated: the server has removed WAL that was not received. Start walkeep \
                            receive, which creates the slot again; then take a backup"
                    )),
                    (Some("unreserved"), true) => self.add_finding(FindingLevel::Bad, "receiver", format!(
                        "connected to slot {name}{lag}, but the slot is about to lose WAL, or has lost it: raise \
                            max_slot_wal_keep_size, and see why the receiver is slow"
                    )),
                    (Some("unreserved"), false) => self.add_finding(FindingLevel::Bad, "receiver", format!(
                        "slot {name} is about to lose WAL (max_slot_wal_keep_size){lag}; start walkeep receive now"
                    )),
                    (_, false) if server.archives => self.add_finding(FindingLevel::Warning, "receiver", format!("not connected to slot {name}{lag}")),
                    (_, false) => self.add_finding(FindingLevel::Bad, "receiver", format!("not connected to slot {name}{lag}; start walkeep receive")),
                    (_, true) => self.add_finding(FindingLevel::Good, "receiver", format!("connected to slot {name}{lag}")),
                }
            }
        }
    }
}

/// Whether a backup can be replayed along a path.
fn is_on(path: &TimelinePath, backup: &inventory::InventoryBackup) -> bool {
    path.contains(backup.timeline, backup.start_lsn) && path.contains(backup.timeline, backup.stop_lsn)
}

/// Where a path is behind a gap, if it meets it: what the timeline misses behind the point where the path leaves it,
/// the path does not.
fn gap_end_on(path: &TimelinePath, gap: &MissingWal) -> Option<Lsn> {
    let span = path.spans().iter().find(|span| span.timeline == gap.timeline)?;
    let end = span.end.map_or(gap.to_lsn, |left| left.min(gap.to_lsn));
    (gap.from_lsn < end && span.begin < end).then_some(end)
}
