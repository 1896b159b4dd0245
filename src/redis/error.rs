//! What can go wrong with a Redis server, and what may be tried again.

use std::io;

use super::tls::TlsError;
use crate::resp;
use crate::retry::Class;

/// Why a server did not do what was asked. Names the server by its address and never shows a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be reached, or the connection broke.
    #[error("Redis at {server}: {source}")]
    Socket {
        /// Which server.
        server: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It closed the connection.
    #[error(
        "Redis at {server} closed the connection while {during}; its log says why (a replica that reads too slowly is cut off by \
         client-output-buffer-limit)"
    )]
    Closed {
        /// Which server.
        server: String,
        /// What was under way.
        during: &'static str,
    },
    /// It said nothing for too long.
    #[error("Redis at {server} said nothing for {seconds} seconds while {during}")]
    Silent {
        /// Which server.
        server: String,
        /// What was under way.
        during: &'static str,
        /// How long.
        seconds: u64,
    },
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It does not let us in.
    #[error(
        "Redis at {server} does not let walkeep in: {message}; give the user and password that `ACL SETUSER walkeep on >… +psync +replconf \
         +ping +info` made, or the requirepass"
    )]
    Login {
        /// Which server.
        server: String,
        /// What it said.
        message: String,
    },
    /// It can't do it now: it is loading, or a replica without its master.
    #[error("Redis at {server} is not ready: {message}")]
    NotReady {
        /// Which server.
        server: String,
        /// What it said.
        message: String,
    },
    /// It refused a command.
    #[error("Redis at {server} refused {command}: {message}")]
    Refused {
        /// Which server.
        server: String,
        /// What was asked.
        command: String,
        /// What it said.
        message: String,
    },
    /// It sent what it should not.
    #[error("Redis at {server} sent what no Redis sends: {why}")]
    Protocol {
        /// Which server.
        server: String,
        /// What is wrong with it.
        why: String,
    },
    /// The Sentinels know no master, or several.
    #[error("{0}")]
    Sentinel(String),
}

impl Error {
    pub(super) fn protocol(server: &str, why: impl Into<String>) -> Error {
        Error::Protocol { server: server.to_owned(), why: why.into() }
    }

    pub(super) fn resp(server: &str, error: &resp::Error) -> Error {
        Error::protocol(server, error.to_string())
    }

    /// What an error reply means: its first word says it.
    pub(super) fn of_reply(server: &str, command: &str, message: &str) -> Error {
        let (server, message) = (server.to_owned(), message.to_owned());
        match message.split(' ').next().unwrap_or_default() {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => Error::Login { server, message },
            // Before ACLs, and of `AUTH` where no password is set.
            "ERR" if command == "AUTH" => Error::Login { server, message },
            "LOADING" | "MASTERDOWN" | "NOMASTERLINK" | "BUSY" | "TRYAGAIN" | "MISCONF" => {
                Error::NotReady { server, message }
            }
            _ => Error::Refused { server, command: command.to_owned(), message },
        }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Socket { .. } | Error::Closed { .. } | Error::Silent { .. } | Error::NotReady { .. } => {
                Class::Transient
            }
            // A failover takes seconds, and Sentinels disagree while it lasts.
            Error::Sentinel(_) => Class::Transient,
            Error::Tls(_) | Error::Login { .. } | Error::Refused { .. } | Error::Protocol { .. } => Class::Permanent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Error;
    use crate::retry::Class;

    #[test]
    fn only_what_passes_is_tried_again() {
        for (message, class) in [
            ("LOADING Redis is loading the dataset in memory", Class::Transient),
            ("MASTERDOWN Link with MASTER is down", Class::Transient),
            ("NOMASTERLINK Can't SYNC while not connected with my master", Class::Transient),
            ("NOAUTH Authentication required.", Class::Permanent),
            ("WRONGPASS invalid username-password pair or user is disabled.", Class::Permanent),
            ("NOPERM this user has no permissions to run the 'psync' command", Class::Permanent),
            ("ERR unknown command 'PSYNC'", Class::Permanent),
        ] {
            let error = Error::of_reply("h:1", "PSYNC", message);
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
