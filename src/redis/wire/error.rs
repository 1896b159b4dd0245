//! What can go wrong with a Redis server, and what may be tried again.

use std::io;

use super::tls::RedisTlsError;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::redis::format::resp;

/// Why a server did not do what was asked. Names the server by its address and never shows a password.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// It can't be reached, or the connection broke.
    #[error("Redis at {server}: {source}")]
    Socket {
        /// Which server.
        server: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It closed the connection.
    #[error("Redis at {server} closed the connection while {during}{}", disconnect_remark(during))]
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
    Tls(#[from] RedisTlsError),
    /// It is not the server that is meant, or does not take us for a client that is.
    #[error("no TLS with Redis at {server}: {problem}")]
    Handshake {
        /// Which server.
        server: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// It does not let us in.
    #[error(
        "Redis at {server} does not let walkeep in: {message}; give the user and password that `ACL SETUSER walkeep on >… +psync +replconf \
         +ping +info +time` made, or the requirepass"
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
    /// Every Sentinel answers, and none has heard of the master.
    #[error(
        "the Sentinels ({sentinels}) know no master {master:?}; SENTINEL MASTERS lists those they know, give one as master"
    )]
    UnknownMaster {
        /// Who was asked.
        sentinels: String,
        /// For what.
        master: String,
    },
    /// Several servers say that they are the master.
    #[error(
        "two masters at once: {} all say they are master of {master:?}; their data differs, and walkeep does not \
            guess which is right",
        MasterClaimant::list_names(masters)
    )]
    TwoMasters {
        /// Which.
        masters: Vec<MasterClaimant>,
        /// Of what.
        master: String,
    },
    /// The Sentinels know no master, or none that can be reached.
    #[error("{0}")]
    Sentinel(String),
}

impl HasKind for RedisError {
    fn kind(&self) -> ErrorKind {
        match self {
            RedisError::Socket { .. }
            | RedisError::Closed { .. }
            | RedisError::Silent { .. }
            | RedisError::NotReady { .. } => ErrorKind::Unavailable,
            // A failover takes seconds, and Sentinels disagree while it lasts.
            RedisError::Sentinel(_) | RedisError::TwoMasters { .. } => ErrorKind::Unavailable,
            RedisError::Tls(_) | RedisError::Handshake { .. } | RedisError::UnknownMaster { .. } => ErrorKind::Usage,
            RedisError::Login { .. } | RedisError::Refused { .. } | RedisError::Protocol { .. } => ErrorKind::Failed,
        }
    }
}

/// A server that says that it is the master.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MasterClaimant {
    /// Its address.
    pub server: String,
    /// Its run.
    pub run_id: Option<String>,
}

impl MasterClaimant {
    /// The addresses of several, for messages.
    #[must_use]
    pub fn list_names(several: &[MasterClaimant]) -> String {
        several.iter().map(|one| one.server.as_str()).collect::<Vec<_>>().join(" and ")
    }
}

/// Before anything was answered.
pub(super) const FIRST_REPLY: &str = "its first reply was awaited";

/// Why a server may have hung up.
fn disconnect_remark(during: &str) -> &'static str {
    match during {
        FIRST_REPLY => "; is this a TLS port? then write rediss://",
        "a reply was awaited" => "; its log says why",
        _ => "; its log says why (a replica that reads too slowly is cut off by client-output-buffer-limit)",
    }
}

/// What is wrong with TLS, where that is why a connection is none; `None` where asking again may help.
fn tls_problem(source: &io::Error) -> Option<String> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls};
    let tls = source.get_ref()?.downcast_ref::<Tls>()?;
    Some(match tls {
        // These pass, when somebody renews it or sets a clock.
        Tls::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        ) => {
            return None;
        }
        Tls::InvalidCertificate(Bad::UnknownIssuer) => {
            format!("{tls}: its certificate is of none of the CAs known here; set tls-ca-file to the file of its CA")
        }
        Tls::InvalidCertificate(_) => {
            format!("{tls}; mend the server's certificate, or name the server as the certificate does")
        }
        Tls::InvalidMessage(_) => "it answers in clear; if that port speaks no TLS, write redis://".to_owned(),
        Tls::AlertReceived(
            Alert::CertificateRequired | Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown,
        ) => format!("{tls}: it wants a certificate that it knows; set tls-cert-file and tls-key-file"),
        _ => return None,
    })
}

impl RedisError {
    /// A socket that failed.
    pub(super) fn socket(server: &str, source: io::Error) -> RedisError {
        let server = server.to_owned();
        match tls_problem(&source) {
            Some(problem) => RedisError::Handshake { server, problem },
            None => RedisError::Socket { server, source },
        }
    }

