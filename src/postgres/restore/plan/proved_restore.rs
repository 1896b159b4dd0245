//! A restore for which everything is archived: the backup, the WAL to replay and the point where replay stops.

use crate::base::restore_estimate::RestoreWork;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::restore::created_tablespace::CreatedTablespace;
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::wal::event::{TransactionEnd, Xid};

/// What a restore does. There is one only if everything that it needs is archived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProvedRestore {
    /// The backup that is restored.
    pub backup: String,
    /// The timeline that is followed.
    pub timeline: TimelineId,
    /// Where replay stops.
    pub stop: RecoveryStop,
    /// The last commit that is kept, and the first that is undone.
    pub commits: CommitsAround,
    /// Segments that are replayed.
    pub wal_segments: u64,
    /// Bytes of files that are placed, and the WAL that is replayed.
    pub work: RestoreWork,
    /// About how long files and replay take.
    pub estimated_seconds: u64,
    /// The space at the destination, if the destination is known.
    pub room: Option<DiskRequirement>,
    /// What the server's settings must be at least.
    pub required_settings: RequiredSettings,
    /// Whether the log has a hole right after the target, so that the server must not read ahead.
    pub hole_follows: bool,
    /// Tablespaces that replay makes, at the very paths they have in the log.
    pub tablespaces_made: Vec<CreatedTablespace>,
}

/// The committed transactions on both sides of a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommitsAround {
    /// The last before it.
    pub last: Option<CommitPoint>,
    /// The first after it.
    pub next: Option<CommitPoint>,
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

/// The space that a restore needs, and what there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
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
