//! What a plan is made from, and the proof that a backup can be replayed to a stop.

use super::proved_restore::{CommitPoint, CommitsAround};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::restore::archived_log::{ArchivedLog, ReplayChain, ReplayObstacle};
use crate::postgres::restore::error::RestoreError;
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::restore::target::{RestoreRequest, TargetTimeline};

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

/// A backup and the way along which it would be replayed.
pub(super) struct BackupCandidate<'a> {
    pub(super) base: &'a PlanBackup,
    pub(super) path: TimelinePath,
}

/// A stop that everything needed has been found for.
pub(super) struct ProvedStop<'a> {
    pub(super) candidate: &'a BackupCandidate<'a>,
    pub(super) stop: RecoveryStop,
    pub(super) until: Lsn,
    pub(super) chain: ReplayChain,
}

fn history_of(world: PlanInput<'_>, timeline: TimelineId) -> Result<TimelineHistory, RestoreError> {
    if timeline == TimelineId::FIRST {
        return Ok(TimelineHistory::first());
    }
    let found = world.histories.iter().find(|history| history.timeline == timeline);
    found.cloned().ok_or(RestoreError::UnknownTimeline { timeline })
}

/// The way to a timeline, and how it goes on in the first segments of those that left it.
pub(super) fn path_to(world: PlanInput<'_>, timeline: TimelineId) -> Result<TimelinePath, RestoreError> {
    Ok(history_of(world, timeline)?.path().with_departures(world.histories))
}

/// The timeline followed where the choice does not depend on the backup; else the newest.
pub(super) fn chosen_timeline(world: PlanInput<'_>, request: &RestoreRequest) -> Result<TimelineId, RestoreError> {
    let newest = world.histories.iter().map(|history| history.timeline).max().unwrap_or(TimelineId::FIRST);
    let timeline = match request.timeline {
        TargetTimeline::Id(timeline) => timeline,
        TargetTimeline::Latest | TargetTimeline::Current => newest,
    };
    history_of(world, timeline).map(|history| history.timeline)
}

pub(super) fn prove_stop<'a>(
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
pub(super) fn newest_reachable<'a>(
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

pub(super) fn commits_around(
    world: PlanInput<'_>,
    path: &TimelinePath,
    stop: RecoveryStop,
) -> Result<CommitsAround, RestoreError> {
    let border = stop.replayed_below();
    let last = world.facts.commit_before(path, border)?.map(CommitPoint::from);
    let next = world.facts.commit_from(path, border)?.map(CommitPoint::from);
    Ok(CommitsAround { last, next })
}
