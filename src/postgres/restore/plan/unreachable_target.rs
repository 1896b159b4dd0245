//! A target that the archive does not reach: where it is, and which points can be reached instead.

use super::proved_restore::CommitsAround;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::restore::resolve_target::RecoveryStop;

/// Why a target cannot be reached, and what can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnreachableTarget {
    /// Why, in a sentence for people.
    pub reason: String,
    /// The timeline on which the target was sought.
    pub timeline: TimelineId,
    /// Where the target is.
    pub place: TargetPlace,
    /// The commits around the target or, where its position is unknown, around the nearest point before it.
    pub commits: CommitsAround,
}

/// Where an unreachable target is, as far as the archived WAL shows, and which points around it can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPlace {
    /// After WAL that is missing or cannot be replayed.
    AfterObstacle {
        /// Where replay would stop.
        stop: RecoveryStop,
        /// The newest reachable point before the obstacle.
        nearest_before: Option<ReachablePoint>,
        /// The oldest reachable point after the target.
        nearest_after: Option<ReachablePoint>,
    },
    /// After all that is archived.
    PastEnd {
        /// The newest reachable point.
        nearest_before: Option<ReachablePoint>,
    },
    /// In the archived WAL, at a point to which no backup can be replayed.
    WithoutBackup {
        /// Where replay would stop.
        stop: RecoveryStop,
        /// The oldest reachable point.
        nearest_after: Option<ReachablePoint>,
    },
    /// The archived WAL does not have it.
    NotFound,
}

impl TargetPlace {
    /// Where replay would stop, if that is known.
    #[must_use]
    pub const fn stop(&self) -> Option<RecoveryStop> {
        match self {
            TargetPlace::AfterObstacle { stop, .. } | TargetPlace::WithoutBackup { stop, .. } => Some(*stop),
            TargetPlace::PastEnd { .. } | TargetPlace::NotFound => None,
        }
    }

    /// The newest reachable point before the target.
    #[must_use]
    pub const fn nearest_before(&self) -> Option<&ReachablePoint> {
        match self {
            TargetPlace::AfterObstacle { nearest_before, .. } | TargetPlace::PastEnd { nearest_before } => {
                nearest_before.as_ref()
            }
            TargetPlace::WithoutBackup { .. } | TargetPlace::NotFound => None,
        }
    }

    /// The oldest reachable point after the target.
    #[must_use]
    pub const fn nearest_after(&self) -> Option<&ReachablePoint> {
        match self {
            TargetPlace::AfterObstacle { nearest_after, .. } | TargetPlace::WithoutBackup { nearest_after, .. } => {
                nearest_after.as_ref()
            }
            TargetPlace::PastEnd { .. } | TargetPlace::NotFound => None,
        }
    }
}

/// A point that can be reached instead of a target that cannot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReachablePoint {
    /// Where replay stops.
    pub stop: RecoveryStop,
    /// The timeline that is followed.
    pub timeline: TimelineId,
    /// The time of the last commit up to there.
    pub time: Option<PgTime>,
    /// The backup to start from.
    pub backup: String,
}

impl ReachablePoint {
    /// The position.
    #[must_use]
    pub const fn lsn(&self) -> Lsn {
        self.stop.lsn()
    }

    /// The options that restore to it, for a line to copy.
    #[must_use]
    pub fn options(&self) -> String {
        match self.stop {
            RecoveryStop::Consistent(_) => format!("--target-immediate --backup {}", self.backup),
            RecoveryStop::Before(lsn) | RecoveryStop::After(lsn) => {
                format!("--target-lsn {lsn} --target-timeline {}", self.timeline)
            }
        }
    }
}
