//! A stretch of the stream: what its object's metadata says of it.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::clock::ClockMeasurement;
use crate::redis::format::replication_id::ReplicationId;

/// By `time`, everything before `offset` had come; there the stream may be cut, and the next command acts on database
/// `db`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "(u64, u32, i64)", into = "(u64, u32, i64)")]
pub struct ArrivalMark {
    /// The offset.
    pub offset: u64,
    /// The database.
    pub db: u32,
    /// When.
    pub time: Timestamp,
}

impl From<(u64, u32, i64)> for ArrivalMark {
    fn from((offset, db, time): (u64, u32, i64)) -> ArrivalMark {
        ArrivalMark { offset, db, time: Timestamp::from_microsecond(time).unwrap_or(Timestamp::UNIX_EPOCH) }
    }
}

impl From<ArrivalMark> for (u64, u32, i64) {
    fn from(mark: ArrivalMark) -> (u64, u32, i64) {
        (mark.offset, mark.db, mark.time.as_microsecond())
    }
}

/// The history that a history goes on from, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PreviousHistory {
    /// Its name before.
    pub replid: ReplicationId,
    /// The offset at which the name changed.
    pub offset: u64,
}

/// The server from which a stretch came.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerRun {
    /// Its address.
    pub server: String,
    /// The name that it gave itself when it started.
    pub id: String,
}

/// What a server had written before it was followed here. It came all at once, so that nothing tells when it was
/// written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UntimedBacklog {
    /// The offset to which the server had come by then.
    pub until: u64,
    /// How many commands of the stretch before that change data.
    pub writes: u64,
}

/// How promptly a stretch was read: what lies in the socket has come, and nobody knows when.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReadDelays {
    /// What had come lay unread for at most so many milliseconds, but for the times in `held_up`.
    pub late_ms: u32,
    /// Times of a second and more in which the receiver was held up and read nothing, or only what had lain there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_up: Vec<(Timestamp, Timestamp)>,
}

/// The most times that are kept of one stretch: it lasts half a minute, unless nothing is written.
const MAX_RECORDED_PAUSES: usize = 16;

impl ReadDelays {
    /// What had come lay unread so long.
    pub fn record_lateness(&mut self, by: Duration) {
        self.late_ms = self.late_ms.max(u32::try_from(by.as_millis()).unwrap_or(u32::MAX).saturating_add(1));
    }

    /// Nothing, or not all that was there, was read in that time.
    pub fn record_pause(&mut self, from: Timestamp, to: Timestamp) {
        let full = self.held_up.len() >= MAX_RECORDED_PAUSES;
        match self.held_up.last_mut() {
            Some((_, end)) if full || from <= *end => *end = to.max(*end),
            _ => self.held_up.push((from, to)),
        }
    }
}

/// The name of a stretch within an instance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StretchName {
    /// Its history.
    pub replid: ReplicationId,
    /// The offset before its first byte.
    pub first: u64,
}

/// A stretch of the stream: what the metadata of its object says. It begins and ends between two commands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StreamStretch {
    /// The history.
    pub replid: ReplicationId,
    /// The offset before its first byte.
    pub first: u64,
    /// The offset after its last byte.
    pub last: u64,
    /// The database that its first command acts on.
    pub db: u32,
    /// Whether it begins within a transaction.
    pub in_transaction: bool,
    /// The database that the command after it acts on.
    pub db_after: u32,
    /// Whether a transaction is open at its end.
    pub in_transaction_after: bool,
    /// The history before, if this is the first stretch under a new name.
    pub follows: Option<PreviousHistory>,
    /// When the stream was there, without its first byte.
    pub started_at: Timestamp,
    /// When its last byte had come.
    pub ended_at: Timestamp,
    /// Commands in it that change data.
    pub writes: u64,
    /// What had come when, in order.
    pub marks: Vec<ArrivalMark>,
    /// From whom it came. Not said by the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<ServerRun>,
    /// What stands out in it. Not said by the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notable: Option<StretchDeletions>,
    /// How far the server's own clock was from the receiver's, by which `marks` are. Not said by the first versions,
    /// nor where it was not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockMeasurement>,
    /// What in it was written before the server was followed. Not said by the first versions, nor where the stretch
    /// only goes on from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<UntimedBacklog>,
    /// How promptly it was read. Not said by the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<ReadDelays>,
}

impl StreamStretch {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> StretchName {
        StretchName { replid: self.replid, first: self.first }
    }
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletionKind {
    /// `FLUSHALL`.
    FlushAll,
    /// `FLUSHDB`.
    FlushDb,
    /// Keys were deleted by `DEL` or `UNLINK`.
    Delete,
}

/// Something that stands out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deletion {
    /// What.
    pub what: DeletionKind,
    /// The offset before it: where its first command begins, or the transaction around that.
    pub before: u64,
    /// The offset after its last command.
    pub end: u64,
    /// The database.
    pub db: u32,
    /// Keys that were named.
    pub keys: u64,
    /// Commands.
    pub commands: u64,
}

/// All that stands out in a stretch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StretchDeletions {
    /// Deletions of fewer keys that belong together, and touch neither end of the stretch, were left out.
    pub floor: u64,
    /// In the order of the stream.
    pub found: Vec<Deletion>,
    /// Whether there was more than could be listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Whether deletions are noted in pieces. The first versions left out every second with fewer keys than `floor`, in
    /// the middle of a series too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pieces: bool,
}