    pub(super) fn protocol(server: &str, why: impl Into<String>) -> RedisError {
        RedisError::Protocol { server: server.to_owned(), why: why.into() }
    }

    pub(super) fn resp(server: &str, error: &resp::RespError) -> RedisError {
        RedisError::protocol(server, error.to_string())
    }

    /// What an error reply means: its first word says it.
    pub(super) fn from_reply(server: &str, command: &str, message: &str) -> RedisError {
        // A server that does not know the command repeats what came with it: the password.
        let shown = if command == "AUTH" { message.split(", with args").next().unwrap_or_default() } else { message };
        let (server, message) = (server.to_owned(), shown.to_owned());
        // `acceptCommonHandler` (networking.c), and `syncCommand` (replication.c) where the server cannot fork; both
        // pass.
        if ["ERR max number of clients", "ERR BGSAVE failed"].iter().any(|passes| message.starts_with(passes)) {
            return RedisError::NotReady { server, message };
        }
        match message.split(' ').next().unwrap_or_default() {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => RedisError::Login { server, message },
            // Before ACLs, and of `AUTH` where no password is set.
            "ERR" if command == "AUTH" => RedisError::Login { server, message },
            "LOADING" | "MASTERDOWN" | "NOMASTERLINK" | "BUSY" | "TRYAGAIN" | "MISCONF" => {
                RedisError::NotReady { server, message }
            }
            _ => RedisError::Refused { server, command: command.to_owned(), message },
        }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{AlertDescription, CertificateError, InvalidMessage};

    use super::{FIRST_REPLY, RedisError};
    use crate::base::retry::ErrorClass;

    #[test]
    fn what_is_wrong_with_tls_is_not_waited_for() {
        let of = |error: rustls::Error| RedisError::socket("h:1", io::Error::new(io::ErrorKind::InvalidData, error));
        for (error, says) in [
            (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), "set tls-ca-file"),
            (rustls::Error::InvalidCertificate(CertificateError::BadSignature), "mend the server's certificate"),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), "write redis://"),
            (rustls::Error::AlertReceived(AlertDescription::CertificateRequired), "set tls-cert-file and tls-key-file"),
        ] {
            let error = of(error);
            assert!(error.to_string().contains(says) && error.class() == ErrorClass::Permanent, "{error}");
        }
        let expired = of(rustls::Error::InvalidCertificate(CertificateError::Expired));
        assert_eq!(expired.class(), ErrorClass::Transient);
    }

    #[test]
    fn who_hangs_up_at_once_may_want_tls_and_who_hangs_up_later_may_be_too_slow_for() {
        let closed = |during| RedisError::Closed { server: "h:1".into(), during }.to_string();
        assert!(closed(FIRST_REPLY).ends_with("awaited; is this a TLS port? then write rediss://"));
        assert!(closed("a reply was awaited").ends_with("awaited; its log says why"));
        assert!(closed("the stream was followed").contains("client-output-buffer-limit"));
    }

    /// `processCommand` of 6, `commandCheckExistence` of 7.
    #[test]
    fn a_password_that_a_server_repeats_is_not_shown() {
        for message in [
            "ERR unknown command `AUTH`, with args beginning with: `walkeep`, `s3cret`, ",
            "ERR unknown command 'AUTH', with args beginning with: 'walkeep' 's3cret' ",
        ] {
            let error = RedisError::from_reply("h:1", "AUTH", message);
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("unknown command") && !shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        for (message, class) in [
            ("LOADING Redis is loading the dataset in memory", ErrorClass::Transient),
            ("MASTERDOWN Link with MASTER is down", ErrorClass::Transient),
            ("NOMASTERLINK Can't SYNC while not connected with my master", ErrorClass::Transient),
            ("ERR max number of clients reached", ErrorClass::Transient),
            ("ERR BGSAVE failed, replication can't continue", ErrorClass::Transient),
            ("NOAUTH Authentication required.", ErrorClass::Permanent),
            ("WRONGPASS invalid username-password pair or user is disabled.", ErrorClass::Permanent),
            ("NOPERM this user has no permissions to run the 'psync' command", ErrorClass::Permanent),
            ("ERR unknown command 'PSYNC'", ErrorClass::Permanent),
        ] {
            let error = RedisError::from_reply("h:1", "PSYNC", message);
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains(message), "{error}");
        }
        // Said to whatever is asked first.
        assert_eq!(
            RedisError::from_reply("h:1", "AUTH", "ERR max number of clients reached").class(),
            ErrorClass::Transient
        );
    }
}
