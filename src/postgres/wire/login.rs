//! From an open socket to a session: TLS, startup, authentication, and the choice among several servers
//! (`PQconnectPoll` in `fe-connect.c`, `pg_fe_sendauth` in `fe-auth.c`).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::command::startup;
use super::conninfo::{AuthMethod, ChannelBinding, Conninfo, ConninfoHost, PgPassword};
use super::error::{LoginAttempt, ReplicationError};
use super::message::{AuthenticationMessage, BackendMessage};
use super::pgpass;
use super::refusal::SessionKind;
use super::socket::{self, PgSocket, RawSocket, SocketTarget, TransportEncryption};
use super::tls;
use super::transport::MessageTransport;
use crate::base::clock::real_timeout;

/// What `.pgpass` and `pg_hba.conf` call the database of a physical replication connection.
const REPLICATION_DATABASE: &str = "replication";

/// A session that is ready for its first command.
pub(super) struct LoginSession {
    pub(super) wire: MessageTransport,
    pub(super) parameters: BTreeMap<String, String>,
}

/// Connects to `address` of `host`, by the ways that `sslmode` allows.
pub(super) async fn connect(
    info: &Conninfo,
    host: &ConninfoHost,
    address: &SocketTarget,
) -> Result<LoginSession, ReplicationError> {
    let mut errors = Vec::new();
    for encryption in socket::encryptions(info.tls.mode, address) {
        let limit = socket::attempt_limit(info);
        match real_timeout(limit, attempt_login(info, host, address, *encryption)).await {
            Some(Ok(session)) => return Ok(session),
            Some(Err(error)) => {
                let other_way_may_help = matches!(
                    error,
                    ReplicationError::Handshake { .. }
                        | ReplicationError::HandshakeCut { .. }
                        | ReplicationError::Tls(_)
                ) || error.sqlstate().is_some_and(|code| code == "28000");
                errors.push(error);
                if !other_way_may_help {
                    break;
                }
            }
            None => {
                errors.push(ReplicationError::TimedOut { host: host.to_string(), limit });
                break;
            }
        }
    }
    Err(combine_errors(errors))
}

/// The only error, or all of them.
pub(crate) fn combine_errors(mut errors: Vec<ReplicationError>) -> ReplicationError {
    match errors.pop() {
        Some(only) if errors.is_empty() => only,
        Some(last) => {
            errors.push(last);
            ReplicationError::NoServer(errors)
        }
        None => ReplicationError::NoServer(errors),
    }
}

async fn attempt_login(
    info: &Conninfo,
    host: &ConninfoHost,
    address: &SocketTarget,
    encryption: TransportEncryption,
) -> Result<LoginSession, ReplicationError> {
    let failed = |source: io::Error| ReplicationError::Connect { host: host.to_string(), source };
    let raw = socket::open_socket(address, info).await.map_err(failed)?;
    let from = raw.local_ip();
    let mut binding = None;
    let socket: Box<dyn PgSocket> = match (encryption, raw) {
        (TransportEncryption::Tls, RawSocket::Tcp(stream)) => {
            let (stream, end_point) = start_tls(info, host, stream).await?;
            binding = end_point;
            stream
        }
        (_, RawSocket::Tcp(stream)) => Box::new(stream),
        (_, RawSocket::Unix(stream)) => Box::new(stream),
    };
    let user = login_user(info)?;
    let (password, password_from) = login_password(info, host, &user, REPLICATION_DATABASE)?;
    let encrypted = encryption == TransportEncryption::Tls;
    let attempt = LoginAttempt {
        user: user.clone(),
        session: SessionKind::Replication,
        database: REPLICATION_DATABASE.to_owned(),
        from,
        encrypted,
        password_from,
    };
    let mut wire = MessageTransport::new(socket, host.to_string());
    let application_name = info.application_name.as_deref().unwrap_or("walkeep");
    let mut parameters = vec![
        ("user", user.as_str()),
        ("replication", "true"),
        ("application_name", application_name),
        ("client_encoding", "UTF8"),
    ];
    parameters.extend(info.options.as_deref().map(|options| ("options", options)));
    startup(&parameters, &mut wire.output);
    wire.flush().await?;
    let login = LoginExchange { info, attempt: &attempt, password, encrypted, binding };
    login.authenticate(&mut wire).await?;
    let parameters = login.read_until_ready(&mut wire).await?;
    Ok(LoginSession { wire, parameters })
}

