//! Which refusal of a server is which.
//!
//! A server translates its messages (`lc_messages`), so no decision may depend on their words. What it never translates
//! are the SQLSTATE and the name of the C function that raised the error (the fields `C` and `R` of `ErrorResponse`).
//! Both together name a refusal: `58P01` alone is any absent file, and `WalSndSegmentOpen` alone is any failure to open
//! a segment.
//!
//! These are the pairs of PostgreSQL 13 to 18, from `walsender.c`, `slot.c`, `xlog.c`, `timeline.c`, `postinit.c`,
//! `proc.c`, `auth.c`, `miscinit.c` and `basebackup.c`. The integration tests read each from a server of each major.
//!
//! | refusal | SQLSTATE | routine | versions |
//! | --- | --- | --- | --- |
//! | the WAL was removed | 58P01 | `WalSndSegmentOpen`; `CheckXLogRemoved` if it vanished while it was read | 13–18 |
//! | the slot is invalidated | 55000 | `ReplicationSlotAcquire`; before 18 the slot can be streamed from | 18 |
//! | no such slot | 42704 | `ReplicationSlotAcquireInternal` | 13 |
//! | no such slot | 42704 | `ReplicationSlotAcquire` | 14–18 |
//! | the slot exists | 42710 | `ReplicationSlotCreate` | 13–18 |
//! | the slot is in use | 55006 | `ReplicationSlotAcquireInternal` | 13 |
//! | the slot is in use | 55006 | `ReplicationSlotAcquire` | 14–18 |
//! | no slot is free | 53400 | `ReplicationSlotCreate` | 13–18 |
//! | another history | XX000 | `StartReplication` with a detail (the fork); `tliSwitchPoint` | 13–18 |
//! | ahead of the server | XX000 | `StartReplication` without a detail | 13–18 |
//! | no history file | 58P01 | `SendTimeLineHistory` | 13–18 |
//! | not a replication role | 42501 | `InitPostgres` | 13–18 |
//! | no right to connect | 42501 | `CheckMyDatabase` | 13–18 |
//! | an unreadable file | 42501 | `sendFile`, `ReadDirExtended`, `WalSndSegmentOpen`, `SendTimeLineHistory` | 13–18 |
//! | no WAL sender is free | 53300 | `InitProcess` in a replication session | 13–18 |
//! | the role's limit | 53300 | `InitializeSessionUserId` | 13–18 |
//! | the database's limit | 53300 | `CheckMyDatabase` | 13–18 |
//! | no connection is free | 53300 | `ProcessStartupPacket`, `InitPostgres`; `InitProcess` for SQL | 13–18 |
//! | refused by pg_hba.conf | 28000 | `ClientAuthentication` | 13–18 |
//! | no such role, or one that may not log in | 28000 | `InitializeSessionUserId` | 13–18 |

use super::message::ServerError;

/// What kind of session a server refused something in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionKind {
    /// Physical replication.
    Replication,
    /// Ordinary SQL.
    Sql,
}

/// A refusal on which a decision depends, or for which walkeep has advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerRefusal {
    WalRemoved,
    SlotLost,
    NoSlot,
    SlotExists,
    SlotInUse,
    NoFreeSlot,
    OtherHistory,
    AheadOfServer,
    NoHistoryFile,
    NoReplicationRole,
    NoConnectPrivilege,
    UnreadableFile,
    NoFreeWalSender,
    RoleLimit,
    DatabaseLimit,
    NoFreeConnection,
    HbaRefused,
    UnknownRole,
}

impl ServerRefusal {
    /// The refusal that `error` is; `None` for one that is not in the table.
    pub(super) fn of(error: &ServerError, session: SessionKind) -> Option<ServerRefusal> {
        Some(match (error.code.as_str(), error.routine.as_str()) {
            ("58P01", "WalSndSegmentOpen" | "CheckXLogRemoved") => ServerRefusal::WalRemoved,
            ("58P01", "SendTimeLineHistory") => ServerRefusal::NoHistoryFile,
            ("55000", "ReplicationSlotAcquire") => ServerRefusal::SlotLost,
            ("42704", "ReplicationSlotAcquire" | "ReplicationSlotAcquireInternal") => ServerRefusal::NoSlot,
            ("42710", "ReplicationSlotCreate") => ServerRefusal::SlotExists,
            ("55006", "ReplicationSlotAcquire" | "ReplicationSlotAcquireInternal") => ServerRefusal::SlotInUse,
            ("53400", "ReplicationSlotCreate") => ServerRefusal::NoFreeSlot,
            ("XX000", "tliSwitchPoint") => ServerRefusal::OtherHistory,
            ("XX000", "StartReplication") if error.detail.is_some() => ServerRefusal::OtherHistory,
            ("XX000", "StartReplication") => ServerRefusal::AheadOfServer,
            ("42501", "InitPostgres") => ServerRefusal::NoReplicationRole,
            ("42501", "CheckMyDatabase") => ServerRefusal::NoConnectPrivilege,
            ("42501", "sendFile" | "ReadDirExtended" | "WalSndSegmentOpen" | "SendTimeLineHistory") => {
                ServerRefusal::UnreadableFile
            }
            ("53300", "InitProcess") if session == SessionKind::Replication => ServerRefusal::NoFreeWalSender,
            ("53300", "InitializeSessionUserId") => ServerRefusal::RoleLimit,
            ("53300", "CheckMyDatabase") => ServerRefusal::DatabaseLimit,
            ("53300", "InitProcess" | "ProcessStartupPacket" | "InitPostgres") => ServerRefusal::NoFreeConnection,
            ("28000", "ClientAuthentication") => ServerRefusal::HbaRefused,
            ("28000", "InitializeSessionUserId") => ServerRefusal::UnknownRole,
            _ => return None,
        })
    }

