//! The plan itself.

use crate::base::restore_estimate::{RestoreEstimator, RestoreWork};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::restore::created_tablespace::CreatedTablespace;
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::restore::target::RecoveryTarget;
use crate::postgres::wal::event::{TransactionEnd, Xid};

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

    /// When the last commit was, if all that is known against the time that was asked for is that nothing has been
    /// committed since.
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
pub(super) const OTHER_POINT_SUFFIX: &str = "; going to the newest point before it";

/// Segments of log that lie in the data directory at a time during replay: the one that is read, and those of the new
/// timeline.
const SEGMENTS_DURING_REPLAY: u64 = 4;
