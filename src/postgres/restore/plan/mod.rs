//! The plan of a restore: which backup, which log, where it ends, and whether all of it is there.
//!
//! A pure value, computed from the list of backups, the timeline histories and [`ArchivedLog`] about the log. Nothing is touched: `walkeep plan` prints
//! it, `walkeep restore` carries it out.

#[cfg(test)]
mod tests;
mod unreachable;
mod other_timelines;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::wal::event::{TransactionEnd, Xid};

use super::RestoreError;
use super::archived_log::{ArchivedLog, CreatedTablespace, ReplayChain, ReplayObstacle};
use super::resolve_target::{RecoveryStop, ResolvedTarget, resolve_target};
use super::target::{RecoveryTarget, RestoreRequest, TargetTimeline};
use crate::base::restore_estimate::{RestoreEstimator, RestoreWork};
use unreachable::{UnreachableTarget, blocked_by, nearest_before, no_backup, past_end_of_archive, unreachable_plan};

/// Segments before a backup in which a transaction that ended too late speaks against it. Sessions overtake each other by microseconds, and a
/// segment holds a second's work of a busy server.
const LOOK_BACK_SEGMENTS: u64 = 2;

/// What a plan must know of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanBackup {
    /// Its name.
    pub label: String,
    /// Where replay begins.
    pub start: Lsn,
    /// The timeline of that position.
    pub start_timeline: TimelineId,
    /// The position that replay must pass before the files are consistent.
    pub stop: Lsn,
    /// The timeline of that position.
    pub stop_timeline: TimelineId,
    /// When it was begun.
    pub started_at: PgTime,
    /// What its `pg_control` demands of a server.
    pub required: RequiredSettings,
    /// Bytes of its files.
    pub logical_bytes: u64,
}

/// Everything a plan is made from.
#[derive(Clone, Copy)]
pub struct PlanInput<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// Its backups, in any order.
    pub bases: &'a [PlanBackup],
    /// The archived histories, in any order; timeline 1 has none.
    pub histories: &'a [TimelineHistory],
    /// Its log.
    pub facts: &'a dyn ArchivedLog,
}

impl std::fmt::Debug for PlanInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("cluster", &self.cluster).field("bases", &self.bases).finish_non_exhaustive()
    }
}

/// A committed transaction beside the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct CommitPoint {
    /// Where its record starts.
    pub lsn: Lsn,
    /// Which transaction.
    pub xid: Xid,
    /// When, by the server's clock.
    pub time: PgTime,
}

impl From<TransactionEnd> for CommitPoint {
    fn from(ending: TransactionEnd) -> CommitPoint {
        CommitPoint { lsn: ending.lsn, xid: ending.xid, time: ending.time }
    }
}

/// A point that can be reached instead of a target that cannot.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ReachablePoint {
    /// Where.
    pub lsn: Lsn,
    /// The last commit up to there.
    pub time: Option<PgTime>,
    /// The backup to start from.
    pub backup: String,
    /// The options that restore to it.
    pub options: String,
}

/// The space that a restore needs, and what there is.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct DiskRequirement {
    /// Bytes of files, and of the log that is fetched at a time.
    pub needed_bytes: u64,
    /// Bytes that are free there.
    pub free_bytes: u64,
}

impl DiskRequirement {
    /// Whether it is enough.
    #[must_use]
    pub const fn is_enough(&self) -> bool {
        self.needed_bytes <= self.free_bytes
    }
}

