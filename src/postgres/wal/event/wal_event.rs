//! What is found in records.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::catalog::{CatalogChange, RowCounts};
use crate::postgres::wal::identifiers::{RelFileLocator, Xid};

/// A transaction that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct TransactionEnd {
    /// Where its record starts: what a target LSN has to name.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end_lsn: Lsn,
    /// The transaction that ended; for a prepared one that of the body, not of the record's header, which is 0.
    pub xid: Xid,
    /// When, by the clock of the server, taken before the record got its place: in LSN order these go backwards now and
    /// then.
    pub time: PgTime,
    /// How.
    pub kind: TransactionEndKind,
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TransactionEndKind {
    /// `XLOG_XACT_COMMIT`.
    Commit,
    /// `XLOG_XACT_ABORT`.
    Abort,
    /// `XLOG_XACT_COMMIT_PREPARED`.
    CommitPrepared,
    /// `XLOG_XACT_ABORT_PREPARED`.
    AbortPrepared,
}

impl TransactionEndKind {
    /// Whether the transaction's work is there afterwards.
    #[must_use]
    pub const fn is_commit(self) -> bool {
        matches!(self, TransactionEndKind::Commit | TransactionEndKind::CommitPrepared)
    }
}

/// Something that happened at a place in the log, other than the mere end of a transaction.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct WalEvent {
    /// Where its record starts.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end_lsn: Lsn,
    /// The transaction it belongs to; none for what the server does by itself.
    pub xid: Xid,
    /// What happened.
    pub kind: WalEventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WalEventKind {
    /// `XLOG_CHECKPOINT_SHUTDOWN` or `XLOG_CHECKPOINT_ONLINE`.
    Checkpoint(CheckpointRecord),
    /// `XLOG_PARAMETER_CHANGE`: what a standby or a restored server has to have at least.
    Parameters(WalParameters),
    /// `XLOG_RESTORE_POINT`.
    RestorePoint {
        /// The name given to `pg_create_restore_point`; bytes that are no UTF-8 are replaced.
        name: String,
        /// When.
        time: PgTime,
    },
    /// `XLOG_END_OF_RECOVERY`: a server was promoted, and goes on here on a timeline of its own.
    EndOfRecovery {
        /// When.
        time: PgTime,
        /// The new timeline.
        timeline: TimelineId,
        /// The one it left.
        previous: TimelineId,
    },
    /// `XLOG_BACKUP_END`: the end of the base backup that began at `start`.
    BackupEnd {
        /// The redo position of the backup's checkpoint.
        start: Lsn,
    },
    /// `XLOG_SWITCH`: the rest of the segment means nothing.
    Switch,
    /// `XLOG_FPW_CHANGE`.
    FullPageWrites {
        /// Whether `full_page_writes` is on from here.
        on: bool,
    },
    /// `XLOG_OVERWRITE_CONTRECORD`: a crash cut the record at `overwritten`, and it is void.
    OverwriteContrecord {
        /// Where the void record starts.
        overwritten: Lsn,
        /// When the server found out.
        time: PgTime,
    },
    /// A commit that dropped objects (its dropped statistics, 15 and newer).
    Drop(RemovedObjects),
    /// A commit that removed files and no objects: TRUNCATE, or a rewrite by VACUUM FULL, CLUSTER, REINDEX, ALTER
    /// TABLE. Until 14, where commits don't list objects, a DROP looks the same.
    Rewrite(RemovedObjects),
    /// `XLOG_HEAP_TRUNCATE`: TRUNCATE in a cluster of `wal_level = logical`.
    Truncate {
        /// The database.
        database: u32,
        /// The tables' OIDs, the first [`MAX_ITEMS`] of them.
        relations: Vec<u32>,
        /// How many tables there were.
        total: u32,
        /// TRUNCATE … CASCADE.
        cascade: bool,
        /// TRUNCATE … RESTART IDENTITY.
        restart_identity: bool,
    },
    /// `XLOG_SMGR_TRUNCATE` to nothing: TRUNCATE of a table made in the same transaction, or VACUUM of one that has
    /// become empty.
    FileEmptied {
        /// The file.
        file: RelFileLocator,
    },
    /// `XLOG_DBASE_DROP`.
    DropDatabase {
        /// Its OID.
        database: u32,
    },
    /// Rows of one table that a transaction changed in one segment, from the first record to the last. Not a record but
    /// the sum of many.
    Rows {
        /// The table's file.
        file: RelFileLocator,
        /// How many.
        counts: RowCounts,
        /// The transaction committed in the same segment: there is no more to come.
        ended: bool,
    },
    /// A change of a catalog that holds names.
    Catalog(Box<CatalogChange>),
    /// `XLOG_DBASE_CREATE`.
    CreateDatabase {
        /// Its OID.
        database: u32,
    },
    /// `XLOG_TBLSPC_CREATE`. Replaying it works at `location` itself, wherever the server that replays it lies.
    CreateTablespace {
        /// Its OID.
        tablespace: u32,
        /// Its directory; empty for one that lies in the data directory. Bytes that are no UTF-8 are replaced.
        location: String,
    },
    /// A commit that names subtransactions of which the segment shows nothing else, or much, so that there may be more
    /// in earlier ones; the first [`MAX_SUBTRANSACTIONS`] of them.
    Subtransactions {
        /// Their numbers.
        of: Vec<Xid>,
    },
}

