//! The plan itself: whether the target is reached, and what a restore to it does.

use std::path::{Path, PathBuf};

use super::proved_restore::{CommitsAround, DiskRequirement, ProvedRestore};
use super::unreachable_target::{ReachablePoint, TargetPlace, UnreachableTarget};
use crate::base::restore_estimate::RestoreEstimator;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::restore::target::RecoveryTarget;

/// What a restore would do, or why it cannot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestorePlan {
    /// The cluster.
    pub cluster: String,
    /// What was asked for.
    pub target: RecoveryTarget,
    /// Whether the target is reached.
    pub outcome: PlanOutcome,
    /// What else one should know before doing it: other timelines that go on where this one does not.
    pub notes: Vec<String>,
    /// Restores on this machine that estimates are made from. With none, an estimate is a guess for a modest machine.
    pub measured_restores: u64,
    /// Where it would be restored to, if that was asked.
    pub destination: Option<PlannedDestination>,
}

/// Where a restore would go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedDestination {
    /// The data directory.
    pub pgdata: PathBuf,
    /// Whether it has an old data directory of the cluster.
    pub delta: bool,
}

/// Where a plan gets to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PlanOutcome {
    /// The target is reached.
    Target(ProvedRestore),
    /// The newest point before the target is reached, because the target cannot be.
    OtherPoint {
        /// The restore to that point.
        restore: ProvedRestore,
        /// Why the target cannot be reached.
        missed: String,
    },
    /// The archive has all the WAL that the restore needs, but the destination cannot take it, or files of the backup
    /// are missing.
    Refused {
        /// What the restore would do otherwise.
        restore: ProvedRestore,
        /// What can be reached, and why not at this destination.
        reason: String,
    },
    /// The archive does not reach the target.
    Unreachable(UnreachableTarget),
}

impl RestorePlan {
    /// The restore that the plan allows; `None` if there is none.
    #[must_use]
    pub const fn restore(&self) -> Option<&ProvedRestore> {
        match &self.outcome {
            PlanOutcome::Target(restore) | PlanOutcome::OtherPoint { restore, .. } => Some(restore),
            PlanOutcome::Refused { .. } | PlanOutcome::Unreachable(_) => None,
        }
    }

    /// Whether something can be restored: the target, or the point instead of it.
    #[must_use]
    pub const fn is_reachable(&self) -> bool {
        self.restore().is_some()
    }

    /// Why the plan is as it is, in a sentence.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.outcome {
            PlanOutcome::Target(_) => format!("{} can be reached", self.target),
            PlanOutcome::OtherPoint { missed, .. } => format!("{missed}; going to the newest point before it"),
            PlanOutcome::Refused { reason, .. } | PlanOutcome::Unreachable(UnreachableTarget { reason, .. }) => {
                reason.clone()
            }
        }
    }

    /// The timeline that is followed.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        match &self.outcome {
            PlanOutcome::Target(restore)
            | PlanOutcome::OtherPoint { restore, .. }
            | PlanOutcome::Refused { restore, .. } => restore.timeline,
            PlanOutcome::Unreachable(target) => target.timeline,
        }
    }

    /// The commits around the point where replay stops. If the target is unreachable, those around the target or,
    /// where its position is unknown, around the nearest point.
    #[must_use]
    pub const fn commits(&self) -> CommitsAround {
        match &self.outcome {
            PlanOutcome::Target(restore)
            | PlanOutcome::OtherPoint { restore, .. }
            | PlanOutcome::Refused { restore, .. } => restore.commits,
            PlanOutcome::Unreachable(target) => target.commits,
        }
    }

    /// The newest point before an unreachable target that can be reached.
    #[must_use]
    pub const fn nearest_before(&self) -> Option<&ReachablePoint> {
        match &self.outcome {
            PlanOutcome::Unreachable(target) => target.place.nearest_before(),
            PlanOutcome::Target(_) | PlanOutcome::OtherPoint { .. } | PlanOutcome::Refused { .. } => None,
        }
    }

    /// The oldest point after an unreachable target that can be reached.
    #[must_use]
    pub const fn nearest_after(&self) -> Option<&ReachablePoint> {
        match &self.outcome {
            PlanOutcome::Unreachable(target) => target.place.nearest_after(),
            PlanOutcome::Target(_) | PlanOutcome::OtherPoint { .. } | PlanOutcome::Refused { .. } => None,
        }
    }

    /// When the last commit was, if all that is known against the time that was asked for is that nothing has been
    /// committed since.
    #[must_use]
    pub fn idle_since(&self) -> Option<PgTime> {
        let PlanOutcome::Unreachable(UnreachableTarget { place, commits, .. }) = &self.outcome else { return None };
        match place {
            TargetPlace::PastEnd { nearest_before: Some(point) } if commits.next.is_none() => point.time,
            TargetPlace::PastEnd { .. }
            | TargetPlace::AfterObstacle { .. }
            | TargetPlace::WithoutBackup { .. }
            | TargetPlace::NotFound => None,
        }
    }

    /// The same for a destination that was looked over.
    #[must_use]
    pub fn at(self, pgdata: &Path, delta: bool) -> RestorePlan {
        RestorePlan { destination: Some(PlannedDestination { pgdata: pgdata.to_owned(), delta }), ..self }
    }

    /// The same for a destination that cannot take the restore, and why.
    #[must_use]
    pub fn refused(self, why: &dyn std::fmt::Display) -> RestorePlan {
        let reason = format!("{}, but not there: {why}", self.reason());
        self.refused_because(reason)
    }

    /// The same if files of the backup are missing.
    #[must_use]
    pub fn without_packs(self, why: &str) -> RestorePlan {
        self.refused_because(why.to_owned())
    }

    fn refused_because(self, reason: String) -> RestorePlan {
        let outcome = match self.outcome {
            PlanOutcome::Target(restore) | PlanOutcome::OtherPoint { restore, .. } => {
                PlanOutcome::Refused { restore, reason }
            }
            outcome @ (PlanOutcome::Refused { .. } | PlanOutcome::Unreachable(_)) => outcome,
        };
        RestorePlan { outcome, ..self }
    }

    /// The same with the time estimated from what this machine has measured.
    #[must_use]
    pub fn with_estimate(mut self, pace: &RestoreEstimator) -> RestorePlan {
        if let Some(restore) = self.restore_mut() {
            restore.estimated_seconds = pace.estimated_seconds(&restore.work);
        }
        RestorePlan { measured_restores: pace.restores(), ..self }
    }

    /// The same for a destination with this many bytes free, which may not be enough.
    #[must_use]
    pub fn with_free_space(mut self, free_bytes: u64, segment: SegmentSize) -> RestorePlan {
        let Some(restore) = self.restore_mut() else { return self };
        let needed_bytes = restore.work.file_bytes.saturating_add(segment.get().saturating_mul(SEGMENTS_DURING_REPLAY));
        let room = DiskRequirement { needed_bytes, free_bytes };
        restore.room = Some(room);
        if room.is_enough() {
            return self;
        }
        self.refused(&format_args!("{needed_bytes} bytes are needed and {free_bytes} are free"))
    }

    const fn restore_mut(&mut self) -> Option<&mut ProvedRestore> {
        match &mut self.outcome {
            PlanOutcome::Target(restore) | PlanOutcome::OtherPoint { restore, .. } => Some(restore),
            PlanOutcome::Refused { .. } | PlanOutcome::Unreachable(_) => None,
        }
    }
}

/// Segments of log that lie in the data directory at a time during replay: the one that is read, and those of the new
/// timeline.
const SEGMENTS_DURING_REPLAY: u64 = 4;
