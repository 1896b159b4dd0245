//! What can go wrong on a replication connection, what to do about it, and whether trying again helps.

use std::io;
use std::time::Duration;

use super::conninfo::ConninfoError;
use super::message::{MessageError, ServerError};
use super::refusal::{ServerRefusal, SessionKind};
use super::tls::PgTlsError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;

/// A failure of a replication connection.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The connection string is wrong.
    #[error(transparent)]
    Conninfo(#[from] ConninfoError),
    /// No connection to the server's address.
    #[error("no connection to {host}")]
    Connect {
        /// Which server.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The server or the network is silent.
    #[error("{host} did not answer within {} s", limit.as_secs())]
    TimedOut {
        /// Which server.
        host: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The configuration of TLS is wrong.
    #[error(transparent)]
    Tls(#[from] PgTlsError),
    /// The TLS handshake failed, or the server has no TLS.
    #[error("no TLS with {host}: {problem}")]
    Handshake {
        /// Which server.
        host: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The connection ended in the middle of the TLS handshake.
    #[error("{host} was lost during the TLS handshake")]
    HandshakeCut {
        /// Which server.
        host: String,
        /// What the operating system reported.
        source: io::Error,
    },
    /// Logging in failed on our side: there is no password, or the server's way is not allowed.
    #[error("cannot log in to {host}: {problem}")]
    Login {
        /// Which server.
        host: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The server said no.
    #[error("{}", describe_server_error(error, advice))]
    Server {
        /// In its own words.
        error: Box<ServerError>,
        /// What to do about it, in ours; empty if there is nothing to add.
        advice: String,
    },
    /// The server speaks another language.
    #[error(transparent)]
    Protocol(#[from] MessageError),
    /// The server answered something that does not fit the question.
    #[error("the server gave an unexpected answer to {0}")]
    UnexpectedAnswer(&'static str),
    /// The connection broke or the server ended it.
    #[error("the server closed the connection")]
    ConnectionClosed(#[source] Option<io::Error>),
    /// Servers answered, but none is of the kind asked for.
    #[error("{host} is not {wanted} (target_session_attrs)")]
    WrongSession {
        /// Which server.
        host: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// Each of several servers or ways failed.
    #[error("no server can be used: {}", join_errors(.0))]
    NoServer(Vec<ReplicationError>),
}

impl HasKind for ReplicationError {
    fn kind(&self) -> ErrorKind {
        match self {
            ReplicationError::Connect { .. }
            | ReplicationError::TimedOut { .. }
            | ReplicationError::HandshakeCut { .. }
            | ReplicationError::ConnectionClosed(_)
            | ReplicationError::WrongSession { .. } => ErrorKind::Unavailable,
            ReplicationError::Server { error, .. } if is_from_pooler(error) => ErrorKind::Failed,
            ReplicationError::Server { error, .. } => kind_of_sqlstate(&error.code),
            ReplicationError::Conninfo(_) | ReplicationError::Tls(_) => ErrorKind::Usage,
            ReplicationError::Handshake { .. }
            | ReplicationError::Login { .. }
            | ReplicationError::Protocol(_)
            | ReplicationError::UnexpectedAnswer(_) => ErrorKind::Failed,
            ReplicationError::NoServer(errors) => {
                if errors.iter().any(|error| error.kind() == ErrorKind::Unavailable) {
                    ErrorKind::Unavailable
                } else {
                    ErrorKind::Failed
                }
            }
        }
    }
}

/// A chain of errors on one line; [`ReplicationError::NoServer`] has no single source, so each of its parts shows its
/// own.
fn join_errors(errors: &[ReplicationError]) -> String {
    let chain = |error: &ReplicationError| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}

fn describe_server_error(error: &ServerError, advice: &str) -> String {
    let mut text = error.message.clone();
    if let Some(detail) = &error.detail {
        text = format!("{text} ({})", detail.trim_end_matches('.'));
    }
    if advice.is_empty() {
        match &error.hint {
            Some(hint) => format!("{text}; {}", hint.trim_end_matches('.')),
            None => text,
        }
    } else {
        format!("{text}; {advice}")
    }
}

impl ReplicationError {
    /// An error the server answered a replication command with.
    #[must_use]
    pub fn from_server(error: ServerError) -> ReplicationError {
        let advice = server_error_advice(&error, SessionKind::Replication).to_owned();
        ReplicationError::Server { error: Box::new(error), advice }
    }

    /// The SQLSTATE, if the server said no.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            ReplicationError::Server { error, .. } => Some(&error.code),
            _ => None,
        }
    }

    fn is(&self, refusal: ServerRefusal) -> bool {
        matches!(self, ReplicationError::Server { error, .. }
            if ServerRefusal::of(error, SessionKind::Replication) == Some(refusal))
    }

    /// The server no longer has the WAL that was asked for. It is gone there, and trying again can't bring it back.
    #[must_use]
    pub fn is_wal_removed(&self) -> bool {
        self.is(ServerRefusal::WalRemoved)
    }

    /// The server has invalidated the slot (`max_slot_wal_keep_size`, `idle_replication_slot_timeout`). Before
    /// PostgreSQL 18 it streams from such a slot all the same, and holds no WAL for it.
    #[must_use]
    pub fn is_slot_lost(&self) -> bool {
        self.is(ServerRefusal::SlotLost)
    }

    /// There is no such slot.
    #[must_use]
    pub fn is_no_slot(&self) -> bool {
        self.is(ServerRefusal::NoSlot)
    }

    /// A slot of that name exists.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.is(ServerRefusal::SlotExists)
    }

    /// The asked-for timeline forked off before the asked-for position, so the server never had it.
    #[must_use]
    pub fn is_other_history(&self) -> bool {
        self.is(ServerRefusal::OtherHistory)
    }

    /// The asked-for position is beyond what the server has.
    #[must_use]
    pub fn is_ahead_of_server(&self) -> bool {
        self.is(ServerRefusal::AheadOfServer)
    }

    /// The server does not have the history of that timeline.
    #[must_use]
    pub fn is_no_history(&self) -> bool {
        self.is(ServerRefusal::NoHistoryFile)
    }

    /// Whether trying again helps.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }
}

/// What to do about a connection pooler. It may give each statement another session, and then no setting holds.
pub(crate) const POOLER_ADVICE: &str = "a connection pooler, such as PgBouncer, is between walkeep and the server, and \
    drops the settings that keep a session safe; connect to the server itself";

/// PgBouncer's refusal of a setting. It translates no message, and names no routine as PostgreSQL does.
fn is_from_pooler(error: &ServerError) -> bool {
    error.code == "08P01" && error.routine.is_empty() && error.message.starts_with("unsupported startup parameter")
}

/// By the class of the SQLSTATE (errcodes.txt).
fn kind_of_sqlstate(code: &str) -> ErrorKind {
    match code {
        // The slot may be held by a connection of ours that the server doesn't know to be dead yet.
        "55006" => ErrorKind::Unavailable,
        // All slots are in use, or the like: a setting must be changed first.
        "53400" => ErrorKind::Failed,
        // Connection exceptions, insufficient resources, operator intervention, system errors.
        code if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => ErrorKind::Unavailable,
        "58000" | "58030" => ErrorKind::Unavailable,
        _ => ErrorKind::Failed,
    }
}

/// What the user can do, where the server doesn't say.
fn server_error_advice(error: &ServerError, session: SessionKind) -> &'static str {
    ServerRefusal::of(error, session).map_or("", ServerRefusal::advice)
}

/// What was known about a login that the server refused.
#[derive(Debug, Clone)]
pub(crate) struct LoginAttempt {
    pub(crate) user: String,
    pub(crate) session: SessionKind,
    /// The database as pg_hba.conf names it.
    pub(crate) database: String,
    /// Our own address as the server sees it, unless a router changes it; `None` for a Unix socket.
    pub(crate) from: Option<std::net::IpAddr>,
    pub(crate) encrypted: bool,
    /// Where the password came from.
    pub(crate) password_from: String,
}

impl LoginAttempt {
    /// The server's refusal, with the line, command or file that fixes it.
    pub(crate) fn explain(&self, error: ServerError) -> ReplicationError {
        let refusal = ServerRefusal::of(&error, self.session);
        let attributes = match self.session {
            SessionKind::Replication => "LOGIN REPLICATION",
            SessionKind::Sql => "LOGIN",
        };
        let advice = match (error.code.as_str(), refusal) {
            (_, Some(ServerRefusal::HbaRefused)) => format!(
                "add to pg_hba.conf and reload the server: {}",
                match self.from {
                    None => format!("local {} {} scram-sha-256", self.database, self.user),
                    Some(address) => format!(
                        "{} {} {} {address}/{} scram-sha-256",
                        if self.encrypted { "hostssl" } else { "host" },
                        self.database,
                        self.user,
                        if address.is_ipv4() { 32 } else { 128 }
                    ),
                }
            ),
            ("28P01", _) => format!("the password came from {}", self.password_from),
            _ if is_from_pooler(&error) => POOLER_ADVICE.to_owned(),
            (_, Some(ServerRefusal::UnknownRole)) => format!(
                "create it: CREATE ROLE {0} {attributes} PASSWORD '…'; or, if it exists: ALTER ROLE {0} {attributes}",
                self.user
            ),
            (_, Some(ServerRefusal::NoReplicationRole)) if self.session == SessionKind::Replication => {
                format!("run as a superuser: ALTER ROLE {} REPLICATION", self.user)
            }
            _ => server_error_advice(&error, self.session).to_owned(),
        };
        ReplicationError::Server { error: Box::new(error), advice }
    }
}

#[cfg(test)]
mod tests {
    use super::ReplicationError;
    use crate::base::retry::ErrorClass;
    use crate::postgres::wire::message::ServerError;

    fn server(code: &str, routine: &str, message: &str) -> ReplicationError {
        ReplicationError::from_server(ServerError {
            code: code.into(),
            routine: routine.into(),
            message: message.into(),
            ..ServerError::default()
        })
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (code, routine, class) in [
            ("28P01", "auth_failed", ErrorClass::Permanent),
            ("57P03", "ProcessStartupPacket", ErrorClass::Transient),
            ("57P01", "ProcessInterrupts", ErrorClass::Transient),
            ("53300", "InitProcess", ErrorClass::Transient),
            ("55006", "ReplicationSlotAcquire", ErrorClass::Transient),
            ("58P01", "WalSndSegmentOpen", ErrorClass::Permanent),
            ("42601", "replication_yyerror", ErrorClass::Permanent),
        ] {
            assert_eq!(server(code, routine, "").class(), class, "{code}");
        }
        assert!(server("58P01", "WalSndSegmentOpen", "segmento eliminado").is_wal_removed());
        assert!(!server("58P01", "sendFile", "has already been removed").is_wal_removed());
        assert!(server("55006", "ReplicationSlotAcquire", "").to_string().contains("another receiver"));
    }
}