/// What a restore would do, or why it cannot.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RestorePlan {
    /// The cluster.
    pub cluster: String,
    /// What was asked for.
    pub target: RecoveryTarget,
    /// Whether everything that it needs is there.
    pub reachable: bool,
    /// Why, in a sentence.
    pub reason: String,
    /// Where replay stops.
    pub target_lsn: Option<Lsn>,
    /// Whether the record at `target_lsn` is replayed.
    pub inclusive: bool,
    /// The timeline that is followed.
    pub timeline: TimelineId,
    /// The backup that is restored.
    pub backup: Option<String>,
    /// The last commit that will be there.
    pub last_commit_before: Option<CommitPoint>,
    /// The first commit that will not.
    pub first_commit_after: Option<CommitPoint>,
    /// Segments that are replayed.
    pub wal_segments: u64,
    /// Bytes of log that are replayed.
    pub wal_bytes: u64,
    /// Records that are replayed.
    pub wal_records: u64,
    /// Bytes of files that are placed.
    pub file_bytes: u64,
    /// About how long files and replay take.
    pub estimated_seconds: u64,
    /// Restores on this machine that the estimate was made from; with none it is a guess for a modest one.
    pub estimated_from_restores: u64,
    /// Whether there is room where it is to go, if that was said.
    pub room: Option<DiskRequirement>,
    /// The newest point before the target that can be reached, if the target cannot.
    pub nearest_before: Option<ReachablePoint>,
    /// The oldest point after the target that can be reached, if the target cannot.
    pub nearest_after: Option<ReachablePoint>,
    /// What the server's settings must be at least.
    pub required_settings: RequiredSettings,
    /// Whether the log has a hole right after the target, so that the server must not read ahead.
    pub hole_follows: bool,
    /// Tablespaces that replay makes, at the very paths they have in the log.
    pub tablespaces_made: Vec<CreatedTablespace>,
    /// What else one should know before doing it: other timelines that go on where this one does not.
    pub notes: Vec<String>,
    /// Where replay stops.
    pub stop: Option<RecoveryStop>,
}

impl RestorePlan {
    /// What a restore by it has to do.
    #[must_use]
    pub const fn work(&self) -> RestoreWork {
        RestoreWork { file_bytes: self.file_bytes, wal_bytes: self.wal_bytes, wal_records: self.wal_records }
    }

    /// Whether it goes to another point than was asked for, which [`RestorePlan::reason`] says.
    #[must_use]
    pub fn reaches_other_point(&self) -> bool {
        self.reachable && self.reason.ends_with(OTHER_POINT_SUFFIX)
    }

    /// When the last commit was, if all that is known against the time that was asked for is that nothing has been committed since.
    #[must_use]
    pub fn idle_since(&self) -> Option<PgTime> {
        let past_end = !self.reachable && self.target_lsn.is_none() && self.first_commit_after.is_none();
        self.nearest_before.as_ref().filter(|_| past_end)?.time
    }

    /// The same for a machine on which it cannot be carried out, and why.
    #[must_use]
    pub fn made_unreachable(self, why: &dyn std::fmt::Display) -> RestorePlan {
        RestorePlan { reachable: false, reason: format!("{}, but not there: {why}", self.reason), stop: None, ..self }
    }

    /// The same with the time estimated from what this machine has measured.
    #[must_use]
    pub fn with_estimate(self, pace: &RestoreEstimator) -> RestorePlan {
        let estimated_seconds = if self.reachable { pace.estimated_seconds(&self.work()) } else { 0 };
        RestorePlan { estimated_seconds, estimated_from_restores: pace.restores(), ..self }
    }

    /// The same for a place with this many bytes free, which may not be enough.
    #[must_use]
    pub fn with_free_space(self, free_bytes: u64, segment: SegmentSize) -> RestorePlan {
        if !self.reachable {
            return self;
        }
        let needed_bytes = self.file_bytes.saturating_add(segment.get().saturating_mul(SEGMENTS_DURING_REPLAY));
        let room = DiskRequirement { needed_bytes, free_bytes };
        if room.is_enough() {
            return RestorePlan { room: Some(room), ..self };
        }
        let reason =
            format!("{}, but not there: {needed_bytes} bytes are needed and {free_bytes} are free", self.reason);
        RestorePlan { room: Some(room), reachable: false, reason, stop: None, ..self }
    }
}

/// How the reason of a plan ends that goes to another point than was asked for.
const OTHER_POINT_SUFFIX: &str = "; going to the newest point before it";

/// Segments of log that lie in the data directory at a time during replay: the one that is read, and those of the new timeline.
const SEGMENTS_DURING_REPLAY: u64 = 4;

