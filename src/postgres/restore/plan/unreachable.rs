//! Why a target cannot be reached, and what can be instead.

use super::other_timelines;
use super::proof::{
    BackupCandidate, PlanInput, ProvedStop, chosen_timeline, commits_around, newest_reachable, path_to, prove_stop,
};
use super::restore_plan::{ReachablePoint, RestorePlan};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::restore::archived_log::ReplayObstacle;
use crate::postgres::restore::error::RestoreError;
use crate::postgres::restore::resolve_target::{RecoveryStop, ResolvedTarget, resolve_target};
use crate::postgres::restore::target::{RecoveryTarget, RestoreRequest};

/// Why there is no proof, and from which candidate on a nearer point may be sought.
pub(super) struct UnreachableTarget<'a> {
    pub(super) reason: String,
    /// Where the target is all the same, and along which path.
    aimed: Option<(RecoveryStop, TimelinePath)>,
    near: Option<&'a BackupCandidate<'a>>,
    /// Backups that stop after this are points after the target.
    beyond: Option<Lsn>,
}

/// Something in the log stands before the target.
pub(super) fn blocked_by<'a>(
    candidate: &'a BackupCandidate<'a>,
    stop: RecoveryStop,
    obstacle: &ReplayObstacle,
) -> UnreachableTarget<'a> {
    let ReplayObstacle { timeline, from, to, why } = obstacle;
    let reason = format!(
        "the target is at {}, but the log from {from} to {to} on timeline {timeline} stands before it: {why}",
        stop.lsn()
    );
    let aimed = Some((stop, candidate.path.clone()));
    UnreachableTarget { reason, aimed, near: Some(candidate), beyond: Some(stop.lsn()) }
}

/// The target is after all that is archived.
pub(super) fn past_end_of_archive<'a>(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidate: &'a BackupCandidate<'a>,
) -> Result<UnreachableTarget<'a>, RestoreError> {
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
    Ok(UnreachableTarget { reason, aimed: None, near: Some(candidate), beyond: None })
}

/// No backup can be replayed to the target: there is none, none before it, or the log doesn't have it. `too_new` is
/// where the target is seen from the oldest backup, whose end comes later.
pub(super) fn no_backup<'a>(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidates: &'a [BackupCandidate<'a>],
    too_new: Option<(RecoveryStop, &'a BackupCandidate<'a>)>,
) -> Result<UnreachableTarget<'a>, RestoreError> {
    let target = request.target();
    let path = match candidates.last() {
        Some(oldest) => oldest.path.clone(),
        None => path_to(world, chosen_timeline(world, request)?)?,
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
    let beyond = stop.filter(|_| !candidates.is_empty()).map(|_| Lsn::INVALID);
    Ok(UnreachableTarget { reason, aimed: stop.map(|stop| (stop, path)), near: None, beyond })
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
    failure: &UnreachableTarget<'_>,
    candidates: &'a [BackupCandidate<'a>],
) -> Result<Option<ProvedStop<'a>>, RestoreError> {
    let Some(near) = failure.near else { return Ok(None) };
    for candidate in candidates.iter().filter(|candidate| candidate.base.stop <= near.base.stop) {
        if let Some(proof) = newest_reachable(world, candidate)? {
            return Ok(Some(proof));
        }
    }
    Ok(None)
}

pub(super) fn unreachable_plan(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    candidates: &[BackupCandidate<'_>],
    failure: UnreachableTarget<'_>,
    near: Option<ProvedStop<'_>>,
) -> Result<RestorePlan, RestoreError> {
    let (last, next) = match (&failure.aimed, &near) {
        (Some((stop, path)), _) => commits_around(world, path, *stop)?,
        (None, Some(proof)) => commits_around(world, &proof.candidate.path, proof.stop)?,
        (None, None) => (None, None),
    };
    let nearest_before = near.map(|proof| point_before(world, &proof)).transpose()?;
    let nearest_after = failure.beyond.map(|beyond| point_after(world, candidates, beyond)).transpose()?.flatten();
    let (stop, path) = match failure.aimed {
        Some((stop, path)) => (Some(stop), path),
        None => (None, path_to(world, chosen_timeline(world, request)?)?),
    };
    Ok(RestorePlan {
        cluster: world.cluster.to_owned(),
        target: request.target().clone(),
        reachable: false,
        reason: failure.reason,
        target_lsn: stop.map(RecoveryStop::lsn),
        inclusive: stop.is_some_and(RecoveryStop::is_inclusive),
        timeline: path.target(),
        backup: None,
        last_commit_before: last,
        first_commit_after: next,
        wal_segments: 0,
        wal_bytes: 0,
        wal_records: 0,
        file_bytes: 0,
        estimated_seconds: 0,
        estimated_from_restores: 0,
        room: None,
        nearest_before,
        nearest_after,
        required_settings: RequiredSettings::default(),
        hole_follows: false,
        tablespaces_made: Vec::new(),
        notes: other_timelines::other_timeline_notes(world, &path)?,
        stop: None,
    })
}

fn point_before(world: PlanInput<'_>, proof: &ProvedStop<'_>) -> Result<ReachablePoint, RestoreError> {
    let BackupCandidate { base, path } = proof.candidate;
    let (last, _) = commits_around(world, path, proof.stop)?;
    let (lsn, timeline) = (proof.stop.lsn(), path.target());
    let options = match proof.stop {
        RecoveryStop::Consistent(_) => format!("--target-immediate --backup {}", base.label),
        _ => format!("--target-lsn {lsn} --target-timeline {timeline}"),
    };
    Ok(ReachablePoint { lsn, time: last.map(|commit| commit.time), backup: base.label.clone(), options })
}

/// The end of the oldest backup that stops after `beyond` and has its log.
fn point_after(
    world: PlanInput<'_>,
    candidates: &[BackupCandidate<'_>],
    beyond: Lsn,
) -> Result<Option<ReachablePoint>, RestoreError> {
    for candidate in candidates.iter().rev().filter(|candidate| candidate.base.stop > beyond) {
        let BackupCandidate { base, path } = candidate;
        let stop = RecoveryStop::Consistent(base.stop);
        if prove_stop(world, candidate, stop, base.stop)?.is_ok() {
            let (last, _) = commits_around(world, path, stop)?;
            let options = format!("--target-immediate --backup {}", base.label);
            let time = last.map(|commit| commit.time);
            return Ok(Some(ReachablePoint { lsn: base.stop, time, backup: base.label.clone(), options }));
        }
    }
    Ok(None)
}
