//! The plan as the flat JSON document that `--json` prints.
//!
//! Scripts read it, so its fields and their order stay. Each outcome fills the fields that are true of it; the others
//! are zero, empty or null.

use super::proved_restore::{CommitPoint, DiskRequirement, ProvedRestore};
use super::restore_plan::{PlanOutcome, RestorePlan};
use super::unreachable_target::ReachablePoint;
use crate::base::restore_estimate::RestoreWork;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::restore::created_tablespace::CreatedTablespace;
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::restore::target::RecoveryTarget;

/// A [`RestorePlan`] as a document.
#[derive(Debug, serde::Serialize)]
pub struct RestorePlanDocument<'p> {
    cluster: &'p str,
    target: &'p RecoveryTarget,
    reachable: bool,
    reason: String,
    /// Where replay stops, or would stop.
    target_lsn: Option<Lsn>,
    /// Whether the record at `target_lsn` is replayed.
    inclusive: bool,
    timeline: TimelineId,
    backup: Option<&'p str>,
    last_commit_before: Option<CommitPoint>,
    first_commit_after: Option<CommitPoint>,
    wal_segments: u64,
    wal_bytes: u64,
    wal_records: u64,
    file_bytes: u64,
    estimated_seconds: u64,
    estimated_from_restores: u64,
    room: Option<DiskRequirement>,
    nearest_before: Option<ReachablePointDocument<'p>>,
    nearest_after: Option<ReachablePointDocument<'p>>,
    required_settings: RequiredSettings,
    hole_follows: bool,
    tablespaces_made: &'p [CreatedTablespace],
    notes: &'p [String],
    /// Where replay stops, if the plan can be carried out.
    stop: Option<RecoveryStop>,
}

#[derive(Debug, serde::Serialize)]
struct ReachablePointDocument<'p> {
    lsn: Lsn,
    time: Option<PgTime>,
    backup: &'p str,
    options: String,
}

impl<'p> From<&'p RestorePlan> for RestorePlanDocument<'p> {
    fn from(plan: &'p RestorePlan) -> RestorePlanDocument<'p> {
        let (restore, place) = match &plan.outcome {
            PlanOutcome::Target(restore)
            | PlanOutcome::OtherPoint { restore, .. }
            | PlanOutcome::Refused { restore, .. } => (Some(restore), None),
            PlanOutcome::Unreachable(target) => (None, target.place.stop()),
        };
        let target = restore.map(|restore| restore.stop).or(place);
        let none = RestoreWork { file_bytes: 0, wal_bytes: 0, wal_records: 0 };
        let work = restore.map_or(none, |restore| restore.work);
        let commits = plan.commits();
        RestorePlanDocument {
            cluster: &plan.cluster,
            target: &plan.target,
            reachable: plan.is_reachable(),
            reason: plan.reason(),
            target_lsn: target.map(RecoveryStop::lsn),
            inclusive: target.is_some_and(RecoveryStop::is_inclusive),
            timeline: plan.timeline(),
            backup: restore.map(|restore| restore.backup.as_str()),
            last_commit_before: commits.last,
            first_commit_after: commits.next,
            wal_segments: restore.map_or(0, |restore| restore.wal_segments),
            wal_bytes: work.wal_bytes,
            wal_records: work.wal_records,
            file_bytes: work.file_bytes,
            estimated_seconds: restore.map_or(0, |restore| restore.estimated_seconds),
            estimated_from_restores: plan.measured_restores,
            room: restore.and_then(|restore| restore.room),
            nearest_before: plan.nearest_before().map(ReachablePointDocument::from),
            nearest_after: plan.nearest_after().map(ReachablePointDocument::from),
            required_settings: restore.map_or_else(RequiredSettings::default, |restore| restore.required_settings),
            hole_follows: restore.is_some_and(|restore| restore.hole_follows),
            tablespaces_made: restore.map_or(&[], |restore| restore.tablespaces_made.as_slice()),
            notes: &plan.notes,
            stop: plan.restore().map(|ProvedRestore { stop, .. }| *stop),
        }
    }
}

impl<'p> From<&'p ReachablePoint> for ReachablePointDocument<'p> {
    fn from(point: &'p ReachablePoint) -> ReachablePointDocument<'p> {
        ReachablePointDocument { lsn: point.lsn(), time: point.time, backup: &point.backup, options: point.options() }
    }
}