impl WalEventKind {
    /// The timelines before and after, where a new one begins.
    #[must_use]
    pub fn new_timeline(&self) -> Option<(TimelineId, TimelineId)> {
        match self {
            WalEventKind::EndOfRecovery { timeline, previous, .. }
            | WalEventKind::Checkpoint(CheckpointRecord { timeline, previous_timeline: previous, .. })
                if previous != timeline =>
            {
                Some((*previous, *timeline))
            }
            _ => None,
        }
    }
}

/// The most objects, files or tables that one event names; the rest is counted. A DROP SCHEMA may remove a hundred
/// thousand, and an event is there to be found and read, not to be replayed.
pub const MAX_ITEMS: usize = 64;

/// The most subtransactions that one event names.
pub const MAX_SUBTRANSACTIONS: usize = 4096;

/// A checkpoint (`CheckPoint`, `pg_control.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct CheckpointRecord {
    /// Written at shutdown, or at the end of recovery.
    pub shutdown: bool,
    /// Where recovery from this checkpoint begins.
    pub redo: Lsn,
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// The timeline before, if this record begins a new one; else the same.
    pub previous_timeline: TimelineId,
    /// When, in whole seconds.
    pub time: PgTime,
    /// `full_page_writes` at that moment; a backup taken from a standby needs it on throughout.
    pub full_page_writes: bool,
}

/// The settings that WAL carries (`xl_parameter_change`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct WalParameters {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// `wal_level` (`WalLevel`, `xlog.h`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WalLevel {
    /// Enough for a crash, not for an archive: no recovery gets past WAL written under it.
    Minimal,
    /// The default.
    Replica,
    /// With what logical decoding needs.
    Logical,
}

/// What a commit removed.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RemovedObjects {
    /// When the transaction committed.
    pub time: PgTime,
    /// The database of the session that did it, where the record says.
    pub database: Option<u32>,
    /// The dropped objects, the first [`MAX_ITEMS`] of them.
    pub objects: Vec<DroppedObject>,
    /// How many objects there were.
    pub objects_total: u32,
    /// The removed files, the first [`MAX_ITEMS`] of them.
    pub files: Vec<RelFileLocator>,
    /// How many files there were.
    pub files_total: u32,
}

/// An object whose statistics were dropped (`xl_xact_stats_item`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
pub struct DroppedObject {
    /// What it was.
    pub kind: DroppedObjectKind,
    /// Its database's OID, 0 for what all databases share.
    pub database: u32,
    /// Its OID; 64 bits since 18.
    pub object: u64,
}

/// What an object is, as far as statistics tell (`PgStat_Kind`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DroppedObjectKind {
    /// A database.
    Database,
    /// A table, index, sequence, TOAST table or materialised view.
    Relation,
    /// A function or procedure.
    Function,
    /// A subscription.
    Subscription,
    /// Another kind, by its number.
    Other(u32),
}
