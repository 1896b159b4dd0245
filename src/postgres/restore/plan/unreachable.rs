//! Why a target cannot be reached, and what can be instead.

use super::other_timelines;
use super::proof::{
    BackupCandidate, PlanInput, ProvedStop, chosen_timeline, commits_around, newest_reachable, path_to, prove_stop,
};
use super::proved_restore::CommitsAround;
use super::unreachable_target::{ReachablePoint, TargetPlace, UnreachableTarget};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::restore::archived_log::ReplayObstacle;
use crate::postgres::restore::error::RestoreError;
use crate::postgres::restore::resolve_target::{RecoveryStop, ResolvedTarget, resolve_target};
use crate::postgres::restore::target::{RecoveryTarget, RestoreRequest};

/// Why there is no proof, and where the target is.
pub(super) struct FailedProof<'a> {
    pub(super) reason: String,
    place: FailurePlace<'a>,
}

/// Where a target is that was not proved, with the candidates from which a nearer point is sought.
enum FailurePlace<'a> {
    /// On the path of this candidate, after WAL that stops replay.
    AfterObstacle(&'a BackupCandidate<'a>, RecoveryStop),
    /// After everything on the path of this candidate.
    PastEnd(&'a BackupCandidate<'a>),
    /// On this path, and no candidate can be replayed to it.
    WithoutBackup(TimelinePath, RecoveryStop),
    /// In no archived WAL.
    NotFound,
}

/// Something in the log stands before the target.
pub(super) fn blocked_by<'a>(
    candidate: &'a BackupCandidate<'a>,
    stop: RecoveryStop,
    obstacle: &ReplayObstacle,
) -> FailedProof<'a> {
    let ReplayObstacle { timeline, from, to, why } = obstacle;
    let reason = format!(
        "the target is at {}, but the log from {from} to {to} on timeline {timeline} stands before it: {why}",
        stop.lsn()
    );
    FailedProof { reason, place: FailurePlace::AfterObstacle(candidate, stop) }
}

/// The target is after all that is archived.
pub(super) fn past_end_of_archive<'a>(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidate: &'a BackupCandidate<'a>,
) -> Result<FailedProof<'a>, RestoreError> {
    let timeline = candidate.path.target();
    let newest = match world.facts.commit_before(&candidate.path, Lsn::MAX)? {
        Some(last) => format!("the last archived commit is transaction {} of {}", last.xid, last.time),
        None => "no commit is archived".to_owned(),
    };
    let mut reason = match request.target() {
        RecoveryTarget::Time(time) => format!(
            "nothing archived on timeline {timeline} ended after {time}, so PostgreSQL could not tell that it has got \
                there; {newest}"
        ),
        target => format!("{target} is after the end of what is archived on timeline {timeline}; {newest}"),
    };
    if let Some(elsewhere) = other_timelines::target_on_other_timeline(world, request, &candidate.path)? {
        reason = format!("{reason}; {elsewhere}");
    }
    Ok(FailedProof { reason, place: FailurePlace::PastEnd(candidate) })
}

/// No backup can be replayed to the target: there is none, none before it, or the log doesn't have it. `too_new` is
/// where the target is seen from the oldest backup, whose end comes later.
pub(super) fn no_backup<'a>(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidates: &'a [BackupCandidate<'a>],
    too_new: Option<(RecoveryStop, &'a BackupCandidate<'a>)>,
) -> Result<FailedProof<'a>, RestoreError> {
    let target = request.target();
    let path = match candidates.last() {
        Some(oldest) => oldest.path.clone(),
        None => chosen_path(world, request)?,
    };
    // From whatever log there is, so that it is known what a backup would have to come before.
    let stop = match resolve_target(world.facts, &path, request, Lsn::INVALID)? {
        ResolvedTarget::At { stop, .. } => Some(stop),
        ResolvedTarget::PastEnd | ResolvedTarget::Absent => too_new.map(|(stop, _)| stop),
    };
    let reason = match (stop, candidates.last()) {
        (Some(stop), Some(oldest)) if stop.lsn() < oldest.base.stop => format!(
            "{target} is at {}, before the end of the oldest backup that could be used, {}, at {}",
            stop.lsn(),
            oldest.base.label,
            oldest.base.stop
        ),
        (Some(_), Some(oldest)) => format!(
            "{target} is before the oldest backup that could be used, {}, which was begun at {}",
            oldest.base.label, oldest.base.started_at
        ),
        (_, None) => without_candidates(world, request, &path)?,
        (None, Some(_)) => target_not_found(world, request, &path)?,
    };
    let place = stop.map_or(FailurePlace::NotFound, |stop| FailurePlace::WithoutBackup(path, stop));
    Ok(FailedProof { reason, place })
}

