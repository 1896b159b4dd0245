//! The plan of a restore: which backup, which log, where it ends, and whether all of it is there.
//!
//! A pure value, computed from the list of backups, the timeline histories and [`ArchivedLog`] about the log. Nothing
//! is touched: `walkeep plan` prints it, `walkeep restore` carries out the [`ProvedRestore`] in it.

#[cfg(test)]
mod tests;
mod unreachable;
mod other_timelines;
mod proof;
mod restore_plan;
mod proved_restore;
mod unreachable_target;
mod document;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelinePath;

use super::archived_log::{ArchivedLog, ReplayChain};
use super::created_tablespace::CreatedTablespace;
use super::error::RestoreError;
use super::resolve_target::{RecoveryStop, ResolvedTarget, resolve_target};
use super::target::{RecoveryTarget, RestoreRequest, TargetTimeline};
use crate::base::restore_estimate::{RestoreEstimator, RestoreWork};
pub use document::RestorePlanDocument;
pub use proof::{PlanBackup, PlanInput};
pub use proved_restore::{CommitPoint, CommitsAround, DiskRequirement, ProvedRestore};
pub use restore_plan::{PlanOutcome, PlannedDestination, RestorePlan};
pub use unreachable_target::{ReachablePoint, TargetPlace, UnreachableTarget};

use proof::{BackupCandidate, ProvedStop, chosen_timeline, commits_around, newest_reachable, path_to, prove_stop};
use unreachable::{FailedProof, blocked_by, nearest_before, no_backup, past_end_of_archive, unreachable_target};

/// Segments before a backup in which a transaction that ended too late speaks against it. Sessions overtake each other
/// by microseconds, and a segment holds a second's work of a busy server.
const LOOK_BACK_SEGMENTS: u64 = 2;

/// Resolves a request and proves it, or says why it cannot be reached and what can.
///
/// # Errors
/// For a backup or a timeline that does not exist, and what index or archive say. A target that cannot be reached is no
/// error but a plan that says so.
pub fn make_plan(world: PlanInput<'_>, request: &RestoreRequest) -> Result<RestorePlan, RestoreError> {
    let candidates = backup_candidates(world, request)?;
    refuse_ambiguous_name(world, request, &candidates)?;
    let (outcome, path) = match prove_first(world, request, &candidates)? {
        Ok(proof) => (PlanOutcome::Target(proved_restore(world, &proof)?), proof.candidate.path.clone()),
        Err(failure) => match nearest_before(world, &failure, &candidates)? {
            Some(proof) if request.nearest => {
                let restore = proved_restore(world, &proof)?;
                (PlanOutcome::OtherPoint { restore, missed: failure.reason }, proof.candidate.path.clone())
            }
            near => {
                let (target, path) = unreachable_target(world, request, &candidates, failure, near)?;
                (PlanOutcome::Unreachable(target), path)
            }
        },
    };
    let mut notes = other_timelines::other_timeline_notes(world, &path)?;
    if let PlanOutcome::Target(restore) | PlanOutcome::OtherPoint { restore, .. } = &outcome {
        notes.extend(restore.tablespaces_made.iter().map(created_tablespace_note));
    }
    let (cluster, target) = (world.cluster.to_owned(), request.target().clone());
    let plan = RestorePlan { cluster, target, outcome, notes, measured_restores: 0, destination: None };
    Ok(plan.with_estimate(&RestoreEstimator::default()))
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

/// Refuses the name of several restore points. PostgreSQL stops at the first that it replays, so which one is meant
/// would depend on the backup: the newest that fits, which the user did not choose.
fn refuse_ambiguous_name(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidates: &[BackupCandidate<'_>],
) -> Result<(), RestoreError> {
    let (RecoveryTarget::Name(name), Some(oldest)) = (request.target(), candidates.last()) else { return Ok(()) };
    let points = world.facts.restore_points(&oldest.path, oldest.base.stop, name)?;
    if points.len() < 2 {
        return Ok(());
    }
    let positions = points.iter().map(|point| point.lsn).collect();
    Err(RestoreError::AmbiguousName { name: name.clone(), positions })
}

/// Tries the backups, newest first, and proves the first from which PostgreSQL would stop at a consistent point.
fn prove_first<'a>(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidates: &'a [BackupCandidate<'a>],
) -> Result<Result<ProvedStop<'a>, FailedProof<'a>>, RestoreError> {
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

/// The last commit in a backup, if it is later than the time wanted: replay never looks at what was before the backup,
/// and would go on from there as if nothing were amiss. Where no commit is known before the backup's end, it is the
/// backup's own time that counts.
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

/// Where the search for a time begins: somewhat before the backup, since sessions that commit together get their times
/// in one order and their places in another. Not from the very beginning of the log, where a clock that once was ahead
/// would hide everything after it.
fn search_start(world: PlanInput<'_>, base: &PlanBackup) -> Lsn {
    let size = world.facts.segment_size();
    Lsn::new(base.start.get().saturating_sub(LOOK_BACK_SEGMENTS.saturating_mul(size.get())))
}

/// Whether PostgreSQL has passed the backup's end by then; otherwise it ends with "requested recovery stop point is
/// before consistent recovery point".
fn is_consistent(stop: RecoveryStop, until: Lsn, base: &PlanBackup) -> bool {
    match stop {
        RecoveryStop::Before(lsn) | RecoveryStop::Consistent(lsn) => lsn >= base.stop,
        RecoveryStop::After(_) => until >= base.stop,
    }
}

fn proved_restore(world: PlanInput<'_>, proof: &ProvedStop<'_>) -> Result<ProvedRestore, RestoreError> {
    let (BackupCandidate { base, path }, facts) = (proof.candidate, world.facts);
    let demands = facts.wal_requirements(path, base.start, proof.until)?;
    let ReplayChain { segments, bytes, records, .. } = proof.chain;
    Ok(ProvedRestore {
        backup: base.label.clone(),
        timeline: path.target(),
        stop: proof.stop,
        commits: commits_around(world, path, proof.stop)?,
        wal_segments: segments,
        work: RestoreWork { file_bytes: base.logical_bytes, wal_bytes: bytes, wal_records: records },
        estimated_seconds: 0,
        room: None,
        required_settings: base.required.max(demands.largest),
        hole_follows: hole_follows(facts, path, proof.until)?,
        tablespaces_made: facts.created_tablespaces(path, base.start, proof.stop.replayed_below())?,
    })
}

fn created_tablespace_note(made: &CreatedTablespace) -> String {
    let CreatedTablespace { lsn, tablespace, location, .. } = made;
    format!(
        "tablespace {tablespace} was made after the backup, at {lsn}: replay puts its files into {location} itself, \
            mapped or not, so that must be empty or new where this is restored"
    )
}

/// Whether the segment after the last one needed is missing while later ones are there. A server that reads ahead would
/// ask for it, and get the answer that ends it.
fn hole_follows(facts: &dyn ArchivedLog, path: &TimelinePath, until: Lsn) -> Result<bool, RestoreError> {
    let size = facts.segment_size();
    let next_end = size.segment_of(until).next().end(size);
    match facts.replay_chain(path, until, Some(next_end))?.obstacle {
        Some(obstacle) => Ok(facts.record_from(path, obstacle.to)?.is_some()),
        None => Ok(false),
    }
}