/// A backup and the way along which it would be replayed.
struct BackupCandidate<'a> {
    base: &'a PlanBackup,
    path: TimelinePath,
}

/// A stop that everything needed has been found for.
struct ProvedStop<'a> {
    candidate: &'a BackupCandidate<'a>,
    stop: RecoveryStop,
    until: Lsn,
    chain: ReplayChain,
}

/// Resolves a request and proves it, or says why it cannot be reached and what can.
///
/// # Errors
/// For a backup or a timeline that does not exist, and what index or archive say. A target that cannot be reached is no error but a plan
/// that says so.
pub fn make_plan(world: PlanInput<'_>, request: &RestoreRequest) -> Result<RestorePlan, RestoreError> {
    let candidates = backup_candidates(world, request)?;
    let outcome = prove_first(world, request, &candidates)?;
    match outcome {
        Ok(proof) => reachable_plan(world, request, &proof, format!("{} can be reached", request.target())),
        Err(failure) => {
            let near = nearest_before(world, &failure, &candidates)?;
            match near {
                Some(proof) if request.nearest => {
                    let reason = format!("{}{OTHER_POINT_SUFFIX}", failure.reason);
                    reachable_plan(world, request, &proof, reason)
                }
                near => unreachable_plan(world, request, &candidates, failure, near),
            }
        }
    }
}

fn history_of(world: PlanInput<'_>, timeline: TimelineId) -> Result<TimelineHistory, RestoreError> {
    if timeline == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let found = world.histories.iter().find(|history| history.timeline == timeline);
    found.cloned().ok_or(RestoreError::UnknownTimeline { timeline })
}

/// The way to a timeline, and how it goes on in the first segments of those that left it.
fn path_to(world: PlanInput<'_>, timeline: TimelineId) -> Result<TimelinePath, RestoreError> {
    Ok(history_of(world, timeline)?.path().with_departures(world.histories))
}

/// The timeline followed where the choice does not depend on the backup; else the newest.
fn chosen_timeline(world: PlanInput<'_>, request: &RestoreRequest) -> Result<TimelineId, RestoreError> {
    let newest = world.histories.iter().map(|history| history.timeline).max().unwrap_or(TimelineId::FIRST);
    let timeline = match request.timeline {
        TargetTimeline::Id(timeline) => timeline,
        TargetTimeline::Latest | TargetTimeline::Current => newest,
    };
    history_of(world, timeline).map(|history| history.timeline)
}

/// The backups that can be replayed along the chosen timeline, newest first.
fn backup_candidates<'a>(
    world: PlanInput<'a>,
    request: &RestoreRequest,
) -> Result<Vec<BackupCandidate<'a>>, RestoreError> {
    if let Some(label) = &request.backup
        && !world.bases.iter().any(|base| base.label == *label)
    {
        return Err(RestoreError::UnknownBackup { label: label.clone() });
    }
    let mut found = Vec::new();
    for base in world.bases.iter().filter(|base| request.backup.as_ref().is_none_or(|label| base.label == *label)) {
        let timeline = match request.timeline {
            TargetTimeline::Current => base.stop_timeline,
            TargetTimeline::Latest | TargetTimeline::Id(_) => chosen_timeline(world, request)?,
        };
        let path = path_to(world, timeline)?;
        if path.contains(base.start_timeline, base.start) && path.contains(base.stop_timeline, base.stop) {
            found.push(BackupCandidate { base, path });
        }
    }
    found.sort_by(|a, b| b.base.stop.cmp(&a.base.stop).then_with(|| b.base.label.cmp(&a.base.label)));
    Ok(found)
}