/// Who to log in as.
pub(crate) fn login_user(info: &Conninfo) -> Result<String, ReplicationError> {
    info.user.clone().or_else(socket::current_user).ok_or_else(|| ReplicationError::Login {
        host: info.to_string(),
        problem: "no user is named, and the operating system's user has no name; add user=… to the connection string"
            .into(),
    })
}

/// The password, and a word on where it came from. A password file that can't be used is an error only once a password
/// is needed.
pub(crate) fn login_password(
    info: &Conninfo,
    host: &ConninfoHost,
    user: &str,
    database: &str,
) -> Result<(Option<PgPassword>, String), ReplicationError> {
    if let Some(password) = &info.password {
        return Ok((Some(password.clone()), "the connection string or PGPASSWORD".into()));
    }
    let Some(path) = info.password_file() else { return Ok((None, "nowhere: there is no password file".into())) };
    let is_default_dir = host.socket_dir().is_some_and(|dir| dir == socket::default_socket_dir(host.port));
    let address = host.address.map(|address| address.to_string());
    let name = match (&host.name, &address) {
        (Some(name), _) if !is_default_dir => name.as_str(),
        (None, Some(address)) => address.as_str(),
        _ => "localhost",
    };
    let wanted = pgpass::PgpassQuery { host: name, port: host.port, database, user };
    match pgpass::look_up_password(&path, wanted) {
        Ok(Some(password)) => Ok((Some(password), path.display().to_string())),
        Ok(None) => {
            Ok((None, format!("nowhere: no line of {} fits {name}:{}:{database}:{user}", path.display(), host.port)))
        }
        Err(problem) => Ok((None, format!("nowhere: {problem}"))),
    }
}

/// The name in the server's certificate that is asked for.
pub(crate) fn server_name(
    info: &Conninfo,
    host: &ConninfoHost,
    address: std::net::SocketAddr,
) -> Result<ServerName<'static>, ReplicationError> {
    let no_name = || ReplicationError::Handshake {
        host: host.to_string(),
        problem: "sslmode=verify-full needs the server's name in host; hostaddr alone won't do".into(),
    };
    match host.name.as_deref().map(|name| ServerName::try_from(name.to_owned())) {
        Some(Ok(name)) => Ok(name),
        _ if info.tls.mode == super::conninfo::SslMode::VerifyFull => Err(no_name()),
        _ => Ok(ServerName::IpAddress(address.ip().into())),
    }
}

type TlsSocket = (Box<dyn PgSocket>, Option<Vec<u8>>);

/// `SSLRequest`, the handshake, and the hash of the server's certificate for channel binding.
async fn start_tls(info: &Conninfo, host: &ConninfoHost, mut stream: TcpStream) -> Result<TlsSocket, ReplicationError> {
    let handshake = |problem: String| ReplicationError::Handshake { host: host.to_string(), problem };
    let broken = |error: io::Error| ReplicationError::ConnectionClosed(Some(error));
    let config = tls::client_config(info)?;
    let name = server_name(info, host, stream.peer_addr().map_err(broken)?)?;
    if !info.tls.direct {
        let mut request = bytes::BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(broken)?;
        // One byte and no more: anything after it that isn't TLS was put there by a third party (CVE-2021-23222).
        match stream.read_u8().await.map_err(broken)? {
            b'S' => {}
            b'N' => return Err(handshake("the server has TLS switched off (ssl = off)".into())),
            b'E' => return Err(handshake("the server refused the request for TLS".into())),
            _ => return Err(handshake("the server does not speak PostgreSQL's protocol".into())),
        }
    }
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| handshake_error(host, error))?;
    let certificates = stream.get_ref().1.peer_certificates();
    let end_point = certificates.and_then(|chain| chain.first()).and_then(tls::server_end_point);
    Ok((Box::new(stream), end_point))
}

