//! What happened in a Redis instance, as it is told.

use jiff::Timestamp;

use crate::redis::format::position::StreamPosition;
use crate::redis::format::replication_id::ReplicationId;

/// Keys that must be deleted together to be told, unless asked otherwise.
pub const DEFAULT_MIN_DELETED_KEYS: u64 = 1000;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogEntryKind {
    /// All databases were emptied.
    FlushAll,
    /// A database was emptied.
    FlushDb,
    /// Many keys were deleted together.
    Delete,
    /// The server was started anew.
    Restart,
    /// Another server became the master.
    Failover,
    /// Part of the stream was lost.
    Gap,
    /// A snapshot was taken. Only told when asked for.
    Snapshot,
}

impl LogEntryKind {
    /// Every kind.
    pub const ALL: [LogEntryKind; 7] = [
        LogEntryKind::FlushAll,
        LogEntryKind::FlushDb,
        LogEntryKind::Delete,
        LogEntryKind::Restart,
        LogEntryKind::Failover,
        LogEntryKind::Gap,
        LogEntryKind::Snapshot,
    ];

    /// How it is written, on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LogEntryKind::FlushAll => "flush-all",
            LogEntryKind::FlushDb => "flush-db",
            LogEntryKind::Delete => "delete",
            LogEntryKind::Restart => "restart",
            LogEntryKind::Failover => "failover",
            LogEntryKind::Gap => "gap",
            LogEntryKind::Snapshot => "snapshot",
        }
    }

    /// Whether it is told without being asked for.
    #[must_use]
    pub const fn is_shown_by_default(self) -> bool {
        !matches!(self, LogEntryKind::Snapshot)
    }
}

/// Something that happened. Its JSON form is a line of `log redis --json`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LogEntry {
    /// When it had come, by the receiver's clock; a break: when it was noticed.
    pub time: Timestamp,
    /// When the last of it had come, if it took its time.
    pub end_time: Option<Timestamp>,
    /// The offset before it.
    pub offset: Option<u64>,
    /// The history that counts this offset.
    pub replid: Option<String>,
    /// What it was.
    pub kind: LogEntryKind,
    /// The database.
    pub database: Option<u32>,
    /// Keys: that were deleted, or that are in a snapshot.
    pub keys: Option<u64>,
    /// Commands that did it.
    pub commands: Option<u64>,
    /// What else there is to say.
    pub detail: Option<String>,
    /// The option that restores to just before it; none where nothing leads there.
    pub target: Option<String>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogQuery {
    /// Only what happened then or later.
    pub since: Option<Timestamp>,
    /// Only what happened then or earlier.
    pub until: Option<Timestamp>,
    /// Only these kinds; the usual ones if empty.
    pub kinds: Vec<LogEntryKind>,
    /// Keys that must be deleted together to be told.
    pub keys: u64,
}

impl LogQuery {
    /// Whether this is among what was asked for.
    #[must_use]
    pub fn matches(&self, happening: &LogEntry) -> bool {
        let after = self.since.is_none_or(|since| happening.end_time.unwrap_or(happening.time) >= since);
        let before = self.until.is_none_or(|until| happening.time <= until);
        let kind = match self.kinds.as_slice() {
            [] => happening.kind.is_shown_by_default(),
            kinds => kinds.contains(&happening.kind),
        };
        let many = happening.kind != LogEntryKind::Delete || happening.keys >= Some(self.keys);
        after && before && kind && many
    }
}

/// Times are told in microseconds, as all others are; clocks have more.
pub(super) fn truncate_times(happening: LogEntry) -> LogEntry {
    let time = Timestamp::from_microsecond(happening.time.as_microsecond()).unwrap_or(happening.time);
    let end_time = happening.end_time.and_then(|time| Timestamp::from_microsecond(time.as_microsecond()).ok());
    LogEntry { time, end_time, ..happening }
}

/// A history's name as people see it.
pub(super) fn short_replid(replid: ReplicationId) -> String {
    StreamPosition::new(replid, 0).history
}

/// Something of which no more is known.
pub(super) const fn bare_event(kind: LogEntryKind, time: Timestamp) -> LogEntry {
    LogEntry {
        time,
        end_time: None,
        offset: None,
        replid: None,
        kind,
        database: None,
        keys: None,
        commands: None,
        detail: None,
        target: None,
    }
}