/// Tries the backups, newest first, and proves the first from which PostgreSQL would stop at a consistent point.
fn prove_first<'a>(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidates: &'a [BackupCandidate<'a>],
) -> Result<Result<ProvedStop<'a>, UnreachableTarget<'a>>, RestoreError> {
    let mut too_new = None;
    for candidate in candidates {
        let aimed = match request.target() {
            RecoveryTarget::Latest => match newest_reachable(world, candidate)? {
                Some(proof) => return Ok(Ok(proof)),
                None => continue,
            },
            RecoveryTarget::Immediate => {
                ResolvedTarget::At { stop: RecoveryStop::Consistent(candidate.base.stop), until: candidate.base.stop }
            }
            RecoveryTarget::Time(time) => match first_commit_too_late(world, candidate, request, *time)? {
                Some(stop) => {
                    too_new = Some((stop, candidate));
                    continue;
                }
                None => resolve_target(world.facts, &candidate.path, request, search_start(world, candidate.base))?,
            },
            _ => resolve_target(world.facts, &candidate.path, request, candidate.base.start)?,
        };
        match aimed {
            ResolvedTarget::At { stop, until } if is_consistent(stop, until, candidate.base) => {
                return Ok(prove_stop(world, candidate, stop, until)?
                    .map_err(|obstacle| blocked_by(candidate, stop, &obstacle)));
            }
            ResolvedTarget::At { stop, .. } => too_new = Some((stop, candidate)),
            ResolvedTarget::PastEnd => return Ok(Err(past_end_of_archive(world, request, candidate)?)),
            ResolvedTarget::Absent => {}
        }
    }
    Ok(Err(no_backup(world, request, candidates, too_new)?))
}

/// The last commit in a backup, if it is later than the time wanted: replay never looks at what was before the backup, and would go on from there
/// as if nothing were amiss. Where no commit is known before the backup's end, it is the backup's own time that counts.
fn first_commit_too_late(
    world: PlanInput<'_>,
    candidate: &BackupCandidate<'_>,
    request: &RestoreRequest,
    wanted: PgTime,
) -> Result<Option<RecoveryStop>, RestoreError> {
    let BackupCandidate { base, path } = candidate;
    let (lsn, time) = match world.facts.commit_before(path, base.stop)? {
        Some(commit) => (commit.lsn, commit.time),
        None => (base.start, base.started_at),
    };
    let late = if request.exclusive() { time >= wanted } else { time > wanted };
    Ok(late.then_some(RecoveryStop::Before(lsn)))
}

/// Where the search for a time begins: somewhat before the backup, since sessions that commit together get their times in one order and their places
/// in another. Not from the very beginning of the log, where a clock that once was ahead would hide everything after it.
fn search_start(world: PlanInput<'_>, base: &PlanBackup) -> Lsn {
    let size = world.facts.segment_size();
    Lsn::new(base.start.get().saturating_sub(LOOK_BACK_SEGMENTS.saturating_mul(size.get())))
}

/// Whether PostgreSQL has passed the backup's end by then; otherwise it ends with "requested recovery stop point is before consistent recovery
/// point".
fn is_consistent(stop: RecoveryStop, until: Lsn, base: &PlanBackup) -> bool {
    match stop {
        RecoveryStop::Before(lsn) | RecoveryStop::Consistent(lsn) => lsn >= base.stop,
        RecoveryStop::After(_) => until >= base.stop,
    }
}

fn prove_stop<'a>(
    world: PlanInput<'_>,
    candidate: &'a BackupCandidate<'a>,
    stop: RecoveryStop,
    until: Lsn,
) -> Result<Result<ProvedStop<'a>, ReplayObstacle>, RestoreError> {
    let (path, start) = (&candidate.path, candidate.base.start);
    let chain = world.facts.replay_chain(path, start, Some(until))?;
    let demands = world.facts.wal_requirements(path, start, until)?;
    let minimal = demands.minimal_at.map(|at| ReplayObstacle {
        timeline: path.timeline_at(at),
        from: at,
        to: until,
        why: "written under wal_level=minimal, which cannot be replayed; take a new backup".to_owned(),
    });
    let mut obstacles: Vec<ReplayObstacle> = chain.obstacle.iter().cloned().chain(minimal).collect();
    if obstacles.is_empty() {
        obstacles.extend(world.facts.unreadable_end(path, start, until)?);
    }
    let first = obstacles.into_iter().min_by_key(|obstacle| obstacle.from);
    Ok(match first {
        Some(obstacle) => Err(obstacle),
        None => Ok(ProvedStop { candidate, stop, until, chain }),
    })
}

