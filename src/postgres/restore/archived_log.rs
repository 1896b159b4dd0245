//! What a plan must know of the archived log, asked along one timeline path. The plan is a pure function of the
//! answers.

pub use super::created_tablespace::CreatedTablespace;
pub use crate::postgres::archive::lookup::RecordSpan;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineId, TimelinePath};
use crate::postgres::wal::event::{TransactionEnd, Xid};

use super::error::RestoreError;

/// A stretch of log that recovery cannot get past.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ReplayObstacle {
    /// The timeline it is looked for on.
    pub timeline: TimelineId,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
    /// What is wrong, in words.
    pub why: String,
}

/// The log of a stretch, proved whole or not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplayChain {
    /// The first stretch that is missing or damaged.
    pub obstacle: Option<ReplayObstacle>,
    /// Segments that recovery reads.
    pub segments: u64,
    /// Records in them, about.
    pub records: u64,
    /// Bytes of log from the first position to the last.
    pub bytes: u64,
    /// Where the log that can be read ends: the obstacle, or the end of what is archived.
    pub end: Lsn,
}

/// What settings a stretch of log demands of the server that replays it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalRequirements {
    /// The largest values seen; zero where no record says anything.
    pub largest: RequiredSettings,
    /// The first record that says `wal_level = minimal`.
    pub minimal_at: Option<Lsn>,
}

/// The archived log of one cluster. Every position is that of a record's start unless it says otherwise.
pub trait ArchivedLog {
    /// The size of the cluster's segments.
    fn segment_size(&self) -> SegmentSize;

    /// The first commit or abort from `from` on whose time is later than `time`. Times are in no order, so it is the
    /// first in the log.
    ///
    /// # Errors
    /// What index or archive say.
    fn ending_after(
        &self,
        path: &TimelinePath,
        from: Lsn,
        time: PgTime,
    ) -> Result<Option<TransactionEnd>, RestoreError>;

    /// The first commit or abort of `xid` from `from` on.
    ///
    /// # Errors
    /// What index or archive say.
    fn ending_of(&self, path: &TimelinePath, from: Lsn, xid: Xid) -> Result<Option<TransactionEnd>, RestoreError>;

    /// The restore points called `name` from `from` on, in their order.
    ///
    /// # Errors
    /// What index or archive say.
    fn restore_points(&self, path: &TimelinePath, from: Lsn, name: &str) -> Result<Vec<RecordSpan>, RestoreError>;

    /// The record by which what stands at `lsn` took effect: the end of its transaction, or the record itself where it
    /// belongs to none. `None` if no record starts there, or its transaction did not end.
    ///
    /// # Errors
    /// What index or archive say.
    fn effect_of(&self, path: &TimelinePath, lsn: Lsn) -> Result<Option<RecordSpan>, RestoreError>;

    /// The first record from `from` on.
    ///
    /// # Errors
    /// What index or archive say.
    fn record_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<RecordSpan>, RestoreError>;

    /// The last record that ends at `end` or before, where `end` is the end of a chain.
    ///
    /// # Errors
    /// What index or archive say.
    fn record_until(&self, path: &TimelinePath, end: Lsn) -> Result<Option<Lsn>, RestoreError>;

    /// The last commit before `before`.
    ///
    /// # Errors
    /// What index or archive say.
    fn commit_before(&self, path: &TimelinePath, before: Lsn) -> Result<Option<TransactionEnd>, RestoreError>;

    /// The first commit from `from` on.
    ///
    /// # Errors
    /// What index or archive say.
    fn commit_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<TransactionEnd>, RestoreError>;

    /// The log from `from` to `to`, or to the end of what is archived if `to` is `None`.
    ///
    /// # Errors
    /// What index or archive say.
    fn replay_chain(&self, path: &TimelinePath, from: Lsn, to: Option<Lsn>) -> Result<ReplayChain, RestoreError>;

    /// What the log from `from` to `to` demands.
    ///
    /// # Errors
    /// What index or archive say.
    fn wal_requirements(&self, path: &TimelinePath, from: Lsn, to: Lsn) -> Result<WalRequirements, RestoreError>;

    /// The tablespaces outside the data directory that the log from `from` to `to` makes, in log order.
    ///
    /// # Errors
    /// What index or archive say.
    fn created_tablespaces(
        &self,
        path: &TimelinePath,
        from: Lsn,
        to: Lsn,
    ) -> Result<Vec<CreatedTablespace>, RestoreError>;

    /// What keeps the first or the last segment of the log from `from` to `to` from being opened, such as a key that is
    /// gone. Keys change from one day to the next, so what opens at both ends opens between.
    ///
    /// # Errors
    /// What index or archive say.
    fn unreadable_end(&self, path: &TimelinePath, from: Lsn, to: Lsn) -> Result<Option<ReplayObstacle>, RestoreError>;
}