/// A failed handshake. rustls's objections to the server stay what they are; a network that ended it may recover.
fn handshake_error(host: &ConninfoHost, error: io::Error) -> ReplicationError {
    let host = host.to_string();
    match is_cut(&error) {
        true => ReplicationError::HandshakeCut { host, source: error },
        false => ReplicationError::Handshake { host, problem: tls_problem(&error) },
    }
}

/// Whether the connection ended, and nothing else was wrong with it.
pub(crate) fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
    )
}

/// rustls's words, and what to do where they don't say.
fn tls_problem(error: &io::Error) -> String {
    use rustls::{CertificateError, Error as Tls};
    let advice = match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(Tls::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "; no certificate in sslrootcert has signed the server's"
        }
        Some(Tls::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "; the server's certificate is for another name than host says",
        _ => "",
    };
    format!("{error}{advice}")
}

/// What a login needs to know, message after message.
struct LoginExchange<'a> {
    info: &'a Conninfo,
    attempt: &'a LoginAttempt,
    password: Option<PgPassword>,
    encrypted: bool,
    binding: Option<Vec<u8>>,
}

impl LoginExchange<'_> {
    fn login_error(&self, wire: &MessageTransport, problem: impl Into<String>) -> ReplicationError {
        ReplicationError::Login { host: wire.peer.clone(), problem: problem.into() }
    }

    /// A message; the server's refusals come with advice.
    async fn read_message(&self, wire: &mut MessageTransport) -> Result<BackendMessage, ReplicationError> {
        match wire.read_message().await {
            Ok(BackendMessage::Error(error)) => Err(self.attempt.explain(*error)),
            Err(ReplicationError::Server { error, .. }) => Err(self.attempt.explain(*error)),
            other => other,
        }
    }

    fn require_password(&self, wire: &MessageTransport) -> Result<&PgPassword, ReplicationError> {
        self.password.as_ref().ok_or_else(|| {
            let problem = format!("the server asks for a password, and it came from {}", self.attempt.password_from);
            self.login_error(wire, problem)
        })
    }

    /// `require_auth` and `channel_binding=require` forbid the weaker ways, which a false server would choose.
    fn check_allowed(&self, wire: &MessageTransport, method: AuthMethod, bound: bool) -> Result<(), ReplicationError> {
        if self.info.require_auth.as_ref().is_some_and(|allowed| !allowed.contains(&method)) {
            return Err(self
                .login_error(wire, format!("the server wants authentication {method:?}, which require_auth forbids")));
        }
        if self.info.channel_binding == ChannelBinding::Require && !bound {
            let problem = "channel_binding=require, but the server did not offer it; it takes TLS and scram-sha-256 \
                in pg_hba.conf";
            return Err(self.login_error(wire, problem));
        }
        Ok(())
    }

    async fn authenticate(&self, wire: &mut MessageTransport) -> Result<(), ReplicationError> {
        let mut asked = false;
        loop {
            let BackendMessage::Authentication(request) = self.read_message(wire).await? else {
                return Err(ReplicationError::UnexpectedAnswer("the startup packet"));
            };
            match request {
                AuthenticationMessage::Ok => {
                    if !asked {
                        self.check_allowed(wire, AuthMethod::None, false)?;
                    }
                    return Ok(());
                }
                _ if asked => return Err(ReplicationError::UnexpectedAnswer("the password")),
                AuthenticationMessage::Cleartext => {
                    self.check_allowed(wire, AuthMethod::Password, false)?;
                    self.send_password(wire, self.require_password(wire)?.reveal()).await?;
                }
                AuthenticationMessage::Md5(salt) => {
                    self.check_allowed(wire, AuthMethod::Md5, false)?;
                    let secret = self.require_password(wire)?.reveal().as_bytes();
                    let hash = md5_hash(self.attempt.user.as_bytes(), secret, salt);
                    self.send_password(wire, &hash).await?;
                }
                AuthenticationMessage::Sasl(mechanisms) => self.authenticate_scram(wire, &mechanisms).await?,
                _ => {
                    let problem =
                        "the server wants an authentication method other than password, md5 and scram-sha-256";
                    return Err(self.login_error(wire, format!("{problem}; choose one of these in pg_hba.conf")));
                }
            }
            asked = true;
        }
    }

    async fn send_password(&self, wire: &mut MessageTransport, password: &str) -> Result<(), ReplicationError> {
        let zero = |_inner_zero| self.login_error(wire, "the password contains a zero byte");
        let mut message = bytes::BytesMut::new();
        frontend::password_message(password.as_bytes(), &mut message).map_err(zero)?;
        wire.output.extend_from_slice(&message);
        wire.flush().await
    }

    /// SCRAM-SHA-256, tied to the TLS connection if both sides can (RFC 5802, RFC 5929; `fe-auth-scram.c`).
    async fn authenticate_scram(
        &self,
        wire: &mut MessageTransport,
        mechanisms: &[String],
    ) -> Result<(), ReplicationError> {
        let offers = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
        let wants_binding = self.info.channel_binding != ChannelBinding::Disable && self.encrypted;
        let plus = offers(sasl::SCRAM_SHA_256_PLUS);
        let (mechanism, binding) = match &self.binding {
            Some(hash) if wants_binding && plus => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone()))
            }
            // Saying that we could have tells the server if somebody between us has taken its offer away.
            Some(_) if wants_binding => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            _ => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(self.login_error(wire, "the server offers no SASL mechanism that we know (SCRAM-SHA-256)"));
        }
        self.check_allowed(wire, AuthMethod::ScramSha256, mechanism == sasl::SCRAM_SHA_256_PLUS)?;
        let scram = sasl::ScramSha256::new(self.require_password(wire)?.reveal().as_bytes(), binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut wire.output)
            .map_err(|e| ReplicationError::ConnectionClosed(Some(e)))?;
        wire.flush().await?;
        let BackendMessage::Authentication(AuthenticationMessage::SaslContinue(challenge)) =
            self.read_message(wire).await?
        else {
            return Err(ReplicationError::UnexpectedAnswer("the SCRAM exchange"));
        };
        let mut scram = match scram_proof(scram, challenge).await {
            Ok(scram) => scram,
            Err(problem) => return Err(self.login_error(wire, problem)),
        };
        frontend::sasl_response(scram.message(), &mut wire.output)
            .map_err(|e| ReplicationError::ConnectionClosed(Some(e)))?;
        wire.flush().await?;
        let BackendMessage::Authentication(AuthenticationMessage::SaslFinal(signature)) =
            self.read_message(wire).await?
        else {
            return Err(ReplicationError::UnexpectedAnswer("the SCRAM exchange"));
        };
        scram.finish(&signature).map_err(|error| {
            self.login_error(
                wire,
                format!("the server could not prove that it knows the password ({error}); is it the right server?"),
            )
        })
    }

    /// What the server tells about itself before it is ready.
    async fn read_until_ready(
        &self,
        wire: &mut MessageTransport,
    ) -> Result<BTreeMap<String, String>, ReplicationError> {
        let mut parameters = BTreeMap::new();
        loop {
            match BackendMessage::parse(wire.read_frame().await?)? {
                BackendMessage::ParameterStatus { name, value } if parameters.len() < 100 => {
                    parameters.insert(name, value);
                }
                BackendMessage::Error(error) => return Err(self.attempt.explain(*error)),
                BackendMessage::ReadyForQuery => return Ok(parameters),
                _ => {}
            }
        }
    }
}

/// The client's proof: thousands of hashes, milliseconds, so not on a thread that others wait for.
async fn scram_proof(mut scram: sasl::ScramSha256, challenge: Bytes) -> Result<sasl::ScramSha256, String> {
    let work = tokio::task::spawn_blocking(move || match scram.update(&challenge) {
        Ok(()) => Ok(scram),
        Err(error) => Err(format!("the server's SCRAM challenge is malformed ({error})")),
    });
    work.await.unwrap_or_else(|error| Err(format!("the SCRAM exchange was cut off ({error})")))
}
