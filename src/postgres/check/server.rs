//! What a running server says of itself, and what of it stands in the way of archiving.

use std::collections::BTreeMap;

use crate::postgres::format::timeline::TimelineId;
use crate::postgres::sql::{RolePrivileges, SqlError, SqlSession};
use crate::postgres::wire::{Conninfo, ReplicationConnection, ReplicationError, SystemIdentity};

/// The settings looked at.
const INSPECTED_SETTINGS: [&str; 11] = [
    "archive_command",
    "archive_library",
    "archive_mode",
    "archive_timeout",
    "fsync",
    "full_page_writes",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "server_version",
    "wal_level",
];
/// The oldest server whose WAL and protocol are known, as in `server_version_num`.
const MIN_SERVER_VERSION_NUM: u32 = 130_000;

/// Why a server could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It takes no replication connection.
    #[error("cannot connect for replication")]
    Replication(#[source] ReplicationError),
    /// It did not identify itself.
    #[error("cannot ask which cluster this is")]
    Identity(#[source] ReplicationError),
    /// It takes no SQL connection.
    #[error("cannot connect for SQL")]
    Sql(#[source] SqlError),
    /// It did not answer a query.
    #[error("{0}")]
    Query(#[from] SqlError),
}

/// A server, looked at once.
#[derive(Debug)]
pub struct InspectedServer {
    /// Where it was reached.
    pub peer: String,
    /// Its `server_version_num`.
    pub version: u32,
    /// Which cluster it is, and how far.
    pub identity: SystemIdentity,
    /// Whether it is in recovery.
    pub standby: bool,
    /// What the role that walkeep uses may do.
    pub privileges: RolePrivileges,
    /// Those of its settings that archiving depends on.
    pub settings: BTreeMap<String, String>,
}

/// Something about a server that should be otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerAdvice {
    /// Whether archiving cannot work without it.
    pub needed: bool,
    /// The line for postgresql.conf, or the statement to run.
    pub line: String,
    /// Why, in a few words.
    pub why: &'static str,
}

impl InspectedServer {
    /// Asks the server behind `info`, once as a replica and once in SQL.
    ///
    /// # Errors
    /// It cannot be reached, or did not answer.
    pub async fn inspect(info: &Conninfo) -> Result<(InspectedServer, SqlSession), InspectError> {
        let mut replica = ReplicationConnection::connect(info).await.map_err(InspectError::Replication)?;
        let identity = replica.identify_system().await.map_err(InspectError::Identity)?;
        let peer = replica.peer().to_owned();
        replica.close().await;
        let sql = SqlSession::connect(info).await.map_err(InspectError::Sql)?;
        let server = InspectedServer {
            peer,
            version: sql.version_num().await?,
            identity,
            standby: sql.in_recovery().await?,
            privileges: sql.privileges().await?,
            settings: sql.settings(&INSPECTED_SETTINGS).await?,
        };
        Ok((server, sql))
    }

    /// The version as people say it: `17.11`.
    #[must_use]
    pub fn release(&self) -> String {
        format!("{}.{}", self.version / 10_000, self.version % 10_000)
    }

    /// The timeline it is on.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.identity.timeline
    }

    /// Whether the server's own archiver hands its WAL to walkeep.
    #[must_use]
    pub fn uses_archive_command(&self) -> bool {
        let setting = |name: &str| self.settings.get(name).map_or("", String::as_str);
        setting("archive_mode") != "off" && setting("archive_command").contains("archive-push")
    }

    /// What should be otherwise. `push` is the `archive_command` that would feed walkeep.
    #[must_use]
    pub fn advice(&self, push: &str) -> Vec<ServerAdvice> {
        let mut advice = Vec::new();
        let mut say = |needed, line: String, why| advice.push(ServerAdvice { needed, line, why });
        let setting = |name: &str| self.settings.get(name).map_or("", String::as_str);
        let number = |name: &str| setting(name).parse::<i64>().unwrap_or(0);
        if self.version < MIN_SERVER_VERSION_NUM {
            say(true, "upgrade to PostgreSQL 13 or newer".to_owned(), "older WAL is not known here");
        }
        if setting("wal_level") == "minimal" {
            say(true, "wal_level = replica".to_owned(), "minimal WAL cannot be replayed; needs a restart");
        }
        if number("max_wal_senders") < 2 {
            say(true, "max_wal_senders = 10".to_owned(), "one streams, one takes backups; needs a restart");
        }
        if number("max_replication_slots") < 1 {
            say(true, "max_replication_slots = 10".to_owned(), "a slot holds WAL for the receiver; needs a restart");
        }
        if setting("archive_mode") == "off" {
            say(false, "archive_mode = on".to_owned(), "a second way in, beside the receiver; needs a restart");
        }
        if !setting("archive_command").contains("archive-push") && setting("archive_library").is_empty() {
            say(false, format!("archive_command = '{}'", push.replace('\'', "''")), "for the same");
        }
        if setting("fsync") == "off" {
            say(false, "fsync = on".to_owned(), "without it a crash can corrupt the server itself");
        }
        if setting("full_page_writes") == "off" && self.standby {
            say(true, "full_page_writes = on".to_owned(), "on the primary; a backup from a standby needs it");
        }
        let role = quote_identifier(&self.privileges.role);
        if !self.privileges.superuser && !self.privileges.replication {
            say(true, format!("ALTER ROLE {role} REPLICATION;"), "to stream and to take backups");
        }
        if !self.privileges.superuser && !self.privileges.switch_wal {
            let grant = format!("GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {role};");
            say(false, grant, "so that check and backup need not wait for a segment to fill");
        }
        advice
    }
}

/// An SQL identifier.
fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{InspectedServer, TimelineId};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::SystemId;
    use crate::postgres::sql::RolePrivileges;
    use crate::postgres::wire::SystemIdentity;

    fn server(settings: &[(&str, &str)]) -> InspectedServer {
        let usual = [
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("archive_mode", "on"),
            ("archive_command", "walkeep archive-push %p"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
        ];
        let settings: BTreeMap<String, String> =
            usual.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let identity =
            SystemIdentity { system_id: SystemId::new(7), timeline: TimelineId::FIRST, flushed: Lsn::new(0) };
        let privileges = RolePrivileges {
            role: "wal\"keep".to_owned(),
            superuser: false,
            replication: true,
            switch_wal: true,
            restore_point: false,
        };
        InspectedServer { peer: "/run".to_owned(), version: 170_011, identity, standby: false, privileges, settings }
    }

    #[test]
    fn a_server_that_is_set_up_needs_nothing() {
        assert_eq!(server(&[]).advice("push"), []);
        assert_eq!(server(&[]).release(), "17.11");
        assert!(server(&[]).uses_archive_command());
    }

    #[test]
    fn each_wrong_setting_gets_its_line() {
        for (name, value, needed, line) in [
            ("wal_level", "minimal", true, "wal_level = replica"),
            ("max_wal_senders", "1", true, "max_wal_senders = 10"),
            ("max_replication_slots", "0", true, "max_replication_slots = 10"),
            ("archive_mode", "off", false, "archive_mode = on"),
            ("archive_command", "(disabled)", false, "archive_command = 'it''s %p'"),
            ("fsync", "off", false, "fsync = on"),
        ] {
            let advice = server(&[(name, value)]).advice("it's %p");
            let seen: Vec<(bool, &str)> = advice.iter().map(|advice| (advice.needed, advice.line.as_str())).collect();
            assert_eq!(seen, [(needed, line)], "{name} = {value}");
        }
        assert!(!server(&[("archive_mode", "off")]).uses_archive_command());
    }

    #[test]
    fn missing_privileges_are_statements_to_run() {
        let mut poor = server(&[]);
        (poor.privileges.replication, poor.privileges.switch_wal) = (false, false);
        let lines: Vec<String> = poor.advice("").into_iter().map(|advice| advice.line).collect();
        assert_eq!(
            lines,
            [
                "ALTER ROLE \"wal\"\"keep\" REPLICATION;",
                "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO \"wal\"\"keep\";"
            ]
        );
        poor.privileges.superuser = true;
        assert_eq!(poor.advice(""), []);
    }
}