/// The last record that can be reached from a backup, or its own end. `None` if not even that can be.
fn newest_reachable<'a>(
    world: PlanInput<'_>,
    candidate: &'a BackupCandidate<'a>,
) -> Result<Option<ProvedStop<'a>>, RestoreError> {
    let BackupCandidate { base, path } = candidate;
    let mut chain = world.facts.replay_chain(path, base.start, None)?;
    if let Some(at) = world.facts.wal_requirements(path, base.start, chain.end)?.minimal_at {
        chain = world.facts.replay_chain(path, base.start, Some(at))?;
    }
    if chain.end < base.stop {
        return Ok(None);
    }
    let last = world.facts.record_until(path, chain.end)?.filter(|last| *last >= base.stop);
    let stop = last.map_or(RecoveryStop::Consistent(base.stop), RecoveryStop::After);
    Ok(Some(ProvedStop { candidate, stop, until: chain.end, chain }))
}

fn reachable_plan(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    proof: &ProvedStop<'_>,
    reason: String,
) -> Result<RestorePlan, RestoreError> {
    let (BackupCandidate { base, path }, facts) = (proof.candidate, world.facts);
    let demands = facts.wal_requirements(path, base.start, proof.until)?;
    let (last, next) = commits_around(world, path, proof.stop)?;
    let tablespaces_made = facts.created_tablespaces(path, base.start, proof.stop.replayed_below())?;
    let mut notes = other_timelines::other_timeline_notes(world, path)?;
    notes.extend(tablespaces_made.iter().map(created_tablespace_note));
    let plan = RestorePlan {
        cluster: world.cluster.to_owned(),
        target: request.target().clone(),
        reachable: true,
        reason,
        target_lsn: Some(proof.stop.lsn()),
        inclusive: proof.stop.is_inclusive(),
        timeline: path.target(),
        backup: Some(base.label.clone()),
        last_commit_before: last,
        first_commit_after: next,
        wal_segments: proof.chain.segments,
        wal_bytes: proof.chain.bytes,
        wal_records: proof.chain.records,
        file_bytes: base.logical_bytes,
        estimated_seconds: 0,
        estimated_from_restores: 0,
        room: None,
        nearest_before: None,
        nearest_after: None,
        required_settings: base.required.max(demands.largest),
        hole_follows: hole_follows(facts, path, proof.until)?,
        tablespaces_made,
        notes,
        stop: Some(proof.stop),
    };
    Ok(plan.with_estimate(&RestoreEstimator::default()))
}

fn created_tablespace_note(made: &CreatedTablespace) -> String {
    let CreatedTablespace { lsn, tablespace, location, .. } = made;
    format!(
        "tablespace {tablespace} was made after the backup, at {lsn}: replay puts its files into {location} itself, mapped or not, so that must be empty or new where this is restored"
    )
}

fn commits_around(
    world: PlanInput<'_>,
    path: &TimelinePath,
    stop: RecoveryStop,
) -> Result<(Option<CommitPoint>, Option<CommitPoint>), RestoreError> {
    let border = stop.replayed_below();
    let last = world.facts.commit_before(path, border)?.map(CommitPoint::from);
    let next = world.facts.commit_from(path, border)?.map(CommitPoint::from);
    Ok((last, next))
}

/// Whether the segment after the last one needed is missing while later ones are there. A server that reads ahead would ask for it, and get the
/// answer that ends it.
fn hole_follows(facts: &dyn ArchivedLog, path: &TimelinePath, until: Lsn) -> Result<bool, RestoreError> {
    let size = facts.segment_size();
    let next_end = size.segment_of(until).next().end(size);
    match facts.replay_chain(path, until, Some(next_end))?.obstacle {
        Some(obstacle) => Ok(facts.record_from(path, obstacle.to)?.is_some()),
        None => Ok(false),
    }
}