    /// What the user can do about it; empty if the server's own words are enough.
    pub(super) fn advice(self) -> &'static str {
        match self {
            ServerRefusal::WalRemoved => {
                "that WAL is gone from the server; take a new base backup, and use a slot so that it can't happen again"
            }
            ServerRefusal::SlotLost => {
                "the server has invalidated the slot; walkeep receive drops it and creates it again"
            }
            ServerRefusal::NoSlot => "the slot was dropped; walkeep receive creates a new one at its next start",
            ServerRefusal::SlotInUse => {
                "another receiver uses the slot, or a dead connection holds it until wal_sender_timeout"
            }
            ServerRefusal::NoFreeSlot => {
                "raise max_replication_slots and restart the server, or drop a slot that is not used"
            }
            ServerRefusal::NoReplicationRole => "run as a superuser: ALTER ROLE … REPLICATION",
            ServerRefusal::NoConnectPrivilege => "run as its owner: GRANT CONNECT ON DATABASE … TO …",
            ServerRefusal::UnreadableFile => {
                "the server cannot read a file of its own data directory: give it back to the server's user, or move \
                 it out of the data directory"
            }
            ServerRefusal::NoFreeWalSender => {
                "raise max_wal_senders and restart the server, or end another standby or backup"
            }
            ServerRefusal::RoleLimit => "raise the role's limit: ALTER ROLE … CONNECTION LIMIT …",
            ServerRefusal::DatabaseLimit => "raise the database's limit: ALTER DATABASE … CONNECTION LIMIT …",
            ServerRefusal::NoFreeConnection => "raise max_connections and restart the server, or end other sessions",
            ServerRefusal::SlotExists
            | ServerRefusal::OtherHistory
            | ServerRefusal::AheadOfServer
            | ServerRefusal::NoHistoryFile
            | ServerRefusal::HbaRefused
            | ServerRefusal::UnknownRole => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ServerRefusal, SessionKind};
    use crate::postgres::wire::message::ServerError;

    fn refusal(code: &str, routine: &str, detail: Option<&str>, message: &str) -> Option<ServerRefusal> {
        let error = ServerError {
            code: code.into(),
            routine: routine.into(),
            detail: detail.map(str::to_owned),
            message: message.into(),
            ..ServerError::default()
        };
        ServerRefusal::of(&error, SessionKind::Replication)
    }

    #[test]
    fn the_words_of_a_message_decide_nothing() {
        let german = "angefordertes WAL-Segment 000000010000000000000001 wurde schon entfernt";
        assert_eq!(refusal("58P01", "WalSndSegmentOpen", None, german), Some(ServerRefusal::WalRemoved));
        for (code, routine, message) in [
            ("58P01", "sendFile", "requested WAL segment 000000010000000000000001 has already been removed"),
            ("XX000", "XLogReadRecord", "requested starting point 0/1 is not in this server's history"),
            (
                "XX000",
                "XLogReadRecord",
                "requested starting point 0/1 is ahead of the WAL flush position of this server",
            ),
            ("55000", "StartReplication", "can no longer access replication slot \"a\""),
            ("42704", "find_option", "replication slot \"a\" does not exist"),
            ("42501", "aclcheck_error", "must be superuser or replication role to start walsender"),
            ("28000", "auth_failed", "no pg_hba.conf entry for replication connection"),
        ] {
            assert_eq!(refusal(code, routine, None, message), None, "{message}");
        }
    }

    #[test]
    fn the_fork_tells_another_history_from_a_position_ahead() {
        let detail = Some("Die Geschichte dieses Servers zweigte ab");
        assert_eq!(refusal("XX000", "StartReplication", detail, "x"), Some(ServerRefusal::OtherHistory));
        assert_eq!(refusal("XX000", "StartReplication", None, "x"), Some(ServerRefusal::AheadOfServer));
    }

    #[test]
    fn one_sqlstate_leads_to_different_advice() {
        let advice = |code: &str, routine: &str, session| {
            let error = ServerError { code: code.into(), routine: routine.into(), ..ServerError::default() };
            ServerRefusal::of(&error, session).map_or("", ServerRefusal::advice)
        };
        for (code, routine, session, holds) in [
            ("42501", "InitPostgres", SessionKind::Replication, "REPLICATION"),
            ("42501", "sendFile", SessionKind::Replication, "data directory"),
            ("53300", "InitProcess", SessionKind::Replication, "max_wal_senders"),
            ("53300", "InitProcess", SessionKind::Sql, "max_connections"),
            ("53300", "ProcessStartupPacket", SessionKind::Replication, "max_connections"),
            ("53300", "InitializeSessionUserId", SessionKind::Replication, "CONNECTION LIMIT"),
        ] {
            assert!(advice(code, routine, session).contains(holds), "{code} {routine}");
        }
        assert_eq!(advice("42501", "aclcheck_error", SessionKind::Sql), "");
    }
}