/// There is no backup on the way.
fn without_candidates(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    path: &TimelinePath,
) -> Result<String, RestoreError> {
    let wanted = |label: &String| request.backup.as_ref().is_none_or(|asked| asked == label);
    let newest = world.bases.iter().filter(|base| wanted(&base.label)).max_by_key(|base| base.started_at);
    let Some(newest) = newest else {
        return Ok("there is no backup to start from; take one with walkeep backup postgres".to_owned());
    };
    let (timeline, other) = (path.target(), newest.stop_timeline);
    let which = request.backup.as_ref().map(|label| format!(" {label}")).unwrap_or_default();
    let other_path = path_to(world, other).unwrap_or_else(|_unknown| TimelinePath::first());
    Ok(if path.timeline_at(newest.stop) == other {
        format!("no backup{which} lies on the way to timeline {timeline}")
    } else {
        format!(
            "no backup{which} lies on the way to timeline {timeline}: {} was taken on timeline {other}, which parted from it at {}; \
             --target-timeline {other} follows that one",
            newest.label,
            other_timelines::parting_lsn(path, &other_path)
        )
    })
}

/// Nothing in the log on the way meets the target.
fn target_not_found(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    path: &TimelinePath,
) -> Result<String, RestoreError> {
    let target = request.target();
    let timeline = path.target();
    if let Some(elsewhere) = other_timelines::target_on_other_timeline(world, request, path)? {
        return Ok(format!("{target} is not on the way to timeline {timeline}; {elsewhere}"));
    }
    Ok(match target {
        RecoveryTarget::Xid(_) => format!(
            "{target} did not end in the archived log up to timeline {timeline}; a transaction that only read, a subtransaction that committed, \
             and one still running have no end there"
        ),
        RecoveryTarget::BeforeEvent(lsn) => format!(
            "no record starts at {lsn} in the archived log, or its transaction has not ended; walkeep log prints \
                where events are"
        ),
        RecoveryTarget::Name(_) => format!("{target} is not in the archived log up to timeline {timeline}"),
        _ => "no backup has the log it needs to become consistent".to_owned(),
    })
}

/// The newest point that can be reached before what failed, from the failed candidate or an older one.
pub(super) fn nearest_before<'a>(
    world: PlanInput<'_>,
    failure: &FailedProof<'_>,
    candidates: &'a [BackupCandidate<'a>],
) -> Result<Option<ProvedStop<'a>>, RestoreError> {
    let (FailurePlace::AfterObstacle(near, _) | FailurePlace::PastEnd(near)) = failure.place else { return Ok(None) };
    for candidate in candidates.iter().filter(|candidate| candidate.base.stop <= near.base.stop) {
        if let Some(proof) = newest_reachable(world, candidate)? {
            return Ok(Some(proof));
        }
    }
    Ok(None)
}

/// The target with what can be reached instead, and the path on which it was sought. `near` is the newest reachable
/// point before it.
pub(super) fn unreachable_target(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidates: &[BackupCandidate<'_>],
    failure: FailedProof<'_>,
    near: Option<ProvedStop<'_>>,
) -> Result<(UnreachableTarget, TimelinePath), RestoreError> {
    let nearest_before = near.as_ref().map(|proof| point_at(world, proof.candidate, proof.stop)).transpose()?;
    let nearest_after = |beyond: Lsn| point_after(world, candidates, beyond);
    let (place, path, commits) = match failure.place {
        FailurePlace::AfterObstacle(BackupCandidate { path, .. }, stop) => {
            let place = TargetPlace::AfterObstacle { stop, nearest_before, nearest_after: nearest_after(stop.lsn())? };
            (place, path.clone(), commits_around(world, path, stop)?)
        }
        FailurePlace::WithoutBackup(path, stop) => {
            let place = TargetPlace::WithoutBackup { stop, nearest_after: nearest_after(Lsn::INVALID)? };
            let commits = commits_around(world, &path, stop)?;
            (place, path, commits)
        }
        FailurePlace::PastEnd(_) => {
            let around = near.map(|proof| commits_around(world, &proof.candidate.path, proof.stop)).transpose()?;
            (TargetPlace::PastEnd { nearest_before }, chosen_path(world, request)?, around.unwrap_or_default())
        }
        FailurePlace::NotFound => (TargetPlace::NotFound, chosen_path(world, request)?, CommitsAround::default()),
    };
    Ok((UnreachableTarget { reason: failure.reason, timeline: path.target(), place, commits }, path))
}

fn chosen_path(world: PlanInput<'_>, request: &RestoreRequest) -> Result<TimelinePath, RestoreError> {
    path_to(world, chosen_timeline(world, request)?)
}

fn point_at(
    world: PlanInput<'_>,
    candidate: &BackupCandidate<'_>,
    stop: RecoveryStop,
) -> Result<ReachablePoint, RestoreError> {
    let BackupCandidate { base, path } = candidate;
    let time = commits_around(world, path, stop)?.last.map(|commit| commit.time);
    Ok(ReachablePoint { stop, timeline: path.target(), time, backup: base.label.clone() })
}

/// The end of the oldest backup that stops after `beyond` and has its log.
fn point_after(
    world: PlanInput<'_>,
    candidates: &[BackupCandidate<'_>],
    beyond: Lsn,
) -> Result<Option<ReachablePoint>, RestoreError> {
    for candidate in candidates.iter().rev().filter(|candidate| candidate.base.stop > beyond) {
        let stop = RecoveryStop::Consistent(candidate.base.stop);
        if prove_stop(world, candidate, stop, candidate.base.stop)?.is_ok() {
            return point_at(world, candidate, stop).map(Some);
        }
    }
    Ok(None)
}
