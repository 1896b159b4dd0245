//! What `walkeep log` prints of one thing that happened.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::event::Xid;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogEntryKind {
    /// A table was dropped, or a materialised view, or a sequence of its own.
    Drop,
    /// A table was emptied.
    Truncate,
    /// A table was written anew: VACUUM FULL, CLUSTER, or an ALTER TABLE that rewrites.
    Rewrite,
    /// A table lost its file, and nothing tells whether it was dropped or emptied (13 and 14).
    DropOrTruncate,
    /// A table lost its file and lives on: emptied, or written anew.
    TruncateOrRewrite,
    /// A database was dropped.
    DropDatabase,
    /// A database was created.
    CreateDatabase,
    /// A transaction deleted many rows of a table.
    Delete,
    /// A transaction updated many rows of a table.
    Update,
    /// A transaction changed very many rows, new ones included.
    LargeTransaction,
    /// `pg_create_restore_point()`.
    RestorePoint,
    /// A checkpoint. Only told when asked for.
    Checkpoint,
    /// A server was promoted: a new timeline begins.
    Promotion,
    /// Settings that WAL carries changed.
    Parameters,
    /// The server was stopped, or had come up again after a crash.
    Restart,
    /// A crash cut a record.
    Crash,
    /// A base backup ended. Only told when asked for.
    Backup,
}

impl LogEntryKind {
    /// Every kind.
    pub const ALL: [LogEntryKind; 17] = [
        LogEntryKind::Drop,
        LogEntryKind::Truncate,
        LogEntryKind::Rewrite,
        LogEntryKind::DropOrTruncate,
        LogEntryKind::TruncateOrRewrite,
        LogEntryKind::DropDatabase,
        LogEntryKind::CreateDatabase,
        LogEntryKind::Delete,
        LogEntryKind::Update,
        LogEntryKind::LargeTransaction,
        LogEntryKind::RestorePoint,
        LogEntryKind::Checkpoint,
        LogEntryKind::Promotion,
        LogEntryKind::Parameters,
        LogEntryKind::Restart,
        LogEntryKind::Crash,
        LogEntryKind::Backup,
    ];

    /// How it is written, on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LogEntryKind::Drop => "drop",
            LogEntryKind::Truncate => "truncate",
            LogEntryKind::Rewrite => "rewrite",
            LogEntryKind::DropOrTruncate => "drop-or-truncate",
            LogEntryKind::TruncateOrRewrite => "truncate-or-rewrite",
            LogEntryKind::DropDatabase => "drop-database",
            LogEntryKind::CreateDatabase => "create-database",
            LogEntryKind::Delete => "delete",
            LogEntryKind::Update => "update",
            LogEntryKind::LargeTransaction => "large-transaction",
            LogEntryKind::RestorePoint => "restore-point",
            LogEntryKind::Checkpoint => "checkpoint",
            LogEntryKind::Promotion => "promotion",
            LogEntryKind::Parameters => "parameters",
            LogEntryKind::Restart => "restart",
            LogEntryKind::Crash => "crash",
            LogEntryKind::Backup => "backup",
        }
    }

    /// Whether it is told without being asked for.
    #[must_use]
    pub const fn is_shown_by_default(self) -> bool {
        !matches!(self, LogEntryKind::Checkpoint | LogEntryKind::Backup)
    }

    /// Whether somebody who asks for `wanted` wants this: what may have been a drop is shown to whoever looks for
    /// drops.
    #[must_use]
    pub fn matches_kind(self, wanted: LogEntryKind) -> bool {
        self == wanted
            || matches!(
                (self, wanted),
                (LogEntryKind::DropOrTruncate, LogEntryKind::Drop | LogEntryKind::Truncate | LogEntryKind::Rewrite)
                    | (LogEntryKind::TruncateOrRewrite, LogEntryKind::Truncate | LogEntryKind::Rewrite)
            )
    }
}

/// Something that happened. Its JSON form is a line of `log --json`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LogEntry {
    /// When, by the server's clock: when its transaction committed. For what carries no time, that of what stands
    /// before it in the log.
    pub time: Option<PgTime>,
    /// Where it took effect: the record that a restore must not replay.
    pub lsn: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
    /// The transaction that did it.
    pub xid: Option<Xid>,
    /// What it was.
    pub kind: LogEntryKind,
    /// The database, by name or else by OID.
    pub database: Option<String>,
    /// The table with its schema, or else its OID or file number.
    pub relation: Option<String>,
    /// Rows that were changed, where that is what happened.
    pub rows: Option<u64>,
    /// What else there is to say.
    pub detail: Option<String>,
    /// The options that restore to just before it; none where there is nothing to undo.
    pub target: Option<String>,
}
