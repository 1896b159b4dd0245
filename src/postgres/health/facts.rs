//! What health is judged by.

use jiff::Timestamp;

use crate::base::findings::DiskSpace;
use crate::postgres::archive::coverage::RepositoryCoverage;
use crate::postgres::archive::inventory::ArchiveInventory;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SystemId;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineId, TimelinePath};

/// The newest moment that can be restored to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct NewestRestorable {
    /// Its position.
    pub lsn: Lsn,
    /// The newest commit or abort up to there.
    pub time: Option<PgTime>,
    /// Its timeline.
    pub timeline: TimelineId,
}

/// What the server says.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct ServerWalStatus {
    /// The cluster that it runs.
    pub system_id: Option<SystemId>,
    /// How far its log is.
    pub lsn: Option<Lsn>,
    /// The timeline of that; a standby need not know it.
    pub timeline: Option<TimelineId>,
    /// Whether it is a standby, or recovering.
    pub standby: bool,
    /// Whether its archiver hands its log on.
    pub archives: bool,
    /// After so long it hands on also a segment that is not full; `None` if it waits until one is.
    pub archive_timeout_seconds: Option<u64>,
    /// Failed attempts since the statistics were reset.
    pub archive_failures: u64,
    /// The file that failed last, if nothing was archived since.
    pub failing: Option<String>,
    /// Our slot.
    pub slot: Option<SlotStatus>,
}

/// The receiver's slot.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct SlotStatus {
    /// Its name.
    pub name: String,
    /// Whether the receiver is connected.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why the server has invalidated it (PostgreSQL 17 and later).
    pub invalidation: Option<String>,
    /// Bytes of log the server keeps for it.
    pub lag_bytes: Option<u64>,
}

/// What there is to judge by.
#[derive(Clone, PartialEq, Debug)]
pub struct HealthFacts {
    /// The archive, with what this machine has received, as it was after the server had been asked.
    pub overview: ArchiveInventory,
    /// What each repository has by itself, where there are several.
    pub repositories: Vec<RepositoryCoverage>,
    /// Why the archive could not be looked at. The overview is empty then, and means nothing.
    pub archive_failure: Option<String>,
    /// The server, or why it could not be asked; `None` if the cluster has no connection.
    pub server: Option<Result<ServerWalStatus, String>>,
    /// Repositories that could not be reached, with what was in the way.
    pub unreachable: Vec<(String, String)>,
    /// Damaged files of the spool that were set aside, one sentence each.
    pub set_aside: Vec<String>,
    /// Local disks.
    pub disks: Vec<DiskSpace>,
    /// When backups are due, as a cron line in UTC.
    pub schedule: Option<String>,
    /// Now.
    pub now: Timestamp,
}

/// The overview of an archive of which nothing is known.
pub(crate) fn unknown_archive(cluster: &str) -> ArchiveInventory {
    ArchiveInventory {
        cluster: cluster.to_owned(),
        system_id: None,
        segment_size: None,
        backups: Vec::new(),
        windows: Vec::new(),
        timelines: Vec::new(),
        path: TimelinePath::first(),
        gaps: Vec::new(),
        wal_stored_bytes: 0,
        backup_stored_bytes: 0,
    }
}
